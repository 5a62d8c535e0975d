"""Many ArrayRecord files as one sequence of records: random access with few files open, and small files made large."""

import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from data_pipeline import storage

MOST_OPEN = 64
"""Files that are open at a time, for each split that is read: machines often allow a process 1,024 in all."""

SHARD_BYTES = 128 * 2**20
"""Files are joined until they have at least so many bytes; the chunks of a job have some 1.5 MB."""


class RecordFiles:
    """The records of several files, one after the other; any thread may read.

    Files on an object store are read from local copies (storage.local_copy): ArrayRecord reads local disks only.
    """

    def __init__(self, paths: Sequence[epath.Path], counts: Sequence[int]):
        """counts: how many records each file holds."""
        self._paths = paths
        self._ends = np.cumsum([0, *counts])[1:]
        self._open: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def fetch(self, indices: Sequence[int]) -> list[bytes]:
        """The records at these positions."""
        places = np.asarray(indices, np.int64)
        files = np.searchsorted(self._ends, places, side="right")
        found: list[bytes] = [b""] * len(places)
        with self._lock:
            for file in np.unique(files).tolist():
                wanted = np.flatnonzero(files == file)
                first = int(self._ends[file - 1]) if file else 0
                records = self._reader(file).read((places[wanted] - first).tolist())
                for place, record in zip(wanted.tolist(), records, strict=True):
                    found[place] = record
        return found

    def _reader(self, file: int) -> Any:
        if file in self._open:
            self._open.move_to_end(file)
            return self._open[file]
        if len(self._open) >= MOST_OPEN:
            _, oldest = self._open.popitem(last=False)
            oldest.close()
        self._open[file] = reader = _opened(storage.local_copy(self._paths[file]))
        return reader


def join_files(paths: Sequence[epath.Path], target: epath.Path, file_format: str) -> None:
    """All records of several files as one, complete or not at all; a single file only gets another name.

    file_format: array_record, or tfrecord, whose files can be put one behind the other.
    """
    if len(paths) == 1:
        storage.link(paths[0], target)
        return
    with storage.writing(target) as partial, tempfile.TemporaryDirectory() as folder:
        joined = Path(folder) / "joined"  # ArrayRecord writes to local disks only
        if file_format == "tfrecord":
            joined.write_bytes(b"".join(path.read_bytes() for path in paths))
        else:
            _join_array_records(paths, joined)
        storage.copy(joined, partial)


def groups(sizes: Sequence[int]) -> Iterator[list[int]]:
    """Which neighbouring files to join, by their bytes: indices, each once, in their order."""
    group: list[int] = []
    total = 0
    for index, size in enumerate(sizes):
        group.append(index)
        total += size
        if total >= SHARD_BYTES:
            yield group
            group, total = [], 0
    if group:
        yield group


def _join_array_records(paths: Sequence[epath.Path], joined: Path) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(os.fspath(joined), "group_size:1")
    for path in paths:
        with storage.read_file_locally(path) as local:
            reader = _opened(local)
            for record in reader.read_all():
                writer.write(record)
            reader.close()
    writer.close()


def _opened(path: Path) -> Any:
    from array_record.python.array_record_module import ArrayRecordReader

    # for random access: nothing is read ahead, and no threads of its own
    return ArrayRecordReader(os.fspath(path), options="readahead_buffer_size:0", file_reader_buffer_size=32768)
