"""A run's folder: configuration, tokenizer, checkpoints of what is trained, and where its weights started from.

config.json     the run's configuration
base.json       only if the run started from another: its folder, step and a digest of the frozen weights
tokenizer/      a Hugging Face tokenizer folder
checkpoints/    Orbax: TrainState by step; frozen weights are never copied into it
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from orbax.checkpoint import v1 as ocp

from llamo_jax import distributed, quantization
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
    """Writes a JSON file in one step: readers see the old or the new one, never half of it. One process does."""
    if not distributed.is_main():
        return
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
    """The checkpoints of one run, newest first choice; use as a context manager to finish pending writes.

    Each holds checksums of its arrays, since damaged array data would load without a complaint.
    """

    def __init__(self, folder: Path, *, keep: int = 2, on_save_failure: str = "stop"):
        """on_save_failure: "stop" raises CheckpointError when a checkpoint cannot be written, "continue" says so."""
        self.path = (folder / "checkpoints").resolve()
        self._keep = keep
        self._on_save_failure = on_save_failure
        self._checkpointer = self._open()
        self._pending: tuple[int, Any] | None = None

    def _open(self) -> ocp.training.Checkpointer:
        policy = ocp.training.preservation_policies.LatestN(self._keep)
        context = ocp.Context()
        # Replicas share the writing of large arrays; to slice a small one, another program would be compiled for it.
        context.array.saving.min_slice_bytes_for_replica_parallel = 2**20
        return ocp.training.Checkpointer(
            self.path,
            context=context,
            preservation_policy=policy,
            cleanup_tmp_directories=True,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            try:
                self.finish()
            finally:
                self._checkpointer.close()
        else:
            with contextlib.suppress(Exception):  # not to hide what went wrong first
                self._checkpointer.close()

    def steps(self) -> list[int]:
        """Steps with a checkpoint, newest first; one that is listed may still fail to load."""
        return sorted((checkpoint.step for checkpoint in self._checkpointer.checkpoints), reverse=True)

    def save(self, state: TrainState) -> None:
        """Copies the state from the devices and writes it in the background; a step that is saved is left alone.

        Raises CheckpointError, here or at the next call, if writing fails and `on_save_failure` is "stop".
        """
        step = int(state.step)
        self.finish()
        if step in self.steps():
            return
        metadata = {"checksums": checksums(_by_path(state))}
        try:
            response = self._checkpointer.save_checkpointables_async(
                step, {"state": state._asdict()}, custom_metadata=metadata
            )
        except Exception as error:  # Orbax wraps every failure in its own types
            self._failed(step, error)
        else:
            self._pending = (step, response)

    def finish(self) -> None:
        """Waits until everything is written; raises as `save`."""
        if self._pending is None:
            return
        (step, response), self._pending = self._pending, None
        try:
            if response is not None:
                response.result()
        except Exception as error:  # as above
            self._failed(step, error)

    def _failed(self, step: int, error: Exception) -> None:
        with contextlib.suppress(Exception):  # it raises the same again, now and at every call to come
            self._checkpointer.close()
        self._checkpointer = self._open()
        kept = self.steps()
        reason = f"the checkpoint of step {step} cannot be written to {self.path}: {_first_line(error)}"
        left = f"the one of step {kept[0]} is still there" if kept else "there is no earlier one"
        if self._on_save_failure == "stop":
            raise CheckpointError(f"{reason}; {left}") from None
        logging.warning("%s; %s; training goes on (config.train.on_save_failure)", reason, left)

    def restore(self, abstract: TrainState) -> TrainState | None:
        """The newest undamaged state, in the shardings of `abstract`; None if there is no checkpoint at all.

        Damaged newer ones are moved to the folder damaged_checkpoints. Raises CheckpointError if there are checkpoints
        and none of them loads.
        """
        failures: dict[int, str] = {}
        for step in self.steps():
            try:
                state = TrainState(**self._load(step, {"state": abstract._asdict()})["state"])
                self._verify(step, _by_path(state))
            except Exception as error:  # as above
                failures[step] = f"step {step}: {_first_line(error)}"
                logging.warning("skipping a damaged checkpoint in %s, %s", self.path, failures[step])
                continue
            if failures:
                self._set_aside(failures)
            return state
        if failures:
            raise CheckpointError(f"no checkpoint in {self.path} loads ({'; '.join(failures.values())})")
        return None

    def _set_aside(self, steps: Iterable[int]) -> None:
        """Moves checkpoints away: as long as a newer one is there, Orbax does not save an older step."""
        self._checkpointer.close()
        if distributed.is_main():
            aside = self.path.with_name("damaged_checkpoints")
            aside.mkdir(exist_ok=True)
            for step in steps:
                shutil.rmtree(aside / str(step), ignore_errors=True)  # of an earlier accident
                (self.path / str(step)).rename(aside / str(step))
        distributed.wait("damaged checkpoints set aside")
        self._checkpointer = self._open()

    def restore_weights(self, abstract: Mapping[str, Any]) -> "Loaded":
        """Parameters and statistics of the newest checkpoint, those of `abstract` that it holds, with their dtypes.

        Raises CheckpointError if there is no checkpoint, or it does not load.
        """
        steps = self.steps()
        if not steps:
            raise CheckpointError(f"{self.path} holds no checkpoint")
        step = steps[0]
        try:
            metadata = self._checkpointer.checkpointables_metadata(step).metadata["state"]
            wanted = {
                part: {
                    name: abstract[name].update(dtype=stored.dtype)
                    for name, stored in metadata[part].items()
                    if name in abstract
                }
                for part in ("trained", "statistics")
            }
            context = ocp.Context()
            context.pytree.loading.partial_load = True  # the optimizer's state is not wanted
            with context:
                state = self._load(step, {"state": wanted})["state"]
            self._verify(step, _by_path(state))
        except Exception as error:  # as above
            raise CheckpointError(
                f"the checkpoint of step {step} in {self.path} does not load: {_first_line(error)}"
            ) from None
        arrays = {**state["trained"], **state["statistics"]}
        return Loaded(
            {name: array.astype(abstract[name].dtype) for name, array in arrays.items()}, checksums(arrays), step
        )

    def _load(self, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
        return self._checkpointer.load_checkpointables(step, abstract)

    def _verify(self, step: int, arrays: Mapping[str, Array]) -> None:
        """Raises CheckpointError if an array is not what was saved."""
        saved = self._checkpointer.checkpointables_metadata(step).custom_metadata["checksums"]
        damaged = [name for name, value in checksums(arrays).items() if saved.get(name) != value]
        if damaged:
            raise CheckpointError(f"{len(damaged)} arrays are not as they were saved, such as {damaged[0]}")


def _by_path(state: Any) -> dict[str, Array]:
    """Every array of a state by its place, whatever containers it is in."""
    content = state._asdict() if isinstance(state, TrainState) else state
    leaves, _ = jax.tree_util.tree_flatten_with_path(content)
    return {jax.tree_util.keystr(path): array for path, array in leaves}


class Loaded(NamedTuple):
    """Arrays of a model, the checksums of what they were read from, and the run's step (0: a model folder)."""

    arrays: Arrays
    checksums: dict[str, int]
    step: int

    def digest(self) -> str:
        """A fingerprint of what was read: the same on every mesh, and whether it was quantized or not."""
        return hashlib.sha256(json.dumps(self.checksums, sort_keys=True).encode()).hexdigest()


def load_weights(folder: str | os.PathLike, abstract: Mapping[str, Any], quantize: str = "none") -> Loaded:
    """All parameters and statistics of a run, those it trained over those it started from.

    A model folder (see llamo_jax.model_folder) will do as well.

    abstract: path → ShapeDtypeStruct (with shardings) for every array wanted; arrays that no run of the chain holds
    are left out. quantize: the model's; its matrices are quantized one by one, so that the whole ones are never all
    there. Raises CheckpointError if the base is not what the run started from any more.
    """
    base = read_base(folder)
    if is_model_folder(folder):
        return _load_model_folder(folder, abstract, quantize)
    arrays: Arrays = {}
    sums: dict[str, int] = {}
    if base is not None:
        arrays, sums, _ = load_weights_at(base, abstract, quantize)
    read_config(folder)
    with Checkpoints(Path(folder)) as checkpoints:
        own = checkpoints.restore_weights(quantization.whole(abstract))
    arrays |= quantization.quantize_arrays(own.arrays, abstract, quantize)
    return Loaded(arrays, {**sums, **own.checksums}, own.step)


def _load_model_folder(folder: str | os.PathLike, abstract: Mapping[str, Any], quantize: str) -> Loaded:
    weights = read_model(folder).weights
    wanted = quantization.whole(abstract)
    unexpected = sorted(set(weights) - set(wanted))
    if unexpected:
        raise CheckpointError(f"{folder} holds weights that config.model has no place for: {unexpected}")
    arrays: Arrays = {}
    sums: dict[str, int] = {}
    for name in weights:
        placed = place({name: weights[name]}, {name: wanted[name]})
        sums |= checksums(placed)
        arrays |= quantization.quantize_arrays(placed, abstract, quantize)
    return Loaded(arrays, sums, 0)


def load_weights_at(base: Base, abstract: Mapping[str, Any], quantize: str = "none") -> Loaded:
    """The weights of a base; raises CheckpointError if they changed since `base` was recorded."""
    loaded = load_weights(base.folder, abstract, quantize)
    if loaded.digest() != base.digest:
        raise CheckpointError(
            f"the weights in {base.folder} (step {loaded.step}) are not those of step {base.step} that this run "
            "started from"
        )
    return loaded


def checksums(arrays: Mapping[str, Array]) -> dict[str, int]:
    """An exact checksum of each array; the same on every mesh, since it sums integers in any order."""
    # One after the other: programs with communication that are in flight together can wait for each other forever on
    # CPU. One program for all arrays would be compiled again for every set of them.
    return {name: int(_checksum(array)) for name, array in arrays.items()}


@jax.jit
def _checksum(array: Array) -> Array:
    """uint32: the bits of all elements, each mixed with its index (multiplicative hashing), summed modulo 2^32."""
    bits = jax.lax.bitcast_convert_type(array, {4: jnp.uint32, 2: jnp.uint16, 1: jnp.uint8}[array.dtype.itemsize])
    index = jnp.zeros(array.shape, jnp.uint32)
    for axis, size in enumerate(array.shape):
        index = index * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
    mixed = (bits.astype(jnp.uint32) ^ (index * np.uint32(2654435761))) * np.uint32(2246822519)
    return jnp.sum(mixed, dtype=jnp.uint32)


def _first_line(error: BaseException) -> str:
    cause = error.__cause__ or error
    line = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
    return line if len(line) <= 240 else f"{line[:120]} … {line[-120:]}"
