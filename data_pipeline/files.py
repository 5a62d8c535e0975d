"""Rows of the files in which people hold their data; a row that cannot be read is an outcome, never an exception.

Memory is bounded by bytes, not by rows or lines, whatever a file says of itself or unpacks to.
"""

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from data_pipeline import storage
from data_pipeline.errors import DataError
from data_pipeline.tables import MAX_ROW_BYTES, BadRow, Row, TableOptions, check_names, read_table, text_lines

__all__ = ["MAX_ROW_BYTES", "BadRow", "Row", "TableOptions", "read_rows"]

_NO_OPTIONS = TableOptions()


def read_rows(
    path: Path, options: TableOptions = _NO_OPTIONS, say: Callable[[str], Any] = lambda text: None
) -> Iterator[Row | BadRow]:
    """The rows of a file in their order; the format follows from the name, `.gz` may follow it.

    .csv, .tsv, .txt: tables with a header, written in any of the ways of data_pipeline.tables. .smi: a SMILES a line,
    and perhaps a name behind it. .jsonl: an object a line; .json: a list of objects. .parquet. .pt: torch files of
    plain records or of PyTorch Geometric (extra `[convert]`). `say` is told how a table is written, if that is unusual.

    Raises DataError if the file is missing, unreadable as a whole, or empty.
    """
    suffix = Path(path.stem).suffix if path.suffix.lower() == ".gz" else path.suffix
    reader = _FORMATS.get(suffix.lower())
    if reader is None:
        raise DataError(f"{path}: unknown format {suffix!r}; known: {', '.join(_FORMATS)}")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if storage.is_lfs_pointer(path):
        raise DataError(f"{path} is a Git LFS pointer, not the file; run git lfs pull in its repository")
    empty = True
    try:
        for row in reader(path, options, say):
            empty = False
            yield row
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    if empty:
        raise DataError(f"{path}: no rows")


def _read_text_table(path: Path, options: TableOptions, say: Callable[[str], Any]) -> Iterator[Row | BadRow]:
    yield from read_table(path, _open, options, say)


def _read_smi(path: Path, options: TableOptions, say: Callable[[str], Any]) -> Iterator[Row | BadRow]:
    """The SMILES ends at the first space or tab, a name may follow (OpenSMILES); "smiles …" is a header."""
    for number, line in enumerate(text_lines(path, _open, options.encoding or "utf-8-sig", "\n")):
        if isinstance(line, BadRow):
            yield line
            continue
        if not line.strip():
            continue
        smiles, *rest = line.split(None, 1)
        if number or not re.match(r"(canonical_?)?smiles\b", line, re.IGNORECASE):
            yield {"smiles": smiles, "name": rest[0].strip() if rest else ""}


def _objects(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; raises ValueError if a key stands there twice: which of its values is meant nobody knows."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _DuplicateKeyError
    return found


class _DuplicateKeyError(ValueError):
    pass


_JSON = json.JSONDecoder(object_pairs_hook=_objects)


def _read_jsonl(path: Path, options: TableOptions, say: Callable[[str], Any]) -> Iterator[Row | BadRow]:
    for line in text_lines(path, _open, options.encoding or "utf-8-sig", "\n"):
        if isinstance(line, BadRow):
            yield line
            continue
        if not line.strip():
            continue
        try:
            row = _JSON.decode(line)
        except _DuplicateKeyError:
            yield BadRow("a key twice", line[:200])
        except (ValueError, RecursionError):
            yield BadRow("not JSON", line[:200])
        else:
            yield row if isinstance(row, dict) else BadRow("not a JSON object", line[:200])


def _read_json(path: Path, options: TableOptions, say: Callable[[str], Any]) -> Iterator[Row | BadRow]:
    """A list, object by object: a file may be larger than the memory."""
    waiting = ""
    place = 0
    ended = False

    def more() -> bool:
        """Reads on; False at the end of the file."""
        nonlocal waiting, place, ended
        data = next(pieces, None)
        ended = data is None
        waiting, place = waiting[place:] + (data or ""), 0
        return not ended

    def skip(characters: str) -> str:
        """The next character that is none of these, "" at the end."""
        nonlocal place
        while True:
            while place < len(waiting) and waiting[place] in characters:
                place += 1
            if place < len(waiting):
                return waiting[place]
            if not more():
                return ""

    pieces = _decoded(path, options.encoding or "utf-8-sig")
    if skip(" \t\r\n") != "[":
        raise DataError(f"{path}: not a JSON list of objects; for one object a line name it .jsonl")
    place += 1
    first = True
    while (character := skip(" \t\r\n")) != "]":
        if not first:
            if character != ",":
                raise DataError(f"{path}: not JSON (a comma or ] is missing, at {waiting[place : place + 40]!r})")
            place += 1
            skip(" \t\r\n")
        first = False
        while True:
            try:
                row, end = _JSON.raw_decode(waiting, place)
                # a number may go on in the next piece
                if end < len(waiting) or isinstance(row, dict | list | str) or not more():
                    place = end
                    break
            except _DuplicateKeyError:
                row = BadRow("a key twice", waiting[place : place + 200])
                _, place = json.JSONDecoder().raw_decode(waiting, place)
                break
            except RecursionError:
                raise DataError(f"{path}: not JSON (nested too deeply)") from None
            except ValueError as error:
                if len(waiting) - place > MAX_ROW_BYTES:
                    raise DataError(
                        f"{path}: an object in its list is longer than {MAX_ROW_BYTES:,} bytes, or not JSON"
                    ) from None
                if not more():
                    raise DataError(f"{path}: not JSON ({error})") from None
        yield row if isinstance(row, dict | BadRow) else BadRow("not a JSON object", repr(row)[:200])


def _decoded(path: Path, encoding: str) -> Iterator[str]:
    """The text of a file in pieces; raises DataError where it cannot be decoded."""
    decoder = codecs.getincrementaldecoder(encoding)()
    with _open(path) as file:
        while True:
            data = file.read(2**16)
            try:
                yield decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                raise DataError(f"{path}: not {encoding.removesuffix('-sig').upper()} ({error.reason})") from None
            if not data:
                return


def _read_parquet(path: Path, options: TableOptions, say: Callable[[str], Any]) -> Iterator[Row | BadRow]:
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path.open("rb"))
        schema = file.schema_arrow
        check_names(path, schema.names)
        # as dictionaries: a long text that stands in many rows is held once, not once a row
        texts = [field.name for field in schema if _is_text(field.type)]
        file = parquet.ParquetFile(path.open("rb"), read_dictionary=texts)
        for group in range(file.metadata.num_row_groups):
            _check_group(path, file.metadata.row_group(group))
            for batch in file.iter_batches(batch_size=256, row_groups=[group]):
                for index in range(batch.num_rows):
                    yield _parquet_row(batch, index)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable as Parquet ({str(error).splitlines()[0]})") from None


_MAX_COLUMN_BYTES = 2**29
"""Of one column in a row group, unpacked: Parquet reads dictionaries and pages whole. Writers make some megabytes."""


def _check_group(path: Path, group: Any) -> None:
    for column in range(group.num_columns):
        size = group.column(column).total_uncompressed_size
        if size > _MAX_COLUMN_BYTES:
            raise DataError(
                f"{path}: its column {group.column(column).path_in_schema!r} has {size:,} bytes in one row group; "
                "write it with smaller ones (row_group_size=100_000)"
            )


def _is_text(kind: Any) -> bool:
    import pyarrow

    tests = ("is_string", "is_large_string", "is_binary", "is_large_binary")
    return any(getattr(pyarrow.types, test)(kind) for test in tests)


def _parquet_row(batch: Any, index: int) -> Row | BadRow:
    """One row as plain Python; text that is none, or too much of it, makes a bad row."""
    import pyarrow
    from pyarrow import compute

    row: Row = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        kind = column.type.value_type if pyarrow.types.is_dictionary(column.type) else column.type
        value = column[index]
        if _is_text(kind) and value.is_valid:
            if pyarrow.types.is_dictionary(column.type):
                value = value.value
            if value.as_buffer() is not None and value.as_buffer().size > MAX_ROW_BYTES:
                return BadRow(f"longer than {MAX_ROW_BYTES:,} bytes", f"column {name}")
        if pyarrow.types.is_temporal(kind):  # nanoseconds have no form in Python
            row[name] = compute.cast(value, pyarrow.string()).as_py()
        elif pyarrow.types.is_float32(kind) or pyarrow.types.is_float16(kind):
            # 0.1, as it was written, and not 0.10000000149011612
            row[name] = None if value.as_py() is None else float(str(np.float32(value.as_py())))
        else:
            plain = value.as_py()
            if isinstance(plain, bytes):
                try:
                    plain = plain.decode()
                except UnicodeDecodeError:
                    return BadRow(f"{name} is bytes, and no text", repr(plain[:50]))
            row[name] = plain
    return row


def _read_torch(path: Path, options: TableOptions, say: Callable[[str], Any]) -> Iterator[Row | BadRow]:
    from data_pipeline.torch_files import read_torch

    yield from read_torch(path)


_Reader = Callable[[Path, TableOptions, Callable[[str], Any]], Iterator[Row | BadRow]]
_FORMATS: dict[str, _Reader] = {
    ".tsv": _read_text_table,
    ".txt": _read_text_table,
    ".csv": _read_text_table,
    ".smi": _read_smi,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".pt": _read_torch,
}


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path.open("rb"))) if path.suffix.lower() == ".gz" else path.open("rb")
