"""What is trained: ordered (pattern, trained) rules over parameter paths, and the optimizer for what they select."""

import re
from collections.abc import Mapping, Sequence

import jax
import numpy as np
import optax

from llamo_jax.config import ConfigError, TrainConfig

_DECAYED = ("kernel", "table", "embedding", "lora_a", "lora_b")
"""Last path components that weight decay applies to; not to biases, norms, eps and queries."""


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


def describe_trainable(parameters: Mapping[str, jax.ShapeDtypeStruct], trained: Mapping[str, bool]) -> str:
    """A table for people: parameters per component, trained and frozen."""
    lines = []
    for component in dict.fromkeys(name.split("/")[0] for name in parameters):
        sizes = {True: 0, False: 0}
        for name, array in parameters.items():
            if name.split("/")[0] == component:
                sizes[trained[name]] += int(np.prod(array.shape))
        lines.append(f"  {component:<16} {sizes[True]:>15,} trained {sizes[False]:>15,} frozen")
    return "\n".join(lines)


def learning_rate_schedule(config: TrainConfig) -> optax.Schedule:
    """Linear warm-up to the peak, then cosine decay to the final rate at the last step."""
    warmup = min(config.warmup_steps, config.steps - 1)
    return optax.warmup_cosine_decay_schedule(
        init_value=config.learning_rate / (warmup + 1),
        peak_value=config.learning_rate,
        warmup_steps=warmup,
        decay_steps=config.steps,
        end_value=config.final_learning_rate,
    )


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """AdamW on a flat mapping of trained parameters, after clipping by the global norm."""
    adamw = optax.adamw(
        learning_rate_schedule(config),
        b1=config.adam_b1,
        b2=config.adam_b2,
        weight_decay=config.weight_decay,
        mask=lambda parameters: {name: name.split("/")[-1] in _DECAYED for name in parameters},
    )
    return adamw if config.clip is None else optax.chain(optax.clip_by_global_norm(config.clip), adamw)
