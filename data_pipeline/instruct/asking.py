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
from data_pipeline.instruct.teachers import Answer, RefusedError, Teacher, TryAgainError

T = TypeVar("T")

CHARACTERS_A_TOKEN = 4.0
"""Of English in the usual tokenizers; only estimates rest on it."""

REPLY_TOKENS = 300
"""Of a conversation of some turns; only estimates rest on it."""

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
        unusable = 0
        try:
            async for attempt in AsyncRetrying(
                stop=stop_after_attempt(self._limits.attempts),
                wait=self._wait,
                retry=retry_if_exception_type(TryAgainError),
                reraise=True,
            ):
                with attempt:
                    answer = await self._attempt(request, unusable)
                    try:
                        parsed(answer.text, request.schema)
                    except ReplyError as error:
                        unusable += 1
                        self.faults[error.reason] += 1
                        raise TryAgainError(error.reason) from None
        except TryAgainError as error:
            raise GivenUpError(error.reason) from None
        except RefusedError as error:
            self._replies.refuse(request.key, error.reason)
            raise
        self._replies.keep(request.key, answer)
        return answer

    async def _attempt(self, request: Request, unusable: int) -> Answer:
        await self._requests.acquire()
        await self._tokens.acquire(min(tokens_in(request) + REPLY_TOKENS, self._tokens.max_rate))
        while (wait := self._not_before - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        # those under way count as made, whatever they will have cost
        limit = self._limits.reached(self._spent._replace(requests=self._spent.requests + self._under_way))
        if limit:
            raise BudgetError(limit)
        self._replies.attempted()
        self._under_way += 1
        try:
            answer = await self._teacher.answer(request, unusable)
        except TryAgainError as error:
            self.faults[error.reason] += 1
            self._failed_in_a_row += 1
            if error.after is not None:
                self._not_before = max(self._not_before, time.monotonic() + error.after)
            if self._failed_in_a_row >= max(50, 5 * self._limits.concurrency):
                raise DataError(
                    f"{self._failed_in_a_row} attempts failed in a row, the last by: {error.reason}; what is answered "
                    "is kept, run the same command again to continue"
                ) from None
            raise
        finally:
            self._under_way -= 1
            self._spent = self._spent._replace(requests=self._spent.requests + 1)
        self._failed_in_a_row = 0
        self._spent = self._spent._replace(
            prompt_tokens=self._spent.prompt_tokens + answer.usage.prompt_tokens,
            completion_tokens=self._spent.completion_tokens + answer.usage.completion_tokens,
        )
        return answer

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
