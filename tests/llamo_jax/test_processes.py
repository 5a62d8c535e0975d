"""Several real processes on this machine train one model; they die, stop and go on with other numbers of devices."""

import json
import multiprocessing
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from configs import evaluate, stage1
from llamo_jax import runs
from llamo_jax.evaluation import run
from llamo_jax.training.config import Config
from tests import helpers

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "model.language_model.num_layers": 1,
    "train.samples": 0,
    "train.steps": 10,
    "train.log_every": 1,
    "train.eval_every": 5,
    "train.checkpoint_every": 5,
    "train.keep_checkpoints": 100,
    "train.keep_best": False,
    # constant, and low: at once Adam amplifies the rounding of sums in another order
    "train.learning_rate": 2e-4,
    "train.final_learning_rate": 2e-4,
    "train.warmup_steps": 2,
}


def launch(arguments: list[str], environment: dict[str, str], log: Path) -> None:
    """What `python launch.py` does, in a child that was forked with its libraries loaded."""
    for number in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.chdir(ROOT)
    os.environ.update(environment)
    if "UNREADABLE_STEP" in environment:
        make_unreadable(int(environment["UNREADABLE_STEP"]))
    if "STALLED_BATCH" in environment:
        stall(int(environment["STALLED_BATCH"]))
    if "INTERLEAVED" in environment:
        interleave_devices()
    sys.argv = ["launch.py", *arguments]
    runpy.run_path("launch.py", run_name="__main__")


def make_unreadable(step: int) -> None:
    """In this process alone, the checkpoint of a step does not verify: as with a disk that one host reads wrongly."""
    from llamo_jax.training import checkpoints

    verify = checkpoints.Checkpoints._verify

    def failing(self, number, arrays):
        verify(self, number, arrays)
        if number == step:
            raise OSError("input/output error")

    checkpoints.Checkpoints._verify = failing


def stall(batch: int) -> None:
    """In this process alone, the rows of a batch are never read: as on a file system that hangs."""
    from data_pipeline.loader import BatchLoader

    places = BatchLoader._places

    def hanging(self, seed, step, positions):
        if step == batch:
            time.sleep(100_000)
        return places(self, seed, step, positions)

    BatchLoader._places = hanging


def interleave_devices() -> None:
    """Meshes take a device of each process in turn, as a torus does: no process has neighbouring batch shards."""
    from jax.experimental import mesh_utils

    create = mesh_utils.create_device_mesh

    def interleaved(sizes, devices, **settings):
        half = len(devices) // 2
        return create(sizes, [device for pair in zip(devices[:half], devices[half:], strict=True) for device in pair])

    mesh_utils.create_device_mesh = interleaved


class Job:
    """`launch.py` in several processes, by default with eight devices in all."""

    def __init__(
        self,
        workdir: Path,
        few: Path,
        processes: int,
        *,
        devices: int = 8,
        config: str = "stage1",
        unreadable: int | None = None,
        interleaved: bool = False,
        stalled: int | None = None,
        **settings: object,
    ):
        """unreadable: a step whose checkpoint the last process cannot read; interleaved: see interleave_devices;
        stalled: a batch for which the last process waits forever.
        """
        self.workdir = workdir
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        if config == "stage1":
            settings = SETTINGS | {"data.source": few / "description"} | settings
        command = ["--config", f"configs/{config}.py", "--workdir", str(workdir)]
        command += [f"--config.{key.replace('__', '.')}={value}" for key, value in settings.items()]
        environment = {"XLA_FLAGS": helpers.xla_flags(devices // processes)}
        if interleaved:
            environment["INTERLEAVED"] = "1"
        of_the_last = {
            name: str(value)
            for name, value in (("UNREADABLE_STEP", unreadable), ("STALLED_BATCH", stalled))
            if value is not None
        }
        context = multiprocessing.get_context("forkserver")
        # children start without importing; nothing of this touches a device
        context.set_forkserver_preload(["tensorflow", "transformers.models.auto.tokenization_auto", __name__])
        self.processes = []
        for number in range(processes):
            own = [f"--coordinator_address={address}", f"--num_processes={processes}", f"--process_id={number}"]
            log = workdir.parent / f"{workdir.name}.{number}.log"
            log.unlink(missing_ok=True)
            of_this = environment | (of_the_last if number == processes - 1 else {})
            process = context.Process(target=launch, args=(command + own, of_this, log))
            process.start()
            self.processes.append(process)

    def wait(self, seconds: float = 900) -> list[int | None]:
        """Exit codes of all processes; ends them if they take longer."""
        end = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.1, end - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
        return codes

    def until(self, step: int, seconds: float = 900) -> None:
        """Waits for the line of a step in metrics.jsonl."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if step in curve(self.workdir) or not all(process.is_alive() for process in self.processes):
                return
            time.sleep(0.05)
        self.wait(0)
        pytest.fail(f"no line of step {step}: {self.output(0)[-2000:]}")

    def output(self, number: int) -> str:
        """What a process has printed."""
        return (self.workdir.parent / f"{self.workdir.name}.{number}.log").read_text()


def curve(workdir: Path) -> dict[int, dict]:
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return {json.loads(line)["step"]: json.loads(line) for line in lines if line.endswith("\n")}


def assert_same_curve(ours: Path, theirs: Path) -> None:
    a, b = ({step: line for step, line in curve(workdir).items() if step <= 10} for workdir in (ours, theirs))
    assert list(a) == list(b) == list(range(1, 11))
    for name in ("loss", "validation_loss"):
        values = [[line[name] for line in lines.values() if name in line] for lines in (a, b)]
        np.testing.assert_allclose(*values, rtol=1e-5)
    assert [line["target_tokens"] for line in a.values()] == [line["target_tokens"] for line in b.values()]


def config_of(few: Path, **mesh: int) -> Config:
    """The configuration of a `Job`, for a run in this process."""
    config = stage1.get_config()
    config.update_from_flattened_dict({**SETTINGS, "data.source": str(few / "description")})
    config.mesh.update(mesh)
    return runs.read_config(config)


@pytest.fixture(scope="module")
def undisturbed(few, tmp_path_factory):
    """A run of one process, which everything else is compared with."""
    workdir = tmp_path_factory.mktemp("processes") / "one"
    runs.train(config_of(few), workdir)
    return workdir


@pytest.fixture(scope="module")
def survived(few, undisturbed):
    """The same run of two processes.

    The second is killed after the first checkpoint; started again, it is asked to stop after the second one.
    """
    workdir = undisturbed.parent / "two"
    job = Job(workdir, few, 2, interleaved=True, train__steps=100_000)
    job.until(7)
    job.processes[1].kill()
    assert job.wait() == [1, -signal.SIGKILL], job.output(0)
    lines = job.output(0).splitlines()
    assert "2 processes, 8 x cpu; mesh data=1 fsdp=8 tensor=1; 1 row per device" in lines
    assert lines[-1].startswith("launch.py: process 0 of 2 stops: process 1 has sent no heartbeat")
    assert "start all processes again to continue: python launch.py --config" in lines[-1]
    for checkpoint in (workdir / "checkpoints").iterdir():  # it may have come further than the second
        if checkpoint.name != "5":
            shutil.rmtree(checkpoint)
    # what it had come to is done again: lines of its first attempt must not be taken for that
    kept = [line for step, line in curve(workdir).items() if step <= 5]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    half = undisturbed.parent / "half"
    shutil.copytree(workdir, half)
    job = Job(workdir, few, 2, train__steps=100_000, train__checkpoint_every=1_000)
    job.until(10)
    job.processes[1].terminate()
    # not 0, or the scheduler would take the run for finished
    assert job.wait() == [os.EX_TEMPFAIL] * 2, job.output(0)
    assert "continuing from step 5 of 100000" in job.output(0)
    assert "stopped after step" not in job.output(1)  # one process speaks
    return job, half


def test_two_processes_train_like_one_and_survive_a_kill(undisturbed, survived):
    assert_same_curve(survived[0].workdir, undisturbed)


def test_sigterm_to_one_of_two_processes_saves_and_says_how_to_continue(survived):
    job, _ = survived
    end = job.output(0).splitlines()[-2:]
    step = int(end[0].split()[3])
    assert step >= 10
    assert end[0] == f"stopped after step {step} of 100000, as requested; the newest checkpoint is of step {step}"
    assert end[1].startswith("to continue: python launch.py --config configs/stage1.py --workdir")
    assert {path.name for path in (job.workdir / "checkpoints").iterdir()} == {"5", str(step)}


def test_a_checkpoint_of_two_processes_goes_on_in_one_on_another_mesh(few, undisturbed, survived, tmp_path):
    shutil.copytree(survived[1], tmp_path / "on")
    runs.train(config_of(few, data=1, fsdp=4, tensor=2), tmp_path / "on")
    assert_same_curve(tmp_path / "on", undisturbed)


def test_a_checkpoint_of_two_processes_goes_on_in_four_on_another_mesh(few, undisturbed, survived, tmp_path):
    shutil.copytree(survived[1], tmp_path / "on")
    job = Job(tmp_path / "on", few, 4, devices=4, mesh__data=2, mesh__fsdp=1, mesh__tensor=2)
    assert job.wait() == [0] * 4, job.output(0)
    assert_same_curve(tmp_path / "on", undisturbed)


def test_all_processes_restore_the_same_step(few, undisturbed, tmp_path):
    """One of two cannot read the newest checkpoint: both take the one before it, and the run comes out the same."""
    shutil.copytree(undisturbed, tmp_path / "on")
    job = Job(tmp_path / "on", few, 2, unreadable=10)
    assert job.wait() == [0, 0], job.output(0) + job.output(1)
    assert "continuing from step 5 of 10" in job.output(0)
    assert {path.name for path in (tmp_path / "on" / "checkpoints").iterdir()} == {"5", "10"}
    assert (tmp_path / "on" / "damaged_checkpoints" / "10").is_dir()
    assert_same_curve(tmp_path / "on", undisturbed)


def test_two_processes_answer_like_one(few, undisturbed, tmp_path):
    settings = {"checkpoint": str(undisturbed), "data": str(few / "description"), "graph_use": 4, "group_questions": 2}
    decoding = {"max_new_tokens": 12}
    job = Job(tmp_path / "two", few, 2, devices=2, config="evaluate", **settings, decoding__max_new_tokens=12)
    assert job.wait() == [0, 0], job.output(0)
    config = evaluate.get_config()
    config.update(settings | {"decoding": decoding})
    run.evaluate(run.read_config(config), tmp_path / "one")
    ours, theirs = (helpers.json_lines(tmp_path / name / "predictions.jsonl") for name in ("two", "one"))
    assert [row["index"] for row in ours] == list(range(20))
    for a, b in zip(ours, theirs, strict=True):
        assert a.pop("score") == pytest.approx(b.pop("score"), abs=1e-3)
        assert a == b
    ours, theirs = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("two", "one"))
    for name in ("other", "blank"):
        assert ours["graph_use"]["change"][name] == pytest.approx(theirs["graph_use"]["change"][name], abs=1e-4)
    del ours["graph_use"], theirs["graph_use"]
    assert ours.pop("group_questions") == pytest.approx(theirs.pop("group_questions"), abs=1e-4)
    assert ours == theirs


def test_a_process_that_stands_still_is_named(few, undisturbed):
    """The data of one of two never come: both stop, and say who is behind."""
    job = Job(undisturbed.parent / "still", few, 2, stalled=3, train__stall_seconds=60)
    assert job.wait() == [1, 1], job.output(0)
    for number in range(2):
        last = job.output(number).splitlines()[-1]
        assert re.match(
            rf"launch.py: process {number} of 2 stops: nothing was done for \d+ s; process 1 is behind, at step \d, "
            r"while others are at \d; start all processes again to continue: python launch.py",
            last,
        ), last


def test_wrong_processes_are_one_line():
    command = [sys.executable, "launch.py", "--config", "configs/stage1.py", "--num_processes=2"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith("launch.py: several processes need all of")
