"""Is the graph really used? Trains `tiny` with the SMILES hidden, then scores it with true and with swapped graphs.

    python -m benchmarks.graph_use --json

The model sees nothing of a molecule but its graph tokens. Given another molecule's graph, it must fail.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.functional_groups import measure, print_result
from configs import stage1
from data_pipeline.logs import quiet_libraries
from llamo_jax import runs


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="benchmarks.graph_use", description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--workdir", type=Path, metavar="DIR", help="keep the run there; default: a temporary folder")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--cache_dir", default="data")
    options = parser.parse_args(arguments)
    quiet_libraries()

    config = stage1.get_config("tiny")
    config.prompt.show_smiles = False
    config.train.steps = options.steps
    config.data.cache_dir = options.cache_dir
    try:
        with tempfile.TemporaryDirectory() as temporary:
            workdir = options.workdir or Path(temporary)
            start = time.perf_counter()
            runs.train(runs.read_config(config), workdir)
            seconds = time.perf_counter() - start
            result = measure(workdir, options.cache_dir) | {
                "training_seconds": round(seconds, 1),
                "steps": options.steps,
            }
    except runs.UserError as error:
        sys.exit(f"benchmarks.graph_use: {error}")
    print_result(result, as_json=options.json)


if __name__ == "__main__":
    main()
