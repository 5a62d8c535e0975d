"""Several processes that train one model: how they find each other, and what only one of them does."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from llamo_jax.config import ConfigError


class LostProcessError(RuntimeError):
    """Another process of this run is gone, so this one cannot go on; the message says what was noticed."""


HEARTBEAT_SECONDS = 30
"""After so long without a sign of life, a process counts as dead and the others stop."""


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
        jax.distributed.initialize(*given, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"the processes do not find each other: {str(error).strip().splitlines()[0]}") from None


def is_main() -> bool:
    """Whether this is the process that writes and prints what all of them know."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Prints, once and not for every process."""
    if is_main():
        print(text, flush=True)


def wait(name: str) -> None:
    """Until all processes have come here; `name` is the same in all of them, and shown if they have not."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Turns the failure of a computation that several processes share into LostProcessError."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        raise LostProcessError(
            f"process {jax.process_index()} of {jax.process_count()} stops, since another one does not answer any more "
            f"({str(error).strip().splitlines()[0][:200]})"
        ) from error


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
