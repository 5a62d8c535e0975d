"""A model as one folder: `LLaMo.save` and the converters write it; `LLaMo.load`, training and the assistant read it.

config.json         format_version, the model's configuration (adapters included), how prompts are written
model.safetensors   the weights by path, layers stacked
tokenizer/          a Hugging Face tokenizer folder, if it was given
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jax.experimental import multihost_utils

from llamo_jax.config import ConfigError, ModelConfig, PromptConfig, from_dict, to_dict
from llamo_jax.parameters import WeightsError
from llamo_jax.weights import Weights, read_file, write_file

FORMAT = "llamo_jax model"
FORMAT_VERSION = 1
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
    try:
        return json.loads((Path(folder) / "config.json").read_text()).get("format") == FORMAT
    except (OSError, ValueError, AttributeError):
        return False


def read_model(folder: str | os.PathLike) -> ModelFolder:
    """Raises WeightsError if the folder is none, or of a newer format."""
    if not is_model_folder(folder):
        raise WeightsError(f"{folder} is not a model folder (no config.json with format {FORMAT!r})")
    content = json.loads((Path(folder) / "config.json").read_text())
    if content.get("format_version") != FORMAT_VERSION:
        raise WeightsError(
            f"{folder} has format_version {content.get('format_version')}, this version reads {FORMAT_VERSION}; "
            "update llamo_jax, or convert the weights again"
        )
    try:
        prompt = content["prompt"]
        return ModelFolder(
            config=from_dict(ModelConfig, content["model"], f"{folder}/config.json: model"),
            weights=read_file(Path(folder) / "model.safetensors"),
            prompt=None if prompt is None else from_dict(PromptConfig, prompt, f"{folder}/config.json: prompt"),
            parts=tuple(content["parts"]),
            huggingface=content["huggingface"],
        )
    except (KeyError, ConfigError) as error:
        raise WeightsError(f"{folder}/config.json is damaged: {error}") from None


def write_model(folder: str | os.PathLike, model: ModelFolder, tokenizer: Tokenizer | None = None) -> None:
    """Writes a new folder, in one step: it exists whole or not at all. On several hosts all must call it.

    Raises WeightsError if the folder exists already.
    """
    folder = Path(folder)
    if folder.exists():
        raise WeightsError(f"{folder} exists already; remove it or choose another folder")
    partial = folder.with_name(f".{folder.name}.partial")
    first = jax.process_index() == 0
    if first:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    multihost_utils.sync_global_devices(f"created {partial}")
    write_file(partial / "model.safetensors", model.weights)
    if first:
        content = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "model": to_dict(model.config),
            "prompt": None if model.prompt is None else to_dict(model.prompt),
            "parts": model.parts,
            "huggingface": model.huggingface,
        }
        (partial / "config.json").write_text(json.dumps(content, indent=2) + "\n")
        if tokenizer is not None:
            tokenizer.save(partial / "tokenizer")
        partial.rename(folder)
    multihost_utils.sync_global_devices(f"wrote {folder}")
