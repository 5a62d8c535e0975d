"""One question about every molecule of a file.

    python -m llamo_jax.apps.predict --checkpoint runs/stage1-tiny --input molecules.csv \
        --question 'Describe this molecule.' --output answers.csv

The output (.csv or .jsonl) keeps the file's order: `row` (from 1), `smiles`, `answer`, and `score`, the answer's
log-probability. Rows that are no molecule are left out, and told by reason. The same command continues an interrupted
one; another question, model or decoding is refused.
"""

import argparse
import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

from etils import epath

from data_pipeline import storage
from data_pipeline.command_line import program
from data_pipeline.conversation import Conversation, Message
from data_pipeline.errors import DataError
from data_pipeline.logs import quiet_libraries
from data_pipeline.progress import watched
from data_pipeline.records import featurized
from llamo_jax.apps.molecule_files import in_batches, read_molecules, told
from llamo_jax.apps.options import add_decoding, decoding_of
from llamo_jax.config import to_dict

COLUMNS = ("row", "smiles", "answer", "score")
FORMATS = (".csv", ".jsonl")


@program("llamo_jax.apps.predict", "run the same command again to continue")
def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="llamo_jax.apps.predict", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, type=epath.Path, metavar="DIR", help="a run's workdir")
    parser.add_argument("--input", required=True, type=Path, metavar="FILE")
    parser.add_argument("--question", required=True)
    parser.add_argument("--output", required=True, type=epath.Path, metavar="FILE.csv|.jsonl")
    parser.add_argument("--smiles_column", help="default: guessed")
    add_decoding(parser)
    options = parser.parse_args(arguments)
    quiet_libraries()
    from llamo_jax import runs

    try:
        print(predict(options))
    except runs.UserError as error:
        sys.exit(f"llamo_jax.apps.predict: {error}")


def predict(options: argparse.Namespace) -> str:
    """Answers what is missing and writes the file; returns lines for people."""
    from llamo_jax import runs
    from llamo_jax.loading import load_generator

    if options.output.suffix not in FORMATS:
        raise DataError(f"{options.output}: the name ends in {' or '.join(FORMATS)}")
    storage.check_new(options.output)
    decoding = decoding_of(options)
    rows, rejected, column = read_molecules(options.input, options.smiles_column)
    runs.use_compilation_cache()
    generator, fingerprint = load_generator(options.checkpoint, decoding=decoding)
    about = {
        "model": fingerprint[:16],
        "question": options.question,
        "decoding": json.loads(json.dumps(to_dict(decoding))),  # as it is read back
        "input": storage.digest(options.input),
        "smiles_column": column,
    }
    partial = options.output.with_name(f"{options.output.name}{storage.PARTIAL}.jsonl")
    begun = _begun(partial, about)
    done = {each.row: begun[each.row] for each in rows if begun.get(each.row, {}).get("smiles") == each.smiles}
    missing = [each for each in rows if each.row not in done]
    with (
        storage.LineWriter(partial) as lines,
        watched(total=len(rows), initial=len(rows) - len(missing), desc="answers", unit=" rows") as bar,
    ):
        if not begun:
            lines.write({"about": about})
        for batch in in_batches(missing):
            ask = (Message("user", options.question),)
            records = [featurized(Conversation((each.smiles,), ask)) for each in batch]
            # numbered by their rows: what is drawn does not depend on where an earlier run ended
            for place, (answer, *_) in generator.generate(records, numbers=[each.row for each in batch]):
                row, smiles = batch[place]
                done[row] = {"row": row, "smiles": smiles, "answer": answer.text, "score": round(answer.score, 4)}
                lines.write(done[row])
                bar.update()
    found = [done[each.row] for each in rows]
    if options.output.suffix == ".csv":
        storage.write_text(options.output, _as_csv(found))
    else:
        storage.write_json_lines(options.output, found)
    storage.remove(partial)
    return f"{options.output}: {len(found):,} answers{told(rejected)}"


def _begun(partial: epath.Path, about: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """The answers of an interrupted run, by row; raises DataError if it asked something else."""
    first, *rows = storage.read_json_lines(partial) or [{"about": about}]
    there = first.get("about")
    # an earlier version did not note the column: its rows say which molecules they are about
    there = {"smiles_column": about["smiles_column"], **there} if isinstance(there, dict) else there
    if there != about:
        differing = [name for name in about if not isinstance(there, dict) or there.get(name) != about[name]]
        raise DataError(f"{partial} holds answers of another run (other {', '.join(differing)}); remove it")
    return {row["row"]: row for row in rows if set(row) == set(COLUMNS)}


def _as_csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


if __name__ == "__main__":
    main()
