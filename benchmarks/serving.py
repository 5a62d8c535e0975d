"""Many clients at one endpoint: latency, throughput, memory, and whether all are answered as one alone would be.

python -m benchmarks.serving --checkpoint runs/stage1-tiny --json
python -m benchmarks.serving --checkpoint runs/stage1-tiny --clients 64 --requests 20 --memory 2000

Starts `llamo_jax.apps.serve` on loopback. Of the requests, every tenth is no molecule and every tenth goes away in the
middle of its stream. First one client asks a part of them, one after the other; then all do, and answers must be equal.
--memory: so many more requests, before and after which the server's memory is read.
"""

import argparse
import asyncio
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import psutil
from tqdm import tqdm

from data_pipeline.embedded import prepare_embedded
from data_pipeline.logs import quiet_libraries
from data_pipeline.records import read_records

QUESTIONS = ("Describe this molecule.", "What kind of molecule is this?", "Which functional groups does it have?")
ALONE = 64
"""Requests that one client asks by itself."""


def requests_of(molecules: list[str], count: int, seed: int) -> list[dict[str, Any]]:
    """Bodies of requests, and under "fate" what becomes of each: answered, invalid or gone."""
    rng = random.Random(seed)
    found = []
    for number in range(count):
        fate = {3: "invalid", 7: "gone"}.get(number % 10, "answered")
        question = {"role": "user", "content": rng.choice(QUESTIONS)}
        smiles = "C1CC(" if fate == "invalid" else rng.choice(molecules)
        found.append({"fate": fate, "messages": [question], "molecules": [smiles], "max_tokens": rng.randint(8, 64)})
    return found


async def ask(client: httpx.AsyncClient, body: dict[str, Any]) -> tuple[str, str, float, int]:
    """(what became of it, the answer's text, seconds, tokens)."""
    body = dict(body)
    fate = body.pop("fate")
    body |= {"model": "served", "stream": True, "stream_options": {"include_usage": True}}
    start, text, tokens = time.perf_counter(), "", 0
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            await response.aread()
            return str(response.status_code), response.json()["error"]["code"], time.perf_counter() - start, 0
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                return "broken", chunk["error"]["code"], time.perf_counter() - start, 0
            text += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
            tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
            if fate == "gone" and text:
                return "gone", "", time.perf_counter() - start, 0
    return "answered", text, time.perf_counter() - start, tokens


async def crowd(url: str, requests: list[dict[str, Any]], clients: int, bar: str) -> tuple[list[Any], float]:
    """The answers in order, each client asking its share one after the other, and the seconds that it took."""
    found: list[Any] = [None] * len(requests)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=clients)) as client:
        with tqdm(total=len(requests), desc=bar, unit="request") as progress:

            async def one(share: range) -> None:
                for index in share:
                    found[index] = await ask(client, requests[index])
                    progress.update()

            start = time.perf_counter()
            await asyncio.gather(*(one(range(first, len(requests), clients)) for first in range(clients)))
            return found, time.perf_counter() - start


def measure(url: str, server: psutil.Process, options: argparse.Namespace) -> dict[str, Any]:
    """What is printed."""
    records = read_records(prepare_embedded(options.cache_dir) / "description", "test")
    molecules = [record.conversation.smiles[0] for record in records]
    requests = requests_of(molecules, options.clients * options.requests, options.seed)
    few = [each for each in requests if each["fate"] == "answered"][:ALONE]
    asyncio.run(crowd(url, few, 1, "warming up"))
    alone, alone_seconds = asyncio.run(crowd(url, few, 1, "one client"))
    together, seconds = asyncio.run(crowd(url, requests, options.clients, f"{options.clients} clients"))
    answered = [each for each in together if each[0] == "answered"]
    again = [found for found, each in zip(together, requests, strict=True) if each["fate"] == "answered"][: len(few)]
    latencies = sorted(each[2] for each in answered)
    rate, rate_alone = sum(each[3] for each in answered) / seconds, sum(each[3] for each in alone) / alone_seconds
    expected = Counter({"answered": "answered", "invalid": "422", "gone": "gone"}[each["fate"]] for each in requests)
    result = {
        "requests": len(requests),
        "became": dict(Counter(each[0] for each in together)),
        "all_as_expected": Counter(each[0] for each in together) == expected,
        "same_as_alone": [each[1] for each in again] == [each[1] for each in alone],
        "seconds": seconds,
        "latency_p50": statistics.median(latencies),
        "latency_p95": latencies[int(0.95 * len(latencies))],
        "latency_alone_p50": statistics.median(each[2] for each in alone),
        "tokens_per_second": rate,
        "tokens_per_second_alone": rate_alone,
        "throughput_ratio": rate / rate_alone,
    }
    if options.memory:
        before = server.memory_info().rss
        more = requests_of(molecules, options.memory, options.seed + 1)
        asyncio.run(crowd(url, more, options.clients, "memory"))
        result |= {"memory_before": before, "memory_after": server.memory_info().rss, "memory_requests": options.memory}
    return result


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="benchmarks.serving", description=__doc__)
    parser.add_argument("--checkpoint", required=True, type=Path, metavar="DIR")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=20, help="of each client")
    parser.add_argument("--memory", type=int, default=0, metavar="N", help="requests between two looks at memory")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache_dir", default="data")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    quiet_libraries()
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "llamo_jax.apps.serve",
        "--checkpoint",
        str(options.checkpoint),
        "--port",
        str(port),
    ]
    command += ["--name", "served", "--rows", str(options.rows), "--waiting", str(16 * options.clients)]
    environment = {name: value for name, value in os.environ.items() if name != "LLAMO_API_KEY"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(process, url)
        result = measure(url, psutil.Process(process.pid), options)
    finally:
        process.terminate()
        process.communicate()
    print(json.dumps(result) if options.json else "\n".join(f"{name}: {value}" for name, value in result.items()))


def _wait(process: subprocess.Popen[str], url: str) -> None:
    """Until the server answers; its log is read away from then on, or the pipe would fill."""
    assert process.stderr is not None
    threading.Thread(target=lambda: [*process.stderr], daemon=True).start()  # type: ignore[misc]
    while process.poll() is None:
        try:
            if httpx.get(f"{url}/healthz").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    sys.exit("benchmarks.serving: the server did not start; start it by hand to see why")


if __name__ == "__main__":
    main()
