"""Cross-entropy over the vocabulary without the logits of a whole batch, and only where there is a target."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec
from jaxtyping import Bool, Float, Int

from data_pipeline.batch import Batch
from llamo_jax import sharding
from llamo_jax.models import LLaMo

T = TypeVar("T")


def cross_entropy(model: LLaMo, hidden: Float[Array, "B T D"], batch: Batch) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """Summed negative log-likelihood of the batch's targets in float32, and their number.

    Each batch shard brings its targets to the front and looks at `loss_chunk` of them at a time: logits of positions
    without a target are never computed, those of a chunk are forgotten before the next. Where a gradient is wanted,
    it is computed along with the loss, so that no logits are computed twice.
    """
    shards = batch.molecules.atoms.n_node.shape[0]
    hidden, targets, mask = (x.reshape(shards, -1, *x.shape[2:]) for x in (hidden, batch.targets, batch.target_mask))
    length = mask.shape[1]
    chunks = -(-length // model.config.loss_chunk)
    while length % chunks:
        chunks += 1
    order = jnp.argsort(~mask, axis=1, stable=True).reshape(shards, chunks, length // chunks)
    total = _summed(hidden, model.language_model.head(), targets, mask, jnp.moveaxis(order, 1, 0))
    return total, jnp.sum(mask, dtype=jnp.int32)


@jax.custom_vjp
def _summed(
    hidden: Float[Array, "S n D"],
    kernel: Float[Array, "D V"],
    targets: Int[Array, "S n"],
    mask: Bool[Array, "S n"],
    chunks: Int[Array, "C S k"],
) -> Float[Array, ""]:
    """The summed loss; `chunks` holds all positions of each shard, those with a target first."""
    gathered = _gathered(kernel, hidden.dtype)

    def add(total: Array, places: Int[Array, "S k"]) -> tuple[Array, None]:
        def chunk() -> Array:
            h, t, m = (_take(x, places) for x in (hidden, targets, mask))
            logits, normaliser = _logits(h, gathered)
            return jnp.sum(jnp.where(m, normaliser - _chosen(logits, t), 0))

        return total + _if_any(_take(mask, places), chunk), None

    return jax.lax.scan(add, jnp.zeros(()), chunks)[0]


def _summed_forward(*primals: Any) -> tuple[Array, tuple[Array, Array | None]]:
    """The loss, and its gradients by `hidden` and, if that is wanted, by `kernel`."""
    hidden, kernel, targets, mask, chunks = (primal.value for primal in primals)
    kernel_wanted = primals[1].perturbed
    gathered = _gathered(kernel, hidden.dtype)

    def add(carry: tuple, places: Int[Array, "S k"]) -> tuple[tuple[Array, Array | None], Float[Array, "S k D"]]:
        def chunk() -> tuple[Array, Array | None, Array]:
            h, t, m = (_take(x, places) for x in (hidden, targets, mask))
            logits, normaliser = _logits(h, gathered)
            loss = jnp.sum(jnp.where(m, normaliser - _chosen(logits, t), 0))
            is_target = jnp.arange(logits.shape[-1]) == t[..., None]
            error = jnp.where(m[..., None], jnp.exp(logits - normaliser[..., None]) - is_target, 0).astype(h.dtype)
            to_kernel = None
            if kernel_wanted:
                to_kernel = jnp.einsum("skd,skv->dv", h, error, preferred_element_type=jnp.float32)
            return loss, to_kernel, error @ gathered.T

        loss, to_kernel, to_hidden = _if_any(_take(mask, places), chunk)
        return (carry[0] + loss, jax.tree.map(jnp.add, carry[1], to_kernel)), to_hidden

    zero = (jnp.zeros(()), jnp.zeros(kernel.shape, jnp.float32) if kernel_wanted else None)
    (total, to_kernel), to_hidden = jax.lax.scan(add, zero, chunks)
    order, to_hidden = (jnp.moveaxis(x, 0, 1).reshape(*mask.shape, *x.shape[3:]) for x in (chunks, to_hidden))
    to_hidden = _take(to_hidden, jnp.argsort(order, axis=1))
    return total, (to_hidden, None if to_kernel is None else to_kernel.astype(kernel.dtype))


def _summed_backward(residuals: tuple[Array, Array | None], cotangent: Array) -> tuple:
    to_hidden, to_kernel = (None if x is None else x * cotangent.astype(x.dtype) for x in residuals)
    return to_hidden, to_kernel, None, None, None


_summed.defvjp(_summed_forward, _summed_backward, symbolic_zeros=True)


def _gathered(kernel: Float[Array, "D V"], dtype: jnp.dtype) -> Float[Array, "D V"]:
    """The kernel in the compute dtype, collected over "fsdp" once and not for every chunk."""
    return sharding.constrain(kernel.astype(dtype), PartitionSpec(None, "tensor"))


def _if_any(mask: Bool[Array, "S k"], chunk: Callable[[], T]) -> T:
    """`chunk()` if there is any target, else zeros."""
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(chunk))
    return jax.lax.cond(jnp.any(mask), chunk, lambda: zeros)


def _take(x: Array, places: Int[Array, "S k"]) -> Array:
    """x[s, places[s]] for every shard."""
    return jax.vmap(lambda x, places: x[places])(x, places)


def _logits(hidden: Float[Array, "S k D"], kernel: Float[Array, "D V"]) -> tuple[Array, Array]:
    """float32 logits, and the logarithm of their summed exponentials."""
    logits = jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)
    return logits, jax.nn.logsumexp(logits, axis=-1)


def _chosen(logits: Float[Array, "S k V"], targets: Int[Array, "S k"]) -> Float[Array, "S k"]:
    return jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
