"""How well a trained run names functional groups on held-out scaffolds of the embedded corpus.

python -m benchmarks.functional_groups --checkpoint runs/stage1-tiny --json
"""

import argparse
import json
import sys
import time
from pathlib import Path

from data_pipeline.embedded import prepare_embedded
from data_pipeline.logs import quiet_libraries
from data_pipeline.records import read_records
from llamo_jax import runs
from llamo_jax.config import DecodingConfig
from llamo_jax.evaluation.functional_groups import graph_use
from llamo_jax.loading import load_generator


def measure(checkpoint: Path, cache_dir: str) -> dict[str, float]:
    """Micro-F1 on all molecules of the test split, with their own graph and with another molecule's."""
    records = read_records(prepare_embedded(cache_dir) / "description", "test")
    start = time.perf_counter()
    scores = graph_use(load_generator(checkpoint, decoding=DecodingConfig(max_new_tokens=96))[0], records)
    return {
        "f1_true_graph": round(scores["true"].f1, 4),
        "f1_other_graph": round(scores["other"].f1, 4),
        "precision": round(scores["true"].precision, 4),
        "recall": round(scores["true"].recall, 4),
        "molecules": scores["true"].molecules,
        "evaluation_seconds": round(time.perf_counter() - start, 1),
    }


def print_result(result: dict[str, float], *, as_json: bool) -> None:
    """One JSON object, or a line per figure."""
    print(json.dumps(result) if as_json else "\n".join(f"{name}: {value}" for name, value in result.items()))


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="benchmarks.functional_groups", description=__doc__)
    parser.add_argument("--checkpoint", required=True, type=Path, metavar="DIR")
    parser.add_argument("--cache_dir", default="data")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    quiet_libraries()
    try:
        print_result(measure(options.checkpoint, options.cache_dir), as_json=options.json)
    except runs.UserError as error:
        sys.exit(f"benchmarks.functional_groups: {error}")


if __name__ == "__main__":
    main()
