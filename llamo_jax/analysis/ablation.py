"""Which projector is worth it? Trains every kind on the same budget and compares them, seed by seed.

    python -m llamo_jax.analysis.ablation --output DIR --dry_run     # the plan, with the time that it will take
    python -m llamo_jax.analysis.ablation --output DIR               # again, to continue where it was interrupted
    python -m llamo_jax.analysis.ablation --output DIR --config configs/stage1.py:llama2_7b --data DIR …

Each cell of the table is a training run in DIR/cells/KIND-hidden|shown-SEED: the projector as large as the
configuration's own (llamo_jax.models.projectors.budget), the same data, steps, and conversations per step (rows are
shorter by the graph tokens that a kind does not have); SMILES hidden from the prompts, where the graph is all there is,
or shown. Measured on the test split, whose scaffolds no other split
has: loss, what another molecule's graph costs, F1 of functional groups in descriptions, and the descriptions against
the targets. DIR gets ablation.json, .md and .png.
"""

import argparse
import functools
import itertools
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from data_pipeline import storage
from data_pipeline.command_line import program
from data_pipeline.embedded import prepare_embedded
from data_pipeline.errors import DataError
from data_pipeline.logs import quiet_libraries
from data_pipeline.records import Record, read_records
from llamo_jax import runs, sharding
from llamo_jax.analysis import experiments, pages
from llamo_jax.config import ConfigError, DecodingConfig, to_dict
from llamo_jax.evaluation.functional_groups import describe_records, score_groups
from llamo_jax.evaluation.metric_tokenizer import load_metric_tokenizer
from llamo_jax.evaluation.text import text_scores
from llamo_jax.loading import load_generator
from llamo_jax.models.projectors import PROJECTORS
from llamo_jax.models.projectors.budget import count_parameters, matched
from llamo_jax.training.config import Config
from llamo_jax.training.flops import needed_flops
from llamo_jax.training.program import make_program

SHOWN = {"hidden": False, "shown": True}
"""Name → config.prompt.show_smiles."""

METRICS = {
    "loss": "test loss, nats",
    "other_costs": "another graph costs, nats",
    "f1": "group F1",
    "f1_other": "group F1, another graph",
    "bleu2": "BLEU-2",
    "rougeL": "ROUGE-L",
    "meteor": "METEOR",
}
"""Name → heading of what the table shows."""

NEW_TOKENS = 96


class Cell(NamedTuple):
    """One training run."""

    kind: str
    smiles: str  # of SHOWN
    seed: int

    def name(self) -> str:
        """Of its folder."""
        return f"{self.kind}-{self.smiles}-{self.seed}"


def cell_config(values: ConfigDict, cell: Cell) -> Config:
    """The configuration with the cell's projector, prompts and seed."""
    values = values.copy_and_resolve_references()
    values.prompt.show_smiles = SHOWN[cell.smiles]
    values.seed = cell.seed
    given = runs.read_config(values)
    model = given.model
    projector = matched(
        cell.kind, model.projector, model.graph_encoder.width, model.num_levels, model.language_model.width
    )
    fewer = model.num_graph_tokens - projector.num_tokens(model.num_levels)
    if fewer:
        values.data.tokens_per_row -= round(fewer * conversations_per_row(given))
    with values.unlocked():
        values.model.projector = ConfigDict(to_dict(projector))
    return runs.read_config(values)


@functools.lru_cache
def conversations_per_row(config: Config) -> float:
    """Of the configuration's training data, on average."""
    _, data, _ = runs.read_data(config, sharding.make_mesh(config.mesh))
    return data.train.conversations_per_row(config.seed)


def train_cell(config: Config, cell: Cell, folder: Path, records: Sequence[Record]) -> dict[str, Any]:
    """Trains, or goes on, and measures; what result.json holds, which a finished cell is read from."""
    about = {**cell._asdict(), "steps": config.train.steps, "molecules": len(records)}
    result = folder / "result.json"
    if result.exists():
        found = storage.read_json(result)
        if {name: found.get(name) for name in about} != about:
            raise ConfigError(f"{folder} holds another ablation's cell; choose another --output")
        return found
    start = time.perf_counter()
    runs.train(config, folder / "run")
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    model = config.model
    sizes = (model.graph_encoder.width, model.num_levels, model.language_model.width)
    found = {
        **about,
        "graph_tokens": model.num_graph_tokens,
        "parameters": count_parameters(model.projector, *sizes),
        # once per step, also where a run was interrupted and a line was written twice
        "target_tokens": sum({line["step"]: line["target_tokens"] for line in lines}.values()),
        "validation_loss": lines[-1]["validation_loss"],
        **measure(folder / "run", records),
    }
    found["seconds"] = round(time.perf_counter() - start, 1)
    storage.write_json(result, found)
    jax.clear_caches()  # programs of one cell are nothing to the next
    return found


def measure(workdir: Path, records: Sequence[Record]) -> dict[str, float | None]:
    """The scores of a trained run; "other" is the molecule half of the records away, see evaluation.graph_use."""
    generator, _ = load_generator(workdir, decoding=DecodingConfig(max_new_tokens=NEW_TOKENS))
    half = len(records) // 2
    shifted = [*records[half:], *records[:half]]
    swapped = [record._replace(graphs=other.graphs) for record, other in zip(records, shifted, strict=True)]
    own, other = (np.concatenate(generator.target_log_probabilities(each)) for each in (records, swapped))
    answers = {name: describe_records(generator, records, graphs_of=graphs)
               for name, graphs in (("f1", records), ("f1_other", shifted))}  # fmt: skip
    smiles = [record.conversation.smiles[0] for record in records]
    targets = [record.conversation.messages[-1].content for record in records]
    scores = text_scores(answers["f1"], targets, load_metric_tokenizer("words"))
    return {
        "loss": -float(own.mean()),
        "other_costs": float(own.mean() - other.mean()),
        **{name: score_groups(texts, smiles).f1 for name, texts in answers.items()},
        **{name: scores[name] for name in ("bleu2", "rougeL", "meteor")},
    }


def compared(results: Sequence[Mapping[str, Any]], reference: str) -> list[dict[str, Any]]:
    """One row for each kind and prompt: means over seeds, and paired differences from the reference kind."""
    rows = []
    key = lambda result: (result["smiles"], result["kind"])  # noqa: E731
    cells = {k: {r["seed"]: r for r in found} for k, found in itertools.groupby(sorted(results, key=key), key)}
    for (smiles, kind), by_seed in cells.items():
        row: dict[str, Any] = {"kind": kind, "smiles": smiles, "seeds": sorted(by_seed)}
        row |= {name: next(iter(by_seed.values()))[name] for name in ("graph_tokens", "parameters", "steps")}
        row["target_tokens"] = sorted({result["target_tokens"] for result in by_seed.values()})
        base = cells.get((smiles, reference), {})
        both = [seed for seed in by_seed if seed in base]
        for name in METRICS:
            values = [result[name] for result in by_seed.values()]
            if any(value is None for value in values):  # METEOR without WordNet
                continue
            row[name] = experiments.over_seeds(values)
            if both and kind != reference:
                pairs = [[source[seed][name] for seed in both] for source in (by_seed, base)]
                row[name]["difference"] = experiments.paired_difference(*pairs)
        rows.append(row)
    return rows


def tables(result: Mapping[str, Any]) -> list[pages.Section]:
    """What stands in ablation.md."""
    sections = [pages.Section("What was trained", [budget_table(result["rows"])])]
    for smiles in SHOWN:
        rows = [row for row in result["rows"] if row["smiles"] == smiles]
        if not rows:
            continue
        shown = [name for name in METRICS if all(name in row for row in rows)]
        means = pages.Table(
            ("projector", *(METRICS[name] for name in shown)),
            [[row["kind"], *(_mean(row[name]) for name in shown)] for row in rows],
        )
        parts: list[str | pages.Table] = ["Means over seeds ± standard deviation.", means]
        others = [row for row in rows if row["kind"] != result["reference"] and "difference" in row["loss"]]
        if others:
            told = f"Minus {result['reference']}'s of the same seeds, with 95 % intervals (Student's t):"
            cells = [[row["kind"], *(pages.with_interval(row[name]["difference"]) for name in shown)] for row in others]
            parts += [told, pages.Table(means.header, cells)]
        sections.append(pages.Section(f"SMILES {smiles}", parts))
    return sections


def budget_table(rows: Sequence[Mapping[str, Any]]) -> pages.Table:
    """That the kinds had the same: graph tokens, parameters, steps, tokens of answers."""
    counts = ("graph_tokens", "parameters", "steps")
    header = ("projector", "SMILES", *(name.replace("_", " ") for name in counts), "tokens of answers", "seeds")
    cells = []
    for row in rows:
        tokens, seeds = (" / ".join(f"{each:,.0f}" for each in row[name]) for name in ("target_tokens", "seeds"))
        cells.append([row["kind"], row["smiles"], *(f"{row[name]:,}" for name in counts), tokens, seeds])
    return pages.Table(header, cells)


def _mean(score: Mapping[str, Any]) -> str:
    return f"{score['mean']:.3f}" + (f" ± {score['std']:.3f}" if score["std"] is not None else "")


def picture(result: Mapping[str, Any]) -> bytes:
    """A PNG: each metric by kind, with SMILES hidden and shown; bars are standard deviations over seeds."""
    from matplotlib.figure import Figure

    rows = result["rows"]
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    names = [name for name in ("loss", "other_costs", "f1", "bleu2") if all(name in row for row in rows)]
    figure = Figure(figsize=(4 * len(names), 1.5 + 0.4 * len(kinds)), layout="constrained")
    for axes, name in zip(np.atleast_1d(figure.subplots(1, len(names), sharey=True)), names, strict=True):
        for offset, smiles in ((-0.12, "hidden"), (0.12, "shown")):
            chosen = [row for row in rows if row["smiles"] == smiles]
            axes.errorbar(
                [row[name]["mean"] for row in chosen],
                [kinds.index(row["kind"]) + offset for row in chosen],
                xerr=[row[name]["std"] or 0 for row in chosen],
                fmt="o",
                label=f"SMILES {smiles}",
            )
        axes.set_title(METRICS[name])
        axes.set_yticks(range(len(kinds)), kinds)
        axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize="small")
    return pages.png(figure)


def estimate(config: Config) -> float:
    """Seconds that the steps of a cell take at a third of this machine's rate of float32 products; measured now."""
    mesh = sharding.make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        program_ = make_program(config, mesh)
    _, data, _ = runs.read_data(config, mesh)
    flops = needed_flops(config.model, data.train.shape, program_.state.trained, target_share=0.35)
    matrix = jax.numpy.ones((1024, 1024))
    product = jax.jit(lambda x: x @ x)
    product(matrix).block_until_ready()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < 0.5:
        product(matrix).block_until_ready()
        count += 1
    rate = count * 2 * 1024**3 / (time.perf_counter() - start)
    return config.train.steps * flops / (rate / 3)


@program("ablation", hint="run the same command again to continue")
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="llamo_jax.analysis.ablation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="cells, report and picture")
    parser.add_argument("--kinds", nargs="+", default=list(PROJECTORS.names()), choices=PROJECTORS.names())
    parser.add_argument("--smiles", nargs="+", default=list(SHOWN), choices=SHOWN)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--config", default="configs/stage1.py:tiny", metavar="FILE:PRESET")
    parser.add_argument("--steps", type=int, default=0, help="of every cell; default: the configuration's")
    parser.add_argument("--data", metavar="DIR", help="a prepared folder; default: the configuration's")
    parser.add_argument("--split", default="test", help="that scores are measured on")
    parser.add_argument("--molecules", type=int, default=200, help="of the split, spread over it")
    parser.add_argument("--cache_dir", default="data", help="of the embedded corpus")
    parser.add_argument("--dry_run", action="store_true", help="print the plan and stop")
    options = parser.parse_args(arguments)
    quiet_libraries()
    try:
        run(options)
    except runs.UserError as error:
        sys.exit(f"llamo_jax.analysis.ablation: {error}")


def run(options: argparse.Namespace) -> None:
    """Plans, trains cell by cell, and writes what is known after each."""
    values = experiments.read_config_file(options.config)
    values.data.cache_dir = options.cache_dir
    values.train.samples = 0
    if options.steps:
        values.train.steps = options.steps
    if options.data:
        values.data.source = options.data
    reference = runs.read_config(values).model.projector.kind
    cells = [Cell(*each) for each in itertools.product(options.kinds, options.smiles, range(options.seeds))]
    if options.dry_run:
        seconds = [estimate(cell_config(values, Cell(kind, "hidden", 0))) for kind in options.kinds]
        rows = [
            [kind, str(len(options.smiles) * options.seeds), f"{each / 60:.1f}"]
            for kind, each in zip(options.kinds, seconds, strict=True)
        ]
        minutes = sum(seconds) * len(options.smiles) * options.seeds / 60
        section = pages.Section(
            f"{len(cells)} runs of {values.train.steps} steps, about {minutes:.0f} minutes without measuring",
            [pages.Table(("projector", "runs", "minutes each"), rows)],
        )
        print(pages.markdown("Ablation of projectors, planned", [section]))
        return
    embedded = values.data.source == runs.EMBEDDED
    folder = prepare_embedded(options.cache_dir) / values.data.task if embedded else Path(values.data.source)
    records = [record for record in read_records(folder, options.split) if len(record.graphs) == 1]
    if not records:
        raise DataError(f"{folder} has no molecules in its split {options.split!r}")
    records = records[:: max(1, len(records) // options.molecules)][: options.molecules]
    results = []
    for number, cell in enumerate(cells, start=1):
        print(f"cell {number} of {len(cells)}: {cell.name()}", flush=True)
        found = train_cell(cell_config(values, cell), cell, options.output / "cells" / cell.name(), records)
        print("  " + ", ".join(f"{METRICS[name]} {found[name]:.3f}" for name in METRICS if found[name] is not None))
        results.append(found)
    result = {
        "config": options.config,
        "reference": reference,
        "molecules": len(records),
        "rows": compared(results, reference),
        "cells": results,
    }
    pages.write(options.output, "ablation", "Ablation of projectors", result, tables(result), picture(result))


if __name__ == "__main__":
    main()
