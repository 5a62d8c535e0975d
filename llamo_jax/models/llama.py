"""The LLaMA family of decoders: RMSNorm, rotary positions, grouped-query attention, SwiGLU."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Bool as Boolean
from jaxtyping import Float, Int

from llamo_jax import sharding
from llamo_jax.config import Bool, ConfigError, setting, settings
from llamo_jax.config import Float as Number
from llamo_jax.config import Int as Integer
from llamo_jax.models import layers
from llamo_jax.models.attention import SAVED, Attend, any_length, cached_attention, segment_attention
from llamo_jax.models.flops import Flops, LinearFlops

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


@settings
class RopeScaling:
    """Frequency scaling of Llama 3.1 and later; field names as in Hugging Face's `rope_scaling`."""

    factor: Number = setting("by which long wavelengths are stretched", gt=0)
    low_freq_factor: Number = setting("wavelengths above original_max / this are long", gt=0)
    high_freq_factor: Number = setting("wavelengths below original_max / this are short", gt=0)
    original_max_position_embeddings: Integer = setting("context of pretraining", ge=1)

    def __post_init__(self) -> None:
        if self.high_freq_factor <= self.low_freq_factor:
            raise ConfigError("high_freq_factor must be above low_freq_factor")


@settings
class DecoderConfig:
    """A decoder of the LLaMA family; see Hugging Face's LlamaConfig for the constants."""

    vocab_size: Integer = setting("V", ge=1, le=2**24)
    width: Integer = setting("D", ge=1, le=2**20)
    num_layers: Integer = setting("decoder layers", ge=1, le=10_000)
    num_heads: Integer = setting("query heads, K · R", ge=1, le=2**16)
    num_kv_heads: Integer = setting("K", ge=1, le=2**16)
    head_width: Integer = setting("H, even", ge=2, le=2**16)
    mlp_width: Integer = setting("of the hidden layer of SwiGLU", ge=1, le=2**22)
    rope_theta: Number = setting("base of the rotary frequencies", gt=0)
    rope_scaling: RopeScaling | None = setting("None: as pretrained")
    rms_norm_eps: Number = setting("added to the mean square", gt=0, lt=1)
    qkv_bias: Bool = setting("whether query, key and value have biases (Qwen2)")
    qk_norm: Bool = setting("whether queries and keys are normalised, head by head, before they are rotated (Qwen3)")
    tie_embeddings: Bool = setting("whether the embedding is the output matrix as well")
    sliding_window: Integer | None = setting("positions that a token may look back; longer rows are refused", ge=1)

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}")
        if self.head_width % 2:
            raise ConfigError(f"head_width={self.head_width} is odd: rotary positions turn pairs")

    def projections(self) -> dict[str, tuple[int, int]]:
        """(in, out) of every linear map of a layer, by name."""
        heads, kv = self.num_heads * self.head_width, self.num_kv_heads * self.head_width
        return {
            "query": (self.width, heads),
            "key": (self.width, kv),
            "value": (self.width, kv),
            "output": (heads, self.width),
            "gate": (self.width, self.mlp_width),
            "up": (self.width, self.mlp_width),
            "down": (self.mlp_width, self.width),
        }

    def layer_flops(self, rows: int, tokens: int, linear: LinearFlops) -> Flops:
        """Of all layers on `rows` rows of `tokens` tokens, attention included."""
        layer = Flops()
        for name, (inside, outside) in self.projections().items():
            layer += linear(f"layers/{name}", rows * tokens, inside, outside)
        return Flops(*(self.num_layers * part for part in layer)) + self.attention_flops(rows * tokens, tokens)

    def attention_flops(self, queries: int, keys: int) -> Flops:
        """Queries · keys and weights · values, in all layers, where every query looks at so many keys.

        Masked ones count as well, as is usual (Chowdhery et al., 2022, appendix B).
        """
        scores = 2.0 * 2 * queries * keys * self.num_heads * self.head_width * self.num_layers
        return Flops(scores, 2 * scores, 0)

    def head_flops(self, positions: int, linear: LinearFlops) -> Flops:
        """Logits of so many positions."""
        if not self.tie_embeddings:
            return linear("lm_head", positions, self.width, self.vocab_size)
        flops = linear("embedding", positions, self.width, self.vocab_size)
        trained = f"{linear.prefix}/embedding" in linear.trained  # no path of a matrix, but of the table itself
        return flops._replace(weight_gradients=flops.forward * trained)


class KVCache(NamedTuple):
    """Keys and values of all layers, stacked: dtype[layers, B, K, J, H]; a token's place j is its position."""

    keys: Any
    values: Any

    @property
    def slots(self) -> int:
        """J: tokens that there is room for."""
        return self.keys.shape[3]

    def write(self, layer: Any, start: Int[Array, " B"] | int, k: Array, v: Array) -> "KVCache":
        """With keys and values [B, T, K, H] of a layer at `start` (one place, or one a row); those beyond J are lost.

        The whole cache is carried through the scan over layers and changed in place: as an output of each layer it
        would be copied.
        """
        keys, values = (written(cache, (layer,), start, new) for cache, new in ((self.keys, k), (self.values, v)))
        return KVCache(keys, values)

    def attend(self, layer: Any, q: Float[Array, "B T heads H"], mask: Boolean[Array, "B T J"]) -> Array:
        """What the queries get from a layer's cache."""
        return cached_attention(q, self.keys[layer], self.values[layer], mask)

    def map(self, function: Callable[..., Array], *others: "KVCache") -> "KVCache":
        """A cache of `function`'s results for each layer's [B, K, J, H], of this cache and the others."""
        return KVCache(*(jax.vmap(function)(*parts) for parts in zip(self, *others, strict=True)))


def written(
    cache: Float[Array, "*layers B K J H"], layer: tuple[Any, ...], start: Array | int, new: Float[Array, "B T K H"]
) -> Float[Array, "*layers B K J H"]:
    """The cache with new keys or values of one layer (of `()`, if it holds but one) at `start`."""
    if isinstance(start, int):  # the same place in all rows: one slice, which XLA writes in place
        block = jnp.expand_dims(new.transpose(0, 2, 1, 3), tuple(range(len(layer)))).astype(cache.dtype)
        return jax.lax.dynamic_update_slice(cache, block, (*layer, 0, 0, start, 0))
    rows = jnp.arange(len(start))[:, None]
    place = (*layer, rows, slice(None), start[:, None] + jnp.arange(new.shape[1]))
    return cache.at[place].set(new, mode="drop")


class LlamaDecoder(nnx.Module):
    """A stack of decoder layers, scanned; takes embeddings, so that graph tokens can be spliced in between.

    Layers are one stacked module: every parameter has a leading "layers" axis.
    """

    def __init__(
        self,
        config: DecoderConfig,
        *,
        compute_dtype: str,
        remat: str = "none",
        attention: str = "auto",
        rngs: nnx.Rngs,
    ):
        self.config = config
        self.compute_dtype = compute_dtype
        self.remat = remat
        self.attention = attention
        embedding = (config.vocab_size, config.width)
        # As large as what the layers add to it; where it is the output matrix as well, logits must start small.
        scale = config.width**-0.5 if config.tie_embeddings else 1.0
        self.embedding = layers.parameter(layers.normal(scale), embedding, ("vocab", "embed"), rngs=rngs)
        self.layers = DecoderLayer(config, rngs=rngs, stack=config.num_layers)
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

    def run_layers(self, body: Callable[["DecoderLayer", Any, Any], Any], carry: Any, *, remat: str = "none") -> Any:
        """`carry = body(layer, index, carry)` for one layer after the other; index is traced in a scan.

        remat: what the backward pass of each layer computes again; see REMATERIALISATION.
        """
        graphdef, state = nnx.split(self.layers)

        def step(carry: Any, inputs: tuple[nnx.State, Array]) -> tuple[Any, None]:
            layer_state, index = inputs
            return body(nnx.merge(graphdef, layer_state), index, carry), None

        if remat != "none":
            # prevent_cse=False: the setting for the body of a scan, which XLA cannot merge across iterations anyway
            step = jax.checkpoint(step, prevent_cse=False, policy=REMATERIALISATION[remat])
        return jax.lax.scan(step, carry, (state, jnp.arange(self.config.num_layers)))[0]

    def __call__(
        self, embeddings: Float[Array, "B T D"], positions: Int[Array, "B T"], segments: Int[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        """Final hidden states (normalised, ready for `logits`) of packed rows: tokens see their own segment alone."""
        self._check_length(segments.shape[1])
        attend = self._attention(self.attention, segments)
        cos, sin = rope_tables(positions, self.config)  # once, and not in every layer

        def body(layer: DecoderLayer, _: Any, x: Array) -> Array:
            return layer.finish(x, attend(*layer.queries_keys_values(x, cos, sin)))

        x = sharding.constrain_rows(embeddings.astype(self.compute_dtype))
        return self.norm(self.run_layers(body, x, remat=self.remat))

    def _attention(self, kernel: str, segments: Int[Array, "B T"]) -> Attend:
        config = self.config
        heads = (config.num_heads, config.num_kv_heads)
        return segment_attention(kernel, segments, config.head_width, jnp.dtype(self.compute_dtype), heads)

    def prefill(
        self, embeddings: Float[Array, "B T D"], segments: Int[Array, "B T"], slots: int
    ) -> tuple[Float[Array, "B D"], Any]:
        """The final hidden state of each prompt's last token, and a cache of `slots` that holds them from slot 0 on.

        segments: 1 for a prompt's tokens, 0 for the padding behind them.
        """
        self._check_length(slots)
        length = segments.shape[1]
        ends = jnp.maximum(jnp.sum(segments > 0, axis=1) - 1, 0)[:, None]
        attend = self._attention(any_length(self.attention), segments)
        cos, sin = rope_tables(np.arange(length)[None], self.config)
        # an end sees its prompt's tokens and itself; what lies behind in the cache is zeros
        seen_by_ends = jnp.arange(slots) <= ends[..., None]

        def body(layer: DecoderLayer, index: Any, carry: tuple[Array, Any]) -> tuple[Array, Any]:
            x, cache = carry
            q, k, v = layer.queries_keys_values(x, cos, sin)
            cache = cache.write(index, 0, k, v)
            if self._is_known_last(index):  # of it, all keys and values are needed, but only the ends' outputs
                return layer.finish(_at(x, ends), cache.attend(index, _at(q, ends), seen_by_ends)), cache
            return layer.finish(x, attend(q, k, v)), cache

        x = sharding.constrain_rows(embeddings.astype(self.compute_dtype))
        # prompts attend among themselves (`attend`), not to the cache with its room for answers: 14 % less time at 384
        # slots
        x, cache = self.run_layers(body, (x, self.empty_cache(len(segments), slots)))
        x = x if x.shape[1] == 1 else _at(x, ends)
        return self.norm(x[:, 0]), cache

    def extend(
        self, cache: Any, start: Int[Array, " B"], embeddings: Float[Array, "B T D"]
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Final hidden states of T new tokens per row, at positions `start` … `start + T - 1`, and the cache with them.

        A token sees the positions up to its own. What it would write beyond the cache's end is dropped.
        """
        self._check_length(cache.slots)
        positions = start[:, None] + jnp.arange(embeddings.shape[1])  # rows are at different places of their answers
        mask = jnp.arange(cache.slots) <= positions[..., None]
        cos, sin = (table[positions] for table in rope_tables(np.arange(cache.slots), self.config))

        def body(layer: DecoderLayer, index: Any, carry: tuple[Array, Any]) -> tuple[Array, Any]:
            x, cache = carry
            q, k, v = layer.queries_keys_values(x, cos, sin)
            cache = cache.write(index, start, k, v)
            return layer.finish(x, cache.attend(index, q, mask)), cache

        x = sharding.constrain_rows(embeddings.astype(self.compute_dtype))
        x, cache = self.run_layers(body, (x, cache))
        return self.norm(x), cache

    def _is_known_last(self, index: Any) -> bool:
        """Whether a layer is known to be the last while the program is built: not in a scan, where all are the same."""
        return isinstance(index, int) and index == self.config.num_layers - 1

    def _check_length(self, length: int) -> None:
        window = self.config.sliding_window
        if window is not None and length > window:
            raise ConfigError(f"sliding_window={window}: sliding attention over {length} tokens is not there")

    def head(self) -> Float[Array, "D V"]:
        """The matrix from hidden states to logits, in its own dtype."""
        return self.embedding[...].T if self.lm_head is None else self.lm_head.kernel[...]

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """float32 logits over the vocabulary."""
        return jnp.matmul(hidden, self.head().astype(hidden.dtype), preferred_element_type=jnp.float32)

    def empty_cache(self, batch: int, slots: int) -> Any:
        """A cache for `batch` rows of at most `slots` tokens; rows and kv heads are divided over the mesh."""
        config = self.config
        shape = (config.num_layers, batch, config.num_kv_heads, slots, config.head_width)
        empty = sharding.constrain_axes(jnp.zeros(shape, self.compute_dtype), (None, *CACHE_AXES))
        return KVCache(empty, empty)


class DecoderLayer(nnx.Module):
    """Pre-norm attention and SwiGLU MLP, created as a stack and called on one slice of it.

    In two halves, because what comes between them differs: packed training rows, prompts and decoding attend to
    different keys.
    """

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs, stack: int):
        self.config = config
        axes = {"query": "heads", "key": "kv_heads", "value": "kv_heads", "gate": "mlp", "up": "mlp"}

        def linear(name: str) -> layers.Linear:
            from_axis, to_axis = {"output": ("heads", "embed"), "down": ("mlp", "embed")}.get(
                name, ("embed", axes.get(name))
            )
            bias = config.qkv_bias and name in ("query", "key", "value")
            inside, outside = config.projections()[name]
            return layers.Linear(inside, outside, (from_axis, to_axis), rngs=rngs, stack=stack, use_bias=bias)

        def head_norm() -> layers.RMSNorm:
            return layers.RMSNorm(config.head_width, config.rms_norm_eps, rngs=rngs, stack=stack, axis="head_width")

        self.attention_norm = layers.RMSNorm(config.width, config.rms_norm_eps, rngs=rngs, stack=stack)
        self.query = linear("query")
        self.key = linear("key")
        self.value = linear("value")
        self.query_norm = head_norm() if config.qk_norm else None
        self.key_norm = head_norm() if config.qk_norm else None
        self.output = linear("output")
        self.mlp_norm = layers.RMSNorm(config.width, config.rms_norm_eps, rngs=rngs, stack=stack)
        self.gate = linear("gate")
        self.up = linear("up")
        self.down = linear("down")

    def queries_keys_values(
        self, x: Float[Array, "B T D"], cos: Float[Array, "#B T half"], sin: Float[Array, "#B T half"]
    ) -> tuple[Float[Array, "B T heads H"], Float[Array, "B T K H"], Float[Array, "B T K H"]]:
        """What the tokens ask for and what they offer; queries and keys are rotated by their positions."""
        h = self.attention_norm(x)
        q, k, v = (_split(linear(h), self.config.head_width) for linear in (self.query, self.key, self.value))
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        return apply_rope(q, cos, sin), apply_rope(k, cos, sin), v

    def finish(self, x: Float[Array, "B T D"], attended: Float[Array, "B T heads H"]) -> Float[Array, "B T D"]:
        """The layer's output from its input and what attention gave."""
        x += self.output(attended.reshape(*x.shape[:2], -1))
        h = self.mlp_norm(x)
        return sharding.constrain_rows(x + self.down(jax.nn.silu(self.gate(h)) * self.up(h)))


def _at(x: Float[Array, "B T *rest"], places: Int[Array, "B n"]) -> Float[Array, "B n *rest"]:
    """x[b, places[b, i]] for every b and i."""
    return jnp.take_along_axis(x, places.reshape(*places.shape, *(1,) * (x.ndim - 2)), axis=1)


def rope_tables(
    positions: Int[Array | np.ndarray, "*shape"], config: DecoderConfig
) -> tuple[Float[Array, "*shape half"], Float[Array, "*shape half"]]:
    """float32 cosines and sines of the rotary angles, H/2 for each position (Hugging Face's half-split layout).

    Of numpy's positions they are constants of the program. XLA on CPU computes functions of others wherever they are
    used, for every head of every layer.
    """
    frequencies = _frequencies(config)
    if config.rope_scaling is not None:
        frequencies = _scaled_frequencies(frequencies, config.rope_scaling)
    angles = positions[..., None].astype(np.float32) * frequencies
    if isinstance(positions, np.ndarray):
        return jnp.asarray(np.cos(angles)), jnp.asarray(np.sin(angles))
    return jnp.cos(angles), jnp.sin(angles)


def stretches(config: DecoderConfig, scaling: RopeScaling) -> Float[np.ndarray, " half"]:
    """By how much a scaling stretches each of the H/2 wavelengths, float32."""
    frequencies = _frequencies(config)
    return frequencies / _scaled_frequencies(frequencies, scaling)


def _frequencies(config: DecoderConfig) -> np.ndarray:
    """In numpy: constants of the program, the same on every device, in float32 as Hugging Face computes them."""
    exponent = np.arange(0, config.head_width, 2, dtype=np.float32) / config.head_width
    return (1.0 / config.rope_theta**exponent).astype(np.float32)


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
