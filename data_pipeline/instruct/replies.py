"""Every reply that a teacher has ever given in a folder, by the key of its request: nothing is asked, or paid, twice.

One SQLite file: a reply is on the disk when `keep` returns, and a killed process leaves what it has kept.
"""

import json
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from etils import epath

from data_pipeline.errors import DataError
from data_pipeline.instruct.teachers import Answer, Usage


class Spent(NamedTuple):
    """Attempts (failed ones, too), and tokens of those that were answered."""

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
                "CREATE TABLE IF NOT EXISTS attempts (id INTEGER PRIMARY KEY CHECK (id = 0), count INTEGER);"
                "INSERT OR IGNORE INTO attempts VALUES (0, 0);"
                "CREATE TABLE IF NOT EXISTS plan (number INTEGER PRIMARY KEY, content TEXT);"
            )
        except sqlite3.DatabaseError as error:
            raise DataError(f"{path} is damaged: {error}") from None

    def get(self, key: str) -> Answer | None:
        """The reply to a request; None if there is none yet, or it was refused."""
        row = self._file.execute(
            "SELECT text, prompt_tokens, completion_tokens FROM replies WHERE key = ?", (key,)
        ).fetchone()
        return None if row is None or row[0] is None else Answer(row[0], Usage(row[1], row[2]))

    def has(self, key: str) -> bool:
        """Whether a request has a reply, or a refusal."""
        return self._file.execute("SELECT 1 FROM replies WHERE key = ?", (key,)).fetchone() is not None

    def refusal(self, key: str) -> str | None:
        """Why a request will never be answered, if that is so."""
        row = self._file.execute("SELECT refusal FROM replies WHERE key = ?", (key,)).fetchone()
        return None if row is None else row[0]

    def keep(self, key: str, answer: Answer) -> None:
        """A reply, once: another one to the same request is not kept."""
        self._file.execute("INSERT OR IGNORE INTO replies VALUES (?, ?, NULL, ?, ?)", (key, answer.text, *answer.usage))

    def refuse(self, key: str, reason: str) -> None:
        """That a request will never be answered."""
        self._file.execute("INSERT OR IGNORE INTO replies VALUES (?, NULL, ?, 0, 0)", (key, reason))

    def attempted(self) -> None:
        """One more request is about to be sent."""
        self._file.execute("UPDATE attempts SET count = count + 1")

    def spent(self) -> Spent:
        """In all runs of this folder."""
        (count,) = self._file.execute("SELECT count FROM attempts").fetchone()
        tokens = self._file.execute("SELECT TOTAL(prompt_tokens), TOTAL(completion_tokens) FROM replies").fetchone()
        return Spent(count, *map(int, tokens))

    def answered(self) -> int:
        """How many requests have a reply."""
        return self._file.execute("SELECT COUNT(*) FROM replies WHERE text IS NOT NULL").fetchone()[0]

    def planned(self) -> list[Any]:
        """What `plan` kept, in its order."""
        return [json.loads(row[0]) for row in self._file.execute("SELECT content FROM plan ORDER BY number")]

    def plan(self, start: int, contents: Iterable[Sequence[Any]]) -> None:
        """Appends to the plan, from number `start` on."""
        self._file.execute("BEGIN")
        self._file.executemany(
            "INSERT OR REPLACE INTO plan VALUES (?, ?)",
            ((start + index, json.dumps(content)) for index, content in enumerate(contents)),
        )
        self._file.execute("COMMIT")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> "Replies":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
