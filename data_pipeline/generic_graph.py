"""Graphs that are not molecules (networks, residue graphs of proteins, …) as the same records.

    graph = networkx.Graph()
    graph.add_node("A", features=(3, 0)); graph.add_node("B", features=(7, 1)); graph.add_edge("A", "B", features=(2,))
    record = graph_record([graph], messages, GraphVocabulary(nodes=(20, 2), edges=(4,)))
    prepare_records([("train", record)], "data/proteins", vocabulary, Settings(task="instruction"))

The model's vocabulary is `config.model.graph_encoder.atom_cardinalities` and `.bond_cardinalities`; a run refuses
records of another one.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipeline.batch import GraphArrays
from data_pipeline.conversation import Conversation, Message
from data_pipeline.errors import DataError
from data_pipeline.records import Record, index_dtype
from data_pipeline.vocabulary import MOTIF_FEATURES, GraphVocabulary


def graph_arrays(graph: Any, vocabulary: GraphVocabulary, *, feature: str = "features") -> GraphArrays:
    """A networkx graph as arrays: nodes in its order; undirected edges in both directions, directed ones in their own.

    Every node and edge carries the attribute `feature`, one index for each feature of the vocabulary. Without motifs
    (M = 0) the model shows its learned motif queries. Raises DataError, naming the node or edge, if a feature is
    missing or outside the vocabulary, or the graph has no nodes.
    """
    position = {node: index for index, node in enumerate(graph.nodes)}
    if not position:
        raise DataError("a graph without nodes cannot be shown")
    nodes = [_features(data, feature, vocabulary.nodes, f"node {node!r}") for node, data in graph.nodes(data=True)]
    senders, receivers, edges = [], [], []
    for begin, end, data in graph.edges(data=True):
        features = _features(data, feature, vocabulary.edges, f"edge {begin!r} - {end!r}")
        ends = [(position[begin], position[end])]
        if not graph.is_directed() and begin != end:
            ends.append(ends[0][::-1])
        for sender, receiver in ends:
            senders.append(sender)
            receivers.append(receiver)
            edges.append(features)
    return GraphArrays(
        np.array(nodes, index_dtype(vocabulary.nodes)).reshape(-1, len(vocabulary.nodes)),
        np.array(edges, index_dtype(vocabulary.edges)).reshape(-1, len(vocabulary.edges)),
        np.array(senders, np.int32),
        np.array(receivers, np.int32),
        np.zeros((0, MOTIF_FEATURES), np.uint8),
    )


def graph_record(graphs: Sequence[Any], messages: Sequence[Message], vocabulary: GraphVocabulary) -> Record:
    """A conversation about networkx graphs; the text that stands before each is its name (`graph.name`)."""
    names = tuple(str(graph.name) for graph in graphs)
    return Record(Conversation(names, tuple(messages)), tuple(graph_arrays(graph, vocabulary) for graph in graphs))


def _features(data: dict, name: str, cardinalities: Sequence[int], what: str) -> tuple[int, ...]:
    if name not in data:
        raise DataError(f"{what} has no attribute {name!r}")
    values = tuple(data[name])
    if len(values) != len(cardinalities):
        raise DataError(f"{what} has {len(values)} features, the vocabulary {len(cardinalities)}")
    for value, size in zip(values, cardinalities, strict=True):
        if not 0 <= value < size:
            raise DataError(f"{what}: feature {value} is not in 0 … {size - 1}")
    return values
