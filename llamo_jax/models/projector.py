"""Multi-level graph projector: a fixed number of graph tokens from all GNN levels and the motifs."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import jraph
from flax import nnx
from jax import Array
from jaxtyping import Float, Int

from data_pipeline.batch import MoleculeGraphs
from llamo_jax.config import ProjectorConfig
from llamo_jax.models import layers


class MultiLevelProjector(nnx.Module):
    """Learned queries attend to the nodes of each level and to the motifs (paper, section 3.2).

    Q tokens per molecule: motif tokens first, then the tokens of level 0, 1, …; LayerNorm and an MLP take them to the
    language model's width. A molecule without motifs gets the raw motif queries, as in the original.
    """

    def __init__(self, config: ProjectorConfig, graph_width: int, num_levels: int, out_width: int, *, rngs: nnx.Rngs):
        self.config = config
        heads = config.num_heads
        motif_queries, level_queries = (config.num_motif_queries, graph_width), (config.num_level_queries, graph_width)
        self.motif_queries = layers.parameter(layers.normal(1.0), motif_queries, (None, "graph"), rngs=rngs)
        self.level_queries = layers.parameter(
            layers.normal(1.0), (num_levels, *level_queries), (None, None, "graph"), rngs=rngs
        )
        self.motif_embedding = layers.Linear(
            config.motif_features, graph_width, (None, "graph"), use_bias=False, rngs=rngs
        )
        modules = 1 if config.share_level_attention else num_levels
        self.motif_attention = SegmentAttention(graph_width, heads, rngs=rngs, stack=1)
        self.level_attention = SegmentAttention(graph_width, heads, rngs=rngs, stack=modules)
        self.norm = layers.LayerNorm(graph_width, config.layer_norm_eps, rngs=rngs)
        widths = [graph_width] + [out_width] * config.depth
        self.mlp = nnx.List(
            layers.Linear(a, b, ("graph" if i == 0 else "embed", None), rngs=rngs)
            for i, (a, b) in enumerate(itertools.pairwise(widths))
        )

    def __call__(
        self, levels: Float[Array, "L S N F"], molecules: MoleculeGraphs
    ) -> tuple[Float[Array, "S G Q D"], dict[str, Any]]:
        """Graph tokens of every molecule slot, and `out["pre_norm"]` (S G Q F), the tokens before LayerNorm and MLP."""
        slots = molecules.atoms.n_node.shape[-1]
        motifs = self.motif_embedding(molecules.motifs.nodes)
        motif_queries = self.motif_queries[...]
        attended = self.motif_attention(motif_queries[None], motifs[None], _slot_ids(molecules.motifs), slots)[0]
        has_motifs = (molecules.motifs.n_node > 0)[..., None, None]
        motif_tokens = jnp.where(has_motifs, attended, motif_queries)
        level_tokens = self.level_attention(self.level_queries[...], levels, _slot_ids(molecules.atoms), slots)
        level_tokens = jnp.moveaxis(level_tokens, 0, 2)  # S G L P F
        level_tokens = level_tokens.reshape(*level_tokens.shape[:2], -1, level_tokens.shape[-1])
        tokens = pre_norm = jnp.concatenate([motif_tokens, level_tokens], axis=2)
        tokens = self.norm(tokens)
        for i, linear in enumerate(self.mlp):
            tokens = linear(jax.nn.silu(tokens) if i else tokens)
        return tokens, {"pre_norm": pre_norm}


class SegmentAttention(nnx.Module):
    """Multi-head attention from learned queries to the items of each segment of a flat axis.

    The queries are the same for every segment, so the softmax over a segment's items is a segment softmax and nothing
    is padded to the largest molecule. `stack` independent modules run side by side along the leading axis; a stack of
    one serves all entries of that axis.
    """

    def __init__(self, width: int, num_heads: int, *, rngs: nnx.Rngs, stack: int):
        linears = [layers.Linear(width, width, ("graph", None), rngs=rngs, stack=stack) for _ in range(4)]
        self.query, self.key, self.value, self.out = linears
        self.num_heads = num_heads
        self.stack = stack

    def __call__(
        self,
        queries: Float[Array, "A P F"],
        items: Float[Array, "A S N F"],
        segment_ids: Int[Array, "S N"],
        num_segments: int,
    ) -> Float[Array, "A S G P F"]:
        """One row of P outputs for each of `num_segments` segments (G); zero attention mass where one is empty."""
        graphdef, state = nnx.split(self)

        def attend(state: nnx.State, queries: Array, items: Array) -> Array:
            module = nnx.merge(graphdef, state)
            q = _heads(module.query(queries), self.num_heads)  # P h F/h
            k = _heads(module.key(items), self.num_heads)  # S N h F/h
            v = _heads(module.value(items), self.num_heads)
            scores = jnp.einsum("snhf,phf->snph", k, q) * q.shape[-1] ** -0.5

            pooled = jax.vmap(_segment_pool, in_axes=(0, 0, 0, None))(scores, v, segment_ids, num_segments)
            return module.out(pooled.reshape(*pooled.shape[:-2], -1))  # S G P F

        if self.stack == 1:
            state = jax.tree.map(lambda x: x[0], state)
            return jax.vmap(attend, in_axes=(None, 0, 0))(state, queries, items)
        return jax.vmap(attend)(state, queries, items)


def _segment_pool(scores: Array, values: Array, ids: Array, num_segments: int) -> Array:
    """Values N h f, averaged in each segment with softmax weights from scores N P h: G P h f; zeros where empty.

    `jraph.segment_softmax` would do, but its gradient also goes through the maximum, and dividing every item's weight
    costs another gather; so the division comes last here.
    """
    largest = jax.lax.stop_gradient(jraph.segment_max(scores, ids, num_segments))
    weights = jnp.exp(scores - largest[ids])
    total = jraph.segment_sum(weights, ids, num_segments)
    # One query at a time: the gradient of a product over all of them is a slow strided reduction on CPU.
    weighted = [weights[:, query, :, None] * values for query in range(weights.shape[1])]
    pooled = jnp.stack([jraph.segment_sum(items, ids, num_segments) for items in weighted], axis=1)
    # Not jnp.maximum(total, 1): where one item is alone the two are equal, and its gradient would be split.
    return pooled / jnp.where(total > 0, total, 1)[..., None]


def _slot_ids(graphs: jraph.GraphsTuple) -> Int[Array, "S N"]:
    """Which molecule slot each node belongs to; padding nodes belong to the padding slot."""
    slots = jnp.arange(graphs.n_node.shape[-1])
    return jax.vmap(lambda counts: jnp.repeat(slots, counts, total_repeat_length=graphs.nodes.shape[1]))(graphs.n_node)


def _heads(x: Array, num_heads: int) -> Array:
    return x.reshape(*x.shape[:-1], num_heads, -1)
