"""What is evaluated: prompts and their targets, from prepared records or straight from a file of rows."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data_pipeline.errors import DataError
from data_pipeline.examples import examples_of
from data_pipeline.files import BadRow, TableOptions, read_rows
from data_pipeline.records import Record, RecordReader, featurized_safely, read_manifest, without_last_message
from data_pipeline.tasks import TASKS, Columns, Missing

_ANY_TABLE = TableOptions()
_ANY_COLUMNS = Columns()


class Example(NamedTuple):
    """A conversation up to a question, and the answer that it is compared with."""

    prompt: Record
    target: str


class Examples(NamedTuple):
    """All examples of a source in its order, and why its other rows are none (reason → count).

    fingerprint: equal for sources with the same examples.
    """

    examples: list[Example]
    rejected: dict[str, int]
    fingerprint: str


def read_examples(
    source: Path,
    task: str,
    split: str,
    limit: int = 0,
    columns: Columns = _ANY_COLUMNS,
    table: TableOptions = _ANY_TABLE,
) -> Examples:
    """The examples of a prepared folder's split, or of a file of rows as `data_pipeline.prepare` takes them.

    split: of a folder; "": test, or validation where there is no test. limit: the first so many; 0: all. columns,
    table: of a file, as for `data_pipeline.prepare`. Raises DataError if there are none.
    """
    rejected: Counter[str] = Counter()
    found = _from_folder(source, split) if source.is_dir() else _from_file(source, task, rejected, columns, table)
    chosen: list[Example] = []
    for record in found:
        last = record.conversation.messages[-1]
        if last.role != "assistant" or len(record.conversation.messages) < 2:
            rejected["no answer at the end"] += 1
            continue
        chosen.append(Example(without_last_message(record), last.content))
        if len(chosen) == limit:
            break
    if not chosen:
        raise DataError(f"{source}: nothing to evaluate; {dict(rejected)}")
    contents = [(example.prompt.conversation, example.target) for example in chosen]
    return Examples(chosen, dict(rejected), hashlib.sha256(json.dumps(contents).encode()).hexdigest()[:16])


def _from_folder(folder: Path, split: str) -> Iterator[Record]:
    splits = read_manifest(folder)["splits"]
    chosen = split or next((name for name in ("test", "validation") if name in splits), "test")
    reader = RecordReader(folder, chosen)
    for start in range(0, len(reader), 256):
        yield from reader.fetch(range(start, min(start + 256, len(reader))))


def _from_file(
    path: Path, task: str, rejected: Counter[str], columns: Columns, table: TableOptions
) -> Iterator[Record]:
    if task not in TASKS:
        raise DataError(f"unknown task {task!r}; known: {', '.join(TASKS)}")
    rows = []
    for row in read_rows(path, table):
        if isinstance(row, BadRow):
            rejected[row.reason] += 1
        else:
            rows.append(row)
    if not rows:
        return
    read = TASKS[task](list(dict.fromkeys(name for row in rows for name in row)), columns)  # rows of JSON may differ
    for row in rows:
        for found in examples_of(read, row, featurized_safely):
            if isinstance(found, Record):
                yield found
            else:
                rejected[f"missing {found.column}" if isinstance(found, Missing) else found.reason] += 1
