"""The command `llamo`: one word in front of everything that has a command line.

    llamo chat --checkpoint runs/stage1-tiny
    llamo ask "What is it?" --checkpoint runs/stage1-tiny --smiles CCO
    eval "$(llamo --print-completion bash)"          # or zsh, tcsh

`train` and `evaluate` run a checkout's launch.py, whose configs are not installed.
"""

import argparse
import importlib
import os
import sys
from pathlib import Path
from typing import NamedTuple

import shtab

from llamo_jax import __version__


class Command(NamedTuple):
    """A sub-command: the module whose `main` does it, None for launch.py; arguments that come first; and its help."""

    module: str | None
    first: tuple[str, ...]
    help: str


COMMANDS = {
    "train": Command(None, (), "train: llamo train --config configs/stage1.py:PRESET …"),
    "evaluate": Command(None, ("--config", "configs/evaluate.py"), "score a model: --config.checkpoint=DIR …"),
    "prepare": Command("data_pipeline.prepare", (), "rows of a file to records that are trained on"),
    "inspect": Command("data_pipeline.inspect", (), "what a prepared folder holds"),
    "instruct": Command("data_pipeline.instruct.__main__", (), "conversations about molecules, by a teacher"),
    "convert": Command("llamo_jax.convert.__main__", (), "weights from and to other formats"),
    "chat": Command("llamo_jax.apps.chat", (), "talk in the terminal"),
    "ask": Command("llamo_jax.apps.chat", ("--question",), "one question: llamo ask QUESTION --checkpoint DIR …"),
    "predict": Command("llamo_jax.apps.predict", (), "a question about every molecule of a file"),
    "embed": Command("llamo_jax.apps.embed", (), "molecules of a file as vectors"),
    "serve": Command("llamo_jax.apps.serve.__main__", (), "an endpoint that OpenAI's clients understand"),
    "demo": Command("llamo_jax.apps.demo.__main__", (), "a web page to talk with a drawn molecule"),
}


def make_parser() -> argparse.ArgumentParser:
    """Of the command and its sub-commands' names; their own options are told by `llamo COMMAND --help`."""
    parser = argparse.ArgumentParser(
        prog="llamo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"llamo_jax {__version__}")
    shtab.add_argument_to(parser, help="print a script that completes the command in a shell")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        each = commands.add_parser(name, help=command.help, add_help=False)
        each.add_argument("arguments", nargs=argparse.REMAINDER).complete = shtab.FILE  # type: ignore[attr-defined]
    return parser


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    given = sys.argv[1:] if arguments is None else arguments
    name, *rest = given or ["--help"]
    if name not in COMMANDS:
        make_parser().parse_args(given or ["--help"])
        return
    command = COMMANDS[name]
    if command.module is None:
        _launch(name, [*command.first, *rest])
    importlib.import_module(str(command.module)).main([*command.first, *rest])


def _launch(name: str, arguments: list[str]) -> None:
    """Becomes launch.py, so that signals reach the training itself."""
    if not Path("launch.py").exists():
        sys.exit(f"llamo {name}: launch.py is not here; run it in a checkout of llamo_jax")
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "launch.py", *arguments])


if __name__ == "__main__":
    main()
