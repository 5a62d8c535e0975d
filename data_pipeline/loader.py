"""From prepared records to batches: which rows a step holds is known from lengths alone, and read by index."""

import atexit
import contextlib
import itertools
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
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
        self.sizes = reader.sizes if encoder.show_graph else np.zeros_like(reader.sizes)
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
        self._evaluation: Rows | None = None
        self._rows_per_epoch: dict[int, int] = {}  # by seed
        self._first: dict[int, Rows] = {}  # by seed: the plan of the first epoch, until one is asked for
        self._epochs: dict[tuple[int, int], Future[Rows]] = {}  # by (seed, epoch): the last few plans

    def __len__(self) -> int:
        """The number of conversations that fit a row."""
        return len(self._kept)

    def fill(self, seed: int | None = None) -> float:
        """The fraction of the rows' token slots that hold a token, in the first epoch; None: in evaluation."""
        rows = self.evaluation_rows() if seed is None else self.epoch_rows(seed, 0)
        return float(self.token_counts().sum() / (len(rows) * self.row.tokens))

    def token_counts(self) -> np.ndarray:
        """int32[conversations]: the token slots that each takes."""
        return self._sizes[self._kept, 0]

    def rows_per_epoch(self, seed: int) -> int:
        """Rows of every epoch: what the first one needs, and one in a thousand for those that need some more."""
        if seed not in self._rows_per_epoch:
            rng = np.random.default_rng((seed, 0))
            rows = self._packed(rng)
            count = len(rows) + len(rows) // 1000
            self._first[seed] = rows.split(count).shuffled(rng)
            self._rows_per_epoch[seed] = count
        return self._rows_per_epoch[seed]

    def epoch_rows(self, seed: int, epoch: int) -> Rows:
        """All conversations once, packed and ordered by (seed, epoch)."""
        return self._begin(seed, epoch).result()

    def training_row(self, seed: int, position: int) -> np.ndarray:
        """The conversations of the row at a position of the endless training order.

        Plans two epochs at most, the first and that of the position, and reads nothing.
        """
        with self._lock:
            count = self.rows_per_epoch(seed)
        epoch, index = divmod(position, count)
        row = self.epoch_rows(seed, epoch).row(index)
        if 2 * index > count:
            self._begin(seed, epoch + 1)  # ready when this one ends
        return row

    def _begin(self, seed: int, epoch: int) -> Future[Rows]:
        """The plan of an epoch, made in a thread unless it is there."""
        with self._lock:
            if (seed, epoch) not in self._epochs:
                found: Future[Rows] = Future()
                self._epochs = {**dict(list(self._epochs.items())[-2:]), (seed, epoch): found}
                threading.Thread(target=self._plan, args=(seed, epoch, found), daemon=True).start()
            return self._epochs[seed, epoch]

    def _plan(self, seed: int, epoch: int, found: "Future[Rows]") -> None:
        try:
            count = self.rows_per_epoch(seed)
            first = self._first.pop(seed, None)  # of no use any more, if it is not this one
            if epoch == 0 and first is not None:
                found.set_result(first)
                return
            for attempt in itertools.count():
                # a generator for each (seed, epoch): any epoch can be planned without those before it
                rng = np.random.default_rng((seed, epoch, attempt) if attempt else (seed, epoch))
                rows = self._packed(rng)
                if len(rows) <= count:
                    break
            # all epochs are equally long, or a position would not tell its epoch
            found.set_result(rows.split(count).shuffled(rng))
        except BaseException as error:
            found.set_exception(error)

    def _packed(self, rng: np.random.Generator) -> Rows:
        return pack_rows(self._sizes, self.row, rng.permutation(self._kept))

    def evaluation_rows(self) -> Rows:
        """Every conversation exactly once, in the order of the records as far as packing allows."""
        with self._lock:
            if self._evaluation is None:
                self._evaluation = pack_rows(self._sizes, self.row, self._kept)
            return self._evaluation

    def load(self, rows: Sequence[np.ndarray]) -> list[list[EncodedConversation]]:
        """The conversations of rows of indices, truncated to what a row holds."""
        loaded = iter(self._source.load(np.concatenate([np.zeros(0, np.int64), *rows])))
        return [[truncate(next(loaded), self.row.tokens) for _ in row] for row in rows]


def _row_sizes(source: Source, row: RowSize) -> tuple[np.ndarray, np.ndarray, Counter]:
    """int32[C, 5] `RowSize`s after truncation, which of the conversations fit, and why the others do not."""
    tokens, graph_end, first_target = source.lengths.T
    length = np.minimum(tokens, row.tokens + 1)  # the last token is only a target
    sizes = np.concatenate([(length - 1)[:, None], source.sizes], axis=1, dtype=np.int32)
    reasons = {
        "refused by the prompt style": tokens == 0,
        "graph tokens beyond the row's end (config.data.tokens_per_row)": graph_end > length,
        "no answer within the row (config.data.tokens_per_row)": first_target >= length,
    }
    for column, name in enumerate(RowSize._fields):
        reasons[f"more {name} than a row's {row[column]} (config.data.{name}_per_row)"] = sizes[:, column] > row[column]
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
        local, positions = self._part(shards)

        def build(step: int) -> Batch:
            places = self._places(seed, step, positions)
            rows: list[list[EncodedConversation]] = [[] for _ in places]
            for number, dataset in enumerate(self._datasets):
                mine = [index for index, (source, _) in enumerate(places) if source == number]
                for index, row in zip(mine, dataset.load([places[index][1] for index in mine]), strict=True):
                    rows[index] = row
            return collate(rows, local)

        return BatchStream(build, first_step, np.iinfo(np.int64).max, collate([], local))

    def _part(self, shards: Shards | None) -> tuple[BatchShape, list[int]]:
        """The shape of what these shards hold of a batch, and their rows' positions in it; None: all shards."""
        return (shards or Shards(tuple(range(self.shape.shards)))).of(self.shape)

    def epochs(self, seed: int, batches: int) -> float:
        """How many times over so many batches show the data: their rows, as a share of all data sets' rows."""
        return batches * self.shape.rows / sum(dataset.rows_per_epoch(seed) for dataset in self._datasets)

    def conversations_per_row(self, seed: int) -> float:
        """Of training, on average."""
        found = [len(dataset) / dataset.rows_per_epoch(seed) for dataset in self._datasets]
        return float(np.average(found, weights=self._weights))

    def tokens_per_conversation(self) -> float:
        """The mean length of those that fit a row."""
        return float(np.average([dataset.token_counts().mean() for dataset in self._datasets], weights=self._weights))

    def training_rows(self, seed: int, step: int) -> list[tuple[int, list[int]]]:
        """What the batch of a step holds: for each row the number of its data set, and conversations of that split."""
        return [(source, row.tolist()) for source, row in self._places(seed, step, range(self.shape.rows))]

    def _places(self, seed: int, step: int, positions: Sequence[int]) -> list[tuple[int, np.ndarray]]:
        places = [source_at(self._weights, seed, step * self.shape.rows + position) for position in positions]
        return [(source, self._datasets[source].training_row(seed, place)) for source, place in places]

    def evaluation_batches(self, shards: Shards | None = None, most: int = 0) -> "BatchStream":
        """Every conversation of every data set exactly once, in a fixed order; the end is padded with empty rows.

        most: not more than so many of these batches, the same every time, spread evenly; 0: all.
        """
        local, positions = self._part(shards)
        plans = [(dataset, dataset.evaluation_rows()) for dataset in self._datasets]
        # every data set by itself: a batch never mixes two, so that each one's loss could be told apart
        steps = [(d, rows, start) for d, rows in plans for start in range(0, len(rows), self.shape.rows)]
        if 0 < most < len(steps):
            steps = [steps[index * len(steps) // most] for index in range(most)]

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

        failed: list[Exception] = []

        def flat(step: np.ndarray) -> list[np.ndarray]:
            try:
                return jax.tree.leaves(build(int(step)))
            except Exception as error:
                failed.append(error)
                raise

        def load(step: Any) -> list[Any]:
            return tf.numpy_function(flat, [step], [leaf.dtype for leaf in leaves])

        steps = tf.data.Dataset.range(first_step, end).take_while(lambda _: tf.logical_not(closed))
        dataset = steps.map(load, num_parallel_calls=2, deterministic=True).prefetch(2)
        self._iterator = dataset.as_numpy_iterator()
        self._failed = failed
        self._finalizer = weakref.finalize(self, _close, self._iterator, closed)
        self._finalizer.atexit = False  # see below
        _open_streams[id(closed)] = (self._iterator, closed)

    def close(self) -> None:
        """Ends the stream now; batches that are being built are still finished."""
        self._finalizer()

    def __next__(self) -> Batch:
        try:
            leaves = next(self._iterator)
        except StopIteration:
            raise
        except Exception:
            if self._failed:  # TensorFlow makes a page of text of it, in a type of its own
                raise self._failed[0] from None
            raise
        return jax.tree.unflatten(self._structure, leaves)


_open_streams: dict[int, tuple[Iterator, Any]] = {}
"""Streams whose threads may be at work. TensorFlow's threads call Python: if one still runs when the interpreter ends,
the process hangs. So they are waited for at the end, and not whenever a stream is no longer needed: that took up to a
minute, where the next epoch was being planned."""


def _close(iterator: Iterator, closed: Any) -> None:
    """Lets the pipeline's threads finish what they are at, and nothing more, without waiting for them."""
    closed.assign(True)
    threading.Thread(target=_drain, args=(iterator, closed), name="drain", daemon=True).start()


def _drain(iterator: Iterator, closed: Any) -> None:
    closed.assign(True)
    with contextlib.suppress(Exception):  # a stream whose data is damaged has said so
        for _ in iterator:
            pass
    _open_streams.pop(id(closed), None)


@atexit.register
def _drain_all() -> None:
    for iterator, closed in list(_open_streams.values()):
        _drain(iterator, closed)
