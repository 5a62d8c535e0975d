"""kind=none: no graph tokens at all; the language model reads text alone."""

from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from data_pipeline.batch import BatchShape, MoleculeGraphs
from llamo_jax.config import setting, settings
from llamo_jax.models.flops import Flops, LinearFlops
from llamo_jax.models.interfaces import PROJECTORS, ProjectorConfig, ProjectorSizes


@PROJECTORS.register
@settings
class NoneConfig(ProjectorConfig):
    """What a graph adds shows against this: Q = 0, no parameters."""

    kind: Literal["none"] = setting("text alone, without graph tokens", default="none")

    @classmethod
    def of_width(cls, width: int, sizes: ProjectorSizes) -> "NoneConfig":
        """Always the same."""
        return cls()

    def num_tokens(self, levels: int) -> int:
        """Q: none."""
        return 0

    def build(self, graph_width: int, levels: int, out_width: int, *, rngs: nnx.Rngs) -> "NoneProjector":
        """See ProjectorConfig."""
        return NoneProjector(out_width)

    def flops(
        self, shape: BatchShape, graph_width: int, levels: int, out_width: int, linear: LinearFlops, *, to_levels: bool
    ) -> Flops:
        """Nothing is multiplied."""
        return Flops()


class NoneProjector(nnx.Module):
    """An array without entries."""

    def __init__(self, out_width: int):
        self.out_width = out_width

    def __call__(
        self, levels: Float[Array, "L S N F"], molecules: MoleculeGraphs
    ) -> tuple[Float[Array, "S G Q D"], dict[str, Any]]:
        """No graph tokens for every molecule slot: Q = 0."""
        slots = molecules.atoms.n_node.shape
        return jnp.zeros((*slots, 0, self.out_width), jnp.float32), {}
