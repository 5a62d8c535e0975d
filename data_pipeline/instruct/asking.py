"""Asking a teacher as often as it takes and as little as possible: limits, waiting, budget, and the replies kept.

Repeating follows tenacity (exponential backoff with jitter, which a server's Retry-After overrides), rates aiolimiter's
leaky bucket.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

from aiolimiter import AsyncLimiter
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from data_pipeline.errors import DataError
from data_pipeline.instruct.replies import Replies, Spent
from data_pipeline.instruct.requests import ReplyError, Request, parsed
from data_pipeline.instruct.teachers import Answer, RefusedError, Teacher, TryAgainError, Usage

T = TypeVar("T")

CHARACTERS_A_TOKEN = 4.0
"""Of English in the usual tokenizers; only estimates rest on it."""

REPLY_TOKENS = 300
"""Of a conversation of some turns; only estimates rest on it."""

FAILED_IN_A_ROW, REFUSED_IN_A_ROW = 50, 10
"""After which a job ends: it is not the requests."""

MAX_WAIT = 60.0  # seconds between two attempts, where the server names no time


class Limits(NamedTuple):
    """How fast and how much may be asked; None: without limit. Prices in any currency, for a million tokens."""

    concurrency: int = 8
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    attempts: int = 8  # for one request, in one run
    backoff: float = 0.5  # seconds before the second attempt, on average half of it
    max_requests: int | None = None
    max_tokens: int | None = None
    max_cost: float | None = None
    price_input: float = 0.0
    price_output: float = 0.0

    def cost(self, spent: Spent) -> float:
        """What tokens cost, at these prices."""
        return (spent.prompt_tokens * self.price_input + spent.completion_tokens * self.price_output) / 1e6

    def reached(self, spent: Spent) -> str | None:
        """The limit that is reached, in words; None if there is none."""
        tokens, cost = spent.prompt_tokens + spent.completion_tokens, self.cost(spent)
        if self.max_requests is not None and spent.requests >= self.max_requests:
            return f"--max_requests={self.max_requests:,}"
        if self.max_tokens is not None and tokens >= self.max_tokens:
            return f"--max_tokens={self.max_tokens:,}"
        if self.max_cost is not None and cost >= self.max_cost:
            return f"--max_cost={self.max_cost:g}"
        return None


class BudgetError(RuntimeError):
    """What may be spent is spent."""


class GivenUpError(RuntimeError):
    """No usable reply in as many attempts as allowed; another run tries again."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


def _sum(one: Spent, two: Spent) -> Spent:
    return Spent(*(a + b for a, b in zip(one, two, strict=True)))


def _parts(size: int, most: float) -> Iterator[float]:
    """A size in parts of at most so much."""
    left = float(size)
    while left > 0:
        yield min(left, most)
        left -= most


def tokens_in(request: Request) -> float:
    """About how many tokens a request has."""
    return sum(len(message.content) for message in request.messages) / CHARACTERS_A_TOKEN


class Asker:
    """Asks a teacher and keeps its replies; faults: attempts that failed, by reason.

    Used inside one event loop; raises DataError if nothing has been answered for long.
    """

    def __init__(self, teacher: Teacher, replies: Replies, limits: Limits):
        self._teacher, self._replies, self._limits = teacher, replies, limits
        self._requests = _limiter(limits.requests_per_minute, 1)
        self._tokens = _limiter(limits.tokens_per_minute, (limits.tokens_per_minute or 0) / 10)
        self._not_before = 0.0  # of the monotonic clock: a server that asks one request to wait means all
        self._failed_in_a_row = 0
        self._spent = replies.spent()
        self._under_way = 0
        self._answers = False
        self._refusals: list[tuple[str, str]] = []
        self._refused_in_a_row = 0
        self.faults: Counter[str] = Counter()

    @property
    def spent(self) -> Spent:
        """In this run and those before it."""
        return self._spent

    async def ask(self, request: Request) -> Answer:
        """The reply, from the disk if it is there; raises RefusedError, GivenUpError, BudgetError, DataError."""
        kept = self._replies.get(request.key)
        if kept is not None:
            return kept
        refusal = self._replies.refusal(request.key)
        if refusal is not None:
            raise RefusedError(refusal)
        again = 0
        try:
            async for attempt in AsyncRetrying(
                stop=stop_after_attempt(self._limits.attempts),
                wait=self._wait,
                retry=retry_if_exception_type(TryAgainError),
                reraise=True,
            ):
                with attempt:
                    try:
                        answer = await self._attempt(request, again)
                    except TryAgainError as error:
                        again += error.usage is not None  # a reply that is of no use: another one is wanted
                        raise
        except TryAgainError as error:
            raise GivenUpError(error.reason) from None
        except RefusedError as error:
            self._refused(request.key, error.reason)
            raise
        self._replies.keep(request.key, answer)
        return answer

    async def _attempt(self, request: Request, again: int) -> Answer:
        size = round(tokens_in(request)) + REPLY_TOKENS
        await self._requests.acquire()
        for part in _parts(size, self._tokens.max_rate):
            await self._tokens.acquire(part)
        while (wait := self._not_before - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        # those under way count at what they will cost about
        expected = Spent(0, self._under_way * (size - REPLY_TOKENS), self._under_way * REPLY_TOKENS)
        limit = self._limits.reached(_sum(self._spent, expected))
        if limit:
            raise BudgetError(limit)
        self._spend(Spent(requests=1))
        self._under_way += 1
        try:
            answer = await self._teacher.answer(request, again)
            return self._usable(request, answer)
        except TryAgainError as error:
            self._failed(error)
            raise
        finally:
            self._under_way -= 1

    def _usable(self, request: Request, answer: Answer) -> Answer:
        """The answer, paid for; raises TryAgainError if it is not what was asked for."""
        usage = answer.usage
        if self._teacher.metered and not any(usage):  # a server that does not tell
            usage = Usage(round(tokens_in(request)), round(len(answer.text) / CHARACTERS_A_TOKEN))
        try:
            parsed(answer.text, request.schema)
        except ReplyError as error:
            raise TryAgainError(error.reason, usage=usage) from None
        self._spend(Spent(0, *usage))
        self._failed_in_a_row = 0
        self._answers = True
        self._refused_in_a_row = 0
        for key, reason in self._refusals:  # the server answers others: these were refused for what they are
            self._replies.refuse(key, reason)
        self._refusals.clear()
        return answer

    def _spend(self, more: Spent) -> None:
        if self._teacher.metered:
            self._replies.spend(more)
            self._spent = _sum(self._spent, more)

    def _failed(self, error: TryAgainError) -> None:
        """Counts a fault; raises DataError if there is nothing else."""
        self.faults[error.reason] += 1
        if error.usage is not None:
            self._spend(Spent(0, *error.usage))
        if error.after is not None:
            self._not_before = max(self._not_before, time.monotonic() + error.after)
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= max(FAILED_IN_A_ROW, 5 * self._limits.concurrency):
            raise DataError(
                f"{self._failed_in_a_row} attempts failed in a row, the last by: {error.reason}; what is answered "
                "is kept, run the same command again to continue"
            ) from None

    def _refused(self, key: str, reason: str) -> None:
        """Notes a refusal, for good if others are answered; raises DataError if there is nothing else."""
        if self._answers:
            self._replies.refuse(key, reason)
        else:
            self._refusals.append((key, reason))
        self._refused_in_a_row += 1
        if self._refused_in_a_row >= REFUSED_IN_A_ROW:
            raise DataError(
                f"{self._refused_in_a_row} requests in a row were refused, the last by: {reason}; see --model and the "
                "options of decoding"
            ) from None

    def _wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, TryAgainError) and error.after is not None:
            return error.after
        return wait_random_exponential(multiplier=self._limits.backoff, max=MAX_WAIT)(state)


def _limiter(per_minute: float | None, burst: float) -> AsyncLimiter:
    """A leaky bucket that lets through `burst` at once, and with it no more in any minute than is allowed."""
    if per_minute is None:
        return AsyncLimiter(1e12, 1.0)
    return AsyncLimiter(burst, 60 * burst / max(per_minute - burst, per_minute / 2))


async def in_turn(jobs: Iterable[T], work: Callable[[T], Awaitable[None]], concurrency: int) -> None:
    """Does the jobs, so many at a time, taking each from the iterable when it begins; the first error ends all."""
    waiting: Iterator[T] = iter(jobs)

    async def worker() -> None:
        for job in waiting:
            await work(job)

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(worker())
