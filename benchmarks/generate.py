"""Speed of generation, on whatever devices there are.

python -m benchmarks.generate --json                              # where the original's code was timed: see README
python -m benchmarks.generate --preset llama2_7b --rows 32 --prompt_tokens 256 --new_tokens 128 --json

Weights are random and prompts synthetic (benchmarks.synthetic). Times include the graph encoder and the prompts' way
through the model; every answer has exactly --new_tokens tokens.
"""

import argparse
import json
import statistics
import sys
import time

import jax
import numpy as np
from tqdm import tqdm

from benchmarks.synthetic import add_options, random_prompts, read_options
from benchmarks.train_step import peak_bytes
from data_pipeline.logs import quiet_libraries
from llamo_jax import sharding
from llamo_jax.config import Config, ConfigError, DecodingConfig
from llamo_jax.generation.decode import generate
from llamo_jax.generation.prompts import collate_prompts
from llamo_jax.models.definition import define_model, for_decoding, initial_arrays
from llamo_jax.parameters import abstract_arrays


def measure(config: Config, *, rows: int, prompt_tokens: int, decoding: DecodingConfig, repeats: int) -> dict:
    """Times whole answers to `rows` prompts, `repeats` times after one to compile."""
    mesh = sharding.make_mesh(config.mesh)
    shards = sharding.batch_shards(mesh)
    definition = define_model(config.model)
    abstract = abstract_arrays(definition.variables, config.model.frozen_dtype, mesh, trained={})
    stop = config.model.language_model.vocab_size  # no token has this id: nothing ends early
    with jax.set_mesh(mesh):
        definition, arrays = for_decoding(definition, initial_arrays(config.model, abstract, config.seed), mesh)
        batch = collate_prompts(random_prompts(config, rows, prompt_tokens), rows=rows, shards=shards)
        batch = sharding.put_whole(batch, mesh)
        keys = jax.random.split(jax.random.key(decoding.seed), rows)
        seconds = []
        for repeat in tqdm(range(repeats + 1), desc="repeats", disable=None):
            start = time.perf_counter()
            found = generate(definition, arrays, batch, keys, decoding=decoding, stop_ids=(stop,))
            lengths = np.asarray(found.lengths)
            if repeat:
                seconds.append(time.perf_counter() - start)
    if not np.all(lengths == decoding.max_new_tokens):
        raise RuntimeError(f"answers of {lengths} tokens, not of {decoding.max_new_tokens}")
    median = statistics.median(seconds)
    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "rows": rows,
        "prompt_tokens": prompt_tokens,
        "new_tokens": decoding.max_new_tokens,
        "seconds": {"median": median, "min": min(seconds), "max": max(seconds)},
        "new_tokens_per_second": rows * decoding.max_new_tokens / median,
        "peak_bytes": peak_bytes(),
        "versions": {"jax": jax.__version__, "jaxlib": jax.lib.__version__},
    }


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="benchmarks.generate", description=__doc__)
    add_options(parser)
    parser.set_defaults(preset="baseline", rows=8)
    parser.add_argument("--prompt_tokens", type=int, default=128, help="graph tokens included")
    parser.add_argument("--new_tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    quiet_libraries()
    try:
        decoding = DecodingConfig(max_new_tokens=options.new_tokens, temperature=options.temperature)
        result = measure(
            read_options(options),
            rows=options.rows,
            prompt_tokens=options.prompt_tokens,
            decoding=decoding,
            repeats=options.repeats,
        )
    except ConfigError as error:
        sys.exit(f"benchmarks.generate: {error}")
    print(json.dumps(result) if options.json else json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
