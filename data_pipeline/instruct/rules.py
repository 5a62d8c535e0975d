"""The teacher that needs nothing: conversations from facts, in varied wording, and from the people's text of a seed.

It reads a request as any other teacher does: the last message, and the SMILES and text in it.
"""

import json
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

from data_pipeline.conversation import Message
from data_pipeline.describe import DESCRIPTION_REQUESTS, describe
from data_pipeline.errors import DataError
from data_pipeline.instruct.requests import Reply, Request, as_reply
from data_pipeline.instruct.rule_turns import (
    COMPARISON,
    CORRECTION,
    PROPERTY,
    REFUSALS,
    STRUCTURE,
    UNKNOWN,
    Turn,
    sentence,
)
from data_pipeline.instruct.seeds import MoleculeFacts, facts_about
from data_pipeline.instruct.teachers import Answer, RefusedError, TeacherOptions


class RulesTeacher:
    """Writes a reply in microseconds once the facts are known; the same request always gets the same one."""

    metered = False

    def __init__(self, options: TeacherOptions):
        self.model = "rules"
        self.asked: dict[str, Any] = {"teacher": "rules", "version": 1, "seed": options.seed}

    async def answer(self, request: Request, again: int = 0) -> Answer:
        """A conversation; raises RefusedError for a request that is none of `requests.request_for`."""
        if request.schema is not Reply:
            raise DataError("rules only write conversations; choose another teacher")
        asked = asked_for(request.messages)
        rng = random.Random(request.key)
        facts = [facts_about(molecule["smiles"]) for molecule in asked["molecules"]]
        turns = _WRITERS[asked["kind"]](facts, asked["molecules"][0].get("description", ""), rng)
        return Answer(as_reply([text for turn in turns for text in turn]))

    async def close(self) -> None:
        """Nothing is held open."""


def asked_for(messages: Sequence[Message]) -> dict[str, Any]:
    """The seed of a request (`requests.seed_json`); raises RefusedError if there is none."""
    for message in reversed(messages):
        if message.role == "user":
            try:
                asked = json.loads(message.content)
            except ValueError:
                continue  # what a follow-up says
            if isinstance(asked, dict) and asked.get("kind") in _WRITERS:
                return asked
    raise RefusedError("not a request for a conversation")


def questions(asked: dict[str, Any], rng: random.Random) -> list[str]:
    """What a user may ask in a conversation of this kind, for teachers that only answer."""
    facts = [facts_about(molecule["smiles"]) for molecule in asked["molecules"]]
    return [question for question, _ in _WRITERS[asked["kind"]](facts, "", rng)]


_ROLE = re.compile(r"\bIt has a role as [^.]+\.|\bIt is (?:isolated|found) (?:from|in) [^.]+\.")


_REQUESTS = (
    *DESCRIPTION_REQUESTS,
    "Tell me about this molecule.",
    "Could you summarise this structure for me?",
    "Write a short entry on this compound for a data base.",
    "How would you describe this structure?",
)


def _description(facts: Sequence[MoleculeFacts], text: str, rng: random.Random) -> list[Turn]:
    turns = [(rng.choice(_REQUESTS), describe(facts[0].basic, rng))]
    role = _ROLE.search(text)
    if role and rng.random() < 0.7:
        turns.append((rng.choice(("Is anything known about its role or origin?", "What is it known for?")), role[0]))
    more = rng.sample(STRUCTURE, k=4)
    turns += [turn for turn in (writer(facts[0], rng) for writer in more) if turn][: rng.choice((1, 2))]
    return turns


def _structure(facts: Sequence[MoleculeFacts], text: str, rng: random.Random) -> list[Turn]:
    writers = rng.sample(STRUCTURE, k=len(STRUCTURE))
    turns = [turn for turn in (writer(facts[0], rng) for writer in writers) if turn]
    return turns[: rng.choice((2, 3, 3, 4))]


def _property(facts: Sequence[MoleculeFacts], text: str, rng: random.Random) -> list[Turn]:
    return [writer(facts[0], rng) for writer in rng.sample(PROPERTY, k=rng.choice((2, 2, 3)))]


def _comparison(facts: Sequence[MoleculeFacts], text: str, rng: random.Random) -> list[Turn]:
    return [writer(facts[0], facts[1], rng) for writer in rng.sample(COMPARISON, k=rng.choice((2, 3)))]


def _correction(facts: Sequence[MoleculeFacts], text: str, rng: random.Random) -> list[Turn]:
    writers = rng.sample(CORRECTION, k=len(CORRECTION))
    turns = [turn for turn in (writer(facts[0], rng) for writer in writers) if turn]
    return turns[: rng.choice((1, 2, 2))]


def _unknown(facts: Sequence[MoleculeFacts], text: str, rng: random.Random) -> list[Turn]:
    thing, question = rng.choice(UNKNOWN)
    refusal = rng.choice(REFUSALS).format(thing)
    fact = sentence("it", facts[0], rng)
    offer = rng.choice(
        ("What it does show: {}", "From the structure I can say this much: {}", "The structure does show that {}")
    )
    turns = [(question, f"{refusal} {offer.format(fact)}")]
    turn = rng.choice(STRUCTURE)(facts[0], rng)
    return [*turns, turn] if turn and rng.random() < 0.5 else turns


_WRITERS: dict[str, Callable[[Sequence[MoleculeFacts], str, random.Random], list[Turn]]] = {
    "description": _description,
    "structure": _structure,
    "property": _property,
    "comparison": _comparison,
    "correction": _correction,
    "unknown": _unknown,
}
