"""Which conversations share a row, and the order of rows: pure functions of sizes, seed and position."""

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from data_pipeline.batch import RowSize

PACKING_VERSION = 2
"""Raise when the same data and seed give other rows; a run that continues says so."""

WINDOW = 2048
"""Conversations that are packed together; larger fills rows slightly better and takes longer."""

_TOGETHER = 128
"""Windows that are packed at the same time; more need memory and are no faster."""

MIXTURE_BLOCK = 1000
"""Rows after which a weighted mixture has exactly its shares."""


class Rows(NamedTuple):
    """Rows of conversation indices: row r holds `order[starts[r]:starts[r + 1]]`."""

    order: np.ndarray  # int64[C]
    starts: np.ndarray  # int64[rows + 1]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def shuffled(self, rng: np.random.Generator) -> "Rows":
        """The same rows in another order."""
        chosen = rng.permutation(len(self))
        sizes = np.diff(self.starts)[chosen]
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        places = np.arange(len(self.order)) + np.repeat(self.starts[chosen] - starts[:-1], sizes)
        return Rows(self.order[places], starts)

    def split(self, count: int) -> "Rows":
        """The same conversations in `count` rows, which are more than these: the first rows are cut in halves.

        Where every row holds one conversation, empty rows follow.
        """
        starts = self.starts
        while len(starts) <= count:
            sizes = np.diff(starts)
            cut = np.flatnonzero(sizes > 1)[: count + 1 - len(starts)]
            if not len(cut):
                starts = np.pad(starts, (0, count + 1 - len(starts)), mode="edge")
            starts = np.insert(starts, cut + 1, starts[cut] + sizes[cut] // 2)
        return Rows(self.order, starts)

    def row(self, index: int | np.integer) -> np.ndarray:
        """The conversations of one row."""
        return self.order[self.starts[index] : self.starts[index + 1]]


def pack_rows(sizes: Int[np.ndarray, "C 5"], capacity: RowSize, order: Int[np.ndarray, " n"]) -> Rows:
    """Packs the conversations of `order` into rows within `capacity`: first-fit decreasing over windows of `order`.

    sizes: int[C, 5], the `RowSize` of every conversation, none above the capacity. Each index of `order` appears in
    exactly one row.
    """
    limit = np.array(capacity, np.int32)
    packed, starts = [np.zeros(0, np.int64)], [np.zeros(1, np.int64)]
    for first in range(0, len(order), WINDOW * _TOGETHER):
        part = order[first : first + WINDOW * _TOGETHER]
        whole = len(part) // WINDOW * WINDOW
        for windows in (part[:whole].reshape(-1, WINDOW), part[whole:].reshape(1, -1)):  # the last one is shorter
            if not windows.size:
                continue
            # decreasing by tokens, the budget that is tight: long ones first, short ones fill the gaps (96.7 % of all
            # slots are filled on ChEBI-20)
            by_length = np.argsort(-sizes[windows, 0], axis=1, kind="stable")
            windows = np.take_along_axis(windows, by_length, axis=1)
            row_of = _first_fit(sizes[windows], limit)
            packed.append(np.take_along_axis(windows, np.argsort(row_of, axis=1, kind="stable"), axis=1).ravel())
            rows = row_of.max(axis=1) + 1
            before = np.cumsum(rows) - rows
            starts.append(starts[-1][-1] + np.cumsum(np.bincount((row_of + before[:, None]).ravel())))
    return Rows(np.concatenate(packed), np.concatenate(starts))


def _first_fit(sizes: Int[np.ndarray, "windows n 5"], limit: Int[np.ndarray, "5"]) -> Int[np.ndarray, "windows n"]:
    """For every conversation of every window, in their order, the first row of its window that has room for it.

    All windows go through one loop over places, so that numpy and not Python does the work: 1 s per million instead of
    16.
    """
    windows, length, _ = sizes.shape
    every = np.arange(windows)
    by_place = np.ascontiguousarray(sizes.transpose(1, 2, 0), np.int32)
    free = np.empty((5, windows, length), np.int32)  # of each row; one that nobody has opened has all of its room
    free[:] = limit[:, None, None]
    row_of = np.empty((windows, length), np.int64)
    smallest = by_place[-1, 0][:, None]
    first, end = 0, 1  # rows that may be open in some window, and one behind them
    for place, size in enumerate(by_place):
        # >=: a conversation that fills a row to the last place fits
        row = first + (free[0, :, first:end] >= size[0][:, None]).argmax(axis=1)
        # tokens are tight; where it is something else, all budgets are looked at
        again = np.flatnonzero((free[1:, every, row] < size[1:]).any(axis=0))
        if len(again):
            fits = np.ones((len(again), end - first), bool)
            for budget, needed in zip(free, size, strict=True):
                fits &= budget[again, first:end] >= needed[again, None]
            row[again] = first + fits.argmax(axis=1)
        free[:, every, row] -= size
        row_of[:, place] = row
        end = min(length, max(end, int(row.max()) + 2))
        if place % 64 == 63:  # full rows leave the search, or it would be quadratic in the window
            first += int((free[0, :, first:end] >= smallest).argmax(axis=1).min())
    return row_of


@functools.lru_cache(maxsize=8)
def _mixture_block(weights: tuple[float, ...], seed: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Which source each position of a block belongs to, and its number among the block's positions of that source."""
    counts = _block_counts(weights)
    sources = np.random.default_rng((seed, block)).permutation(np.repeat(np.arange(len(weights)), counts))
    rank = np.zeros(MIXTURE_BLOCK, np.int64)
    for source in range(len(weights)):
        chosen = sources == source
        rank[chosen] = np.arange(chosen.sum())
    return sources, rank


@functools.lru_cache(maxsize=8)
def _block_counts(weights: tuple[float, ...]) -> np.ndarray:
    """Positions of each source in a block: shares of the weights, by largest remainder, at least one."""
    exact = np.array(weights) / sum(weights) * MIXTURE_BLOCK
    counts = np.maximum(np.floor(exact).astype(int), 1)
    left = max(0, MIXTURE_BLOCK - counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:left]] += 1
    # "at least one" for very small shares can exceed the block: the largest source gives way
    counts[np.argmax(counts)] += MIXTURE_BLOCK - counts.sum()
    return counts


def source_at(weights: tuple[float, ...], seed: int, position: int) -> tuple[int, int]:
    """(source, position in that source) of a position of an endless weighted mixture; exact in every block."""
    if len(weights) == 1:
        return 0, position
    block, offset = divmod(position, MIXTURE_BLOCK)
    sources, rank = _mixture_block(weights, seed, block)
    source = int(sources[offset])
    return source, int(block * _block_counts(weights)[source] + rank[offset])
