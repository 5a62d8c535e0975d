"""A decoder whose layers, and their caches, are arrays of their own, instead of slices of stacked ones.

In a scan, XLA for CPUs and GPUs copies a layer's slice of every stacked array before a product reads it, and decoding
does little else than read: on an H100, 32 rows of Llama-2-7B take 8 ms a token like this, and 18 stacked.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int

from llamo_jax import sharding
from llamo_jax.models import layers
from llamo_jax.models.attention import cached_attention
from llamo_jax.models.llama import CACHE_AXES, LlamaDecoder, written


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
        return self._replace(keys=_with(self.keys, layer, keys), values=_with(self.values, layer, values))

    def attend(self, layer: int, q: Float[Array, "B T heads H"], mask: Bool[Array, "B T J"]) -> Array:
        """As `KVCache.attend`."""
        return cached_attention(q, self.keys[layer], self.values[layer], mask)

    def map(self, function: Callable[..., Array], *others: "LayerCaches") -> "LayerCaches":
        """As `KVCache.map`."""
        return type(self)(*(tuple(map(function, *parts)) for parts in zip(self, *others, strict=True)))


def _with(arrays: tuple[Array, ...], layer: int, array: Array) -> tuple[Array, ...]:
    return (*arrays[:layer], array, *arrays[layer + 1 :])


class UnstackedDecoder(LlamaDecoder):
    """A decoder with its layers one by one."""

    caches: type[LayerCaches] = LayerCaches

    def __init__(self, decoder: LlamaDecoder):
        layers.take_over(self, decoder)
        graphdef, state = nnx.split(decoder.layers)
        self.layers: Any = nnx.List(
            nnx.merge(graphdef, _layer(state, index)) for index in range(decoder.config.num_layers)
        )

    def run_layers(self, body: Callable[[Any, Any, Any], Any], carry: Any, *, remat: str = "none") -> Any:
        """As `LlamaDecoder.run_layers`; nothing is computed again, since nothing is trained in this form."""
        for index, layer in enumerate(self.layers):
            carry = body(layer, index, carry)
        return carry

    def empty_cache(self, batch: int, slots: int) -> LayerCaches:
        """As `LlamaDecoder.empty_cache`."""
        shape = (batch, self.config.num_kv_heads, slots, self.config.head_width)
        empty = sharding.constrain_axes(jnp.zeros(shape, self.compute_dtype), CACHE_AXES)
        return self.caches((empty,) * self.config.num_layers, (empty,) * self.config.num_layers)


def _layer(state: nnx.State, index: int) -> nnx.State:
    """One layer's variables from those of a stack, without the axis "layers"."""
    return nnx.from_flat_state(
        [
            (path, variable.replace(variable[...][index], out_sharding=variable.get_metadata("out_sharding")[1:]))
            for path, variable in nnx.to_flat_state(state)
        ]
    )
