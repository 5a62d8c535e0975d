"""Does a description name the functional groups that the molecule has? Scored against RDKit, on held-out molecules."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from data_pipeline.conversation import Message
from data_pipeline.functional_groups import functional_groups, mentioned_groups
from data_pipeline.molecule import parse_smiles
from data_pipeline.records import Record
from llamo_jax.generation.generator import Generator

REQUEST = "Describe this molecule."


class GroupScore(NamedTuple):
    """Micro-averaged over all molecules and groups: fractions; `molecules` is the number scored."""

    f1: float
    precision: float
    recall: float
    molecules: int


def score_groups(descriptions: Iterable[str], smiles: Iterable[str]) -> GroupScore:
    """Scores the groups that each description mentions against those that its molecule has."""
    true_positive = claimed = present = molecules = 0
    for description, text in zip(descriptions, smiles, strict=True):
        named, real = mentioned_groups(description), set(functional_groups(parse_smiles(text)))
        true_positive += len(named & real)
        claimed += len(named)
        present += len(real)
        molecules += 1
    return GroupScore(
        f1=2 * true_positive / max(claimed + present, 1),
        precision=true_positive / max(claimed, 1),
        recall=true_positive / max(present, 1),
        molecules=molecules,
    )


def describe_records(generator: Generator, records: Sequence[Record], *, graphs_of: Sequence[Record]) -> list[str]:
    """A description of each record's molecule, shown with the graphs of the record at the same place in `graphs_of`.

    Its SMILES, if the prompt shows it, stays its own.
    """
    ask = (Message("user", REQUEST),)
    prompts = [
        Record(record.conversation._replace(messages=ask), other.graphs)
        for record, other in zip(records, graphs_of, strict=True)
    ]
    return generator.answer_records(prompts)


def graph_use(generator: Generator, records: Sequence[Record]) -> dict[str, GroupScore]:
    """Scores with each molecule's own graph ("true") and with another molecule's ("other").

    The other graph is that of the record half-way further on; records are in no chemical order.
    """
    half = len(records) // 2
    shifted = [*records[half:], *records[:half]]
    smiles = [record.conversation.smiles[0] for record in records]
    return {
        name: score_groups(describe_records(generator, records, graphs_of=graphs), smiles)
        for name, graphs in (("true", records), ("other", shifted))
    }
