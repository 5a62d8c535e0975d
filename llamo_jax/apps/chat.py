r"""Chat about a molecule in the terminal.

    python -m llamo_jax.apps.chat --checkpoint runs/stage1-tiny --smiles 'CC(=O)Oc1ccccc1C(=O)O' \
        --question 'Describe this molecule.'

Without --question, questions are read line by line; earlier turns stay in the conversation. Answers appear token by
token; they are the most probable ones unless --temperature is given.
"""

import argparse
import sys
from collections.abc import Iterator

from etils import epath

from data_pipeline.logs import quiet_libraries
from data_pipeline.molecule import parse_smiles
from llamo_jax.config import DecodingConfig


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="llamo_jax.apps.chat", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, type=epath.Path, metavar="DIR", help="a run's workdir")
    parser.add_argument("--smiles", action="append", default=[], help="the molecule; repeat for several")
    parser.add_argument("--question", help="ask this one question and exit")
    for name in ("max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "num_beams", "seed"):
        default = getattr(DecodingConfig, name)
        parser.add_argument(f"--{name}", type=type(default), default=default)
    options = parser.parse_args(arguments)

    quiet_libraries()
    from llamo_jax import runs
    from llamo_jax.apps.assistant import Assistant

    try:
        decoding = DecodingConfig(
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            repetition_penalty=options.repetition_penalty,
            num_beams=options.num_beams,
            seed=options.seed,
        )
        for smiles in options.smiles:
            parse_smiles(smiles)  # before the model is loaded
        runs.use_compilation_cache()
        assistant = Assistant.load(options.checkpoint, decoding=decoding)
        history: list[tuple[str, str]] = []
        for question in [options.question] if options.question else _typed_questions():
            answer = ""
            for piece in assistant.stream(question, smiles=options.smiles, history=history):
                print(piece, end="", flush=True)
                answer += piece
            print(flush=True)
            history.append((question, answer))
    except runs.UserError as error:
        sys.exit(f"llamo_jax.apps.chat: {error}")


def _typed_questions() -> Iterator[str]:
    while True:
        try:
            question = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if question:
            yield question


if __name__ == "__main__":
    main()
