"""A run's folder: configuration, tokenizer, checkpoints of what is trained, and where its weights started from.

config.json     the run's configuration
base.json       only if the run started from another: its folder, step and a digest of the frozen weights
tokenizer/      a Hugging Face tokenizer folder
checkpoints/    Orbax: TrainState by step; frozen weights are never copied into it
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from orbax.checkpoint import v1 as ocp

from llamo_jax.config import Config, ModelConfig, PromptConfig, from_dict, to_dict
from llamo_jax.model_folder import is_model_folder, read_model
from llamo_jax.parameters import Arrays
from llamo_jax.training.step import TrainState
from llamo_jax.weights import place


class CheckpointError(ValueError):
    """A folder that holds no usable checkpoint; the message says what is wrong and what to do."""


class Base(NamedTuple):
    """Where a run's initial weights came from: a run's folder, its step, and `digest` of the weights taken."""

    folder: Path
    step: int
    digest: str


def read_config(folder: str | os.PathLike) -> Config:
    """The configuration of the run in `folder`; raises CheckpointError if there is none."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise CheckpointError(
            f"{folder} is neither a training run nor a model folder (no config.json); give the --workdir of one"
        )
    return from_dict(Config, json.loads(path.read_text()))


def read_model_config(folder: str | os.PathLike) -> tuple[ModelConfig, PromptConfig | None]:
    """The model of a run or of a model folder, and how its prompts are written, if that is known."""
    if is_model_folder(folder):
        stored = read_model(folder)
        return stored.config, stored.prompt
    config = read_config(folder)
    return config.model, config.prompt


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file in one step: readers see the old or the new one, never half of it."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(partial, path)


def write_config(folder: Path, config: Config) -> None:
    """Creates config.json."""
    write_json(folder / "config.json", to_dict(config))


def read_base(folder: str | os.PathLike) -> Base | None:
    """The run that this one started from; None if it started from scratch."""
    path = Path(folder) / "base.json"
    if not path.is_file():
        return None
    content = json.loads(path.read_text())
    return Base((Path(folder) / content["folder"]).resolve(), content["step"], content["digest"])


def read_origin(folder: str | os.PathLike) -> Mapping[str, Any] | None:
    """config.json of the Hugging Face model that a chain of runs began with; None if it was none."""
    if is_model_folder(folder):
        return read_model(folder).huggingface
    base = read_base(folder)
    return None if base is None else read_origin(base.folder)


def write_base(folder: Path, base: Base) -> None:
    """Creates base.json; the base's folder is stored relative to this one, so that both can be moved together."""
    relative = os.path.relpath(base.folder, folder)
    write_json(folder / "base.json", {"folder": relative, "step": base.step, "digest": base.digest})


class Checkpoints:
    """The checkpoints of one run, newest first choice; use as a context manager to finish pending writes."""

    def __init__(self, folder: Path, *, keep: int = 2):
        policy = ocp.training.preservation_policies.LatestN(keep)
        self.path = (folder / "checkpoints").resolve()
        self._checkpointer = ocp.training.Checkpointer(
            self.path, preservation_policy=policy, cleanup_tmp_directories=True
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._checkpointer.close()

    def steps(self) -> list[int]:
        """Steps with a checkpoint, newest first; one that is listed may still fail to load."""
        return sorted((checkpoint.step for checkpoint in self._checkpointer.checkpoints), reverse=True)

    def save(self, state: TrainState) -> None:
        """Saves in the background; a step that is saved already is left alone."""
        step = int(state.step)
        if step not in self.steps():
            self._checkpointer.save_checkpointables_async(step, {"state": state._asdict()})

    def restore(self, abstract: TrainState) -> TrainState | None:
        """The newest state that loads, in the shardings of `abstract`; None if there is no checkpoint at all.

        Raises CheckpointError if there are checkpoints and none of them loads.
        """
        failures = []
        for step in self.steps():
            try:
                return TrainState(**self._load(step, {"state": abstract._asdict()})["state"])
            except Exception as error:  # Orbax wraps every failure in its own types
                failures.append(f"step {step}: {_first_line(error)}")
                logging.warning("checkpoint of step %d in %s does not load, trying an older one", step, self.path)
        if failures:
            raise CheckpointError(f"no checkpoint in {self.path} loads ({'; '.join(failures)})")
        return None

    def restore_weights(self, abstract: Mapping[str, Any], step: int | None = None) -> tuple[dict[str, Array], int]:
        """Parameters and statistics by path, those of `abstract` that the checkpoint holds, and the step.

        Raises CheckpointError if there is no checkpoint (of that step), or it does not load.
        """
        steps = self.steps()
        if not steps or (step is not None and step not in steps):
            raise CheckpointError(f"{self.path} holds no checkpoint{'' if step is None else f' of step {step}'}")
        step = steps[0] if step is None else step
        saved = self._saved_names(step)
        wanted = {part: {name: abstract[name] for name in names if name in abstract} for part, names in saved.items()}
        context = ocp.Context()
        context.pytree.loading.partial_load = True  # the optimizer's state is not wanted
        with context:
            try:
                state = self._load(step, {"state": wanted})["state"]
            except Exception as error:  # as above
                raise CheckpointError(
                    f"the checkpoint of step {step} in {self.path} does not load: {_first_line(error)}"
                ) from None
        return {**state["trained"], **state["statistics"]}, step

    def _load(self, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
        return self._checkpointer.load_checkpointables(step, abstract)

    def _saved_names(self, step: int) -> dict[str, list[str]]:
        metadata = self._checkpointer.checkpointables_metadata(step).metadata["state"]
        return {part: list(metadata[part]) for part in ("trained", "statistics")}


def load_weights(folder: str | os.PathLike, abstract: Mapping[str, Any]) -> tuple[Arrays, int]:
    """All parameters and statistics of a run, those it trained over those it started from, and its step.

    A model folder (see llamo_jax.model_folder) will do as well, as step 0.

    abstract: path → ShapeDtypeStruct (with shardings) for every array wanted; arrays that no run of the chain holds
    are left out. Raises CheckpointError if the base is not what the run started from any more.
    """
    base = read_base(folder)
    arrays: Arrays = {}
    if is_model_folder(folder):
        return _load_model_folder(folder, abstract), 0
    if base is not None:
        arrays, _ = load_weights_at(base, abstract)
    read_config(folder)
    with Checkpoints(Path(folder)) as checkpoints:
        own, step = checkpoints.restore_weights(abstract)
    return {**arrays, **own}, step


def _load_model_folder(folder: str | os.PathLike, abstract: Mapping[str, Any]) -> Arrays:
    weights = read_model(folder).weights
    unexpected = sorted(set(weights) - set(abstract))
    if unexpected:
        raise CheckpointError(f"{folder} holds weights that config.model has no place for: {unexpected}")
    return place(weights, {name: abstract[name] for name in weights})


def load_weights_at(base: Base, abstract: Mapping[str, Any]) -> tuple[Arrays, int]:
    """The weights of a base; raises CheckpointError if they changed since `base` was recorded."""
    arrays, step = load_weights(base.folder, abstract)
    if digest(arrays) != base.digest:
        raise CheckpointError(
            f"the weights in {base.folder} (step {step}) are not those of step {base.step} that this run started from"
        )
    return arrays, step


def digest(arrays: Mapping[str, Array]) -> str:
    """A fingerprint of arrays by name; the same on every mesh, since it sums exact integers in any order."""
    sums = {name: (str(array.dtype), array.shape, int(_checksum(array))) for name, array in sorted(arrays.items())}
    return hashlib.sha256(json.dumps(sums).encode()).hexdigest()


@jax.jit
def _checksum(array: Array) -> Array:
    """uint32: the bits of all elements, each mixed with its index (multiplicative hashing), summed modulo 2^32."""
    bits = jax.lax.bitcast_convert_type(array, {4: jnp.uint32, 2: jnp.uint16, 1: jnp.uint8}[array.dtype.itemsize])
    bits = bits.reshape(-1).astype(jnp.uint32)
    index = jnp.arange(bits.size, dtype=jnp.uint32)
    return jnp.sum((bits ^ (index * np.uint32(2654435761))) * np.uint32(2246822519), dtype=jnp.uint32)


def _first_line(error: BaseException) -> str:
    cause = error.__cause__ or error
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0][:200]
