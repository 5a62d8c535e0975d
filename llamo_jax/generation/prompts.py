"""Prompts as batches whose sizes come from a short list, so that few programs are compiled."""

import itertools
from collections.abc import Sequence

import numpy as np

from data_pipeline.batch import Batch, BatchShape, EncodedConversation, RowSize, collate

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


def collate_prompts(prompts: Sequence[EncodedConversation], *, rows: int | None = None, shards: int = 1) -> Batch:
    """Prompts as a batch of one conversation per row, padded on the right, sizes rounded up to buckets.

    rows: of the batch, a multiple of `shards`; by default `row_bucket`. Surplus rows are padding.
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
    per_shard = rows // shards
    groups = [extended[first : first + per_shard] for first in range(0, len(extended), per_shard)]
    totals = np.max([np.sum([prompt.size() for prompt in group], axis=0) for group in groups], axis=0)
    _, molecules, atoms, edges, motifs = (-(-int(total) // per_shard) for total in totals)
    room = bucket(max(atoms, -(-edges // EDGES_PER_ATOM), motifs), 16)
    length = prompt_bucket(max(len(prompt.tokens) for prompt in prompts))
    row = RowSize(length, bucket(molecules, 1), room, EDGES_PER_ATOM * room, room)
    return collate([[prompt] for prompt in extended], BatchShape(rows, shards, row))
