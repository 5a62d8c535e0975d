"""Every reply that a teacher has ever given in a folder, by the key of its request: nothing is asked, or paid, twice.

One SQLite file: a reply is on the disk when `keep` returns, and a killed process leaves what it has kept.
"""

import contextlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from etils import epath

from data_pipeline.errors import DataError
from data_pipeline.instruct.teachers import Answer, Usage


class Spent(NamedTuple):
    """Attempts (failed ones, too), and tokens of those that were answered, of use or not."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Replies:
    """Replies, refusals, attempts, and what was planned; raises DataError if the file is damaged."""

    def __init__(self, path: epath.Path):
        self._path = path
        try:
            # transactions are as short as their statements; a thread of the job may read what another has written
            self._file = sqlite3.connect(str(path), isolation_level=None, check_same_thread=False)
            self._file.execute("PRAGMA journal_mode=WAL")
            self._file.execute("PRAGMA synchronous=FULL")
            self._file.executescript(
                "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, text TEXT, refusal TEXT, "
                "prompt_tokens INTEGER, completion_tokens INTEGER) WITHOUT ROWID;"
                "CREATE TABLE IF NOT EXISTS spent (id INTEGER PRIMARY KEY CHECK (id = 0), requests INTEGER, "
                "prompt_tokens INTEGER, completion_tokens INTEGER);"
                "INSERT OR IGNORE INTO spent VALUES (0, 0, 0, 0);"
                "CREATE TABLE IF NOT EXISTS plan (number INTEGER PRIMARY KEY, content TEXT);"
            )
        except sqlite3.DatabaseError as error:
            raise DataError(f"{path} is damaged: {error}") from None

    def get(self, key: str) -> Answer | None:
        """The reply to a request; None if there is none yet, or it was refused."""
        rows = self._rows("SELECT text, prompt_tokens, completion_tokens FROM replies WHERE key = ?", key)
        return Answer(rows[0][0], Usage(*rows[0][1:])) if rows and rows[0][0] is not None else None

    def has(self, key: str) -> bool:
        """Whether a request has a reply, or a refusal."""
        return bool(self._rows("SELECT 1 FROM replies WHERE key = ?", key))

    def refusal(self, key: str) -> str | None:
        """Why a request will never be answered, if that is so."""
        rows = self._rows("SELECT refusal FROM replies WHERE key = ?", key)
        return rows[0][0] if rows else None

    def keep(self, key: str, answer: Answer) -> None:
        """A reply, once: another one to the same request is not kept."""
        self._rows("INSERT OR IGNORE INTO replies VALUES (?, ?, NULL, ?, ?)", key, answer.text, *answer.usage)

    def refuse(self, key: str, reason: str) -> None:
        """That a request will never be answered."""
        self._rows("INSERT OR IGNORE INTO replies VALUES (?, NULL, ?, 0, 0)", key, reason)

    def forget_refusals(self) -> None:
        """They are asked again."""
        self._rows("DELETE FROM replies WHERE text IS NULL")

    def spend(self, more: Spent) -> None:
        """What an attempt costs: the request before it is sent, tokens when there is an answer, of use or not."""
        self._rows(
            "UPDATE spent SET requests = requests + ?, prompt_tokens = prompt_tokens + ?, "
            "completion_tokens = completion_tokens + ?",
            *more,
        )

    def spent(self) -> Spent:
        """In all runs of this folder."""
        return Spent(*self._rows("SELECT requests, prompt_tokens, completion_tokens FROM spent")[0])

    def answered(self) -> int:
        """How many requests have a reply."""
        return self._rows("SELECT COUNT(*) FROM replies WHERE text IS NOT NULL")[0][0]

    def planned(self) -> list[Any]:
        """What `plan` kept, in its order."""
        return [json.loads(row[0]) for row in self._rows("SELECT content FROM plan ORDER BY number")]

    def plan(self, start: int, contents: Iterable[Sequence[Any]]) -> None:
        """Appends to the plan, from number `start` on."""
        with self._understood():
            self._file.execute("BEGIN")
            self._file.executemany(
                "INSERT OR REPLACE INTO plan VALUES (?, ?)",
                ((start + index, json.dumps(content)) for index, content in enumerate(contents)),
            )
            self._file.execute("COMMIT")

    def _rows(self, statement: str, *values: Any) -> list[Any]:
        with self._understood():
            return self._file.execute(statement, values).fetchall()

    @contextlib.contextmanager
    def _understood(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise DataError(f"{self._path} cannot be used: {error}") from None

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> "Replies":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
