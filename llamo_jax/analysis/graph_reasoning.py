"""Does the projector help where graphs are no molecules? Questions about random graphs, and two social ones.

    python -m llamo_jax.analysis.graph_reasoning --output DIR --dry_run
    python -m llamo_jax.analysis.graph_reasoning --output DIR --kinds KIND KIND …

Random graphs of 8 to 60 nodes (Erdős–Rényi, Barabási–Albert, trees, cycles, communities; networkx, extra [analysis]),
each with questions about connectivity, cycles, a node's degree, a shortest path, triangles and bipartiteness; yes and
no are equally frequent answers. A node's feature is its number, which questions name. Prompts write the edges down, or
hide them: `none` with edges is a language model that reads a graph as text, without them it can only guess. Trained as
in llamo_jax.analysis.ablation, cell by cell, with as many answers in every step, whatever prompts show; measured on
graphs that no split shares (by their Weisfeiler–Lehman hash), and on Zachary's karate club and the characters of Les
Misérables. DIR gets data/, cells/, graph_reasoning.json, .md and .png.
"""

import argparse
import functools
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.command_line import program
from data_pipeline.conversation import Message
from data_pipeline.embedded import prepare_embedded
from data_pipeline.generic_graph import graph_record
from data_pipeline.jobs import Settings, prepare_records
from data_pipeline.logs import quiet_libraries
from data_pipeline.records import Record, read_records
from data_pipeline.vocabulary import GraphVocabulary
from llamo_jax import runs
from llamo_jax.analysis import cells, pages
from llamo_jax.config import ConfigError, DecodingConfig
from llamo_jax.evaluation import intervals
from llamo_jax.loading import load_generator

NODES = (8, 60)
"""Fewest and most nodes of a random graph."""

VOCABULARY = GraphVocabulary(nodes=(80,), edges=(1,))
"""A node's number; Les Misérables has 77."""

GRAPHS_VERSION = 2
"""Raised when the same number of graphs become others."""

SPLITS = {"train": 0.8, "validation": 0.1, "test": 0.1}
SOCIAL = {"karate": "Zachary's karate club", "les_miserables": "Les Misérables"}
NEW_TOKENS = 8
QUESTIONS_OF_A_SOCIAL_GRAPH = 60

QUESTIONS = ("connected", "cycle", "degree", "path", "triangles", "bipartite")
METRICS = {"accuracy": "accuracy", **{name: name for name in QUESTIONS}, **SOCIAL}
"""Name → heading of what the tables show: shares of right answers, over all questions and by what is asked."""


def random_graph(rng: random.Random) -> Any:
    """A networkx graph of one of the families, its nodes numbered at random."""
    networkx = _networkx()
    size, seed = rng.randint(*NODES), rng.randrange(2**31)
    family = rng.choice(("erdos_renyi", "barabasi_albert", "tree", "cycle", "communities"))
    if family == "erdos_renyi":
        graph = networkx.gnp_random_graph(size, rng.uniform(0.7, 2.5) / size, seed=seed)
    elif family == "barabasi_albert":
        graph = networkx.barabasi_albert_graph(size, rng.choice((1, 2)), seed=seed)
    elif family == "tree":
        graph = networkx.random_labeled_tree(size, seed=seed)
    elif family == "cycle":
        # sometimes two: a graph of cycles need not be connected
        first = rng.randint(3, size - 3)
        graph = networkx.disjoint_union(networkx.cycle_graph(first), networkx.cycle_graph(size - first))
        if rng.random() < 0.5:
            graph.add_edge(0, first)
    else:
        groups = rng.randint(2, 4)
        members = max(2, size // groups)
        # four neighbours within the community: a list of edges stays about as long as those of the other families
        graph = networkx.planted_partition_graph(groups, members, min(0.4, 4 / members), 0.02, seed=seed)
    return numbered(graph, rng)


def numbered(graph: Any, rng: random.Random) -> Any:
    """The graph with other numbers for its nodes: any that the vocabulary has, so that every one is learnt."""
    numbers = rng.sample(range(VOCABULARY.nodes[0]), len(graph))
    return _networkx().relabel_nodes(graph, dict(zip(graph, numbers, strict=True)))


def questions(graph: Any, rng: random.Random) -> dict[str, tuple[str, str]]:
    """Name → (question, answer), for each of QUESTIONS; answers are yes, no or a number."""
    networkx = _networkx()
    nodes = sorted(graph)
    node, start, end = rng.choice(nodes), *rng.sample(nodes, 2)
    connected = networkx.has_path(graph, start, end)
    triangles = sum(networkx.triangles(graph).values()) // 3
    return {
        "connected": ("Is the graph connected?", _yes(networkx.is_connected(graph))),
        "cycle": ("Is there a cycle?", _yes(not networkx.is_forest(graph))),
        "degree": (f"What is the degree of node {node}?", str(graph.degree[node])),
        "path": (
            f"How long is the shortest path from node {start} to node {end}?",
            str(networkx.shortest_path_length(graph, start, end)) if connected else "There is none",
        ),
        "triangles": ("How many triangles are there?", str(triangles)),
        "bipartite": ("Is the graph bipartite?", _yes(networkx.is_bipartite(graph))),
    }


def _yes(answer: bool) -> str:
    return "Yes" if answer else "No"


def records_of(count: int, seed: int) -> Iterator[tuple[str, Record]]:
    """(split, record) of so many random graphs, a conversation of several questions each.

    A yes/no question is left out of a graph's conversation where its answer has been given more often than the other
    so far, so that both are equally frequent in every split.
    """
    rng = random.Random(seed)
    home: dict[str, str] = {}  # hash of a graph without its numbers → its split
    balance: dict[tuple[str, str], int] = {}
    made = 0
    while made < count:
        graph = random_graph(rng)
        key = shape_hash(graph)
        (drawn,) = rng.choices(list(SPLITS), weights=list(SPLITS.values()))
        split = home.setdefault(key, drawn)
        kept = []
        for name, (question, answer) in questions(graph, rng).items():
            if answer in ("Yes", "No"):
                ahead = balance.get((split, name), 0) * (1 if answer == "Yes" else -1)
                if ahead > 0:
                    continue
                balance[split, name] = balance.get((split, name), 0) + (1 if answer == "Yes" else -1)
            kept.append((question, answer))
        rng.shuffle(kept)
        yield split, shown(graph, kept)
        made += 1


def shape_hash(graph: Any) -> str:
    """Equal for graphs that differ in their nodes' numbers alone (Weisfeiler and Lehman's, from the degrees on)."""
    networkx = _networkx()
    plain = networkx.Graph(graph.edges)
    plain.add_nodes_from(graph)
    networkx.set_node_attributes(plain, {node: str(graph.degree[node]) for node in graph}, "degree")
    found: str = networkx.weisfeiler_lehman_graph_hash(plain, node_attr="degree")
    return found


def shown(graph: Any, turns: Sequence[tuple[str, str]]) -> Record:
    """A record whose text is the list of edges; of nodes without any, their numbers."""
    edges = [f"{a}-{b}" for a, b in sorted(tuple(sorted(edge)) for edge in graph.edges)]
    alone = [str(node) for node in sorted(graph) if graph.degree[node] == 0]
    graph = graph.copy()
    graph.name = " ".join([*edges, *alone])
    attributes = {node: (node,) for node in graph}
    _networkx().set_node_attributes(graph, attributes, "features")
    _networkx().set_edge_attributes(graph, dict.fromkeys(graph.edges, (0,)), "features")
    messages = [
        Message(role, text + "." * (role == "assistant"))
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    return graph_record([graph], messages, VOCABULARY)


def social_records(seed: int) -> dict[str, list[Record]]:
    """Single questions about the two social graphs, whose people are numbered at random."""
    networkx = _networkx()
    graphs = {"karate": networkx.karate_club_graph(), "les_miserables": networkx.les_miserables_graph()}
    found = {}
    for name, graph in graphs.items():
        rng = random.Random(seed)
        plain = networkx.Graph(numbered(graph, rng).edges)
        asked: dict[str, tuple[str, str]] = {}
        while len(asked) < QUESTIONS_OF_A_SOCIAL_GRAPH:
            asked |= {question: (question, answer) for question, answer in questions(plain, rng).values()}
        found[name] = [shown(plain, [turn]) for turn in list(asked.values())[:QUESTIONS_OF_A_SOCIAL_GRAPH]]
    return found


def kind_of(question: str) -> str:
    """Which of QUESTIONS a question is."""
    words = {"connected": "connected", "cycle": "cycle", "degree": "degree", "path": "path", "triangles": "triangles"}
    return next((name for name, word in words.items() if word in question), "bipartite")


def single_questions(records: Sequence[Record]) -> list[Record]:
    """Each turn of each conversation by itself: what was answered before helps nobody."""
    found = []
    for record in records:
        messages = record.conversation.messages
        for turn in zip(messages[::2], messages[1::2], strict=True):
            found.append(record._replace(conversation=record.conversation._replace(messages=turn)))
    return found


def measure(workdir: Path, sets: dict[str, list[Record]]) -> dict[str, Any]:
    """Shares of right answers: of the test graphs ("accuracy"), of each kind of question, of each social graph."""
    generator, _ = load_generator(workdir, decoding=DecodingConfig(max_new_tokens=NEW_TOKENS))
    found: dict[str, Any] = {}
    for name, records in sets.items():
        asked = [
            r._replace(conversation=r.conversation._replace(messages=r.conversation.messages[:1])) for r in records
        ]
        answers = generator.answer_records(asked)
        right = np.array(
            [
                a.strip().rstrip(".") == r.conversation.messages[1].content.rstrip(".")
                for a, r in zip(answers, records, strict=True)
            ],
            float,
        )
        found[name] = float(right.mean())
        found[f"{name}_interval"] = intervals.intervals(len(right), {"mean": intervals.mean(right)})["mean"]
        if name == "accuracy":
            kinds = np.array([kind_of(record.conversation.messages[0].content) for record in records])
            found |= {kind: float(right[kinds == kind].mean()) for kind in QUESTIONS if np.any(kinds == kind)}
    return found


@functools.cache
def _networkx() -> Any:
    try:
        import networkx
    except ImportError:
        raise ConfigError("random graphs need networkx: pip install 'llamo_jax[analysis]'") from None
    return networkx


@program("graph_reasoning", hint="run the same command again to continue")
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="llamo_jax.analysis.graph_reasoning",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cells.add_arguments(parser, config="configs/stage1.py:tiny")
    parser.add_argument("--graphs", type=int, default=5000, help="random graphs, all splits together")
    parser.add_argument("--questions", type=int, default=600, help="of the test split that are asked")
    options = parser.parse_args(arguments)
    quiet_libraries()
    try:
        run(options)
    except runs.UserError as error:
        sys.exit(f"llamo_jax.analysis.graph_reasoning: {error}")


def run(options: argparse.Namespace) -> None:
    """Makes the graphs once, trains cell by cell, and compares."""
    values = cells.read_values(options)
    folder = options.output / "data" / f"graphs-{GRAPHS_VERSION}-{options.graphs}"
    tokenizer = values.data.tokenizer or str(prepare_embedded(options.cache_dir) / "tokenizer")
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        prepare_records(
            records_of(options.graphs, seed=0), folder, VOCABULARY, Settings(task="instruction", tokenizer=tokenizer)
        )
    values.data.update({"source": str(folder), "task": "instruction", "tokenizer": tokenizer})
    # with edges shown they are more than twice as long, and hold the longest list, of 160 edges
    values.data.tokens_per_row = max(values.data.tokens_per_row, 512)
    values.model.graph_encoder.atom_cardinalities = VOCABULARY.nodes
    values.model.graph_encoder.bond_cardinalities = VOCABULARY.edges
    planned = cells.plan(options)
    if options.dry_run:
        cells.print_plan(planned, values, "Graph reasoning, planned")
        return
    sets = {"accuracy": single_questions(read_records(folder, "test"))[: options.questions], **social_records(seed=0)}
    about = {"graphs": options.graphs, "questions": len(sets["accuracy"])}
    results = cells.run_cells(planned, values, options.output, about, functools.partial(measure, sets=sets), METRICS)
    reference = runs.read_config(values).model.projector.kind
    rows = cells.compared(results, reference, tuple(METRICS))
    result: dict[str, Any] = {"config": options.config, "reference": reference, **about, "rows": rows, "cells": results}
    drawing = cells.picture(rows, METRICS, "edges")
    sections = cells.sections(rows, reference, METRICS, "edges")
    pages.write(options.output, "graph_reasoning", "Graph reasoning", result, sections, drawing)


if __name__ == "__main__":
    main()
