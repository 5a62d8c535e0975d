"""The job of data_pipeline.instruct against a server that misbehaves: nothing is lost, asked twice, or given away."""

import asyncio
import contextlib
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from data_pipeline.conversation import Message
from data_pipeline.errors import DataError
from data_pipeline.instruct.__main__ import main
from data_pipeline.instruct.asking import Asker, BudgetError, GivenUpError, Limits
from data_pipeline.instruct.openai_teacher import MAX_BYTES, OpenAITeacher
from data_pipeline.instruct.replies import Replies
from data_pipeline.instruct.requests import Reply, made_request
from data_pipeline.instruct.teachers import TeacherOptions, TryAgainError
from tests.data_pipeline.teaching_server import FAULTS, RETRY_AFTER, TeachingServer, chance, hallucinating

KEY = "sk-a-key-that-nobody-may-see"
ROOT = Path(__file__).resolve().parents[2]
SECONDS = 600  # a hang guard
SMILES = ("CCO", "CC(=O)O", "c1ccccc1O", "CCN", "CC(C)=O", "C1CCCCC1", "OCC(O)CO", "CC#N", "ClCCl", "C[N+](C)(C)C",
          "CSC", "c1ccncc1")  # fmt: skip


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """Some four thousand salts with a text each: no molecule is used twice."""
    path = tmp_path_factory.mktemp("seeds") / "seeds.tsv"
    parts = itertools.product((*SMILES, *(f"C{smiles}" for smiles in SMILES)), ("", *SMILES), SMILES)
    rows = [f"{'.'.join(filter(None, part))}\tA substance with the number {n}." for n, part in enumerate(parts)]
    path.write_text("SMILES\tdescription\n" + "\n".join(rows) + "\n")
    return path


def arguments(seeds: Path, output: Path, url: str, *more: str) -> list[str]:
    return [
        "--input", str(seeds), "--output", str(output), "--teacher", "openai", "--model", "test", "--base_url", url,
        "--timeout", "5", "--backoff", "0.02", "--concurrency", "4", "--rounds", "0", *more,
    ]  # fmt: skip


def start(*options: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "data_pipeline.instruct", *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells ignore it in the background
        env=os.environ | {"OPENAI_API_KEY": KEY} | environment,
    )


def run(*options: str, status: int = 0) -> str:
    """The command in this process, where nothing has to be imported again; returns what it prints."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setenv("OPENAI_API_KEY", KEY)
        try:
            main([*options])
            ended = 0
        except SystemExit as error:
            print(error.code)
            ended = error.code if isinstance(error.code, int) else 1
    assert ended == status, printed.getvalue()
    return printed.getvalue()


def run_alone(*options: str, status: int = 0, **environment: str) -> str:
    """The same in a process of its own, with both of its streams."""
    process = start(*options, **environment)
    printed, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == status, printed
    return printed


def outputs(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("conversations.jsonl", "rejected.jsonl")}


def survive(seeds: Path, tmp_path: Path, conversations: int, kills: int) -> None:
    """A job with faults and kills writes what an undisturbed one does, and asks little more than it has to."""
    wanted = ("--conversations", str(conversations))
    with TeachingServer().running() as server:
        run(*arguments(seeds, tmp_path / "calm", server.url, *wanted))
        least = server.requests
        assert least == conversations
    storm = TeachingServer(faulty=0.3)
    memory = []
    with storm.running() as server:
        for kill in range(kills):
            process = start(*arguments(seeds, tmp_path / "storm", server.url, *wanted))
            target = (kill + 1) * conversations // (kills + 1)
            begin = time.monotonic()
            while storm.requests < target and process.poll() is None and time.monotonic() - begin < SECONDS:
                time.sleep(0.02)
            assert process.poll() is None, process.communicate()[0]
            memory.append(psutil.Process(process.pid).memory_info().rss)
            process.send_signal(signal.SIGKILL)
            process.communicate()
        printed = run_alone(*arguments(seeds, tmp_path / "storm", server.url, *wanted))
    assert outputs(tmp_path / "storm") == outputs(tmp_path / "calm")
    assert set(storm.counts()) == {"well", *FAULTS} or conversations < 1000
    assert sum(count for fault, count in storm.counts().items() if fault != "well") > 0.2 * conversations
    assert storm.requests <= 1.4 * least + 4 * kills  # those that were under way when the process was killed
    assert max(memory) - memory[0] < 64 * 2**20
    # an answer that was given is never asked for again, but for those that a kill has cut off
    twice = [stamps for stamps in storm.stamps.values() if [fault for _, fault in stamps].count("well") > 1]
    assert len(twice) <= 4 * kills
    assert KEY not in printed


def test_faults_and_kills_change_nothing(seeds, tmp_path):
    survive(seeds, tmp_path, conversations=90, kills=2)


@pytest.mark.slowest
def test_two_thousand_requests_with_faults_and_ten_kills(seeds, tmp_path):
    survive(seeds, tmp_path, conversations=2000, kills=10)


def test_the_key_is_in_no_file_and_no_stream(seeds, tmp_path):
    with TeachingServer(faulty=0.5, faults=("broken", "page")).running() as server:
        options = arguments(seeds, tmp_path / "out", server.url, "--conversations", "20")
        printed = run_alone(*options, OPENAI_LOG="info")
        assert {headers["authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
        server.status = 401  # and repeats the key
        printed += run_alone(*arguments(seeds, tmp_path / "refused", server.url), status=1)
    assert "the server answers 401: the key is refused" in printed
    assert KEY not in printed
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 6
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


def test_a_bad_teacher_is_seen_and_filtered(seeds, tmp_path):
    with TeachingServer(write=hallucinating(0.2)).running() as server:
        options = arguments(seeds, tmp_path / "out", server.url, "--conversations", "100", "--rounds", "0")
        printed = run(*options, "--kinds", "structure=1")
    assert "of 100 that were asked for; more are tried with --rounds" in printed
    quality = json.loads((tmp_path / "out" / "quality.json").read_text())
    lies = quality["claims"] - quality["true_claims"]
    assert 0.05 < lies / quality["claims"] < 0.2  # two facts of four in a conversation may be wrong, each in a fifth
    assert quality["findings"]["grounding: contradicted: charge"] > 10
    assert quality["findings"]["grounding: contradicted: rings"] > 10
    page = (tmp_path / "out" / "report.html").read_text()
    assert "grounding: contradicted: charge" in page
    kept = [json.loads(line) for line in (tmp_path / "out" / "conversations.jsonl").read_text().splitlines()]
    assert 60 < len(kept) < 95
    for row in kept:
        text = row["messages"][1]["content"]
        assert int(text.rpartition(" of ")[2].rstrip(".")) == row["smiles"].count("+")
        assert not any("has 17" in message["content"] or "has 18" in message["content"] for message in row["messages"])


def test_what_is_rejected_is_replaced(seeds, tmp_path):
    with TeachingServer(write=hallucinating(0.3)).running() as server:
        options = arguments(seeds, tmp_path / "out", server.url, "--conversations", "30", "--rounds", "6")
        run(*options, "--kinds", "structure=2", "unknown=1", "--threshold", "near_duplicate=1")
        quality = json.loads((tmp_path / "out" / "quality.json").read_text())
        assert quality["conversations"] == 30
        assert [quality["kinds"][kind]["conversations"] for kind in ("structure", "unknown")] == [20, 10]
        assert quality["written"] == server.requests > 30
        before = outputs(tmp_path / "out")
        run(*options, "--kinds", "structure=2", "unknown=1", "--threshold", "near_duplicate=1")
        assert server.requests == quality["written"]
    assert outputs(tmp_path / "out") == before


def test_what_is_refused_is_not_asked_again_and_every_attempt_counts(seeds, tmp_path):
    options = ("--conversations", "24", "--structured", "none", "--concurrency", "1")
    with TeachingServer().running() as server:
        server.refuses = lambda content: chance("refused", content) < 0.3
        run(*arguments(seeds, tmp_path / "refused", server.url, *options))
        assert server.requests == 24
        quality = json.loads((tmp_path / "refused" / "quality.json").read_text())
        refused = quality["findings"]["teacher: status 400"]
        assert 2 < refused < 15
        assert quality["spent"]["requests"] == 24
        run(*arguments(seeds, tmp_path / "refused", server.url, *options))
        assert server.requests == 24
        server.refuses = lambda content: False
        run(*arguments(seeds, tmp_path / "refused", server.url, *options, "--ask_refused"))
        assert server.requests == 24 + refused
        server.status = 400  # whatever is asked
        printed = run(*arguments(seeds, tmp_path / "never", server.url, *options), status=1)
        assert "10 requests in a row were refused, the last by: status 400" in printed
        server.status = None
        run(*arguments(seeds, tmp_path / "never", server.url, *options))
        assert json.loads((tmp_path / "never" / "quality.json").read_text())["conversations"] > 20
    with TeachingServer(faulty=0.5, faults=("broken",)).running() as server:
        printed = run(*arguments(seeds, tmp_path / "out", server.url, *options, "--max_requests", "3"), status=1)
        assert "--max_requests=3 is reached" in printed
        assert server.requests == 3
        run(*arguments(seeds, tmp_path / "out", server.url, *options))
        spent = json.loads((tmp_path / "out" / "quality.json").read_text())["spent"]
        assert spent["requests"] == server.requests > 8


def test_tokens_of_replies_that_are_of_no_use_are_paid_for_too(seeds, tmp_path):
    def options(*more):
        return arguments(seeds, tmp_path / "out", server.url, "--conversations", "20", "--concurrency", "1", *more)

    with TeachingServer(faulty=1.0, faults=("wrong schema",)).running() as server:
        run(*options("--max_tokens", "12000"), status=1)
        first = server.requests
        assert first in (9, 10, 11)  # of 1,100 tokens each, of use or not
        run(*options("--max_tokens", "12000"), status=1)
        assert server.requests == first  # and remembered
        run(*options())
    spent = json.loads((tmp_path / "out" / "quality.json").read_text())["spent"]
    assert spent["requests"] == server.requests >= 40
    assert spent["prompt_tokens"] == 1000 * server.requests


def test_a_teacher_that_never_does_as_it_is_asked_is_not_paid_for_long(seeds, tmp_path):
    with TeachingServer(write=lambda seed: "hello").running() as server:
        printed = run(*arguments(seeds, tmp_path / "out", server.url, "--conversations", "100"), status=1)
    assert "50 attempts failed in a row, the last by: the reply does not follow the schema" in printed
    assert server.requests <= 50 + 4


def test_a_teacher_is_told_what_is_wrong_and_mends_it(seeds, tmp_path):
    with TeachingServer(write=hallucinating(1.0)).running() as server:
        options = arguments(seeds, tmp_path / "out", server.url, "--conversations", "6", "--mend")
        run(*options, "--kinds", "structure=1")
        assert server.requests == 12
        asked = [
            body["messages"] for body in server.bodies if "Some of that is wrong" in body["messages"][-1]["content"]
        ]
        assert len(asked) == 6
        assert asked[0][-2]["role"] == "assistant"
        assert "message 2: contradicted: charge: " in asked[0][-1]["content"]
        assert "message 4: contradicted: rings: " in asked[0][-1]["content"]
        before = outputs(tmp_path / "out")
        run(*options, "--kinds", "structure=1")
        assert server.requests == 12
    assert outputs(tmp_path / "out") == before
    rows = [json.loads(line) for line in before["conversations.jsonl"].decode().splitlines()]
    assert [len(row["messages"]) for row in rows] == [4] * 6
    assert all(row["provenance"]["mended"] for row in rows)
    assert json.loads((tmp_path / "out" / "quality.json").read_text())["mended"] == 6


def test_a_budget_ends_a_job_and_more_of_it_continues(seeds, tmp_path):
    def options(*more):
        return arguments(seeds, tmp_path / "out", server.url, "--conversations", "30", *more)

    prices = ("--price_input", "1", "--price_output", "10")
    with TeachingServer().running() as server:
        printed = run(*options("--max_requests", "10"), status=1)
        assert "30 requests to go" in printed
        assert "--max_requests=10 is reached; give more and run the same command again" in printed
        assert server.requests == 10
        assert json.loads((tmp_path / "out" / "quality.json").read_text())["complete"] is False
        assert len((tmp_path / "out" / "conversations.jsonl").read_text().splitlines()) == 10
        printed = run(*options("--max_cost", "0.03", *prices), status=1)  # 0.002 each
        assert "at the prices given" in printed
        assert "--max_cost=0.03 is reached" in printed
        assert 10 < server.requests <= 15  # what is under way counts as it is estimated
        run(*options(*prices))
    assert server.requests == 30
    quality = json.loads((tmp_path / "out" / "quality.json").read_text())
    assert quality["complete"] is True
    assert quality["spent"] == {
        "requests": 30, "prompt_tokens": 30_000, "completion_tokens": 3000, "cost": pytest.approx(0.06),
    }  # fmt: skip


def test_ctrl_c_ends_cleanly(seeds, tmp_path):
    with TeachingServer(faulty=1.0, faults=("hang",)).running() as server:
        process = start(*arguments(seeds, tmp_path / "out", server.url, "--timeout", "60"))
        begin = time.monotonic()
        while server.requests < 4 and time.monotonic() - begin < SECONDS:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert "\ndata_pipeline.instruct: interrupted; run the same command again" in printed
    assert "Traceback" not in printed
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")) == [
        "instruct.json", "replies.sqlite",
    ]  # fmt: skip


def test_another_jobs_folder_is_left_alone(seeds, tmp_path):
    with TeachingServer().running() as server:
        options = arguments(seeds, tmp_path / "out", server.url, "--conversations", "5")
        run(*options)
        before = outputs(tmp_path / "out")
        printed = run(*options, "--temperature", "0.1", "--seed", "3", status=1)
        assert "holds another job's conversations" in printed
        assert "temperature" in printed
        assert "seed: 0 there, 3 now" in printed
        assert outputs(tmp_path / "out") == before
        run(*options, "--threshold", "max_turns=2", "--concurrency", "1")
        assert server.requests == 5
    assert outputs(tmp_path / "out")["conversations.jsonl"] == b""
    assert b"too many turns" in outputs(tmp_path / "out")["rejected.jsonl"]


def asked(server_url: str, **options) -> OpenAITeacher:
    return OpenAITeacher(TeacherOptions(model="test", base_url=server_url, timeout=5.0, **options))


def a_request(number: int = 0):
    seed = {"molecules": [{"smiles": f"C{'C' * number}", "facts": {
        "formula": "CH4", "net charge": 0, "mass in g/mol": 16.0, "number of rings": 0}}]}  # fmt: skip
    return made_request([Message("system", "Write."), Message("user", json.dumps(seed))], Reply, "test")


@pytest.mark.parametrize(
    ("fault", "reason"),
    {
        "busy": "status 429", "busy with a time": "status 429", "broken": "status 500", "hang": "timeout",
        "cut": "connection", "not JSON": "not a chat completion", "no choices": "not a chat completion",
        "page": "not a chat completion", "redirect": "status 302", "huge": f"more than {MAX_BYTES:,} bytes",
        "close": "connection",
    }.items(),
)  # fmt: skip
def test_every_fault_is_one_to_try_again_after(fault, reason):
    async def once():
        teacher = asked(server.url)
        try:
            await teacher.answer(a_request())
        finally:
            await teacher.close()

    behaviour = TeachingServer(faulty=1.0, faults=(fault,))
    with behaviour.running() as server, pytest.raises(TryAgainError, match=reason) as error:
        asyncio.run(once())
    assert error.value.after == (RETRY_AFTER if fault == "busy with a time" else None)
    assert server.requests == 1


def ask_all(tmp_path, server, limits, count=1, **options):
    """When it began to ask, on the monotonic clock."""

    async def work():
        teacher = asked(server.url, **options)
        with Replies(tmp_path / "replies.sqlite") as replies:
            asker = Asker(teacher, replies, limits)
            begin = time.monotonic()
            try:
                await asyncio.gather(*(asker.ask(a_request(number)) for number in range(count)))
            finally:
                await teacher.close()
        return begin

    return asyncio.run(work())


def test_a_server_that_asks_to_wait_is_left_alone_for_so_long(tmp_path):
    with TeachingServer(faulty=1.0, faults=("busy with a time",)).running() as server:
        ask_all(tmp_path, server, Limits(backoff=0.0))
    ((first, _), (second, _)) = next(iter(server.stamps.values()))
    assert second - first >= RETRY_AFTER


def test_a_server_that_asks_one_request_to_wait_is_asked_nothing_else(tmp_path):
    async def work(teacher):
        with Replies(tmp_path / "replies.sqlite") as replies:
            asker = Asker(teacher, replies, Limits(backoff=0.0))
            first = asyncio.create_task(asker.ask(a_request(0)))
            while not server.requests:
                await asyncio.sleep(0.01)
            while not asker.faults:  # until it is told to wait
                await asyncio.sleep(0.01)
            server.faulty = 0.0
            await asyncio.gather(first, asker.ask(a_request(1)))
            await teacher.close()

    with TeachingServer(faulty=1.0, faults=("busy with a time",)).running() as server:
        asyncio.run(work(asked(server.url)))
    stamps = sorted(stamp for stamps in server.stamps.values() for stamp in stamps)
    assert [fault for _, fault in stamps] == ["busy with a time", "well", "well"]
    assert stamps[1][0] - stamps[0][0] >= RETRY_AFTER


CLOCKS = 0.02  # seconds: an event loop wakes up to a tick of its clock early


def last_arrival(server):
    return max(moment for stamps in server.stamps.values() for moment, _ in stamps)


def test_requests_per_minute_are_kept_to(tmp_path):
    # from when asking began, not from the first request's arrival: that may take any time on a busy machine
    with TeachingServer().running() as server:
        begin = ask_all(tmp_path, server, Limits(requests_per_minute=121), count=4)
    assert last_arrival(server) - begin >= 3 * 0.5 - CLOCKS


def test_tokens_per_minute_are_kept_to(tmp_path):
    # a request and its answer are some 340 tokens: 180 a second after a burst of 1,200
    with TeachingServer().running() as server:
        begin = ask_all(tmp_path, server, Limits(tokens_per_minute=12_000, concurrency=8), count=6)
    assert last_arrival(server) - begin >= (6 * 300 - 1200) / 180 - CLOCKS


def test_what_can_never_work_ends_at_once_and_what_fails_always_ends_soon(tmp_path):
    with TeachingServer().running() as server:
        server.status = 404
        with pytest.raises(DataError, match="no such model or address"):
            ask_all(tmp_path, server, Limits())
        assert server.requests == 1
        server.status = 503
        with pytest.raises(GivenUpError, match="status 503"):
            ask_all(tmp_path, server, Limits(attempts=3, backoff=0.0))
        assert server.requests == 4
        with pytest.raises(DataError, match="50 attempts failed in a row, the last by: status 503"):
            ask_all(tmp_path, server, Limits(attempts=100, backoff=0.0))
        with pytest.raises(BudgetError, match="max_tokens"):
            ask_all(tmp_path, server, Limits(max_tokens=0))


def test_a_server_without_schemas_is_asked_without(tmp_path):
    with TeachingServer().running() as server:
        server.refuse_structure = ("json_schema", "json_object")
        ask_all(tmp_path, server, Limits(backoff=0.0))
        kinds = [body.get("response_format", {}).get("type") for body in server.bodies]
        assert kinds == ["json_schema", "json_object", None]
        schema = server.bodies[0]["response_format"]["json_schema"]
        assert schema["strict"] is True
        assert schema["schema"]["required"] == ["messages"]
        assert {body["model"] for body in server.bodies} == {"test"}
        assert len({headers["idempotency-key"].partition("-")[0] for headers in server.headers}) == 1


def test_batch_files_go_out_and_come_back(seeds, tmp_path):
    with TeachingServer().running() as server:
        options = arguments(seeds, tmp_path / "out", server.url, "--conversations", "12")
        requests = tmp_path / "requests.jsonl"
        assert "12 requests" in run(*options, "--write_batch", str(requests))
        lines = [json.loads(line) for line in requests.read_text().splitlines()]
        assert {line["url"] for line in lines} == {"/v1/chat/completions"}
        assert {line["body"]["model"] for line in lines} == {"test"}
        results = []
        for number, line in enumerate(lines):
            turns = [("user", "Describe it."), ("assistant", f"It is number {number}.")]
            text = json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]})
            body = {
                "choices": [{"message": {"content": text}, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 5, "completion_tokens": 7},
            }
            response = {"status_code": 500 if number == 3 else 200, "body": {} if number == 4 else body}
            results.append({"id": "batch_1", "custom_id": line["custom_id"], "response": response, "error": None})
        (tmp_path / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in results))
        printed = run(*options, "--read_batch", str(tmp_path / "results.jsonl"))
        assert "10 replies read; 1 failed, to be asked again; 1 unusable" in printed
        assert server.requests == 2  # those two
