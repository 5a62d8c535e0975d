"""Molecules as vectors: what the projector gives the language model, and what the encoder's levels hold."""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from data_pipeline.batch import BatchShape, EncodedConversation, GraphArrays, MoleculeGraphs, RowSize, collate
from data_pipeline.vocabulary import GraphVocabulary
from llamo_jax import sharding
from llamo_jax.generation.decode import replicated
from llamo_jax.generation.prompts import EDGES_PER_ATOM, bucket
from llamo_jax.models.definition import ModelDefinition
from llamo_jax.models.projectors.parts import slot_ids
from llamo_jax.parameters import Arrays

MOLECULES = 64
"""That go through the graph side at a time, per batch shard."""

ATOMS = MOLECULES * 512
"""And their atoms, padding included: of larger molecules, fewer go at a time."""


class Embedded(NamedTuple):
    """One molecule. graph_tokens: float32[Q, D]; levels: float32[L, F], the mean of each level over its atoms."""

    graph_tokens: np.ndarray
    levels: np.ndarray


def embed_graphs(
    definition: ModelDefinition, arrays: Arrays, mesh: jax.sharding.Mesh, graphs: Sequence[GraphArrays]
) -> Iterator[tuple[int, Embedded]]:
    """(index, vectors) of every molecule, as they are finished: neighbours in size share a batch."""
    shards = sharding.batch_shards(mesh)
    vocabulary = definition.config.graph_encoder.vocabulary
    order = sorted(range(len(graphs)), key=lambda index: _atoms(graphs[index]))
    start = 0
    while start < len(order):
        slots = MOLECULES
        while slots > 1 and slots * _atoms(graphs[order[start : start + slots * shards][-1]]) > ATOMS:
            slots //= 2
        chosen = order[start : start + slots * shards]
        start += len(chosen)
        batch = _collated([graphs[index] for index in chosen], slots * shards, shards, vocabulary)
        batch = sharding.put_global(batch, mesh)
        with jax.set_mesh(mesh):
            tokens, levels = jax.device_get(_embed(definition, arrays, batch))
        for place, index in enumerate(chosen):
            shard, slot = divmod(place, slots)  # a molecule is alone in its row, and rows of a shard lie together
            yield index, Embedded(tokens[shard, slot], levels[:, shard, slot])


def _atoms(graph: GraphArrays) -> int:
    """The room that a molecule takes in its row."""
    return bucket(max(len(graph.atoms), -(-len(graph.bonds) // EDGES_PER_ATOM), len(graph.motifs)), 16)


def _collated(graphs: Sequence[GraphArrays], rows: int, shards: int, vocabulary: GraphVocabulary) -> MoleculeGraphs:
    """One molecule a row; sizes from a short list, so that few programs are compiled."""
    atoms = max(map(_atoms, graphs))
    nothing = np.zeros(2, np.int32)
    conversations = [
        EncodedConversation(nothing, nothing.astype(bool), nothing - 1, nothing, (graph,)) for graph in graphs
    ]
    row = RowSize(1, 1, atoms, EDGES_PER_ATOM * atoms, atoms)
    shape = BatchShape(rows, shards, row, *vocabulary.widths)
    return collate([[conversation] for conversation in conversations], shape).molecules


@functools.partial(jax.jit, static_argnames="definition")
def _embed(
    definition: ModelDefinition, arrays: Arrays, molecules: MoleculeGraphs
) -> tuple[Float[jax.Array, "S G Q D"], Float[jax.Array, "L S G F"]]:
    """Graph tokens, and means of levels over the atoms of each slot; of slots without a molecule they mean nothing."""
    tokens, out = definition.merge(arrays).encode_graphs(molecules)
    slots = molecules.atoms.n_node.shape[1]

    def mean(nodes: jax.Array, ids: jax.Array) -> jax.Array:
        sums = jax.ops.segment_sum(nodes, ids, slots)
        return sums / jnp.maximum(1, jax.ops.segment_sum(jnp.ones(len(ids)), ids, slots))[:, None]

    means = jax.vmap(jax.vmap(mean), in_axes=(0, None))(out["levels"], slot_ids(molecules.atoms))
    return replicated((tokens.astype(jnp.float32), means))
