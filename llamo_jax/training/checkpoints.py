"""Checkpoints of a run, by Orbax: the TrainState by step; frozen weights are never copied into it.

Each holds checksums of its arrays, since damaged array data would load without a complaint, and the id of its run.
"""

import contextlib
import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from etils import epath
from jax import Array
from orbax.checkpoint import v1 as ocp

from data_pipeline import storage
from llamo_jax import checksums, distributed
from llamo_jax.models import quantization
from llamo_jax.models.folder import is_model_folder, read_model
from llamo_jax.parameters import Arrays
from llamo_jax.training.step import TrainState
from llamo_jax.training.workdir import BEST, Base, CheckpointError, at, read_base, read_model_config
from llamo_jax.weights import place

RENAMED_SUMS = {"in_row": "skipped_in_a_row"}
"""Names of TrainState.log in older checkpoints → today's."""


_LOSS = "validation_loss"


class _KeepOne:
    """A policy of Orbax by which one checkpoint, (step, loss), is never removed."""

    def __init__(self, kept: Callable[[], tuple[int, float] | None]):
        self._kept = kept

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """For each checkpoint."""
        del context
        kept = self._kept()
        return [kept is not None and checkpoint.step == kept[0] for checkpoint in checkpoints]


class Checkpoints:
    """The checkpoints of one run, newest first choice; use as a context manager to finish pending writes."""

    def __init__(
        self,
        folder: epath.PathLike,
        run_id: str | None = None,
        *,
        keep: int = 2,
        keep_best: bool = False,
        on_save_failure: str = "stop",
    ):
        """run_id: of the run that writes here; None opens them to read, and changes nothing on the disk.

        keep, keep_best: how many of the newest are kept, and whether the one of the lowest validation loss is too.

        on_save_failure: "stop" raises CheckpointError when a checkpoint cannot be written, "continue" logs it.
        """
        self.path = storage.absolute(storage.as_path(folder) / "checkpoints")
        self._run_id = run_id
        if run_id is None and not self.path.exists():
            raise CheckpointError(f"{folder} holds no checkpoint")
        self._keep = keep
        self._keep_best = keep_best
        self._on_save_failure = on_save_failure
        self._best: tuple[int, float] | None = None
        self._checkpointer = self._open()
        self._best = self.best() if keep_best else None
        self._pending: tuple[int, Any] | None = None
        self.failed: int | None = None
        """The step of the latest checkpoint, if it could not be written."""

    def _open(self) -> ocp.training.Checkpointer:
        policies = ocp.training.preservation_policies
        policy: Any = policies.LatestN(self._keep)
        if self._keep_best:
            policy = policies.AnyPreservationPolicy([policy, _KeepOne(lambda: self._best)])
        context = ocp.Context()
        # Replicas share the writing of large arrays; to slice a small one, another program would be compiled for it.
        context.array.saving.min_slice_bytes_for_replica_parallel = 2**20
        try:
            checkpointer = ocp.training.Checkpointer(
                self.path,
                context=context,
                preservation_policy=policy,
                # only the writer: to a reader, the directory that a running save fills looks like a leftover
                cleanup_tmp_directories=self._run_id is not None,
            )
        except (TypeError, ValueError, KeyError) as error:  # one file of Orbax that is no description of a checkpoint
            raise CheckpointError(
                f"{self.path} cannot be read ({_first_line(error)}); move a damaged step away"
            ) from None
        # At each save Orbax would ask JAX whether to stop, by the number of the step. JAX knows the latest number that
        # it was asked with alone, and agrees on a later one: between two questions of training, which counts its own
        # (see preemption), that is one which training has passed, or reaches thousands of steps later.
        checkpointer._manager.reached_preemption = lambda step: False
        return checkpointer

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

    def best(self) -> tuple[int, float] | None:
        """Step and validation loss of the checkpoint with the lowest; None if none knows its loss."""
        known = [(loss, step) for step in self.steps() if (loss := self._loss(step)) is not None]
        return (min(known)[1], min(known)[0]) if known else None

    def _loss(self, step: int) -> float | None:
        """The validation loss that a checkpoint was saved with; None if it does not tell."""
        try:
            loss = self._checkpointer.checkpointables_metadata(step).custom_metadata.get(_LOSS)
        except Exception:  # as of a checkpoint that does not load
            return None
        return loss if isinstance(loss, float) else None

    def on_disk(self) -> str:
        """For people: the newest checkpoint that is there."""
        steps = self.steps()
        return f"the newest checkpoint is of step {steps[0]}" if steps else "there is no checkpoint"

    def save(self, state: TrainState, validation_loss: float | None = None) -> None:
        """Copies the state from the devices and writes it in the background; a step that is saved is left alone.

        validation_loss: by which the best one is chosen; None, or not finite: it cannot be the best.

        Raises CheckpointError, here or at the next call, if writing fails and `on_save_failure` is "stop".
        """
        step = int(state.step)
        self.finish()  # one save at a time: the one before must be whole before Orbax forgets an older one
        if step in self.steps():
            return
        if validation_loss is not None and not math.isfinite(validation_loss):
            validation_loss = None
        if validation_loss is not None and (self._best is None or validation_loss < self._best[1]):
            self._best = (step, validation_loss)  # before Orbax decides which ones it removes
        metadata = {
            _LOSS: validation_loss,
            "checksums": checksums.checksums(_by_path(state)),
            "checksum_version": checksums.VERSION,
            "run_id": self._run_id,
        }
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
            self.failed = None
        except Exception as error:  # as above
            self._failed(step, error)

    def _failed(self, step: int, error: Exception) -> None:
        with contextlib.suppress(Exception):  # it raises the same again, now and at every call to come
            self._checkpointer.close()
        self._checkpointer = self._open()
        self._best = self.best() if self._keep_best else None  # not the one that is not there
        kept = self.steps()
        reason = f"the checkpoint of step {step} cannot be written to {self.path}: {_first_line(error)}"
        left = f"the one of step {kept[0]} is still there" if kept else "there is no earlier one"
        self.failed = step
        if self._on_save_failure == "stop":
            raise CheckpointError(f"{reason}; {left}") from None
        logging.warning("%s; %s; training goes on (config.train.on_save_failure)", reason, left)

    def restore(self, abstract: TrainState) -> TrainState | None:
        """The newest undamaged state, in the shardings of `abstract`; None if there is no checkpoint at all.

        All processes take the same one: one that any of them cannot read counts as damaged in all of them. Damaged
        newer ones are moved to the folder damaged_checkpoints. Raises CheckpointError if there are checkpoints and none
        of them loads, or if one is of another run.
        """
        failures: dict[int, str] = {}
        for step in distributed.common(self.steps()):
            state, failure = None, ""
            try:
                state = self._restored(step, abstract)
                if int(state.step) != step:
                    raise CheckpointError(f"it holds the state of step {int(state.step)}")
            except _ForeignError:
                raise
            except Exception as error:  # as above
                failure = _first_line(error)
            if distributed.all_agree(not failure):
                if failures:
                    self._set_aside(failures)
                return state
            failures[step] = f"step {step}: {failure or 'another process cannot read it'}"
            logging.warning("skipping a damaged checkpoint in %s, %s", self.path, failures[step])
        if failures:
            raise CheckpointError(f"no checkpoint in {self.path} loads ({'; '.join(failures.values())})")
        if not distributed.all_agree(not self.steps()):
            raise CheckpointError(
                f"the processes see different checkpoints in {self.path}: do they share its file system?"
            )
        return None

    def _restored(self, step: int, abstract: TrainState) -> TrainState:
        """A verified state; sums of its log that had other names when it was saved get today's."""
        stored = self._checkpointer.checkpointables_metadata(step).metadata["state"]["log"]
        old_names = {new: old for old, new in RENAMED_SUMS.items() if old in stored}
        log = {old_names.get(name, name): leaf for name, leaf in abstract.log.items()}
        state = self._load(step, {"state": abstract._replace(log=log)._asdict()})["state"]
        self._verify(step, _by_path(state))
        return TrainState(**state | {"log": {RENAMED_SUMS.get(name, name): x for name, x in state["log"].items()}})

    def _set_aside(self, steps: Iterable[int]) -> None:
        """Moves checkpoints away: as long as a newer one is there, Orbax does not save an older step."""
        self._checkpointer.close()  # it remembers what it has seen in the folder
        if distributed.is_main():
            aside = self.path.with_name("damaged_checkpoints")
            aside.mkdir(exist_ok=True)
            for step in steps:
                place, number = aside / str(step), 1
                while place.exists():  # of an earlier accident
                    place, number = aside / f"{step}-{number}", number + 1
                (self.path / str(step)).rename(place)
        distributed.wait("damaged checkpoints set aside")
        self._checkpointer = self._open()
        self._best = self.best() if self._keep_best else None  # it may have been one of them

    def _step(self, which: str) -> int:
        """What `workdir.at` calls so; raises CheckpointError if it is not there."""
        steps = self.steps()
        if not steps:
            raise CheckpointError(f"{self.path} holds no checkpoint")
        if which == BEST:
            best = self.best()
            if best is None:
                raise CheckpointError(f"{self.path}: no checkpoint knows its validation loss; leave out /{BEST}")
            return best[0]
        if which and int(which) not in steps:
            raise CheckpointError(f"{self.path} holds steps {', '.join(map(str, steps[::-1]))}, and not {which}")
        return int(which or steps[0])

    def restore_weights(
        self, abstract: Mapping[str, Any], checksum_version: int = checksums.VERSION, which: str = ""
    ) -> "Loaded":
        """Parameters and statistics of a checkpoint, those of `abstract` that it holds, with their dtypes.

        which: see `workdir.at`. Raises CheckpointError if it is not there, or does not load.
        """
        step = self._step(which)
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
        sums = checksums.checksums(arrays, checksum_version)
        return Loaded({name: array.astype(abstract[name].dtype) for name, array in arrays.items()}, sums, step)

    def _load(self, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
        return self._checkpointer.load_checkpointables(step, abstract)

    def _verify(self, step: int, arrays: Mapping[str, Array]) -> None:
        """Raises CheckpointError if an array is not what was saved, or another run saved it."""
        saved = self._checkpointer.checkpointables_metadata(step).custom_metadata
        owner = saved.get("run_id")  # None: from before runs had ids
        if self._run_id is not None and owner not in (None, self._run_id):
            raise _ForeignError(
                f"the checkpoint of step {step} in {self.path} belongs to another run ({owner}, not {self._run_id}); "
                "remove it or choose another --workdir"
            )
        version = saved.get("checksum_version", 1)
        found = checksums.checksums(arrays, version)
        damaged = [name for name, value in found.items() if saved["checksums"].get(name) != value]
        if damaged:
            raise CheckpointError(f"{len(damaged)} arrays are not as they were saved, such as {damaged[0]}")


class _ForeignError(CheckpointError):
    """A checkpoint of another run: nothing to skip, but to be told."""


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


def load_weights(
    folder: epath.PathLike,
    abstract: Mapping[str, Any],
    quantize: str = "none",
    checksum_version: int = checksums.VERSION,
) -> Loaded:
    """All parameters and statistics of a run, those it trained over those it started from.

    A model folder (see llamo_jax.models.folder) will do as well, and one of a run's checkpoints (see `workdir.at`).

    abstract: path → ShapeDtypeStruct (with shardings) for every array wanted; arrays that no run of the chain holds
    are left out. quantize: the model's; its matrices are quantized one by one, so that the whole ones are never all
    there. Raises CheckpointError if the base is not what the run started from any more.
    """
    if is_model_folder(folder):
        return _load_model_folder(folder, abstract, quantize, checksum_version)
    base = read_base(folder)
    arrays: Arrays = {}
    sums: dict[str, int] = {}
    if base is not None:
        loaded = load_weights_at(base, abstract, quantize)
        if base.checksum_version != checksum_version:  # checked by the old checksums; now the new ones of the same
            loaded = load_weights(base.folder, abstract, quantize, checksum_version)
        arrays, sums, _ = loaded
    read_model_config(folder)
    run, which = at(folder)
    with Checkpoints(run) as checkpoints:
        own = checkpoints.restore_weights(quantization.unquantized(abstract), checksum_version, which)
    arrays |= quantization.quantize_arrays(own.arrays, abstract, quantize)
    return Loaded(arrays, {**sums, **own.checksums}, own.step)


def _load_model_folder(
    folder: epath.PathLike, abstract: Mapping[str, Any], quantize: str, checksum_version: int
) -> Loaded:
    weights = read_model(folder).weights
    wanted = quantization.unquantized(abstract)
    unexpected = sorted(set(weights) - set(wanted))
    if unexpected:
        raise CheckpointError(f"{folder} holds weights that config.model has no place for: {unexpected}")
    arrays: Arrays = {}
    sums: dict[str, int] = {}
    for name in weights:
        # as they are stored: the dtype that is wanted differs between training and answering, and the digest must not
        dtype = weights[name].dtype if checksum_version > 1 else wanted[name].dtype
        placed = place({name: weights[name]}, {name: wanted[name].update(dtype=dtype)})
        sums |= checksums.checksums(placed, checksum_version)
        placed = {name: placed[name].astype(wanted[name].dtype)}
        arrays |= quantization.quantize_arrays(placed, abstract, quantize)
    return Loaded(arrays, sums, 0)


def load_weights_at(base: Base, abstract: Mapping[str, Any], quantize: str = "none") -> Loaded:
    """The weights of a base; raises CheckpointError if they changed since `base` was recorded."""
    loaded = load_weights(base.folder, abstract, quantize, base.checksum_version)
    if loaded.digest() != base.digest:
        raise CheckpointError(
            f"the weights in {base.folder} (step {loaded.step}) are not those of step {base.step} that this run "
            "started from"
        )
    return loaded


def _first_line(error: BaseException) -> str:
    cause = error.__cause__ or error
    line = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
    return line if len(line) <= 240 else f"{line[:120]} … {line[-120:]}"
