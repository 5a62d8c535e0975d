"""OpenAI's protocol over a Service: routes, errors, keys, log and metrics."""

import asyncio
import base64
import contextlib
import dataclasses
import hmac
import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from typing import Any, TypeVar

import numpy as np
import pydantic
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from sse_starlette import EventSourceResponse
from starlette.exceptions import HTTPException

from llamo_jax import __version__
from llamo_jax.apps.serve.limits import BoundedBody
from llamo_jax.apps.serve.schema import APIError, ChatRequest, EmbeddingRequest
from llamo_jax.apps.serve.service import Answering, Service
from llamo_jax.generation.batcher import Piece

R = TypeVar("R", bound=pydantic.BaseModel)
T = TypeVar("T")

GONE = 499
"""Status, in log and metrics alone, of a request whose client went away: as nginx has it."""

BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

access_log = logging.getLogger("llamo_jax.serve.access")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Of an endpoint. name: the model's, as clients call it; api_key: without one, everybody may ask."""

    name: str
    api_key: str = ""
    max_body: int = 1 << 20
    body_seconds: float = 30.0
    drain_seconds: float = 30.0
    log_prompts: bool = False


class Metrics:
    """What /metrics tells; each endpoint has its own registry."""

    def __init__(self, service: Service):
        self.registry = CollectorRegistry()
        self.requests = Counter("llamo_requests", "by path and status", ["path", "status"], registry=self.registry)
        self.seconds = Histogram(
            "llamo_request_seconds", "until the last byte", ["path"], buckets=BUCKETS, registry=self.registry
        )
        self.first_token = Histogram(
            "llamo_first_token_seconds", "until an answer begins", buckets=BUCKETS, registry=self.registry
        )
        self.prompt_tokens = Counter("llamo_prompt_tokens", "read", registry=self.registry)
        batcher = service.batcher
        for name, text, value in (
            ("llamo_rows", "answers that can be decoded side by side", lambda: batcher.rows),
            ("llamo_running", "answers that are being decoded", lambda: batcher.running),
            ("llamo_waiting", "answers that queue", lambda: batcher.waiting),
            ("llamo_generated_tokens", "since the start", lambda: batcher.counts.tokens),
            ("llamo_failures", "programs that failed, since the start", lambda: batcher.counts.failures),
        ):
            Gauge(name, text, registry=self.registry).set_function(value)


def make_app(service: Service, settings: Settings) -> FastAPI:
    """The ASGI application."""
    app = FastAPI(title="llamo_jax", version=__version__, docs_url=None, redoc_url=None)  # their pages need a network
    metrics = Metrics(service)
    created = int(time.time())

    def check(request: Request, model: str) -> None:
        if model != settings.name:
            raise APIError(404, f"the model is called {settings.name!r}", code="model_not_found", param="model")
        request.state.told["model"] = model

    @app.post("/v1/chat/completions", openapi_extra=_body(ChatRequest))
    async def chat(request: Request) -> Response:
        asked = await _read(request, ChatRequest)
        check(request, asked.model)
        if settings.log_prompts:
            request.state.told["request"] = asked.model_dump(exclude_none=True)
        answering = await asyncio.to_thread(service.understand, asked)
        metrics.prompt_tokens.inc(len(answering.prompt.tokens))
        request.state.told["prompt_tokens"] = len(answering.prompt.tokens)
        return await (_streamed if asked.stream else _whole)(request, asked, answering)

    async def _whole(request: Request, asked: ChatRequest, answering: Answering) -> Response:
        scores: list[list[Any]] = [[] for _ in answering.choices]

        async def work() -> None:
            async for number, _, piece in _timed(request, answering):
                if asked.logprobs:
                    scores[number] += service.log_probabilities(answering.choices[number], piece)

        await _unless_gone(request, work())
        choices = [
            {
                "index": number,
                "message": {"role": "assistant", "content": choice.said, "refusal": None},
                "finish_reason": choice.reason,
                "logprobs": {"content": scores[number]} if asked.logprobs else None,
            }
            for number, choice in enumerate(answering.choices)
        ]
        return JSONResponse(_head("chat.completion", settings.name) | {"choices": choices, "usage": answering.usage()})

    async def _streamed(request: Request, asked: ChatRequest, answering: Answering) -> Response:
        pieces = _timed(request, answering)
        # what cannot be answered gets its status, and not a stream that breaks off
        first = await _unless_gone(request, anext(pieces))
        head = _head("chat.completion.chunk", settings.name)
        usage = asked.stream_options is not None and asked.stream_options.include_usage

        def event(choices: list[dict[str, Any]], **more: Any) -> dict[str, str]:
            return {"data": json.dumps(head | {"choices": choices} | more)}

        async def events() -> AsyncIterator[dict[str, str]]:
            async with contextlib.aclosing(pieces):
                for number in range(len(answering.choices)):
                    delta: dict[str, Any] = {"role": "assistant", "content": ""}
                    yield event([{"index": number, "delta": delta, "logprobs": None, "finish_reason": None}])
                try:
                    async for number, text, piece in _with_first(first, pieces):
                        choice = answering.choices[number]
                        scores = {"content": service.log_probabilities(choice, piece)} if asked.logprobs else None
                        if text or choice.reason or scores:
                            yield event(
                                [
                                    {
                                        "index": number,
                                        "delta": {"content": text} if text else {},
                                        "logprobs": scores,
                                        "finish_reason": choice.reason,
                                    }
                                ]
                            )
                    if usage:
                        yield event([], usage=answering.usage())
                except APIError as error:  # it is too late for a status
                    request.state.told |= {"status": error.status, "error": error.code}
                    yield {"data": json.dumps(error.body())}
                yield {"data": "[DONE]"}

        # a client that reads nothing is let go: its answer is done by then, and only the connection is held
        return EventSourceResponse(
            events(), send_timeout=settings.body_seconds, shutdown_grace_period=settings.drain_seconds + 5
        )

    async def _timed(request: Request, answering: Answering) -> AsyncGenerator[tuple[int, str, Piece], None]:
        start = time.perf_counter()
        async with contextlib.aclosing(service.answer(answering)) as pieces:
            async for each in pieces:
                if start:
                    metrics.first_token.observe(time.perf_counter() - start)
                    start = 0.0
                request.state.told["completion_tokens"] = answering.usage()["completion_tokens"]
                yield each

    @app.post("/v1/embeddings", openapi_extra=_body(EmbeddingRequest))
    async def embeddings(request: Request) -> Response:
        asked = await _read(request, EmbeddingRequest)
        check(request, asked.model)
        found = await _unless_gone(request, service.embed(asked.smiles(), asked.what))
        vectors = found.reshape(len(asked.smiles()), -1)
        data = [
            {"object": "embedding", "index": index, "embedding": _encoded(vector, asked.encoding_format)}
            for index, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": 0, "total_tokens": 0}  # graphs have none
        return JSONResponse({"object": "list", "model": settings.name, "data": data, "usage": usage})

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(settings.name, created)]}

    @app.get("/v1/models/{name:path}")
    async def model(request: Request, name: str) -> dict[str, Any]:
        check(request, name)
        return _model(name, created)

    @app.get("/healthz")
    async def health() -> Response:
        alive = service.batcher.alive
        return JSONResponse({"status": "ok" if alive else "stopping"}, 200 if alive else 503)

    @app.get("/metrics")
    async def told_metrics() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.exception_handler(APIError)
    async def refused(request: Request, error: APIError) -> Response:
        request.state.told["error"] = error.code
        headers = {"Retry-After": str(error.retry_after)} if error.retry_after else {}
        if error.status in (408, 413):
            headers["Connection"] = "close"  # what is left of the body is not read
        return JSONResponse(error.body(), error.status, headers=headers)

    @app.exception_handler(HTTPException)
    async def not_there(request: Request, error: HTTPException) -> Response:
        found = APIError(error.status_code, f"{request.method} {request.url.path}: {error.detail}", code="not_found")
        return JSONResponse(found.body(), error.status_code, headers=error.headers)

    app.add_middleware(_Told, settings=settings, metrics=metrics)
    app.add_middleware(BoundedBody, max_bytes=settings.max_body, seconds=settings.body_seconds)
    return app


class _Told:
    """ASGI middleware: the key, a line of log for each request, and its metrics."""

    def __init__(self, app: Any, *, settings: Settings, metrics: Metrics):
        self._app = app
        self._settings = settings
        self._metrics = metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, name = time.perf_counter(), uuid.uuid4().hex
        told: dict[str, Any] = {"id": name, "status": GONE}
        scope.setdefault("state", {})["told"] = told
        path = scope["path"]

        async def sent(message: Any) -> None:
            if message["type"] == "http.response.start":
                told["status"] = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", name.encode())]
            await send(message)

        try:
            if path.startswith("/v1/") and not self._allowed(scope):
                error = APIError(401, "the API key is missing or wrong", code="invalid_api_key")
                headers = {"WWW-Authenticate": "Bearer"}
                await JSONResponse(error.body(), 401, headers=headers)(scope, receive, sent)
            else:
                await self._app(scope, receive, sent)
        finally:
            seconds = time.perf_counter() - start
            known = path if path in _PATHS else "other"
            self._metrics.requests.labels(known, told["status"]).inc()
            self._metrics.seconds.labels(known).observe(seconds)
            line = {"time": time.time(), "method": scope["method"], "path": path, "seconds": round(seconds, 4)}
            access_log.info(json.dumps(line | told))

    def _allowed(self, scope: Any) -> bool:
        key = self._settings.api_key
        given = dict(scope["headers"]).get(b"authorization", b"")
        return not key or hmac.compare_digest(given, f"Bearer {key}".encode())


_PATHS = ("/v1/chat/completions", "/v1/embeddings", "/v1/models", "/healthz", "/metrics")


async def _read(request: Request, kind: type[R]) -> R:
    """The body, checked; raises APIError, which names the first field that is wrong."""
    try:
        return kind.model_validate_json(await request.body())
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(each) for each in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise APIError(
            400, f"{where}: {message}" if where else message, code="invalid_request", param=where or None
        ) from None


async def _unless_gone(request: Request, work: Awaitable[T]) -> T:
    """What `work` gives; raises APIError with GONE, and ends the work, when the client goes away before."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, left = asyncio.ensure_future(work), asyncio.create_task(gone())
    try:
        await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise APIError(GONE, "the client has gone away", code="client_closed_request")
    finally:
        for each in (task, left):
            each.cancel()
        with contextlib.suppress(asyncio.CancelledError, APIError):
            await task


async def _with_first(first: T, rest: AsyncIterator[T]) -> AsyncIterator[T]:
    yield first
    async for each in rest:
        yield each


def _body(kind: type[pydantic.BaseModel]) -> dict[str, Any]:
    return {"requestBody": {"content": {"application/json": {"schema": kind.model_json_schema()}}, "required": True}}


def _head(kind: str, model: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def _model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "llamo_jax"}


def _encoded(vector: np.ndarray, encoding: str) -> Any:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode() if encoding == "base64" else vector.tolist()
