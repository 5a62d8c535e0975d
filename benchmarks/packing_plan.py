"""How long the plan of an epoch takes, and what it costs in memory, where conversations come in millions.

    python -m benchmarks.packing_plan --conversations 10_000_000 --json

Lengths and sizes are drawn like those of ChEBI-20's descriptions; nothing is read. startup_seconds: until the first row
is known. resume_seconds: the same, for a run that continues in epoch 1,000. cpu_seconds_per_million: of one plan.
peak_gb: of the process, of which sizes_gb are the inputs.
"""

import argparse
import json
import resource
import time

import numpy as np

from data_pipeline.batch import EncodedConversation, RowSize
from data_pipeline.loader import PackedDataset

ROW = RowSize(tokens=512, molecules=8, atoms=608, edges=1232, motifs=224)


class Lengths:
    """A source (data_pipeline.loader.Source) of which only lengths are known."""

    def __init__(self, count: int, seed: int = 0):
        rng = np.random.default_rng(seed)
        tokens = np.clip(rng.lognormal(4.9, 0.45, count), 48, 900).astype(np.int32)
        self.lengths = np.stack([tokens, np.full(count, 40, np.int32), np.full(count, 44, np.int32)], axis=1)
        atoms = np.clip(rng.lognormal(3.3, 0.5, count), 1, 300).astype(np.int32)
        self.sizes = np.stack([np.ones(count, np.int32), atoms, 2 * atoms + 2, atoms // 3], axis=1)

    def load(self, indices: np.ndarray) -> list[EncodedConversation]:
        """Nothing can be read."""
        raise NotImplementedError


def measure(count: int) -> dict:
    """The figures for so many conversations."""
    source = Lengths(count)
    inputs = source.lengths.nbytes + source.sizes.nbytes

    def first_row(position_of_epoch: int) -> tuple[float, float, PackedDataset]:
        start, cpu = time.perf_counter(), time.process_time()
        dataset = PackedDataset(source, ROW)
        per_epoch = dataset.rows_per_epoch(0) if position_of_epoch else 1
        dataset.training_row(0, position_of_epoch * per_epoch)
        return time.perf_counter() - start, time.process_time() - cpu, dataset

    startup, startup_cpu, dataset = first_row(0)
    resume, _, _ = first_row(1000)
    cpu = time.process_time()
    dataset.epoch_rows(0, 1)
    plan_cpu = time.process_time() - cpu
    return {
        "conversations": count,
        "startup_seconds": round(startup, 2),
        "startup_cpu_seconds": round(startup_cpu, 2),
        "resume_seconds": round(resume, 2),
        "cpu_seconds_per_million": round(plan_cpu / count * 1e6, 2),
        "fill_ratio": round(dataset.fill(0), 4),
        "sizes_gb": round(inputs / 1e9, 2),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
    }


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="benchmarks.packing_plan", description=__doc__)
    parser.add_argument("--conversations", type=int, default=1_000_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    result = measure(options.conversations)
    print(json.dumps(result) if options.json else json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
