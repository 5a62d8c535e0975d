"""Cross-entropy over the vocabulary without the logits of a whole batch, and only where there is a target."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec
from jaxtyping import Float, Int, Key

from data_pipeline.batch import Batch
from llamo_jax import sharding
from llamo_jax.models import LLaMo
from llamo_jax.models.products import matmul

T = TypeVar("T")


def answer_likelihood(
    model: LLaMo, batch: Batch, *, batch_statistics: bool = False, dropout_key: Key[Array, ""] | None = None
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """Summed negative log-likelihood (nats) of the targets, token by token, and their number."""
    hidden, _ = model.hidden_states(batch, batch_statistics=batch_statistics, dropout_key=dropout_key)
    return cross_entropy(model, hidden, batch)


def cross_entropy(
    model: LLaMo, hidden: Float[Array, "B T D"], batch: Batch, weights: Float[Array, "B T"] | None = None
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """Summed negative log-likelihood of the batch's targets in float32, and their number.

    weights: what each target counts in the sum; without, 1. No gradient goes to them.
    Each batch shard brings its targets to the front and looks at `loss_chunk` of them at a time: logits of positions
    without a target are never computed, those of a chunk are forgotten before the next. Where a gradient is wanted,
    it is computed along with the loss, so that no logits are computed twice.
    """
    shards = batch.molecules.atoms.n_node.shape[0]
    hidden, targets, mask = (x.reshape(shards, -1, *x.shape[2:]) for x in (hidden, batch.targets, batch.target_mask))
    counted = jnp.where(mask, 1.0 if weights is None else weights.reshape(mask.shape), 0.0)
    length = mask.shape[1]
    chunks = -(-length // model.config.loss_chunk)
    while length % chunks:  # equal chunks: scan wants one shape
        chunks += 1
    # stable: targets first, in their order; ~mask is 0 for a target, so they sort to the front. With a third of the
    # positions as targets, two thirds of the chunks are then empty, and are skipped.
    order = jnp.argsort(~mask, axis=1, stable=True).reshape(shards, chunks, length // chunks)
    total = _summed(hidden, model.language_model.head(), targets, counted, jnp.moveaxis(order, 1, 0))
    return total, jnp.sum(mask, dtype=jnp.int32)


# Why a gradient by hand: with a vocabulary of 32,000, the logits of 8 × 512 positions are 0.5 GB in float32. Automatic
# differentiation of a scan keeps every chunk's for the backward pass, or with rematerialisation computes them twice.
# Here the gradient of each chunk is taken while its logits exist, and only [n, D] and [D, V] sums are kept.
@jax.custom_vjp
def _summed(
    hidden: Float[Array, "S n D"],
    kernel: Float[Array, "D V"],
    targets: Int[Array, "S n"],
    weights: Float[Array, "S n"],
    chunks: Int[Array, "chunks S n_chunk"],
) -> Float[Array, ""]:
    """The weighted sum; `chunks` holds all positions of each shard, those with a target (a weight) first."""
    gathered = _gathered(kernel, hidden.dtype)

    def add(total: Array, places: Int[Array, "S n_chunk"]) -> tuple[Array, None]:
        def chunk() -> Array:
            h, t, w = (_take(x, places) for x in (hidden, targets, weights))
            logits, normaliser = _logits(h, gathered)
            return jnp.sum(jnp.where(w != 0, w * (normaliser - _chosen(logits, t)), 0))

        return total + _if_any(_take(weights, places), chunk), None

    return jax.lax.scan(add, jnp.zeros(()), chunks)[0]


def _summed_forward(*primals: Any) -> tuple[Array, tuple[Array, Array | None]]:
    """The loss, and its gradients by `hidden` and, if that is wanted, by `kernel`."""
    # symbolic_zeros=True hands each argument over as (value, perturbed): whether anybody differentiates by it. A frozen
    # head is not perturbed, and its [D, V] gradient (0.5 GB for Llama-2) is then neither computed nor held.
    hidden, kernel, targets, weights, chunks = (primal.value for primal in primals)
    kernel_wanted = primals[1].perturbed
    gathered = _gathered(kernel, hidden.dtype)

    def add(carry: tuple, places: Int[Array, "S n_chunk"]) -> tuple[tuple[Array, Array | None], Array]:
        def chunk() -> tuple[Array, Array | None, Array]:
            h, t, w = (_take(x, places) for x in (hidden, targets, weights))
            logits, normaliser = _logits(h, gathered)
            loss = jnp.sum(jnp.where(w != 0, w * (normaliser - _chosen(logits, t)), 0))
            # d loss / d logits = softmax(logits) - onehot(target); a comparison instead of a one-hot array, since XLA
            # fuses it into the subtraction
            is_target = jnp.arange(logits.shape[-1]) == t[..., None]
            error = w[..., None] * (jnp.exp(logits - normaliser[..., None]) - is_target)
            error = jnp.where(w[..., None] != 0, error, 0).astype(h.dtype)
            to_kernel = None
            if kernel_wanted:
                # sums over positions of all shards: in float32, since a bfloat16 sum of thousands of terms loses them
                to_kernel = jnp.einsum("skd,skv->dv", h, error, preferred_element_type=jnp.float32)
            return loss, to_kernel, matmul(error, gathered.T)

        loss, to_kernel, to_hidden = _if_any(_take(weights, places), chunk)
        return (carry[0] + loss, jax.tree.map(jnp.add, carry[1], to_kernel)), to_hidden

    zero = (jnp.zeros(()), jnp.zeros(kernel.shape, jnp.float32) if kernel_wanted else None)
    (total, to_kernel), to_hidden = jax.lax.scan(add, zero, chunks)
    # back from [chunks, S, n_chunk] in the order of the chunks to [S, n] in the order of the positions
    order, to_hidden = (jnp.moveaxis(x, 0, 1).reshape(*weights.shape, *x.shape[3:]) for x in (chunks, to_hidden))
    to_hidden = _take(to_hidden, jnp.argsort(order, axis=1))
    return total, (to_hidden, None if to_kernel is None else to_kernel.astype(kernel.dtype))


def _summed_backward(residuals: tuple[Array, Array | None], cotangent: Array) -> tuple:
    """The loss is linear in its cotangent, so the gradients that the forward pass made only have to be scaled."""
    to_hidden, to_kernel = (None if x is None else x * cotangent.astype(x.dtype) for x in residuals)
    return to_hidden, to_kernel, None, None, None


_summed.defvjp(_summed_forward, _summed_backward, symbolic_zeros=True)


def _gathered(kernel: Float[Array, "D V"], dtype: jnp.dtype) -> Float[Array, "D V"]:
    """The kernel in the compute dtype, collected over "fsdp" once and not for every chunk."""
    return sharding.constrain(kernel.astype(dtype), PartitionSpec(None, "tensor"))


def _if_any(weights: Float[Array, "S n_chunk"], chunk: Callable[[], T]) -> T:
    """`chunk()` if there is any weight, else zeros."""
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(chunk))
    # a real branch: inside of a scan (not a vmap) XLA runs one of the two
    return jax.lax.cond(jnp.any(weights != 0), chunk, lambda: zeros)


def _take(x: Array, places: Int[Array, "S n_chunk"]) -> Array:
    """x[s, places[s]] for every shard."""
    return jax.vmap(lambda x, places: x[places])(x, places)


def _logits(hidden: Float[Array, "S n_chunk D"], kernel: Float[Array, "D V"]) -> tuple[Array, Array]:
    """float32 logits, and the logarithm of their summed exponentials."""
    logits = jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)
    return logits, jax.nn.logsumexp(logits, axis=-1)


def _chosen(logits: Float[Array, "S n_chunk V"], targets: Int[Array, "S n_chunk"]) -> Float[Array, "S n_chunk"]:
    return jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
