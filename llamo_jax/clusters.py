"""Where this process runs: which cluster, which of its processes this is, and which devices are its own."""

import importlib.util
import os
import re
from pathlib import Path

from jax._src import hardware_utils  # neither has a public name: which TPUs are on the bus,
from jax._src.clusters import ClusterEnv  # and the environments that JAX recognises

from llamo_jax.config import ConfigError

_PLUGINS = ("libtpu", "jax_cuda12_plugin", "jax_cuda13_plugin")
_DEVICE_FILES = ("accel[0-9]*", "nvidia[0-9]*")
_VARIABLES = {
    "CUDA_VISIBLE_DEVICES": ("", "-1", "NoDevFiles"),
    "NVIDIA_VISIBLE_DEVICES": ("", "none", "void"),
    "SLURM_GPUS_ON_NODE": ("", "0"),
    "TPU_WORKER_HOSTNAMES": ("",),
}
"""Signs of accelerators; of the variables, what they say where there is none."""


def find() -> tuple[str, int, int] | None:
    """Coordinator, number of processes and this one's number, as JAX finds them; None: there is one process.

    Raises ConfigError if JAX recognises a cluster that does not tell.
    """
    for environment in ClusterEnv._cluster_types:
        name = environment.__name__.removesuffix("Cluster")
        try:
            if environment.opt_in_only_method or not environment.is_env_present():
                continue
            processes = environment.get_process_count()
            if processes == 1:
                return None
            port = os.environ.get("JAX_COORDINATOR_PORT")
            address = environment.get_coordinator_address(timeout_secs=300, override_coordinator_port=port)
            return address, processes, environment.get_process_id()
        except Exception as error:  # metadata servers, Kubernetes' client and variables that are no numbers
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ConfigError(
                f"this looks like a cluster ({name}), but it does not tell about its processes ({reason}); give "
                "--coordinator_address, --num_processes and --process_id, or --num_processes=1 for this process alone"
            ) from None
    return None


def process_of_job(processes: int | None) -> int | None:
    """The number of this process beside a coordinator that is given: JAX_PROCESS_ID, or its place in a Kubernetes job.

    Of several jobs, as the slices of a JobSet, each counts its JOB_COMPLETION_INDEX from 0: JOB_INDEX and
    PROCESSES_IN_JOB, or on TPUs MEGASCALE_SLICE_ID and MEGASCALE_NUM_SLICES, tell them apart.
    """
    own = number("JAX_PROCESS_ID")
    if own is not None:
        return own
    place = number("JOB_COMPLETION_INDEX")
    job, in_job = number("JOB_INDEX"), number("PROCESSES_IN_JOB")
    if place is None or processes is None:
        return place
    if job is None and (slices := number("MEGASCALE_NUM_SLICES")):
        job, in_job = number("MEGASCALE_SLICE_ID"), processes // slices
    if job is None:
        return place
    if in_job is None:
        raise ConfigError("JOB_INDEX is set, so PROCESSES_IN_JOB must be, or the processes of two jobs have one number")
    return job * in_job + place


def local_gpus() -> list[int] | None:
    """The GPUs of this process among those that it sees; None: all of them.

    One process for each machine drives all of its GPUs. Several share them evenly, unless the launcher has given each
    of them its own already. JAX_LOCAL_DEVICE_IDS overrules, in JAX.
    """
    rank, count = _place_on_machine()
    visible = _visible_gpus()
    on_machine = number("SLURM_GPUS_ON_NODE") or visible
    if count == 1 or "JAX_LOCAL_DEVICE_IDS" in os.environ or visible < on_machine or visible < count:
        return None
    if visible % count:
        raise ConfigError(f"{count} processes cannot share the {visible} GPUs of a machine evenly")
    each = visible // count
    return list(range(rank * each, (rank + 1) * each))


def accelerator_signs() -> list[str]:
    """What says that this machine has an accelerator: installed plugins, device files, a launcher's variables."""
    signs = [f"{name} is installed" for name in _PLUGINS if importlib.util.find_spec(name)]
    signs += [f"/dev/{path.name}" for pattern in _DEVICE_FILES for path in sorted(Path("/dev").glob(pattern))[:1]]
    signs += [f"{chips} TPU chips on the PCI bus" for chips in [_tpu_chips()] if chips]
    signs += [
        f"{name}={os.environ[name]}" for name, none in _VARIABLES.items() if os.environ.get(name) not in (None, *none)
    ]
    return signs


def number(name: str) -> int | None:
    """The number in a variable, if it is set; raises ConfigError if it is none."""
    value = os.environ.get(name)
    try:
        return None if value is None else int(value)
    except ValueError:
        raise ConfigError(f"{name}={value!r} is not a number") from None


def _place_on_machine() -> tuple[int, int]:
    """The number of this process among those that a launcher has started on this machine, and how many these are."""
    if "SLURM_PROCID" in os.environ:
        tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE") or os.environ.get("SLURM_TASKS_PER_NODE") or "1"
        counts = [  # such as "2(x3),1"
            int(count) for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", tasks) for _ in range(int(times or 1))
        ]
        node = number("SLURM_NODEID") or 0
        return number("SLURM_LOCALID") or 0, counts[min(node, len(counts) - 1)]
    return number("OMPI_COMM_WORLD_LOCAL_RANK") or 0, number("OMPI_COMM_WORLD_LOCAL_SIZE") or 1


def _visible_gpus() -> int:
    """How many GPUs of NVIDIA this process sees, without starting their driver."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return len([name for name in chosen.split(",") if name.strip()])
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def _tpu_chips() -> int:
    """How many there are on the bus: of v5e, v5p and v6e there is no device file that says TPU."""
    return hardware_utils.num_available_tpu_chips_and_device_id()[0]
