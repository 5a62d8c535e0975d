"""Graph isomorphism network over molecules; returns the node representations of every level."""

import jax
import jax.numpy as jnp
import jraph
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int, Key

from llamo_jax.config import GraphEncoderConfig
from llamo_jax.models import layers


class GINEncoder(nnx.Module):
    """GIN with edge features (Xu et al., 2019; Hu et al., 2020), as in MoleculeSTM and LLaMo.

    Level 0 is the sum of the atom feature embeddings; each layer computes
    `MLP((1 + eps) · x + sum over incoming edges of relu(x_sender + bond embedding))`, batch normalisation, and ReLU
    except after the last layer. The layers are stacked and scanned.
    """

    def __init__(self, config: GraphEncoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        width = config.width
        self.atom_embedding = FeatureEmbedding(config.atom_cardinalities, width, rngs=rngs)
        self.layers = GINLayer(config, rngs=rngs, stack=config.num_layers)

    def __call__(
        self,
        atoms: jraph.GraphsTuple,
        *,
        batch_statistics: bool = False,
        dropout_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "L S N F"]:
        """Node representations of all levels; `atoms` as in `data_pipeline.batch.MoleculeGraphs`.

        batch_statistics: normalise with this batch's statistics (of all shards, padding ignored) and update the
        running ones; otherwise use the running ones. Padding atoms are zero in all levels.
        """
        mask = jax.vmap(jraph.get_node_padding_mask)(atoms)
        nodes = jnp.where(mask[..., None], self.atom_embedding(atoms.nodes), 0)
        graphdef, state = nnx.split(self.layers)
        last = np.arange(self.config.num_layers) == self.config.num_layers - 1
        keys = None if dropout_key is None else jax.random.split(dropout_key, self.config.num_layers)

        def step(x: Array, inputs: tuple[nnx.State, Array, Array | None]) -> tuple[Array, tuple]:
            layer_state, is_last, key = inputs
            layer = nnx.merge(graphdef, layer_state)
            x, running = layer(atoms._replace(nodes=x), mask, is_last, batch_statistics, key)
            # All padding edges meet in one atom: left alone, it grows a thousandfold per layer and overflows.
            x = jnp.where(mask[..., None], x, 0)
            return x, (x, running)

        _, (levels, running) = jax.lax.scan(step, nodes, (state, last, keys))
        if batch_statistics:
            for norm, (mean, var) in zip((self.layers.inner_norm, self.layers.outer_norm), running, strict=True):
                norm.mean[...], norm.var[...] = mean, var
        return jnp.concatenate([nodes[None], levels])


class GINLayer(nnx.Module):
    """One GIN layer, created as a stack of `stack` and called on one slice of it."""

    def __init__(self, config: GraphEncoderConfig, *, rngs: nnx.Rngs, stack: int):
        width = config.width
        axes = ("graph", None)
        self.bond_embedding = FeatureEmbedding(config.bond_cardinalities, width, rngs=rngs, stack=stack)
        self.eps = layers.parameter(layers.zeros, (), (), rngs=rngs, stack=stack)
        self.hidden = layers.Linear(width, 2 * width, axes, rngs=rngs, stack=stack)
        self.inner_norm = layers.BatchNorm(2 * width, rngs=rngs, stack=stack)
        self.out = layers.Linear(2 * width, width, axes, rngs=rngs, stack=stack)
        self.outer_norm = layers.BatchNorm(width, rngs=rngs, stack=stack)
        self.dropout = config.dropout

    def __call__(
        self,
        graphs: jraph.GraphsTuple,
        mask: Bool[Array, "S N"],
        is_last: Bool[Array, ""],
        batch_statistics: bool,
        dropout_key: Key[Array, ""] | None,
    ) -> tuple[Float[Array, "S N F"], tuple]:
        """The next level, and the running statistics of the two normalisations; nodes are already embedded."""
        network = jraph.GraphNetwork(
            update_edge_fn=lambda edges, sent, received, _: jax.nn.relu(sent + edges),
            update_node_fn=lambda nodes, sent, received, _: (1 + self.eps[...]) * nodes + received,
        )
        x = jax.vmap(network)(graphs._replace(edges=self.bond_embedding(graphs.edges))).nodes
        x, inner = self.inner_norm(self.hidden(x), mask, batch_statistics)
        x, outer = self.outer_norm(self.out(jax.nn.relu(x)), mask, batch_statistics)
        x = jnp.where(is_last, x, jax.nn.relu(x))
        return layers.dropout(x, self.dropout, dropout_key), (inner, outer)


class FeatureEmbedding(nnx.Module):
    """The sum of one embedding per categorical feature; all tables are one array, one after the other."""

    def __init__(self, cardinalities: tuple[int, ...], width: int, *, rngs: nnx.Rngs, stack: int | None = None):
        init = layers.normal(stddev=width**-0.5)
        self.table = layers.parameter(init, (sum(cardinalities), width), (None, "graph"), rngs=rngs, stack=stack)
        self.offsets = tuple(int(offset) for offset in np.cumsum((0, *cardinalities[:-1])))

    def __call__(self, features: Int[Array, "*batch features"]) -> Float[Array, "*batch width"]:
        return jnp.sum(self.table[...][features + np.array(self.offsets)], axis=-2)
