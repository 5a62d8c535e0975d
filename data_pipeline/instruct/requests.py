"""What a teacher is asked: system message, examples, and the seed as JSON; and how its reply is read."""

import functools
import itertools
import json
import random
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import pydantic

from data_pipeline.conversation import Message
from data_pipeline.instruct.examples import EXAMPLES, Example
from data_pipeline.instruct.kinds import KINDS, RULES
from data_pipeline.instruct.seeds import Seed, digest_of, facts_about

MIN_EXAMPLES, MAX_EXAMPLES = 2, 4
MAX_OBJECTS = 20
"""Beginnings of objects in a reply that are tried: some models think aloud before they answer."""


class Turn(pydantic.BaseModel):
    """One message of a reply."""

    model_config = pydantic.ConfigDict(extra="forbid")
    role: Literal["user", "assistant"]
    content: str


class Reply(pydantic.BaseModel):
    """The conversation that a teacher writes."""

    model_config = pydantic.ConfigDict(extra="forbid")
    messages: list[Turn]


class ReplyError(ValueError):
    """A reply that is not what was asked for; `reason` is a short phrase that can be counted."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


class Request(NamedTuple):
    """messages: to send; schema: what the reply has to be, a pydantic model; key: names both, and who is asked."""

    messages: tuple[Message, ...]
    schema: type[pydantic.BaseModel]
    key: str

    def followed_by(self, *messages: Message) -> "Request":
        """The same request after some more turns."""
        digest = digest_of(json.dumps([self.key, *messages]))
        return Request((*self.messages, *messages), self.schema, digest)


def request_for(kind: str, seeds: Sequence[Seed], rng: random.Random, asked: str) -> Request:
    """The request for one conversation; `asked` identifies teacher, model and decoding. Raises InvalidMoleculeError."""
    own = [example for example in EXAMPLES if example.kind == kind]
    others = [example for example in EXAMPLES if example.kind != kind]
    count = rng.randint(MIN_EXAMPLES, MAX_EXAMPLES)
    chosen = rng.sample(own, min(len(own), count))  # of the kind itself, and of others where those are too few
    chosen += rng.sample(others, count - len(chosen))
    messages = [Message("system", RULES)]
    for example in chosen:
        messages += _shown(example)
    messages.append(Message("user", seed_json(kind, seeds)))
    return made_request(messages, Reply, asked)


def made_request(messages: Sequence[Message], schema: type[pydantic.BaseModel], asked: str) -> Request:
    """A request with its key: the SHA-256 of everything that decides the reply."""
    content = json.dumps([asked, json_schema(schema), list(messages)], ensure_ascii=False, sort_keys=True)
    return Request(tuple(messages), schema, digest_of(content))


def seed_json(kind: str, seeds: Sequence[Seed]) -> str:
    """The last message of a request: `{"kind", "task", "molecules": [{"smiles", "facts", …}]}`."""
    molecules = []
    for seed in seeds:
        texts = {"description": seed.description, "iupac_name": seed.name}
        known = {name: text for name, text in texts.items() if text}
        molecules.append({"smiles": seed.smiles, **known, "facts": facts_about(seed.smiles).as_json()})
    return json.dumps({"kind": kind, "task": KINDS[kind].task, "molecules": molecules}, ensure_ascii=False)


@functools.cache
def _shown(example: Example) -> tuple[Message, Message]:
    seeds = [Seed(smiles, "", "", "", 0) for smiles in example.smiles]
    return Message("user", seed_json(example.kind, seeds)), Message("assistant", as_reply(example.turns))


def as_reply(turns: Sequence[str]) -> str:
    """Turns in alternation, as a teacher shall write them."""
    roles = ("user", "assistant")
    messages = [{"role": roles[index % 2], "content": turn} for index, turn in enumerate(turns)]
    return json.dumps({"messages": messages}, ensure_ascii=False)


def json_schema(schema: type[pydantic.BaseModel]) -> dict[str, Any]:
    """For servers that hold a model to it."""
    return schema.model_json_schema()


def parsed(text: str, schema: type[pydantic.BaseModel]) -> pydantic.BaseModel:
    """A reply's text as an object of its schema; raises ReplyError.

    Models that are not held to a schema put a code fence or a sentence around the object, which is let pass.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ReplyError("the reply is not valid Unicode") from None
    fault = ReplyError("no JSON object in the reply")
    for start in itertools.islice((match.start() for match in re.finditer(r"\{", text)), MAX_OBJECTS):
        try:
            value, _ = json.JSONDecoder().raw_decode(text, start)
            return schema.model_validate(value)
        except (pydantic.ValidationError, UnicodeEncodeError):
            fault = ReplyError("the reply does not follow the schema")
        except (ValueError, RecursionError):
            fault = ReplyError("the reply is not JSON")
    raise fault
