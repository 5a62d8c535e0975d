"""The model's modules, importable on their own."""

from llamo_jax.models.gin import GINEncoder
from llamo_jax.models.llama import KVCache, LlamaDecoder
from llamo_jax.models.llamo import LLaMo
from llamo_jax.models.projector import MultiLevelProjector

__all__ = ["GINEncoder", "KVCache", "LLaMo", "LlamaDecoder", "MultiLevelProjector"]
