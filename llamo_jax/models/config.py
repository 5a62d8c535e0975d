"""The configuration of a whole model."""

from typing import Annotated, Literal

from llamo_jax.config import Int, setting, settings
from llamo_jax.models.graph_encoders import GRAPH_ENCODERS
from llamo_jax.models.interfaces import GraphEncoderConfig, ProjectorConfig
from llamo_jax.models.llama import DecoderConfig
from llamo_jax.models.lora import LoRAConfig
from llamo_jax.models.projectors import PROJECTORS

Dtype = Literal["float32", "bfloat16"]


@settings
class ModelConfig:
    """The whole model; graph encoder, projector and decoder, joined in llamo_jax.models.llamo."""

    graph_encoder: Annotated[GraphEncoderConfig, GRAPH_ENCODERS.field()] = setting("any kind in models/graph_encoders")
    projector: Annotated[ProjectorConfig, PROJECTORS.field()] = setting("any kind in models/projectors")
    language_model: DecoderConfig = setting("a decoder of the LLaMA family")
    lora: LoRAConfig = setting("adapters on any linear map")
    compute_dtype: Dtype = setting("of the decoder's activations; the graph side's are float32, see docs/design.md")
    frozen_dtype: Dtype = setting("of language-model weights that are not trained; trained weights are float32")
    quantize: Literal["none", "int8", "nf4"] = setting("of the decoder's frozen projections")
    attention: Literal["auto", "xla", "cudnn", "splash"] = setting("kernel: cudnn on GPUs, splash on TPUs")
    remat: Literal["none", "dots", "full"] = setting("what the backward pass computes again, per decoder layer")
    loss_chunk: Int = setting("tokens of a batch shard whose logits exist at a time", ge=1)

    @property
    def num_levels(self) -> int:
        """L, of the graph encoder."""
        return self.graph_encoder.num_levels

    @property
    def num_graph_tokens(self) -> int:
        """Q: graph tokens per molecule."""
        return self.projector.num_tokens(self.num_levels)


ARCHITECTURE = ("graph_encoder", "projector", "language_model", "lora")
"""The parts of a ModelConfig that decide about its arrays; the rest says how to compute, and may change."""
