"""kind=resampler: a small transformer of learned queries over the last level, in the manner of the Q-Former."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
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
from llamo_jax.models.projectors.queries import check_heads

_MLP_RATIO = 4


@PROJECTORS.register
@settings
class ResamplerConfig(ProjectorConfig):
    """Several layers of self-attention, cross-attention and MLP (Flamingo, arXiv 2204.14198; BLIP-2, 2301.12597)."""

    kind: Literal["resampler"] = setting("layers of queries that attend to the encoder's output", default="resampler")
    num_queries: Integer = setting("graph tokens", ge=1)
    width: Integer = setting("of the layers", ge=1)
    num_layers: Integer = setting("each with self-attention, cross-attention and an MLP", ge=1)
    num_heads: Integer = setting("of every attention", ge=1)
    layer_norm_eps: Number = setting("added to the variance in LayerNorm", gt=0)

    @classmethod
    def of_width(cls, width: int, sizes: ProjectorSizes) -> "ResamplerConfig":
        """See ProjectorConfig; two layers, so that queries ask again after an answer."""
        common: dict[str, Any] = {"num_heads": sizes.num_heads, "layer_norm_eps": sizes.layer_norm_eps}
        return cls(num_queries=sizes.tokens, width=width, num_layers=2, **common)

    def num_tokens(self, levels: int) -> int:
        """Q."""
        return self.num_queries

    def token_sources(self, levels: int) -> list[str]:
        """See ProjectorConfig."""
        return [f"level {levels - 1}"] * self.num_queries

    def build(self, graph_width: int, levels: int, out_width: int, *, rngs: nnx.Rngs) -> "ResamplerProjector":
        """See ProjectorConfig; raises ConfigError if the sizes do not fit each other."""
        check_heads(self.num_heads, self.width, "width")
        return ResamplerProjector(self, graph_width, out_width, rngs=rngs)

    def flops(
        self, shape: BatchShape, graph_width: int, levels: int, out_width: int, linear: LinearFlops, *, to_levels: bool
    ) -> Flops:
        """See ProjectorConfig; the products of attention itself are counted for the queries among themselves."""
        slots, atoms, _, _ = (shape.shards * size for size in shape.per_shard())
        tokens, width, total = slots * self.num_queries, self.width, Flops()
        for i in range(self.num_layers):
            # the queries of the first layer are everybody's: they differ only behind its cross-attention
            rows = tokens if i else self.num_queries
            for part in ("query", "key", "value", "out"):
                total += linear(f"layers/{i}/self_attention/{part}", rows, width, width)
            total += linear(f"layers/{i}/cross_attention/query", rows, width, width)
            for part in ("key", "value"):
                total += linear(f"layers/{i}/cross_attention/{part}", atoms, graph_width, width, to_input=to_levels)
            total += linear(f"layers/{i}/cross_attention/out", tokens, width, width)
            total += linear(f"layers/{i}/up", tokens, width, _MLP_RATIO * width)
            total += linear(f"layers/{i}/down", tokens, _MLP_RATIO * width, width)
            scores = 2.0 * 2 * rows * self.num_queries * width  # queries · keys and weights · values
            total += Flops(scores, 2 * scores)
        return total + linear("out", tokens, width, out_width)


class ResamplerProjector(nnx.Module):
    """Queries, layers of `ResamplerLayer`, LayerNorm and one linear map to the language model's width."""

    def __init__(self, config: ResamplerConfig, graph_width: int, out_width: int, *, rngs: nnx.Rngs):
        self.config = config
        # 0.02 as BERT's, whose layers the Q-Former began with
        queries = (config.num_queries, config.width)
        self.queries = layers.parameter(layers.normal(0.02), queries, (None, "graph"), rngs=rngs)
        self.layers = nnx.List(ResamplerLayer(config, graph_width, rngs=rngs) for _ in range(config.num_layers))
        self.norm = layers.LayerNorm(config.width, config.layer_norm_eps, rngs=rngs)
        self.out = layers.Linear(config.width, out_width, ("graph", None), rngs=rngs)

    def __call__(
        self, levels: Float[Array, "L S N F"], molecules: MoleculeGraphs
    ) -> tuple[Float[Array, "S G Q D"], dict[str, Any]]:
        """Graph tokens of every molecule slot, and `out["pre_norm"]` (S G Q width), the queries after the layers."""
        ids, slots = parts.slot_ids(molecules.atoms), molecules.atoms.n_node.shape[-1]
        tokens = self.queries[...].astype(levels.dtype)[None, None]
        for layer in self.layers:
            tokens, shares = layer(tokens, levels[-1], ids, slots)
        return self.out(self.norm(tokens)), {"pre_norm": tokens, "atom_attention": shares}  # of the last layer


class ResamplerLayer(nnx.Module):
    """x + self-attention, x + cross-attention to the molecule's nodes, x + MLP; each behind its own LayerNorm."""

    def __init__(self, config: ResamplerConfig, graph_width: int, *, rngs: nnx.Rngs):
        width, eps = config.width, config.layer_norm_eps
        self.self_norm, self.cross_norm, self.mlp_norm = (layers.LayerNorm(width, eps, rngs=rngs) for _ in range(3))
        self.node_norm = layers.LayerNorm(graph_width, eps, rngs=rngs)
        self.self_attention = QueryAttention(width, width, config.num_heads, rngs=rngs)
        self.cross_attention = QueryAttention(width, graph_width, config.num_heads, rngs=rngs)
        self.up = layers.Linear(width, _MLP_RATIO * width, ("graph", None), rngs=rngs)
        self.down = layers.Linear(_MLP_RATIO * width, width, (None, "graph"), rngs=rngs)

    def __call__(
        self, x: Float[Array, "#S #G Q W"], nodes: Float[Array, "S N F"], ids: Int[Array, "S N"], slots: int
    ) -> tuple[Float[Array, "S G Q W"], Float[Array, "S N Q"]]:
        """The queries of every slot after the layer, and the nodes' shares of their attention.

        Before the first layer, x has the queries of all slots once.
        """
        x = x + self.self_attention.among(self.self_norm(x))
        attended, shares = self.cross_attention.to_nodes(self.cross_norm(x), self.node_norm(nodes), ids, slots)
        x = x + attended
        return x + self.down(jax.nn.gelu(self.up(self.mlp_norm(x)))), shares


class QueryAttention(nnx.Module):
    """Multi-head attention whose queries differ from molecule to molecule."""

    def __init__(self, width: int, item_width: int, num_heads: int, *, rngs: nnx.Rngs):
        axes = ("graph", None)
        self.query = layers.Linear(width, width, axes, rngs=rngs)
        self.key = layers.Linear(item_width, width, axes, rngs=rngs)
        self.value = layers.Linear(item_width, width, axes, rngs=rngs)
        self.out = layers.Linear(width, width, axes, rngs=rngs)
        self.num_heads = num_heads

    def among(self, x: Float[Array, "S G Q W"]) -> Float[Array, "S G Q W"]:
        """Of the queries of a molecule to each other."""
        q, k, v = (parts.heads(linear(x), self.num_heads) for linear in (self.query, self.key, self.value))
        return self.out(
            jax.nn.dot_product_attention(*(y.reshape(-1, *y.shape[2:]) for y in (q, k, v))).reshape(x.shape)
        )

    def to_nodes(
        self, x: Float[Array, "#S #G Q W"], nodes: Float[Array, "S N F"], ids: Int[Array, "S N"], slots: int
    ) -> tuple[Float[Array, "S G Q W"], Float[Array, "S N Q"]]:
        """Of the queries of a molecule to its nodes, and the nodes' shares, averaged over heads."""
        q = parts.heads(self.query(x), self.num_heads)
        q = jnp.broadcast_to(q, (len(ids), slots, *q.shape[2:]))  # S G Q h f
        k, v = (parts.heads(linear(nodes), self.num_heads) for linear in (self.key, self.value))  # S N h f

        def pool(q: Array, k: Array, v: Array, ids: Array) -> tuple[Array, Array]:
            scores = jnp.einsum("nhf,nqhf->nqh", k, parts.of_segment(q, ids, 0.0)) * q.shape[-1] ** -0.5
            shares = parts.segment_softmax(scores, ids, q.shape[0]).mean(axis=-1)
            return parts.segment_pool(scores, v, ids, q.shape[0]), shares

        pooled, shares = jax.vmap(pool)(q, k, v, ids)
        return self.out(pooled.reshape(*pooled.shape[:3], -1)), shares
