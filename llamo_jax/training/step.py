"""The train step and the evaluation step, as pure functions of flat parameter mappings."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array
from jaxtyping import Float, Int

from data_pipeline.batch import Batch
from llamo_jax import parameters
from llamo_jax.models.definition import ModelDefinition
from llamo_jax.parameters import Arrays
from llamo_jax.training.loss import cross_entropy


class TrainState(NamedTuple):
    """What training changes, and what checkpoints hold; all mappings are by parameter path.

    step: int32[], optimizer steps taken; trained: float32 parameters; statistics: BatchNorm's running ones.
    """

    step: Any
    trained: Arrays
    statistics: Arrays
    optimizer: Any


def make_train_step(
    definition: ModelDefinition,
    optimizer: optax.GradientTransformation,
    *,
    batch_statistics: bool,
    seed: int,
    shardings: TrainState | None = None,
) -> Callable[[TrainState, Arrays, Batch], tuple[TrainState, dict[str, Array]]]:
    """A jitted `(state, frozen, batches) -> (state, metrics)`; the state is donated.

    batches: a Batch whose arrays have one more leading axis, the batches of one optimizer step: their gradients are
    summed and divided by the number of targets of all of them. metrics: loss (mean over targets), grad_norm, targets.
    shardings: of the new state, the same as the old one's; left to XLA, a second step could need another program.
    """

    def loss(trained: Arrays, statistics: Arrays, frozen: Arrays, batch: Batch, key: Array) -> tuple[Array, Any]:
        model = definition.merge(trained, statistics, frozen)
        hidden, _ = model.hidden_states(batch, batch_statistics=batch_statistics, dropout_key=key)
        total, count = cross_entropy(model, hidden, batch)
        return total, (count, parameters.flatten(nnx.state(model, nnx.BatchStat)))

    def step(state: TrainState, frozen: Arrays, batches: Batch) -> tuple[TrainState, dict[str, Array]]:
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

        carry = (jax.tree.map(jnp.zeros_like, state.trained), state.statistics, jnp.zeros(()), jnp.zeros((), jnp.int32))
        if len(keys) == 1:  # no loop around the common case
            carry, _ = accumulate(carry, (jax.tree.map(lambda x: x[0], batches), keys[0]))
        else:
            carry, _ = jax.lax.scan(accumulate, carry, (batches, keys))
        gradients, statistics, total, count = carry
        targets = jnp.maximum(count, 1).astype(jnp.float32)
        gradients = jax.tree.map(lambda g: g / targets, gradients)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.trained)
        metrics = {"loss": total / targets, "grad_norm": optax.global_norm(gradients), "targets": count}
        trained = optax.apply_updates(state.trained, updates)
        return TrainState(state.step + 1, trained, statistics, optimizer_state), metrics

    if shardings is None:
        return jax.jit(step, donate_argnums=0)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))


def make_eval_step(
    definition: ModelDefinition,
) -> Callable[[TrainState, Arrays, Batch], tuple[Float[Array, ""], Int[Array, ""]]]:
    """A jitted `(state, frozen, batch) -> (summed negative log-likelihood of the targets, their number)`."""

    def step(state: TrainState, frozen: Arrays, batch: Batch) -> tuple[Array, Array]:
        model = definition.merge(state.trained, state.statistics, frozen)
        hidden, _ = model.hidden_states(batch)
        return cross_entropy(model, hidden, batch)

    return jax.jit(step)
