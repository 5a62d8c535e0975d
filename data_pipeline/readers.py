"""Rows of the files that people have (TSV, CSV, JSONL) as conversations, task by task."""

import csv
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_pipeline.conversation import ROLES, Conversation, Message
from data_pipeline.describe import DESCRIPTION_REQUESTS
from data_pipeline.records import DataError

_SMILES_COLUMNS = ("smiles", "canonical_smiles", "mol")
_TEXT_COLUMNS = ("description", "text", "caption", "output")


class RowError(ValueError):
    """A row that cannot become a conversation; `reason` is a short phrase that can be counted."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


class Columns(NamedTuple):
    """Names of the columns to read; None: guess."""

    smiles: str | None = None
    text: str | None = None


Row = Mapping[str, Any]
RowReader = Callable[[Row], Conversation]


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a .tsv, .csv or .jsonl file as mappings; raises DataError if it cannot be read or has no rows.

    TSV is read without quoting, as ChEBI-20 and its relatives are written.
    """
    formats = {".tsv": _read_tsv, ".csv": _read_csv, ".jsonl": _read_jsonl}
    if path.suffix.lower() not in formats:
        raise DataError(f"{path}: unknown format {path.suffix!r}; known: {', '.join(formats)}")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    rows = formats[path.suffix.lower()](path)
    first = next(rows, None)
    if first is None:
        raise DataError(f"{path}: no rows")
    yield first
    yield from rows


def description_reader(found: Sequence[str], columns: Columns) -> RowReader:
    """A reader of (molecule, description) rows; raises DataError if a column is missing from `found`."""
    smiles_column = _pick(found, columns.smiles, _SMILES_COLUMNS, "--smiles_column")
    text_column = _pick(found, columns.text, _TEXT_COLUMNS, "--text_column")

    def read(row: Row) -> Conversation:
        smiles, text = _text(row, smiles_column), _text(row, text_column)
        # The request varies with the molecule, reproducibly.
        request = random.Random(f"request {smiles}").choice(DESCRIPTION_REQUESTS)
        return Conversation((smiles,), (Message("user", request), Message("assistant", text)))

    return read


def instruction_reader(found: Sequence[str], columns: Columns) -> RowReader:
    """A reader of {"smiles": str or list, "messages": [{"role", "content"}, ...]} rows; "smiles" may be absent."""
    _pick(found, columns.text, ("messages",), "--text_column")

    def read(row: Row) -> Conversation:
        smiles = row.get(columns.smiles or "smiles") or []
        smiles = [smiles] if isinstance(smiles, str) else smiles
        messages = row[columns.text or "messages"]
        if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
            raise RowError("messages are not a list of objects")
        turns = tuple(Message(str(m.get("role")), str(m.get("content", ""))) for m in messages)
        if any(turn.role not in ROLES for turn in turns):
            raise RowError("unknown role")
        if not any(turn.role == "assistant" and turn.content.strip() for turn in turns):
            raise RowError("no answer")
        if not any(turn.role == "user" for turn in turns):
            raise RowError("no question")
        return Conversation(tuple(smiles), turns)

    return read


TASKS: dict[str, Callable[[Sequence[str], Columns], RowReader]] = {
    "description": description_reader,
    "instruction": instruction_reader,
}
"""Task name → maker of its row reader, from the columns found and the columns asked for."""


def _pick(found: Sequence[str], asked: str | None, guesses: Sequence[str], option: str) -> str:
    by_lower_case = {name.lower(): name for name in found}
    wanted = [asked] if asked else guesses
    for name in wanted:
        if name.lower() in by_lower_case:
            return by_lower_case[name.lower()]
    raise DataError(f"no column {' or '.join(map(repr, wanted))}; found {list(found)}; name one with {option}")


def _text(row: Row, column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        raise RowError(f"empty {column}")
    return value.strip()


def _read_tsv(path: Path) -> Iterator[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)


def _read_csv(path: Path) -> Iterator[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)


def _read_jsonl(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise DataError(f"{path}, line {number}: not JSON ({error.msg})") from None
                if not isinstance(row, dict):
                    raise DataError(f"{path}, line {number}: not a JSON object")
                yield row
