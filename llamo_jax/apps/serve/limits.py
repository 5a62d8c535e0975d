"""What a client can do to a server at most: how long it may take to send a request, and how large that may be."""

import asyncio
from typing import Any

import h11
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from llamo_jax.apps.serve.schema import APIError

HEADER_SECONDS = 10.0
"""For a request's head to arrive, from the connection on; one byte now and then would hold it for ever."""

MAX_HEADERS = 16 * 1024
"""Bytes of a request's head."""


class BoundedHTTP(H11Protocol):
    """uvicorn's HTTP, which closes connections whose request's head does not come in time."""

    seconds = HEADER_SECONDS

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self._head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to count."""
        super().connection_made(transport)
        self._watch(expected=True)

    def data_received(self, data: bytes) -> None:
        """Counts on, until the head is there; a connection that is kept alive counts from its next byte."""
        super().data_received(data)
        self._watch(expected=self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0]))

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops counting."""
        self._watch(expected=False)
        super().connection_lost(exc)

    def _watch(self, *, expected: bool) -> None:
        if expected and self._head is None:
            self._head = self.loop.call_later(self.seconds, self._too_slow)
        elif not expected and self._head is not None:
            self._head.cancel()
            self._head = None

    def _too_slow(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()


class BoundedBody:
    """ASGI middleware: a request's body has so many bytes at most, and comes within so many seconds; else APIError."""

    def __init__(self, app: ASGIApp, *, max_bytes: int, seconds: float):
        self._app = app
        self._max_bytes = max_bytes
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, with a `receive` that counts."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        told = dict(scope["headers"]).get(b"content-length", b"0")
        too_large = told.isdigit() and int(told) > self._max_bytes
        deadline = asyncio.get_running_loop().time() + self._seconds
        taken, whole = 0, False

        async def counted() -> Message:
            nonlocal taken, whole
            if whole:
                return await receive()
            if too_large:
                raise self._refusal()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise APIError(
                    408, f"the body did not come within {self._seconds:g} s", code="request_timeout"
                ) from None
            taken += len(message.get("body", b""))
            if taken > self._max_bytes:
                raise self._refusal()
            whole = not message.get("more_body", False)
            return message

        await self._app(scope, counted, send)

    def _refusal(self) -> APIError:
        return APIError(413, f"the body has more than {self._max_bytes:,} bytes", code="request_too_large")
