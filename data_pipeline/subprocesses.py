"""Processes that do a part of a program's work, so that it can be killed without the program."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def start_module(module: str, *arguments: str, pass_fds: Sequence[int] = ()) -> subprocess.Popen[str]:
    """`python -m module`, with pipes for standard input and output, which ends when its standard input does."""
    package = str(Path(__file__).parent.parent)
    paths = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=pass_fds,
        start_new_session=True,  # Ctrl-C is for the program, which ends them
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
    )
