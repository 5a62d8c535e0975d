"""Which conversations share a row, and the order of rows: a pure function of sizes, seed and epoch."""

import numpy as np

from data_pipeline.batch import RowSize

WINDOW = 2048
"""Conversations that are packed together; larger fills rows slightly better and takes longer."""


def pack_rows(sizes: np.ndarray, capacity: RowSize, order: np.ndarray) -> list[list[int]]:
    """Rows of conversation indices, each within `capacity`: first-fit decreasing over windows of `order`.

    sizes: int[C, 5], the `RowSize` of every conversation, none above the capacity. Each index of `order` appears in
    exactly one row.
    """
    rows: list[list[int]] = []
    limit = np.array(capacity)
    for start in range(0, len(order), WINDOW):
        window = order[start : start + WINDOW]
        window = window[np.argsort(-sizes[window, 0], kind="stable")]
        free = np.empty((len(window), len(limit)), limit.dtype)
        first_row = len(rows)
        for index in window:
            used = len(rows) - first_row
            fits = np.flatnonzero((free[:used] >= sizes[index]).all(axis=1))
            if len(fits):
                row = fits[0]
                rows[first_row + row].append(int(index))
            else:
                row = used
                free[row] = limit
                rows.append([int(index)])
            free[row] -= sizes[index]
    return rows


def plan_epoch(sizes: np.ndarray, capacity: RowSize, seed: int, epoch: int) -> list[list[int]]:
    """The rows of one training epoch in their order; different for every (seed, epoch)."""
    rng = np.random.default_rng((seed, epoch))
    rows = pack_rows(sizes, capacity, rng.permutation(len(sizes)))
    return [rows[index] for index in rng.permutation(len(rows))]
