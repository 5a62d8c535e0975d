"""A trained run or a model folder, ready to answer."""

import contextlib
import math
import os
from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from data_pipeline.errors import DataError
from data_pipeline.prompt import PromptEncoder
from data_pipeline.records import read_manifest
from data_pipeline.tokenizer import load_tokenizer
from llamo_jax import sharding
from llamo_jax.config import ConfigError, DecodingConfig, MeshConfig
from llamo_jax.generation.generator import Generator
from llamo_jax.generation.memory import device_bytes, rows_per_shard
from llamo_jax.models import LLaMo, ModelConfig
from llamo_jax.models.definition import ModelDefinition, define_model
from llamo_jax.models.folder import is_model_folder
from llamo_jax.parameters import abstract_arrays
from llamo_jax.training import checkpoints, workdir

FEWEST_ROWS = 8
"""Answers side by side for which there must be room beside the weights; fewer leave an accelerator idle."""

PROMPT_TOKENS = 512
"""Of the prompts that this is reckoned for."""


def load_generator(
    folder: str | os.PathLike, *, decoding: DecodingConfig | None = None, tensor: int = 0
) -> tuple[Generator, str]:
    """From a run's workdir or a model folder: what answers, and a fingerprint of its weights.

    `workdir.at` tells how one of a run's checkpoints is named. A run that started from another is whole only as long as
    that one is unchanged. tensor: as for `decoding_mesh`.
    Raises CheckpointError if the folder is neither, or not whole.
    """
    model, prompt = workdir.read_model_config(folder)
    if prompt is None:
        raise workdir.CheckpointError(f"{folder} does not say how prompts are written (config.json)")
    definition = define_model(model)
    mesh = decoding_mesh(definition, model, tensor, (decoding or DecodingConfig()).max_new_tokens)
    loaded = _load(folder, definition, mesh)
    tokenizer = load_tokenizer(workdir.at(folder)[0] / "tokenizer")
    encoder = PromptEncoder(
        tokenizer,
        model.num_graph_tokens,
        style=prompt.style,
        show_smiles=prompt.show_smiles,
        show_graph=prompt.show_graph,
    )
    return Generator(definition, loaded.arrays, encoder, mesh, decoding), loaded.digest()


def load_model(folder: str | os.PathLike) -> LLaMo:
    """The module of a run's workdir or a model folder, on the first device; raises as `load_generator`."""
    definition = define_model(workdir.read_model_config(folder)[0])
    return definition.merge(_load(folder, definition, sharding.single_device_mesh()).arrays)


def _load(folder: str | os.PathLike, definition: ModelDefinition, mesh: Mesh) -> checkpoints.Loaded:
    model = definition.config
    abstract = abstract_arrays(definition.variables, model.frozen_dtype, mesh, trained={})
    loaded = checkpoints.load_weights(folder, abstract, model.quantize)
    missing = sorted(set(abstract) - set(loaded.arrays))
    if missing:
        raise workdir.CheckpointError(f"{folder} is not a whole model; it lacks {missing}")
    return loaded


def describe_model(folder: str | os.PathLike) -> tuple[str, int | None]:
    """What a run's or a folder's model is and was taught, in a line for people; and its longest training row, if known.

    Raises CheckpointError if the folder is neither.
    """
    if is_model_folder(folder):
        model, _ = workdir.read_model_config(folder)
        return f"a model folder; {_sizes(model)}", None
    config = workdir.read_config(folder)
    tasks = {config.data.task} if config.data.source == "embedded" else _tasks(config.data.source)
    taught = ", ".join(sorted(tasks)) or "unknown tasks"
    only = "; it only describes: other questions get descriptions, too" if tasks == {"description"} else ""
    about = f"{config.name} of {config.preset}, {_sizes(config.model)}, trained on {taught}{only}"
    return about, config.data.tokens_per_row


def _sizes(model: ModelConfig) -> str:
    decoder = model.language_model
    return f"{decoder.num_layers} layers of width {decoder.width}"


def _tasks(source: str) -> set[str]:
    """The tasks of prepared folders, of those that are still there."""
    found = set()
    for part in source.split(","):
        with contextlib.suppress(DataError, OSError):
            found.add(read_manifest(part.partition("=")[0])["task"])
    return found


def decoding_mesh(
    definition: ModelDefinition,
    model: ModelConfig,
    tensor: int,
    max_new_tokens: int,
    *,
    devices: Sequence[jax.Device] | None = None,
    limit: float | None = None,
) -> Mesh:
    """All devices, or those given: rows are divided over "data", and weights over `tensor` devices.

    tensor 0: as few as can hold the weights and the cache of FEWEST_ROWS answers, or as hold the most. Not over "fsdp":
    every weight would be gathered again for every token. limit: bytes of a device, by default what it says itself.
    Raises ConfigError if not even one answer fits.
    """
    devices = jax.devices() if devices is None else devices
    if tensor:
        return sharding.make_mesh(MeshConfig(data=-1, fsdp=1, tensor=tensor), devices)
    limit = device_bytes()[0] if limit is None else limit
    best: tuple[float, Mesh] | None = None
    for tensor in [size for size in range(1, len(devices) + 1) if len(devices) % size == 0]:
        try:
            mesh = sharding.make_mesh(MeshConfig(data=-1, fsdp=1, tensor=tensor), devices)
            abstract = abstract_arrays(definition.variables, model.frozen_dtype, mesh, trained={})
        except ConfigError:  # heads, or slices of TPUs, do not divide
            continue
        shards = [(spec.sharding.shard_shape(spec.shape), spec.dtype) for spec in abstract.values()]
        weights = sum(math.prod(shape) * dtype.itemsize for shape, dtype in shards)
        rows = rows_per_shard(model, PROMPT_TOKENS + max_new_tokens, tensor, limit, weights)
        if rows >= FEWEST_ROWS:
            return mesh
        if rows >= 1 and (best is None or rows > best[0]):
            best = (rows, mesh)
    if best is not None:
        return best[1]
    raise ConfigError(
        f"the weights and the cache of one answer do not fit {len(devices)} devices of {limit / 1e9:.0f} GB; "
        "use more devices, or train with config.model.quantize"
    )
