"""Conversations rated by other teachers, on the rubric that people get too; their sheets have the same form."""

import asyncio
import re
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any

import pydantic
from etils import epath

from data_pipeline import storage
from data_pipeline.conversation import Message
from data_pipeline.errors import DataError
from data_pipeline.instruct import ratings
from data_pipeline.instruct.asking import Asker, BudgetError, GivenUpError, Limits, in_turn
from data_pipeline.instruct.job import CONVERSATIONS, REPLIES
from data_pipeline.instruct.replies import Replies
from data_pipeline.instruct.requests import Request, made_request, parsed
from data_pipeline.instruct.seeds import facts_about
from data_pipeline.instruct.teachers import RefusedError, Teacher
from data_pipeline.progress import watched

Score = Annotated[int, pydantic.Field(ge=1, le=5)]


class Rating(pydantic.BaseModel):
    """What a judge writes."""

    model_config = pydantic.ConfigDict(extra="forbid")
    relevance: Score
    correctness: Score
    helpfulness: Score
    comment: str


_INSTRUCTIONS = (
    "You rate conversations between a user and an assistant about molecules. You get the molecules with facts computed "
    "by RDKit, and the conversation. Rate, from 1 to 5:\n\n{rubric}\n\n"
    'Answer with a JSON object and nothing else: {{"relevance": 1-5, "correctness": 1-5, "helpfulness": 1-5, '
    '"comment": "one sentence"}}'
)


def judge(folder: epath.Path, teachers: Sequence[Teacher], count: int, seed: int, limits: Limits) -> str:
    """Has a sample of the kept conversations rated; each judge's are DIR/ratings-NUMBER-NAME.csv, as people's are.

    Raises DataError if there are no conversations.
    """
    rows = ratings.sample(folder / CONVERSATIONS, count, seed)
    if not rows:
        raise DataError(f"{folder / CONVERSATIONS} holds no conversations")
    told = []
    if len({teacher.model for teacher in teachers}) < len(teachers):
        raise DataError("--judge names one model twice: it would agree with itself")
    for number, teacher in enumerate(teachers, start=1):
        name = re.sub(r"[^\w.-]+", "-", teacher.model)
        with (
            storage.locked(folder),
            Replies(folder / REPLIES) as replies,
            asyncio.Runner() as runner,
        ):
            requests = [_request(row, teacher) for row in rows]
            given, failed = runner.run(_ask(teacher, replies, limits, requests))
            runner.run(teacher.close())
        path = folder / f"ratings-{number}-{name}.csv"
        lines = [
            (row["id"], rating.relevance, rating.correctness, rating.helpfulness, rating.comment)
            for row, rating in zip(rows, given, strict=True)
            if rating is not None
        ]
        reasons = ", ".join(f"{reason} ({count:,})" for reason, count in failed.most_common(3))
        if not lines:
            raise DataError(f"{teacher.model} rated none of {len(rows)} conversations: {reasons}")
        if failed:
            print(f"{teacher.model} rated {len(lines):,} of {len(rows):,} conversations: {reasons}", flush=True)
        storage.write_text(path, ratings.as_csv(lines))
        told.append(path)
    return ratings.read_ratings(folder, told)


def _request(row: dict[str, Any], teacher: Teacher) -> Request:
    smiles = [row["smiles"]] if isinstance(row["smiles"], str) else row["smiles"]
    facts = [{"smiles": each, "facts": facts_about(each).as_json()} for each in smiles]
    rubric = "\n".join(f"{name}: {text}" for name, text in ratings.RUBRIC.items())
    content = ratings.as_json({"molecules": facts, "messages": row["messages"]})
    messages = [Message("system", _INSTRUCTIONS.format(rubric=rubric)), Message("user", content)]
    return made_request(messages, Rating, ratings.as_json(teacher.asked))


async def _ask(
    teacher: Teacher, replies: Replies, limits: Limits, requests: Sequence[Request]
) -> tuple[list[Rating | None], Counter[str]]:
    asker = Asker(teacher, replies, limits)
    found: list[Rating | None] = [None] * len(requests)
    failed: Counter[str] = Counter()
    with watched(total=len(requests), desc=f"judge {teacher.model}", unit=" conversations") as bar:

        async def work(index: int) -> None:
            try:
                answer = await asker.ask(requests[index])
                rating = parsed(answer.text, Rating)
                assert isinstance(rating, Rating)
                found[index] = rating
            except (RefusedError, GivenUpError) as error:
                failed[error.reason] += 1
            except BudgetError as error:
                failed[f"{error} is reached"] += 1
            bar.update()

        try:
            await in_turn(range(len(requests)), work, limits.concurrency if teacher.metered else 1)
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
    return found, failed
