"""Masked grouped-query attention in plain XLA."""

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float


# Scores and weights, [B, heads, T, J], are computed again in the backward pass: storing them costs more than that.
@functools.partial(jax.checkpoint, prevent_cse=False)
def attention(
    q: Float[Array, "B T heads H"], k: Float[Array, "B J K H"], v: Float[Array, "B J K H"], mask: Bool[Array, "B T J"]
) -> Float[Array, "B T heads H"]:
    """Softmax attention with scale H^-½; query head i uses kv head i // (heads / K). Softmax in float32.

    Heads are brought to the front and the division by the softmax's sum comes last: on two CPU cores, forward and
    backward take half the time of `jax.nn.dot_product_attention`, which keeps the [B, T, heads, H] layout. A query
    that may look nowhere gets the mean of all values; such positions are padding.
    """
    batch, length, heads, width = q.shape
    kv_heads = k.shape[2]
    q = (q * width**-0.5).transpose(0, 2, 1, 3).reshape(batch, kv_heads, -1, width)  # R and T share an axis
    k, v = k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)
    scores = jnp.matmul(q, k, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, kv_heads, heads // kv_heads, length, -1)
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    total = jnp.sum(weights, axis=-1)[..., None]
    weights = weights.reshape(batch, kv_heads, -1, weights.shape[-1]).astype(v.dtype)
    pooled = jnp.matmul(weights, v, preferred_element_type=jnp.float32)
    pooled = pooled.reshape(batch, kv_heads, heads // kv_heads, length, width) / total
    return pooled.reshape(batch, heads, length, width).transpose(0, 2, 1, 3).astype(q.dtype)
