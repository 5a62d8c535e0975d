"""Answers to requests that come and go: each is admitted while others are decoded, and has settings of its own.

`Generator.generate` is given all its prompts at once; a server is not. A `Batcher` owns a fixed number of rows, and a
thread that gives each free row to the next request in the queue, decodes some tokens for all rows, and hands every
request what it has got. A request that nobody waits for any more gives its row back at once.
"""

import dataclasses
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from data_pipeline.batch import EncodedConversation
from llamo_jax.generation.engine import Engine
from llamo_jax.generation.generator import Generator
from llamo_jax.generation.prompts import GraphRoom

TOKENS_AT_A_TIME = 4
"""Between two looks at the queue: starting a program costs as much as one to two tokens of a small model."""

ADMITTED_AT_A_TIME = 8
"""Prompts that are admitted between two rounds of tokens: those that are being decoded wait for so many at most."""

STOPPING = "the server is stopping"

_log = logging.getLogger(__name__)


class BusyError(RuntimeError):
    """The queue is full, or the batcher is being closed: `closing` tells which."""

    def __init__(self, message: str, *, closing: bool):
        super().__init__(message)
        self.closing = closing


class Sampling(NamedTuple):
    """How one request is answered; names as in DecodingConfig. sample: which of several drawn with one seed."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    sample: int = 0


class Piece(NamedTuple):
    """Some more of an answer; the last one has a reason.

    "stop": the last token is a stop token; "length": `max_new_tokens` are there; "deadline": its time was up;
    "cancelled": nobody waited; "failed": it was given up, and `error` says why.
    """

    tokens: list[int]
    log_probabilities: list[float]
    reason: Literal["stop", "length", "deadline", "cancelled", "failed"] | None = None
    error: str = ""


@dataclasses.dataclass(eq=False)
class Ticket:
    """A request in the queue or in a row."""

    prompt: EncodedConversation
    sampling: Sampling
    deliver: Callable[[Piece], None]
    deadline: float
    sent: int = 0
    cancelled: bool = False
    given_up: str = ""  # why, if it is

    def end(self) -> "Piece | None":
        """What it ends with before its answer does, if it has to."""
        if self.cancelled:
            return Piece([], [], "cancelled")
        if self.given_up:
            return Piece([], [], "failed", self.given_up)
        return Piece([], [], "deadline") if time.monotonic() > self.deadline else None

    def cancel(self) -> None:
        """Nobody waits any more: the row is given away before the next tokens. Harmless when all is said."""
        self.cancelled = True


@dataclasses.dataclass
class Counts:
    """What a batcher has done since it was made."""

    admitted: int = 0
    tokens: int = 0
    failures: int = 0


class Batcher:
    """Decodes up to `rows` requests side by side, and lets `waiting` more queue.

    prompt_tokens, room: the longest prompt and the largest graphs of a request; `refusal` says whether one fits.
    Answers have at most as many tokens as the generator's settings say.
    """

    def __init__(self, generator: Generator, *, rows: int, waiting: int, prompt_tokens: int, room: GraphRoom):
        self.rows = rows
        self.waiting_limit = waiting
        self.prompt_tokens = prompt_tokens
        self.room = room
        self.max_new_tokens = generator.decoding.max_new_tokens
        self.counts = Counts()
        self._generator = generator
        self._engine = self._new_engine()
        self._waiting: deque[Ticket] = deque()
        self._running: dict[int, Ticket] = {}
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    @property
    def running(self) -> int:
        """Requests that are being decoded."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Requests that queue for a row; who has left takes no room."""
        return sum(not ticket.cancelled for ticket in list(self._waiting))

    @property
    def alive(self) -> bool:
        """Whether requests are taken."""
        return self._thread.is_alive() and not self._closing

    def refusal(self, prompt: EncodedConversation) -> str | None:
        """A line that says why a prompt cannot be answered here, or None."""
        if len(prompt.tokens) > self.prompt_tokens:
            return f"the conversation has {len(prompt.tokens):,} tokens; at most {self.prompt_tokens:,} are allowed"
        molecules, atoms = GraphRoom.needed([prompt])
        if molecules > self.room.molecules:
            return f"the conversation shows {molecules:,} molecules; at most {self.room.molecules:,} are allowed"
        if atoms > self.room.atoms:
            return f"the molecules have {atoms:,} atoms; at most {self.room.atoms:,} are allowed in all"
        return None

    def submit(
        self,
        prompt: EncodedConversation,
        samplings: Sequence[Sampling],
        deliver: Callable[[int, Piece], None],
        *,
        seconds: float,
    ) -> list[Ticket]:
        """Queues one answer for each of `samplings`, all or none; raises BusyError.

        deliver: called from the batcher's thread with an answer's number and its next piece; must not block. seconds:
        after which an answer ends as it is.
        """
        deadline = time.monotonic() + seconds
        tickets = [
            Ticket(prompt, each, lambda piece, number=number: deliver(number, piece), deadline)  # type: ignore[misc]
            for number, each in enumerate(samplings)
        ]
        with self._changed:
            if self._closing:
                raise BusyError(STOPPING, closing=True)
            waiting = self.waiting
            if waiting + len(tickets) > self.waiting_limit + max(0, self.rows - len(self._running)):
                raise BusyError(f"{waiting:,} requests are waiting already", closing=False)
            self._waiting.extend(tickets)
            self._changed.notify()
        return tickets

    def close(self, seconds: float = 0.0) -> None:
        """Takes no more requests, and gives those that are there so long; the rest is told that it is given up."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(seconds)
        for ticket in [*self._waiting, *self._running.values()]:
            ticket.given_up = STOPPING  # the thread ends them, and then itself
        self._thread.join()

    def _new_engine(self) -> Engine:
        return self._generator.engine(self.rows, self.prompt_tokens, self.room, own_choices=True)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._running or self._closing)
                if not (self._waiting or self._running):
                    return
            try:
                self._round()
                continue
            except Exception as error:
                self._give_up(error)
            # here, where the error and with it the frames that hold the old rows are gone: two caches have no room
            self._renew()

    def _round(self) -> None:
        """Ends what has to end, admits, and decodes some tokens for all."""
        ended = {row: end for row, ticket in self._running.items() if (end := ticket.end())}
        if ended:
            self._engine.release(list(ended))
        for row, end in ended.items():
            self._deliver(self._running.pop(row), end)
        with self._changed:
            left = [ticket for ticket in self._waiting if ticket.cancelled]
            if left:  # their prompts need not be kept until a row is free
                self._waiting = deque(ticket for ticket in self._waiting if not ticket.cancelled)
        for ticket in left:
            self._deliver(ticket, Piece([], [], "cancelled"))
        free = [row for row in range(self.rows) if row not in self._running]
        for row in free[:ADMITTED_AT_A_TIME]:
            new = self._next()
            if new is None:
                break
            self._running[row] = new  # before the program, so that its failure is told
            each = new.sampling
            self._engine.admit_alone(
                row,
                new.prompt,
                np.array([each.seed, each.sample], np.uint32),
                temperature=each.temperature,
                top_p=each.top_p,
                limit=each.max_new_tokens,
            )
            self.counts.admitted += 1
        if not self._running:
            return
        generated, finished = self._engine.advance(TOKENS_AT_A_TIME)
        for row, ticket in list(self._running.items()):
            length = int(generated.lengths[row])
            tokens = generated.tokens[row, ticket.sent : length].tolist()
            scores = generated.log_probabilities[row, ticket.sent : length].tolist()
            reason: Literal["stop", "length"] | None = None
            if finished[row]:
                reason = "stop" if tokens and tokens[-1] in self._generator.stop_ids else "length"
                del self._running[row]
            self.counts.tokens += length - ticket.sent
            ticket.sent = length
            self._deliver(ticket, Piece(tokens, scores, reason))

    def _next(self) -> Ticket | None:
        """The first in the queue that somebody waits for."""
        while True:
            with self._changed:
                if not self._waiting:
                    return None
                ticket = self._waiting.popleft()
            end = ticket.end()
            if end is None:
                return ticket
            self._deliver(ticket, end)

    @staticmethod
    def _deliver(ticket: Ticket, piece: Piece) -> None:
        try:
            ticket.deliver(piece)
        except Exception:  # who asked has gone, with its event loop
            ticket.cancelled = True

    def _give_up(self, error: Exception) -> None:
        """A program failed: all that are being decoded are told."""
        _log.exception("decoding failed")
        self.counts.failures += 1
        failed, self._running = list(self._running.values()), {}
        for ticket in failed:
            self._deliver(ticket, Piece([], [], "failed", f"{type(error).__name__}: {error}"))

    def _renew(self) -> None:
        """New rows in place of the old, which a failed program may have taken with it; else takes no more requests."""
        del self._engine
        try:
            self._engine = self._new_engine()
        except Exception as again:
            with self._changed:
                self._closing = True
                rest = list(self._waiting)
                self._waiting.clear()
            for ticket in rest:
                self._deliver(ticket, Piece([], [], "failed", f"{type(again).__name__}: {again}"))
