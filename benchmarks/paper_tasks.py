r"""The paper's tasks on real molecules: their data, and scores of several models side by side with intervals.

    python -m benchmarks.paper_tasks prepare --data DIR --tokenizer models/smollm2/tokenizer --output data/paper
    make assistant DATA=$(cat data/paper/mixture.txt)
    python -m benchmarks.paper_tasks score --tasks data/paper --output runs/paper_tasks --model both=runs/stage2-smollm2

DIR holds tables: chebi20/{train,valid}.tsv, pubchem324k/iupac_{train,validation,test_half}.tsv and
description_{validation,test_half}.tsv (columns SMILES and description, without quoting), and
property/{esol,freesolv,lipophilicity,bace,bbbp,qm9_subset}.csv. What is trained on shows no molecule of a test file.
`score` answers every test split (again, to continue), and puts chance, a constant and a random forest on Morgan
fingerprints beside properties; that needs scikit-learn.
"""

import argparse
import contextlib
import csv
import io
import os
import random
import sys
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.evaluate import get_config
from data_pipeline import storage
from data_pipeline.conversation import Message
from data_pipeline.describe import group_question
from data_pipeline.errors import DataError
from data_pipeline.functional_groups import functional_groups
from data_pipeline.jobs import Inputs, Runner, Settings, prepare
from data_pipeline.logs import quiet_libraries
from data_pipeline.molecule import InvalidMoleculeError, flat, parse_smiles
from data_pipeline.records import read_records
from data_pipeline.tasks import SMILES_COLUMNS, Columns
from llamo_jax import runs
from llamo_jax.evaluation.baselines import BASELINES, baseline_scores, forests
from llamo_jax.evaluation.run import evaluate, read_config

REGRESSION = {"esol": "measured log solubility in mols per litre", "freesolv": "expt", "lipophilicity": "exp"}
CLASSIFICATION = {"bace": "Class", "bbbp": "p_np"}
QM9 = ("homo", "lumo", "gap")
"""Property files and their columns."""

SHARES = {"descriptions": 3, "names": 3, "groups": 2, "qm9": 1} | dict.fromkeys((*REGRESSION, *CLASSIFICATION), 0.5)
"""Of rows in the mixture that stage 2 reads."""

GROUP_QUESTIONS = 4  # to a molecule in training, each with yes or no by chance
_WORDS = ("bleu2", "bleu4", "rouge1", "rouge2", "rougeL", "meteor")
SCORES = {
    "names": (*_WORDS, "exact", "structures.valid", "structures.structure"),
    "descriptions": (*_WORDS, "hallucination.precision"),
    **dict.fromkeys((*REGRESSION, "qm9"), ("mae", "rmse", "r2", "answered")),
    **dict.fromkeys(CLASSIFICATION, ("roc_auc", "accuracy", "f1", "yes_rate")),
}
"""Columns of each task's table, as metrics.json calls them; a point leads into an entry."""
GROUPS = tuple(f"group_questions.{name}" for name in ("f1", "roc_auc", "yes_rate", "accuracy"))
"""Those of the questions about groups, which are asked about the molecules of `names`."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="benchmarks.paper_tasks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("prepare")
    make.add_argument("--data", type=Path, required=True, metavar="DIR")
    make.add_argument("--tokenizer", required=True, metavar="DIR")
    make.add_argument("--output", type=Path, required=True, metavar="DIR")
    make.add_argument("--num_workers", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    show = commands.add_parser("score")
    show.add_argument("--tasks", type=Path, required=True, metavar="DIR", help="what `prepare` made")
    show.add_argument("--output", type=Path, required=True, metavar="DIR")
    show.add_argument("--model", nargs="+", default=[], metavar="NAME=CHECKPOINT", help="rows of the tables")
    show.add_argument("--only", nargs="+", default=list(SCORES), choices=SCORES, help="of the tasks")
    show.add_argument("--limit", type=int, default=0, help="the first so many examples of a task; default: all")
    show.add_argument("--graph_use", type=int, default=200, help="examples whose graph is exchanged for another's")
    show.add_argument("--metric_tokenizer", default="words")
    options = parser.parse_args(arguments)
    quiet_libraries()
    try:
        prepare_tasks(options) if options.command == "prepare" else score_models(options)
    except runs.UserError as error:
        sys.exit(f"benchmarks.paper_tasks: {error}")


def prepare_tasks(options: argparse.Namespace) -> None:
    """Every task as a prepared folder, and the mixture of all in mixture.txt."""
    data, output = options.data, options.output
    pubchem = data / "pubchem324k"
    tables = storage.make_folder(output / "tables")
    tests = [_rows(pubchem / f"{name}_test_half.tsv") for name in ("iupac", "description")]
    held_out = {_canonical(row["SMILES"]) for rows in tests for row in rows}
    names = {
        split: _rows(pubchem / f"iupac_{file}.tsv")
        for split, file in (("train", "train"), ("validation", "validation"), ("test", "test_half"))
    }
    for split in ("train", "validation"):
        names[split] = _without(names[split], held_out, f"names, {split}")
    chebi = _without(_rows(data / "chebi20" / "train.tsv"), held_out, "chebi20")
    pubchem_descriptions = _without(_rows(pubchem / "description_validation.tsv"), held_out, "pubchem324k")
    descriptions = {
        "train": [*chebi, *pubchem_descriptions],
        "validation": _without(_rows(data / "chebi20" / "valid.tsv"), held_out, "chebi20, validation"),
        "test": tests[1],
    }
    for split, rows in names.items():
        named = [{"smiles": row["SMILES"], "name": row["description"]} for row in rows]
        storage.write_json_lines(tables / f"names.{split}.jsonl", named)
        questions = list(_questions([row["SMILES"] for row in rows], split))
        storage.write_json_lines(tables / f"groups.{split}.jsonl", questions)
    for split, rows in descriptions.items():
        described = [{"smiles": row["SMILES"], "description": row["description"]} for row in rows]
        storage.write_json_lines(tables / f"descriptions.{split}.jsonl", described)

    def make(name: str, task: str, inputs: Inputs, **settings: Any) -> None:
        chosen = Settings(
            task=task, tokenizer=options.tokenizer, prompt_style="chat_template", tokens_per_row=512, **settings
        )
        manifest = prepare(inputs, output / name, chosen, Runner(options.num_workers))
        print(f"{name}: {manifest['splits']}, rejected {sum(manifest['rejected'].values())}")

    for name, task in (("names", "iupac_name"), ("descriptions", "description"), ("groups", "instruction")):
        files = {split: [tables / f"{name}.{split}.jsonl"] for split in ("train", "validation", "test")}
        inputs: Inputs = {None if split == "train" else split: paths for split, paths in files.items()}
        make(name, task, inputs, validation_fraction=0.0)
    properties = {name: (f"{name}.csv", (column,)) for name, column in (REGRESSION | CLASSIFICATION).items()}
    for name, (file, targets) in (properties | {"qm9": ("qm9_subset.csv", QM9)}).items():
        table = tables / f"{name}.csv"
        storage.write_text(table, _shuffled(data / "property" / file, held_out))
        make(name, _task(name), {None: [table]}, columns=Columns(targets=targets))
    mixture = ",".join(f"{output / name}={share}" for name, share in SHARES.items())
    (output / "mixture.txt").write_text(mixture + "\n")
    print(mixture)


def _rows(path: Path, delimiter: str = "\t", quoting: Any = csv.QUOTE_NONE) -> list[dict[str, str]]:
    if not path.is_file():
        raise DataError(f"there is no {path}; what DIR holds: python -m benchmarks.paper_tasks --help")
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter=delimiter, quoting=quoting))


def _shuffled(path: Path, held_out: Container[str | None]) -> str:
    """The table without molecules of a test file, its rows in random order.

    Some come sorted by their labels (BACE's actives stand first), and a test split's first shall be like all of it.
    """
    rows = _rows(path, delimiter=",", quoting=csv.QUOTE_MINIMAL)
    smiles = next(name for name in rows[0] if name.lower() in SMILES_COLUMNS)
    rows = _without(rows, held_out, path.stem, smiles)
    random.Random(path.stem).shuffle(rows)
    written = io.StringIO()
    table = csv.DictWriter(written, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return written.getvalue()


def _canonical(smiles: str) -> str | None:
    try:
        return flat(smiles)
    except InvalidMoleculeError:
        return None


def _without(
    rows: Sequence[dict[str, str]], molecules: Container[str | None], name: str, smiles: str = "SMILES"
) -> list[dict[str, str]]:
    kept = [row for row in rows if _canonical(row[smiles]) not in molecules]
    print(f"{name}: {len(rows) - len(kept)} of {len(rows)} rows show molecules of a test file, and are left out")
    return kept


def _questions(molecules: Sequence[str], split: str) -> Iterator[dict[str, Any]]:
    """Conversations of yes/no questions about groups; the answer is a toss, and says nothing about the next one.

    Absent groups are drawn as often as molecules have them, as in the test (llamo_jax.evaluation.questions): else a
    common group's name alone would be a yes.
    """
    groups = {}
    for smiles in molecules:
        with contextlib.suppress(InvalidMoleculeError):
            groups[smiles] = set(functional_groups(parse_smiles(smiles)))
    frequency = Counter(group for present in groups.values() for group in present)
    for smiles, present in groups.items():
        rng = random.Random(f"{split} {smiles}")
        sides = {"Yes": sorted(present), "No": sorted(set(frequency) - present)}
        messages: list[Message] = []
        for _ in range(GROUP_QUESTIONS):
            answer = rng.choice(("Yes", "No"))
            if sides[answer]:
                often = [frequency[group] if answer == "No" else 1 for group in sides[answer]]
                (group,) = rng.choices(sides[answer], often)
                sides[answer].remove(group)
                messages += [Message("user", group_question(group, rng)), Message("assistant", f"{answer}.")]
        if messages:
            yield {"smiles": smiles, "messages": [message._asdict() for message in messages]}


def score_models(options: argparse.Namespace) -> None:
    """Evaluates each model on each task, and prints the tables; see `table`."""
    results: dict[str, dict[str, Any]] = {}
    properties = [task for task in options.only if task in {*REGRESSION, *CLASSIFICATION, "qm9"}]
    if properties:
        forests()  # or a line that it is missing, before anything takes time
    for pair in options.model:
        model, _, checkpoint = pair.partition("=")
        for task in options.only:
            config = get_config()
            config.checkpoint, config.data, config.limit = checkpoint, str(options.tasks / task), options.limit
            config.task = _task(task)
            config.metric_tokenizer, config.graph_use = options.metric_tokenizer, options.graph_use
            config.group_questions = (options.limit or 1000) if task == "names" else 0
            config.decoding.max_new_tokens = {"names": 96, "descriptions": 128}.get(task, 12)
            metrics = evaluate(read_config(config), options.output / model / task)
            results.setdefault(task, {})[model] = metrics
    for task in properties:
        train, test = (read_records(options.tasks / task, split) for split in ("train", "test"))
        test = test[: options.limit or None]  # the rows that the models answer
        for name, predict in BASELINES.items():
            found = baseline_scores(train, test, predict, classes=task in CLASSIFICATION)
            results.setdefault(task, {})[name] = found
    storage.write_json(options.output / "scores.json", results)
    for task, rows in results.items():
        print(f"\n{task}\n{table(rows, SCORES[task])}")
        if task == "names":
            print(f"\ngroups\n{table(rows, GROUPS)}")


def _task(name: str) -> str:
    known = {"names": "iupac_name", "descriptions": "description"}
    return known.get(name) or ("property_classification" if name in CLASSIFICATION else "property_regression")


def table(rows: Mapping[str, Mapping[str, Any]], scores: Sequence[str]) -> str:
    """Markdown: a line for each model, its scores with their intervals, and what another molecule's graph costs."""
    lines = [f"| | {' | '.join(scores)} | graph use, nats |", f"|---{'|---' * (len(scores) + 1)}|"]
    for model, found in rows.items():
        use = found.get("graph_use", {}).get("change", {}).get("other")
        cells = [_cell(found, name) for name in scores]
        lines.append(f"| {model} | {' | '.join(cells)} | {'' if use is None else f'{use:+.3f}'} |")
    return "\n".join(lines)


def _cell(found: Mapping[str, Any], name: str) -> str:
    where, _, last = name.rpartition(".")
    inner = found.get(where) if where else found
    if not inner or inner.get(last) is None:
        return ""
    value, between = inner[last], found["intervals"].get(name) or inner.get("intervals", {}).get(last)
    return f"{value:.3f}" + (f" ({between[0]:.3f} to {between[1]:.3f})" if between else "")


if __name__ == "__main__":
    main()
