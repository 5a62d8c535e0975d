"""The model's modules, for import by name."""

from llamo_jax.models.config import ModelConfig as ModelConfig
from llamo_jax.models.graph_encoders.gin import GINConfig as GINConfig
from llamo_jax.models.graph_encoders.gin import GINEncoder as GINEncoder
from llamo_jax.models.interfaces import GraphEncoder as GraphEncoder
from llamo_jax.models.interfaces import Projector as Projector
from llamo_jax.models.llama import DecoderConfig as DecoderConfig
from llamo_jax.models.llama import LlamaDecoder as LlamaDecoder
from llamo_jax.models.llamo import LLaMo as LLaMo
from llamo_jax.models.lora import LoRAConfig as LoRAConfig
from llamo_jax.models.projectors.multi_level import MultiLevelConfig as MultiLevelConfig
from llamo_jax.models.projectors.multi_level import MultiLevelProjector as MultiLevelProjector
