"""Any server that speaks OpenAI's chat completions, hosted or one's own (vLLM, TGI, Ollama, llama.cpp)."""

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any

from data_pipeline.errors import DataError
from data_pipeline.instruct.requests import Request, json_schema
from data_pipeline.instruct.teachers import Answer, RefusedError, TeacherOptions, TryAgainError, Usage

if TYPE_CHECKING:
    from openai import APIStatusError

MAX_BYTES = 2**21
"""Of a response; a conversation has some kilobytes."""

MAX_RETRY_AFTER = 3600.0
"""Seconds; a server that asks for more is taken to be out of order."""

_AGAIN = frozenset((408, 409, 425, 429))
_FATAL = {
    401: "the key is refused",
    402: "it wants to be paid",
    403: "the key may not do this",
    404: "no such model or address",
    405: "no such address",
}
_NO_KEY = "none"  # servers on one's own machine want none, and the library insists on some
STRUCTURES = ("schema", "json", "none")


class OpenAITeacher:
    """Key from OPENAI_API_KEY, address from --base_url or OPENAI_BASE_URL; raises DataError if they are not enough.

    Replies are held to the JSON schema where the server offers it; one that refuses `response_format` is asked without,
    from then on (structured="auto").
    """

    metered = True

    def __init__(self, options: TeacherOptions):
        try:
            import openai
        except ImportError:
            raise DataError('teacher openai needs a library: pip install "llamo_jax[instruct]"') from None
        base_url = options.base_url or os.environ.get("OPENAI_BASE_URL")
        key = (os.environ.get("OPENAI_API_KEY") or "").strip()
        if not key.isascii():
            raise DataError("OPENAI_API_KEY holds characters that no key has")
        self._without_key = not key and not base_url
        if not options.model:
            raise DataError("teacher openai needs --model, such as gpt-4.1-mini")
        if options.structured not in ("auto", *STRUCTURES):
            raise DataError(f"--structured {options.structured!r} is none of auto, {', '.join(STRUCTURES)}")
        self.model = options.model
        self.asked: dict[str, Any] = {
            "teacher": "openai",
            "model": options.model,
            "temperature": options.temperature,
            "top_p": options.top_p,
            "max_tokens": options.max_tokens,
            "seed": options.seed,
        }
        self._timeout = options.timeout
        self._structure = 0 if options.structured == "auto" else STRUCTURES.index(options.structured)
        self._fixed = options.structured != "auto"
        self._lower: dict[str, int] = {}  # by request, until it is answered: a refusal may be its own
        self._openai = openai
        # one attempt at a time: repeating is the job's, which counts and pays for attempts; and a key that follows a
        # redirect is a key given away
        self._client = openai.AsyncOpenAI(
            api_key=key or _NO_KEY,
            base_url=base_url,
            max_retries=0,
            timeout=options.timeout,
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False),
        )

    async def answer(self, request: Request, again: int = 0) -> Answer:
        """One attempt, of at most `timeout` seconds and MAX_BYTES."""
        if self._without_key:
            raise DataError("set OPENAI_API_KEY, or give the address of a server of your own with --base_url")
        structure = max(self._structure, self._lower.get(request.key, 0))
        try:
            async with asyncio.timeout(self._timeout):
                # servers that know the header charge a request once, however often it is sent
                name = f"{request.key}-{again}-{structure}"
                content = await self._post(body(self.asked, request, STRUCTURES[structure], again), name)
        except TimeoutError:
            raise TryAgainError("timeout") from None
        except self._openai.APIStatusError as error:
            self._judge(error, request.key, structure)
        except self._openai.APIConnectionError as error:
            raise TryAgainError(_connection_reason(error)) from None
        except self._openai.OpenAIError as error:
            raise TryAgainError(type(error).__name__) from None
        answer = read_completion(content)
        if self._lower.pop(request.key, 0) == structure > self._structure:
            self._structure = structure  # the server does not offer more
        return answer

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    async def _post(self, content: dict[str, Any], key: str) -> bytes:
        """The response's body, unless it grows too large: nothing that a server sends fills the memory."""
        create = self._client.chat.completions.with_streaming_response.create
        received = bytearray()
        try:
            async with create(**content, extra_headers={"Idempotency-Key": key}) as response:
                async for piece in response.iter_bytes():
                    received += piece
                    if len(received) > MAX_BYTES:
                        raise TryAgainError(f"a response of more than {MAX_BYTES:,} bytes")
        except (self._openai.OpenAIError, TryAgainError):
            raise
        except Exception as error:  # the HTTP library's own, while the body is read
            if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "httpcore", "httpcore2", "zlib"):
                raise
            raise TryAgainError(f"the connection broke ({type(error).__name__})") from None
        return bytes(received)

    def _judge(self, error: "APIStatusError", key: str, structure: int) -> None:
        """Raises what a status means; without its text, in which a server may repeat anything."""
        status = error.status_code
        if status in _FATAL:
            raise DataError(f"the server answers {status}: {_FATAL[status]}; see OPENAI_API_KEY, --base_url, --model")
        if status in (400, 422) and not self._fixed and structure < len(STRUCTURES) - 1:
            self._lower[key] = structure + 1
            raise TryAgainError(f"response_format {STRUCTURES[structure]} is not offered")
        if status in _AGAIN or status >= 500 or 300 <= status < 400:
            raise TryAgainError(f"status {status}", _retry_after(error.response.headers.get("retry-after")))
        self._lower.pop(key, None)
        raise RefusedError(f"status {status}")


def body(asked: dict[str, Any], request: Request, structure: str, again: int = 0) -> dict[str, Any]:
    """The fields of a request, for the server or for a batch file."""
    content: dict[str, Any] = {name: value for name, value in asked.items() if name != "teacher"}
    content["seed"] = asked["seed"] + again
    content["messages"] = [message._asdict() for message in request.messages]
    if structure == "schema":
        named = {"name": request.schema.__name__.lower(), "strict": True, "schema": json_schema(request.schema)}
        content["response_format"] = {"type": "json_schema", "json_schema": named}
    elif structure == "json":
        content["response_format"] = {"type": "json_object"}
    return content


def read_completion(content: bytes | str) -> Answer:
    """The text of a completion; raises TryAgainError if it is none, RefusedError if the model will not answer."""
    try:
        completion = json.loads(content)
        choice = completion["choices"][0]
        text, reason = choice["message"]["content"], choice.get("finish_reason")
        refusal = choice["message"].get("refusal")
        usage = completion.get("usage") or {}
        counts = Usage(_count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens")))
    except (ArithmeticError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise TryAgainError("not a chat completion") from None
    if refusal or reason == "content_filter":
        raise RefusedError("the model refuses")
    if not isinstance(text, str) or not text.strip():
        raise TryAgainError("an empty answer", usage=counts)
    if reason == "length":
        raise TryAgainError("an answer cut at --max_answer_tokens", usage=counts)
    return Answer(text, counts)


def _count(value: Any) -> int:
    """Tokens that a server reports, within reason."""
    return min(max(0, int(value or 0)), 10**7)


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or a date; None if it holds neither, or too much."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        import email.utils
        import time

        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds) if seconds <= MAX_RETRY_AFTER else None


def _connection_reason(error: Exception) -> str:
    """Without addresses or headers: the kind of fault."""
    if "timeout" in type(error).__name__.lower():
        return "timeout"
    return f"no connection ({type(error.__cause__).__name__})" if error.__cause__ else "no connection"
