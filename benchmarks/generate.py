"""Speed of generation, on whatever devices there are.

python -m benchmarks.generate --json                              # the size in docs/results.md
python -m benchmarks.generate --beside_transformers --json        # in turns with the same decoder in PyTorch on the CPU
python -m benchmarks.generate --model models/smollm2 --beside_transformers --json     # on the same real weights
python -m benchmarks.generate --preset llama2_7b --rows 32 --prompt_tokens 256 --new_tokens 128 --json

Weights are random, unless --model gives some, and prompts synthetic (benchmarks.synthetic). Times include the graph
encoder and the prompts' way through the model; every answer has exactly --new_tokens tokens. transformers is timed at
torch's default precision of matrix products and at "medium", which is float32 all the same on CPUs without AMX, and
twice as fast where the default falls back to AVX2 (220 against 460 GFLOP/s on two Zen 5 cores).
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from benchmarks.synthetic import add_options, random_prompts, read_options
from benchmarks.train_step import peak_bytes
from data_pipeline.logs import quiet_libraries
from llamo_jax import sharding
from llamo_jax.config import ConfigError, DecodingConfig
from llamo_jax.convert import __main__ as convert
from llamo_jax.convert.huggingface import write_config
from llamo_jax.generation.cpu import for_decoding
from llamo_jax.generation.decode import generate
from llamo_jax.generation.prompts import collate_prompts
from llamo_jax.models.definition import define_model, initial_arrays
from llamo_jax.models.folder import read_model
from llamo_jax.parameters import abstract_arrays
from llamo_jax.training.config import Config
from llamo_jax.weights import Weights, place


def measure(
    config: Config,
    *,
    rows: int,
    prompt_tokens: int,
    decoding: DecodingConfig,
    repeats: int,
    weights: Weights | None = None,
    beside: Mapping[str, Callable[[], object]] | None = None,
) -> dict:
    """Times whole answers to `rows` prompts, `repeats` times after one to compile; in turns with each of `beside`.

    weights: some of the model's, instead of random ones.
    """
    mesh = sharding.make_mesh(config.mesh)
    shards = sharding.batch_shards(mesh)
    definition = define_model(config.model)
    abstract = abstract_arrays(definition.variables, config.model.frozen_dtype, mesh, trained={})
    stop = config.model.language_model.vocab_size  # no token has this id: nothing ends early
    with jax.set_mesh(mesh):
        arrays = initial_arrays(config.model, abstract, config.seed)
        arrays |= place(weights or {}, {name: abstract[name] for name in weights or {}})
        definition, arrays = for_decoding(definition, arrays, mesh)
        batch = collate_prompts(random_prompts(config, rows, prompt_tokens), rows=rows, shards=shards)
        batch = sharding.put_global(batch, mesh)
        keys = jax.random.split(jax.random.key(decoding.seed), rows)
        seconds: list[float] = []
        others: dict[str, list[float]] = {name: [] for name in beside or {}}
        for _ in tqdm(range(repeats + 1), desc="repeats", disable=None):
            start = time.perf_counter()
            found = generate(definition, arrays, batch, keys, decoding=decoding, stop_ids=(stop,))
            lengths = np.asarray(found.lengths)
            seconds.append(time.perf_counter() - start)
            for name, answer in (beside or {}).items():
                start = time.perf_counter()
                answer()
                others[name].append(time.perf_counter() - start)
    if not np.all(lengths == decoding.max_new_tokens):
        raise RuntimeError(f"answers of {lengths} tokens, not of {decoding.max_new_tokens}")
    median = statistics.median(seconds[1:])
    result = {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "rows": rows,
        "prompt_tokens": prompt_tokens,
        "new_tokens": decoding.max_new_tokens,
        "seconds": _spread(seconds[1:]),
        "new_tokens_per_second": rows * decoding.max_new_tokens / median,
        "peak_bytes": peak_bytes(),
        "versions": {"jax": jax.__version__, "jaxlib": jax.lib.__version__},
    }
    for name, times in others.items():
        result[name] = {"seconds": _spread(times[1:]), "ratio": median / statistics.median(times[1:])}
    return result


def transformers_generation(
    config: Config, model_folder: Path | None, rows: int, prompt_tokens: int, new_tokens: int
) -> dict[str, Callable[[], object]]:
    """Greedy answers of the same decoder by transformers in PyTorch, without graphs, on the CPU; by precision."""
    try:
        import torch
    except ImportError:
        raise ConfigError('--beside_transformers needs PyTorch: pip install "llamo_jax[convert]"') from None
    from transformers import AutoConfig, AutoModelForCausalLM

    decoder = config.model.language_model
    dtype = getattr(torch, config.model.compute_dtype)
    if model_folder is None:
        described = write_config(decoder, None, jax.numpy.dtype(config.model.compute_dtype))
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**described), dtype=dtype)
    else:
        with tempfile.TemporaryDirectory() as folder:
            exported = f"{folder}/model"
            convert.main(["to_huggingface", "--checkpoint", str(model_folder), "--output", exported])
            model = AutoModelForCausalLM.from_pretrained(exported, dtype=dtype)
    model.eval()
    prompts = torch.randint(3, decoder.vocab_size, (rows, prompt_tokens))
    options = {"do_sample": False, "max_new_tokens": new_tokens, "eos_token_id": None, "pad_token_id": 0}

    def answer(precision: str) -> None:
        torch.set_float32_matmul_precision(precision)
        found = model.generate(prompts, attention_mask=torch.ones_like(prompts), **options)
        if found.shape[1] != prompt_tokens + new_tokens:
            raise RuntimeError(f"transformers answered with {found.shape[1] - prompt_tokens} tokens")

    return {f"transformers_{precision}": partial(answer, precision) for precision in ("highest", "medium")}


def _spread(seconds: list[float]) -> dict[str, float]:
    return {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="benchmarks.generate", description=__doc__)
    add_options(parser)
    parser.set_defaults(preset="baseline", rows=8)
    parser.add_argument("--model", type=Path, metavar="DIR", help="a model folder, instead of a preset")
    parser.add_argument("--prompt_tokens", type=int, default=128, help="graph tokens included")
    parser.add_argument("--new_tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--beside_transformers", action="store_true", help="time transformers' greedy answers as well")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    quiet_libraries()
    try:
        decoding = DecodingConfig(max_new_tokens=options.new_tokens, temperature=options.temperature)
        if options.model:
            options.preset = str(options.model)
        config, sizes = read_options(options), (options.rows, options.prompt_tokens, options.new_tokens)
        result = measure(
            config,
            rows=options.rows,
            prompt_tokens=options.prompt_tokens,
            decoding=decoding,
            repeats=options.repeats,
            weights=read_model(options.model).weights if options.model else None,
            beside=transformers_generation(config, options.model, *sizes) if options.beside_transformers else None,
        )
    except ConfigError as error:
        sys.exit(f"benchmarks.generate: {error}")
    print(json.dumps(result) if options.json else json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
