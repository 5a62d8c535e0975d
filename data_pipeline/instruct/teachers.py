"""Who writes conversations: one protocol, and the teachers by name; others are given as MODULE:CLASS."""

import importlib
from typing import Any, NamedTuple, Protocol, runtime_checkable

from data_pipeline.errors import DataError
from data_pipeline.instruct.requests import Request


class Usage(NamedTuple):
    """Tokens, as the teacher counts them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class Answer(NamedTuple):
    """What a teacher wrote; a reply to `schema` if it did as it was asked."""

    text: str
    usage: Usage = Usage()


class TryAgainError(RuntimeError):
    """An attempt that failed for a reason that may pass; after: seconds that the server asks to wait, if it does.

    usage: what was paid for all the same, of a reply that is of no use.
    """

    def __init__(self, reason: str, after: float | None = None, usage: Usage | None = None):
        super().__init__(reason)
        self.reason = reason
        self.after = after
        self.usage = usage


class RefusedError(RuntimeError):
    """A request that will never be answered (too long, against a policy); others may be."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


@runtime_checkable
class Teacher(Protocol):
    """Answers one request at a time; several may be under way.

    model: its name, for the record. asked: what of its settings decides the answers, for keys and identity.
    metered: whether a server counts requests and tokens, so that estimates and limits make sense.
    """

    model: str
    asked: dict[str, Any]
    metered: bool

    async def answer(self, request: Request, again: int = 0) -> Answer:
        """One attempt; raises TryAgainError, RefusedError, or DataError where no request can succeed.

        again: how many replies to it could not be used; a teacher that always says the same says something else then.
        """
        ...

    async def close(self) -> None:
        """Ends what it holds open."""
        ...


class TeacherOptions(NamedTuple):
    """What a teacher may want to know; None: its own default, or the environment's."""

    model: str | None = None
    base_url: str | None = None
    temperature: float = 0.7
    top_p: float = 1.0
    max_tokens: int = 1024
    seed: int = 0
    timeout: float = 120.0  # seconds a request
    structured: str = "auto"  # schema, json, none: how much the server can be held to


TEACHERS = {
    "rules": "data_pipeline.instruct.rules:RulesTeacher",
    "openai": "data_pipeline.instruct.openai_teacher:OpenAITeacher",
    "assistant": "llamo_jax.apps.teacher:AssistantTeacher",  # by name: this package imports nothing of that one
}


def load_teacher(name: str, options: TeacherOptions) -> Teacher:
    """A teacher by its name in TEACHERS, or as MODULE:CLASS; raises DataError if there is none."""
    place = TEACHERS.get(name, name)
    module, _, attribute = place.partition(":")
    if not attribute:
        raise DataError(f"no teacher {name!r}; known: {', '.join(TEACHERS)}, or MODULE:CLASS")
    try:
        made = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise DataError(f"teacher {name!r} needs {error.name or module}, which cannot be imported ({error})") from None
    except AttributeError:
        raise DataError(f"{module} has no {attribute}") from None
    if not callable(made):
        raise DataError(f"{place} is no class")
    return made(options)
