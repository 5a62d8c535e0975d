"""Several processes that train one model: how they find each other, and what only one of them does."""

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax._src.distributed import global_state  # the key-value store has no public name
from jax.experimental import multihost_utils

from llamo_jax.config import ConfigError

_HEARTBEATS = "llamo_jax/heartbeats"

COMMON = 64
"""Numbers that processes compare at a time."""

SILENCE_SECONDS = 20
"""After so long without a heartbeat, a process counts as lost and the others stop."""


def initialize(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Connects this process to the others, where the arguments or the environment say that there are others.

    coordinator: host:port of the process with number 0; processes: how many there are; process: this one's number.
    Without arguments: JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, Slurm, and TPU pods are looked
    for. Call it before anything else of JAX. Raises ConfigError if the three do not come together, or nobody answers.
    """
    environment = os.environ
    coordinator = coordinator or environment.get("JAX_COORDINATOR_ADDRESS")
    if coordinator is not None:
        if processes is None:
            processes = _number("JAX_NUM_PROCESSES")
        if process is None:
            process = _number("JAX_PROCESS_ID", "JOB_COMPLETION_INDEX")
    given = (coordinator, processes, process)
    if any(value is None for value in given) and any(value is not None for value in given):
        raise ConfigError(
            "several processes need all of --coordinator_address, --num_processes and --process_id "
            "(or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID)"
        )
    if coordinator is None and not _in_cluster():
        return
    try:
        # twice ours: JAX itself aborts the process, with a page of text, if it is the first to notice
        jax.distributed.initialize(*given, heartbeat_timeout_seconds=2 * SILENCE_SECONDS)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"the processes do not find each other: {str(error).strip().splitlines()[0]}") from None


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


def common(numbers: Sequence[int]) -> list[int]:
    """The first COMMON numbers that every process has, in this one's order; all of them must ask."""
    if jax.process_count() == 1:
        return list(numbers)
    padded = np.full(COMMON, -1, np.int64)
    padded[: len(numbers[:COMMON])] = numbers[:COMMON]
    everywhere = set.intersection(*map(set, np.asarray(multihost_utils.process_allgather(padded)).tolist()))
    return [number for number in numbers if number in everywhere]


@contextlib.contextmanager
def watched(stop: Callable[[str], NoReturn]) -> Iterator[None]:
    """Calls `stop` with a message, from another thread, when a process is lost: it must end this process at once.

    The computations of the remaining ones would wait for it forever.
    """
    if jax.process_count() == 1:
        yield
        return
    done = threading.Event()
    watch = threading.Thread(target=_watch, args=(done, stop), daemon=True)
    watch.start()
    try:
        yield
        wait("done")  # nobody leaves while others still listen for heartbeats
    except jax.errors.JaxRuntimeError:
        watch.join(2 * SILENCE_SECONDS)  # was it because of a lost process? then this does not return
        raise
    finally:
        done.set()


def _watch(done: threading.Event, stop: Callable[[str], NoReturn]) -> None:
    """Sends heartbeats through JAX's coordinator, and listens for those of the others."""
    client: Any = global_state.client
    mine, count = jax.process_index(), jax.process_count()
    heard = {process: ("", time.monotonic()) for process in range(count) if process != mine}
    for number in itertools.count():
        try:
            client.key_value_set(f"{_HEARTBEATS}/{mine}", str(number), allow_overwrite=True)
            beats = {int(name.rpartition("/")[2]): beat for name, beat in client.key_value_dir_get(_HEARTBEATS)}
        except Exception as error:  # the coordinator lives in process 0; its client raises several types
            if not done.is_set():
                stop(f"process {mine} of {count} stops: process 0 is gone ({str(error).splitlines()[0][:120]})")
            return
        now = time.monotonic()
        for process, (last, since) in heard.items():
            beat_of = beats.get(process, "")
            if beat_of != last:
                heard[process] = (beat_of, now)
            elif now - since > SILENCE_SECONDS and not done.is_set():
                stop(
                    f"process {mine} of {count} stops: process {process} has sent no heartbeat for {now - since:.0f} s"
                )
        if done.wait(SILENCE_SECONDS / 10):
            return


def _number(*names: str) -> int | None:
    """The first of these variables that is set; raises ConfigError if it is no number."""
    for name in names:
        value = os.environ.get(name)
        if value is not None:
            try:
                return int(value)
            except ValueError:
                raise ConfigError(f"{name}={value!r} is not a number") from None
    return None


def _in_cluster() -> bool:
    """Whether JAX will find other processes by itself: several tasks of Slurm, or a TPU of more than one host."""
    environment = os.environ
    if "SLURM_PROCID" in environment:
        return int(environment.get("SLURM_NTASKS", "1")) > 1
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES") or ""
    if "," in hosts or "MEGASCALE_COORDINATOR_ADDRESS" in environment:
        return True
    # a TPU VM of Google Cloud: JAX asks its metadata server
    return "TPU_SKIP_MDS_QUERY" not in environment and any(Path("/dev").glob("accel[0-9]*"))
