r"""Conversations about molecules for instruction tuning, written by a teacher and checked against the structures.

    python -m data_pipeline.instruct --input train.tsv --output data/talk                      # needs nothing else
    python -m data_pipeline.instruct --input train.tsv --output data/talk --teacher openai --model NAME \
        --base_url http://localhost:8000/v1 --max_requests 1000                  # any server of that protocol
    python -m data_pipeline.instruct --output data/talk --sheet 50               # a sheet for people who rate them
    python -m data_pipeline.instruct --output data/talk --ratings anna.csv ben.csv
    python -m data_pipeline.prepare --task instruction --input data/talk/conversations.jsonl --output data/instruct

Seeds are rows with SMILES and a description, an IUPAC name, or both; the teacher also sees what RDKit computes. What
it writes is checked (form, truth, informativeness, leakage, diversity); a turn that fails, and what follows it, is cut
off. A job that was killed or interrupted goes on when the same command is run again: nothing is asked twice. The output
has conversations.jsonl, rejected.jsonl with reasons, quality.json, report.html, and replies.sqlite, with all replies.

Keys are read from the environment (OPENAI_API_KEY) and written nowhere.
"""

import argparse
import math
import sys
from pathlib import Path
from typing import NoReturn

from etils import epath

from data_pipeline.command_line import program
from data_pipeline.errors import DataError
from data_pipeline.files import TableOptions
from data_pipeline.instruct import batch_files, judging, ratings, report
from data_pipeline.instruct.asking import Limits
from data_pipeline.instruct.job import CONVERSATIONS, Job, Settings
from data_pipeline.instruct.kinds import KINDS
from data_pipeline.instruct.openai_teacher import STRUCTURES
from data_pipeline.instruct.plan import read_shares
from data_pipeline.instruct.quality import Thresholds
from data_pipeline.instruct.seeds import Columns
from data_pipeline.instruct.teachers import TEACHERS, Teacher, TeacherOptions, load_teacher
from data_pipeline.logs import quiet_libraries

NAME = "data_pipeline.instruct"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see --help\n")


def _parser() -> argparse.ArgumentParser:
    teacher, limits, settings = TeacherOptions(), Limits(), Settings(0, {})
    parser = _Parser(prog=NAME, description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--input", nargs="+", type=Path, metavar="FILE", default=[])
    add("--output", required=True, type=epath.Path, metavar="DIR")
    add("--conversations", type=int, default=1000, help="default: 1000")
    kinds = ", ".join(f"{name}={kind.share:g}" for name, kind in KINDS.items())
    add("--kinds", nargs="+", default=[], metavar="KIND=SHARE", help=f"default: {kinds}")
    add("--seed", type=int, default=settings.seed)
    add("--exclude", nargs="+", type=Path, metavar="FILE", default=[], help="whose molecules no conversation may show")
    add("--exclude_scaffolds", action="store_true", help="nor molecules of the same Murcko scaffold")
    add("--rounds", type=int, default=settings.rounds, help="of replacing what was rejected; default: 4")
    add("--mend", action="store_true", help="ask once more, with the reasons, where checks find something")
    thresholds = ", ".join(f"{name}={value:g}" for name, value in Thresholds()._asdict().items())
    add("--threshold", nargs="+", default=[], metavar="NAME=VALUE", help=f"of checks; default: {thresholds}")

    group = parser.add_argument_group("columns", "default: guessed, as data_pipeline.prepare does")
    for name in ("smiles", "description", "name"):
        group.add_argument(f"--{name}_column", metavar="NAME")

    group = parser.add_argument_group("teacher")
    add = group.add_argument
    add("--teacher", default="rules", help=f"{', '.join(TEACHERS)}, or MODULE:CLASS; default: rules")
    add("--model", help="of the teacher; for assistant: the folder of a run")
    add("--base_url", metavar="URL", help="default: the environment's OPENAI_BASE_URL")
    add("--temperature", type=float, default=teacher.temperature)
    add("--top_p", type=float, default=teacher.top_p)
    add("--max_answer_tokens", type=int, default=teacher.max_tokens)
    add("--timeout", type=float, default=teacher.timeout, help="seconds a request")
    add("--structured", choices=("auto", *STRUCTURES), default=teacher.structured, help="what the server holds to")

    group = parser.add_argument_group("limits", "of all runs of this output together, where they are of an amount")
    add = group.add_argument
    add("--concurrency", type=int, default=limits.concurrency, help="requests under way at once")
    add("--requests_per_minute", type=float)
    add("--tokens_per_minute", type=float)
    add("--attempts", type=int, default=limits.attempts, help="for one request, in one run")
    add("--backoff", type=float, default=limits.backoff, metavar="SECONDS", help="before the second attempt")
    add("--max_requests", type=int)
    add("--max_tokens", type=int)
    add("--max_cost", type=float, help="with --price_input and --price_output")
    add("--price_input", type=float, default=0.0, help="of a million tokens")
    add("--price_output", type=float, default=0.0)
    add("--ask_refused", action="store_true", help="ask what a server has refused once more")
    add("--dry_run", action="store_true", help="plan, estimate, show one request, and stop")

    group = parser.add_argument_group("instead of asking a server, or beside it")
    add = group.add_argument
    add("--write_batch", type=epath.Path, metavar="FILE", help="what is not answered, for a batch interface")
    add("--read_batch", nargs="+", type=Path, metavar="FILE", default=[], help="its results")

    group = parser.add_argument_group("ratings")
    add = group.add_argument
    add("--judge", nargs="+", metavar="TEACHER[=MODEL]", default=[], help="rate a sample, by other teachers")
    add("--judged", type=int, default=100, metavar="N", help="conversations of that sample")
    add("--sheet", type=int, metavar="N", help="write a sheet of N conversations for people to rate")
    add("--ratings", nargs="+", type=Path, metavar="FILE", default=[], help="filled sheets: means and agreement")
    return parser


def _teacher(options: argparse.Namespace, name: str, model: str | None) -> Teacher:
    return load_teacher(
        name,
        TeacherOptions(
            model=model,
            base_url=options.base_url,
            temperature=options.temperature,
            top_p=options.top_p,
            max_tokens=options.max_answer_tokens,
            seed=options.seed,
            timeout=options.timeout,
            structured=options.structured,
        ),
    )


def _limits(options: argparse.Namespace) -> Limits:
    if options.max_cost is not None and not (options.price_input or options.price_output):
        raise DataError("--max_cost needs --price_input and --price_output, of a million tokens")
    for name, least in (("concurrency", 1), ("attempts", 1), ("backoff", 0), ("price_input", 0), ("price_output", 0)):
        if not least <= getattr(options, name) < math.inf:
            raise DataError(f"--{name} is a number from {least} on")
    for name in ("requests_per_minute", "tokens_per_minute", "max_requests", "max_tokens", "max_cost"):
        if getattr(options, name) is not None and not 0 < getattr(options, name) < math.inf:
            raise DataError(f"--{name} is a number above 0")
    return Limits(**{name: getattr(options, name) for name in Limits._fields})


@program(NAME, "run the same command again to continue; what is answered is kept")
def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = _parser()
    options = parser.parse_args(arguments)
    quiet_libraries()
    try:
        if options.input:
            _converse(options)
        elif not (options.sheet is not None or options.ratings or options.judge):
            parser.error("--input is required")
        elif not options.output.is_dir():
            raise DataError(f"{options.output}: no such folder; write conversations first, with --input")
        if options.judge:
            teachers = [_teacher(options, *_named(spec, options)) for spec in options.judge]
            print(judging.judge(options.output, teachers, options.judged, options.seed, _limits(options)))
        if options.sheet is not None:
            if options.sheet < 1:
                raise DataError("--sheet is at least 1")
            print(report.write_sheet(options.output, options.sheet, options.seed))
        if options.ratings:
            print(ratings.read_ratings(options.output, options.ratings))
    except DataError as error:
        sys.exit(f"{NAME}: {error}")


def _named(spec: str, options: argparse.Namespace) -> tuple[str, str | None]:
    name, _, model = spec.partition("=")
    return name, model or options.model


def _converse(options: argparse.Namespace) -> None:
    for name, least in (("conversations", 1), ("rounds", 0), ("max_answer_tokens", 1)):
        if getattr(options, name) < least:
            raise DataError(f"--{name} is at least {least}")
    for name, most in (("temperature", 10), ("top_p", 1), ("timeout", 1e6)):
        if not 0 <= getattr(options, name) <= most:
            raise DataError(f"--{name} is between 0 and {most:g}")
    teacher, limits = _teacher(options, options.teacher, options.model), _limits(options)
    settings = Settings(
        conversations=options.conversations,
        shares=read_shares(options.kinds),
        seed=options.seed,
        mend=options.mend,
        rounds=options.rounds,
        columns=Columns(options.smiles_column, options.description_column, options.name_column),
        table=TableOptions(),
        exclude=tuple(options.exclude),
        exclude_scaffolds=options.exclude_scaffolds,
        thresholds=Thresholds().changed(options.threshold),
    )
    with Job.open(options.input, options.output, settings, teacher.asked) as job:
        if options.ask_refused:
            job.replies.forget_refusals()
        if options.read_batch:
            print(batch_files.read(job, options.read_batch))
        items = job.begin()
        if teacher.metered or options.dry_run:
            print(job.estimate(items).text(limits), flush=True)
        if options.dry_run:
            print("\n".join(f"\n[{role}]\n{text}" for role, text in job.plan.request(items[0]).messages))
            return
        if options.write_batch:
            structure = "schema" if options.structured == "auto" else options.structured
            print(batch_files.write(job, items, teacher.asked, options.write_batch, structure))
            return
        outcome = job.run(teacher, limits)
        report.write(options.output, outcome.quality)
        print(report.summary(options.output, outcome.quality))
    if outcome.stopped:
        raise DataError(outcome.stopped)
    print(
        f"next: python -m data_pipeline.prepare --task instruction --input {options.output / CONVERSATIONS} "
        f"--output data/{options.output.name}-prepared"
    )


if __name__ == "__main__":
    main()
