"""What is trained: ordered (pattern, trained) rules over parameter paths, and the optimizer for what they select."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from llamo_jax.config import ConfigError
from llamo_jax.training.config import TrainConfig

_DECAYED = ("kernel", "table", "embedding", "lora_a", "lora_b")
"""Last path components that `decay="kernels"` applies to; not to biases, norms, eps and queries."""


def select_trainable(names: Sequence[str], rules: Sequence[tuple[str, bool]]) -> dict[str, bool]:
    """Whether each parameter is trained: the first rule whose pattern matches the whole path decides.

    Raises ConfigError if a rule decides nothing or a parameter is left over.
    """
    decided: dict[str, bool] = {}
    for pattern, trained in rules:
        matched = [name for name in names if name not in decided and re.fullmatch(pattern, name)]
        if not matched:
            raise ConfigError(f"config.train.trainable: the rule {pattern!r} matches no parameter that is left")
        decided |= dict.fromkeys(matched, trained)
    left_over = sorted(set(names) - set(decided))
    if left_over:
        raise ConfigError(f"config.train.trainable: no rule for {left_over}")
    return decided


def describe_trainable(trained: Mapping[str, jax.ShapeDtypeStruct], frozen: Mapping[str, jax.ShapeDtypeStruct]) -> str:
    """A table for people: parameters per component, trained and frozen."""

    def count(arrays: Mapping[str, jax.ShapeDtypeStruct], component: str) -> int:
        return sum(int(np.prod(array.shape)) for name, array in arrays.items() if name.split("/")[0] == component)

    return "\n".join(
        f"  {component:<16} {count(trained, component):>15,} trained {count(frozen, component):>15,} frozen"
        for component in sorted({name.split("/")[0] for name in (*trained, *frozen)})
    )


def rules_of(config: TrainConfig) -> tuple[tuple[str, bool], ...]:
    """The rules of a run, `train_token_embedding` included."""
    first = (("language_model/embedding", True),) if config.train_token_embedding else ()
    return (*first, *config.trainable)


def learning_rate_schedule(config: TrainConfig) -> optax.Schedule:
    """The learning rate by step (from 0).

    warmup_cosine: linear warm-up to the peak, then cosine decay to the final rate at the last step.
    per_epoch_cosine: the original's (LAVIS's) schedule. In the first epoch a linear warm-up from the initial rate; in
    each later one a constant, on a cosine from the peak (epoch 0) to the final rate (after the last epoch).
    """
    peak, final = config.learning_rate, config.final_learning_rate
    if config.schedule == "warmup_cosine":
        warmup = min(config.warmup_steps, config.steps - 1)  # a short run still reaches its peak
        # peak / (warmup + 1), not 0: the first step of a run would change nothing
        return optax.warmup_cosine_decay_schedule(peak / (warmup + 1), peak, warmup, config.steps, final)
    per_epoch = config.steps_per_epoch
    epochs = -(-config.steps // per_epoch)
    warmup = max(1, min(per_epoch, config.warmup_steps))
    start = config.initial_learning_rate

    def rate(step: jax.typing.ArrayLike) -> jax.Array:
        epoch = jnp.asarray(step) // per_epoch
        rising = jnp.minimum(peak, start + (peak - start) * jnp.asarray(step) / warmup)
        return jnp.where(epoch == 0, rising, final + (peak - final) * (1 + jnp.cos(jnp.pi * epoch / epochs)) / 2)

    return rate


def updates(optimizer_state: Any) -> int:
    """How many `make_optimizer` has made: steps that were skipped count in the run, and not in its schedule."""
    leaves = jax.tree.leaves(optimizer_state, is_leaf=lambda node: isinstance(node, optax.ScaleByScheduleState))
    (schedule,) = (leaf for leaf in leaves if isinstance(leaf, optax.ScaleByScheduleState))
    return int(schedule.count)


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """AdamW on a flat mapping of trained parameters, after clipping by the global norm."""

    # optax applies the mask to decay alone; moments are kept for all trained parameters
    def decayed(parameters: Mapping[str, Any]) -> dict[str, bool]:
        return {name: config.decay == "all" or name.split("/")[-1] in _DECAYED for name in parameters}

    adamw = optax.adamw(
        learning_rate_schedule(config),
        b1=config.adam_b1,
        b2=config.adam_b2,
        weight_decay=config.weight_decay,
        mask=decayed,
    )
    return adamw if config.clip is None else optax.chain(optax.clip_by_global_norm(config.clip), adamw)
