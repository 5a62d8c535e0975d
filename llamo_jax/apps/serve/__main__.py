r"""An endpoint that OpenAI's clients understand, on this machine.

    python -m llamo_jax.apps.serve --checkpoint runs/stage1-tiny
    curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' -d '{"model": "stage1-tiny",
        "molecules": ["CCO"], "messages": [{"role": "user", "content": "Describe this molecule."}]}'

Requests are answered side by side (--rows) and admitted while others are decoded; --waiting more may queue, others get
429. Without a temperature an answer is the most probable one, and the same in any company. /healthz and /metrics
(Prometheus) need no key; the rest asks for that of the environment variable LLAMO_API_KEY, if it is set. SIGTERM and
Ctrl-C: nothing new is taken, and what was taken has --drain_seconds. docs/serving.md has more.
"""

import argparse
import logging
import os
import signal
import socket
import sys
import threading
from typing import Any

from etils import epath

from data_pipeline import storage
from data_pipeline.command_line import program
from data_pipeline.errors import DataError
from data_pipeline.logs import quiet_libraries

KEY = "LLAMO_API_KEY"
PROMPT_TOKENS = 1024


@program("llamo_jax.apps.serve")
def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    options = read_options(arguments)
    quiet_libraries()
    from llamo_jax import runs

    try:
        try:
            import uvicorn

            from llamo_jax.apps.serve.api import make_app
        except ImportError as error:
            raise DataError(f"{error}; pip install 'llamo_jax[serve]'") from None
        _check_port(options.host, options.port)
        runs.use_compilation_cache()
        service, settings = make_service(options)
        _write_log()
        server = uvicorn.Server(_config(uvicorn, make_app(service, settings), options))
        stopping = _drains(server, service.batcher, options.drain_seconds)
        print("compiling, which is waited for once …", file=sys.stderr, flush=True)
        warm_up(service)
        where = f"http://{f'[{options.host}]' if ':' in options.host else options.host}:{options.port}/v1"
        print(
            f"{settings.name}: {service.assistant.about}; {where}, {service.batcher.rows} side by side", file=sys.stderr
        )
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)  # uvicorn raises them again when it has stopped: to end well
        server.run()
        service.batcher.close(0 if stopping.is_set() else options.drain_seconds)
    except runs.UserError as error:
        sys.exit(f"llamo_jax.apps.serve: {error}")


def _check_port(host: str, port: int) -> None:
    """Raises DataError if nobody could be answered there, before a model is loaded."""
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OverflowError:
        raise DataError(f"--port {port} is none: ports are 0 to 65535") from None
    except OSError as error:
        why = str(error.strerror).partition(" (while")[0]  # some Pythons repeat the address
        raise DataError(f"cannot listen at {host}:{port}: {why}; choose another --port") from None


def _write_log() -> None:
    """The access log's lines go to the error stream, whatever other libraries have done to logging."""
    log = logging.getLogger("llamo_jax.serve")
    log.setLevel(logging.INFO)
    log.addHandler(logging.StreamHandler(sys.stderr))
    log.propagate = False


def read_options(arguments: list[str] | None) -> argparse.Namespace:
    """From the command line."""
    parser = argparse.ArgumentParser(
        prog="llamo_jax.apps.serve", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, type=epath.Path, metavar="DIR", help="a run's workdir")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0: every machine that reaches this one")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--name", help="the model's, for clients; default: the folder's")
    parser.add_argument("--rows", type=int, help="answers side by side; default: 16 on CPUs, else 64")
    parser.add_argument("--waiting", type=int, default=256, help="requests that may queue")
    parser.add_argument("--max_new_tokens", type=int, default=256, help="of an answer, and where a request names none")
    parser.add_argument("--max_prompt_tokens", type=int, default=PROMPT_TOKENS)
    parser.add_argument("--max_molecules", type=int, default=8, help="of a conversation")
    parser.add_argument("--max_atoms", type=int, default=512, help="of a conversation's molecules in all")
    parser.add_argument("--max_body", type=int, default=1 << 20, help="bytes of a request")
    parser.add_argument("--deadline", type=float, default=120.0, help="seconds for an answer, its waiting included")
    parser.add_argument("--drain_seconds", type=float, default=30.0)
    parser.add_argument("--temperature", type=float, default=0.0, help="where a request names none")
    parser.add_argument("--log_prompts", action="store_true", help="write what is asked into the log as well")
    return parser.parse_args(arguments)


def make_service(options: argparse.Namespace) -> tuple[Any, Any]:
    """The model behind its rows, and the endpoint's settings; raises CheckpointError and ConfigError."""
    import jax

    from llamo_jax.apps.assistant import Assistant
    from llamo_jax.apps.serve.api import Settings
    from llamo_jax.apps.serve.service import Service
    from llamo_jax.config import DecodingConfig
    from llamo_jax.generation.batcher import Batcher
    from llamo_jax.generation.prompts import GraphRoom

    assistant = Assistant.load(options.checkpoint, decoding=DecodingConfig(max_new_tokens=options.max_new_tokens))
    options.rows = options.rows or (16 if jax.default_backend() == "cpu" else 64)
    batcher = Batcher(
        assistant.generator,
        rows=assistant.generator.fitting_rows(options.rows, options.max_prompt_tokens),
        waiting=options.waiting,
        prompt_tokens=options.max_prompt_tokens,
        room=GraphRoom(options.max_molecules, options.max_atoms),
    )
    settings = Settings(
        name=options.name or storage.absolute(options.checkpoint).name,
        api_key=os.environ.get(KEY, ""),
        max_body=options.max_body,
        drain_seconds=options.drain_seconds,
        log_prompts=options.log_prompts,
    )
    return Service(assistant, batcher, seconds=options.deadline, default_temperature=options.temperature), settings


def warm_up(service: Any) -> None:
    """Compiles what a first question needs, before anybody waits for it."""
    from llamo_jax.apps.serve.schema import APIError, ChatRequest
    from llamo_jax.generation.batcher import Piece

    asked = {"model": "", "messages": [{"role": "user", "content": "Describe this molecule."}], "molecules": ["CCO"]}
    try:
        answering = service.understand(ChatRequest.model_validate(asked | {"max_tokens": 2}))
    except APIError as error:
        raise DataError(f"nobody could ask about ethanol: {error}; see --max_* in --help") from None
    ended = threading.Event()
    pieces: list[Piece] = []

    def deliver(_: int, piece: Piece) -> None:
        pieces.append(piece)
        if piece.reason:
            ended.set()

    service.batcher.submit(answering.prompt, answering.samplings, deliver, seconds=3600)
    ended.wait()
    if pieces[-1].reason == "failed":
        raise DataError(pieces[-1].error)


def _config(uvicorn: Any, app: Any, options: argparse.Namespace) -> Any:
    from llamo_jax.apps.serve.limits import MAX_HEADERS, BoundedHTTP

    return uvicorn.Config(
        app,
        host=options.host,
        port=options.port,
        http=BoundedHTTP,
        ws="none",
        log_config=None,
        access_log=False,
        log_level="warning",
        limit_concurrency=options.waiting + 1000,
        h11_max_incomplete_event_size=MAX_HEADERS,
        timeout_graceful_shutdown=int(options.drain_seconds) + 10,
    )


def _drains(server: Any, batcher: Any, seconds: float) -> threading.Event:
    """Lets a signal end the batcher as well as the server: its answers have `seconds`, and are told then."""
    stopping = threading.Event()
    exits = server.handle_exit

    def handle_exit(number: int, frame: Any) -> None:
        if not stopping.is_set():
            stopping.set()
            print(
                f"{signal.Signals(number).name}: answers that were begun have {seconds:g} s",
                file=sys.stderr,
                flush=True,
            )
            threading.Thread(target=batcher.close, args=(seconds,), daemon=True).start()
        exits(number, frame)

    server.handle_exit = handle_exit
    return stopping


if __name__ == "__main__":
    main()
