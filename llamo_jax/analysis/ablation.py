"""Which projector is worth it? Trains every kind on the same budget and compares them, seed by seed.

    python -m llamo_jax.analysis.ablation --output DIR --dry_run     # the plan, with the time that it will take
    python -m llamo_jax.analysis.ablation --output DIR               # again, to continue where it was interrupted
    python -m llamo_jax.analysis.ablation --output DIR --config configs/stage1.py:llama2_7b --data DIR …

Each cell of the table is a training run in DIR/cells/KIND-hidden|shown-SEED: the projector as large as the
configuration's own (llamo_jax.models.projectors.budget), the same data, steps, and conversations per step (rows are
shorter by the graph tokens that a kind does not have, and longer by the SMILES that are shown); SMILES hidden from the
prompts, where the graph is all there is, or shown. Measured on the test split, whose scaffolds no other split has:
loss, what another molecule's graph costs, F1 of functional groups in descriptions, and the descriptions against the
targets. DIR gets ablation.json, .md and .png.
"""

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.command_line import program
from data_pipeline.embedded import prepare_embedded
from data_pipeline.errors import DataError
from data_pipeline.logs import quiet_libraries
from data_pipeline.records import Record, read_records
from llamo_jax import runs
from llamo_jax.analysis import cells, pages
from llamo_jax.config import DecodingConfig
from llamo_jax.evaluation.functional_groups import describe_records, score_groups
from llamo_jax.evaluation.metric_tokenizer import load_metric_tokenizer
from llamo_jax.evaluation.text import text_scores
from llamo_jax.loading import load_generator

METRICS = {
    "loss": "test loss, nats",
    "other_costs": "another graph costs, nats",
    "f1": "group F1",
    "f1_other": "group F1, another graph",
    "bleu2": "BLEU-2",
    "rougeL": "ROUGE-L",
    "meteor": "METEOR",
}
"""Name → heading of what the tables show."""

DRAWN = ("loss", "other_costs", "f1", "bleu2")
NEW_TOKENS = 96


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


@program("ablation", hint="run the same command again to continue")
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="llamo_jax.analysis.ablation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cells.add_arguments(parser, config="configs/stage1.py:tiny")
    parser.add_argument("--data", metavar="DIR", help="a prepared folder; default: the configuration's")
    parser.add_argument("--split", default="test", help="that scores are measured on")
    parser.add_argument("--molecules", type=int, default=200, help="of the split, spread over it")
    options = parser.parse_args(arguments)
    quiet_libraries()
    try:
        run(options)
    except runs.UserError as error:
        sys.exit(f"llamo_jax.analysis.ablation: {error}")


def run(options: argparse.Namespace) -> None:
    """Plans, trains cell by cell, and compares."""
    values = cells.read_values(options)
    if options.data:
        values.data.source = options.data
    planned = cells.plan(options)
    if options.dry_run:
        cells.print_plan(planned, values, "Ablation of projectors, planned")
        return
    embedded = values.data.source == runs.EMBEDDED
    folder = prepare_embedded(options.cache_dir) / values.data.task if embedded else Path(values.data.source)
    records = [record for record in read_records(folder, options.split) if len(record.graphs) == 1]
    if not records:
        raise DataError(f"{folder} has no molecules in its split {options.split!r}")
    records = records[:: max(1, len(records) // options.molecules)][: options.molecules]
    about = {"molecules": len(records), "split": options.split}
    results = cells.run_cells(
        planned, values, options.output, about, functools.partial(measure, records=records), METRICS
    )
    reference = runs.read_config(values).model.projector.kind
    rows = cells.compared(results, reference, tuple(METRICS))
    result: dict[str, Any] = {"config": options.config, "reference": reference, **about, "rows": rows, "cells": results}
    sections = cells.sections(rows, reference, METRICS, "SMILES")
    drawing = cells.picture(rows, {name: METRICS[name] for name in DRAWN}, "SMILES")
    pages.write(options.output, "ablation", "Ablation of projectors", result, sections, drawing)


if __name__ == "__main__":
    main()
