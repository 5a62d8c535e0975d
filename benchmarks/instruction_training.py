"""Stage 2 on written conversations against stage 2 on plain question–answer pairs, with the same target tokens.

    make train                                                                              # runs/stage1-tiny
    python -m data_pipeline.instruct --input FILE --output data/talk --conversations 4000
    python -m benchmarks.instruction_training --conversations data/talk --input FILE --output runs/instruction_training

Three ways to tune on the same molecules: `conversations` as they are, `turns`: each question and its answer alone, and
`pairs`: "Describe this molecule." and the text that people wrote of it. Every arm sees as many tokens of answers, from
the same run of stage 1, with several seeds. All are asked about conversations whose first molecule's scaffold no arm
has seen, and yes/no questions about functional groups of their molecules. Prints a table, and writes results.json and
results.md.
"""

import argparse
import json
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from configs.evaluate import get_config as evaluation_config
from configs.stage2 import get_config
from data_pipeline import storage
from data_pipeline.corpus import scaffold_split
from data_pipeline.describe import DESCRIPTION_REQUESTS
from data_pipeline.files import TableOptions
from data_pipeline.instruct.seeds import Columns, Seed, read_seeds
from data_pipeline.jobs import Inputs, Runner, Settings, prepare
from data_pipeline.logs import quiet_libraries
from llamo_jax import runs, sharding
from llamo_jax.analysis import experiments, pages
from llamo_jax.evaluation.run import evaluate, read_config

ARMS = ("conversations", "turns", "pairs")
SCORES = {
    "rougeL": "ROUGE-L",
    "bleu2": "BLEU-2",
    "graph_use.per_token.true": "log-likelihood, nats a token",
    "graph_use.change.other": "lost with another graph",
    "group_questions.f1": "groups, F1",
    "group_questions.roc_auc": "groups, ROC-AUC",
    "group_questions.yes_rate": "groups, share of yes",
}
"""What is compared, as metrics.json calls it."""

Row = dict[str, Any]


def arms_of(conversations: Sequence[Row], seeds: Mapping[tuple[str, int], Seed]) -> dict[str, list[Row]]:
    """The same molecules in three ways: rows of {"smiles", "messages"} for each arm.

    >>> rows = [{"smiles": "C", "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
    ...          {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}],
    ...          "provenance": {"seeds": [{"file": "f", "row": 1}]}}]
    >>> arms = arms_of(rows, {("f", 1): Seed("C", "A gas.", "", "f", 1)})
    >>> [len(arms[name]) for name in ARMS], arms["pairs"][0]["messages"][1]["content"]
    ([1, 2, 1], 'A gas.')
    """
    arms: dict[str, list[Row]] = {name: [] for name in ARMS}
    for row in conversations:
        smiles, messages = row["smiles"], row["messages"]
        arms["conversations"].append({"smiles": smiles, "messages": messages})
        arms["turns"] += [
            {"smiles": smiles, "messages": messages[start : start + 2]} for start in range(0, len(messages), 2)
        ]
        for origin in row["provenance"]["seeds"]:
            seed = seeds[origin["file"], origin["row"]]
            ask = random.Random(seed.smiles).choice(DESCRIPTION_REQUESTS)
            turn = [{"role": "user", "content": ask}, {"role": "assistant", "content": seed.description}]
            arms["pairs"].append({"smiles": seed.smiles, "messages": turn})
    return arms


def prepared(options: argparse.Namespace) -> dict[str, Path]:
    """A prepared folder for each arm; what is tested is the conversations' own split."""
    rows = [json.loads(line) for line in (options.conversations / "conversations.jsonl").read_text().splitlines()]
    read, _ = read_seeds([options.input], Columns(), TableOptions())
    seeds = {(seed.file, seed.row): seed for seed in read}
    first = [row["smiles"] if isinstance(row["smiles"], str) else row["smiles"][0] for row in rows]
    splits = scaffold_split(first)
    folders = {}
    for arm in ARMS:
        inputs: dict[str | None, list[Path]] = {}
        for split in ("train", "validation", "test"):
            chosen = [row for row, where in zip(rows, splits, strict=True) if where == split]
            path = storage.make_folder(options.output / "tables") / f"{arm}.{split}.jsonl"
            # all are tested on conversations; validation is the arm's own
            storage.write_json_lines(path, arms_of(chosen, seeds)["conversations" if split == "test" else arm])
            inputs[None if split == "train" else split] = [path]
        settings = Settings(
            task="instruction", tokenizer=str(options.base / "tokenizer"), validation_fraction=0.0, tokens_per_row=256
        )
        folders[arm] = options.output / "data" / arm
        given: Inputs = inputs
        prepare(given, folders[arm], settings, Runner())
    return folders


def configured(options: argparse.Namespace, folder: Path, seed: int, steps: int) -> Any:
    """Stage 2 of the preset on this folder."""
    config = get_config(options.preset)
    config.init_from = str(options.base)
    config.data.source = str(folder)
    config.seed = seed
    config.train.steps = steps
    config.train.samples = 0
    return runs.read_config(config)


def target_tokens_a_step(options: argparse.Namespace, folder: Path) -> float:
    """Tokens of answers in a step, on average: conversations of a batch times their tokens."""
    config = configured(options, folder, 0, 1)
    encoder, data, _ = runs.read_data(config, sharding.make_mesh(config.mesh))
    from data_pipeline.records import read_records

    sample = read_records(folder, "train")[:1000]
    tokens = np.mean([conversation.is_target.sum() for conversation in encoder.encode(sample)])
    return float(tokens * data.train.conversations_per_row(0) * data.train.shape.rows)


def run(options: argparse.Namespace) -> list[Row]:
    """Trains and scores every arm and seed; what is finished is read."""
    folders = prepared(options)
    rates = {arm: target_tokens_a_step(options, folder) for arm, folder in folders.items()}
    budget = rates["conversations"] * options.steps
    results = []
    for seed in range(options.seeds):
        for arm, folder in folders.items():
            work = options.output / "runs" / f"{arm}-{seed}"
            config = configured(options, folder, seed, round(budget / rates[arm]))
            state = runs.train(config, work)
            if not runs.is_finished(config, work, state):
                sys.exit("stopped; run the same command again to continue")
            lines = [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]
            evaluation = evaluation_config()
            evaluation.checkpoint, evaluation.data = str(work), str(folders["conversations"])
            evaluation.task, evaluation.limit = "instruction", options.limit
            metrics = evaluate(read_config(evaluation), options.output / "scores" / f"{arm}-{seed}")
            jax.clear_caches()  # programs of one run are nothing to the next, and take memory maps
            results.append({
                "arm": arm,
                "seed": seed,
                "steps": config.train.steps,
                "target_tokens": sum({line["step"]: line["target_tokens"] for line in lines}.values()),
                **{name: _entry(metrics, name) for name in SCORES},
            })  # fmt: skip
    return results


def _entry(metrics: Mapping[str, Any], name: str) -> float:
    found: Any = metrics
    for part in name.split("."):
        found = found[part]
    return float(found)


def sections(results: Sequence[Row]) -> list[pages.Section]:
    """Means over seeds, and what conversations give beyond the others, paired by seed."""
    by_arm = {arm: [row for row in results if row["arm"] == arm] for arm in ARMS}
    budgets = [
        [arm, str(rows[0]["steps"]), " / ".join(f"{row['target_tokens']:,}" for row in rows)]
        for arm, rows in by_arm.items()
    ]
    scores = {arm: {name: [row[name] for row in rows] for name in SCORES} for arm, rows in by_arm.items()}
    means = [[arm, *(_mean(values) for values in found.values())] for arm, found in scores.items()]
    ours = scores["conversations"]
    differences = [
        [arm, *(pages.with_interval(experiments.paired_difference(ours[name], found[name])) for name in SCORES)]
        for arm, found in scores.items()
        if found is not ours
    ]
    header = ("arm", *SCORES.values())
    return [
        pages.Section("What was trained", [pages.Table(("arm", "steps", "tokens of answers, by seed"), budgets)]),
        pages.Section("Held-out conversations", ["Means over seeds ± standard deviation.", pages.Table(header, means)]),
        pages.Section(
            "What conversations add",
            ["Conversations minus the arm, with 95 % intervals (Student's t).", pages.Table(header, differences)],
        ),
    ]


def _mean(values: Sequence[float]) -> str:
    found = experiments.over_seeds(values)
    return f"{found['mean']:.3f}" + (f" ± {found['std']:.3f}" if found["std"] is not None else "")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="benchmarks.instruction_training", description=__doc__)
    parser.add_argument("--conversations", type=Path, required=True, metavar="DIR")
    parser.add_argument("--input", type=Path, required=True, metavar="FILE", help="what they were written from")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--base", type=Path, default=Path("runs/stage1-tiny"), metavar="RUN")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--steps", type=int, default=300, help="of the conversations' arm")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=200, help="conversations that are asked")
    options = parser.parse_args(arguments)
    quiet_libraries()
    try:
        results = run(options)
    except runs.UserError as error:
        sys.exit(f"benchmarks.instruction_training: {error}")
    storage.write_json(options.output / "results.json", {"runs": results})
    text = pages.markdown("Stage 2 on conversations and on pairs", sections(results))
    storage.write_text(options.output / "results.md", text)
    print(text)


if __name__ == "__main__":
    main()
