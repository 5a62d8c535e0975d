"""Is the graph used? How the log-likelihood of an answer changes with another molecule's graph, or with none."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipeline.batch import GraphArrays
from data_pipeline.conversation import Message
from data_pipeline.records import Record
from llamo_jax.evaluation import intervals
from llamo_jax.evaluation.examples import Example
from llamo_jax.generation.generator import Generator

SHOWN = 30  # tokens in the table of those that change most
OFTEN = 5  # times that a token must occur to stand there


def likelihood_graph_use(generator: Generator, examples: Sequence[Example]) -> dict[str, Any]:
    """Log-likelihoods (nats) of targets with their molecule's graph, another's ("other") and an empty one ("blank").

    per_token: means over target tokens; change: true minus the others, so that a graph that is not used gives 0;
    prefers_true: share of rows whose answer is most probable with its own graph; tokens: those whose log-probability
    the other graph lowers most. The prompt's text, SMILES included, stays the same. Examples with one molecule only.
    """
    records = [_answered(example) for example in examples if len(example.prompt.graphs) == 1]
    if len(records) < 2:
        return {"rows": len(records)}
    half = len(records) // 2  # neighbours in a file are often alike: the other molecule is half a data set away
    graphs: dict[str, list[tuple[GraphArrays, ...]]] = {
        "true": [record.graphs for record in records],
        "other": [record.graphs for record in [*records[half:], *records[:half]]],
        "blank": [(_blank(record.graphs[0]),) for record in records],
    }
    found = {
        name: generator.target_log_probabilities(
            list(map(Record, (record.conversation for record in records), swapped))
        )
        for name, swapped in graphs.items()
    }
    per_token = {name: float(np.concatenate(values).mean()) for name, values in found.items()}
    sums = {name: np.array([values.sum() for values in rows]) for name, rows in found.items()}
    tokens = np.array(list(map(len, found["true"])), float)
    return {
        "rows": len(records),
        "target_tokens": sum(map(len, found["true"])),
        "per_token": per_token,
        "per_row": {name: float(values.mean()) for name, values in sums.items()},
        "change": {name: per_token["true"] - per_token[name] for name in ("other", "blank")},
        "prefers_true": {name: float(np.mean(sums["true"] > sums[name])) for name in ("other", "blank")},
        "tokens": _tokens(generator, records, found["true"], found["other"]),
        "intervals": intervals.intervals(
            len(records),
            {
                **{f"per_token.{name}": intervals.ratio(sums[name], tokens) for name in sums},
                **{f"per_row.{name}": intervals.mean(sums[name]) for name in sums},
                **{f"change.{name}": intervals.ratio(sums["true"] - sums[name], tokens) for name in ("other", "blank")},
                **{f"prefers_true.{name}": intervals.mean(sums["true"] > sums[name]) for name in ("other", "blank")},
            },
        ),
    }


def _answered(example: Example) -> Record:
    conversation = example.prompt.conversation
    messages = (*conversation.messages, Message("assistant", example.target))
    return example.prompt._replace(conversation=conversation._replace(messages=messages))


def _blank(graph: GraphArrays) -> GraphArrays:
    return GraphArrays(*(array[:0] for array in graph))


def _tokens(
    generator: Generator, records: Sequence[Record], true: Sequence[np.ndarray], other: Sequence[np.ndarray]
) -> list[dict[str, Any]]:
    changes: dict[int, list[float]] = defaultdict(list)
    for encoded, a, b in zip(generator.encoder.encode(records), true, other, strict=True):
        for token, change in zip(encoded.tokens[1:][encoded.is_target[1:]], a - b, strict=True):
            changes[int(token)].append(float(change))
    means = {token: np.mean(values) for token, values in changes.items() if len(values) >= OFTEN}
    largest = sorted(means, key=lambda token: -means[token])[:SHOWN]
    decode = generator.encoder.tokenizer.decode
    return [{"token": decode([t]), "change": float(means[t]), "count": len(changes[t])} for t in largest]
