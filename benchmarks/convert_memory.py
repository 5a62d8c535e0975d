"""Peak host memory of converting and of loading a language model, on a synthetic checkpoint.

    python -m benchmarks.convert_memory --gigabytes 2 --json

The limit is three times the largest tensor and one gigabyte. Loading, on the shards of eight simulated devices, may
hold the model besides: on a CPU the devices' memory is the host's.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from benchmarks.functional_groups import print_result
from llamo_jax.convert.huggingface import decoder_config
from llamo_jax.convert.names import decoder_shapes, language_model_rules
from llamo_jax.models.torch_names import to_torch
from llamo_jax.weights import Lazy, write_file

GIGABYTE = 1 << 30
FILES = 4
_LOAD = """
import sys, jax
from llamo_jax import sharding, weights
from llamo_jax.config import MeshConfig
from llamo_jax.models.folder import read_model
stored = read_model(sys.argv[1])
jax.config.update("jax_num_cpu_devices", 8)
mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=-1, tensor=1))
abstract = {}
for name, array in stored.weights.items():
    axes = [None] * (len(array.shape) - 1) + ["fsdp"]
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
    abstract[name] = jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=place)
jax.block_until_ready(weights.place(stored.weights, abstract))
"""


class Noise(Lazy):
    """A bfloat16 array of small random numbers, the same each time it is read."""

    dtype = np.dtype(ml_dtypes.bfloat16)

    def __init__(self, shape: tuple[int, ...]):
        self.shape = shape

    def __getitem__(self, index: Any) -> np.ndarray:
        draws = np.random.default_rng(0).standard_normal(self.shape, np.float32)
        return (0.02 * draws).astype(self.dtype)[index]


def write_checkpoint(folder: Path, gigabytes: float) -> tuple[int, int]:
    """A Llama of about that size in FILES files; returns its bytes and those of its largest tensor."""
    hf = {"model_type": "llama", "hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 4,
          "intermediate_size": 8192, "vocab_size": 32000, "rms_norm_eps": 1e-5}  # fmt: skip
    per_layer = 2 * (2048 * 2048 * 2.5 + 3 * 2048 * 8192)
    layers = round((gigabytes * GIGABYTE - 4 * 32000 * 2048) / per_layer)
    config = decoder_config({**hf, "num_hidden_layers": max(1, layers)})
    blank = {path: np.broadcast_to(np.float32(0), shape) for path, shape in decoder_shapes(config).items()}
    tensors = {name: Noise(tuple(t.shape)) for name, t in to_torch(language_model_rules(config), blank).items()}
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for number in range(FILES):
        file = f"model-{number + 1:05}-of-{FILES:05}.safetensors"
        mine = names[number::FILES]
        write_file(folder / file, {name: tensors[name] for name in mine})
        weight_map |= dict.fromkeys(mine, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps({**hf, "num_hidden_layers": config.num_layers}))
    sizes = [2 * int(np.prod(tensor.shape)) for tensor in tensors.values()]
    return sum(sizes), max(sizes)


def measure(gigabytes: float) -> dict[str, Any]:
    """Peaks of two fresh processes: one converts, one loads what came out."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "theirs"
        folder.mkdir()
        total, largest = write_checkpoint(folder, gigabytes)
        limit = 3 * largest + GIGABYTE
        ours = Path(temporary) / "ours"
        start = time.perf_counter()
        convert_peak = _peak(
            "-m", "llamo_jax.convert", "from_huggingface", "--language_model", str(folder), "--output", str(ours)
        )
        seconds = time.perf_counter() - start
        load_peak = _peak("-c", _LOAD, str(ours))
    return {
        "checkpoint_bytes": total,
        "largest_tensor_bytes": largest,
        "limit_bytes": limit,
        "convert_peak_bytes": convert_peak,
        "convert_seconds": round(seconds, 1),
        "load_peak_bytes": load_peak,
        "load_peak_without_model_bytes": load_peak - total,
        "ok": convert_peak <= limit and load_peak - total <= limit,
    }


def _peak(*arguments: str) -> int:
    """Peak resident bytes of a Python process; exits if it fails."""
    # a process of its own in between: the peak of children is that of the largest one so far
    code = "import resource, subprocess, sys; r = subprocess.run(sys.argv[1:], stdout=sys.stderr).returncode; "
    code += f"print(resource.getrusage({resource.RUSAGE_CHILDREN}).ru_maxrss); sys.exit(r)"
    run = subprocess.run([sys.executable, "-c", code, sys.executable, *arguments], stdout=subprocess.PIPE, text=True)
    if run.returncode:
        sys.exit(f"benchmarks.convert_memory: {' '.join(arguments[:2])} failed")
    return int(run.stdout) * 1024


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="benchmarks.convert_memory", description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    print_result(measure(options.gigabytes), as_json=options.json)


if __name__ == "__main__":
    main()
