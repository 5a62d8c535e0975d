"""A trained run or a model folder, ready to answer."""

import math
import os
from pathlib import Path

import jax
from jax.sharding import Mesh

from data_pipeline.prompt import PromptEncoder
from data_pipeline.tokenizer import load_tokenizer
from llamo_jax import sharding
from llamo_jax.config import ConfigError, DecodingConfig, MeshConfig, ModelConfig
from llamo_jax.generation.generator import Generator
from llamo_jax.models.definition import ModelDefinition, define_model
from llamo_jax.parameters import abstract_arrays
from llamo_jax.training import checkpoints

WEIGHTS_SHARE = 0.6
"""How much of a device's memory weights may fill; the rest is for the cache and for what is computed."""


def load_generator(
    folder: str | os.PathLike, *, decoding: DecodingConfig | None = None, tensor: int = 0
) -> tuple[Generator, str]:
    """From a run's workdir or a model folder: what answers, and a fingerprint of its weights.

    A run that started from another is whole only as long as that one is unchanged. tensor: as for `decoding_mesh`.
    Raises CheckpointError if the folder is neither, or not whole.
    """
    model, prompt = checkpoints.read_model_config(folder)
    if prompt is None:
        raise checkpoints.CheckpointError(f"{folder} does not say how prompts are written (config.json)")
    definition = define_model(model)
    mesh = decoding_mesh(definition, model, tensor)
    abstract = abstract_arrays(definition.variables, model.frozen_dtype, mesh, trained={})
    loaded = checkpoints.load_weights(folder, abstract, model.quantize)
    missing = sorted(set(abstract) - set(loaded.arrays))
    if missing:
        raise checkpoints.CheckpointError(f"{folder} is not a whole model; it lacks {missing}")
    tokenizer = load_tokenizer(Path(folder) / "tokenizer")
    encoder = PromptEncoder(tokenizer, model.num_graph_tokens, style=prompt.style, show_smiles=prompt.show_smiles)
    return Generator(definition, loaded.arrays, encoder, mesh, decoding), loaded.digest()


def decoding_mesh(definition: ModelDefinition, model: ModelConfig, tensor: int = 0) -> Mesh:
    """All devices: rows are divided over "data", and weights over `tensor` devices; 0: as few as can hold them.

    Not over "fsdp": every weight would be gathered again for every token. Raises ConfigError if they fit nowhere.
    """
    devices = jax.devices()
    if tensor:
        return sharding.make_mesh(MeshConfig(data=-1, fsdp=1, tensor=tensor), devices)
    memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", math.inf)
    for tensor in [size for size in range(1, len(devices) + 1) if len(devices) % size == 0]:
        mesh = sharding.make_mesh(MeshConfig(data=-1, fsdp=1, tensor=tensor), devices)
        try:
            abstract = abstract_arrays(definition.variables, model.frozen_dtype, mesh, trained={})
        except ConfigError:  # heads do not divide
            continue
        shards = [(spec.sharding.shard_shape(spec.shape), spec.dtype) for spec in abstract.values()]
        if sum(math.prod(shape) * dtype.itemsize for shape, dtype in shards) <= WEIGHTS_SHARE * memory:
            return mesh
    raise ConfigError(
        f"the weights do not fit {len(devices)} devices of {memory / 1e9:.0f} GB; use more devices, or train with "
        "config.model.quantize"
    )
