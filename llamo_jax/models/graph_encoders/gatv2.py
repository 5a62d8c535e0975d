"""kind=gatv2: graph attention whose weights depend on both ends of a bond and on the bond (Brody et al., 2022)."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import jraph
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Key

from data_pipeline.batch import BatchShape
from data_pipeline.vocabulary import ATOM_CARDINALITIES, BOND_CARDINALITIES, GraphVocabulary
from llamo_jax.config import ConfigError, setting, settings
from llamo_jax.config import Float as Number
from llamo_jax.config import Int as Integer
from llamo_jax.models import layers
from llamo_jax.models.flops import Flops, LinearFlops
from llamo_jax.models.graph_encoders.parts import FeatureEmbedding, run_layers
from llamo_jax.models.interfaces import GRAPH_ENCODERS, GraphEncoderConfig

_NEGATIVE_SLOPE = 0.2
"""Of LeakyReLU, as in the paper."""


@GRAPH_ENCODERS.register
@settings
class GATv2Config(GraphEncoderConfig):
    """GATv2 over categorical node and edge features (arXiv 2105.14491), with residuals and batch normalisation."""

    kind: Literal["gatv2"] = setting("graph attention", default="gatv2")
    atom_cardinalities: tuple[Integer, ...] = setting("values of each categorical node feature", min_length=1)
    bond_cardinalities: tuple[Integer, ...] = setting("values of each categorical edge feature", min_length=1)
    width: Integer = setting("F, of node representations", ge=1)
    num_layers: Integer = setting("L - 1", ge=1)
    num_heads: Integer = setting("of the attention", ge=1)
    dropout: Number = setting("after each layer, in training", ge=0, lt=1)

    @classmethod
    def usual(cls, **changes: Any) -> "GATv2Config":
        """As deep and wide as the paper's GIN, with four heads, over OGB's molecular features.

        >>> from data_pipeline.batch import MoleculeGraphs
        >>> encoder = GATv2Config.usual(width=16).build(rngs=nnx.Rngs(0))
        >>> encoder(MoleculeGraphs.from_smiles(["CCO"]).atoms).shape  # L S N F, padded
        (6, 1, 8, 16)
        """
        sizes = {"width": 300, "num_layers": 5, "num_heads": 4, "dropout": 0.0}
        features = {"atom_cardinalities": ATOM_CARDINALITIES, "bond_cardinalities": BOND_CARDINALITIES}
        return cls(**(features | sizes | changes))

    @classmethod
    def of_width(cls, width: int) -> "GATv2Config":
        """See GraphEncoderConfig."""
        return cls.usual(width=width)

    @property
    def num_levels(self) -> int:
        """L: the atom embedding and the output of every layer."""
        return self.num_layers + 1

    @property
    def vocabulary(self) -> GraphVocabulary:
        """The features that the embedding tables are for."""
        return GraphVocabulary(self.atom_cardinalities, self.bond_cardinalities)

    def build(self, *, rngs: nnx.Rngs) -> "GATv2Encoder":
        """See GraphEncoderConfig; raises ConfigError if the heads do not divide the width."""
        if self.width % self.num_heads:
            raise ConfigError(f"config.model.graph_encoder.num_heads={self.num_heads} does not divide {self.width}")
        return GATv2Encoder(self, rngs=rngs)

    def flops(self, shape: BatchShape, linear: LinearFlops) -> Flops:
        """See GraphEncoderConfig; nothing in front of the first trained layer needs a gradient."""
        _, atoms, _, _ = (shape.shards * size for size in shape.per_shard())
        total, trained = Flops(), linear.any_trained()
        for _ in range(self.num_layers):
            for part in ("sender", "receiver"):
                total += linear(f"layers/{part}", atoms, self.width, self.width, to_input=trained)
        return total


class GATv2Encoder(nnx.Module):
    """Level 0 is the sum of the atom feature embeddings; then a stack of `GATv2Layer`."""

    def __init__(self, config: GATv2Config, *, rngs: nnx.Rngs):
        self.config = config
        self.atom_embedding = FeatureEmbedding(config.atom_cardinalities, config.width, rngs=rngs)
        self.layers = GATv2Layer(config, rngs=rngs, stack=config.num_layers)

    def __call__(
        self,
        atoms: jraph.GraphsTuple,
        *,
        batch_statistics: bool = False,
        dropout_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "L S N F"]:
        """Node representations of all levels; see `GraphEncoder`."""
        return run_layers(
            self.layers,
            self.config.num_layers,
            self.atom_embedding,
            atoms,
            batch_statistics=batch_statistics,
            dropout_key=dropout_key,
        )


class GATv2Layer(nnx.Module):
    """x + ReLU(BatchNorm(attention over the neighbours and the atom itself)); no ReLU after the last layer.

    Attention of a head: softmax over what arrives at an atom of a · LeakyReLU(W_s x_s + W_r x_r + bond), of the
    values W_s x_s. An atom's bond to itself is zero.
    """

    def __init__(self, config: GATv2Config, *, rngs: nnx.Rngs, stack: int):
        width, axes = config.width, ("graph", None)
        self.bond_embedding = FeatureEmbedding(config.bond_cardinalities, width, rngs=rngs, stack=stack)
        self.sender = layers.Linear(width, width, axes, rngs=rngs, stack=stack)
        self.receiver = layers.Linear(width, width, axes, rngs=rngs, stack=stack)
        per_head = (config.num_heads, width // config.num_heads)
        # a sum of f such products stays of the order of one
        init = layers.normal(stddev=per_head[1] ** -0.5)
        self.attention = layers.parameter(init, per_head, (None, "graph"), rngs=rngs, stack=stack)
        self.norm = layers.BatchNorm(width, rngs=rngs, stack=stack)
        self.dropout = config.dropout

    def norms(self) -> tuple[layers.BatchNorm]:
        """See parts.Layer."""
        return (self.norm,)

    def __call__(
        self,
        graphs: jraph.GraphsTuple,
        mask: Bool[Array, "S N"],
        is_last: Bool[Array, ""],
        batch_statistics: bool,
        dropout_key: Key[Array, ""] | None,
    ) -> tuple[Float[Array, "S N F"], tuple]:
        """See parts.Layer."""
        sent, received = self.sender(graphs.nodes), self.receiver(graphs.nodes)
        bonds = self.bond_embedding(graphs.edges)
        x = jax.vmap(self._attend)(sent, received, bonds, graphs.senders, graphs.receivers)
        x, running = self.norm(x, mask, batch_statistics)
        x = graphs.nodes + jnp.where(is_last, x, jax.nn.relu(x))
        return layers.dropout(x, self.dropout, dropout_key), (running,)

    def _attend(self, sent: Array, received: Array, bonds: Array, senders: Array, receivers: Array) -> Array:
        """Of one shard: N F, N F, E F, E, E → N F."""
        atoms = jnp.arange(len(sent))
        senders, receivers = jnp.concatenate([senders, atoms]), jnp.concatenate([receivers, atoms])
        message = sent[senders] + received[receivers] + jnp.pad(bonds, ((0, len(atoms)), (0, 0)))
        by_head = (-1, *self.attention.shape)
        hidden = jax.nn.leaky_relu(message, _NEGATIVE_SLOPE).reshape(by_head)
        scores = jnp.einsum("ehf,hf->eh", hidden, self.attention[...].astype(hidden.dtype))
        weights = jraph.segment_softmax(scores, receivers, len(atoms))
        values = sent[senders].reshape(by_head) * weights[..., None]
        return jraph.segment_sum(values, receivers, len(atoms)).reshape(sent.shape)
