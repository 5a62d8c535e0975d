"""The contract between data and model: one `Batch`, and how rows of encoded conversations become one.

Shape alphabet, used everywhere in this project:

    B rows            T tokens           S batch shards     G molecule slots per shard
    N atoms           E directed edges   M motifs (each per shard)
    L GNN levels (layers + 1)            Q graph tokens per molecule
    F graph width     D model width      V vocabulary
    K kv heads        R query heads per kv head             H head width
    J cache slots     W tokens of an answer                 Z beams of a prompt
    A attentions side by side            P queries of one of them
    C conversations (records)

Each shard owns rows `shard * B/S … (shard + 1) * B/S - 1` and one padded `jraph.GraphsTuple` with local indices. Its
last used slot is jraph's padding graph: it takes all padding nodes and edges, so at least one atom, one motif and one
slot of every shard stay free.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jraph
import numpy as np

from data_pipeline.vocabulary import MOLECULES, MOTIF_FEATURES

Array = Any  # numpy on the host, jax.Array on the device


class MoleculeGraphs(NamedTuple):
    """All molecules of a batch, as two graph sets with the same slots; every array has a leading axis S.

    atoms: nodes int32[S, N, 9], edges int32[S, E, 3], senders/receivers int32[S, E], n_node/n_edge int32[S, G].
    motifs: a GraphsTuple without edges: nodes float32[S, M, 73] of zeros and ones, n_node int32[S, G].
    """

    atoms: jraph.GraphsTuple
    motifs: jraph.GraphsTuple

    @classmethod
    def from_smiles(cls, smiles: Sequence[str]) -> "MoleculeGraphs":
        """The molecules in one shard (S = 1), in slots 0, 1, …, as device arrays; raises InvalidMoleculeError.

        >>> molecules = MoleculeGraphs.from_smiles(["CCO", "C"])
        >>> molecules.atoms.n_node[0, :2].tolist()
        [3, 1]
        """
        from data_pipeline.molecule import featurize  # RDKit takes a moment, and models need none

        return cls.from_graphs([GraphArrays(*featurize(each)[1:]) for each in smiles])

    @classmethod
    def from_graphs(cls, graphs: Sequence["GraphArrays"]) -> "MoleculeGraphs":
        """As `from_smiles`, of graphs that are arrays already."""
        import jax
        import jax.numpy as jnp

        sizes = [sum(len(graph[i]) for graph in graphs) for i in (0, 1, 4)]
        widths = (graphs[0].atoms.shape[1], graphs[0].bonds.shape[1]) if graphs else MOLECULES.widths
        shape = BatchShape(1, 1, RowSize(0, len(graphs), *sizes), *widths)
        return jax.tree.map(jnp.asarray, cls(*(_stack([part]) for part in _collate_graphs(list(graphs), shape))))


class Batch(NamedTuple):
    """One training or evaluation batch.

    tokens, targets: int32[B, T]; targets[t] is the token to predict at position t.
    target_mask: bool[B, T], True = counts in the loss.
    positions: int32[B, T], restart at 0 in each packed segment.
    segments: int32[B, T], 0 = padding, 1.. = packed conversation.
    molecule_slot: int32[B, T], which molecule of the row's shard this token shows; -1 = text.
    molecule_query: int32[B, T], which of its Q graph tokens; 0 for text.
    """

    tokens: Array
    targets: Array
    target_mask: Array
    positions: Array
    segments: Array
    molecule_slot: Array
    molecule_query: Array
    molecules: MoleculeGraphs


class GraphArrays(NamedTuple):
    """The arrays of one molecule that enter a batch: `Molecule` without its text; see data_pipeline.molecule."""

    atoms: np.ndarray  # uint8[N, 9]; other graphs: unsigned integers, as many columns as their vocabulary
    bonds: np.ndarray  # uint8[E, 3]; the same
    senders: np.ndarray  # int32[E]
    receivers: np.ndarray  # int32[E]
    motifs: np.ndarray  # uint8[M, 73]


class EncodedConversation(NamedTuple):
    """One conversation as tokens (n of them) and the molecules that it shows.

    tokens: int32[n], 0 at graph positions; is_target: bool[n], True where the token itself is to be predicted.
    molecule: int32[n], index into `graphs`, -1 = text; query: int32[n], which graph token of that molecule.
    """

    tokens: np.ndarray
    is_target: np.ndarray
    molecule: np.ndarray
    query: np.ndarray
    graphs: tuple[GraphArrays, ...]

    def size(self) -> "RowSize":
        """What this conversation takes of a row's budget; the last token is only ever a target."""
        return RowSize(
            tokens=len(self.tokens) - 1,
            molecules=len(self.graphs),
            atoms=sum(len(graph.atoms) for graph in self.graphs),
            edges=sum(len(graph.bonds) for graph in self.graphs),
            motifs=sum(len(graph.motifs) for graph in self.graphs),
        )


class RowSize(NamedTuple):
    """Sizes counted per row: the capacity of a row, or what a conversation needs of it."""

    tokens: int
    molecules: int
    atoms: int
    edges: int
    motifs: int


class BatchShape(NamedTuple):
    """The static shape of all batches of a run: `rows` rows (B) of capacity `row`, divided over `shards` (S).

    node_features, edge_features: how many categorical features graphs have; molecules unless said otherwise.
    """

    rows: int
    shards: int
    row: RowSize
    node_features: int = MOLECULES.widths[0]
    edge_features: int = MOLECULES.widths[1]

    def per_shard(self) -> tuple[int, int, int, int]:
        """(G, N, E, M) of one shard, with room for jraph's padding graph, rounded up to multiples of 8."""
        rows = self.rows // self.shards
        sizes = (self.row.molecules, self.row.atoms, self.row.edges, self.row.motifs)
        # + 1: jraph's padding graph needs a slot, an atom and a motif of its own; multiples of 8 suit vector units
        g, n, e, m = (-(-(rows * size + 1) // 8) * 8 for size in sizes)
        return g, n, e, m


class Shards(NamedTuple):
    """The batch shards that this process holds, in rising order; on a torus they are hardly ever neighbours."""

    numbers: tuple[int, ...]

    def of(self, shape: BatchShape) -> tuple[BatchShape, list[int]]:
        """The shape of this process' part of a batch, and its rows' positions in the whole, which rise, too."""
        per_shard = shape.rows // shape.shards
        positions = [row for shard in self.numbers for row in range(shard * per_shard, (shard + 1) * per_shard)]
        return shape._replace(rows=len(positions), shards=len(self.numbers)), positions


def collate(rows: Sequence[Sequence[EncodedConversation]], shape: BatchShape) -> Batch:
    """A batch of numpy arrays from rows of conversations that fit `shape.row`; missing rows become padding.

    Raises ValueError if there are more rows than `shape.rows`, or a row holds more than its capacity.
    """
    if len(rows) > shape.rows or shape.rows % shape.shards:
        raise ValueError(f"cannot put {len(rows)} rows into {shape.rows} rows on {shape.shards} shards")
    rows = [*rows, *([()] * (shape.rows - len(rows)))]
    grid = (shape.rows, shape.row.tokens)
    tokens, targets, positions, segments, query = (np.zeros(grid, np.int32) for _ in range(5))
    slot = np.full(grid, -1, np.int32)
    target_mask = np.zeros(grid, bool)
    rows_per_shard = shape.rows // shape.shards
    shards = []
    for first_row in range(0, shape.rows, rows_per_shard):
        graphs: list[GraphArrays] = []
        for index in range(first_row, first_row + rows_per_shard):
            start = 0
            for segment, conversation in enumerate(rows[index], start=1):
                length = len(conversation.tokens) - 1  # the last token is only ever a target
                end = start + length
                if end > shape.row.tokens:
                    raise ValueError(f"a row holds {shape.row.tokens} tokens and cannot take {end}")
                tokens[index, start:end] = conversation.tokens[:-1]
                targets[index, start:end] = conversation.tokens[1:]  # position t predicts token t + 1
                target_mask[index, start:end] = conversation.is_target[1:]
                positions[index, start:end] = np.arange(length)
                segments[index, start:end] = segment
                molecule = conversation.molecule[:-1]
                # a conversation counts its molecules from 0; slots count those of all rows of the shard
                slot[index, start:end] = np.where(molecule >= 0, molecule + len(graphs), -1)
                query[index, start:end] = conversation.query[:-1]
                graphs.extend(conversation.graphs)
                start = end
        shards.append(_collate_graphs(graphs, shape))
    molecules = MoleculeGraphs(*(_stack([shard[i] for shard in shards]) for i in range(2)))
    return Batch(tokens, targets, target_mask, positions, segments, slot, query, molecules)


def with_other_graphs(batch: Batch) -> Batch:
    """The same conversations, SMILES included, each with the graph of a molecule half of its shard away.

    batch: of numpy arrays. A shard with a single molecule keeps it.
    """
    shards = batch.molecules.atoms.n_node.shape[0]
    slot = batch.molecule_slot.reshape(shards, -1)
    count = slot.max(axis=1, keepdims=True) + 1
    other = (slot + np.maximum(1, count // 2)) % np.maximum(count, 1)
    return batch._replace(molecule_slot=np.where(slot < 0, -1, other).reshape(batch.molecule_slot.shape))


def _collate_graphs(graphs: list[GraphArrays], shape: BatchShape) -> tuple[jraph.GraphsTuple, jraph.GraphsTuple]:
    """One shard's atoms and motifs, padded; int32 throughout, where jraph's own batching would give int64."""
    num_slots, num_atoms, num_edges, num_motifs = shape.per_shard()
    n_node = _counts([len(graph.atoms) for graph in graphs], num_slots, num_atoms, "atoms")
    n_edge = _counts([len(graph.bonds) for graph in graphs], num_slots, num_edges, "edges")
    n_motif = _counts([len(graph.motifs) for graph in graphs], num_slots, num_motifs, "motifs")
    offsets = np.cumsum([0, *(len(graph.atoms) for graph in graphs)])  # of each graph's first atom, and of the padding
    # Padding edges connect padding atoms with themselves, one after the other: where all meet in one atom, a GPU adds
    # their messages one by one.
    senders = np.resize(np.arange(offsets[-1], num_atoms, dtype=np.int32), num_edges)
    receivers = senders.copy()
    nodes = np.zeros((num_atoms, shape.node_features), np.int32)
    edges = np.zeros((num_edges, shape.edge_features), np.int32)
    motifs = np.zeros((num_motifs, MOTIF_FEATURES), np.float32)
    edge = motif = 0
    for graph, offset in zip(graphs, offsets, strict=False):
        widths = (graph.atoms.shape[1], graph.bonds.shape[1])
        if widths != (shape.node_features, shape.edge_features):  # numpy would repeat a single feature
            raise ValueError(
                f"a graph has {widths} features of nodes and edges, where the batch has "
                f"{(shape.node_features, shape.edge_features)}"
            )
        nodes[offset : offset + len(graph.atoms)] = graph.atoms
        next_edge, next_motif = edge + len(graph.bonds), motif + len(graph.motifs)
        edges[edge:next_edge] = graph.bonds
        senders[edge:next_edge] = graph.senders + offset
        receivers[edge:next_edge] = graph.receivers + offset
        motifs[motif:next_motif] = graph.motifs
        edge, motif = next_edge, next_motif
    atom_graphs = jraph.GraphsTuple(
        nodes=nodes, edges=edges, senders=senders, receivers=receivers, n_node=n_node, n_edge=n_edge, globals=None
    )
    none = np.zeros(0, np.int32)
    motif_graphs = jraph.GraphsTuple(
        nodes=motifs, edges=None, senders=none, receivers=none, n_node=n_motif, n_edge=0 * n_motif, globals=None
    )
    return atom_graphs, motif_graphs


def _counts(sizes: list[int], slots: int, budget: int, what: str) -> np.ndarray:
    """int32[slots]: the real graphs' sizes, then the padding graph, which takes what is left of the budget."""
    padding = budget - sum(sizes)  # all that is left belongs to the padding graph, so that counts add up to the budget
    if len(sizes) >= slots or padding < 1:
        raise ValueError(
            f"{len(sizes)} molecules with {sum(sizes)} {what} exceed a shard's {slots} slots, {budget} {what}"
        )
    counts = np.zeros(slots, np.int32)
    counts[: len(sizes)] = sizes
    counts[len(sizes)] = padding
    return counts


def _stack(graphs: list[jraph.GraphsTuple]) -> jraph.GraphsTuple:
    columns = zip(*graphs, strict=True)
    return jraph.GraphsTuple(*(None if column[0] is None else np.stack(column) for column in columns))
