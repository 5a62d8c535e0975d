"""What bfloat16 changes: the next-token distributions of a trained run, in bfloat16 against float32.

python -m benchmarks.bfloat16 --checkpoint runs/stage1-tiny --json
"""

import argparse
import dataclasses
import itertools
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from benchmarks.functional_groups import print_result
from data_pipeline.batch import Batch
from data_pipeline.errors import DataError
from data_pipeline.logs import quiet_libraries
from llamo_jax import parameters, runs, sharding
from llamo_jax.models import ModelConfig
from llamo_jax.models.definition import define_model
from llamo_jax.parameters import Arrays
from llamo_jax.training import checkpoints, workdir


def compare(config: ModelConfig, arrays: Arrays, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """KL(float32 ‖ bfloat16) in nats, and whether the most probable token is the same, at every real position.

    The language model computes in bfloat16 with weights in bfloat16; the graph side always computes in float32.
    """
    whole, half = (define_model(dataclasses.replace(config, compute_dtype=d)) for d in ("float32", "bfloat16"))
    halved = {name: x.astype(jnp.bfloat16) if name.startswith("language_model/") else x for name, x in arrays.items()}

    def log_probabilities(definition: Any, arrays: Arrays, batch: Batch) -> Array:
        return jax.nn.log_softmax(definition.merge(arrays)(batch)[0])

    run = jax.jit(log_probabilities, static_argnums=0)
    p, q = run(whole, arrays, batch), run(half, halved, batch)
    real = np.asarray(batch.segments) > 0
    divergence = jnp.sum(jnp.exp(p) * (p - q), axis=-1)
    return np.asarray(divergence)[real], np.asarray(jnp.argmax(p, axis=-1) == jnp.argmax(q, axis=-1))[real]


def measure(checkpoint: Path, batches: int) -> dict[str, Any]:
    """Means over the first batches of the run's validation split."""
    config = workdir.read_config(checkpoint)
    mesh = sharding.single_device_mesh()
    float32 = dataclasses.replace(config.model, frozen_dtype="float32")
    abstract = parameters.abstract_arrays(define_model(float32).variables, "float32", mesh, trained={})
    arrays = checkpoints.load_weights(checkpoint, abstract).arrays
    data = dataclasses.replace(config.data, tokenizer=str(checkpoint / "tokenizer"))
    loader = runs.read_data(dataclasses.replace(config, data=data), mesh)[1].validation
    if loader is None:
        raise DataError(f"{config.data.source} has no validation split")
    found = []
    for batch in itertools.islice(loader.evaluation_batches(sharding.local_shards(mesh)), batches):
        found.append(compare(float32, arrays, sharding.put_batch(batch, mesh)))
    divergence, same = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return {
        "kl_mean": float(divergence.mean()),
        "kl_max": float(divergence.max()),
        "top1_equal": float(same.mean()),
        "positions": len(same),
    }


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="benchmarks.bfloat16", description=__doc__)
    parser.add_argument("--checkpoint", required=True, type=Path, metavar="DIR")
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    quiet_libraries()
    try:
        print_result(measure(options.checkpoint, options.batches), as_json=options.json)
    except runs.UserError as error:
        sys.exit(f"benchmarks.bfloat16: {error}")


if __name__ == "__main__":
    main()
