"""Rows of the files in which people hold their data; a row that cannot be read is an outcome, never an exception.

Text is read line by line with bounded memory, so flipped bytes, foreign encodings, unbalanced quotes or a line of many
megabytes cost the rows they hit and no others.
"""

import csv
import gzip
import json
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from data_pipeline.errors import DataError

MAX_ROW_BYTES = 2**24
"""A longer row is rejected unread."""

MAX_QUOTED_LINES = 1000
"""A quoted CSV field that spans more lines counts as an unbalanced quote."""

Row = dict[str, Any]


class BadRow(NamedTuple):
    """A row that could not be read: a short reason that can be counted, and the beginning of the text."""

    reason: str
    text: str


class _Pushback(Iterator[str | BadRow]):
    """An iterator to which items can be given back."""

    def __init__(self, lines: Iterator[str | BadRow]):
        self._lines = lines
        self._returned: deque[str | BadRow] = deque()

    def __next__(self) -> str | BadRow:
        return self._returned.popleft() if self._returned else next(self._lines)

    def push(self, lines: list) -> None:
        """The lines come next, in their order."""
        self._returned.extendleft(reversed(lines))


def read_rows(path: Path) -> Iterator[Row | BadRow]:
    """The rows of a file in their order; the format follows from the name, `.gz` may follow it.

    .tsv, .txt: tab separated with a header, without quoting, as ChEBI-20 and its relatives are written. .csv: RFC 4180
    with a header. .jsonl: an object a line; .json: a list of objects. .parquet. .pt: torch files of plain records or of
    PyTorch Geometric (extra `[convert]`). Raises DataError if the file is missing, unreadable as a whole, or empty.
    """
    suffix = Path(path.stem).suffix if path.suffix.lower() == ".gz" else path.suffix
    reader = _FORMATS.get(suffix.lower())
    if reader is None:
        raise DataError(f"{path}: unknown format {suffix!r}; known: {', '.join(_FORMATS)}")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    empty = True
    try:
        for row in reader(path):
            empty = False
            yield row
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    if empty:
        raise DataError(f"{path}: no rows")


def _read_tsv(path: Path) -> Iterator[Row | BadRow]:
    lines = _lines(path)
    header = _header(path, lines, lambda line: line.split("\t"))
    for line in lines:
        yield line if isinstance(line, BadRow) else _row(header, line.split("\t"), line)


def _read_csv(path: Path) -> Iterator[Row | BadRow]:
    lines = _Pushback(_lines(path, keep_empty=True))
    header = _header(path, lines, lambda line: next(csv.reader([line])))
    csv.field_size_limit(MAX_ROW_BYTES)
    for line in lines:
        if isinstance(line, BadRow):
            yield line
        elif line:
            yield _csv_row(header, line, lines)


def _csv_row(header: list[str], line: str, lines: _Pushback) -> Row | BadRow:
    """The row that begins with `line`; takes more lines inside an open quote, gives them back if it never ends."""
    used = [line]
    unended = False

    def physical() -> Iterator[str]:
        nonlocal unended
        yield line + "\n"
        for more in lines:  # asked for only inside an open quote
            if isinstance(more, BadRow) or len(used) == MAX_QUOTED_LINES:
                lines.push([more])
                break
            used.append(more)
            yield more + "\n"
        unended = True

    try:
        row = _row(header, next(csv.reader(physical())), line)
    except csv.Error:
        row = BadRow("not CSV", line[:200])
    # one lost quote costs its own row: the lines that it swallowed are given back
    if unended or (isinstance(row, BadRow) and len(used) > 1):
        lines.push(used[1:])
        return BadRow("unbalanced quote", line[:200])
    return row


def _read_jsonl(path: Path) -> Iterator[Row | BadRow]:
    for line in _lines(path):
        if isinstance(line, BadRow):
            yield line
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            yield BadRow("not JSON", line[:200])
            continue
        yield row if isinstance(row, dict) else BadRow("not a JSON object", line[:200])


def _read_json(path: Path) -> Iterator[Row | BadRow]:
    with _open(path) as file:
        try:
            rows = json.load(file)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: not JSON ({error})") from None
    if not isinstance(rows, list):
        raise DataError(f"{path}: not a JSON list of objects; for one object a line name it .jsonl")
    for row in rows:
        yield row if isinstance(row, dict) else BadRow("not a JSON object", repr(row)[:200])


def _read_parquet(path: Path) -> Iterator[Row | BadRow]:
    import pyarrow
    from pyarrow import parquet

    try:
        for batch in parquet.ParquetFile(path.open("rb")).iter_batches(batch_size=1024):
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable as Parquet ({str(error).splitlines()[0]})") from None


def _read_torch(path: Path) -> Iterator[Row | BadRow]:
    from data_pipeline.torch_files import read_torch

    yield from read_torch(path)


_FORMATS: dict[str, Callable[[Path], Iterator[Row | BadRow]]] = {
    ".tsv": _read_tsv,
    ".txt": _read_tsv,
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".pt": _read_torch,
}


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path.open("rb"))) if path.suffix.lower() == ".gz" else path.open("rb")


def _lines(path: Path, *, keep_empty: bool = False) -> Iterator[str | BadRow]:
    """Lines without their ends; undecodable and endless ones are bad rows."""
    with _open(path) as file:
        first = True
        while line := file.readline(MAX_ROW_BYTES):
            # readline with a limit: a file without any end of line must not fill the memory
            if len(line) == MAX_ROW_BYTES and not line.endswith(b"\n"):
                beginning = line[:200]
                while line and not line.endswith(b"\n"):
                    line = file.readline(MAX_ROW_BYTES)
                yield BadRow(f"longer than {MAX_ROW_BYTES:,} bytes", beginning.decode(errors="replace"))
                continue
            try:
                # utf-8-sig: spreadsheets write a byte order mark, which would become part of the first column's name
                text = line.decode("utf-8-sig" if first else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError:
                yield BadRow("not UTF-8", line[:200].decode(errors="replace"))
            else:
                if text or keep_empty:
                    yield text
            first = False


def _header(path: Path, lines: Iterator[str | BadRow], split: Callable[[str], list[str]]) -> list[str]:
    line = next(lines, None)
    if line is None:
        raise DataError(f"{path}: no rows")
    if isinstance(line, BadRow):
        raise DataError(f"{path}: its header is {line.reason}")
    return [name.strip() for name in split(line)]


def _row(header: list[str], fields: list[str], text: str) -> Row | BadRow:
    if len(fields) != len(header):
        return BadRow("wrong number of columns", text[:200])
    return dict(zip(header, fields, strict=True))
