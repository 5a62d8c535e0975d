"""Texts from outside: what is done with them is first done in a process that may crash or never end.

Some SMILES that anyone can type bring RDKit down or keep it busy for hours (deep nesting, long chains in a drawing);
Python can neither catch the one nor interrupt the other. And chat templates are programs.
"""

import functools
import importlib
import json
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from data_pipeline.molecule import InvalidMoleculeError
from data_pipeline.subprocesses import start_module

T = TypeVar("T")

MAX_CHARACTERS = 10_000
"""Longer texts are refused unread: canonical SMILES take time by the square, 2 s for a chain of so many atoms."""

MAX_DEPTH = 1000
"""Branches inside of branches: RDKit's parser and writer recurse."""

CPU_SECONDS = 10
MEMORY = 8 * 2**30  # bytes of addresses


def tried(function: Callable[[str], T], smiles: str) -> T:
    """`function(smiles)`, after a process of its own has survived the same; `function` is at the top of a module.

    Raises InvalidMoleculeError if the text is too long or too deep, or the process died; and what `function` raises.
    """
    if len(smiles) > MAX_CHARACTERS:
        raise InvalidMoleculeError(smiles, f"longer than {MAX_CHARACTERS:,} characters")
    depth = deepest = 0
    for character in smiles:
        depth += (character == "(") - (character == ")")
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        raise InvalidMoleculeError(smiles, f"more than {MAX_DEPTH:,} nested branches")
    reason = fate(function, smiles)
    if reason is not None:
        raise InvalidMoleculeError(smiles, reason.replace("crashed", "crashed RDKit"))
    return function(smiles)


def fate(function: Callable[[str], Any], text: str) -> str | None:
    """Why a process did not survive `function(text)`; None if it did. `function` is at the top of a module."""
    return _fate(f"{function.__module__}:{function.__qualname__}", text)


@functools.lru_cache(maxsize=16_384)
def _fate(function: str, text: str) -> str | None:
    return _worker().ask(function, text)


class _Worker:
    """The process, started when it is first needed, and again after every death."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def ask(self, function: str, text: str) -> str | None:
        with self._lock:
            process = self._process = self._process or start_module("data_pipeline.guard")
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(json.dumps([function, text, CPU_SECONDS]) + "\n")
                process.stdin.flush()
                answer = process.stdout.readline()
            except BrokenPipeError:
                answer = ""
            if answer:
                return None
            code = process.wait()
            self._process = None
        if code == -signal.SIGPROF:
            return f"took more than {CPU_SECONDS} CPU seconds"
        return f"crashed (signal {-code})" if code < 0 else "too much for the memory"


@functools.cache
def _worker() -> _Worker:
    return _Worker()


def _serve() -> None:
    """The process: a call a line on standard input, a line for each on standard output when it is over."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        name, text, limit = json.loads(line)
        module, _, function = name.partition(":")
        call: Any = getattr(importlib.import_module(module), function)
        # the signal's default action ends the process, also inside of RDKit
        signal.setitimer(signal.ITIMER_PROF, limit)
        try:
            call(text)
        except MemoryError:
            sys.exit(1)
        except Exception:
            pass
        signal.setitimer(signal.ITIMER_PROF, 0)
        print("survived", flush=True)


if __name__ == "__main__":
    _serve()
