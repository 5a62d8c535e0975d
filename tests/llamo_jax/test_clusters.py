"""How processes find each other, in environments as clusters make them."""

import contextlib
import http.server
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from jax._src.clusters import cloud_tpu_cluster

from llamo_jax import clusters, distributed
from llamo_jax.config import ConfigError
from llamo_jax.training import preemption

ROOT = Path(__file__).resolve().parents[2]
SLURM = {
    "SLURM_JOB_ID": "70001",
    "SLURM_STEP_NODELIST": "node[007-010]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "2",
    "SLURM_STEP_TASKS_PER_NODE": "1(x4)",
    "SLURM_GPUS_ON_NODE": "8",
}
GPUS = {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}
MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
GKE = {"TPU_WORKER_HOSTNAMES": "127.0.0.1,127.0.0.2,127.0.0.3,127.0.0.4", "TPU_WORKER_ID": "1"}
MEGASCALE = {"MEGASCALE_COORDINATOR_ADDRESS": "127.0.0.9", "MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1"}


@pytest.fixture
def connected(monkeypatch):
    """What `initialize` gives to JAX, in an environment without any cluster; a function sets more variables."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "TPU_", "MEGASCALE_", "KUBERNETES_", "JOB_", "CUDA_VISIBLE")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    found = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *given, **settings: found.append((given, settings)))

    def connect(environment, *flags):
        found.clear()
        with monkeypatch.context() as context:
            for name, value in environment.items():
                context.setenv(name, value)
            distributed.initialize(*flags)
        if not found:
            return None
        ((given, settings),) = found
        # or JAX would look for itself, and under Slurm leave one GPU to each process
        assert settings["cluster_detection_method"] == "deactivate"
        return given, settings["local_device_ids"]

    return connect


@pytest.fixture
def tpu_vm(monkeypatch):
    """A machine of Cloud TPU, as far as JAX can see."""
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)


@contextlib.contextmanager
def metadata(**attributes: str):
    """Google Cloud's metadata server: its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            value = attributes.get(self.path.rpartition("/")[2].replace("-", "_"))
            self.send_response(404 if value is None else 200)
            self.end_headers()
            self.wfile.write((value or "").encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (SLURM | GPUS, (("node007:61809", 4, 2), None)),  # one process for each machine drives all of its GPUs
        (SLURM | GPUS | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
        # eight tasks on each of two machines, which see all GPUs: one for each; the same bound by Slurm
        (
            SLURM | GPUS | {"SLURM_NTASKS": "16", "SLURM_STEP_TASKS_PER_NODE": "8(x2)", "SLURM_LOCALID": "3"},
            (("node007:61809", 16, 2), [3]),
        ),
        (
            SLURM | {"CUDA_VISIBLE_DEVICES": "3", "SLURM_STEP_TASKS_PER_NODE": "8(x2)", "SLURM_LOCALID": "3"},
            (("node007:61809", 4, 2), None),
        ),
        # two tasks on the third machine share its eight
        (
            SLURM | GPUS | {"SLURM_STEP_TASKS_PER_NODE": "1(x2),2", "SLURM_LOCALID": "1"},
            (("node007:61809", 4, 2), [4, 5, 6, 7]),
        ),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),  # in a batch script, without srun
        (MPI | GPUS, (("10.96.0.1:62624", 4, 3), [4, 5, 6, 7])),
        (MPI | GPUS | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0"},
         (("10.96.0.1:62624", 4, 3), None)),
    ],
)  # fmt: skip
def test_launchers_are_recognised(connected, environment, expected):
    assert connected(environment) == expected


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, None),
        (GKE, (("127.0.0.1:8482", 4, 1), None)),
        (GKE | MEGASCALE, (("127.0.0.9:8482", 8, 5), None)),
    ],
)
def test_tpus_of_gke(connected, tpu_vm, environment, expected):
    assert connected(MEGASCALE | {"MEGASCALE_COORDINATOR_ADDRESS": "", "MEGASCALE_NUM_SLICES": "1",
                                  "MEGASCALE_SLICE_ID": "0"} | environment) == expected  # fmt: skip


@pytest.mark.parametrize(("workers", "expected"), [(1, None), (4, (("127.0.0.1:8482", 4, 2), None))])
def test_cloud_tpus_without_device_files(connected, tpu_vm, monkeypatch, workers, expected):
    """v5e, v5p and v6e show /dev/vfio/N: JAX asks the metadata server."""
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY")
    endpoints = ",".join(f"unknown:{n}:127.0.0.{n + 1}" for n in range(workers))
    with metadata(agent_worker_number="2", worker_network_endpoints=endpoints, tpu_env="ZONE: 'here'") as address:
        assert connected({"GCE_METADATA_IP": address}) == expected
        with pytest.raises(ConfigError, match=r"looks like a cluster \(GceTpu\).*--num_processes=1"):
            connected({"GCE_METADATA_IP": address, "MEGASCALE_NUM_SLICES": "two"})
        assert connected({"GCE_METADATA_IP": address}, None, 1) is None


def test_addresses_come_from_flags_or_the_environment(connected):
    given = {"JAX_COORDINATOR_ADDRESS": "host:2", "JAX_NUM_PROCESSES": "2"}
    assert connected({}, "host:1", 4, 2) == (("host:1", 4, 2), None)
    assert connected(given | {"JAX_PROCESS_ID": "1"}) == (("host:2", 2, 1), None)
    assert connected(given | {"JAX_PROCESS_ID": "1"}, None, 1) is None  # alone, whatever the launcher has set
    assert connected(given | {"JOB_COMPLETION_INDEX": "2"}, None, 1) is None
    with pytest.raises(ConfigError, match="need all of"):
        connected(given)
    with pytest.raises(ConfigError, match="need all of"):
        connected({}, None, 2)
    with pytest.raises(ConfigError, match="JAX_PROCESS_ID='x' is not a number"):
        connected(given | {"JAX_PROCESS_ID": "x"})
    # an explicit coordinator inside of Slurm: still all GPUs
    assert connected(SLURM | GPUS, "host:1", 4, 2) == (("host:1", 4, 2), None)


def test_processes_of_several_kubernetes_jobs_have_different_numbers(connected):
    """A JobSet of two jobs with four pods each; on TPUs, each job is a slice."""
    given = {"JAX_COORDINATOR_ADDRESS": "host:2", "JAX_NUM_PROCESSES": "8"}

    def number(job: dict[str, str], place: int) -> int:
        (_, _, process), _ = connected(given | job | {"JOB_COMPLETION_INDEX": str(place)})
        return process

    jobs = [{"JOB_INDEX": str(job), "PROCESSES_IN_JOB": "4"} for job in range(2)]
    slices = [{"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": str(job)} for job in range(2)]
    for group in (jobs, slices):
        assert [number(job, place) for job in group for place in range(4)] == list(range(8))
    with pytest.raises(ConfigError, match="PROCESSES_IN_JOB must be"):
        number({"JOB_INDEX": "1"}, 0)


def test_gpus_that_do_not_divide_are_refused(connected):
    with pytest.raises(ConfigError, match="3 processes cannot share the 8 GPUs of a machine evenly"):
        connected(MPI | GPUS | {"OMPI_COMM_WORLD_LOCAL_SIZE": "3"})


def test_all_processes_take_what_the_smallest_can(monkeypatch):
    """Rows that fit: where one process took more than another, their programs would not be the same."""
    assert distributed.least(7.0) == 7.0
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(distributed.multihost_utils, "process_allgather", lambda own: np.array([own, 12.0, 5.0]))
    assert distributed.least(7.0) == 5.0


def test_checkpoints_that_all_processes_see(monkeypatch):
    assert distributed.common([9, 6, 3]) == [9, 6, 3]
    monkeypatch.setattr(jax, "process_count", lambda: 2)

    def gathered(own):
        other = np.full_like(own, -1)
        other[:2] = 6, 3  # the newest is not there yet
        return np.stack([own, other])

    monkeypatch.setattr(distributed.multihost_utils, "process_allgather", gathered)
    assert distributed.common([9, 6, 3]) == [6, 3]
    assert distributed.common([9]) == []


def test_a_request_to_stop_stays(monkeypatch):
    """JAX tells of it at one call, which may be in the middle of a validation."""
    answers = iter([False, True, False, False])
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(preemption.multihost_utils, "reached_preemption_sync_point", lambda _: next(answers))
    request = preemption.StopRequest()
    assert [request.requested() for _ in range(4)] == [False, True, True, True]


def test_processes_that_are_not_connected_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(ConfigError, match="4 processes, but they are not connected"):
        distributed.check_devices()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, "launch.py: no accelerator was found, though one is expected here \\(.*"
                                          "CUDA_VISIBLE_DEVICES=0,1.*\\); .*JAX_PLATFORMS=cpu"),
        ({"CUDA_VISIBLE_DEVICES": "0,1", "JAX_PLATFORMS": "cpu"}, "data.source|is not a prepared dataset"),
    ],
)  # fmt: skip
def test_a_fallback_to_cpus_stops(variables, message, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    command = [sys.executable, str(ROOT / "launch.py"), "--config", str(ROOT / "configs/stage1.py"),
               "--config.data.source=/nowhere"]  # fmt: skip
    result = subprocess.run(
        command, cwd=tmp_path, env=environment | variables, capture_output=True, text=True, timeout=900
    )
    assert result.returncode == 1
    assert re.search(message, result.stderr.strip().splitlines()[-1])


def test_signs_of_accelerators(monkeypatch):
    for name in ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "SLURM_GPUS_ON_NODE", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(clusters, "_PLUGINS", ("jax", "no_such_plugin"))
    monkeypatch.setattr(clusters, "_DEVICE_FILES", ("nul?", "nothing*"))
    monkeypatch.setattr(clusters, "_tpu_chips", lambda: 4)
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "0")
    monkeypatch.setenv("NVIDIA_VISIBLE_DEVICES", "all")
    assert clusters.accelerator_signs() == [
        "jax is installed", "/dev/null", "4 TPU chips on the PCI bus", "NVIDIA_VISIBLE_DEVICES=all",
    ]  # fmt: skip
