"""The endpoint over real connections, by OpenAI's own client: answers, streams, refusals, limits, and its end."""

import asyncio
import base64
import concurrent.futures
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
import uvicorn

from data_pipeline.errors import DataError
from llamo_jax.apps.assistant import Assistant
from llamo_jax.apps.serve import __main__ as serve
from llamo_jax.apps.serve import api, limits
from llamo_jax.apps.serve.schema import APIError, ChatRequest
from llamo_jax.apps.serve.service import Service
from llamo_jax.config import DecodingConfig
from tests import helpers

ROOT = Path(__file__).resolve().parents[2]
ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"
QUESTION = [{"role": "user", "content": "Describe this molecule."}]
TOKENS = 24
KEY = "s3cret"


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Server:
    """The endpoint in a thread of this process."""

    def __init__(self, trained, *options):
        arguments = ["--checkpoint", str(trained), "--name", "llamo", "--max_new_tokens", str(TOKENS)]
        self.options = serve.read_options([*arguments, "--port", str(free_port()), "--max_body", "20000", *options])
        self.service, self.settings = serve.make_service(self.options)
        self.url = f"http://127.0.0.1:{self.options.port}"
        self.server = uvicorn.Server(serve._config(uvicorn, api.make_app(self.service, self.settings), self.options))
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        self.wait(lambda: self.server.started)

    @staticmethod
    def wait(condition):
        until = time.monotonic() + 300
        while not condition():
            assert time.monotonic() < until
            time.sleep(0.01)

    def client(self, key=KEY):
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=300)

    def idle(self):
        self.wait(lambda: self.service.batcher.running == self.service.batcher.waiting == 0)

    def close(self):
        self.server.should_exit = True
        self.thread.join(300)
        self.service.batcher.close()


@pytest.fixture(scope="module")
def server(trained):
    patch = pytest.MonkeyPatch()
    patch.setenv(serve.KEY, KEY)
    patch.setattr(limits.BoundedHTTP, "seconds", 3.0)
    made = Server(trained, "--rows", "8", "--waiting", "64")
    yield made
    made.close()
    patch.undo()


@pytest.fixture(scope="module")
def client(server):
    return server.client()


@pytest.fixture(scope="module")
def expected(trained):
    assistant = Assistant.load(trained, decoding=DecodingConfig(max_new_tokens=TOKENS))
    return assistant.ask(QUESTION[0]["content"], smiles=ASPIRIN)


TOOLS = [{"type": "function", "function": {"name": "weigh", "parameters": {"type": "object"}}}]


def ask(client, **more):
    extra = {"molecules": [ASPIRIN]} | more.pop("extra", {})
    return client.chat.completions.create(**({"model": "llamo", "messages": QUESTION, "extra_body": extra} | more))


def test_an_answer_is_the_assistants(server, client, expected):
    found = ask(client)
    (choice,) = found.choices
    assert choice.message.content == expected
    assert choice.finish_reason in ("stop", "length")
    usage = found.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.completion_tokens <= TOKENS
    assert usage.prompt_tokens > 28  # graph tokens among them
    parts = [{"type": "molecule", "molecule": ASPIRIN}, {"type": "text", "text": QUESTION[0]["content"]}]
    asked = ask(client, messages=[{"role": "user", "content": parts}], extra={"molecules": []})
    assert asked.choices[0].message.content == expected
    offered = ask(client, tools=TOOLS)  # Open WebUI offers its own to every model
    assert offered.choices[0].message.content == expected
    assert offered.choices[0].message.tool_calls is None
    other = ask(client, extra={"molecules": ["CCCCCC"]})
    assert other.choices[0].message.content != expected


def test_a_stream_is_the_same_answer_in_pieces(client, expected):
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}, logprobs=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == expected
    assert sum(map(bool, texts)) > 1
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert reasons[-1] in ("stop", "length")
    assert set(reasons[:-1]) == {None}
    assert len({chunk.id for chunk in chunks}) == 1
    whole = ask(client, logprobs=True)
    scores = [e.logprob for c in chunks if c.choices and c.choices[0].logprobs for e in c.choices[0].logprobs.content]
    assert scores == [each.logprob for each in whole.choices[0].logprobs.content]
    assert len(scores) == whole.usage.completion_tokens == chunks[-1].usage.completion_tokens
    assert all(score < 0 for score in scores)
    tokens = [each.token for each in whole.choices[0].logprobs.content]
    assert "".join(tokens).strip() == whole.choices[0].message.content
    text = "".join(tokens)
    begins = [n for n, token in enumerate(tokens) if n > 2 and token.strip()
              and text.find(token) == len("".join(tokens[:n]))]  # fmt: skip
    place = begins[0]
    cut = ask(client, logprobs=True, stop=tokens[place]).choices[0]
    assert cut.message.content == "".join(tokens[:place]).strip()
    assert [each.token for each in cut.logprobs.content if each.token] == [each for each in tokens[:place] if each]


def test_settings_of_a_request(client, expected):
    drawn = {"temperature": 1.5, "seed": 3, "n": 3}
    found = [choice.message.content for choice in ask(client, **drawn).choices]
    assert found == [choice.message.content for choice in ask(client, **drawn).choices]
    assert len(set(found)) > 1
    parts = ["", "", ""]
    for chunk in ask(client, **drawn, stream=True):
        for choice in chunk.choices:
            parts[choice.index] += choice.delta.content or ""
    assert parts == found
    assert ask(client, temperature=1.5, seed=0, n=3).choices != ask(client, temperature=1.5, n=3).choices
    several = ask(client, n=2, logprobs=True)
    assert [each.index for each in several.choices] == [0, 1]
    assert several.usage.completion_tokens == sum(len(each.logprobs.content) for each in several.choices)
    word = expected.split()[2]
    stopped = ask(client, stop=[word]).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == (expected[: expected.index(word)], "stop")
    short = ask(client, max_tokens=3)
    assert (short.usage.completion_tokens, short.choices[0].finish_reason) == (3, "length")
    assert expected.startswith(short.choices[0].message.content)
    assert ask(client, max_completion_tokens=3).choices[0].message.content == short.choices[0].message.content
    streamed = "".join(c.choices[0].delta.content or "" for c in ask(client, stop=word, stream=True) if c.choices)
    assert streamed == stopped.message.content


def test_the_temperature_where_a_request_names_none(server):
    service = Service(server.service.assistant, server.service.batcher, seconds=1.0, default_temperature=0.7)
    for given, expected in ({}, 0.7), ({"temperature": 0}, 0.0), ({"temperature": 1.2}, 1.2):
        asked = service.understand(ChatRequest.model_validate({"model": "llamo", "messages": QUESTION} | given))
        assert [sampling.temperature for sampling in asked.samplings] == [expected]


@pytest.mark.parametrize(
    ("change", "error", "code", "message"),
    [
        ({"model": "gpt"}, openai.NotFoundError, "model_not_found", "the model is called 'llamo'"),
        ({"messages": []}, openai.BadRequestError, "invalid_request", "messages: "),
        ({"messages": [{"role": "tool", "content": "x"}]}, openai.BadRequestError, "invalid_request", "messages.0.r"),
        ({"messages": [*QUESTION, {"role": "assistant", "content": "No."}]}, openai.BadRequestError, "invalid_request",
         "the last one is the user's"),
        ({"messages": [{"role": "user", "content": [{"type": "molecule", "smiles": "CCO"}]}]}, openai.BadRequestError,
         "invalid_request", "a part of type 'molecule' has its content in the field 'molecule'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
         openai.BadRequestError, "invalid_request", "'text' or 'molecule'"),
        ({"temperature": 9}, openai.BadRequestError, "invalid_request", "temperature: "),
        ({"top_logprobs": 3, "logprobs": True}, openai.BadRequestError, "invalid_request", "top_logprobs: not"),
        ({"tools": TOOLS, "tool_choice": "required"}, openai.BadRequestError, "invalid_request", "tool_choice: not"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "weigh"}}}, openai.BadRequestError,
         "invalid_request", "tool_choice: not"),
        ({"response_format": {"type": "json_object"}}, openai.BadRequestError, "invalid_request", "response_format"),
        ({"extra": {"molecules": [ASPIRIN, "C(C"]}}, openai.UnprocessableEntityError, "invalid_molecule", "'C(C'"),
        ({"extra": {"molecules": ["CCO"] * 9}}, openai.BadRequestError, "context_length_exceeded", "9 molecules"),
        ({"extra": {"molecules": ["C" * 600]}}, openai.BadRequestError, "context_length_exceeded", "600 atoms"),
        ({"messages": [{"role": "user", "content": "very " * 1500}]}, openai.BadRequestError, "context_length_exceeded",
         "tokens; at most 1,024 are allowed"),
        ({"messages": [{"role": "user", "content": "x" * 20_001}]}, openai.APIStatusError, "request_too_large",
         "more than 20,000 bytes"),
    ],
)  # fmt: skip
def test_refusals_are_in_openais_layout(client, change, error, code, message):
    with pytest.raises(error) as found:
        ask(client, **change)
    assert found.value.code == code
    assert message in found.value.message
    if code == "request_too_large":
        assert found.value.status_code == 413


def test_keys_models_health_and_metrics(server, client):
    with pytest.raises(openai.AuthenticationError):
        ask(server.client("wrong"))
    assert [model.id for model in client.models.list()] == ["llamo"]
    assert client.models.retrieve("llamo").id == "llamo"
    assert httpx.get(f"{server.url}/healthz").json() == {"status": "ok"}
    assert httpx.get(f"{server.url}/nowhere").json()["error"]["code"] == "not_found"
    text = httpx.get(f"{server.url}/metrics").text
    assert 'llamo_requests_total{path="/v1/chat/completions",status="401"} 1.0' in text
    assert "llamo_rows 8.0" in text
    before = float(text.split("\nllamo_generated_tokens ")[1].split()[0])
    ask(client, max_tokens=5)
    server.idle()
    after = httpx.get(f"{server.url}/metrics").text
    assert float(after.split("\nllamo_generated_tokens ")[1].split()[0]) == before + 5


def test_embeddings_are_the_assistants(trained, client):
    molecules = [ASPIRIN, "CCO", "c1ccccc1"]
    assistant = Assistant.load(trained)
    for what in ("pooled", "levels"):
        expected = assistant.embed(molecules, what=what).reshape(3, -1)
        found = client.embeddings.create(model="llamo", input=molecules, extra_body={"what": what})
        np.testing.assert_allclose([each.embedding for each in found.data], expected, atol=1e-5)
    raw = client.embeddings.with_raw_response.create(model="llamo", input="CCO", encoding_format="base64").text
    vector = np.frombuffer(base64.b64decode(json.loads(raw)["data"][0]["embedding"]), "<f4")
    np.testing.assert_allclose(vector, assistant.embed(["CCO"])[0], atol=1e-5)
    with pytest.raises(openai.UnprocessableEntityError, match="nonsense"):
        client.embeddings.create(model="llamo", input=["CCO", "nonsense"])
    with pytest.raises(openai.BadRequestError, match="a molecule has 600 atoms; at most 512 are allowed"):
        client.embeddings.create(model="llamo", input=["CCO", "C" * 600])


def test_an_embedding_that_nobody_waits_for_is_finished_before_the_next(server, monkeypatch):
    """A thread cannot be stopped; two at once would share the devices with all answers."""
    service = Service(server.service.assistant, server.service.batcher, seconds=60)
    began, go = [], threading.Event()

    def blocked(smiles, *, what):
        began.append(smiles)
        assert go.wait(300)
        return np.zeros((len(smiles), 1), np.float32)

    monkeypatch.setattr(service.assistant, "embed", blocked)

    async def both():
        first = asyncio.create_task(service.embed(["CCO"], "pooled"))
        while not began:
            await asyncio.sleep(0.01)
        second = asyncio.create_task(service.embed(["CCN"], "pooled"))
        first.cancel()
        await asyncio.sleep(0.2)
        assert began == [["CCO"]]
        go.set()
        assert (await second).shape == (1, 1)
        assert first.cancelled()

    asyncio.run(both())
    assert began == [["CCO"], ["CCN"]]


def test_a_client_that_goes_away_gives_its_row_back(server, client, caplog):
    caplog.set_level("INFO", "llamo_jax.serve.access")
    for stream in (False, True):
        before = server.service.batcher.counts.tokens
        body = {"model": "llamo", "messages": QUESTION, "molecules": [ASPIRIN], "n": 16, "stream": stream}
        with contextlib.suppress(httpx.ReadTimeout), httpx.Client(timeout=0.05) as impatient:
            response = impatient.stream(
                "POST", f"{server.url}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {KEY}"}
            )
            with response:
                pass
        server.idle()
        assert server.service.batcher.counts.tokens - before < 16 * TOKENS
    assert ask(client).choices[0].message.content


def test_many_at_once_are_answered_as_one_alone(server, client):
    requests = [
        {"extra": {"molecules": [smiles]}, "max_tokens": 8 + number % 5, "stream": number % 3 == 0}
        for number, smiles in enumerate(["CCO", ASPIRIN, "c1ccccc1", "C(C", "CCN"] * 6)
    ]

    def answer(request):
        try:
            found = ask(client, **request)
        except openai.UnprocessableEntityError as error:
            return error.code
        if request["stream"]:
            return "".join(chunk.choices[0].delta.content or "" for chunk in found if chunk.choices)
        return found.choices[0].message.content

    alone = [answer(request) for request in requests[:15]]
    with concurrent.futures.ThreadPoolExecutor(30) as pool:
        assert list(pool.map(answer, requests))[:15] == alone
    assert alone.count("invalid_molecule") == 3


def test_a_full_queue_is_told(trained, server):
    batcher = server.service.batcher
    batcher.waiting_limit = 0
    try:
        with pytest.raises(openai.RateLimitError, match="requests are waiting already") as error:
            ask(server.client(), n=9)
        assert error.value.response.headers["retry-after"] == "1"
    finally:
        batcher.waiting_limit = 64


def test_a_server_that_answers_no_more_says_so(server, monkeypatch):
    """A load balancer takes it out then."""
    monkeypatch.setattr(server.service.batcher, "_closing", True)
    found = httpx.get(f"{server.url}/healthz")
    assert (found.status_code, found.json()) == (503, {"status": "stopping"})


def test_a_deadline_is_told(server, client):
    server.service.seconds = 0.0
    try:
        with pytest.raises(openai.InternalServerError) as error:
            ask(client)
        assert error.value.code == "deadline_exceeded"
    finally:
        server.service.seconds = 120.0


def test_slow_heads_and_slow_bodies_are_cut_off(server, monkeypatch):
    def sent(text):
        with socket.create_connection(("127.0.0.1", server.options.port), timeout=300) as connection:
            connection.sendall(text)
            return connection.recv(1000)

    assert sent(b"") == b""  # closed, without a word
    assert sent(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Slow: ") == b""
    body = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer s3cret\r\n"
    endless = sent(body + b"Transfer-Encoding: chunked\r\n\r\n" + b"5000\r\n" + b"x" * 0x5000)
    assert endless.startswith(b"HTTP/1.1 413")


def test_a_body_that_does_not_come_is_waited_for_no_longer_than_said():
    async def app(scope, receive, send):
        while (await receive())["more_body"]:
            pass

    async def drips():  # each piece comes in time, the whole does not
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def silent():
        await asyncio.Event().wait()

    for receive in drips, silent:
        bounded = limits.BoundedBody(app, max_bytes=10**9, seconds=0.2)
        with pytest.raises(APIError, match=r"the body did not come within 0\.2 s") as error:
            asyncio.run(asyncio.wait_for(bounded({"type": "http", "headers": []}, receive, None), 60))
        assert error.value.status == 408


def test_the_log_has_no_prompts(server, client, caplog):
    caplog.set_level("INFO", "llamo_jax.serve.access")
    ask(client, messages=[{"role": "user", "content": "A secret question."}])
    Server.wait(lambda: caplog.records)  # the line comes after the last byte
    lines = [json.loads(record.message) for record in caplog.records if record.name == "llamo_jax.serve.access"]
    assert lines[-1]["path"] == "/v1/chat/completions"
    assert lines[-1]["status"] == 200
    assert lines[-1]["completion_tokens"] > 0
    assert "secret" not in caplog.text


def test_a_port_that_is_taken_is_told_before_a_model_is_loaded(server):
    with pytest.raises(SystemExit, match=r"cannot listen at 127\.0\.0\.1:\d+: Address already in use; choose another"):
        serve.main(["--checkpoint", "nowhere", "--port", str(server.options.port)])


def test_addresses_of_version_6():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no address of version 6")
    serve._check_port("::1", 0)
    with pytest.raises(DataError, match="cannot listen at ::2:0"):
        serve._check_port("::2", 0)


def test_what_nobody_could_use_is_one_line():
    with pytest.raises(SystemExit, match="--port 70000 is none: ports are 0 to 65535"):
        serve.main(["--checkpoint", "nowhere", "--port", "70000"])

    class Refuses:
        def understand(self, _):
            raise APIError(422, "a conversation may show 0 molecules", code="too_many_molecules")

    with pytest.raises(DataError, match=r"nobody could ask about ethanol: a conversation may show 0 mol.*; see --max"):
        serve.warm_up(Refuses())


@pytest.mark.slow
def test_sigterm_finishes_what_was_begun(trained):
    port = free_port()
    command = [sys.executable, "-m", "llamo_jax.apps.serve", "--checkpoint", str(trained), "--port", str(port)]
    environment = os.environ | {"XLA_FLAGS": helpers.xla_flags()}
    environment.pop(serve.KEY, None)
    process = subprocess.Popen(
        [*command, "--name", "llamo", "--rows", "2", "--max_new_tokens", "200"],
        cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "side by side" in line:
                break
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=300)
        Server.wait(lambda: _answers(port))
        stream = ask(client, stream=True, n=4)  # two are decoded, two wait
        first = next(stream)
        process.send_signal(signal.SIGTERM)
        rest = list(stream)
        assert first.choices[0].delta.role == "assistant"
        reasons = [chunk.choices[0].finish_reason for chunk in rest if chunk.choices[0].finish_reason]
        assert len(reasons) == 4
        assert set(reasons) <= {"stop", "length"}
        assert process.wait(300) == 0
        assert "SIGTERM: answers that were begun have 30 s" in process.stderr.read()
        with pytest.raises(openai.APIConnectionError):
            ask(client)
    finally:
        process.kill()
        process.stderr.close()
        process.wait()


def _answers(port):
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
    return False
