r"""Chat about molecules in the terminal.

    python -m llamo_jax.apps.chat --checkpoint runs/stage1-tiny --smiles 'CC(=O)Oc1ccccc1C(=O)O' \
        --question 'Describe this molecule.'

Without --question, questions are read line by line; earlier turns stay in the conversation. Answers appear token by
token; they are the most probable ones unless --temperature is given. Lines that begin with a slash are commands; /help
lists them. Ctrl-C ends an answer, Ctrl-D the chat.
"""

import argparse
import contextlib
import io
import json
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from data_pipeline import storage
from data_pipeline.command_line import program
from data_pipeline.guard import tried
from data_pipeline.logs import quiet_libraries
from data_pipeline.molecule import InvalidMoleculeError, featurize
from llamo_jax.apps.options import add_decoding, decoding_of

HELP = """\
/smiles S …   talk about these molecules, from the beginning
/add S …      show these as well, from the beginning
/reset        forget the conversation, keep the molecules
/save FILE    write the conversation, as `data_pipeline.prepare --task instruction` reads it
/help         this
/quit         leave (or Ctrl-D); Ctrl-C ends an answer"""


@program("llamo_jax.apps.chat")
def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="llamo_jax.apps.chat", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, type=epath.Path, metavar="DIR", help="a run's workdir")
    parser.add_argument("--smiles", action="append", default=[], help="the molecule; repeat for several")
    parser.add_argument("--question", help="ask this one question and exit")
    add_decoding(parser)
    options = parser.parse_args(arguments)

    quiet_libraries()
    from llamo_jax import runs
    from llamo_jax.apps.assistant import Assistant

    try:
        decoding = decoding_of(options)
        for smiles in options.smiles:
            tried(featurize, smiles)  # before the model is loaded
        runs.use_compilation_cache()
        assistant = Assistant.load(options.checkpoint, decoding=decoding)
        chat = Chat(assistant, options.smiles)
        if options.question:
            chat.answer(options.question)
            return
        print(f"{options.checkpoint}: {chat.about()}\n{chat.shown()}\n/help lists commands; Ctrl-D leaves", flush=True)
        chat.warm_up()
        for line in _typed_lines():
            if line.startswith("/"):
                if line.split()[0] in ("/quit", "/exit"):
                    return
                chat.command(line)
            else:
                with _ended_by_interrupt():
                    try:
                        chat.answer(line)
                    except runs.UserError as error:  # such as no more room: what was said can still be saved
                        print(f"{error}\n/reset begins a new conversation, /save FILE keeps this one", flush=True)
    except runs.UserError as error:
        sys.exit(f"llamo_jax.apps.chat: {error}")


class Chat:
    """A conversation about molecules, and the commands that change it; says everything through `say`."""

    def __init__(self, assistant: Any, smiles: list[str], say: Callable[..., None] = print):
        self._assistant = assistant
        self._smiles = list(smiles)
        self._history: list[tuple[str, str]] = []
        self._say = say
        self._warming: threading.Thread | None = None

    def about(self) -> str:
        """What the model is and was taught."""
        return self._assistant.about

    def shown(self) -> str:
        """The molecules, for people."""
        if not self._smiles:
            return "no molecule is shown; /smiles S shows one"
        return "\n".join(f"molecule {number}: {smiles}" for number, smiles in enumerate(self._smiles, start=1))

    def warm_up(self) -> None:
        """Compiles, while a question is being typed, what its answer will need."""

        def first_token() -> None:
            # a failure shows again, and is said, when a real question is asked
            with contextlib.suppress(Exception):
                next(self._assistant.stream("Describe this molecule.", smiles=self._smiles), "")

        self._warming = threading.Thread(target=first_token, daemon=True)
        self._warming.start()

    def answer(self, question: str) -> None:
        """Asks, and says the answer piece by piece; what is said when Ctrl-C comes stays in the conversation."""
        if self._warming is not None and self._warming.is_alive():
            self._say("compiling …", flush=True)
            self._warming.join()
        self._warming = None
        if note := self._assistant.too_long(question, smiles=self._smiles, history=self._history):
            self._say(f"({note})", flush=True)
        answer = ""
        try:
            for piece in self._assistant.stream(question, smiles=self._smiles, history=self._history):
                self._say(piece, end="", flush=True)
                answer += piece
        finally:
            if answer:
                self._say(flush=True)
                self._history.append((question, answer))

    def command(self, line: str) -> None:
        """Does what a line such as "/smiles CCO" says, or says why not; nothing is changed then."""
        name, *words = line.split()
        if name in ("/smiles", "/add") and words:
            try:
                for word in words:
                    tried(featurize, word)
            except InvalidMoleculeError as error:
                self._say(str(error), flush=True)
                return
            self._smiles = [*(self._smiles if name == "/add" else ()), *words]
            self._history.clear()  # the molecules stand at the beginning of a conversation
            self._say(self.shown(), flush=True)
        elif name == "/reset":
            self._history.clear()
            self._say(f"a new conversation\n{self.shown()}", flush=True)
        elif name == "/save" and words:
            self._save(" ".join(words))
        else:
            self._say(HELP, flush=True)

    def _save(self, file: str) -> None:
        roles = ("user", "assistant")
        messages = [
            {"role": role, "content": text} for turn in self._history for role, text in zip(roles, turn, strict=True)
        ]
        if not messages:
            self._say("nothing was asked yet", flush=True)
            return
        path = epath.Path(file)
        if path.exists():
            self._say(f"{path} exists already; choose another name", flush=True)
            return
        try:
            storage.write_text(path, json.dumps({"smiles": self._smiles, "messages": messages}) + "\n")
        except OSError as error:
            self._say(f"cannot write {path}: {error.strerror or error}", flush=True)
            return
        self._say(f"{len(self._history)} turns in {path}", flush=True)


@contextlib.contextmanager
def _ended_by_interrupt() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        print(flush=True)


def _typed_lines() -> Iterator[str]:
    # bytes that are no text become marks in their own line: decoding would fail for all that was read along with it
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            print("\n/quit or Ctrl-D leaves", flush=True)
            continue
        try:
            line.encode()
        except UnicodeEncodeError:
            print("a line that is no text was left out", flush=True)
            continue
        if line:
            yield line


if __name__ == "__main__":
    main()
