r"""What does instruction tuning change? Property questions, before and after stage 2, beside what needs no model.

    python -m llamo_jax.analysis.instruction_effect --before runs/stage1-smollm2 \
        --after descriptions=runs/a names=runs/b --tasks data/paper --output DIR

--tasks: a folder of folders of data_pipeline.prepare; those that ask for properties are asked (scaffold split: what
`prepare` makes by itself). --after: one run, or several that were tuned on different data, by name. Every model answers
the test split of each (again, to continue where it was interrupted); beside them stand chance, a constant and a random
forest on Morgan fingerprints, from the training split. Changes are paired by question, with bootstrap intervals.
DIR gets instruction_effect.json, .md and .png.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline import storage
from data_pipeline.command_line import program
from data_pipeline.errors import DataError
from data_pipeline.logs import quiet_libraries
from data_pipeline.records import read_manifest, read_records
from llamo_jax import runs
from llamo_jax.analysis import pages
from llamo_jax.config import ConfigError, DecodingConfig
from llamo_jax.evaluation import intervals
from llamo_jax.evaluation.answers import number_in, yes_in
from llamo_jax.evaluation.baselines import BASELINES, baseline_scores
from llamo_jax.evaluation.config import EvaluationConfig
from llamo_jax.evaluation.run import evaluate
from llamo_jax.evaluation.scores import asked_about

CLASSES = {"property_regression": False, "property_classification": True}
"""Tasks that ask for properties, and whether answers are yes or no."""

SCORES = {False: ("mae", "rmse", "r2", "answered"), True: ("roc_auc", "accuracy", "f1", "yes_rate")}
BEFORE = "before"
NEW_TOKENS = 12


def property_folders(tasks: Path) -> dict[str, bool]:
    """Name → whether answers are yes or no, of the folders in `tasks` that ask for properties; raises DataError."""
    found = {}
    for folder in sorted(path for path in tasks.iterdir() if path.is_dir()) if tasks.is_dir() else ():
        if (folder / "manifest.json").exists() and (task := read_manifest(folder)["task"]) in CLASSES:
            found[folder.name] = CLASSES[task]
    if not found:
        raise DataError(f"{tasks} has no prepared folder of {' or '.join(CLASSES)}")
    return found


def answered(model: Path, folder: Path, *, classes: bool, limit: int, workdir: Path) -> dict[str, Any]:
    """Scores of a model on a test split, and its rows under "rows_of"; continues an interrupted evaluation."""
    config = EvaluationConfig(
        name="evaluate",
        checkpoint=str(model),
        task=next(task for task, each in CLASSES.items() if each == classes),
        data=str(folder),
        split="test",
        limit=limit,
        context="full",
        metric_tokenizer="words",
        graph_use=0,
        group_questions=0,
        cache_dir="data",
        tensor=0,
        decoding=DecodingConfig(max_new_tokens=NEW_TOKENS),
    )
    scores = evaluate(config, workdir)
    return scores | {"rows_of": storage.read_json_lines(workdir / "predictions.jsonl")}


def change(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], *, classes: bool) -> dict[str, Any]:
    """What tuning changed, paired by question: of absolute errors, over questions that both answered with a number; of
    classes, of the share of right answers.
    """
    losses = [
        (a, _loss(a, classes=classes), _loss(b, classes=classes))
        for a, b in zip(before, after, strict=True)
        if a["target"] == b["target"]
    ]
    pairs = [(row, y - x) for row, x, y in losses if x is not None and y is not None]
    difference = np.array([change for _, change in pairs])
    molecules = asked_about([row for row, _ in pairs])
    interval = intervals.intervals(len(difference), {"mean": intervals.mean(difference)}, molecules)["mean"]
    mean = float(difference.mean()) if len(difference) else None
    return {"mean": mean, "interval": interval, "questions": len(difference)}


def _loss(row: Mapping[str, Any], *, classes: bool) -> float | None:
    """The absolute error, None without a number; of classes, 1 if the answer is right."""
    if classes:
        return float(yes_in(row["prediction"]) is not None and yes_in(row["prediction"]) == yes_in(row["target"]))
    said, true = number_in(row["prediction"]), number_in(row["target"])
    return None if said is None or true is None else abs(said - true)


def analyse(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that the report shows."""
    models = {BEFORE: options.before}
    for pair in options.after:
        name, _, path = pair.rpartition("=")
        models[name or "after"] = Path(path)
    if len(models) != 1 + len(options.after):
        raise ConfigError("--after: give each of several runs a name of its own, NAME=RUN")
    result: dict[str, Any] = {"models": {name: str(path) for name, path in models.items()}, "tasks": {}}
    for task, classes in property_folders(options.tasks).items():
        folder = options.tasks / task
        train, test = (read_records(folder, split) for split in ("train", "test"))
        test = test[: options.limit or None]
        found = {name: baseline_scores(train, test, each, classes=classes) for name, each in BASELINES.items()}
        rows = {}
        for name, path in models.items():
            print(f"{task}: {name}", flush=True)
            workdir = options.output / "answers" / name / task
            scores = answered(path, folder, classes=classes, limit=options.limit, workdir=workdir)
            rows[name], found[name] = scores.pop("rows_of"), scores
        kept = (*SCORES[classes], "intervals")
        result["tasks"][task] = {
            "classes": classes,
            "questions": len(test),
            "scores": {name: {key: scores[key] for key in kept} for name, scores in found.items()},
            "change": {name: change(rows[BEFORE], rows[name], classes=classes) for name in models if name != BEFORE},
        }
    return result


def sections(result: Mapping[str, Any]) -> list[pages.Section]:
    """What stands in instruction_effect.md."""
    found = []
    for task, each in result["tasks"].items():
        names = SCORES[each["classes"]]
        cells = [
            [
                model,
                *(
                    pages.with_interval({"mean": scores[key], "interval": scores["intervals"].get(key)})
                    for key in names
                ),
            ]
            for model, scores in each["scores"].items()
        ]
        what = "share of right answers" if each["classes"] else "absolute error"
        changes = [
            [model, pages.with_interval(score), f"{score['questions']:,}"] for model, score in each["change"].items()
        ]
        parts: list[str | pages.Table] = [pages.Table(("", *names), cells)]
        if changes:
            parts += [f"Change of the {what}, paired:", pages.Table(("", "after - before", "questions"), changes)]
        found.append(pages.Section(f"{task}: {each['questions']:,} questions", parts))
    return found


def picture(result: Mapping[str, Any]) -> bytes:
    """A PNG: MAE of each model over the constant's, and ROC-AUC, for every task, with intervals.

    Errors of a model that answered fewer than half of the questions with a number are left out: they are of other, few
    questions.
    """
    from matplotlib.figure import Figure

    groups = {classes: [task for task, each in result["tasks"].items() if each["classes"] == classes]
              for classes in (False, True)}  # fmt: skip
    kinds = [classes for classes, tasks in groups.items() if tasks]
    figure = Figure(figsize=(6.5 * len(kinds), 4.5), layout="constrained")
    panels = figure.subplots(1, len(kinds), squeeze=False).flat
    for axes, classes in zip(panels, kinds, strict=True):
        tasks = groups[classes]
        models = list(result["tasks"][tasks[0]]["scores"])
        for place, model in enumerate(models):
            bars = np.array([_bar(result["tasks"][task]["scores"], model, classes=classes) for task in tasks])
            at = np.arange(len(tasks)) + 0.8 * place / len(models)
            around = np.abs(bars[:, 1:] - bars[:, :1]).T
            axes.bar(at, bars[:, 0], 0.8 / len(models), yerr=around, error_kw={"linewidth": 0.8}, label=model)
        axes.set_xticks(np.arange(len(tasks)) + 0.35, tasks, rotation=20)
        axes.set_ylabel("ROC-AUC" if classes else "MAE over that of the training mean")
        if not classes:
            axes.set_yscale("log")  # an untuned model's numbers were 105 times as wrong as the mean
        axes.axhline(0.5 if classes else 1.0, color="k", linewidth=0.8)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(models), fontsize="small"
    )
    return pages.png(figure)


def _bar(scores: Mapping[str, Any], model: str, *, classes: bool) -> tuple[float, float, float]:
    """Height and interval of a bar; NaN where there is none."""
    score, reference = ("roc_auc", 1.0) if classes else ("mae", scores["constant"]["mae"])
    value, interval = scores[model][score], scores[model]["intervals"].get(score)
    if value is None or (not classes and scores[model]["answered"] < 0.5):
        return (np.nan,) * 3
    low, high = interval or (value, value)
    return value / reference, low / reference, high / reference


@program("instruction_effect", hint="run the same command again to continue")
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="llamo_jax.analysis.instruction_effect",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--before", type=Path, required=True, metavar="RUN", help="stage 1")
    parser.add_argument("--after", nargs="+", required=True, metavar="[NAME=]RUN", help="stage 2")
    parser.add_argument("--tasks", type=Path, required=True, metavar="DIR")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="answers, report and picture")
    parser.add_argument("--limit", type=int, default=0, help="the first so many questions of a task; default: all")
    options = parser.parse_args(arguments)
    quiet_libraries()
    try:
        result = analyse(options)
        pages.write(
            options.output, "instruction_effect", "Instruction tuning", result, sections(result), picture(result)
        )
    except runs.UserError as error:
        sys.exit(f"llamo_jax.analysis.instruction_effect: {error}")


if __name__ == "__main__":
    main()
