"""What kinds with one attention share: learned queries attend to one vector per node; each kind says which vector."""

import abc
from typing import Any, ClassVar

from flax import nnx
from jax import Array
from jaxtyping import Float

from data_pipeline.batch import BatchShape, MoleculeGraphs
from llamo_jax.config import ConfigError, setting, settings
from llamo_jax.config import Float as Number
from llamo_jax.config import Int as Integer
from llamo_jax.models import layers
from llamo_jax.models.flops import Flops, LinearFlops
from llamo_jax.models.interfaces import ProjectorConfig, ProjectorSizes
from llamo_jax.models.projectors import parts


@settings
class QueryConfig(ProjectorConfig):
    """Learned queries, cross-attention, LayerNorm and an MLP; Q = num_queries. Not a kind itself."""

    num_queries: Integer = setting("graph tokens", ge=1)
    num_heads: Integer = setting("of the attention", ge=1)
    attention_width: Integer = setting("of its queries, keys and values, all heads together", ge=1)
    depth: Integer = setting("linear layers of the MLP to the language model's width", ge=1)
    layer_norm_eps: Number = setting("added to the variance in LayerNorm", gt=0)

    module: ClassVar[type["QueryProjector"]]

    @classmethod
    def of_width(cls, width: int, sizes: ProjectorSizes) -> "QueryConfig":
        """See ProjectorConfig."""
        common: dict[str, Any] = {
            "num_heads": sizes.num_heads,
            "depth": sizes.depth,
            "layer_norm_eps": sizes.layer_norm_eps,
        }
        return cls(num_queries=sizes.tokens, attention_width=width, **common, **cls.own_defaults())

    @classmethod
    def own_defaults(cls) -> dict[str, Any]:
        """The usual values of the fields that only this kind has."""
        return {}

    def num_tokens(self, levels: int) -> int:
        """Q."""
        return self.num_queries

    def token_sources(self, levels: int) -> list[str]:
        """See ProjectorConfig."""
        return ["all levels"] * self.num_queries

    def item_width(self, graph_width: int, levels: int) -> int:
        """Of the vector that each node has."""
        return graph_width

    def build(self, graph_width: int, levels: int, out_width: int, *, rngs: nnx.Rngs) -> "QueryProjector":
        """See ProjectorConfig; raises ConfigError if the sizes do not fit each other."""
        check_heads(self.num_heads, self.attention_width, "attention_width")
        return self.module(self, graph_width, levels, out_width, rngs=rngs)

    def flops(
        self, shape: BatchShape, graph_width: int, levels: int, out_width: int, linear: LinearFlops, *, to_levels: bool
    ) -> Flops:
        """See ProjectorConfig."""
        slots, atoms, _, _ = (shape.shards * size for size in shape.per_shard())
        items, tokens = self.item_width(graph_width, levels), slots * self.num_queries
        total = Flops()
        for part in ("key", "value"):
            total += linear(f"attention/{part}", atoms, items, self.attention_width, to_input=to_levels)
        total += linear("attention/out", tokens, self.attention_width, graph_width)
        return total + parts.mlp_flops(linear, tokens, [graph_width] + [out_width] * self.depth)


class QueryProjector(nnx.Module):
    """Q learned queries attend to the nodes of each molecule; LayerNorm and an MLP make graph tokens of them."""

    def __init__(self, config: QueryConfig, graph_width: int, levels: int, out_width: int, *, rngs: nnx.Rngs):
        self.config = config
        queries = (config.num_queries, graph_width)
        self.queries = layers.parameter(layers.normal(1.0), queries, (None, "graph"), rngs=rngs)  # as multi_level's
        self.attention = parts.SegmentAttention(
            graph_width,
            config.num_heads,
            rngs=rngs,
            stack=1,
            item_width=config.item_width(graph_width, levels),
            inner_width=config.attention_width,
        )
        self.norm = layers.LayerNorm(graph_width, config.layer_norm_eps, rngs=rngs)
        self.mlp = parts.make_mlp([graph_width] + [out_width] * config.depth, rngs=rngs)

    @abc.abstractmethod
    def items(self, levels: Float[Array, "L S N F"]) -> Float[Array, "S N I"]:
        """The vector of each node that the queries attend to."""

    def __call__(
        self, levels: Float[Array, "L S N F"], molecules: MoleculeGraphs
    ) -> tuple[Float[Array, "S G Q D"], dict[str, Any]]:
        """Graph tokens of every molecule slot, and `out["pre_norm"]` (S G Q F), the tokens before LayerNorm and MLP."""
        # [None] and [0]: one attention, where multi_level has one for each level
        queries = self.queries[...].astype(levels.dtype)
        asked = (queries[None], self.items(levels)[None], parts.slot_ids(molecules.atoms))
        slots = molecules.atoms.n_node.shape[-1]
        tokens = self.attention(*asked, slots)[0]
        out = {"pre_norm": tokens, "atom_attention": self.attention.weights(*asked, slots)[0]}
        return parts.apply_mlp(self.mlp, self.norm(tokens)), out


def check_heads(num_heads: int, width: int, name: str) -> None:
    """Raises ConfigError if heads do not divide their width."""
    if width % num_heads:
        raise ConfigError(f"config.model.projector.num_heads={num_heads} does not divide {name}={width}")
