"""kind=gin: the graph isomorphism network of MoleculeSTM and LLaMo; returns the nodes of every level."""

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import jraph
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Key

from data_pipeline.batch import BatchShape
from data_pipeline.vocabulary import ATOM_CARDINALITIES, BOND_CARDINALITIES, GraphVocabulary
from llamo_jax.config import Bool as Boolean
from llamo_jax.config import Float as Number
from llamo_jax.config import Int as Integer
from llamo_jax.config import setting, settings
from llamo_jax.models import layers, torch_names
from llamo_jax.models.flops import Flops, LinearFlops
from llamo_jax.models.graph_encoders.parts import FeatureEmbedding, run_layers
from llamo_jax.models.interfaces import GRAPH_ENCODERS, GraphEncoderConfig
from llamo_jax.models.torch_names import Rule

_ROOT = "molecule_node_model"
"""Where the encoder stands in MoleculeSTM's `GNN_graphpred`."""


@GRAPH_ENCODERS.register
@settings
class GINConfig(GraphEncoderConfig):
    """GIN over categorical node and edge features (paper, section 3.1)."""

    kind: Literal["gin"] = setting("graph isomorphism network", default="gin")
    atom_cardinalities: tuple[Integer, ...] = setting("values of each categorical node feature", min_length=1)
    bond_cardinalities: tuple[Integer, ...] = setting("values of each categorical edge feature", min_length=1)
    width: Integer = setting("F, of node representations", ge=1)
    num_layers: Integer = setting("L - 1", ge=1)
    dropout: Number = setting("after each layer, in training", ge=0, lt=1)
    residual: Boolean = setting("adds its input to each layer's output; not in the paper")
    batch_norm: Boolean = setting("normalises inside of each layer and after it, as in the paper")

    @classmethod
    def paper(cls, **changes: Any) -> "GINConfig":
        """The encoder of MoleculeSTM and LLaMo: 5 layers of 300 over OGB's molecular features.

        >>> from data_pipeline.batch import MoleculeGraphs
        >>> encoder = GINConfig.paper(width=16).build(rngs=nnx.Rngs(0))
        >>> encoder(MoleculeGraphs.from_smiles(["CCO"]).atoms).shape  # L S N F, padded
        (6, 1, 8, 16)
        """
        sizes = {"width": 300, "num_layers": 5, "dropout": 0.0, "residual": False, "batch_norm": True}
        features = {"atom_cardinalities": ATOM_CARDINALITIES, "bond_cardinalities": BOND_CARDINALITIES}
        return cls(**(features | sizes | changes))

    @classmethod
    def of_width(cls, width: int) -> "GINConfig":
        """See GraphEncoderConfig."""
        return cls.paper(width=width)

    @property
    def num_levels(self) -> int:
        """L: the atom embedding and the output of every layer."""
        return self.num_layers + 1

    @property
    def vocabulary(self) -> GraphVocabulary:
        """The features that the embedding tables are for."""
        return GraphVocabulary(self.atom_cardinalities, self.bond_cardinalities)

    def build(self, *, rngs: nnx.Rngs) -> "GINEncoder":
        """See GraphEncoderConfig."""
        return GINEncoder(self, rngs=rngs)

    def flops(self, shape: BatchShape, linear: LinearFlops) -> Flops:
        """See GraphEncoderConfig; nothing in front of the first trained layer needs a gradient."""
        _, atoms, _, _ = (shape.shards * size for size in shape.per_shard())
        total, trained = Flops(), linear.any_trained()
        for _ in range(self.num_layers):
            total += linear("layers/hidden", atoms, self.width, 2 * self.width, to_input=trained)
            total += linear("layers/out", atoms, 2 * self.width, self.width, to_input=trained)
        return total

    def torch_names(self) -> list[Rule]:
        """`GNN_graphpred` of MoleculeSTM and LLaMo, without the counters of its normalisations."""
        atoms = [f"{_ROOT}.atom_encoder.atom_embedding_list.{i}.weight" for i in range(len(self.atom_cardinalities))]
        rules = [torch_names.tables(atoms, "atom_embedding/table", self.atom_cardinalities)]
        for layer in range(self.num_layers):
            conv = f"{_ROOT}.gnns.{layer}"
            bonds = [f"{conv}.bond_encoder.bond_embedding_list.{i}.weight" for i in range(len(self.bond_cardinalities))]
            eps = Rule(
                (f"{conv}.eps",),
                ("eps",),
                lambda found: [np.asarray(found[0][...]).reshape(())],
                lambda found: [np.asarray(found[0][...]).reshape(1)],
            )
            found = [
                torch_names.tables(bonds, "bond_embedding/table", self.bond_cardinalities),
                eps,
                *torch_names.linear(f"{conv}.mlp.0", "hidden"),
                *torch_names.linear(f"{conv}.mlp.3", "out"),
            ]
            if self.batch_norm:
                found += torch_names.batch_norm(f"{conv}.mlp.1", "inner_norm")
                found += torch_names.batch_norm(f"{_ROOT}.batch_norms.{layer}", "outer_norm")
            rules += torch_names.in_layer(layer, found)
        return rules

    def adapted(self, tensors: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Without the prediction head and the counters; encoders from OGB before 1.3.6 get a row for chirality.

        They know four kinds of it (index 4, non-tetrahedral, did not exist); the row is zeros.
        """
        kept = {
            name: tensor
            for name, tensor in tensors.items()
            if not name.startswith("graph_pred_linear.") and not name.endswith(".num_batches_tracked")
        }
        chirality = f"{_ROOT}.atom_encoder.atom_embedding_list.1.weight"
        if chirality not in kept or kept[chirality].shape[0] != self.atom_cardinalities[1] - 1:
            return kept, []
        kept[chirality] = np.pad(np.asarray(kept[chirality][...]), ((0, 1), (0, 0)))
        return kept, ["the graph encoder knows 4 kinds of chirality; a zero row is added for the fifth (OGB 1.3.6)"]

    def torch_extras(self) -> Mapping[str, Any]:
        """Counters of batches: torch's BatchNorm wants them to exist, nothing reads them."""
        if not self.batch_norm:
            return {}
        norms = [name for i in range(self.num_layers) for name in (f"gnns.{i}.mlp.1", f"batch_norms.{i}")]
        return {f"{_ROOT}.{norm}.num_batches_tracked": np.zeros((), np.int64) for norm in norms}


class GINEncoder(nnx.Module):
    """GIN with edge features (Xu et al., 2019; Hu et al., 2020), as in MoleculeSTM and LLaMo.

    Level 0 is the sum of the atom feature embeddings; each layer computes
    `MLP((1 + eps) · x + sum over incoming edges of relu(x_sender + bond embedding))`, batch normalisation, and ReLU
    except after the last layer. The layers are stacked and scanned.
    """

    def __init__(self, config: GINConfig, *, rngs: nnx.Rngs):
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
        return run_layers(
            self.layers,
            self.config.num_layers,
            self.atom_embedding,
            atoms,
            batch_statistics=batch_statistics,
            dropout_key=dropout_key,
        )


class GINLayer(nnx.Module):
    """One GIN layer, created as a stack of `stack` and called on one slice of it."""

    def __init__(self, config: GINConfig, *, rngs: nnx.Rngs, stack: int):
        width = config.width
        axes = ("graph", None)
        self.bond_embedding = FeatureEmbedding(config.bond_cardinalities, width, rngs=rngs, stack=stack)
        self.eps = layers.parameter(layers.zeros, (), (), rngs=rngs, stack=stack)  # learned: "GIN-eps" of the paper
        self.hidden = layers.Linear(width, 2 * width, axes, rngs=rngs, stack=stack)
        self.out = layers.Linear(2 * width, width, axes, rngs=rngs, stack=stack)
        if config.batch_norm:
            self.inner_norm = layers.BatchNorm(2 * width, rngs=rngs, stack=stack)
            self.outer_norm = layers.BatchNorm(width, rngs=rngs, stack=stack)
        self.config = config

    def norms(self) -> tuple[layers.BatchNorm, ...]:
        """See parts.Layer."""
        return (self.inner_norm, self.outer_norm) if self.config.batch_norm else ()

    def __call__(
        self,
        graphs: jraph.GraphsTuple,
        mask: Bool[Array, "S N"],
        is_last: Bool[Array, ""],
        batch_statistics: bool,
        dropout_key: Key[Array, ""] | None,
    ) -> tuple[Float[Array, "S N F"], tuple]:
        """See parts.Layer."""
        # Every bond is two directed edges, and its embedding goes along both ways. jraph sums what arrives by default.
        network = jraph.GraphNetwork(
            update_edge_fn=lambda edges, sent, received, _: jax.nn.relu(sent + edges),
            update_node_fn=lambda nodes, sent, received, _: (1 + self.eps[...].astype(nodes.dtype)) * nodes + received,
        )
        x = jax.vmap(network)(graphs._replace(edges=self.bond_embedding(graphs.edges))).nodes
        running: tuple = ()
        x = self.hidden(x)
        if self.config.batch_norm:
            x, inner = self.inner_norm(x, mask, batch_statistics)
        x = self.out(jax.nn.relu(x))
        if self.config.batch_norm:
            x, outer = self.outer_norm(x, mask, batch_statistics)
            running = (inner, outer)
        x = jnp.where(is_last, x, jax.nn.relu(x))
        if self.config.residual:
            x = graphs.nodes + x
        return layers.dropout(x, self.config.dropout, dropout_key), running
