"""kind=weighted_mean: attention over the mean of each node's levels, with learned weights."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from llamo_jax.config import setting, settings
from llamo_jax.models import layers
from llamo_jax.models.interfaces import PROJECTORS
from llamo_jax.models.projectors.queries import QueryConfig, QueryProjector


class WeightedMeanProjector(QueryProjector):
    """One weight for each level, by softmax; all equal in the beginning."""

    def __init__(self, config: "WeightedMeanConfig", graph_width: int, levels: int, out_width: int, *, rngs: Any):
        super().__init__(config, graph_width, levels, out_width, rngs=rngs)
        self.level_logits = layers.parameter(layers.zeros, (levels,), (None,), rngs=rngs)

    def items(self, levels: Float[Array, "L S N F"]) -> Float[Array, "S N F"]:
        """See QueryProjector."""
        return jnp.einsum("l,lsnf->snf", jax.nn.softmax(self.level_logits[...].astype(levels.dtype)), levels)


@PROJECTORS.register
@settings
class WeightedMeanConfig(QueryConfig):
    """A scalar mix of levels, as ELMo's of layers (Peters et al., 2018, arXiv 1802.05365), then one cross-attention."""

    kind: Literal["weighted_mean"] = setting(
        "cross-attention over the levels' mean with learned weights", default="weighted_mean"
    )

    module = WeightedMeanProjector
