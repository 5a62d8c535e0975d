"""A job: plan, ask, check, and write, as often as rejected conversations have to be replaced.

Everything that was answered is kept in DIR/replies.sqlite; what is written is made from it, whole, at the end. So a
job may be killed at any moment and started again, and thresholds may be changed without asking anything twice.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import rdkit
from etils import epath

from data_pipeline import storage
from data_pipeline.errors import DataError
from data_pipeline.files import TableOptions
from data_pipeline.instruct.asking import REPLY_TOKENS, Asker, BudgetError, GivenUpError, Limits, in_turn, tokens_in
from data_pipeline.instruct.assembly import Assembly, Written
from data_pipeline.instruct.kinds import PROMPT_VERSION
from data_pipeline.instruct.mending import better, mending
from data_pipeline.instruct.plan import Plan, Planned, identity_of, kinds_in_turn
from data_pipeline.instruct.quality import Thresholds
from data_pipeline.instruct.replies import Replies, Spent
from data_pipeline.instruct.requests import Reply, ReplyError, json_schema, parsed
from data_pipeline.instruct.seeds import Columns, Excluded, fingerprint, read_seeds
from data_pipeline.instruct.teachers import RefusedError, Teacher
from data_pipeline.progress import watched

IDENTITY = "instruct.json"
REPLIES = "replies.sqlite"
CONVERSATIONS, REJECTED, QUALITY = "conversations.jsonl", "rejected.jsonl", "quality.json"

_ANY_TABLE = TableOptions()
_GUESSED = Columns()
_USUAL = Thresholds()


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the conversations, besides the teacher; and `thresholds` and `rounds`, what is kept of them."""

    conversations: int
    shares: Mapping[str, float]
    seed: int = 0
    mend: bool = False
    rounds: int = 4  # of replacing what was rejected
    columns: Columns = _GUESSED
    table: TableOptions = _ANY_TABLE
    exclude: tuple[Path, ...] = ()
    exclude_scaffolds: bool = False
    thresholds: Thresholds = _USUAL


class Outcome(NamedTuple):
    """quality: what quality.json holds. stopped: why not everything was asked, in words; None if it was."""

    quality: dict[str, Any]
    stopped: str | None


class Estimate(NamedTuple):
    """What is left to ask, before anything is asked: requests, and tokens at four characters each."""

    requests: int
    prompt_tokens: int
    completion_tokens: int

    def text(self, limits: Limits) -> str:
        """For people."""
        cost = limits.cost(Spent(self.requests, self.prompt_tokens, self.completion_tokens))
        price = f", about {cost:,.2f} at the prices given" if limits.price_input or limits.price_output else ""
        return (
            f"{self.requests:,} requests to go, about {self.prompt_tokens:,} prompt and {self.completion_tokens:,} "
            f"answer tokens{price}"
        )


class Job:
    """A folder that is worked in; made by `Job.open`."""

    def __init__(self, folder: epath.Path, plan: Plan, replies: Replies, settings: Settings, unread: list[Any]):
        self.folder, self.plan, self.replies, self.settings = folder, plan, replies, settings
        self._unread = unread
        self.excluded: dict[str, int] = {}

    @classmethod
    @contextlib.contextmanager
    def open(
        cls, files: Sequence[Path], folder: epath.Path, settings: Settings, asked: Mapping[str, Any]
    ) -> Iterator["Job"]:
        """The job of these files in a folder, locked; raises DataError if another job's output is there."""
        if storage.is_remote(folder):
            raise DataError(f"{folder}: conversations are written on a local disk; copy them when they are finished")
        for path in (*files, *settings.exclude):
            if not path.is_file():
                raise DataError(f"{path}: no such file")
        if folder.exists() and not folder.is_dir():
            raise DataError(f"{folder} is a file; choose a folder")
        known = folder / IDENTITY
        if not known.exists() and folder.exists() and storage.contents(folder):
            raise DataError(f"{folder} holds something else; choose another folder")
        # read first: a first try with a wrong column leaves nothing behind
        identity = _identity(files, settings, asked)
        seeds, unread = read_seeds(files, settings.columns, settings.table)
        excluded = Excluded(settings.exclude, scaffolds=settings.exclude_scaffolds, options=settings.table)
        storage.make_folder(folder)
        with storage.locked(folder):
            if known.exists() and not _is_same(known, identity, folder):
                for path in folder.glob(f"{REPLIES}*"):  # another job's, which was answered nothing
                    storage.remove(path)
            storage.write_json(known, identity)
            with Replies(folder / REPLIES) as replies:
                plan = Plan(seeds, excluded, settings.seed, json.dumps(dict(asked), sort_keys=True), replies)
                job = cls(folder, plan, replies, settings, unread)
                job.excluded = {"molecules": excluded.molecules, "unreadable_rows": excluded.unreadable}
                yield job

    def begin(self) -> list[Planned]:
        """The conversations of the first round."""
        missing = self.settings.conversations - len(self.plan.items)
        if missing > 0:
            planned = Counter(item.kind for item in self.plan.items)
            self.plan.extend([*itertools.islice(kinds_in_turn(self.settings.shares, planned), missing)])
        return self.plan.items[: self.settings.conversations]

    def unanswered(self, items: Sequence[Planned]) -> Iterator[Planned]:
        """Those that have neither a reply nor a refusal."""
        for item in items:
            if not self.replies.has(item.key):
                yield item

    def estimate(self, items: Sequence[Planned]) -> Estimate:
        """From a sample of what is left."""
        left = sum(1 for _ in self.unanswered(items))
        sample = items[:: max(1, len(items) // 32)]
        size = sum(tokens_in(self.plan.request(item)) for item in sample) / max(1, len(sample))
        spent = self.replies.spent()
        reply = spent.completion_tokens / self.replies.answered() if spent.completion_tokens else REPLY_TOKENS
        return Estimate(left, round(left * size), round(left * reply))

    def run(self, teacher: Teacher, limits: Limits) -> Outcome:
        """Asks what is missing, checks, replaces, and writes the folder's files."""
        items = self.begin()
        with contextlib.ExitStack() as stack:
            names = (CONVERSATIONS, REJECTED)
            good, bad = (stack.enter_context(storage.writing(self.folder / name)) for name in names)
            provenance = {"prompt_version": PROMPT_VERSION, "rdkit": rdkit.__version__, **teacher.asked}
            assembly = stack.enter_context(Assembly.writing(good, bad, self.settings.thresholds, provenance))
            runner = stack.enter_context(asyncio.Runner())  # one event loop: connections live in it
            stack.callback(lambda: runner.run(teacher.close()))
            for row in self._unread:
                assembly.reject_row(row)
            stopped = None
            faults: Counter[str] = Counter()
            for number in range(self.settings.rounds + 1):
                stopped, spent = runner.run(self._ask(teacher, limits, items, faults, number))
                assembly.add(self._written(items), len(items))
                missing = self.settings.conversations - assembly.kept
                if stopped or missing <= 0 or number == self.settings.rounds:
                    break
                items = self._next_round(assembly, missing)
            for index, reason in self.plan.skipped.items():
                seed = self.plan.seeds[index]
                assembly.reject_row({"file": seed.file, "row": seed.row, "reason": reason})
        cost = limits.cost(spent)
        quality = {
            "complete": stopped is None,
            "asked_for": self.settings.conversations,
            **assembly.report(self.settings.shares),
            "thresholds": self.settings.thresholds._asdict(),
            "teacher": dict(teacher.asked),
            "prompt_version": PROMPT_VERSION,
            "excluded": self.excluded,
            "spent": {**spent._asdict(), **({"cost": cost} if cost else {})},
            "faults": dict(faults.most_common()),
        }
        storage.write_json(self.folder / QUALITY, quality)
        return Outcome(quality, stopped)

    def _next_round(self, assembly: Assembly, missing: int) -> list[Planned]:
        """Conversations in place of those that were rejected, of the kinds that are short; those of an earlier run."""
        done = assembly.tried
        more = done + missing - len(self.plan.items)
        if more > 0:
            kinds = kinds_in_turn(self.settings.shares, assembly.kept_kinds)
            self.plan.extend([*itertools.islice(kinds, more)])
        return self.plan.items[done : done + missing]

    async def _ask(
        self, teacher: Teacher, limits: Limits, items: Sequence[Planned], faults: Counter[str], number: int
    ) -> tuple[str | None, Spent]:
        """Until every item has a reply; why it ended before, if it did, and all that was spent."""
        asker = Asker(teacher, self.replies, limits)
        stopped: list[str] = []
        given_up: Counter[str] = Counter()
        desc = f"round {number + 1}" if number else teacher.model
        with watched(total=len(items), desc=desc, unit=" conversations") as bar:

            async def work(item: Planned) -> None:
                if stopped:
                    return
                try:
                    await self._converse(asker, item)
                except RefusedError:
                    pass  # kept, and told with what is rejected
                except GivenUpError as error:
                    given_up[error.reason] += 1
                except BudgetError as error:
                    stopped.append(f"{error} is reached; give more and run the same command again to continue")
                if limits.price_input or limits.price_output:
                    bar.set_postfix_str(f"cost {limits.cost(asker.spent):,.2f}", refresh=False)
                bar.update()

            try:
                await in_turn(items, work, limits.concurrency if teacher.metered else 1)
            except ExceptionGroup as group:
                raise group.exceptions[0] from None
        faults.update(asker.faults)
        if given_up and not stopped:
            reasons = ", ".join(f"{reason} ({count:,})" for reason, count in given_up.most_common(3))
            stopped.append(f"{sum(given_up.values()):,} requests failed every time: {reasons}; run again to try again")
        return (stopped[0] if stopped else None), asker.spent

    async def _converse(self, asker: Asker, item: Planned) -> None:
        if self.replies.has(item.key) and not self.settings.mend:
            return
        request = self.plan.request(item)
        answer = await asker.ask(request)
        if self.settings.mend:
            mend = mending(request, answer, self._shown_seeds(item), self.settings.thresholds)
            if mend is not None:
                await asker.ask(mend)

    def _shown_seeds(self, item: Planned) -> tuple[str, list[Any]]:
        return item.kind, [self.plan.seeds[index] for index in item.seeds]

    def _written(self, items: Sequence[Planned]) -> Iterator[Written]:
        """The replies, in the plan's order; what is not answered is left out."""
        for item in items:
            kind, seeds = self._shown_seeds(item)
            refusal = self.replies.refusal(item.key)
            if refusal is not None:
                yield Written(item.key, kind, tuple(seeds), None, refusal, False)
                continue
            answer = self.replies.get(item.key)
            if answer is None:
                continue
            chosen, mended = answer.text, False
            if self.settings.mend:
                mend = mending(self.plan.request(item), answer, (kind, seeds), self.settings.thresholds)
                again = self.replies.get(mend.key) if mend is not None else None
                if again is not None and better((kind, seeds), again, answer, self.settings.thresholds):
                    chosen, mended = again.text, True
            try:
                reply = parsed(chosen, Reply)
            except ReplyError as error:
                yield Written(item.key, kind, tuple(seeds), None, error.reason, False)
                continue
            assert isinstance(reply, Reply)
            yield Written(item.key, kind, tuple(seeds), reply, None, mended)


def _identity(files: Sequence[Path], settings: Settings, asked: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "prompt_version": PROMPT_VERSION,
        "schema": json_schema(Reply),
        "rdkit": rdkit.__version__,  # facts may differ, and with them what is asked
        "inputs": fingerprint(files),
        "exclude": fingerprint(settings.exclude),
        "exclude_scaffolds": settings.exclude_scaffolds,
        "columns": list(settings.columns),
        "shares": identity_of(settings.shares),
        "seed": settings.seed,
        "mend": settings.mend,
        "teacher": dict(asked),
    }


def _is_same(path: epath.Path, identity: Mapping[str, Any], folder: epath.Path) -> bool:
    """Whether the folder's job is this one; raises DataError if it is another that has replies.

    What may differ between runs is not in it: how many conversations, limits, thresholds, rounds.
    """
    known = storage.read_json(path)
    differing = [name for name in identity if known.get(name) != json.loads(json.dumps(identity[name]))]
    if not differing:
        return True
    if not (folder / REPLIES).exists():
        return False
    with Replies(folder / REPLIES) as replies:
        if not replies.answered():
            return False
    told = "; ".join(f"{name}: {known.get(name)} there, {identity[name]} now" for name in differing)
    raise DataError(f"{folder} holds another job's conversations; choose another folder ({told})")
