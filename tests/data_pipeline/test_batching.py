import jax
import jraph
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.batch import BatchShape, RowSize, collate
from data_pipeline.loader import PackedDataset
from data_pipeline.packing import pack_rows, plan_epoch
from data_pipeline.prompt import PromptError, truncate
from data_pipeline.records import DataError
from tests import helpers

CAPACITY = RowSize(tokens=100, molecules=4, atoms=60, edges=130, motifs=20)
SIZES = st.lists(
    st.tuples(st.integers(1, 100), st.integers(0, 4), st.integers(0, 60), st.integers(0, 130), st.integers(0, 20)),
    min_size=1,
    max_size=200,
)


@settings(max_examples=100, deadline=None)
@given(SIZES, st.integers(0, 10))
def test_packing_keeps_everything_and_overfills_nothing(sizes, epoch):
    sizes = np.array(sizes)
    rows = plan_epoch(sizes, CAPACITY, seed=1, epoch=epoch)
    assert sorted(index for row in rows for index in row) == list(range(len(sizes)))
    assert all(np.all(sizes[row].sum(axis=0) <= CAPACITY) for row in rows)
    assert rows == plan_epoch(sizes, CAPACITY, seed=1, epoch=epoch)


def test_packing_fills_rows():
    sizes = np.zeros((2000, 5), int)
    sizes[:, 0] = np.random.default_rng(0).integers(10, 60, 2000)
    rows = pack_rows(sizes, CAPACITY, np.arange(2000))
    assert sizes[:, 0].sum() / (len(rows) * CAPACITY.tokens) > 0.97


def test_epochs_differ():
    sizes = np.full((50, 5), 1)
    assert plan_epoch(sizes, CAPACITY, 0, 0) != plan_epoch(sizes, CAPACITY, 0, 1)
    assert plan_epoch(sizes, CAPACITY, 0, 0) != plan_epoch(sizes, CAPACITY, 1, 0)


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_collate_places_everything(shards):
    batch = helpers.host_batch(shards)
    atoms, motifs = batch.molecules
    rows_per_shard = 8 // shards
    for index, row in enumerate(helpers.rows()):
        start, shard = 0, index // rows_per_shard
        for number, conversation in enumerate(row, start=1):
            length = len(conversation.tokens) - 1
            here = np.s_[index, start : start + length]
            np.testing.assert_array_equal(batch.tokens[here], conversation.tokens[:-1])
            np.testing.assert_array_equal(batch.targets[here], conversation.tokens[1:])
            np.testing.assert_array_equal(batch.target_mask[here], conversation.is_target[1:])
            np.testing.assert_array_equal(batch.positions[here], np.arange(length))
            assert set(batch.segments[here]) == {number}
            for molecule, graph in enumerate(conversation.graphs):
                shown = conversation.molecule[:-1] == molecule
                (slot,) = set(batch.molecule_slot[here][shown])
                np.testing.assert_array_equal(batch.molecule_query[here][shown], np.arange(28))
                _assert_graph(atoms, motifs, shard, slot, graph)
            start += length
        assert np.all(batch.segments[index, start:] == 0)
        assert not batch.target_mask[index, start:].any()
    # exactly the real nodes are real for jraph
    real = sum(len(graph.atoms) for row in helpers.rows() for c in row for graph in c.graphs)
    masks = [jraph.get_node_padding_mask(jax.tree.map(lambda x, s=s: x[s], atoms)) for s in range(shards)]
    assert sum(int(mask.sum()) for mask in masks) == real
    assert all(leaf.dtype in (np.int32, np.bool_, np.float32) for leaf in jax.tree.leaves(batch))


def _assert_graph(atoms, motifs, shard, slot, graph):
    first = atoms.n_node[shard, :slot].sum()
    first_edge, first_motif = atoms.n_edge[shard, :slot].sum(), motifs.n_node[shard, :slot].sum()
    assert atoms.n_node[shard, slot] == len(graph.atoms)
    assert motifs.n_node[shard, slot] == len(graph.motifs)
    np.testing.assert_array_equal(atoms.nodes[shard, first : first + len(graph.atoms)], graph.atoms)
    edges = np.s_[shard, first_edge : first_edge + len(graph.bonds)]
    np.testing.assert_array_equal(atoms.edges[edges], graph.bonds)
    np.testing.assert_array_equal(atoms.senders[edges] - first, graph.senders)
    np.testing.assert_array_equal(atoms.receivers[edges] - first, graph.receivers)
    np.testing.assert_array_equal(motifs.nodes[shard, first_motif : first_motif + len(graph.motifs)], graph.motifs)


def test_collate_refuses_what_does_not_fit():
    row = RowSize(tokens=96, molecules=1, atoms=6, edges=8, motifs=2)
    with pytest.raises(ValueError, match="exceed a shard's"):
        collate([[helpers.conversation((helpers.SMILES[0],), 9, 0)]], BatchShape(1, 1, row))
    with pytest.raises(ValueError, match="cannot take"):
        collate([[helpers.conversation((), 200, 0)]], BatchShape(1, 1, CAPACITY))


def test_truncation_never_cuts_graphs_and_leaves_a_target():
    conversation = helpers.conversation(("O",), 30, 0)  # graph tokens at 2..29, targets at 48..57
    short = truncate(conversation, 50)
    assert len(short.tokens) == 51
    assert short.is_target.sum() == 3
    with pytest.raises(PromptError, match="no answer"):
        truncate(conversation, 40)
    with pytest.raises(PromptError, match="graph tokens"):
        truncate(conversation, 20)


class _Encoder:
    """Stands in for the tokenizer: records are encoded already."""

    def encode(self, examples):
        return [graphs for _, graphs in examples]


class _Encoded:
    def __init__(self, conversation):
        self.conversation, self.graphs = None, conversation


@pytest.fixture
def dataset():
    encoded = [_Encoded(helpers.conversation((smiles,), 9 + 3 * i, i)) for i, smiles in enumerate(helpers.SMILES * 5)]
    too_large = _Encoded(helpers.conversation(("CCCCCCCCCCCCCCCCCCCCCCCCCC",), 12, 99))
    shape = BatchShape(4, 2, RowSize(tokens=160, molecules=3, atoms=20, edges=40, motifs=9))
    return PackedDataset([*encoded, too_large], _Encoder(), shape)


def test_order_depends_on_seed_and_step_alone(dataset):
    first = [batch for batch, _ in zip(dataset.training_batches(seed=3), range(12), strict=False)]
    resumed = next(dataset.training_batches(seed=3, first_step=9))
    jax.tree.map(np.testing.assert_array_equal, first[9], resumed)
    other = next(dataset.training_batches(seed=4))
    assert not np.array_equal(other.tokens, first[0].tokens)


def test_evaluation_sees_every_conversation_once(dataset):
    assert dataset.skipped == {"more atoms than a row's 20": 1}
    targets = sum(int(batch.target_mask.sum()) for batch in dataset.evaluation_batches())
    assert targets == sum(int(c.is_target[1:].sum()) for c in dataset.conversations)


def test_nothing_fits():
    shape = BatchShape(4, 2, RowSize(tokens=30, molecules=3, atoms=20, edges=40, motifs=9))
    with pytest.raises(DataError, match="no conversation fits"):
        PackedDataset([_Encoded(helpers.conversation(("O",), 30, 0))], _Encoder(), shape)
