"""Masked grouped-query attention: in plain XLA, or by a kernel of the accelerator.

Kernels are named by `config.model.attention`: xla everywhere; splash, a Pallas kernel of JAX for TPUs; cudnn, flash
attention of NVIDIA GPUs; auto takes what the devices and sizes allow. All of them give the same result.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import PartitionSpec
from jaxtyping import Bool, Float, Int

from llamo_jax import sharding
from llamo_jax.config import ConfigError

SAVED = "attention"
"""Checkpoint name of what a kernel's backward pass needs, for rematerialisation policies."""

Attend = Callable[[Float[Array, "B T heads H"], Float[Array, "B T K H"], Float[Array, "B T K H"]], Array]
"""(queries, keys, values) → Float[Array, "B T heads H"]."""


def segment_attention(
    kernel: str, segments: Int[Array, "B T"], head_width: int, dtype: jnp.dtype, heads: Sequence[int] = ()
) -> Attend:
    """Causal attention within packed segments, by the named kernel; raises ConfigError if it cannot be used.

    head_width, dtype: of the queries; heads: how many there are, of queries and of keys. Rows of padding (segment 0)
    get meaningless finite values.
    """
    kernel = choose_kernel(kernel, segments.shape[1], head_width, dtype, heads)
    if kernel == "splash":
        return functools.partial(splash_attention, segments=segments)
    if kernel == "cudnn":
        # The causal flag lets the kernel leave out what lies above the diagonal; the mask, a bias to it, tells segments
        # apart. Padding counts as one, because a softmax over nothing would not be finite.
        same = segments[:, :, None] == segments[:, None, :]
        return functools.partial(
            jax.nn.dot_product_attention, mask=same[:, None], is_causal=True, implementation="cudnn"
        )
    return functools.partial(attention, mask=causal_mask(segments))


def choose_kernel(kernel: str, length: int, head_width: int, dtype: jnp.dtype, heads: Sequence[int] = ()) -> str:
    """The kernel that `kernel` stands for; raises ConfigError if it does not take these sizes."""
    platform, mesh = sharding.platform(), sharding.current_mesh()
    divided = mesh is None or not any(count % mesh.shape["tensor"] for count in heads)
    splash = length % 128 == 0 and head_width % 64 == 0
    cudnn = dtype == jnp.bfloat16 and head_width % 8 == 0 and head_width <= 128 and length % 2 == 0
    if kernel == "auto":
        if platform == "tpu" and splash and divided:
            return "splash"
        return "cudnn" if platform == "gpu" and cudnn else "xla"
    if kernel == "splash" and not (platform == "tpu" and splash):
        raise ConfigError(
            f"config.model.attention=splash needs a TPU, rows of a multiple of 128 tokens and heads of a multiple of "
            f"64 wide, not {platform}, {length} and {head_width}"
        )
    if kernel == "cudnn" and not (platform == "gpu" and cudnn):
        raise ConfigError(
            f"config.model.attention=cudnn needs a GPU, bfloat16, an even row length and heads of at most 128 (a "
            f"multiple of 8) wide, not {platform}, {dtype}, {length} and {head_width}"
        )
    return kernel


def any_length(kernel: str) -> str:
    """The kernel with which a model answers that was trained with `kernel`: prompts have any length, on any device."""
    return "xla" if kernel == "xla" else "auto"


def causal_mask(segments: Int[Array, "B T"]) -> Bool[Array, "B T T"]:
    """True where a token may look: earlier or equal positions of its own packed segment; padding (0) sees nothing."""
    # positions restart in every segment, so places in the row decide what is earlier
    causal = jnp.tril(jnp.ones((segments.shape[1],) * 2, bool))
    same = (segments[:, :, None] == segments[:, None, :]) & (segments > 0)[:, :, None]
    return same & causal


# Scores and weights, [B, heads, T, J], are computed again in the backward pass: storing them costs more than that.
@functools.partial(jax.checkpoint, prevent_cse=False)
def attention(
    q: Float[Array, "B T heads H"], k: Float[Array, "B J K H"], v: Float[Array, "B J K H"], mask: Bool[Array, "B T J"]
) -> Float[Array, "B T heads H"]:
    """Softmax attention with scale H^-½; query head i uses kv head i // (heads / K). Softmax in float32.

    A query that may look nowhere gets the mean of all values; such positions are padding.
    """
    return cached_attention(q, k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3), mask)


def cached_attention(
    q: Float[Array, "B T heads H"],
    k: Float[Array, "B K J H"],
    v: Float[Array, "B K J H"],
    mask: Bool[Array, "B T J"],
    scores_of: Callable[[Float[Array, "B K n H"], Float[Array, "B K J H"]], Float[Array, "B K n J"]] | None = None,
) -> Float[Array, "B T heads H"]:
    """The same for keys and values as a cache holds them, heads first.

    scores_of: float32 products of queries and keys, n = R · T of them for each kv head; by default XLA's.

    Queries are brought into that order and the division by the softmax's sum comes last: on two CPU cores, forward and
    backward take half the time of `jax.nn.dot_product_attention`, which keeps the [B, T, heads, H] layout.
    """
    batch, length, heads, width = q.shape
    kv_heads = k.shape[1]
    # Scaled before the product: [R · T, H] numbers instead of [R · T, J]. Query heads of one kv head lie beside each
    # other, so that grouped queries are one larger product and keys need not be repeated.
    q = (q * width**-0.5).transpose(0, 2, 1, 3).reshape(batch, kv_heads, -1, width)  # R and T share an axis
    if scores_of is None:
        scores = jnp.matmul(q, k.swapaxes(2, 3), preferred_element_type=jnp.float32)
    else:
        scores = scores_of(q, k)
    scores = scores.reshape(batch, kv_heads, heads // kv_heads, length, -1)
    # the smallest number, not -inf: a row that sees nothing would become NaN, and the zero of its mask times NaN is NaN
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    # the softmax by hand, so that its division comes after the product: [n, H] numbers to divide instead of [n, J]
    weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    total = jnp.sum(weights, axis=-1)[..., None]
    weights = weights.reshape(batch, kv_heads, -1, weights.shape[-1]).astype(v.dtype)
    pooled = jnp.matmul(weights, v, preferred_element_type=jnp.float32)
    pooled = pooled.reshape(batch, kv_heads, heads // kv_heads, length, width) / total
    return pooled.reshape(batch, heads, length, width).transpose(0, 2, 1, 3).astype(q.dtype)


def splash_attention(
    q: Float[Array, "B T heads H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    *,
    segments: Int[Array, "B T"],
    interpret: bool = False,
) -> Float[Array, "B T heads H"]:
    """JAX's Pallas kernel for TPUs: scores never leave the chip, blocks above the diagonal are not computed.

    interpret: run it as plain JAX operations, on any device (slow).
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    mesh = sharding.current_mesh()
    heads_axis = "tensor" if mesh is not None else None
    tensor = 1 if mesh is None else mesh.shape["tensor"]
    if q.shape[2] % tensor or k.shape[2] % tensor:
        raise ConfigError(f"config.mesh.tensor={tensor} does not divide {q.shape[2]} heads and {k.shape[2]} kv heads")
    length = q.shape[1]
    # the largest block that divides the row: fewer, larger products
    block = next(size for size in (512, 256, 128) if length % size == 0)
    mask = splash.MultiHeadMask([splash.CausalMask((length, length))] * (q.shape[2] // tensor))
    sizes = splash.BlockSizes(
        block_q=block, block_kv=block, block_kv_compute=block,
        block_q_dkv=block, block_kv_dkv=block, block_kv_dkv_compute=block,
        use_fused_bwd_kernel=True,
    )  # fmt: skip
    kernel = splash.make_splash_mha(
        mask, block_sizes=sizes, head_shards=1, q_seq_shards=1, residual_checkpoint_name=SAVED, interpret=interpret
    )

    def attend(q: Array, k: Array, v: Array, segments: Array) -> Array:
        ids = splash.SegmentIds(q=segments, kv=segments)
        q, k, v = (x.transpose(0, 2, 1, 3) for x in (q * np.asarray(q.shape[-1] ** -0.5, q.dtype), k, v))
        return jax.vmap(kernel)(q, k, v, ids).transpose(0, 2, 1, 3)

    if mesh is None:
        return attend(q, k, v, segments)
    rows = sharding.BATCH_AXES
    spec = PartitionSpec(rows, None, heads_axis, None)
    return jax.shard_map(
        attend, in_specs=(spec, spec, spec, PartitionSpec(rows, None)), out_specs=spec, check_vma=False
    )(q, k, v, segments)
