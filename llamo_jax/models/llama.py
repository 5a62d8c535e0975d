"""The LLaMA family of decoders: RMSNorm, rotary positions, grouped-query attention, SwiGLU, LoRA on any projection."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float, Int, Key

from llamo_jax import quantization, sharding
from llamo_jax.config import ConfigError, DecoderConfig, LoRAConfig, RopeScaling
from llamo_jax.models import few_rows, layers
from llamo_jax.models.attention import SAVED, Attend, cached_attention, segment_attention

ATTENTION_PROJECTIONS = ("query", "key", "value", "output")
MLP_PROJECTIONS = ("gate", "up", "down")

CACHE_AXES = (sharding.BATCH_AXES, "tensor", None, None)
"""Mesh axes of one layer's keys or values in a cache: rows and kv heads are divided."""

_POLICIES = jax.checkpoint_policies
REMATERIALISATION = {
    "dots": _POLICIES.save_from_both_policies(
        _POLICIES.dots_with_no_batch_dims_saveable, _POLICIES.save_only_these_names(SAVED)
    ),
    "full": _POLICIES.nothing_saveable,
}
"""What the forward pass of a layer keeps for the backward pass besides its input: the projections' outputs and what
an attention kernel needs, or nothing. "none" keeps everything."""


class KVCache(NamedTuple):
    """Keys and values of all layers: dtype[layers, B, K, cache length, H]; a token's slot is its position.

    Where the decoder's layers are apart, tuples of arrays without the first axis.
    """

    keys: Any
    values: Any


def map_layers(function: Callable[..., Array], *caches: KVCache) -> KVCache:
    """A cache of `function`'s results for each layer's [B, K, cache length, H]."""

    def each(*arrays: Any) -> Any:
        return tuple(map(function, *arrays)) if isinstance(arrays[0], tuple) else jax.vmap(function)(*arrays)

    return KVCache(*(each(*parts) for parts in zip(*caches, strict=True)))


class LlamaDecoder(nnx.Module):
    """A stack of decoder layers, scanned; takes embeddings, so that graph tokens can be spliced in between.

    Layers are one stacked module: every parameter has a leading "layers" axis.
    """

    def __init__(
        self,
        config: DecoderConfig,
        lora: LoRAConfig,
        *,
        compute_dtype: str,
        remat: str = "none",
        attention: str = "auto",
        quantize: str = "none",
        rngs: nnx.Rngs,
    ):
        unknown = set(lora.targets) - {*ATTENTION_PROJECTIONS, *MLP_PROJECTIONS}
        if unknown:
            raise ConfigError(f"lora.targets: unknown projections {sorted(unknown)}")
        if remat not in ("none", *REMATERIALISATION):
            raise ConfigError(f"config.model.remat: {remat!r} is not one of none, {', '.join(REMATERIALISATION)}")
        if quantize not in quantization.KINDS:
            raise ConfigError(f"config.model.quantize: {quantize!r} is not one of {', '.join(quantization.KINDS)}")
        self.config = config
        self.compute_dtype = compute_dtype
        self.remat = remat
        self.attention = attention
        self.transposed = False
        embedding = (config.vocab_size, config.width)
        # As large as what the layers add to it; where it is the output matrix as well, logits must start small.
        scale = config.width**-0.5 if config.tie_embeddings else 1.0
        self.embedding = layers.parameter(layers.normal(scale), embedding, ("vocab", "embed"), rngs=rngs)
        self.layers = DecoderLayer(config, lora, quantize, rngs=rngs, stack=config.num_layers)
        self.norm = layers.RMSNorm(config.width, config.rms_norm_eps, rngs=rngs)
        head = ("embed", "vocab")
        self.lm_head = (
            None
            if config.tie_embeddings
            else layers.Linear(config.width, config.vocab_size, head, use_bias=False, rngs=rngs)
        )

    def embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Token embeddings in the compute dtype."""
        return self.embedding[...].astype(self.compute_dtype)[tokens]

    def __call__(
        self,
        embeddings: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        segments: Int[Array, "B T"],
        *,
        dropout_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B T D"]:
        """Final hidden states (normalised, ready for `logits`) of packed rows: tokens see their own segment alone."""
        self._check_length(segments.shape[1])
        attend = segment_attention(self.attention, segments, self.config.head_width, jnp.dtype(self.compute_dtype))
        graphdef, state = nnx.split(self.layers)
        cos, sin = rope_tables(positions, self.config)
        keys = None if dropout_key is None else jax.random.split(dropout_key, self.config.num_layers)

        def step(x: Array, inputs: tuple) -> tuple[Array, None]:
            layer_state, key = inputs
            x = nnx.merge(graphdef, layer_state)(x, cos, sin, attend, key)
            return sharding.constrain_rows(x), None

        if self.remat != "none":
            # prevent_cse=False: the setting for the body of a scan
            step = jax.checkpoint(step, prevent_cse=False, policy=REMATERIALISATION[self.remat])
        x = sharding.constrain_rows(embeddings.astype(self.compute_dtype))
        x, _ = jax.lax.scan(step, x, (state, keys))
        return self.norm(x)

    def prefill(
        self,
        embeddings: Float[Array, "B T D"],
        segments: Int[Array, "B T"],
        slots: int,
        layer_states: Sequence[nnx.State] | None = None,
    ) -> tuple[Float[Array, "B D"], KVCache]:
        """The final hidden state of each prompt's last token, and a cache of `slots` that holds them from slot 0 on.

        segments: 1 for a prompt's tokens, 0 for the padding behind them. layer_states: of the layers one by one,
        instead of the stacked one (see ModelDefinition.layer_states); then the cache's layers are apart as well.
        """
        self._check_length(slots)
        length = segments.shape[1]
        ends = jnp.maximum(jnp.sum(segments > 0, axis=1) - 1, 0)[:, None]
        kernel = "xla" if self.attention == "xla" else "auto"  # not every prompt has a length that training's takes
        attend = segment_attention(kernel, segments, self.config.head_width, jnp.dtype(self.compute_dtype))
        cos, sin = rope_tables(np.arange(length)[None], self.config)
        graphdef, stacked = nnx.split(self.layers)

        def in_slots(x: Float[Array, "B T K H"]) -> Float[Array, "B K slots H"]:
            x = jnp.pad(x.transpose(0, 2, 1, 3), ((0, 0), (0, 0), (0, slots - length), (0, 0)))
            return sharding.constrain_axes(x, CACHE_AXES)

        def step(x: Array, layer_state: nnx.State) -> tuple[Array, tuple[Array, Array]]:
            kept = []

            def attend_and_keep(q: Array, k: Array, v: Array) -> Array:
                kept.append((in_slots(k), in_slots(v)))
                return attend(q, k, v)

            x = nnx.merge(graphdef, layer_state)(x, cos, sin, attend_and_keep, None)
            return sharding.constrain_rows(x), kept[0]

        x = sharding.constrain_rows(embeddings.astype(self.compute_dtype))
        if layer_states is None:
            x, cache = jax.lax.scan(step, x, stacked)
            return self.norm(jnp.take_along_axis(x, ends[..., None], axis=1)[:, 0]), KVCache(*cache)
        caches = []
        for layer_state in layer_states[:-1]:
            x, cache = step(x, layer_state)
            caches.append(cache)

        # of the last layer, all keys and values are needed, but only the ends' queries and what follows from them
        last = nnx.merge(graphdef, layer_states[-1])
        keys, values = map(in_slots, last.keys_and_values(x, cos, sin))
        seen = jnp.arange(slots) <= ends[..., None]

        def attend_to_cache(q: Array, _k: Array, _v: Array) -> Array:
            return cached_attention(q, keys, values, seen, reduce_few_rows=self.transposed)

        x = jnp.take_along_axis(x, ends[..., None], axis=1)
        x = last(x, cos[0, ends], sin[0, ends], attend_to_cache, None)
        return self.norm(x[:, 0]), KVCache(*zip(*caches, (keys, values), strict=True))

    def extend(
        self,
        cache: KVCache,
        start: Int[Array, " B"],
        embeddings: Float[Array, "B T D"],
        layer_states: Sequence[nnx.State] | None = None,
    ) -> tuple[Float[Array, "B T D"], KVCache]:
        """Final hidden states of T new tokens per row, at positions `start` … `start + T - 1`, and the cache with them.

        A token sees the positions up to its own. What it would write beyond the cache's end is dropped. layer_states:
        of the layers one by one, instead of the stacked one (see ModelDefinition.layer_states).
        """
        slots = cache.keys[0].shape[2]
        self._check_length(slots)
        positions = start[:, None] + jnp.arange(embeddings.shape[1])
        mask = jnp.arange(slots) <= positions[..., None]
        cos, sin = (table[positions] for table in rope_tables(np.arange(slots), self.config))
        rows = jnp.arange(len(start))[:, None]
        graphdef, stacked = nnx.split(self.layers)

        def run(x: Array, layer_state: nnx.State, remember: Callable[[Array, Array], tuple[Array, Array]]) -> Array:
            def attend(q: Array, k: Array, v: Array) -> Array:
                return cached_attention(q, *remember(k, v), mask, reduce_few_rows=self.transposed)

            return sharding.constrain_rows(nnx.merge(graphdef, layer_state)(x, cos, sin, attend, None))

        def step(carry: tuple[Array, KVCache], inputs: tuple[nnx.State, Array]) -> tuple[tuple[Array, KVCache], None]:
            x, (keys, values) = carry
            layer_state, layer = inputs

            def remember(k: Array, v: Array) -> tuple[Array, Array]:
                nonlocal keys, values
                # the whole cache is carried and changed in place; as an output of each layer it would be copied
                place = (layer, rows, slice(None), positions)
                keys, values = keys.at[place].set(k, mode="drop"), values.at[place].set(v, mode="drop")
                return keys[layer], values[layer]

            x = run(x, layer_state, remember)
            return (x, KVCache(keys, values)), None

        x = sharding.constrain_rows(embeddings.astype(self.compute_dtype))
        if layer_states is None:
            (x, cache), _ = jax.lax.scan(step, (x, cache), (stacked, jnp.arange(self.config.num_layers)))
            return self.norm(x), cache
        extended: list[tuple[Array, Array]] = []
        for layer_state, keys, values in zip(layer_states, *cache, strict=True):

            def remember(k: Array, v: Array, keys: Array = keys, values: Array = values) -> tuple[Array, Array]:
                place = (rows, slice(None), positions)
                extended.append((keys.at[place].set(k, mode="drop"), values.at[place].set(v, mode="drop")))
                return extended[-1]

            x = run(x, layer_state, remember)
        return self.norm(x), KVCache(*zip(*extended, strict=True))

    def _check_length(self, length: int) -> None:
        window = self.config.sliding_window
        if window is not None and length > window:
            raise ConfigError(f"sliding_window={window}: sliding attention over {length} tokens is not there")

    def head(self) -> Float[Array, "D V"]:
        """The matrix from hidden states to logits, in its own dtype."""
        if self.lm_head is None:
            return self.embedding[...].T
        return self.lm_head.kernel[...].T if self.transposed else self.lm_head.kernel[...]

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """float32 logits over the vocabulary."""
        if self.transposed:
            return few_rows.linear(hidden, self.head().T)
        return jnp.matmul(hidden, self.head().astype(hidden.dtype), preferred_element_type=jnp.float32)

    def transpose(self) -> None:
        """Holds all matrices as [out, in] from now on, as decoding on CPU reads them fastest (see few_rows)."""
        for _, module in nnx.iter_modules(self):
            if isinstance(module, layers.Linear):
                module.transpose()
        self.transposed = True

    def empty_cache(self, batch: int, length: int, *, layers_apart: bool = False) -> KVCache:
        """A cache for `batch` rows of at most `length` tokens; rows and kv heads are divided over the mesh."""
        config = self.config
        shape = (config.num_layers, batch, config.num_kv_heads, length, config.head_width)
        if layers_apart:
            empty = sharding.constrain_axes(jnp.zeros(shape[1:], self.compute_dtype), CACHE_AXES)
            return KVCache((empty,) * config.num_layers, (empty,) * config.num_layers)
        empty = sharding.constrain_axes(jnp.zeros(shape, self.compute_dtype), (None, *CACHE_AXES))
        return KVCache(empty, empty)


class DecoderLayer(nnx.Module):
    """Pre-norm attention and SwiGLU MLP, created as a stack and called on one slice of it."""

    def __init__(self, config: DecoderConfig, lora: LoRAConfig, quantize: str, *, rngs: nnx.Rngs, stack: int):
        self.config = config
        heads, kv = config.num_heads * config.head_width, config.num_kv_heads * config.head_width

        def linear(name: str, in_width: int, out_width: int, axes: tuple[str, str]) -> layers.Linear:
            return layers.Linear(
                in_width, out_width, axes, rngs=rngs, stack=stack,
                use_bias=config.qkv_bias and name in ("query", "key", "value"),
                lora=lora if name in lora.targets else None,
                quantize=quantize,
            )  # fmt: skip

        self.attention_norm = layers.RMSNorm(config.width, config.rms_norm_eps, rngs=rngs, stack=stack)
        self.query = linear("query", config.width, heads, ("embed", "heads"))
        self.key = linear("key", config.width, kv, ("embed", "kv_heads"))
        self.value = linear("value", config.width, kv, ("embed", "kv_heads"))
        self.output = linear("output", heads, config.width, ("heads", "embed"))
        self.mlp_norm = layers.RMSNorm(config.width, config.rms_norm_eps, rngs=rngs, stack=stack)
        self.gate = linear("gate", config.width, config.mlp_width, ("embed", "mlp"))
        self.up = linear("up", config.width, config.mlp_width, ("embed", "mlp"))
        self.down = linear("down", config.mlp_width, config.width, ("mlp", "embed"))

    def __call__(
        self,
        x: Float[Array, "B T D"],
        cos: Float[Array, "#B T half"],
        sin: Float[Array, "#B T half"],
        attend: Attend,
        dropout_key: Key[Array, ""] | None,
    ) -> Float[Array, "B T D"]:
        head = self.config.head_width
        h = self.attention_norm(x)
        q = apply_rope(_split(self.query(h, layers.fold_key(dropout_key, 0)), head), cos, sin)
        attended = attend(q, *self._keys_and_values(h, cos, sin, dropout_key))
        x += self.output(attended.reshape(*x.shape[:2], -1), layers.fold_key(dropout_key, 3))
        h = self.mlp_norm(x)
        gate = jax.nn.silu(self.gate(h, layers.fold_key(dropout_key, 4)))
        up = self.up(h, layers.fold_key(dropout_key, 5))
        return x + self.down(gate * up, layers.fold_key(dropout_key, 6))

    def keys_and_values(
        self, x: Float[Array, "B T D"], cos: Float[Array, "#B T half"], sin: Float[Array, "#B T half"]
    ) -> tuple[Float[Array, "B T K H"], Float[Array, "B T K H"]]:
        """What tokens are attended to by, without the rest of the layer."""
        return self._keys_and_values(self.attention_norm(x), cos, sin, None)

    def _keys_and_values(self, h: Array, cos: Array, sin: Array, dropout_key: Array | None) -> tuple[Array, Array]:
        head = self.config.head_width
        k = apply_rope(_split(self.key(h, layers.fold_key(dropout_key, 1)), head), cos, sin)
        return k, _split(self.value(h, layers.fold_key(dropout_key, 2)), head)


def rope_tables(
    positions: Int[Array | np.ndarray, "*shape"], config: DecoderConfig
) -> tuple[Float[Array, "*shape half"], Float[Array, "*shape half"]]:
    """float32 cosines and sines of the rotary angles, H/2 for each position (Hugging Face's half-split layout).

    Of numpy's positions they are constants of the program. XLA on CPU computes functions of others wherever they are
    used, for every head of every layer.
    """
    exponent = np.arange(0, config.head_width, 2, dtype=np.float32) / config.head_width
    frequencies = (1.0 / config.rope_theta**exponent).astype(np.float32)
    if config.rope_scaling is not None:
        frequencies = _scaled_frequencies(frequencies, config.rope_scaling)
    angles = positions[..., None].astype(np.float32) * frequencies
    if isinstance(positions, np.ndarray):
        return jnp.asarray(np.cos(angles)), jnp.asarray(np.sin(angles))
    return jnp.cos(angles), jnp.sin(angles)


def _scaled_frequencies(frequencies: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, those between interpolated."""
    wavelengths = 2 * np.pi / frequencies
    ratio = scaling.original_max_position_embeddings / wavelengths
    smooth = (ratio - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    smooth = np.clip(smooth, 0.0, 1.0)
    return ((1 - smooth) * frequencies / scaling.factor + smooth * frequencies).astype(np.float32)


def apply_rope(
    x: Float[Array, "B T heads H"], cos: Float[Array, "#B T half"], sin: Float[Array, "#B T half"]
) -> Float[Array, "B T heads H"]:
    """Rotates queries or keys, in float32: bfloat16 would round position 257 to 256."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


def _split(x: Array, head_width: int) -> Array:
    return x.reshape(*x.shape[:-1], -1, head_width)
