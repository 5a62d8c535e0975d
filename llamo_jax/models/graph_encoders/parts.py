"""What several graph encoders are made of: embeddings of categorical features, and a scan over layers."""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import jraph
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int, Key

from llamo_jax.models import layers


class FeatureEmbedding(nnx.Module):
    """The sum of one embedding per categorical feature; all tables are one array, one after the other."""

    # One table instead of nine: small operations cost a launch each on accelerators.
    def __init__(self, cardinalities: tuple[int, ...], width: int, *, rngs: nnx.Rngs, stack: int | None = None):
        init = layers.normal(stddev=width**-0.5)  # a sum of nine such rows stays of the order of one
        self.table = layers.parameter(init, (sum(cardinalities), width), (None, "graph"), rngs=rngs, stack=stack)
        self.offsets = tuple(int(offset) for offset in np.cumsum((0, *cardinalities[:-1])))

    def __call__(self, features: Int[Array, "*batch features"]) -> Float[Array, "*batch width"]:
        """float32, whatever the table is stored as: so are all levels, as sums over neighbours and molecules need it.

        A product with ones and zeros. Of a gather, the gradient would add all carbon atoms to one row, which a GPU
        does one by one.
        """
        table = self.table[...].astype(jnp.float32)
        ones = jax.nn.one_hot(features + np.array(self.offsets), len(table), dtype=table.dtype).sum(axis=-2)
        return jnp.matmul(ones, table, precision=jax.lax.Precision.HIGHEST)


@runtime_checkable
class Layer(Protocol):
    """A message-passing layer, an `nnx.Module`, created as a stack and called on one slice of it."""

    def norms(self) -> tuple[layers.BatchNorm, ...]:
        """Its batch normalisations, in the order of the statistics that a call returns."""

    def __call__(
        self,
        graphs: jraph.GraphsTuple,
        mask: Bool[Array, "S N"],
        is_last: Bool[Array, ""],
        batch_statistics: bool,
        dropout_key: Key[Array, ""] | None,
    ) -> tuple[Float[Array, "S N F"], tuple]:
        """The next level, and the running statistics of the normalisations; nodes are already embedded."""


def run_layers(
    stack: Layer,
    num_layers: int,
    embedding: FeatureEmbedding,
    atoms: jraph.GraphsTuple,
    *,
    batch_statistics: bool,
    dropout_key: Key[Array, ""] | None,
) -> Float[Array, "L S N F"]:
    """Node representations of all levels: the atoms' embedding, and the output of each layer; padding atoms are zero.

    batch_statistics: as in `GraphEncoder`; the running ones are updated in the stack.
    """
    # jraph's masks count back from the padding graph; of a graph without padding they would all be False, which is
    # why every shard keeps one slot for it
    mask = jax.vmap(jraph.get_node_padding_mask)(atoms)
    nodes = jnp.where(mask[..., None], embedding(atoms.nodes), 0)
    # one layer's program, run over the stack of parameters: five layers compile as fast as one
    graphdef, state = nnx.split(stack)
    # no ReLU after the last layer, which is one of a scanned stack: a flag that is scanned along
    last = np.arange(num_layers) == num_layers - 1
    keys = None if dropout_key is None else jax.random.split(dropout_key, num_layers)

    def step(x: Array, inputs: tuple[nnx.State, Array, Array | None]) -> tuple[Array, tuple]:
        layer_state, is_last, key = inputs
        layer = nnx.merge(graphdef, layer_state)
        x, running = layer(atoms._replace(nodes=x), mask, is_last, batch_statistics, key)
        # Padding edges make padding atoms of each other: left alone, they would grow with every layer.
        x = jnp.where(mask[..., None], x, 0)
        return x, (x, running)

    _, (levels, running) = jax.lax.scan(step, nodes, (state, last, keys))
    if batch_statistics:
        # assigned after the scan: lax.scan drops what a layer changes in itself
        for norm, (mean, var) in zip(stack.norms(), running, strict=True):
            norm.mean[...], norm.var[...] = mean, var
    return jnp.concatenate([nodes[None], levels])  # level 0 is the embedding itself
