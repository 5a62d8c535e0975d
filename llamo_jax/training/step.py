"""The train step and the evaluation step, as pure functions of flat parameter mappings."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from jaxtyping import Float, Int

from data_pipeline.batch import Batch
from llamo_jax import parameters
from llamo_jax.models.definition import ModelDefinition
from llamo_jax.parameters import Arrays
from llamo_jax.training.loss import answer_likelihood

Objective = Callable[..., tuple[Float[Array, ""], Int[Array, ""]]]
"""(model, batch, *, batch_statistics=False, dropout_key=None) → a sum over targets, minimised, and their number."""


class TrainState(NamedTuple):
    """What training changes, and what checkpoints hold; all mappings are by parameter path.

    step: int32[], batches seen; trained: float32 parameters; statistics: BatchNorm's running ones; log: scalars, see
    `empty_log`.
    """

    step: Any
    trained: Arrays
    statistics: Arrays
    optimizer: Any
    log: Any


def empty_log() -> dict[str, Any]:
    """What is summed up since the last line of the log, so that an interrupted run can go on with that line.

    float32[] loss (over all targets) and grad_norm (over steps); int32[] targets, tokens, steps, skipped (steps whose
    loss or gradient was not finite), and skipped_in_a_row: how many of the latter come last.
    """
    sums = {"loss": np.float32(0), "grad_norm": np.float32(0)}
    return sums | {name: np.int32(0) for name in ("targets", "tokens", "steps", "skipped", "skipped_in_a_row")}


def make_train_step(
    definition: ModelDefinition,
    optimizer: optax.GradientTransformation,
    *,
    batch_statistics: bool,
    seed: int,
    objective: Objective = answer_likelihood,
    shardings: TrainState | None = None,
) -> Callable[[TrainState, Arrays, Batch], tuple[TrainState, dict[str, Array]]]:
    """A jitted `(state, frozen, batches) -> (state, metrics)`; the state is donated.

    batches: a Batch whose arrays have one more leading axis, the batches of one optimizer step: their gradients are
    summed and divided by the number of targets of all of them. metrics: loss (mean over targets), grad_norm, targets,
    skipped_in_a_row. A step whose loss or gradient is not finite changes nothing but `step` and `log`.
    shardings: of the new state, the same as the old one's; left to XLA, a second step could need another program.
    """

    def loss(trained: Arrays, statistics: Arrays, frozen: Arrays, batch: Batch, key: Array) -> tuple[Array, Any]:
        model = definition.merge(trained, statistics, frozen)
        # a sum: what it is divided by depends on all batches of a step
        total, count = objective(model, batch, batch_statistics=batch_statistics, dropout_key=key)
        return total, (count, parameters.flatten(nnx.state(model, nnx.BatchStat)))

    def step(state: TrainState, frozen: Arrays, batches: Batch) -> tuple[TrainState, dict[str, Array]]:
        # of (seed, step) alone, so that a run that continues draws what an undisturbed one would have drawn
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        keys = jax.random.split(key, batches.tokens.shape[0])

        def accumulate(carry: tuple, inputs: tuple[Batch, Array]) -> tuple[tuple, None]:
            gradients, statistics, total, count = carry
            batch, key = inputs
            (new_total, (new_count, statistics)), new = jax.value_and_grad(loss, has_aux=True)(
                state.trained, statistics, frozen, batch, key
            )
            gradients = jax.tree.map(jnp.add, gradients, new)
            return (gradients, statistics, total + new_total, count + new_count), None

        # BatchNorm's statistics go from batch to batch, as they would without accumulation
        carry = (jax.tree.map(jnp.zeros_like, state.trained), state.statistics, jnp.zeros(()), jnp.zeros((), jnp.int32))
        if len(keys) == 1:  # no loop around the common case
            carry, _ = accumulate(carry, (jax.tree.map(lambda x: x[0], batches), keys[0]))
        else:
            carry, _ = jax.lax.scan(accumulate, carry, (batches, keys))
        gradients, statistics, total, count = carry
        # one division after the sum: batches with more targets weigh more, as in one large batch
        targets = jnp.maximum(count, 1).astype(jnp.float32)
        gradients = jax.tree.map(lambda g: g / targets, gradients)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.trained)
        norm = optax.global_norm(gradients)
        # the loss of a batch can be finite while its gradient is not (and the norm of a finite one can overflow)
        finite = jnp.isfinite(total) & jnp.isfinite(norm)
        new = (optax.apply_updates(state.trained, updates), statistics, optimizer_state)
        old = (state.trained, state.statistics, state.optimizer)
        # a where over everything instead of a cond: both sides exist anyway, and sharded arrays stay where they are
        trained, statistics, optimizer_state = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
        log = _added(state.log, finite, total, norm, count, jnp.count_nonzero(batches.segments))
        metrics = {
            "loss": total / targets,
            "grad_norm": norm,
            "targets": count,
            "skipped_in_a_row": log["skipped_in_a_row"],
        }
        return TrainState(state.step + 1, trained, statistics, optimizer_state, log), metrics

    # donated: the new state takes the old one's memory, which with AdamW is twelve bytes for each trained parameter
    if shardings is None:
        return jax.jit(step, donate_argnums=0)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))


def _added(
    log: dict[str, Array], finite: Array, total: Array, norm: Array, targets: Array, tokens: Array
) -> dict[str, Array]:
    """The log with one more step."""
    one = jnp.ones((), jnp.int32)
    counted = {"loss": total, "grad_norm": norm, "targets": targets, "tokens": tokens, "steps": one}
    new = {name: log[name] + jnp.where(finite, value, 0).astype(log[name].dtype) for name, value in counted.items()}
    skipped = (~finite).astype(jnp.int32)
    return {
        **new,
        "skipped": log["skipped"] + skipped,
        "skipped_in_a_row": jnp.where(finite, 0, log["skipped_in_a_row"] + 1),
    }


def make_eval_step(
    definition: ModelDefinition, objective: Objective = answer_likelihood
) -> Callable[[TrainState, Arrays, Batch], tuple[Float[Array, ""], Int[Array, ""]]]:
    """A jitted `(state, frozen, batch) -> (summed negative log-likelihood of the targets, their number)`."""

    def step(state: TrainState, frozen: Arrays, batch: Batch) -> tuple[Array, Array]:
        return objective(definition.merge(state.trained, state.statistics, frozen), batch)

    return jax.jit(step)
