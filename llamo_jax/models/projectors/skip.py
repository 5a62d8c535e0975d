"""kind=skip: attention over the sum or the maximum of each node's levels."""

from typing import Any, Literal

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from llamo_jax.config import setting, settings
from llamo_jax.models.interfaces import PROJECTORS
from llamo_jax.models.projectors.queries import QueryConfig, QueryProjector


class SkipProjector(QueryProjector):
    """Every level reaches the projector past the layers above it."""

    config: "SkipConfig"

    def items(self, levels: Float[Array, "L S N F"]) -> Float[Array, "S N F"]:
        """See QueryProjector."""
        return jnp.sum(levels, axis=0) if self.config.reduce == "sum" else jnp.max(levels, axis=0)


@PROJECTORS.register
@settings
class SkipConfig(QueryConfig):
    """Jumping knowledge without parameters (Xu et al., 2018, arXiv 1806.03536), then one cross-attention."""

    kind: Literal["skip"] = setting("cross-attention over the levels' sum or maximum", default="skip")
    reduce: Literal["sum", "max"] = setting("of the levels, entry by entry")

    module = SkipProjector

    @classmethod
    def own_defaults(cls) -> dict[str, Any]:
        """The sum, which loses no level."""
        return {"reduce": "sum"}
