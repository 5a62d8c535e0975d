"""From prepared records to batches: which rows a step holds is known from lengths alone, and read by index."""

import bisect
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from data_pipeline.batch import Batch, BatchShape, EncodedConversation, RowSize, Shards, collate
from data_pipeline.errors import DataError
from data_pipeline.lengths import token_lengths
from data_pipeline.packing import Rows, pack_rows, source_at
from data_pipeline.prompt import PromptEncoder, truncate
from data_pipeline.records import RecordReader


class Source(Protocol):
    """Where encoded conversations come from, by index; `RecordReader` with a `PromptEncoder` is the usual one.

    sizes: int32[C, 4], molecules, atoms, edges and motifs; lengths: int32[C, 3], see data_pipeline.lengths.
    """

    sizes: np.ndarray
    lengths: np.ndarray

    def load(self, indices: np.ndarray) -> list[EncodedConversation]:
        """The conversations at these positions."""


KEPT_IN_MEMORY = 20_000
"""Splits of at most so many conversations (some 100 MB) are read and encoded only once."""


class EncodedRecords:
    """The records of one split, encoded when they are read; see Source."""

    def __init__(self, reader: RecordReader, encoder: PromptEncoder):
        self._reader = reader
        self._encoder = encoder
        self.sizes = reader.sizes
        self.lengths = token_lengths(reader, encoder)
        self._kept: dict[int, EncodedConversation] = {}

    def load(self, indices: np.ndarray) -> list[EncodedConversation]:
        """See Source."""
        missing = [index for index in indices.tolist() if index not in self._kept]
        loaded = dict(zip(missing, self._encoder.encode(self._reader.fetch(missing)), strict=True))
        if len(self._reader) <= KEPT_IN_MEMORY:
            self._kept |= loaded
        return [loaded[index] if index in loaded else self._kept[index] for index in indices.tolist()]


class PackedDataset:
    """The conversations of one source that fit a row, packed anew every epoch, whatever the host or the device.

    `skipped` counts conversations that fit no row, by reason.
    """

    def __init__(self, source: Source, row: RowSize):
        self._source = source
        self.row = row
        self._sizes, keep, self.skipped = _row_sizes(source, row)
        if not keep.any():
            raise DataError(f"no conversation fits a row of {row}; skipped: {dict(self.skipped)}")
        self._kept = np.flatnonzero(keep)
        self._lock = threading.Lock()
        self._first_rows: dict[int, list[int]] = {}  # by seed: where each epoch begins in the endless order of rows
        self._epochs: dict[tuple[int, int], Rows] = {}  # by (seed, epoch): the last few plans

    def __len__(self) -> int:
        """The number of conversations that fit a row."""
        return len(self._kept)

    def fill(self) -> float:
        """The fraction of the rows' token slots that hold a token, in the first epoch."""
        return float(self.token_counts().sum() / (len(self.epoch_rows(0, 0)) * self.row.tokens))

    def token_counts(self) -> np.ndarray:
        """int64[conversations]: the token slots that each takes."""
        return self._sizes[self._kept, 0]

    def epoch_rows(self, seed: int, epoch: int) -> Rows:
        """All conversations once, packed and ordered by (seed, epoch)."""
        if (seed, epoch) not in self._epochs:
            # a generator for each (seed, epoch): any epoch can be planned without those before it
            rng = np.random.default_rng((seed, epoch))
            rows = pack_rows(self._sizes, self.row, rng.permutation(self._kept)).shuffled(rng)
            self._epochs = {**dict(list(self._epochs.items())[-2:]), (seed, epoch): rows}
        return self._epochs[seed, epoch]

    def training_row(self, seed: int, position: int) -> np.ndarray:
        """The conversations of the row at a position of the endless training order.

        Epochs differ by a row or two in length, so the first call plans those before the position; it reads nothing.
        """
        with self._lock:
            first_rows = self._first_rows.setdefault(seed, [0])
            while first_rows[-1] <= position:
                first_rows.append(first_rows[-1] + len(self.epoch_rows(seed, len(first_rows) - 1)))
            epoch = bisect.bisect_right(first_rows, position) - 1  # the last epoch that begins at or before it
            return self.epoch_rows(seed, epoch).row(position - first_rows[epoch])

    def evaluation_rows(self) -> Rows:
        """Every conversation exactly once, in the order of the records as far as packing allows."""
        return pack_rows(self._sizes, self.row, self._kept)

    def load(self, rows: Sequence[np.ndarray]) -> list[list[EncodedConversation]]:
        """The conversations of rows of indices, truncated to what a row holds."""
        loaded = iter(self._source.load(np.concatenate([np.zeros(0, np.int64), *rows])))
        return [[truncate(next(loaded), self.row.tokens) for _ in row] for row in rows]


def _row_sizes(source: Source, row: RowSize) -> tuple[np.ndarray, np.ndarray, Counter]:
    """int64[C, 5] `RowSize`s after truncation, which of the conversations fit, and why the others do not."""
    tokens, graph_end, first_target = source.lengths.astype(np.int64).T
    length = np.minimum(tokens, row.tokens + 1)  # the last token is only a target
    sizes = np.concatenate([(length - 1)[:, None], source.sizes.astype(np.int64)], axis=1)
    reasons = {
        "refused by the prompt style": tokens == 0,
        "graph tokens beyond the row's end": graph_end > length,
        "no answer within the row": first_target >= length,
    }
    for column, name in enumerate(RowSize._fields):
        reasons[f"more {name} than a row's {row[column]}"] = sizes[:, column] > row[column]
    keep = np.ones(len(sizes), bool)
    skipped: Counter[str] = Counter()
    for reason, hit in reasons.items():
        skipped[reason] += int((keep & hit).sum())
        keep &= ~hit
    return sizes, keep, +skipped


class BatchLoader:
    """Batches from one data set or a weighted mixture; a process may ask for its own shards only.

    Batches depend on (seed, step) alone; nothing but the step number has to be remembered to continue. Weights are
    shares of rows.
    """

    def __init__(self, datasets: Sequence[PackedDataset], weights: Sequence[float], shape: BatchShape):
        if len(datasets) != len(weights) or not datasets or min(weights) <= 0:
            raise DataError("a mixture needs a positive weight for every data set")
        self._datasets = datasets
        self._weights = tuple(map(float, weights))
        self.shape = shape

    def training_batches(self, seed: int, first_step: int = 0, shards: Shards | None = None) -> "BatchStream":
        """Endless full batches from `first_step` on: each data set's rows in another order every epoch."""
        local, positions = (shards or Shards(0, self.shape.shards)).of(self.shape)

        def build(step: int) -> Batch:
            places = self._places(seed, step, positions)
            rows: list[list[EncodedConversation]] = [[] for _ in places]
            for number, dataset in enumerate(self._datasets):
                mine = [index for index, (source, _) in enumerate(places) if source == number]
                for index, row in zip(mine, dataset.load([places[index][1] for index in mine]), strict=True):
                    rows[index] = row
            return collate(rows, local)

        return BatchStream(build, first_step, np.iinfo(np.int64).max, collate([], local))

    def training_rows(self, seed: int, step: int) -> list[tuple[int, list[int]]]:
        """What the batch of a step holds: for each row the number of its data set, and conversations of that split."""
        return [(source, row.tolist()) for source, row in self._places(seed, step, range(self.shape.rows))]

    def _places(self, seed: int, step: int, positions: range) -> list[tuple[int, np.ndarray]]:
        places = [source_at(self._weights, seed, step * self.shape.rows + position) for position in positions]
        return [(source, self._datasets[source].training_row(seed, place)) for source, place in places]

    def evaluation_batches(self, shards: Shards | None = None) -> "BatchStream":
        """Every conversation of every data set exactly once, in a fixed order; the end is padded with empty rows."""
        local, positions = (shards or Shards(0, self.shape.shards)).of(self.shape)
        plans = [(dataset, dataset.evaluation_rows()) for dataset in self._datasets]
        # every data set by itself: a batch never mixes two, so that each one's loss could be told apart
        steps = [(d, rows, start) for d, rows in plans for start in range(0, len(rows), self.shape.rows)]

        def build(step: int) -> Batch:
            dataset, rows, start = steps[step]
            wanted = [start + position for position in positions if start + position < len(rows)]
            return collate(dataset.load([rows.row(index) for index in wanted]), local)

        return BatchStream(build, 0, len(steps), collate([], local))


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
