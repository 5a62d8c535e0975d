"""Raw files to records on disk: featurise every molecule once, count and keep what is rejected.

python -m data_pipeline.prepare --task description --input train.tsv --output data/chebi20
python -m data_pipeline.prepare --task instruction --input chats.jsonl --output data/chats --beam_runner=DirectRunner
python -m data_pipeline.prepare --embedded --output data     # the embedded corpus, as `make train` uses it

A job that was killed continues when the same command is run again; the result is the same, whatever the number of
workers.
"""

import argparse
import os
import sys
from typing import Any, NoReturn

from etils import epath

from data_pipeline import tasks
from data_pipeline.command_line import program
from data_pipeline.embedded import prepare_embedded
from data_pipeline.errors import DataError
from data_pipeline.files import TableOptions
from data_pipeline.inspect import describe_examples
from data_pipeline.jobs import Inputs, Runner, Settings, prepare
from data_pipeline.logs import quiet_libraries
from data_pipeline.prompt import PROMPT_STYLES
from data_pipeline.tables import QUOTING

EXAMPLES = 2
"""Records that are shown at the end."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see --help\n")


def _parser() -> argparse.ArgumentParser:
    default = Settings(task="")
    parser = _Parser(prog="data_pipeline.prepare", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--task", choices=sorted(tasks.TASKS))
    for name in ("input", "validation_input", "test_input"):
        parser.add_argument(f"--{name}", nargs="+", type=epath.Path, metavar="FILE", default=[])
    parser.add_argument(
        "--validation_fraction",
        type=float,
        default=default.validation_fraction,
        help="held out, without --validation_input; default: 0.1",
    )
    parser.add_argument(
        "--test_fraction",
        type=float,
        default=default.test_fraction,
        help="held out, without --test_input; default: 0.1, or 0 where --validation_fraction is given",
    )
    parser.add_argument(
        "--split", choices=("scaffold", "random"), default=default.split, help="what is held out together"
    )
    parser.add_argument("--output", required=True, type=epath.Path, metavar="DIR")
    parser.add_argument("--smiles_column", help="default: guessed, like the next two")
    parser.add_argument("--text_column")
    parser.add_argument("--target_column", nargs="+", default=[], metavar="NAME", help="property columns")
    parser.add_argument("--delimiter", help=r"between fields of tables, such as ';' or '\t'; default: by evidence")
    parser.add_argument("--quoting", choices=QUOTING, help="none: quotation marks are text; default: by evidence")
    parser.add_argument("--encoding", metavar="NAME", help="such as utf-8, utf-16, cp1252; default: by evidence")
    parser.add_argument("--num_workers", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    parser.add_argument("--beam_runner", help="DirectRunner, DataflowRunner, FlinkRunner, SparkRunner, ...")
    parser.add_argument("--beam_options", nargs="+", default=[], metavar="--OPTION=VALUE", help="after all others")
    parser.add_argument("--file_format", choices=("array_record", "tfrecord"), default=default.file_format)
    parser.add_argument("--rows_per_shard", type=int, default=default.rows_per_shard)
    parser.add_argument("--time_limit", type=float, default=default.time_limit, help="CPU seconds a row")
    parser.add_argument("--tokenizer", metavar="DIR", help="default: one is trained on the records")
    parser.add_argument("--prompt_style", choices=sorted(PROMPT_STYLES), default=default.prompt_style)
    parser.add_argument("--hide_smiles", action="store_true", help="prompts show the graphs alone")
    parser.add_argument("--tokens_per_row", type=int, default=default.tokens_per_row)
    parser.add_argument("--embedded", action="store_true", help="prepare the embedded corpus instead of files")
    return parser


def summary(folder: epath.Path, manifest: dict[str, Any]) -> list[str]:
    """Lines for people: what became of every row."""
    # what an earlier version has prepared lacks some of the counts
    rows, lost = manifest["rows"], manifest.get("without_molecule", 0)
    counts = {name: sum(manifest.get(name, {}).values()) for name in ("splits", "rejected", "missing")}
    examples = manifest.get("examples") or sum(counts.values())
    begin = f"{rows:,} rows" + (
        f" with {examples // max(1, rows)} labels each, {examples:,}" if examples > rows else ""
    )
    lines = [
        f"{folder}: {begin} = {counts['splits']:,} conversations + {counts['rejected']:,} rejected "
        f"+ {counts['missing']:,} missing",
        *(f"  {split:<12} {count:>10,}" for split, count in manifest["splits"].items()),
        *(f"  rejected     {count:>10,}  {reason}" for reason, count in manifest["rejected"].items()),
        *(f"  missing      {count:>10,}  {column} is empty" for column, count in manifest.get("missing", {}).items()),
    ]
    if lost and manifest["task"] != "molecule_generation":
        lines.append(f"  {lost:,} conversations show no molecule")
    if manifest.get("duplicates"):
        lines.append(f"  {manifest['duplicates']:,} say what another one says")
    if counts["rejected"]:
        lines.append(f"rejected rows are in {folder / 'rejected.jsonl'}")
    source = f"--config.data.source={folder} --workdir=runs/{folder.name}"
    lines.append(f"next: python launch.py --config configs/stage1.py {source}")
    return lines


@program("data_pipeline.prepare", "run the same command again to continue")
def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = _parser()
    arguments = sys.argv[1:] if arguments is None else arguments
    # what follows --beam_options belongs to Beam, also where it looks like an option of this program
    cut = arguments.index("--beam_options") if "--beam_options" in arguments else len(arguments)
    options = parser.parse_args(arguments[:cut])
    runner = Runner(max(1, options.num_workers), options.beam_runner, tuple(arguments[cut + 1 :]))
    if not options.embedded and not (options.task and options.input):
        parser.error("--task and --input are required")
    quiet_libraries()
    try:
        if options.embedded:
            print(prepare_embedded(options.output, runner))
            return
        delimiter = options.delimiter and options.delimiter.replace("\\t", "\t")
        settings = Settings(
            task=options.task,
            columns=tasks.Columns(options.smiles_column, options.text_column, tuple(options.target_column)),
            table=TableOptions(delimiter, options.quoting, options.encoding),
            validation_fraction=0.0 if options.validation_input else options.validation_fraction,
            test_fraction=0.0 if options.test_input else options.test_fraction,
            split=options.split,
            rows_per_shard=options.rows_per_shard,
            file_format=options.file_format,
            time_limit=options.time_limit,
            tokenizer=options.tokenizer,
            prompt_style=options.prompt_style,
            show_smiles=not options.hide_smiles,
            tokens_per_row=options.tokens_per_row,
        )
        fractions = settings.fractions().values()
        if min(fractions) < 0 or sum(fractions) >= 1:
            parser.error("--validation_fraction and --test_fraction must leave something for training")
        inputs: Inputs = {None: options.input, "validation": options.validation_input, "test": options.test_input}
        manifest = prepare(inputs, options.output, settings, runner)
    except DataError as error:
        sys.exit(f"data_pipeline.prepare: {error}")
    *counts, following = summary(options.output, manifest)
    print("\n".join([*counts, *filter(None, [describe_examples(options.output, manifest, EXAMPLES)]), following]))


if __name__ == "__main__":
    main()
