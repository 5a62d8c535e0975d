"""kind=mlp_nodes: an MLP on the encoder's output, no attention, as in LLaVA (Liu et al., 2023, arXiv 2304.08485)."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import jraph
from flax import nnx
from jax import Array
from jaxtyping import Float, Int

from data_pipeline.batch import BatchShape, MoleculeGraphs
from llamo_jax.config import Float as Number
from llamo_jax.config import Int as Integer
from llamo_jax.config import setting, settings
from llamo_jax.models import layers
from llamo_jax.models.flops import Flops, LinearFlops
from llamo_jax.models.interfaces import PROJECTORS, ProjectorConfig, ProjectorSizes
from llamo_jax.models.projectors import parts


@PROJECTORS.register
@settings
class MLPNodesConfig(ProjectorConfig):
    """Q = num_queries tokens from the last level's nodes, or from their mean."""

    kind: Literal["mlp_nodes"] = setting("an MLP on the encoder's output, without attention", default="mlp_nodes")
    num_queries: Integer = setting("graph tokens", ge=1)
    pool: Literal["nodes", "mean"] = setting("nodes: neighbours in a molecule's order become one; mean: all of them")
    hidden_width: Integer = setting("of the MLP", ge=1)
    depth: Integer = setting("linear layers of the MLP to the language model's width", ge=1)
    layer_norm_eps: Number = setting("added to the variance in LayerNorm", gt=0)

    @classmethod
    def of_width(cls, width: int, sizes: ProjectorSizes) -> "MLPNodesConfig":
        """See ProjectorConfig; at least two layers, as one has no width to choose."""
        eps, depth = sizes.layer_norm_eps, max(sizes.depth, 2)
        return cls(num_queries=sizes.tokens, pool="nodes", hidden_width=width, depth=depth, layer_norm_eps=eps)

    def num_tokens(self, levels: int) -> int:
        """Q."""
        return self.num_queries

    def token_sources(self, levels: int) -> list[str]:
        """See ProjectorConfig."""
        return [f"level {levels - 1}"] * self.num_queries

    def widths(self, graph_width: int, out_width: int) -> list[int]:
        """Of the MLP."""
        return [graph_width, *[self.hidden_width] * (self.depth - 1), out_width]

    def build(self, graph_width: int, levels: int, out_width: int, *, rngs: nnx.Rngs) -> "MLPNodesProjector":
        """See ProjectorConfig."""
        return MLPNodesProjector(self, graph_width, out_width, rngs=rngs)

    def flops(
        self, shape: BatchShape, graph_width: int, levels: int, out_width: int, linear: LinearFlops, *, to_levels: bool
    ) -> Flops:
        """See ProjectorConfig."""
        rows = shape.shards * shape.per_shard()[0] * self.num_queries
        # in front of the MLP are places and LayerNorm, which are trained with it
        to_input = to_levels or linear.any_trained()
        return parts.mlp_flops(linear, rows, self.widths(graph_width, out_width), to_input=to_input)


class MLPNodesProjector(nnx.Module):
    """A token for each node would be as many as there are atoms; Q is fixed, so nodes are pooled to Q of them.

    Token q stands for the nodes ⌊q·n/Q⌋ to ⌈(q+1)·n/Q⌉ of n, as in torch.nn.AdaptiveAvgPool1d: of a molecule with
    fewer nodes than tokens, nodes are shown several times. A learned vector for each place tells tokens apart.
    """

    def __init__(self, config: MLPNodesConfig, graph_width: int, out_width: int, *, rngs: nnx.Rngs):
        self.config = config
        places = (config.num_queries, graph_width)
        self.places = layers.parameter(layers.normal(1.0), places, (None, "graph"), rngs=rngs)
        self.norm = layers.LayerNorm(graph_width, config.layer_norm_eps, rngs=rngs)
        self.mlp = parts.make_mlp(config.widths(graph_width, out_width), rngs=rngs)

    def __call__(
        self, levels: Float[Array, "L S N F"], molecules: MoleculeGraphs
    ) -> tuple[Float[Array, "S G Q D"], dict[str, Any]]:
        """Graph tokens of every molecule slot, and `out["pre_norm"]` (S G Q F), the pooled nodes."""
        counts = molecules.atoms.n_node
        ids = parts.slot_ids(molecules.atoms)
        queries = self.config.num_queries if self.config.pool == "nodes" else 1

        def pool(nodes: Array, ids: Array, counts: Array) -> tuple[Array, Array]:
            shown = shown_in(ids, counts, queries).astype(nodes.dtype)
            pooled = parts.segment_average(shown[..., None], nodes[:, None], ids, counts.shape[0])[:, :, 0]
            return pooled, shown / parts.of_segment(jraph.segment_sum(shown, ids, counts.shape[0]), ids, 1.0)

        pooled, shares = jax.vmap(pool)(levels[-1], ids, counts)  # S G Q F, or one that all tokens begin with
        tokens = pooled + self.places[...].astype(pooled.dtype)
        shares = jnp.broadcast_to(shares, (*ids.shape, self.config.num_queries))
        out = {"pre_norm": tokens, "atom_attention": shares}
        return parts.apply_mlp(self.mlp, self.norm(tokens)), out


def shown_in(ids: Int[Array, " N"], counts: Int[Array, " G"], queries: int) -> Array:
    """Which of the tokens of its molecule each node enters: bool[N, Q]."""
    first = jnp.cumsum(counts) - counts
    place = (jnp.arange(ids.shape[0]) - first[ids])[:, None]
    nodes, token = counts[ids][:, None], jnp.arange(queries)
    return (token * nodes // queries <= place) & (place * queries < (token + 1) * nodes)
