"""A model as one folder: `LLaMo.save` and the converters write it; `LLaMo.load`, training and the assistant read it.

config.json         schema_version, the model's configuration (adapters included), how prompts are written
model.safetensors   the weights by path, layers stacked
tokenizer/          a Hugging Face tokenizer folder, if it was given
"""

import contextlib
import os
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jax.experimental import multihost_utils

from data_pipeline import storage
from llamo_jax.config import ConfigError, PromptConfig, from_dict, to_dict
from llamo_jax.models.config import ModelConfig
from llamo_jax.models.migrations import SCHEMA_VERSION, SchemaError, migrated_model
from llamo_jax.parameters import WeightsError
from llamo_jax.weights import Weights, read_file, write_file

FORMAT = "llamo_jax model"
PARTS = ("graph_encoder", "projector", "language_model")


@runtime_checkable
class Tokenizer(Protocol):
    """What `write_model` needs of a tokenizer."""

    def save(self, folder: str | os.PathLike) -> None:
        """Writes an ordinary Hugging Face tokenizer folder."""


class ModelFolder(NamedTuple):
    """What such a folder holds; `weights` are lazy.

    prompt: how the prompts of its training were written, if known; parts: which of PARTS it has, the others are still
    to be drawn; huggingface: config.json of the language model that it was made from, if any.
    """

    config: ModelConfig
    weights: Weights
    prompt: PromptConfig | None = None
    parts: tuple[str, ...] = PARTS
    huggingface: Mapping[str, Any] | None = None


def is_model_folder(folder: str | os.PathLike) -> bool:
    """Whether `write_model` made this folder (a run's folder is another kind)."""
    with contextlib.suppress(ValueError):  # DataError: there is none, or it is damaged
        return storage.read_json(storage.as_path(folder) / "config.json").get("format") == FORMAT
    return False


def read_model(folder: str | os.PathLike) -> ModelFolder:
    """Raises WeightsError if the folder is none, or of a newer format."""
    if not is_model_folder(folder):
        raise WeightsError(f"{folder} is not a model folder (no config.json with format {FORMAT!r})")
    path = storage.as_path(folder) / "config.json"
    content = storage.read_json(path)
    try:
        with storage.understood(path):
            version: Any = content.get("schema_version", content.get("format_version"))
            model = dict(migrated_model(content["model"], version))
            prompt, parts, source = content["prompt"], tuple(map(str, content["parts"])), content["huggingface"]
            prompt, source = prompt and dict(prompt), source and dict(source)
        return ModelFolder(
            config=from_dict(ModelConfig, model, f"{folder}/config.json: model"),
            weights=read_file(storage.as_path(folder) / "model.safetensors"),
            prompt=None if prompt is None else from_dict(PromptConfig, prompt, f"{folder}/config.json: prompt"),
            parts=parts,
            huggingface=source,
        )
    except SchemaError as error:
        raise WeightsError(f"{folder}: {error}") from None
    except ConfigError as error:
        raise WeightsError(f"{folder}/config.json is damaged: {error}") from None


def write_model(folder: str | os.PathLike, model: ModelFolder, tokenizer: Tokenizer | None = None) -> None:
    """Writes a new folder, in one step: it exists whole or not at all. On several hosts all must call it.

    Raises DataError if the folder exists already.
    """
    storage.check_new(folder)  # in every process: one that went on alone would wait for the others forever
    first = jax.process_index() == 0
    with storage.new_folder(folder) if first else contextlib.nullcontext(storage.as_path(folder)) as partial:
        multihost_utils.sync_global_devices(f"created {folder}")
        write_file(partial / "model.safetensors", model.weights)
        if first:
            if tokenizer is not None:
                tokenizer.save(os.fspath(partial / "tokenizer"))
            content = {
                "format": FORMAT,
                "schema_version": SCHEMA_VERSION,
                "model": to_dict(model.config),
                "prompt": None if model.prompt is None else to_dict(model.prompt),
                "parts": model.parts,
                "huggingface": model.huggingface,
            }
            storage.write_json(partial / "config.json", content)  # last: it makes the folder one
    multihost_utils.sync_global_devices(f"wrote {folder}")
