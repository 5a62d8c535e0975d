"""What clients may ask, in the terms of OpenAI's API, and how they are refused.

Fields that would change an answer and are not supported are refused by name, never passed over.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from llamo_jax.apps.assistant import EMBEDDINGS

MAX_CHOICES = 16
MAX_STOPS = 4
MAX_EMBEDDED = 512
"""Molecules of one request to /v1/embeddings."""

TOOLS_NOT_CALLED = (None, "auto", "none")
"""Choices among offered tools that an answer in words obeys."""


class APIError(Exception):
    """A request that is not answered: HTTP status, and what OpenAI's error object says."""

    def __init__(
        self, status: int, message: str, *, code: str, param: str | None = None, retry_after: int | None = None
    ):
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after = retry_after

    def body(self) -> dict[str, Any]:
        """The JSON object that clients know."""
        kind = "invalid_request_error" if self.status < 500 and self.status != 429 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class _Asked(BaseModel):
    """Unknown fields are passed over: clients send many that change nothing here (`user`, `store`, `metadata`)."""

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)


class Part(_Asked):
    """Of a message's content: text, or a molecule as SMILES."""

    type: Literal["text", "molecule"]
    text: str = ""
    molecule: str = ""

    @model_validator(mode="after")
    def _whole(self) -> "Part":
        if self.type not in self.model_fields_set:
            raise ValueError(f"a part of type {self.type!r} has its content in the field {self.type!r}")
        return self


class ChatMessage(_Asked):
    """A turn, of parts or a text; its molecules stand at the beginning of the conversation, as the model was taught."""

    role: Literal["system", "developer", "user", "assistant"]
    content: list[Part]

    @field_validator("content", mode="before")
    @classmethod
    def _parts(cls, value: Any) -> Any:
        return [{"type": "text", "text": value}] if isinstance(value, str) else value

    def text(self) -> str:
        """Its text parts, in lines."""
        return "\n".join(part.text for part in self.content if part.type == "text")

    def molecules(self) -> list[str]:
        """SMILES of its molecule parts."""
        return [part.molecule for part in self.content if part.type == "molecule"]


class StreamOptions(_Asked):
    """What a stream tells besides the answer."""

    include_usage: bool = False


class ChatRequest(_Asked):
    """POST /v1/chat/completions. temperature: by default the server's, 0: the most probable answer.

    Tools may be offered, as Open WebUI does to every model; the model never calls one, and need not unless it is told.
    """

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    molecules: list[str] = []
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    seed: int | None = Field(default=None, ge=0, lt=2**32)
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    functions: list[Any] | None = None
    function_call: Any = None
    logit_bias: dict[str, float] | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    response_format: dict[str, Any] | None = None

    @field_validator("stop")
    @classmethod
    def _few_stops(cls, value: str | list[str] | None) -> str | list[str] | None:
        if isinstance(value, list) and len(value) > MAX_STOPS:
            raise ValueError(f"at most {MAX_STOPS} texts may end an answer")
        return value

    @model_validator(mode="after")
    def _supported(self) -> "ChatRequest":
        plain = self.response_format is None or self.response_format.get("type") == "text"
        used = {
            "tool_choice": self.tool_choice not in TOOLS_NOT_CALLED,
            "function_call": self.function_call not in TOOLS_NOT_CALLED,
            "logit_bias": bool(self.logit_bias),
            "frequency_penalty": bool(self.frequency_penalty),
            "presence_penalty": bool(self.presence_penalty),
            "response_format": not plain,
            "top_logprobs": bool(self.top_logprobs),
        }
        if found := [name for name, used_here in used.items() if used_here]:
            raise ValueError(f"{', '.join(found)}: not supported by this server")
        if self.messages[-1].role != "user":
            raise ValueError("messages: the last one is the user's, which is answered")
        return self

    def stops(self) -> list[str]:
        """Texts that end an answer."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [each for each in given if each]

    def smiles(self) -> list[str]:
        """All molecules, those of the field first."""
        return [*self.molecules, *(each for message in self.messages for each in message.molecules())]


class EmbeddingRequest(_Asked):
    """POST /v1/embeddings: SMILES in, vectors out. what: as for Assistant.embed; more than one axis is flattened."""

    model: str
    input: str | list[str] = Field(min_length=1)
    encoding_format: Literal["float", "base64"] = "float"
    what: str = "pooled"
    dimensions: int | None = None

    @model_validator(mode="after")
    def _supported(self) -> "EmbeddingRequest":
        if self.what not in EMBEDDINGS:
            raise ValueError(f"what: {self.what!r} is none of {', '.join(EMBEDDINGS)}")
        if self.dimensions is not None:
            raise ValueError("dimensions: not supported by this server")
        if len(self.smiles()) > MAX_EMBEDDED:
            raise ValueError(f"input: at most {MAX_EMBEDDED} molecules at a time")
        return self

    def smiles(self) -> list[str]:
        """The molecules."""
        return [self.input] if isinstance(self.input, str) else self.input
