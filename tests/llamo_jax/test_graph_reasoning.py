"""Questions about graphs whose answers are known, and what the models are shown of them."""

import itertools
import json
import random
from collections import Counter

import networkx
import pytest

from llamo_jax.analysis import graph_reasoning
from llamo_jax.analysis.graph_reasoning import QUESTIONS, kind_of, questions, records_of, shown, social_records


def answers(graph, seed=0):
    return {name: answer for name, (_, answer) in questions(graph, random.Random(seed)).items()}


def test_graphs_with_known_answers():
    path = answers(networkx.path_graph(9))
    assert (path["connected"], path["cycle"], path["triangles"], path["bipartite"]) == ("Yes", "No", "0", "Yes")
    complete = answers(networkx.complete_graph(6))
    assert (complete["degree"], complete["path"], complete["triangles"]) == ("5", "1", "20")
    assert (complete["cycle"], complete["bipartite"]) == ("Yes", "No")
    pairs = networkx.Graph([(0, 1), (2, 3), (4, 5)])
    apart = {answers(pairs, seed)["path"] for seed in range(30)}
    assert apart == {"1", "There is none"}
    assert answers(pairs)["connected"] == "No"
    odd = answers(networkx.cycle_graph(7))
    assert (odd["cycle"], odd["bipartite"], odd["degree"]) == ("Yes", "No", "2")
    assert [kind_of(question) for question, _ in questions(pairs, random.Random(0)).values()] == list(QUESTIONS)


@pytest.fixture(scope="module")
def records():
    return list(records_of(400, seed=3))


def graph_of(record):
    """The graph again, from the arrays that the model sees."""
    (arrays,) = record.graphs
    numbers = arrays.atoms[:, 0].tolist()
    graph = networkx.Graph()
    graph.add_nodes_from(numbers)
    graph.add_edges_from((numbers[a], numbers[b]) for a, b in zip(arrays.senders, arrays.receivers, strict=True))
    return graph


def test_what_is_shown_is_what_is_asked_about(records):
    for _, record in records[:60]:
        graph = graph_of(record)
        (text,) = record.conversation.smiles
        written = networkx.Graph()
        for part in text.split():
            written.add_nodes_from(map(int, part.split("-")))
            if "-" in part:
                written.add_edge(*map(int, part.split("-")))
        assert networkx.utils.graphs_equal(graph, written)
        assert graph_reasoning.NODES[0] <= len(graph) <= graph_reasoning.NODES[1]
        messages = record.conversation.messages
        for question, answer in zip(messages[::2], messages[1::2], strict=True):
            said, words = answer.content.rstrip("."), question.content.rstrip("?").split()
            kind = kind_of(question.content)
            if kind == "degree":
                assert said == str(graph.degree[int(words[-1])])
            elif kind == "path":
                start, end = int(words[8]), int(words[-1])
                known = networkx.single_source_shortest_path_length(graph, start)
                assert said == str(known.get(end, "There is none"))
            elif kind == "cycle":
                # a forest has as many edges as nodes, less one a tree
                trees = len(graph) - networkx.number_connected_components(graph)
                assert said == ("Yes" if graph.number_of_edges() > trees else "No")


def test_yes_and_no_are_equally_frequent_and_no_graph_is_in_two_splits(records):
    counts = Counter()
    for _, record in records:
        messages = record.conversation.messages
        for question, answer in zip(messages[::2], messages[1::2], strict=True):
            counts[kind_of(question.content), answer.content] += 1
    for kind in ("connected", "cycle", "bipartite"):
        yes, no = counts[kind, "Yes."], counts[kind, "No."]
        assert min(yes, no) > 60
        assert abs(yes - no) <= 3  # one for each split
    numbers = Counter(number for _, record in records for number in record.graphs[0].atoms[:, 0].tolist())
    # any number may name a node: the last of a large graph is in no training graph otherwise
    assert len(numbers) == 80
    assert min(numbers.values()) > 0.5 * max(numbers.values())
    hashes = {}
    for split, record in records:
        hashes.setdefault(split, set()).add(graph_reasoning.shape_hash(graph_of(record)))
    assert set(hashes) == {"train", "validation", "test"}
    assert all(not a & b for a, b in itertools.combinations(hashes.values(), 2))


def test_social_graphs():
    found = social_records(seed=0)
    karate, les_miserables = (graph_of(found[name][0]) for name in ("karate", "les_miserables"))
    assert (len(karate), karate.number_of_edges()) == (34, 78)
    assert (len(les_miserables), les_miserables.number_of_edges()) == (77, 254)
    asked = {r.conversation.messages[0].content: r.conversation.messages[1].content for r in found["karate"]}
    assert asked["How many triangles are there?"] == "45."
    assert len(asked) == len(found["karate"]) == graph_reasoning.QUESTIONS_OF_A_SOCIAL_GRAPH


def test_a_node_without_edges_is_written_down():
    graph = networkx.Graph([(1, 0)])
    graph.add_node(7)
    record = shown(graph, [("Is the graph connected?", "No")])
    assert record.conversation.smiles == ("0-1 7",)
    assert record.conversation.messages[1].content == "No."


@pytest.mark.slowest
def test_the_program(embedded, tmp_path):
    settings = "--kinds none single_level --text shown --seeds 1 --steps 2 --graphs 60 --questions 8"
    cache = ["--cache_dir", str(embedded.parent)]
    graph_reasoning.main(["--output", str(tmp_path / "out"), *settings.split(), *cache])
    result = json.loads((tmp_path / "out" / "graph_reasoning.json").read_text())
    assert {cell["kind"]: cell["graph_tokens"] for cell in result["cells"]} == {"none": 0, "single_level": 28}
    for cell in result["cells"]:
        assert 0 <= cell["accuracy"] <= 1
        assert {"karate", "les_miserables"} <= set(cell)
    assert (tmp_path / "out" / "graph_reasoning.png").read_bytes().startswith(b"\x89PNG")
