"""The form of a model that decodes fastest: made when a model is loaded to answer, never trained or stored.

On one CPU, matrices lie as [out, in], as `few_rows` reads them, and there and on GPUs the decoder's layers come one by
one: see `unstacked`. The model's code is the same; a few of its parts are replaced by the types below.
"""

import functools
import logging
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Bool, Float

from llamo_jax import distributed, parameters, sharding
from llamo_jax.generation import few_rows
from llamo_jax.generation.memory import WORKING_SHARE, device_bytes
from llamo_jax.generation.unstacked import LayerCaches, UnstackedDecoder
from llamo_jax.models import layers
from llamo_jax.models.attention import cached_attention
from llamo_jax.models.definition import ModelDefinition
from llamo_jax.models.llama import LlamaDecoder
from llamo_jax.models.llamo import LLaMo
from llamo_jax.models.lora import LoRALinear, fix_gains
from llamo_jax.parameters import Arrays

CACHE_SHARE = 0.1
"""Share of a device's memory without which answers are not worth a copy of the layers: 3 GB of an A100's 32 are 16
rows of Llama-2-7B, 384 tokens each."""

_log = logging.getLogger(__name__)


def for_decoding(
    definition: ModelDefinition, arrays: Arrays, mesh: Mesh, *, arrays_stay: bool = False
) -> tuple[ModelDefinition, Arrays]:
    """The model as decoding reads it fastest on these devices: for one CPU device, for GPUs, or as it is.

    The layers' arrays are copies. GPUs without room for both decode from the stacked ones, and a warning says so.

    arrays_stay: the caller keeps `arrays` while answers are made, as training does: room is wanted beside both, then.
    """
    with jax.set_mesh(mesh):
        platform = sharding.platform()
        if platform == "cpu" and mesh.size == 1:
            convert = _for_cpu
        elif platform == "gpu" and _has_room(arrays, CACHE_SHARE + WORKING_SHARE if arrays_stay else 0):
            convert = _unstacked
        elif definition.config.lora.dora:
            convert = _fixed
        else:
            return definition, arrays
        converted = jax.jit(convert) if mesh.size > 1 else convert  # of shards, no device may see the whole
        return _definition(definition, convert), parameters.flatten(nnx.state(converted(definition.merge(arrays))))


def _has_room(arrays: Arrays, free: float) -> bool:
    """Whether the devices of all processes, which run one program, can hold the decoder's layers a second time.

    free: the share of a device's memory that must be left then.
    """
    limit, used = device_bytes()
    layered = (x for name, x in arrays.items() if name.startswith("language_model/layers/"))
    copies = sum(x.addressable_shards[0].data.nbytes for x in layered)
    room = distributed.all_agree(used + copies <= (1 - free) * limit)
    if not room and distributed.is_main():
        _log.warning(
            "answers will take about twice as long: no room for a second copy of the decoder's layers "
            "(%.1f GB of %.1f GB are in use, and it takes %.1f GB)", used / 1e9, limit / 1e9, copies / 1e9,
        )  # fmt: skip
    return room


@functools.lru_cache(maxsize=16)
def _definition(definition: ModelDefinition, convert: Callable[[LLaMo], LLaMo]) -> ModelDefinition:
    """One for each, since programs are compiled once for each definition."""
    model = nnx.merge(definition.graphdef, definition.variables)
    return ModelDefinition(definition.config, *nnx.split(sharding.without_values(convert, model)))


def _fixed(model: LLaMo) -> LLaMo:
    fix_gains(model)
    return model


def _unstacked(model: LLaMo) -> LLaMo:
    fix_gains(model)
    model.language_model = UnstackedDecoder(model.language_model)
    return model


def _for_cpu(model: LLaMo) -> LLaMo:
    fix_gains(model)
    model.language_model = FewRowsDecoder(model.language_model)
    return model


class FewRowsLinear(layers.Linear):
    """A linear map whose kernel lies as [out, in]."""

    def __init__(self, linear: layers.Linear):
        layers.take_over(self, linear)
        self.kernel = _transposed(linear.kernel)

    def matrix(self, dtype: jnp.dtype) -> Float[Array, "in_width out_width"]:
        """As a linear map's."""
        return self.kernel[...].T.astype(dtype)

    def matmul(self, x: Float[Array, "*batch in_width"]) -> Float[Array, "*batch out_width"]:
        """As a linear map's; any number of rows, fast for few."""
        return few_rows.linear(x, self.kernel[...]).astype(x.dtype)


class FewRowsCaches(LayerCaches):
    """Caches whose keys are read as they lie."""

    def attend(self, layer: int, q: Float[Array, "B T heads H"], mask: Bool[Array, "B T J"]) -> Array:
        """As `KVCache.attend`."""
        return cached_attention(q, self.keys[layer], self.values[layer], mask, few_rows.product)


class FewRowsDecoder(UnstackedDecoder):
    """A decoder with its layers apart and its matrices as [out, in]; quantised matrices stay as they are."""

    caches = FewRowsCaches

    def __init__(self, decoder: LlamaDecoder):
        super().__init__(decoder)
        layers.replace_linears(self, [".*"], _few_rows, what="the decoder")

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """float32 logits over the vocabulary; an embedding lies as [V, D] already."""
        matrix = self.embedding if self.lm_head is None else self.lm_head.kernel
        return few_rows.linear(hidden, matrix[...])


def _transposed(kernel: nnx.Variable) -> nnx.Variable:
    return kernel.replace(kernel[...].T, out_sharding=kernel.get_metadata("out_sharding")[::-1])


def _few_rows(_: str, linear: layers.Linear) -> layers.Linear:
    """The linear map with its matrix as [out, in]; a quantised one stays as it is."""
    if type(linear) is layers.Linear:
        return FewRowsLinear(linear)
    if isinstance(linear, LoRALinear) and linear.adapted_type is layers.Linear:
        linear.kernel = _transposed(linear.kernel)
        linear.adapted_type = FewRowsLinear
    return linear
