"""kind=multi_level: the paper's projector, a fixed number of graph tokens from all GNN levels and the motifs."""

from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from data_pipeline.batch import BatchShape, MoleculeGraphs
from data_pipeline.vocabulary import MOTIF_FEATURES
from llamo_jax.config import Bool, ConfigError, setting, settings
from llamo_jax.config import Float as Number
from llamo_jax.config import Int as Integer
from llamo_jax.models import layers, torch_names
from llamo_jax.models.flops import Flops, LinearFlops
from llamo_jax.models.interfaces import PROJECTORS, ProjectorConfig
from llamo_jax.models.projectors import parts
from llamo_jax.models.projectors.parts import SegmentAttention
from llamo_jax.models.torch_names import Rule


@PROJECTORS.register
@settings
class MultiLevelConfig(ProjectorConfig):
    """Multi-level graph projector (paper, section 3.2); Q = num_motif_queries + levels · num_level_queries."""

    kind: Literal["multi_level"] = setting("cross-attention over every level, and motifs", default="multi_level")
    motif_features: Integer = setting("width of a motif's features", ge=1)
    num_motif_queries: Integer = setting("graph tokens from the motifs", ge=1)
    num_level_queries: Integer = setting("graph tokens from the nodes of each level", ge=1)
    num_heads: Integer = setting("of every attention", ge=1)
    depth: Integer = setting("linear layers of the MLP to the language model's width", ge=1)
    layer_norm_eps: Number = setting("added to the variance in LayerNorm", gt=0)
    share_level_attention: Bool = setting("one attention module for all levels, as in the original's code")

    @classmethod
    def paper(cls, **changes: Any) -> "MultiLevelConfig":
        """28 graph tokens: 4 from the motifs and 4 from each of 6 levels; an attention for each level.

        The original's code shares one attention between the levels, which its paper does not say.

        >>> MultiLevelConfig.paper().num_tokens(6)
        28
        """
        sizes = {"motif_features": MOTIF_FEATURES, "num_motif_queries": 4, "num_level_queries": 4, "num_heads": 4}
        rest = {"depth": 6, "layer_norm_eps": 1e-5, "share_level_attention": False}
        return cls(**(sizes | rest | changes))

    def num_tokens(self, levels: int) -> int:
        """Q."""
        return self.num_motif_queries + levels * self.num_level_queries

    def build(self, graph_width: int, levels: int, out_width: int, *, rngs: nnx.Rngs) -> "MultiLevelProjector":
        """See ProjectorConfig; raises ConfigError if the sizes do not fit each other or the records."""
        if graph_width % self.num_heads:
            raise ConfigError(f"config.model.projector.num_heads={self.num_heads} does not divide F={graph_width}")
        if self.motif_features != MOTIF_FEATURES:
            raise ConfigError(f"config.model.projector.motif_features: motifs have {MOTIF_FEATURES} features")
        return MultiLevelProjector(self, graph_width, levels, out_width, rngs=rngs)

    def flops(
        self, shape: BatchShape, graph_width: int, levels: int, out_width: int, linear: LinearFlops, *, to_levels: bool
    ) -> Flops:
        """See ProjectorConfig."""
        slots, atoms, _, motifs = (shape.shards * size for size in shape.per_shard())
        trained, total = linear.any_trained(), Flops()
        for name, items, to_items in (
            ("level_attention", levels * atoms, to_levels),
            ("motif_attention", motifs, trained),  # motif vectors come from a trained embedding
        ):
            for part in ("key", "value"):
                total += linear(f"{name}/{part}", items, graph_width, graph_width, to_input=to_items)
        total += linear("motif_embedding", motifs, self.motif_features, graph_width, to_input=False)
        for name, queries in (
            ("level_attention", levels * self.num_level_queries),
            ("motif_attention", self.num_motif_queries),
        ):
            total += linear(f"{name}/out", slots * queries, graph_width, graph_width, to_input=True)
        widths = [graph_width] + [out_width] * self.depth
        return total + parts.mlp_flops(linear, slots * self.num_tokens(levels), widths)

    def token_sources(self, levels: int) -> list[str]:
        """See ProjectorConfig."""
        of_levels = [f"level {level}" for level in range(levels) for _ in range(self.num_level_queries)]
        return ["motifs"] * self.num_motif_queries + of_levels

    def torch_names(self, levels: int) -> list[Rule]:
        """`MLPMultilevelProjector` of the original; a shared level attention stands under `cross_attention.0`."""
        rules = [
            torch_names.same("motif_query_tokens", "motif_queries"),
            torch_names.same("query_tokens", "level_queries"),
            *torch_names.linear("motif_weight", "motif_embedding", bias=False),
            torch_names.same("layer_norm.weight", "norm/scale"),
            torch_names.same("layer_norm.bias", "norm/bias"),
            *torch_names.in_layer(0, torch_names.attention("motif_cross_attention"), "motif_attention/"),
        ]
        for level in range(1 if self.share_level_attention else levels):
            found = torch_names.attention(f"cross_attention.{level}")
            rules += torch_names.in_layer(level, found, "level_attention/")
        for layer in range(self.depth):
            rules += torch_names.linear(f"net.{2 * layer}", f"mlp/{layer}")
        return rules


class MultiLevelProjector(nnx.Module):
    """Learned queries attend to the nodes of each level and to the motifs (paper, section 3.2).

    Q tokens per molecule: motif tokens first, then the tokens of level 0, 1, …; LayerNorm and an MLP take them to the
    language model's width. A molecule without motifs gets the raw motif queries, as in the original.
    """

    def __init__(self, config: MultiLevelConfig, graph_width: int, num_levels: int, out_width: int, *, rngs: nnx.Rngs):
        self.config = config
        heads = config.num_heads
        motif_queries, level_queries = (config.num_motif_queries, graph_width), (config.num_level_queries, graph_width)
        # N(0, 1) as the original draws them; LayerNorm follows, so that their size decides little
        self.motif_queries = layers.parameter(layers.normal(1.0), motif_queries, (None, "graph"), rngs=rngs)
        self.level_queries = layers.parameter(
            layers.normal(1.0), (num_levels, *level_queries), (None, None, "graph"), rngs=rngs
        )
        self.motif_embedding = layers.Linear(
            config.motif_features, graph_width, (None, "graph"), use_bias=False, rngs=rngs
        )
        # a stack of one serves all levels: the original's six names are one module
        modules = 1 if config.share_level_attention else num_levels
        self.motif_attention = SegmentAttention(graph_width, heads, rngs=rngs, stack=1)
        self.level_attention = SegmentAttention(graph_width, heads, rngs=rngs, stack=modules)
        self.norm = layers.LayerNorm(graph_width, config.layer_norm_eps, rngs=rngs)
        self.mlp = parts.make_mlp([graph_width] + [out_width] * config.depth, rngs=rngs)

    def __call__(
        self, levels: Float[Array, "L S N F"], molecules: MoleculeGraphs
    ) -> tuple[Float[Array, "S G Q D"], dict[str, Any]]:
        """Graph tokens of every molecule slot, and in `out` what `Projector` names, and `pre_norm` (S G Q F).

        pre_norm: the tokens before LayerNorm and MLP.
        """
        slots = molecules.atoms.n_node.shape[-1]
        atom_ids, motif_ids = parts.slot_ids(molecules.atoms), parts.slot_ids(molecules.motifs)
        # in the dtype of levels, whatever they are stored as
        motif_queries, level_queries = (
            queries[...].astype(levels.dtype) for queries in (self.motif_queries, self.level_queries)
        )
        motifs = self.motif_embedding(molecules.motifs.nodes)
        # [None] and [0]: one set of motifs, where levels are several
        of_motifs = (motif_queries[None], motifs[None], motif_ids, slots)
        attended = self.motif_attention(*of_motifs)[0]
        # methane has no functional group: the original's attention over nothing gives its queries back
        has_motifs = (molecules.motifs.n_node > 0)[..., None, None]
        motif_tokens = jnp.where(has_motifs, attended, motif_queries)
        level_tokens = self.level_attention(level_queries, levels, atom_ids, slots)
        # order of the tokens: motifs, then level 0, 1, …; the language model's positions depend on it
        level_tokens = jnp.moveaxis(level_tokens, 0, 2)  # S G L P F
        level_tokens = level_tokens.reshape(*level_tokens.shape[:2], -1, level_tokens.shape[-1])
        tokens = pre_norm = jnp.concatenate([motif_tokens, level_tokens], axis=2)
        weights = self.level_attention.weights(level_queries, levels, atom_ids, slots)
        atom_weights = jnp.moveaxis(weights, 0, 2).reshape(*weights.shape[1:3], -1)  # S N LP
        motif_weights = self.motif_attention.weights(*of_motifs)[0]
        before, behind = motif_weights.shape[-1], atom_weights.shape[-1]
        return parts.apply_mlp(self.mlp, self.norm(tokens)), {
            "pre_norm": pre_norm,
            "atom_attention": jnp.pad(atom_weights, ((0, 0), (0, 0), (before, 0))),
            "motif_attention": jnp.pad(motif_weights, ((0, 0), (0, 0), (0, behind))),
        }
