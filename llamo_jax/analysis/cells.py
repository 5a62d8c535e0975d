"""Training runs that are compared cell by cell: a projector, prompts and a seed each, and everything else the same."""

import argparse
import dataclasses
import functools
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from data_pipeline import storage
from data_pipeline.loader import BatchLoader
from llamo_jax import runs, sharding
from llamo_jax.analysis import experiments, pages
from llamo_jax.config import ConfigError, to_dict
from llamo_jax.models.projectors import PROJECTORS
from llamo_jax.models.projectors.budget import count_parameters, matched
from llamo_jax.training.config import Config
from llamo_jax.training.flops import needed_flops
from llamo_jax.training.program import make_program

SHOWN = {"hidden": False, "shown": True}
"""Name → config.prompt.show_smiles."""

WITHOUT_LIMIT = 2**20
"""Tokens of a row that any conversation fits."""

PANELS_ACROSS = 4
"""Of a picture; more would be too small to read."""


class Cell(NamedTuple):
    """One training run."""

    kind: str  # of projector
    text: str  # of SHOWN: whether prompts write a graph down as well
    seed: int

    def name(self) -> str:
        """Of its folder."""
        return f"{self.kind}-{self.text}-{self.seed}"


def plan(options: argparse.Namespace) -> list[Cell]:
    """All cells, from the arguments that `add_arguments` adds."""
    return [Cell(*each) for each in itertools.product(options.kinds, options.text, range(options.seeds))]


def add_arguments(parser: argparse.ArgumentParser, *, config: str) -> None:
    """What every comparison of cells takes."""
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="cells, report and picture")
    parser.add_argument("--kinds", nargs="+", default=list(PROJECTORS.names()), choices=PROJECTORS.names())
    parser.add_argument("--text", nargs="+", default=list(SHOWN), choices=SHOWN, help="SMILES or edges in prompts")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--config", default=config, metavar="FILE:PRESET")
    parser.add_argument("--steps", type=int, default=0, help="of every cell; default: the configuration's")
    parser.add_argument("--cache_dir", default="data", help="of the embedded corpus")
    parser.add_argument("--dry_run", action="store_true", help="print the plan and stop")


def read_values(options: argparse.Namespace) -> ConfigDict:
    """The configuration that all cells share."""
    values = experiments.read_config_file(options.config)
    values.data.cache_dir = options.cache_dir
    values.train.samples = 0
    if options.steps:
        values.train.steps = options.steps
    return values


def cell_config(values: ConfigDict, cell: Cell) -> Config:
    """The configuration with the cell's projector, prompts and seed.

    Its rows hold as many conversations as those of the configuration's own projector with SMILES or edges hidden: they
    are longer by the text that is shown and shorter by the graph tokens that a kind does not have.
    """
    values = values.copy_and_resolve_references()
    values.prompt.show_smiles = SHOWN["hidden"]
    values.seed = cell.seed
    reference = runs.read_config(values)
    model = reference.model
    projector = matched(
        cell.kind, model.projector, model.graph_encoder.width, model.num_levels, model.language_model.width
    )
    values.prompt.show_smiles = SHOWN[cell.text]
    with values.unlocked():
        values.model.projector = ConfigDict(to_dict(projector))
    longer = _tokens_per_conversation(runs.read_config(values)) - _tokens_per_conversation(reference)
    values.data.tokens_per_row += round(longer * _conversations_per_row(reference))
    return runs.read_config(values)


@functools.lru_cache
def _conversations_per_row(config: Config) -> float:
    return _training_data(config).conversations_per_row(config.seed)


@functools.lru_cache
def _tokens_per_conversation(config: Config) -> float:
    # in rows that every conversation fits
    any_length = dataclasses.replace(config.data, tokens_per_row=WITHOUT_LIMIT)
    return _training_data(dataclasses.replace(config, data=any_length)).tokens_per_conversation()


def _training_data(config: Config) -> BatchLoader:
    _, data, _ = runs.read_data(config, sharding.make_mesh(config.mesh))
    return data.train


def run_cells(
    cells: Sequence[Cell],
    values: ConfigDict,
    output: Path,
    about: Mapping[str, Any],
    measure: Callable[[Path], dict[str, Any]],
    shown: Mapping[str, str],
) -> list[dict[str, Any]]:
    """Trains and measures one after the other; finished cells are read. shown: scores to print of each, by heading.

    about: what the results depend on besides the cell; another in the same folder is refused (ConfigError).
    """
    results = []
    for number, cell in enumerate(cells, start=1):
        print(f"cell {number} of {len(cells)}: {cell.name()}", flush=True)
        found = _run_cell(cell_config(values, cell), cell, output / "cells" / cell.name(), about, measure)
        print(
            "  " + ", ".join(f"{title} {found[name]:.3f}" for name, title in shown.items() if found[name] is not None)
        )
        results.append(found)
    return results


def _run_cell(
    config: Config, cell: Cell, folder: Path, about: Mapping[str, Any], measure: Callable[[Path], dict[str, Any]]
) -> dict[str, Any]:
    about = {**cell._asdict(), "steps": config.train.steps, **about}
    result = folder / "result.json"
    if result.exists():
        found = storage.read_json(result)
        if {name: found.get(name) for name in about} != about:
            raise ConfigError(f"{folder} holds a cell of another comparison; choose another --output")
        return found
    start = time.perf_counter()
    state = runs.train(config, folder / "run")
    if not runs.is_finished(config, folder / "run", state):  # SIGTERM, or Ctrl-C: what is not trained is not measured
        print("stopped; run the same command again to continue", file=sys.stderr, flush=True)
        sys.exit(os.EX_TEMPFAIL)
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
        **measure(folder / "run"),
    }
    found["seconds"] = round(time.perf_counter() - start, 1)
    storage.write_json(result, found)
    jax.clear_caches()  # programs of one cell are nothing to the next
    return found


def compared(results: Sequence[Mapping[str, Any]], reference: str, metrics: Sequence[str]) -> list[dict[str, Any]]:
    """One row for each kind and prompt: means over seeds, and paired differences from the reference kind."""
    rows = []
    key = lambda result: (result["text"], result["kind"])  # noqa: E731
    cells = {k: {r["seed"]: r for r in found} for k, found in itertools.groupby(sorted(results, key=key), key)}
    for (text, kind), by_seed in cells.items():
        row: dict[str, Any] = {"kind": kind, "text": text, "seeds": sorted(by_seed)}
        row |= {name: next(iter(by_seed.values()))[name] for name in ("graph_tokens", "parameters", "steps")}
        row["target_tokens"] = sorted({result["target_tokens"] for result in by_seed.values()})
        base = cells.get((text, reference), {})
        both = [seed for seed in by_seed if seed in base]
        for name in metrics:
            values = [result[name] for result in by_seed.values()]
            if any(value is None for value in values):  # METEOR without WordNet
                continue
            row[name] = experiments.over_seeds(values)
            if both and kind != reference:
                pairs = [[source[seed][name] for seed in both] for source in (by_seed, base)]
                row[name]["difference"] = experiments.paired_difference(*pairs)
        rows.append(row)
    return rows


def sections(
    rows: Sequence[Mapping[str, Any]], reference: str, metrics: Mapping[str, str], text: str
) -> list[pages.Section]:
    """Budgets, means and differences as tables; text: what prompts hide or show."""
    found = [pages.Section("What was trained", [_budgets(rows, text)])]
    for shown in SHOWN:
        chosen = [row for row in rows if row["text"] == shown]
        if not chosen:
            continue
        names = [name for name in metrics if all(name in row for row in chosen)]
        header = ("projector", *(metrics[name] for name in names))
        means = pages.Table(header, [[row["kind"], *(_mean(row[name]) for name in names)] for row in chosen])
        parts: list[str | pages.Table] = ["Means over seeds ± standard deviation.", means]
        others = [row for row in chosen if names and "difference" in row[names[0]]]
        if others:
            told = f"Minus {reference}'s of the same seeds, with 95 % intervals (Student's t):"
            cells = [[row["kind"], *(pages.with_interval(row[name]["difference"]) for name in names)] for row in others]
            parts += [told, pages.Table(header, cells)]
        found.append(pages.Section(f"{text} {shown}", parts))
    return found


def _budgets(rows: Sequence[Mapping[str, Any]], text: str) -> pages.Table:
    """That the kinds had the same."""
    counts = ("graph_tokens", "parameters", "steps")
    header = ("projector", text, *(name.replace("_", " ") for name in counts), "tokens of answers", "seeds")
    cells = []
    for row in rows:
        tokens, seeds = (" / ".join(f"{each:,.0f}" for each in row[name]) for name in ("target_tokens", "seeds"))
        cells.append([row["kind"], row["text"], *(f"{row[name]:,}" for name in counts), tokens, seeds])
    return pages.Table(header, cells)


def _mean(score: Mapping[str, Any]) -> str:
    return f"{score['mean']:.3f}" + (f" ± {score['std']:.3f}" if score["std"] is not None else "")


def picture(rows: Sequence[Mapping[str, Any]], metrics: Mapping[str, str], text: str) -> bytes:
    """A PNG: each metric by kind, hidden and shown; bars are standard deviations over seeds."""
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    names = [name for name in metrics if all(name in row for row in rows)]
    across = min(len(names), PANELS_ACROSS)
    down = math.ceil(len(names) / across)
    figure = Figure(figsize=(4 * across, down * (1.5 + 0.4 * len(kinds))), layout="constrained")
    panels = figure.subplots(down, across, sharey=True, squeeze=False).flat
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    for axes, name in zip(panels, names, strict=False):
        for offset, shown in ((-0.12, "hidden"), (0.12, "shown")):
            chosen = [row for row in rows if row["text"] == shown]
            means, stds = ([row[name][each] or 0 for row in chosen] for each in ("mean", "std"))
            places = [kinds.index(row["kind"]) + offset for row in chosen]
            axes.errorbar(means, places, xerr=stds, fmt="o", label=f"{text} {shown}")
        axes.set_title(metrics[name])
        axes.set_yticks(range(len(kinds)), kinds)
        axes.grid(axis="x", alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, fontsize="small")
    return pages.png(figure)


def print_plan(cells: Sequence[Cell], values: ConfigDict, title: str) -> None:
    """How many runs there are, and how long they will take."""
    minutes: dict[str, list[float]] = {}
    for (kind, _), group in itertools.groupby(cells, lambda cell: (cell.kind, cell.text)):
        each = list(group)
        minutes.setdefault(kind, []).extend([_seconds(cell_config(values, each[0])) / 60] * len(each))
    total = sum(sum(each) for each in minutes.values())
    rows = [[kind, str(len(each)), f"{sum(each) / len(each):.1f}"] for kind, each in minutes.items()]
    heading = f"{len(cells)} runs of {values.train.steps} steps, about {total:.0f} minutes without measuring"
    print(pages.markdown(title, [pages.Section(heading, [pages.Table(("projector", "runs", "minutes each"), rows)])]))


def _seconds(config: Config) -> float:
    """That the steps take at a third of this machine's rate of float32 products, which is measured now."""
    mesh = sharding.make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        trained = make_program(config, mesh).state.trained
    _, data, _ = runs.read_data(config, mesh)
    flops = needed_flops(config.model, data.train.shape, trained, target_share=0.35)
    matrix = jax.numpy.ones((1024, 1024))
    product = jax.jit(lambda x: x @ x)
    product(matrix).block_until_ready()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < 0.5:
        product(matrix).block_until_ready()
        count += 1
    rate = count * 2 * 1024**3 / (time.perf_counter() - start)
    return config.train.steps * flops / (rate / 3)
