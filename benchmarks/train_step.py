"""Speed and memory of the train step, on whatever devices there are.

python -m benchmarks.train_step --preset baseline --stage 1 --json
python -m benchmarks.train_step --preset llama2_7b --stage 2 --rows 16 --tokens 512 --json --profile /tmp/trace

Weights are random and batches synthetic (benchmarks.synthetic), unless --data names prepared records.

mfu: needed FLOPs (llamo_jax.training.flops, logits of target positions alone; what rematerialisation repeats does
not count) / seconds / peak FLOPs. The peak of a GPU or TPU is its data sheet's for dense bfloat16; that of a CPU is
measured, by products of large matrices.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from benchmarks.synthetic import add_options, random_batch, read_options
from data_pipeline.batch import Batch
from data_pipeline.errors import DataError
from data_pipeline.logs import quiet_libraries
from llamo_jax import sharding
from llamo_jax.config import ConfigError
from llamo_jax.models.definition import initial_arrays
from llamo_jax.models.products import matmul
from llamo_jax.training.config import Config
from llamo_jax.training.flops import needed_flops, peak_flops
from llamo_jax.training.program import batch_shape, make_program


def measure(config: Config, *, steps: int, real_data: bool = False, profile: Path | None = None) -> dict:
    """Times `steps` steps after two to warm up; `real_data`: of `config.data`, and not synthetic."""
    mesh = sharding.make_mesh(config.mesh)
    shape = batch_shape(config, sharding.batch_shards(mesh))
    with jax.set_mesh(mesh):
        program = make_program(config, mesh)
        arrays = initial_arrays(config.model, program.arrays(), config.seed)
        state, frozen = program.initial_state(arrays), {name: arrays[name] for name in program.frozen}
        del arrays
        batches: Iterator[Batch]
        if real_data:
            from llamo_jax import runs  # needs the data pipeline's libraries

            _, data, _ = runs.read_data(config, mesh)
            batches = data.train.training_batches(config.seed, 0, sharding.local_shards(mesh))
        else:
            batches = itertools.cycle([random_batch(config, shape, seed) for seed in range(4)])
        seconds, waits, targets, loss = [], [], [], 0.0
        trace = contextlib.nullcontext() if profile is None else jax.profiler.trace(str(profile))
        with trace:
            for step in tqdm(range(steps + 2), desc="steps", disable=None):
                start = time.perf_counter()
                host = jax.tree.map(lambda x: x[None], next(batches))
                batch = sharding.put_batch(host, mesh, leading=1)
                ready = time.perf_counter()
                state, metrics = program.train_step(state, frozen, batch)
                loss = float(metrics["loss"])  # waits for the step
                if step >= 2:
                    seconds.append(time.perf_counter() - ready)
                    waits.append(ready - start)
                    targets.append(int(np.count_nonzero(host.target_mask)))
    share = statistics.mean(targets) / (shape.rows * shape.row.tokens)
    needed = needed_flops(config.model, shape, program.state.trained, share)
    peak, source = _peak(config.model.compute_dtype)
    median = statistics.median(seconds)
    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "rows": shape.rows,
        "tokens_per_row": shape.row.tokens,
        "step_seconds": {"median": median, "min": min(seconds), "max": max(seconds)},
        "input_wait_seconds": statistics.median(waits),
        "tokens_per_second": shape.rows * shape.row.tokens / median,
        "target_tokens_per_second": statistics.mean(targets) / median,
        "minimal_flops": needed,
        "peak_flops": peak,
        "peak_source": source,
        "mfu": needed / median / peak / (1 if source == "measured" else jax.device_count()),
        "peak_bytes": peak_bytes(),
        "loss": loss,
        "versions": {"jax": jax.__version__, "jaxlib": jax.lib.__version__},
    }


def _peak(dtype: str) -> tuple[float, str]:
    """FLOPs per second of one device, and where the figure is from: "data sheet" or "measured" (all CPU cores)."""
    known = peak_flops(jax.devices()[0])
    if known is not None:
        return known, "data sheet"
    if jax.default_backend() != "cpu":
        kind = jax.devices()[0].device_kind
        raise ConfigError(f"no peak FLOPs are known for {kind!r}; add it to PEAK_FLOPS in llamo_jax/training/flops.py")
    size = 2048
    x = jax.random.normal(jax.random.key(0), (size, size), jnp.dtype(dtype))
    product = jax.jit(matmul)  # as the model multiplies
    product(x, x).block_until_ready()
    best = min(_seconds(lambda: product(x, x).block_until_ready()) for _ in range(15))
    return 2 * size**3 / best, "measured"


def _seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def peak_bytes() -> int:
    """The most memory a device has used; on CPU, the most the process has."""
    statistics_ = jax.devices()[0].memory_stats()
    if statistics_ is None:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return max(device.memory_stats()["peak_bytes_in_use"] for device in jax.local_devices())


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="benchmarks.train_step", description=__doc__)
    add_options(parser)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--data", metavar="DIR", help='prepared records, or "embedded" for the embedded corpus')
    parser.add_argument("--profile", type=Path, metavar="DIR", help="write a trace for XProf or Perfetto there")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    quiet_libraries()
    try:
        config = read_options(options)
        if options.data:
            config = dataclasses.replace(config, data=dataclasses.replace(config.data, source=options.data))
        result = measure(config, steps=options.steps, real_data=bool(options.data), profile=options.profile)
    except (ConfigError, DataError) as error:
        sys.exit(f"benchmarks.train_step: {error}")
    print(json.dumps(result) if options.json else json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
