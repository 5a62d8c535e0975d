"""kind=multi_level_without_motifs: the paper's projector, all of whose tokens come from the levels."""

from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from data_pipeline.batch import BatchShape, MoleculeGraphs
from llamo_jax.config import ConfigError, setting, settings
from llamo_jax.config import Float as Number
from llamo_jax.config import Int as Integer
from llamo_jax.models import layers
from llamo_jax.models.flops import Flops, LinearFlops
from llamo_jax.models.interfaces import PROJECTORS, ProjectorConfig, ProjectorSizes
from llamo_jax.models.projectors import parts
from llamo_jax.models.projectors.queries import check_heads


@PROJECTORS.register
@settings
class MultiLevelWithoutMotifsConfig(ProjectorConfig):
    """What the functional groups add shows against this; Q = num_queries, shared out among the levels."""

    kind: Literal["multi_level_without_motifs"] = setting(
        "cross-attention over every level", default="multi_level_without_motifs"
    )
    num_queries: Integer = setting("graph tokens; the first levels get one more where it does not divide", ge=1)
    num_heads: Integer = setting("of every attention", ge=1)
    attention_width: Integer = setting("of queries, keys and values, all heads together", ge=1)
    depth: Integer = setting("linear layers of the MLP to the language model's width", ge=1)
    layer_norm_eps: Number = setting("added to the variance in LayerNorm", gt=0)

    @classmethod
    def of_width(cls, width: int, sizes: ProjectorSizes) -> "MultiLevelWithoutMotifsConfig":
        """See ProjectorConfig."""
        common: dict[str, Any] = {
            "num_heads": sizes.num_heads,
            "depth": sizes.depth,
            "layer_norm_eps": sizes.layer_norm_eps,
        }
        return cls(num_queries=sizes.tokens, attention_width=width, **common)

    def num_tokens(self, levels: int) -> int:
        """Q."""
        return self.num_queries

    def token_sources(self, levels: int) -> list[str]:
        """See ProjectorConfig."""
        counts = shared_out(self.num_queries, levels)
        return [f"level {level}" for level, count in enumerate(counts) for _ in range(count)]

    def build(self, graph_width: int, levels: int, out_width: int, *, rngs: nnx.Rngs) -> "LevelsProjector":
        """See ProjectorConfig; raises ConfigError if the sizes do not fit each other."""
        check_heads(self.num_heads, self.attention_width, "attention_width")
        if self.num_queries < levels:
            raise ConfigError(f"config.model.projector.num_queries={self.num_queries}: there are {levels} levels")
        return LevelsProjector(self, graph_width, levels, out_width, rngs=rngs)

    def flops(
        self, shape: BatchShape, graph_width: int, levels: int, out_width: int, linear: LinearFlops, *, to_levels: bool
    ) -> Flops:
        """See ProjectorConfig."""
        slots, atoms, _, _ = (shape.shards * size for size in shape.per_shard())
        total = Flops()
        for part in ("key", "value"):
            total += linear(f"attention/{part}", levels * atoms, graph_width, self.attention_width, to_input=to_levels)
        per_level = -(-self.num_queries // levels)
        total += linear("attention/out", slots * levels * per_level, self.attention_width, graph_width)
        return total + parts.mlp_flops(linear, slots * self.num_queries, [graph_width] + [out_width] * self.depth)


class LevelsProjector(nnx.Module):
    """Learned queries attend to the nodes of each level, with an attention of its own."""

    def __init__(
        self,
        config: MultiLevelWithoutMotifsConfig,
        graph_width: int,
        levels: int,
        out_width: int,
        *,
        rngs: nnx.Rngs,
    ):
        self.config = config
        shape = (levels, -(-config.num_queries // levels), graph_width)
        self.queries = layers.parameter(layers.normal(1.0), shape, (None, None, "graph"), rngs=rngs)
        self.attention = parts.SegmentAttention(
            graph_width, config.num_heads, rngs=rngs, stack=levels, inner_width=config.attention_width
        )
        self.norm = layers.LayerNorm(graph_width, config.layer_norm_eps, rngs=rngs)
        self.mlp = parts.make_mlp([graph_width] + [out_width] * config.depth, rngs=rngs)

    def __call__(
        self, levels: Float[Array, "L S N F"], molecules: MoleculeGraphs
    ) -> tuple[Float[Array, "S G Q D"], dict[str, Any]]:
        """Graph tokens of every molecule slot, and `out["pre_norm"]` (S G Q F), the tokens before LayerNorm and MLP."""
        slots = molecules.atoms.n_node.shape[-1]
        asked = (self.queries[...].astype(levels.dtype), levels, parts.slot_ids(molecules.atoms), slots)
        found, weights = self.attention(*asked), self.attention.weights(*asked)  # L S G P F, L S N P
        counts = shared_out(self.config.num_queries, len(levels))
        tokens = jnp.concatenate([found[i, :, :, :count] for i, count in enumerate(counts)], axis=2)
        shares = jnp.concatenate([weights[i, :, :, :count] for i, count in enumerate(counts)], axis=2)
        out = {"pre_norm": tokens, "atom_attention": shares}
        return parts.apply_mlp(self.mlp, self.norm(tokens)), out


def shared_out(queries: int, levels: int) -> list[int]:
    """How many of the queries each level gets."""
    few, more = divmod(queries, levels)
    return [few + (level < more) for level in range(levels)]
