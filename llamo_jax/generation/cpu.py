"""The form of a model that decodes fastest on one CPU: made when a model is loaded to answer, never trained or stored.

Matrices lie as [out, in], as `few_rows` reads them, and the decoder's layers come one by one: a slice of a stacked
array is a copy, which would take a third of the time of a token. The model's code is the same; a few of its parts are
replaced by the types below.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from llamo_jax import parameters, sharding
from llamo_jax.generation import few_rows
from llamo_jax.models import layers
from llamo_jax.models.attention import cached_attention
from llamo_jax.models.definition import ModelDefinition
from llamo_jax.models.llama import CACHE_AXES, LlamaDecoder, written
from llamo_jax.models.llamo import LLaMo
from llamo_jax.models.lora import LoRALinear, fix_gains
from llamo_jax.parameters import Arrays


def for_decoding(definition: ModelDefinition, arrays: Arrays, mesh: Mesh) -> tuple[ModelDefinition, Arrays]:
    """The model as decoding reads it fastest on these devices: in the form of this module on a single CPU device."""
    if mesh.size == 1 and mesh.devices.flat[0].platform == "cpu":
        convert = _converted
    elif definition.config.lora.dora:
        convert = _fixed
    else:
        return definition, arrays
    with jax.set_mesh(mesh):
        converted = jax.jit(convert) if mesh.size > 1 else convert  # of shards, no device may see the whole
        return _definition(definition, convert), parameters.flatten(nnx.state(converted(definition.merge(arrays))))


@functools.lru_cache(maxsize=16)
def _definition(definition: ModelDefinition, convert: Callable[[LLaMo], LLaMo]) -> ModelDefinition:
    """One for each, since programs are compiled once for each definition."""
    model = nnx.merge(definition.graphdef, definition.variables)
    with nnx.logical_axis_rules(sharding.RULES):  # inside of jax.set_mesh, eval_shape looks them up
        return ModelDefinition(definition.config, *nnx.split(nnx.eval_shape(convert, model)))


def _fixed(model: LLaMo) -> LLaMo:
    fix_gains(model)
    return model


def _converted(model: LLaMo) -> LLaMo:
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


class LayerCaches(NamedTuple):
    """As `KVCache`, with one array for each layer: dtype[B, K, J, H]."""

    keys: tuple[Array, ...]
    values: tuple[Array, ...]

    @property
    def slots(self) -> int:
        """J: tokens that there is room for."""
        return self.keys[0].shape[2]

    def write(self, layer: int, start: Int[Array, " B"] | int, k: Array, v: Array) -> "LayerCaches":
        """As `KVCache.write`."""
        keys, values = written(self.keys[layer], (), start, k), written(self.values[layer], (), start, v)
        return LayerCaches(_with(self.keys, layer, keys), _with(self.values, layer, values))

    def attend(self, layer: int, q: Float[Array, "B T heads H"], mask: Bool[Array, "B T J"]) -> Array:
        """As `KVCache.attend`."""
        return cached_attention(q, self.keys[layer], self.values[layer], mask, few_rows.product)

    def map(self, function: Callable[..., Array], *others: "LayerCaches") -> "LayerCaches":
        """As `KVCache.map`."""
        return LayerCaches(*(tuple(map(function, *parts)) for parts in zip(self, *others, strict=True)))


def _with(arrays: tuple[Array, ...], layer: int, array: Array) -> tuple[Array, ...]:
    return (*arrays[:layer], array, *arrays[layer + 1 :])


class FewRowsDecoder(LlamaDecoder):
    """A decoder with its layers apart and its matrices as [out, in]; quantised matrices stay as they are."""

    def __init__(self, decoder: LlamaDecoder):
        layers.take_over(self, decoder)
        graphdef, state = nnx.split(decoder.layers)
        self.layers: Any = nnx.List(
            nnx.merge(graphdef, _layer(state, index)) for index in range(decoder.config.num_layers)
        )
        layers.replace_linears(self, [".*"], _few_rows, what="the decoder")

    def run_layers(self, body: Callable[[Any, Any, Any], Any], carry: Any, *, remat: str = "none") -> Any:
        """As `LlamaDecoder.run_layers`; nothing is computed again, since nothing is trained in this form."""
        for index, layer in enumerate(self.layers):
            carry = body(layer, index, carry)
        return carry

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """float32 logits over the vocabulary; an embedding lies as [V, D] already."""
        matrix = self.embedding if self.lm_head is None else self.lm_head.kernel
        return few_rows.linear(hidden, matrix[...])

    def empty_cache(self, batch: int, slots: int) -> LayerCaches:
        """As `LlamaDecoder.empty_cache`."""
        shape = (batch, self.config.num_kv_heads, slots, self.config.head_width)
        empty = sharding.constrain_axes(jnp.zeros(shape, self.compute_dtype), CACHE_AXES)
        return LayerCaches((empty,) * self.config.num_layers, (empty,) * self.config.num_layers)


def _layer(state: nnx.State, index: int) -> nnx.State:
    """One layer's variables from those of a stack, without the axis "layers"."""
    return nnx.from_flat_state(
        [
            (path, variable.replace(variable[...][index], out_sharding=variable.get_metadata("out_sharding")[1:]))
            for path, variable in nnx.to_flat_state(state)
        ]
    )


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
