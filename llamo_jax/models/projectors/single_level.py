"""kind=single_level: attention over the nodes of one level; the last is what most molecule–language models read."""

from typing import Any, Literal

from jax import Array
from jaxtyping import Float

from llamo_jax.config import ConfigError, setting, settings
from llamo_jax.config import Int as Integer
from llamo_jax.models.interfaces import PROJECTORS
from llamo_jax.models.projectors.queries import QueryConfig, QueryProjector


class SingleLevelProjector(QueryProjector):
    """Queries attend to the nodes as one layer leaves them."""

    config: "SingleLevelConfig"

    def items(self, levels: Float[Array, "L S N F"]) -> Float[Array, "S N F"]:
        """See QueryProjector."""
        return levels[self.config.level]


@PROJECTORS.register
@settings
class SingleLevelConfig(QueryConfig):
    """What the paper compares with: a projector that sees one level."""

    kind: Literal["single_level"] = setting("cross-attention over one level", default="single_level")
    level: Integer = setting("which: 0 is the embedding of atoms, -1 the encoder's output")

    module = SingleLevelProjector

    def token_sources(self, levels: int) -> list[str]:
        """See ProjectorConfig."""
        return [f"level {self.level % levels}"] * self.num_queries

    @classmethod
    def own_defaults(cls) -> dict[str, Any]:
        """The encoder's output."""
        return {"level": -1}

    def build(self, graph_width: int, levels: int, out_width: int, *, rngs: Any) -> QueryProjector:
        """See ProjectorConfig; raises ConfigError if there is no such level."""
        if not -levels <= self.level < levels:
            raise ConfigError(f"config.model.projector.level={self.level}: the encoder has {levels} levels")
        return super().build(graph_width, levels, out_width, rngs=rngs)
