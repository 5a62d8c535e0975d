"""Prompts as batches whose sizes come from a short list, so that few programs are compiled."""

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from data_pipeline.batch import Batch, BatchShape, EncodedConversation, RowSize, collate
from data_pipeline.vocabulary import MOLECULES, GraphVocabulary

EDGES_PER_ATOM = 3
"""Room for directed edges; a molecule has some 2.2 per atom."""


def bucket(size: int, smallest: int) -> int:
    """The smallest of `smallest` · (1, 1.5, 2, 3, 4, 6, 8, …) that holds `size`."""
    candidates = (factor * smallest << power >> 1 for power in itertools.count() for factor in (2, 3))
    return next(candidate for candidate in candidates if candidate >= size)


def prompt_bucket(length: int) -> int:
    """How many tokens prompts of this length are padded to: 64, 96, 128, 192, 256 and so on."""
    return bucket(length, 64)


def row_bucket(count: int, shards: int) -> int:
    """Rows of a batch for so many prompts: a power of two for each batch shard."""
    return shards * (1 << (-(-count // shards) - 1).bit_length())


class GraphRoom(NamedTuple):
    """What the graphs of one row may take: molecules, and atoms and motifs of all of them."""

    molecules: int
    atoms: int

    @classmethod
    def needed(cls, prompts: Iterable[EncodedConversation]) -> "GraphRoom":
        """Room for each of these prompts, and no more."""
        sizes = np.array([prompt.size()[1:] for prompt in prompts]).reshape(-1, 4).max(axis=0, initial=0)
        molecules, atoms, edges, motifs = map(int, sizes)
        return cls(molecules, max(atoms, -(-edges // EDGES_PER_ATOM), motifs))

    @classmethod
    def of(cls, prompts: Iterable[EncodedConversation], *, coarse: bool = False) -> "GraphRoom":
        """The same, rounded up to buckets: of many prompts, so that all batches are alike.

        coarse: to one of few sizes, each four times the one before, for prompts that come one by one.
        """
        molecules, atoms = cls.needed(prompts)
        if coarse:
            return cls(_power_of_four(molecules, 1), _power_of_four(atoms, 32))
        return cls(bucket(molecules, 1), bucket(atoms, 16))


def _power_of_four(size: int, smallest: int) -> int:
    return next(smallest << 2 * power for power in itertools.count() if smallest << 2 * power >= size)


def collate_prompts(
    prompts: Sequence[EncodedConversation],
    *,
    rows: int | None = None,
    shards: int = 1,
    room: GraphRoom | None = None,
    vocabulary: GraphVocabulary = MOLECULES,
) -> Batch:
    """Prompts as a batch of one conversation per row, padded on the right, sizes rounded up to buckets.

    rows: of the batch, a multiple of `shards`; by default `row_bucket`. Surplus rows are padding. room: of each row, by
    default what these prompts need. vocabulary: of the model's graphs.
    """
    rows = rows or row_bucket(len(prompts), shards)
    # collate takes a row's last token for a target only: give every prompt one more
    extended = [
        EncodedConversation(
            np.append(prompt.tokens, 0).astype(np.int32),
            np.append(prompt.is_target, False),
            np.append(prompt.molecule, -1).astype(np.int32),
            np.append(prompt.query, 0).astype(np.int32),
            prompt.graphs,
        )
        for prompt in prompts
    ]
    room = room or GraphRoom.of(prompts)
    length = prompt_bucket(max(len(prompt.tokens) for prompt in prompts))
    row = RowSize(length, room.molecules, room.atoms, EDGES_PER_ATOM * room.atoms, room.atoms)
    return collate([[prompt] for prompt in extended], BatchShape(rows, shards, row, *vocabulary.widths))
