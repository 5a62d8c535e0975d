"""Compiles the real train step for TPUs that are not there, and reports memory, FLOPs and communication per chip.

pip install "llamo_jax[tpu]"
python -m benchmarks.compile_tpu --preset llama2_7b --stage 2 --topology v5e:4x4 --rows 64 --tokens 512 --json
python -m benchmarks.compile_tpu --preset llama2_7b --decode --topology v5e:4x4 --rows 64 --tokens 128 --json
python -m benchmarks.compile_tpu --preset llama2_7b --stage 2 --rows_per_chip 4 --tokens 512 --remat full \
    --topology v6e:1x1 v6e:2x2 v6e:4x4 v6e:8x8 v6e:16x16 --figure growth.png --json

Names of topologies: v5e:4x4, v6e:2x2, v5p:4x4x4 and so on; with --slices 2, two of them over a slower network.

hlo_matmul_flops: of the compiled program (benchmarks.hlo), per chip. minimal_flops: what the step needs per chip
(llamo_jax.training.flops): forward, gradients by activations and by trained weights, and, for --remat full, the layers'
forward pass once more. Where attention runs in a kernel, neither counts it; attention_kernel_flops does.
seconds: at least for the products at the data sheet's speed, and for the communication within a slice, if nothing of it
is hidden; bound: the larger one. local_shards: which parts of a batch the first process gives to its chips. decoding:
the mesh that evaluation would take.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # do not ask a cloud which TPU this machine has
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from benchmarks import flops, hlo
from benchmarks.synthetic import add_options, read_options
from data_pipeline.batch import BatchShape, collate
from data_pipeline.logs import quiet_libraries
from llamo_jax import loading, sharding
from llamo_jax.config import ConfigError, DecodingConfig
from llamo_jax.generation.decode import generate
from llamo_jax.models.attention import choose_kernel
from llamo_jax.models.definition import define_model
from llamo_jax.training.config import Config
from llamo_jax.training.flops import minimal_flops, peak_flops
from llamo_jax.training.program import abstract_batches, batch_shape, make_program

HBM_BYTES = {"v3": 16 * 2**30, "v4": 32 * 2**30, "v5e": 16 * 2**30, "v5p": 95 * 2**30, "v6e": 32 * 2**30}
"""Memory of a chip (of one of the two cores of a v3), by the beginning of the topology's name (Google Cloud's data)."""


ICI_BYTES_PER_SECOND = {"v3": 140e9, "v4": 300e9, "v5e": 200e9, "v5p": 600e9, "v6e": 448e9}
"""Of all links of a chip within a slice (Google Cloud's data: 1,120, 2,400, 1,600, 4,800 and 3,584 Gbit/s)."""


def compile_train_step(config: Config, mesh: Mesh) -> dict[str, Any]:
    """The figures of the train step on `mesh`."""
    shape = batch_shape(config, sharding.batch_shards(mesh))
    with jax.set_mesh(mesh):
        program = make_program(config, mesh)
        batches = abstract_batches(collate([], shape), mesh)
        result = _compile(program.train_step, (program.state, program.frozen, batches))
        kernel = _kernel(config, shape)
    if "hlo_matmul_flops" not in result:
        return result
    parts = minimal_flops(config.model, shape, program.state.trained)
    scores = flops.attention_scores(config.model, shape)
    if config.model.remat == "full":
        parts["repeated_forward"] = flops.Flops(parts["decoder_layers"].forward, 0, 0)
        scores += flops.Flops(scores.forward, 0, 0)
    return result | _compared(result, sum(part.total() for part in parts.values()), scores.total(), kernel, mesh)


def compile_decoding(config: Config, mesh: Mesh, new_tokens: int) -> dict[str, Any]:
    """The figures of prefill and greedy decoding of `new_tokens` tokens on `mesh`; rows are divided over all chips."""
    shape = batch_shape(config, sharding.batch_shards(mesh))
    with jax.set_mesh(mesh):
        program = make_program(config, mesh)
        batch = abstract_batches(collate([], shape), mesh, leading=0)
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), shape.rows))
        decoding = DecodingConfig(max_new_tokens=new_tokens)
        arguments = (program.definition, program.arrays(), batch, keys)
        result = _compile(generate, arguments, decoding=decoding, stop_ids=(2,))
    if "hlo_matmul_flops" not in result:
        return result
    return result | _compared(result, flops.generation_flops(config.model, shape, new_tokens), 0, "xla", mesh)


def _kernel(config: Config, shape: BatchShape) -> str:
    model = config.model
    dtype = jax.numpy.dtype(model.compute_dtype)
    return choose_kernel(model.attention, shape.row.tokens, model.language_model.head_width, dtype)


def _compile(function: Any, arguments: tuple, **settings: Any) -> dict[str, Any]:
    """Memory, work and compile time of a jitted function; a program that is too large is a result, too."""
    start = time.perf_counter()
    lowered = function.trace(*arguments, **settings).lower()
    lowering = time.perf_counter() - start
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        seconds = time.perf_counter() - start
        return {"fits": False, "bytes_per_chip": hlo.exhausted(str(error)), "compile_seconds": round(seconds, 1)}
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    arguments_bytes, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    total = arguments_bytes + temporaries + memory.output_size_in_bytes - memory.alias_size_in_bytes
    work = hlo.analyse(compiled.as_text())
    return {
        "fits": True,
        "bytes_per_chip": {"arguments": arguments_bytes, "temporaries": temporaries, "total": total},
        "hlo_matmul_flops": work.matmul_flops,
        "kernel_calls": work.kernels["tpu_custom_call"],
        "collective_bytes": dict(work.collective_bytes),
        "lower_seconds": round(lowering, 1),
        "compile_seconds": round(seconds, 1),
    }


def _compared(result: dict, minimal: float, scores: float, kernel: str, mesh: Mesh) -> dict[str, Any]:
    chips = mesh.devices.size
    in_kernel = scores if kernel == "splash" else 0.0
    minimal -= in_kernel
    peak = peak_flops(mesh.devices.flat[0])
    links = next((rate for kind, rate in ICI_BYTES_PER_SECOND.items() if kind == _family(mesh)), None)
    seconds = {}
    if peak is not None and links is not None:
        seconds["compute"] = round((result["hlo_matmul_flops"] + in_kernel / chips) / peak, 4)
        seconds["communication"] = round(sum(result["collective_bytes"].values()) / links, 4)
    return {
        "seconds": seconds,
        "bound": max(seconds, key=seconds.__getitem__, default=None),
        "attention": kernel,
        "attention_kernel_flops": in_kernel / chips,
        "minimal_flops": minimal / chips,
        "flops_ratio": round(result["hlo_matmul_flops"] / (minimal / chips), 4),
    }


def _family(mesh: Mesh) -> str | None:
    """v5e and so on, of a mesh of TPUs."""
    kinds = {"TPU v3": "v3", "TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v6 lite": "v6e"}
    return kinds.get(mesh.devices.flat[0].device_kind)


def describe_mesh(config: Config, mesh: Mesh) -> dict[str, Any]:
    """What a run on these chips would begin with; says why, where a model cannot be decoded there."""
    memory = HBM_BYTES.get(_family(mesh) or "")
    decoding: dict[str, int] | str
    try:
        definition = define_model(config.model)
        devices = mesh.devices.ravel().tolist()
        decoding = dict(loading.decoding_mesh(definition, config.model, 0, 128, devices=devices, limit=memory).shape)
    except ConfigError as error:
        decoding = str(error)
    return {"local_shards": sharding.local_shards(mesh, 0).numbers, "decoding": decoding}


def make_topology_mesh(config: Config, name: str, slices: int) -> Mesh:
    """The mesh over the devices of a named topology; raises ConfigError if libtpu is missing or knows no such name."""
    settings: dict[str, Any] = {} if slices == 1 else {"num_slices": slices}
    sizes = name.partition(":")[2].split("x")
    if sizes and all(size == "1" for size in sizes):
        settings["chips_per_host_bounds"] = (1, 1, 1)
    try:
        topology = topologies.get_topology_desc(name, platform="tpu", **settings)
    except Exception as error:  # plugins raise what they like
        reason = str(error).strip().splitlines()[0][:200]
        raise ConfigError(
            f'--topology {name}: {reason} (known: v5e:4x4, v6e:2x2, v5p:4x4x4 …; needs pip install "llamo_jax[tpu]")'
        ) from None
    return sharding.make_mesh(config.mesh, topology.devices)


def draw_growth(results: list[dict], path: Path) -> None:
    """Bytes per chip and compile time against the number of chips."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    memory, seconds = figure.subplots(1, 2)
    chips = [result["chips"] for result in results]
    for part in ("arguments", "temporaries", "total"):
        values = [(result["bytes_per_chip"].get(part) or float("nan")) / 1e9 for result in results]
        memory.plot(chips, values, marker="o", label=part)
    memory.set(xscale="log", yscale="log", xlabel="chips", ylabel="GB per chip", xticks=chips, xticklabels=chips)
    memory.legend()
    seconds.plot(chips, [result["compile_seconds"] for result in results], marker="o")
    seconds.set(xscale="log", xlabel="chips", ylabel="seconds to compile", ylim=0, xticks=chips, xticklabels=chips)
    figure.savefig(path, dpi=120)


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="benchmarks.compile_tpu", description=__doc__)
    add_options(parser)
    parser.add_argument("--topology", nargs="+", required=True)
    parser.add_argument("--slices", type=int, default=1)
    parser.add_argument("--rows_per_chip", type=int, help="instead of --rows")
    parser.add_argument("--decode", action="store_true", help="generation instead of training; --tokens of prompt")
    parser.add_argument("--new_tokens", type=int, default=128)
    parser.add_argument("--figure", type=Path, metavar="PNG", help="memory and compile time over the topologies")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    quiet_libraries()
    results = []
    try:
        for name in options.topology:
            config = read_options(options)
            mesh = make_topology_mesh(config, name, options.slices)
            if options.rows_per_chip:
                options.rows = options.rows_per_chip * mesh.devices.size
                config = read_options(options)
            print(f"compiling for {mesh.devices.size} chips of {name}", file=sys.stderr, flush=True)
            about = {
                "preset": options.preset,
                "stage": None if options.decode else options.stage,
                "topology": name,
                "chips": mesh.devices.size,
                "rows": batch_shape(config, sharding.batch_shards(mesh)).rows,
                "tokens": config.data.tokens_per_row,
                "remat": config.model.remat,
            }
            found = (
                compile_decoding(config, mesh, options.new_tokens)
                if options.decode
                else compile_train_step(config, mesh)
            )
            found["bytes_per_chip"].setdefault("limit", HBM_BYTES.get(name.partition(":")[0]))
            results.append(about | describe_mesh(config, mesh) | found)
    except ConfigError as error:
        sys.exit(f"benchmarks.compile_tpu: {error}")
    if options.figure:
        draw_growth(results, options.figure)
    result = results[0] if len(results) == 1 else {"growth": results}
    print(json.dumps(result) if options.json else json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
