"""Projectors of equal size: as many graph tokens and parameters as another kind has, so that kinds can be compared."""

import functools
import math

import jax
import numpy as np
from flax import nnx

from llamo_jax import sharding
from llamo_jax.config import ConfigError
from llamo_jax.models.interfaces import PROJECTORS, ProjectorConfig, ProjectorSizes
from llamo_jax.models.projectors.multi_level import MultiLevelConfig

TOLERANCE = 0.05
"""Relative difference of parameters that is still called equal."""


@functools.lru_cache(maxsize=256)
def count_parameters(config: ProjectorConfig, graph_width: int, levels: int, out_width: int) -> int:
    """Numbers in a projector's parameters; nothing is allocated."""
    module = sharding.without_values(lambda: config.build(graph_width, levels, out_width, rngs=nnx.Rngs(0)))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))


def matched(kind: str, reference: ProjectorConfig, graph_width: int, levels: int, out_width: int) -> ProjectorConfig:
    """The kind with the reference's Q, heads and MLP, and with the width whose parameters come closest to its own.

    `none` has neither. Raises ConfigError if no width comes within TOLERANCE, or the reference is of another kind
    than multi_level.

    >>> concat = matched("concat", MultiLevelConfig.paper(), 300, 6, 4096)
    >>> concat.num_tokens(6), count_parameters(concat, 300, 6, 4096) / 1e6
    (28, 87.7...)
    """
    if kind == reference.kind:
        return reference
    if not isinstance(reference, MultiLevelConfig):
        raise ConfigError(f"config.model.projector: sizes are taken from kind=multi_level, not from {reference.kind}")
    sizes = ProjectorSizes(reference.num_tokens(levels), reference.num_heads, reference.depth, reference.layer_norm_eps)
    wanted = count_parameters(reference, graph_width, levels, out_width)

    def of_heads(each: int) -> ProjectorConfig:
        return PROJECTORS[kind].of_width(each * sizes.num_heads, sizes)

    def count(each: int) -> int:
        return count_parameters(of_heads(each), graph_width, levels, out_width)

    if not of_heads(1).num_tokens(levels):
        return of_heads(1)
    # a polynomial of the second degree in the width: matrices have it on one side or on both
    at = (1, 2, 3)
    a, b, c = np.linalg.solve(np.vander(at, 3).astype(float), [count(each) - wanted for each in at])
    root = -c / b if abs(a) < 0.5 else (-b + math.sqrt(max(b * b - 4 * a * c, 0))) / (2 * a)
    nearest = max(1, math.floor(root))
    counts = {each: count(each) for each in (nearest, nearest + 1)}
    best = min(counts, key=lambda each: abs(counts[each] - wanted))
    if abs(counts[best] - wanted) > TOLERANCE * wanted:
        raise ConfigError(
            f"config.model.projector: no width of {kind} has {wanted:,} parameters within {TOLERANCE:.0%}; "
            f"{counts[best]:,} come closest"
        )
    return of_heads(best)
