"""The data pipeline's speed, its packing, and its memory.

    python -m benchmarks.data --json --input ../shared/data/chebi20/train.tsv --molecules ../shared/data/smiles/all.smi

featurize_per_second: molecules a second on one core, all features, median of several passes.
worker_scaling: how much faster `prepare`'s workers make the shards with two processes than with one.
feed_tokens_per_second: records to `Batch` (tokens that are not padding), read and encoded each time, median; beside it
the same for a data set that is small enough to be kept in memory.
fill_ratio: token slots that hold a token, packed; beside it what padding would fill.
rss_growth_mb: growth of this process' memory over the last `--epochs` epochs of the feed.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from etils import epath

from data_pipeline import loader, shards
from data_pipeline.batch import BatchShape, RowSize
from data_pipeline.jobs import Settings, prepare
from data_pipeline.loader import BatchLoader, EncodedRecords, PackedDataset
from data_pipeline.logs import quiet_libraries
from data_pipeline.molecule import featurize
from data_pipeline.prompt import PromptEncoder
from data_pipeline.records import RecordReader, read_manifest
from data_pipeline.tokenizer import load_tokenizer

TOKENS = 512
ROWS = 16


def featurize_speed(smiles: list[str], repeats: int) -> float:
    """Molecules a second in this process, median of `repeats` passes."""
    speeds = []
    for _ in range(repeats):
        start = time.perf_counter()
        for each in smiles:
            featurize(each)
        speeds.append(len(smiles) / (time.perf_counter() - start))
    return statistics.median(speeds)


def worker_scaling(smiles: list[str], repeats: int) -> float:
    """Time of one worker over that of two, for the same shards; the processes are warm. Median of `repeats`."""
    ratios = []
    per_chunk = 500
    chunks = list(range(len(smiles) // per_chunk))
    with tempfile.TemporaryDirectory() as folder:
        work = epath.Path(folder)
        (work / "rows").mkdir()
        (work / "shards").mkdir()
        for chunk in chunks:
            rows = [{"smiles": s, "text": "A molecule."} for s in smiles[chunk * per_chunk : (chunk + 1) * per_chunk]]
            cut = [shards.CutRow(0, number, "train", row) for number, row in enumerate(rows)]
            shards.rows_path(work, chunk).write_text("".join(row.to_json() + "\n" for row in cut))
        settings = Settings(task="description")
        job = shards.ShardJob(
            folder, "description", settings.columns, (("smiles", "text"),), ("x",), {}, "scaffold", "array_record", 10.0
        )
        pools = {count: [shards.Worker() for _ in range(count)] for count in (1, 2)}
        for workers in pools.values():
            shards.process_chunks(job, chunks[: len(workers)], workers, lambda count: None)
        for _ in range(repeats):
            seconds = {}
            for count, workers in pools.items():
                start = time.perf_counter()
                shards.process_chunks(job, chunks, workers, lambda count: None)
                seconds[count] = time.perf_counter() - start
            ratios.append(seconds[1] / seconds[2])
        for workers in pools.values():
            for worker in workers:
                worker.close()
    return statistics.median(ratios)


def feed(folder: Path, epochs: int, kept_in_memory: int) -> dict[str, Any]:
    """Speed, fill and memory of the training feed; `kept_in_memory` is loader.KEPT_IN_MEMORY for it."""
    loader.KEPT_IN_MEMORY = kept_in_memory
    manifest = read_manifest(folder)
    encoder = PromptEncoder(load_tokenizer(folder / "tokenizer"), 28, **manifest["prompt"])
    budgets = manifest["suggested"]
    row = RowSize(*(budgets[f"{name}_per_row"] for name in RowSize._fields))
    dataset = PackedDataset(EncodedRecords(RecordReader(folder, "train"), encoder), row)
    stream = BatchLoader([dataset], [1.0], BatchShape(ROWS, 1, row)).training_batches(seed=0)
    steps = len(dataset.epoch_rows(0, 0)) // ROWS
    speeds, memory = [], []
    for _ in range(epochs + 2):  # the first two epochs fill caches
        start, tokens = time.perf_counter(), 0
        for _ in range(steps):
            tokens += int(np.count_nonzero(next(stream).segments))
        speeds.append(tokens / (time.perf_counter() - start))
        memory.append(psutil.Process().memory_info().rss / 2**20)
    lengths = dataset.token_counts()
    return {
        "feed_tokens_per_second": round(statistics.median(speeds[2:])),
        "fill_ratio": round(dataset.fill(0), 4),
        "pad_to_longest_ratio": {f"batch_{size}": round(_pad_to_longest(lengths, size), 4) for size in (4, 64)},
        "static_padding_ratio": round(float(lengths.mean() / TOKENS), 4),
        "rss_growth_mb": round(max(memory[1:]) - memory[1], 1),
        "conversations": len(dataset),
        "skipped": dict(dataset.skipped),
    }


def _pad_to_longest(lengths: np.ndarray, size: int) -> float:
    """Tokens over slots if batches of `size` conversations in random order are padded to their longest."""
    order = np.random.default_rng(0).permutation(len(lengths))
    batches = [lengths[order[start : start + size]] for start in range(0, len(order), size)]
    return float(lengths.sum() / sum(len(batch) * batch.max() for batch in batches))


def main() -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="benchmarks.data", description=__doc__)
    parser.add_argument("--input", type=Path, default=Path("../shared/data/chebi20/train.tsv"))
    parser.add_argument("--molecules", type=Path, default=Path("../shared/data/smiles/all.smi"))
    parser.add_argument("--tokenizer", metavar="DIR", help="default: one trained on the input")
    parser.add_argument("--prompt_style", default="plain")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    options = parser.parse_args()
    quiet_libraries()
    smiles = [line.split("\t")[0] for line in options.molecules.read_text().splitlines()]
    result: dict[str, Any] = {
        "featurize_per_second": round(featurize_speed(smiles[:2000], options.repeats)),
        "worker_scaling": round(worker_scaling(smiles[:8000], options.repeats), 2),
    }
    settings = Settings(task="description", tokenizer=options.tokenizer, prompt_style=options.prompt_style)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        manifest = prepare({None: [options.input]}, Path(folder) / "data", settings)
        result["prepare_rows_per_second"] = round(manifest["rows"] / (time.perf_counter() - start))
        in_memory = feed(Path(folder) / "data", 5, loader.KEPT_IN_MEMORY)["feed_tokens_per_second"]
        result |= feed(Path(folder) / "data", options.epochs, 0)
        result["feed_from_memory_tokens_per_second"] = in_memory
    for name, value in result.items():
        print(f"{name}: {value}")
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
