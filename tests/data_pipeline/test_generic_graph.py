"""Graphs that are not molecules, from networkx to a training step."""

import networkx
import numpy as np
import pytest

from data_pipeline.conversation import Message
from data_pipeline.errors import DataError
from data_pipeline.generic_graph import graph_arrays, graph_record
from data_pipeline.jobs import Settings, prepare_records
from data_pipeline.records import RecordReader, read_manifest
from data_pipeline.vocabulary import GraphVocabulary

VOCABULARY = GraphVocabulary(nodes=(300, 4), edges=(3,))
TURN = (Message("user", "How many nodes?"), Message("assistant", "As many as you see."))


def path_graph(size, directed=False):
    graph = networkx.path_graph(size, create_using=networkx.DiGraph if directed else networkx.Graph)
    graph.name = f"path{size}"
    networkx.set_node_attributes(graph, {node: (node + 250, node % 4) for node in graph}, "features")
    networkx.set_edge_attributes(graph, {edge: (edge[0] % 3,) for edge in graph.edges}, "features")
    return graph


def test_undirected_edges_go_both_ways():
    arrays = graph_arrays(path_graph(4), VOCABULARY)
    np.testing.assert_array_equal(arrays.atoms, [[250, 0], [251, 1], [252, 2], [253, 3]])
    np.testing.assert_array_equal(arrays.senders, [0, 1, 1, 2, 2, 3])
    np.testing.assert_array_equal(arrays.receivers, [1, 0, 2, 1, 3, 2])
    np.testing.assert_array_equal(arrays.bonds[:, 0], [0, 0, 1, 1, 2, 2])
    assert arrays.motifs.shape == (0, 73)
    directed = graph_arrays(path_graph(4, directed=True), VOCABULARY)
    np.testing.assert_array_equal(directed.senders, [0, 1, 2])
    looped = path_graph(2)
    looped.add_edge(1, 1, features=(2,))
    arrays = graph_arrays(looped, VOCABULARY)  # an edge from a node to itself is one direction
    np.testing.assert_array_equal(arrays.senders, [0, 1, 1])
    np.testing.assert_array_equal(arrays.receivers, [1, 0, 1])
    np.testing.assert_array_equal(arrays.bonds[:, 0], [0, 0, 2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda graph: graph.nodes[1].pop("features"), "node 1 has no attribute 'features'"),
        (lambda graph: graph.nodes[1].update(features=(1,)), "node 1 has 1 features, the vocabulary 2"),
        (lambda graph: graph.nodes[1].update(features=(300, 0)), "node 1: feature 300 is not in 0 … 299"),
        (lambda graph: graph.edges[0, 1].update(features=(-1,)), "edge 0 - 1: feature -1"),
        (lambda graph: graph.clear(), "without nodes"),
    ],
)
def test_what_the_vocabulary_does_not_know(change, message):
    graph = path_graph(3)
    change(graph)
    with pytest.raises(DataError, match=message):
        graph_arrays(graph, VOCABULARY)


def test_records_survive_the_disk(tmp_path):
    records = [graph_record([path_graph(size), path_graph(2)], TURN, VOCABULARY) for size in range(1, 30)]
    pairs = [("train" if number % 5 else "validation", record) for number, record in enumerate(records)]
    manifest = prepare_records(pairs, tmp_path / "paths", VOCABULARY, Settings(task="instruction"))
    assert manifest["splits"] == {"train": 23, "validation": 6}
    assert read_manifest(tmp_path / "paths")["vocabulary"] == [[300, 4], [3]]
    reader = RecordReader(tmp_path / "paths", "train")
    assert reader.vocabulary == VOCABULARY
    (found,) = reader.fetch([3])
    assert found.conversation == records[4].conversation
    for one, other in zip(found.graphs, records[4].graphs, strict=True):
        for array, expected in zip(one, other, strict=True):
            assert array.dtype == expected.dtype
            np.testing.assert_array_equal(array, expected)
    with pytest.raises(DataError, match="exists already"):
        prepare_records(pairs, tmp_path / "paths", VOCABULARY, Settings(task="instruction"))


def test_where_a_graph_stands_survives_the_disk(tmp_path):
    """LLaMo's <graph> in a question."""
    record = graph_record([path_graph(3)], (Message("user", "Look at it"), TURN[1]), VOCABULARY)
    record = record._replace(conversation=record.conversation._replace(graph_at=(0, 8)))
    prepare_records([("train", record)], tmp_path / "one", VOCABULARY, Settings(task="instruction"))
    assert RecordReader(tmp_path / "one", "train").fetch([0])[0].conversation == record.conversation
