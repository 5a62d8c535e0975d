"""A server of chat completions on this machine that misbehaves as asked; started by tests, in a thread."""

import contextlib
import hashlib
import http.server
import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

FAULTS = ("busy", "busy with a time", "broken", "hang", "cut", "not JSON", "wrong schema", "no choices", "page",
          "redirect", "huge", "close")  # fmt: skip
HANG = 8.0  # seconds, longer than the clients of tests wait
RETRY_AFTER = 0.3


def chance(*what: Any) -> float:
    """Between 0 and 1, by what it is about: the same in every run."""
    return int.from_bytes(hashlib.sha256(repr(what).encode()).digest()[:6], "big") / 2**48


def truthful(seed: dict[str, Any]) -> list[dict[str, str]]:
    """A conversation from a request's facts."""
    one = seed["molecules"][0]["facts"]
    subject = "It" if len(seed["molecules"]) == 1 else "The first molecule"
    return [
        {"role": "user", "content": "What can you tell me about the structure?"},
        {"role": "assistant", "content": f"{subject} has the formula {one['formula']} and a net charge of "
                                         f"{one['net charge']:+d}."},
        {"role": "user", "content": "How heavy is it, and how many rings are there?"},
        {"role": "assistant", "content": f"{subject} weighs {one['mass in g/mol']} g/mol and has "
                                         f"{one['number of rings']} rings."},
    ]  # fmt: skip


def hallucinating(share: float) -> Callable[[dict[str, Any]], list[dict[str, str]]]:
    """As `truthful`, but so many of the facts are wrong."""

    def write(seed: dict[str, Any]) -> list[dict[str, str]]:
        facts = dict(seed["molecules"][0]["facts"])
        for name, wrong in {"net charge": 3, "number of rings": 17}.items():
            if chance("lie", name, seed["molecules"][0]["smiles"]) < share:
                facts[name] += wrong
        return truthful({**seed, "molecules": [{**seed["molecules"][0], "facts": facts}, *seed["molecules"][1:]]})

    return write


class TeachingServer:
    """faulty: share of requests that fail when they come for the first time, each in one of FAULTS.

    requests: how many came; stamps: when each came and what became of it, by the request's content.
    """

    def __init__(self, faulty: float = 0.0, faults: tuple[str, ...] = FAULTS, write: Any = truthful):
        self.faulty, self.faults, self.write = faulty, faults, write
        self.requests = 0
        self.stamps: dict[str, list[tuple[float, str]]] = defaultdict(list)
        self.headers: list[dict[str, str]] = []
        self.bodies: list[dict[str, Any]] = []
        self.refuse_structure: tuple[str, ...] = ()
        self.status: int | None = None
        self.refuses: Callable[[str], bool] = lambda content: False
        self.on_request: Callable[[int], None] = lambda number: None
        self.lock = threading.Lock()
        self.url = ""

    @contextlib.contextmanager
    def running(self) -> Iterator["TeachingServer"]:
        """Serves on a free port of the loopback while the context lasts."""
        teaching = self

        class Handler(_Handler):
            server_state = teaching

        class Server(http.server.ThreadingHTTPServer):
            def handle_error(self, request: Any, client_address: Any) -> None:
                """Clients that were killed are no news."""

        server = Server(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def fault(self, content: str) -> str:
        """What becomes of a request."""
        first = not self.stamps[content]
        if first and chance("faulty", content) < self.faulty:
            return self.faults[int(chance("fault", content) * len(self.faults))]
        return "well"

    def counts(self) -> Counter[str]:
        """Requests by what became of them."""
        return Counter(fault for stamps in self.stamps.values() for _, fault in stamps)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: TeachingServer

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._send(405, b"{}")

    def do_POST(self) -> None:
        server = self.server_state
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = json.dumps(body["messages"])
        with server.lock:
            server.requests += 1
            fault = server.fault(content)
            server.stamps[content].append((time.monotonic(), fault))
            server.headers.append({name.lower(): value for name, value in self.headers.items()})
            server.bodies.append(body)
            server.on_request(server.requests)
        kind = body.get("response_format", {}).get("type")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if server.status:
                # a careless server repeats the key
                self._send(server.status, json.dumps({"error": {"message": self.headers["Authorization"]}}).encode())
            elif server.refuses(content):
                self._send(400, b'{"error": {"message": "against the policy"}}')
            elif kind in server.refuse_structure:
                self._send(400, b'{"error": {"message": "response_format is not supported"}}')
            else:
                self._misbehave(fault, body)

    def _misbehave(self, fault: str, body: dict[str, Any]) -> None:
        answer = json.dumps(self._completion(body)).encode()
        if fault == "well":
            self._send(200, answer)
        elif fault in ("busy", "busy with a time"):
            after = {"Retry-After": str(RETRY_AFTER)} if fault == "busy with a time" else {}
            self._send(429, b'{"error": {"message": "slow down"}}', after)
        elif fault == "broken":
            self._send(500, b"oops")
        elif fault == "hang":
            time.sleep(HANG)
            self.close_connection = True
        elif fault == "cut":
            self._head(200, len(answer))
            self.wfile.write(answer[: len(answer) // 2])
            self.close_connection = True
        elif fault == "not JSON":
            self._send(200, b'{"choices": [')
        elif fault == "wrong schema":
            self._send(200, json.dumps(self._completion(body, '{"message": "hello"}')).encode())
        elif fault == "no choices":
            self._send(200, b'{"id": "chatcmpl-1", "object": "chat.completion", "choices": []}')
        elif fault == "page":
            self._send(200, b"<html><body>Sign in</body></html>", {"Content-Type": "text/html"})
        elif fault == "redirect":
            self._send(302, b"", {"Location": "/elsewhere"})
        elif fault == "huge":
            self._head(200, 10_000_000)
            for _ in range(100):
                self.wfile.write(b" " * 100_000)
        else:
            self.close_connection = True

    def _completion(self, body: dict[str, Any], text: str | None = None) -> dict[str, Any]:
        if text is None:
            *_, seed = (m["content"] for m in body["messages"] if m["role"] == "user" and m["content"].startswith("{"))
            again = not body["messages"][-1]["content"].startswith("{")  # asked to mend
            write = truthful if again else self.server_state.write
            text = json.dumps({"messages": write(json.loads(seed))})
        message = {"role": "assistant", "content": text}
        return {
            "id": "chatcmpl-1",  # the same for all: nobody may rely on it
            "object": "chat.completion",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 1000, "completion_tokens": 100},
        }

    def _head(self, status: int, length: int, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json", "Content-Length": str(length)} | (more or {})).items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, status: int, content: bytes, more: dict[str, str] | None = None) -> None:
        self._head(status, len(content), more)
        self.wfile.write(content)
