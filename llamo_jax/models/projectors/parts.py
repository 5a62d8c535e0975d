"""What several projectors are made of: attention over the nodes of each molecule, and the MLP to graph tokens."""

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import jraph
from flax import nnx
from jax import Array
from jaxtyping import Float, Int

from llamo_jax.models import layers
from llamo_jax.models.flops import Flops, LinearFlops


class SegmentAttention(nnx.Module):
    """Multi-head attention from learned queries to the items of each segment of a flat axis.

    The queries are the same for every segment, so the softmax over a segment's items is a segment softmax and nothing
    is padded to the largest molecule. `stack` independent modules run side by side along the leading axis; a stack of
    one serves all entries of that axis.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        rngs: nnx.Rngs,
        stack: int,
        item_width: int | None = None,
        inner_width: int | None = None,
    ):
        """width: of queries and outputs (F); item_width: of items; inner_width: all heads together (default: width)."""
        items, inner = item_width or width, inner_width or width
        self.query, self.key, self.value, self.out = (
            layers.Linear(a, b, ("graph", None), rngs=rngs, stack=stack)
            for a, b in ((width, inner), (items, inner), (items, inner), (inner, width))
        )
        self.num_heads = num_heads
        self.stack = stack

    def __call__(
        self,
        queries: Float[Array, "A P F"],
        items: Float[Array, "A S N I"],
        segment_ids: Int[Array, "S N"],
        num_segments: int,
    ) -> Float[Array, "A S G P F"]:
        """One row of P outputs for each of `num_segments` segments (G); zero attention mass where one is empty."""
        graphdef, state = nnx.split(self)

        def attend(state: nnx.State, queries: Array, items: Array) -> Array:
            module = nnx.merge(graphdef, state)
            scores = module.scores(queries, items)
            v = heads(module.value(items), self.num_heads)
            pooled = jax.vmap(segment_pool, in_axes=(0, 0, 0, None))(scores, v, segment_ids, num_segments)
            return module.out(pooled.reshape(*pooled.shape[:-2], -1))  # S G P F

        return self._for_each(attend, state, queries, items)

    def scores(self, queries: Float[Array, "P F"], items: Float[Array, "S N I"]) -> Float[Array, "S N P h"]:
        """Of every item for every query, before the softmax; called on one slice of a stack."""
        # h heads of F/h each. Queries are the same for all molecules, so they are projected once, not per molecule.
        q = heads(self.query(queries), self.num_heads)  # P h F/h
        k = heads(self.key(items), self.num_heads)  # S N h F/h
        return jnp.einsum("snhf,phf->snph", k, q) * q.shape[-1] ** -0.5  # as torch.nn.MultiheadAttention

    def weights(
        self,
        queries: Float[Array, "A P F"],
        items: Float[Array, "A S N I"],
        segment_ids: Int[Array, "S N"],
        num_segments: int,
    ) -> Float[Array, "A S N P"]:
        """The share of each query's attention that each item of a segment has, averaged over heads.

        For people to look at: what `__call__` gives does not come from it, and where nobody asks, XLA leaves it out.
        """
        graphdef, state = nnx.split(self)

        def share(state: nnx.State, queries: Array, items: Array) -> Array:
            scores = nnx.merge(graphdef, state).scores(queries, items)
            softmax = jax.vmap(segment_softmax, in_axes=(0, 0, None))(scores, segment_ids, num_segments)
            return jnp.mean(softmax, axis=-1)

        return self._for_each(share, state, queries, items)

    def _for_each(self, function: Callable[..., Array], state: nnx.State, queries: Array, items: Array) -> Array:
        if self.stack == 1:
            state = jax.tree.map(lambda x: x[0], state)
            return jax.vmap(function, in_axes=(None, 0, 0))(state, queries, items)
        return jax.vmap(function)(state, queries, items)


def segment_pool(
    scores: Float[Array, "N P h"], values: Float[Array, "N h f"], ids: Int[Array, " N"], num_segments: int
) -> Float[Array, "G P h f"]:
    """Values, averaged in each segment with softmax weights from the scores; zeros where a segment is empty.

    `segment_softmax` would do, but dividing every item's weight costs another gather; so the division comes last here.
    """
    return segment_average(_exponentials(scores, ids, num_segments), values, ids, num_segments)


def segment_softmax(scores: Float[Array, "N P h"], ids: Int[Array, " N"], num_segments: int) -> Float[Array, "N P h"]:
    """Each item's share of its segment; zero for items outside of all segments, of which jraph's makes NaN."""
    weights = _exponentials(scores, ids, num_segments)
    return weights / of_segment(jraph.segment_sum(weights, ids, num_segments), ids, 1.0)


def _exponentials(scores: Float[Array, "N P h"], ids: Int[Array, " N"], num_segments: int) -> Float[Array, "N P h"]:
    # the softmax does not change when all scores of a segment shift; without the largest, exp cannot overflow
    largest = jax.lax.stop_gradient(jraph.segment_max(scores, ids, num_segments))
    return jnp.exp(scores - of_segment(largest, ids, jnp.inf))


def of_segment(x: Array, ids: Int[Array, " N"], outside: float) -> Array:
    """The row of x of every item's segment; `outside` for items outside of all segments, which get no gradient."""
    return x.at[ids].get(mode="fill", fill_value=outside)


def segment_average(
    weights: Float[Array, "N P h"], values: Float[Array, "N h f"], ids: Int[Array, " N"], num_segments: int
) -> Float[Array, "G P h f"]:
    """P weighted averages of the values of each segment; zeros where the weights are."""
    total = jraph.segment_sum(weights, ids, num_segments)
    # One query at a time: the gradient of a product over all of them is a slow strided reduction on CPU.
    weighted = [weights[:, query, :, None] * values for query in range(weights.shape[1])]
    pooled = jnp.stack([jraph.segment_sum(items, ids, num_segments) for items in weighted], axis=1)
    # Not jnp.maximum(total, 1): where one item is alone the two are equal, and its gradient would be split.
    return pooled / jnp.where(total > 0, total, 1)[..., None]


def slot_ids(graphs: jraph.GraphsTuple) -> Int[Array, "S N"]:
    """Which molecule slot each node belongs to; padding nodes have G, the number behind the last: sums leave them out.

    Thousands of them in one slot would be added one by one on a GPU, as jaxlib 0.10.2 adds to one place
    (openxla/xla#46225): docs/results.md, "On an H100".
    """
    # total_repeat_length: jit needs a static length; n_node adds up to it, since padding has a slot of its own
    slots = jnp.arange(graphs.n_node.shape[-1])
    ids = jax.vmap(lambda counts: jnp.repeat(slots, counts, total_repeat_length=graphs.nodes.shape[1]))(graphs.n_node)
    return jnp.where(jax.vmap(jraph.get_node_padding_mask)(graphs), ids, len(slots))


def heads(x: Float[Array, "*batch width"], num_heads: int) -> Float[Array, "*batch h f"]:
    """The last axis, cut into heads."""
    return x.reshape(*x.shape[:-1], num_heads, -1)


def make_mlp(widths: Sequence[int], *, rngs: nnx.Rngs) -> nnx.List:
    """The linear maps of an MLP, from the graph side's width to the language model's."""
    return nnx.List(
        layers.Linear(a, b, ("graph" if i == 0 else "embed", None), rngs=rngs)
        for i, (a, b) in enumerate(itertools.pairwise(widths))
    )


def apply_mlp(mlp: nnx.List, x: Float[Array, "*batch F"]) -> Float[Array, "*batch D"]:
    """SiLU between the layers, none at the ends."""
    for i, linear in enumerate(mlp):
        x = linear(jax.nn.silu(x) if i else x)
    return x


def mlp_flops(linear: LinearFlops, rows: int, widths: Sequence[int], *, to_input: bool = True) -> Flops:
    """Of `apply_mlp` on so many vectors; to_input: whether its input needs a gradient."""
    total = Flops()
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        total += linear(f"mlp/{i}", rows, a, b, to_input=to_input or i > 0)
    return total
