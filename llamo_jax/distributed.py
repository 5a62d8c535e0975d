"""Several processes that train one model: how they find each other, and what only one of them does."""

import contextlib
import itertools
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import jax
import numpy as np
from jax._src.distributed import global_state  # the key-value store has no public name
from jax.experimental import multihost_utils

from llamo_jax import clusters
from llamo_jax.config import ConfigError

_HEARTBEATS = "llamo_jax/heartbeats"
_STALLED = "llamo_jax/stalled"
"""Folders of the key-value store: each process' last heartbeat, and what the first to notice says of a stall."""

COMMON = 64
"""Numbers that processes compare at a time."""

SILENCE_SECONDS = 20
"""After so long without a heartbeat, a process counts as lost and the others stop."""


def initialize(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Connects this process to the others, where the arguments or the environment say that there are others.

    coordinator: host:port of the process with number 0; processes: how many there are; process: this one's number.
    Without arguments: JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, then every cluster that JAX
    knows: Cloud TPU, GKE, Slurm, Open MPI, Kubernetes. processes=1 keeps this one alone, wherever it runs. Call it
    before anything else of JAX. Raises ConfigError if the three do not come together, or nobody answers.
    """
    if processes == 1 and coordinator is None:
        return
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    if processes is None:
        processes = clusters.number("JAX_NUM_PROCESSES")
    if coordinator is not None and process is None:
        process = clusters.process_of_job(processes)
    if coordinator is None and process is None and processes in (1, None):
        found = clusters.find() if processes is None else None
        if found is None:
            return
        coordinator, processes, process = found
    if coordinator is None or processes is None or process is None:
        raise ConfigError(
            "several processes need all of --coordinator_address, --num_processes and --process_id "
            "(or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID)"
        )
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            local_device_ids=clusters.local_gpus(),
            # JAX would look at the cluster again, and under Slurm leave one GPU to each process
            cluster_detection_method="deactivate",
            # twice ours: JAX itself aborts the process, with a page of text, if it is the first to notice
            heartbeat_timeout_seconds=2 * SILENCE_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"the processes do not find each other: {str(error).strip().splitlines()[0]}") from None


def check_devices() -> None:
    """Raises ConfigError if JAX counts processes that are not connected, or has no accelerator where one is expected.

    An accelerator is expected where its JAX plugin is installed, or device files or a launcher's variables name one,
    unless JAX_PLATFORMS asks for CPUs.
    """
    if jax.process_count() > 1 and global_state.client is None:
        raise ConfigError(
            f"JAX sees {jax.process_count()} processes, but they are not connected; start the same command on all "
            "machines with --coordinator_address, --num_processes and --process_id"
        )
    asked = (jax.config.values["jax_platforms"] or "").split(",")
    if jax.default_backend() != "cpu" or asked[0] == "cpu":
        return
    signs = clusters.accelerator_signs()
    if signs:
        raise ConfigError(
            f"no accelerator was found, though one is expected here ({', '.join(signs)}); "
            "install the extra that fits it ([tpu] or [cuda]), or run on CPUs with JAX_PLATFORMS=cpu"
        )


def is_main() -> bool:
    """Whether this is the process that writes and prints what all of them know."""
    return jax.process_index() == 0


def log(text: str) -> None:
    """Prints, once and not for every process."""
    if is_main():
        print(text, flush=True)


def wait(name: str) -> None:
    """Until all processes have come here; `name` is the same in all of them, and shown if they have not."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def all_agree(holds: bool) -> bool:
    """Whether something holds in every process; all of them must ask."""
    if jax.process_count() == 1:
        return holds
    return bool(np.all(multihost_utils.process_allgather(np.array(holds))))


def least(number: float) -> float:
    """The smallest of every process' number; all of them must ask."""
    if jax.process_count() == 1:
        return number
    return float(np.min(multihost_utils.process_allgather(np.array(number, np.float32))))


def from_main(values: Sequence[float]) -> list[float]:
    """The numbers of process 0, of which all must give as many; all of them must ask."""
    if jax.process_count() == 1:
        return list(values)
    return list(map(float, multihost_utils.broadcast_one_to_all(np.array(values, np.float64))))


def common(numbers: Sequence[int]) -> list[int]:
    """The first COMMON numbers that every process has, in this one's order; all of them must ask."""
    if jax.process_count() == 1:
        return list(numbers)
    padded = np.full(COMMON, -1, np.int64)
    padded[: len(numbers[:COMMON])] = numbers[:COMMON]
    everywhere = set.intersection(*map(set, np.asarray(multihost_utils.process_allgather(padded)).tolist()))
    return [number for number in numbers if number in everywhere]


class _Pace:
    """Where this process is, for the others and for the watch: its step, and how often it has moved on."""

    step = 0
    moves = 0
    limit = math.inf  # seconds without a move


_pace = _Pace()


@contextlib.contextmanager
def paced(limit: float) -> Iterator[None]:
    """While it is entered, `moved` must be called at least every `limit` seconds, or `watched` stops the process."""
    _pace.limit = limit
    _pace.moves += 1
    try:
        yield
    finally:
        _pace.limit = math.inf


def moved(step: int) -> None:
    """Notes that something was done, at this step."""
    _pace.step = step
    _pace.moves += 1


@contextlib.contextmanager
def watched(stop: Callable[[str], NoReturn]) -> Iterator[None]:
    """Calls `stop` with a message, from another thread, when a process is lost, or none of them moves (see `paced`).

    It must end this process at once: computations of the remaining ones would wait for the lost one forever.
    """
    done = threading.Event()
    watch = threading.Thread(target=_watch, args=(done, stop), daemon=True)
    watch.start()
    try:
        yield
        wait("done")  # nobody leaves while others still listen for heartbeats
    except jax.errors.JaxRuntimeError:
        if jax.process_count() > 1:
            watch.join(2 * SILENCE_SECONDS)  # was it because of a lost process? then this does not return
        raise
    finally:
        done.set()


def _watch(done: threading.Event, stop: Callable[[str], NoReturn]) -> None:
    """Sends heartbeats with this process' step through JAX's coordinator, and listens for those of the others."""
    client: Any = global_state.client
    mine, count = jax.process_index(), jax.process_count()
    beats: dict[int, str] = {}
    stalled: list[str] = []
    heard = {process: ("", time.monotonic()) for process in range(count) if process != mine}
    moves, moved_at = _pace.moves, time.monotonic()
    for number in itertools.count():
        try:
            if client is not None:
                client.key_value_set(f"{_HEARTBEATS}/{mine}", f"{number} {_pace.step}", allow_overwrite=True)
                beats = {int(name.rpartition("/")[2]): beat for name, beat in client.key_value_dir_get(_HEARTBEATS)}
                stalled = [said for _, said in client.key_value_dir_get(_STALLED)]
        except Exception as error:  # the coordinator lives in process 0; its client raises several types
            if not done.is_set():
                stop(f"process {mine} of {count} stops: process 0 is gone ({str(error).splitlines()[0][:120]})")
            return
        if stalled and not done.is_set():
            stop(f"process {mine} of {count} stops: {stalled[0]}")
        now = time.monotonic()
        for process, (last, since) in heard.items():
            beat_of = beats.get(process, "")
            if beat_of != last:
                heard[process] = (beat_of, now)
            elif now - since > SILENCE_SECONDS and not done.is_set():
                stop(
                    f"process {mine} of {count} stops: process {process} has sent no heartbeat for {now - since:.0f} s"
                )
        if moves != _pace.moves:
            moves, moved_at = _pace.moves, now
        elif now - moved_at > _pace.limit and not done.is_set():
            steps = {process: int(beat.split()[1]) for process, beat in beats.items()} | {mine: _pace.step}
            said = f"nothing was done for {now - moved_at:.0f} s; {_behind(steps)}"
            if client is not None:
                client.key_value_set(f"{_STALLED}/{mine}", said)
                if mine == 0:  # it takes the store with it: the others must have read it
                    time.sleep(SILENCE_SECONDS / 4)
            stop(f"process {mine} of {count} stops: {said}")
        if done.wait(min(SILENCE_SECONDS / 10, _pace.limit / 4)):
            return


def _behind(steps: Mapping[int, int]) -> str:
    """Which processes are at the lowest step."""
    least, most = min(steps.values()), max(steps.values())
    if least == most:
        return f"all processes are at step {least}" if len(steps) > 1 else f"it is at step {least}"
    slow = ", ".join(str(process) for process, step in sorted(steps.items()) if step == least)
    return f"process {slow} is behind, at step {least}, while others are at {most}"
