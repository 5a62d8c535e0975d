"""From prepared records to batches: encode once, pack, and stream by step number through tf.data."""

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from data_pipeline.batch import Batch, BatchShape, EncodedConversation, RowSize, collate
from data_pipeline.packing import pack_rows, plan_epoch
from data_pipeline.prompt import PromptEncoder, PromptError, truncate
from data_pipeline.records import DataError, Record


class PackedDataset:
    """Encoded conversations in memory, and the batches they make.

    Batches depend on (seed, step) alone; nothing but the step number has to be remembered to continue.
    `skipped` counts conversations that fit no row, by reason.
    """

    def __init__(self, records: list[Record], encoder: PromptEncoder, shape: BatchShape):
        self.shape = shape
        self.skipped: Counter[str] = Counter()
        self.conversations: list[EncodedConversation] = []
        for conversation in encoder.encode([(record.conversation, record.graphs) for record in records]):
            try:
                self.conversations.append(_fitting(conversation, shape.row))
            except PromptError as error:
                self.skipped[error.reason] += 1
        if not self.conversations:
            raise DataError(f"no conversation fits a row of {shape.row}; skipped: {dict(self.skipped)}")
        self.sizes = np.array([conversation.size() for conversation in self.conversations])
        self._epochs: dict[tuple[int, int], list[list[int]]] = {}

    def training_batches(self, seed: int, first_step: int = 0) -> "BatchStream":
        """Endless batches from `first_step` on; the last batch of an epoch may end in padding rows."""

        def build(step: int) -> Batch:
            return self._batch(*self._locate(seed, step))

        return BatchStream(build, first_step, np.iinfo(np.int64).max, self._batch([], 0))

    def evaluation_batches(self) -> "BatchStream":
        """Every conversation exactly once, in a fixed order."""
        rows = pack_rows(self.sizes, self.shape.row, np.arange(len(self.sizes)))
        return BatchStream(lambda step: self._batch(rows, step), 0, self._num_batches(rows), self._batch([], 0))

    def fill(self, seed: int = 0) -> float:
        """The fraction of token slots that hold a token, over one epoch."""
        rows = plan_epoch(self.sizes, self.shape.row, seed, 0)
        return float(self.sizes[:, 0].sum() / (self._num_batches(rows) * self.shape.rows * self.shape.row.tokens))

    def _locate(self, seed: int, step: int) -> tuple[list[list[int]], int]:
        """The rows of the epoch that step lies in, and the number of its batch there."""
        for epoch in range(step + 1):
            rows = self._epoch(seed, epoch)
            if step < self._num_batches(rows):
                return rows, step
            step -= self._num_batches(rows)
        raise AssertionError("an epoch has at least one batch")

    def _epoch(self, seed: int, epoch: int) -> list[list[int]]:
        if (seed, epoch) not in self._epochs:
            self._epochs[seed, epoch] = plan_epoch(self.sizes, self.shape.row, seed, epoch)
        return self._epochs[seed, epoch]

    def _num_batches(self, rows: list[list[int]]) -> int:
        return -(-len(rows) // self.shape.rows)

    def _batch(self, rows: list[list[int]], number: int) -> Batch:
        chosen = rows[number * self.shape.rows : (number + 1) * self.shape.rows]
        return collate([[self.conversations[index] for index in row] for row in chosen], self.shape)


def _fitting(conversation: EncodedConversation, row: RowSize) -> EncodedConversation:
    """The conversation, truncated to a row's tokens; raises PromptError if its molecules do not fit a row."""
    conversation = truncate(conversation, row.tokens)
    for name, need, limit in zip(RowSize._fields, conversation.size(), row, strict=True):
        if need > limit:
            raise PromptError(f"more {name} than a row's {limit}")
    return conversation


class BatchStream(Iterator[Batch]):
    """Batches `first_step` … `end - 1`, built ahead of their use by tf.data, in order.

    build: the batch of a step; example: a batch whose shapes and dtypes all others share.
    """

    def __init__(self, build: Callable[[int], Batch], first_step: int, end: int, example: Batch):
        import tensorflow as tf

        leaves, self._structure = jax.tree.flatten(example)
        with tf.device("CPU"):
            closed = tf.Variable(False)

        def flat(step: np.ndarray) -> list[np.ndarray]:
            return jax.tree.leaves(build(int(step)))

        def load(step: Any) -> list[Any]:
            return tf.numpy_function(flat, [step], [leaf.dtype for leaf in leaves])

        steps = tf.data.Dataset.range(first_step, end).take_while(lambda _: tf.logical_not(closed))
        dataset = steps.map(load, num_parallel_calls=2, deterministic=True).prefetch(2)
        self._iterator = dataset.as_numpy_iterator()
        # TensorFlow's threads call Python; if one still runs when the interpreter exits, the process hangs.
        self.close = weakref.finalize(self, _drain, self._iterator, closed)

    def __next__(self) -> Batch:
        return jax.tree.unflatten(self._structure, next(self._iterator))


def _drain(iterator: Iterator, closed: Any) -> None:
    """Lets the pipeline's threads finish what they are at, and nothing more."""
    closed.assign(True)
    for _ in iterator:
        pass
