import itertools

import jax
import jraph
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipeline import loader as loader_module
from data_pipeline.batch import BatchShape, RowSize, Shards, collate
from data_pipeline.errors import DataError, PromptError
from data_pipeline.loader import BatchLoader, PackedDataset
from data_pipeline.packing import MIXTURE_BLOCK, WINDOW, pack_rows, source_at
from data_pipeline.prompt import truncate
from tests import helpers

CAPACITY = RowSize(tokens=100, molecules=4, atoms=60, edges=130, motifs=20)
SIZES = st.lists(
    st.tuples(st.integers(1, 100), st.integers(0, 4), st.integers(0, 60), st.integers(0, 130), st.integers(0, 20)),
    min_size=1,
    max_size=200,
)


@settings(max_examples=100, deadline=None)
@given(SIZES, st.integers(0, 10))
def test_packing_keeps_everything_and_overfills_nothing(sizes, seed):
    sizes = np.array(sizes)
    order = np.random.default_rng(seed).permutation(len(sizes))
    rows = pack_rows(sizes, CAPACITY, order)
    assert sorted(rows.order) == list(range(len(sizes)))
    for index in range(len(rows)):
        assert len(rows.row(index)) > 0
        assert np.all(sizes[rows.row(index)].sum(axis=0) <= CAPACITY)


def test_packing_fills_rows():
    sizes = np.zeros((5000, 5), int)
    sizes[:, 0] = np.random.default_rng(0).integers(10, 60, 5000)
    rows = pack_rows(sizes, CAPACITY, np.arange(5000))
    assert sizes[:, 0].sum() / (len(rows) * CAPACITY.tokens) > 0.97


@pytest.mark.parametrize("column", range(5))
def test_rows_are_filled_to_the_last_place(column):
    """Conversations that exactly fill a row share it; one more of anything does not fit."""
    sizes = np.ones((4, 5), int)
    sizes[:, 0] = 10
    sizes[:, column] = [CAPACITY[column] - 3 * sizes[1, column], *sizes[1:, column]]
    assert sizes.sum(axis=0)[column] == CAPACITY[column]
    if column != 1:  # four molecules fill a row of four by themselves
        sizes[:, 1] = 1
    assert len(pack_rows(sizes, CAPACITY, np.arange(4))) == 1
    sizes[0, column] += 1
    assert len(pack_rows(sizes, CAPACITY, np.arange(4))) == 2


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=6), st.integers(0, 3))
@example([47.0, 0.03125, 0.015625], 0)  # two sources of less than one in a block, which get one
@example([0.09, 49.955, 49.955], 0)  # what was rounded up is not given what is left as well
def test_mixtures_have_their_shares_and_skip_nothing(weights, block):
    start = block * MIXTURE_BLOCK
    places = [source_at(tuple(weights), 5, position) for position in range(start + MIXTURE_BLOCK)]
    for source, weight in enumerate(weights):
        positions = [position for found, position in places if found == source]
        assert positions == sorted(positions) or len(positions) == len(set(positions))
        assert sorted(positions) == list(range(len(positions)))
        share = len(positions) / len(places)
        assert share == pytest.approx(weight / sum(weights), abs=len(weights) / MIXTURE_BLOCK)
        if weight / sum(weights) < 1 / MIXTURE_BLOCK:
            assert len(positions) == block + 1


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


def test_padding_touches_no_molecule():
    """Padding edges connect padding atoms: a message into a molecule would change it."""
    atoms, motifs = helpers.host_batch(2).molecules
    for shard in range(2):
        used = int(np.flatnonzero(atoms.n_node[shard])[-1])  # the last used slot is the padding graph
        real_atoms, real_edges = atoms.n_node[shard, :used].sum(), atoms.n_edge[shard, :used].sum()
        assert real_edges < atoms.senders.shape[1]
        for ends in (atoms.senders[shard], atoms.receivers[shard]):
            assert ends[:real_edges].max() < real_atoms
            assert ends[real_edges:].min() >= real_atoms
            # no padding atom has many more than others: what meets in one place is added one by one on a GPU
            meeting = np.bincount(ends[real_edges:] - real_atoms, minlength=atoms.n_node[shard, used])
            assert meeting.max() - meeting.min() <= 1
        assert atoms.n_node[shard].sum() == atoms.nodes.shape[1]
        assert motifs.n_node[shard].sum() == motifs.nodes.shape[1]


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


ROW = RowSize(tokens=160, molecules=3, atoms=20, edges=40, motifs=9)
SHAPE = BatchShape(4, 2, ROW)


def _dataset(first_length=9):
    encoded = [helpers.conversation((smiles,), first_length + 3 * i, i) for i, smiles in enumerate(helpers.SMILES * 5)]
    return PackedDataset(helpers.EncodedSource([*encoded, helpers.conversation(("C" * 26,), 12, 99)]), ROW)


@pytest.fixture
def dataset():
    return _dataset()


@pytest.fixture
def loader(dataset):
    return BatchLoader([dataset], [1.0], SHAPE)


def test_order_depends_on_seed_and_step_alone(loader):
    first = [batch for batch, _ in zip(loader.training_batches(seed=3), range(12), strict=False)]
    resumed = next(loader.training_batches(seed=3, first_step=9))
    jax.tree.map(np.testing.assert_array_equal, first[9], resumed)
    other = next(loader.training_batches(seed=4))
    assert not np.array_equal(other.tokens, first[0].tokens)
    assert all(np.all(batch.segments[:, 0] == 1) for batch in first)  # no row is padding alone


def test_batches_take_row_after_row(dataset, loader):
    """The batch of step 2 holds rows 8 to 11 of the endless order, and its tokens are theirs."""
    rows = [dataset.training_row(3, position) for position in range(8, 12)]
    assert loader.training_rows(3, 2) == [(0, row.tolist()) for row in rows]
    np.testing.assert_array_equal(
        next(loader.training_batches(seed=3, first_step=2)).tokens, collate(dataset.load(rows), SHAPE).tokens
    )


def test_every_epoch_has_every_conversation_once_in_other_rows(dataset):
    lengths = [len(dataset.epoch_rows(3, epoch)) for epoch in range(4)]
    assert lengths == [dataset.rows_per_epoch(3)] * 4
    rows = [dataset.training_row(3, position) for position in range(sum(lengths))]
    starts = np.cumsum([0, *lengths])
    epochs = [rows[start:end] for start, end in itertools.pairwise(starts)]
    for epoch in epochs:
        assert sorted(np.concatenate(epoch)) == list(range(len(dataset)))
    found = [[row.tolist() for row in epoch] for epoch in epochs]
    assert found[0] != found[1] != found[2]
    # any position first, in a data set that has planned nothing yet
    np.testing.assert_array_equal(_dataset().training_row(3, starts[3] + 2), epochs[3][2])


def test_any_epoch_needs_two_plans_at_most(monkeypatch):
    """That of the first one, which tells how long all are, and its own; the next one is made ahead, once."""
    dataset = _dataset()
    planned = []
    pack = loader_module.pack_rows
    monkeypatch.setattr(loader_module, "pack_rows", lambda *arguments: planned.append(1) or pack(*arguments))
    count = dataset.rows_per_epoch(3)
    for epoch in (1000, 1000, 0):
        dataset.training_row(3, epoch * count)
    assert len(planned) == 3  # the first epoch's length, and both plans
    for index in range(count):
        dataset.training_row(3, 7 * count + index)
    assert dataset._epochs[3, 8].result(600) is dataset.epoch_rows(3, 8)
    assert len(planned) == 5


def test_all_epochs_are_equally_long():
    """Though packing needs some rows more or less: of 1,500, one in a thousand is there for those that need more."""

    class Lengths:
        def __init__(self, count):
            rng = np.random.default_rng(0)
            tokens = rng.integers(30, 70, count)
            self.lengths = np.stack([tokens + 1, np.zeros_like(tokens), np.ones_like(tokens)], axis=1)
            self.sizes = rng.integers(0, 3, (count, 4))

    dataset = PackedDataset(Lengths(6000), ROW._replace(molecules=9, atoms=12, edges=12))
    needed = {len(dataset._packed(np.random.default_rng((3, epoch)))) for epoch in range(5)}
    assert len(needed) > 1
    for epoch in range(5):
        rows = dataset.epoch_rows(3, epoch)
        assert len(rows) == dataset.rows_per_epoch(3) > 1000
        assert sorted(rows.order) == list(range(6000))


@settings(max_examples=50, deadline=None)
@given(SIZES, st.integers(0, 40))
def test_rows_are_cut_and_shuffled_without_loss(sizes, more):
    sizes = np.array(sizes)
    rows = pack_rows(sizes, CAPACITY, np.arange(len(sizes)))
    cut = rows.split(len(rows) + more)
    assert len(cut) == len(rows) + more
    np.testing.assert_array_equal(cut.order, rows.order)
    assert (np.diff(cut.starts) == 0).sum() == max(0, len(cut) - len(sizes))  # empty ones only if they must be
    shuffled = cut.shuffled(np.random.default_rng(0))
    found, expected = ([tuple(each.row(i)) for i in range(len(each))] for each in (shuffled, cut))
    assert sorted(found) == sorted(expected)
    assert len(cut) < 8 or found != expected


def test_windows_are_packed_as_one_by_one():
    """Many windows at a time, budgets of every kind tight: each conversation in the first row that has room."""
    rng = np.random.default_rng(0)
    count = 2 * WINDOW + 300
    sizes = np.stack([rng.integers(1, limit // 2 + 1, count) for limit in CAPACITY], axis=1)
    order = rng.permutation(count)
    rows = pack_rows(sizes, CAPACITY, order)
    expected = []
    for start in range(0, count, WINDOW):
        window = order[start : start + WINDOW]
        opened: list[list[int]] = []
        free: list[np.ndarray] = []
        for index in window[np.argsort(-sizes[window, 0], kind="stable")]:
            place = next((i for i, room in enumerate(free) if (room >= sizes[index]).all()), len(free))
            if place == len(free):
                opened.append([])
                free.append(np.array(CAPACITY))
            opened[place].append(index)
            free[place] -= sizes[index]
        expected += opened
    assert [rows.row(index).tolist() for index in range(len(rows))] == expected


def test_every_process_builds_its_own_part_of_the_same_batch(dataset):
    shape = BatchShape(8, 4, ROW)
    loader = BatchLoader([dataset, _dataset(12)], [3.0, 1.0], shape)
    for batches in (lambda shards: loader.training_batches(1, 5, shards), loader.evaluation_batches):
        whole = next(batches(None))
        for hosts in (1, 2, 4):
            size = 4 // hosts
            parts = [next(batches(Shards(tuple(range(host * size, (host + 1) * size))))) for host in range(hosts)]
            joined = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
            jax.tree.map(np.testing.assert_array_equal, joined, whole)


def test_evaluation_sees_every_conversation_once(dataset, loader):
    assert dataset.skipped == {"more atoms than a row's 20 (config.data.atoms_per_row)": 1}
    targets = sum(int(batch.target_mask.sum()) for batch in loader.evaluation_batches())
    rows = dataset.evaluation_rows()
    kept = [c for row in range(len(rows)) for c in dataset.load([rows.row(row)])[0]]
    assert len(kept) == len(dataset) == 30
    assert targets == sum(int(c.is_target[1:].sum()) for c in kept)


def test_nothing_fits():
    with pytest.raises(DataError, match="no conversation fits"):
        PackedDataset(helpers.EncodedSource([helpers.conversation(("O",), 30, 0)]), ROW._replace(tokens=30))


def test_the_last_place_of_a_row_predicts():
    """A conversation whose only target is the last token that a row has room for is kept, and learned from."""

    class One:
        def __init__(self, conversation):
            self._conversation = conversation
            targets = np.flatnonzero(conversation.is_target[1:])
            shown = np.flatnonzero(conversation.molecule >= 0)
            self.lengths = np.array([[len(conversation.tokens), shown[-1] + 1, targets[0] + 1]])
            self.sizes = np.array([conversation.size()[1:]])

        def load(self, indices):
            return [self._conversation for _ in indices]

    conversation = helpers.conversation((helpers.SMILES[0],), 20, 0)
    count = len(conversation.tokens)
    last = conversation._replace(is_target=np.arange(count) == count - 1)
    exact = helpers.ROW._replace(tokens=count - 1)
    dataset = PackedDataset(One(last), exact)
    ((row,),) = [dataset.load([dataset.evaluation_rows().row(0)])]
    batch = collate([row], BatchShape(1, 1, exact))
    assert np.flatnonzero(batch.target_mask[0]).tolist() == [count - 2]
    assert batch.targets[0, count - 2] == conversation.tokens[-1]
    with pytest.raises(DataError, match="no answer within the row"):
        PackedDataset(One(last), exact._replace(tokens=count - 2))


def test_a_mixture_needs_weights(dataset):
    with pytest.raises(DataError, match="positive weight"):
        BatchLoader([dataset], [0.0], SHAPE)


def test_a_mixture_has_its_weights(dataset):
    loader = BatchLoader([dataset, _dataset(12)], [3, 1], SHAPE)
    sources = [source for step in range(250) for source, _ in loader.training_rows(seed=1, step=step)]
    assert [sources.count(0), sources.count(1)] == [750, 250]


def test_only_small_splits_stay_in_memory(monkeypatch):
    """Else a large data set fills the host's memory in its first epoch."""
    from data_pipeline import loader

    class Encoder:
        asked = 0

        def encode(self, records):
            Encoder.asked += len(records)
            return records

    class Reader(list):
        def fetch(self, indices):
            return [self[index] for index in indices]

    for most, asked in ((4, 4), (3, 8)):
        monkeypatch.setattr(loader, "KEPT_IN_MEMORY", most)
        Encoder.asked = 0
        records = object.__new__(loader.EncodedRecords)
        records.__dict__.update(_reader=Reader("abcd"), _encoder=Encoder(), _kept={})
        assert records.load(np.arange(4)) == records.load(np.arange(4)) == list("abcd")
        assert Encoder.asked == asked
        assert len(records._kept) == (4 if most == 4 else 0)
