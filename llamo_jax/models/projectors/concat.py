"""kind=concat: attention over nodes whose levels stand side by side."""

from typing import Literal

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from llamo_jax.config import setting, settings
from llamo_jax.models.interfaces import PROJECTORS
from llamo_jax.models.projectors.queries import QueryConfig, QueryProjector


class ConcatProjector(QueryProjector):
    """A node is the vector of all its levels, L · F wide."""

    def items(self, levels: Float[Array, "L S N F"]) -> Float[Array, "S N LF"]:
        """See QueryProjector."""
        return jnp.concatenate(list(levels), axis=-1)


@PROJECTORS.register
@settings
class ConcatConfig(QueryConfig):
    """Jumping knowledge by concatenation (Xu et al., 2018, arXiv 1806.03536), then one cross-attention."""

    kind: Literal["concat"] = setting("cross-attention over all levels side by side", default="concat")

    module = ConcatProjector

    def item_width(self, graph_width: int, levels: int) -> int:
        """L · F."""
        return levels * graph_width
