"""Ctrl-C, in real processes: one line, nothing lost, nobody left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[1]
HANG = 600  # seconds


class Program:
    """A running program whose output is read line by line."""

    def __init__(self, *arguments: object, cwd: Path):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            [sys.executable, *map(str, arguments)], cwd=cwd, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells ignore it in the background
        )  # fmt: skip
        self.said = ""

    def until(self, text: str) -> None:
        """Reads until it has said this."""
        assert self.process.stdout is not None
        end = time.monotonic() + HANG
        while text not in self.said:
            piece = os.read(self.process.stdout.fileno(), 4096).decode()
            assert piece, self.said
            assert time.monotonic() < end
            self.said += piece

    def interrupt(self) -> None:
        """Ctrl-C, which a terminal sends to the whole group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self) -> int:
        """Its exit status, when all is read."""
        rest, _ = self.process.communicate(timeout=HANG)
        self.said += rest
        return self.process.returncode


def training(few: Path, workdir: Path, steps: int) -> list[str]:
    fields = {
        "data.source": few / "description",
        "data.rows": 8,
        "model.language_model.num_layers": 1,
        "train.steps": steps,
        "train.log_every": 2,
        "train.eval_every": 10_000,
        "train.checkpoint_every": 10_000,
        "train.samples": 0,
    }
    settings = [f"--config.{name}={value}" for name, value in fields.items()]
    return [
        str(ROOT / "launch.py"),
        "--config",
        str(ROOT / "configs" / "stage1.py"),
        "--workdir",
        str(workdir),
        *settings,
    ]


@pytest.mark.slow
def test_training_saves_and_goes_on(few, tmp_path):
    """Once: as SIGTERM. The same command goes on. Twice: at once, in one line."""
    run = Program(*training(few, tmp_path / "run", 1_000_000), cwd=tmp_path)
    run.until("step      2/")
    run.interrupt()
    assert run.end() == os.EX_TEMPFAIL
    assert "stopping after this step; press Ctrl-C again to stop at once" in run.said
    assert "as requested; the newest checkpoint is of step" in run.said
    assert "to continue: python " in run.said
    assert "Traceback" not in run.said
    step = max(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit())
    run = Program(*training(few, tmp_path / "run", 1_000_000), cwd=tmp_path)
    run.until(f"continuing from step {step} of")
    run.until("left\n")
    run.interrupt()
    run.interrupt()
    assert run.end() in (130, os.EX_TEMPFAIL)  # it may have stopped before the second one came
    assert "Traceback" not in run.said


@pytest.mark.slow
def test_preparation_leaves_no_one_behind_and_goes_on(tmp_path):
    table = tmp_path / "rows.csv"
    table.write_text("smiles,text\n" + "".join(f"{'C' * (1 + i % 60)}c1ccccc1,text {i}\n" for i in range(2_400)))
    command = ["-m", "data_pipeline.prepare", "--task", "description", "--input", table, "--output", tmp_path / "data",
               "--rows_per_shard", "64", "--num_workers", "2"]  # fmt: skip
    run = Program(*command, cwd=tmp_path)
    work = tmp_path / ".data.partial" / "work" / "shards"
    end = time.monotonic() + HANG
    while len(list(work.glob("*.json"))) < 2:
        assert run.process.poll() is None, run.end()
        assert time.monotonic() < end
        time.sleep(0.05)
    workers = psutil.Process(run.process.pid).children(recursive=True)
    assert workers
    run.interrupt()
    assert run.end() == 130
    assert run.said.count("data_pipeline.prepare: interrupted; run the same command again to continue") == 1
    assert "Traceback" not in run.said
    psutil.wait_procs(workers, timeout=HANG)
    assert not any(worker.is_running() for worker in workers)
    kept = {path.name for path in work.glob("*.json")}
    assert len(kept) >= 2
    assert not list((tmp_path / ".data.partial").rglob("*.tmp"))
    done = Program(*command, cwd=tmp_path)
    assert done.end() == 0
    assert "2,400 rows = 2,400 conversations + 0 rejected + 0 missing" in done.said
    assert not (tmp_path / ".data.partial").exists()
    assert sum(json.loads((tmp_path / "data" / "manifest.json").read_text())["splits"].values()) == 2_400


def test_an_argument_that_is_no_text_is_one_line(tmp_path):
    code = "import sys; sys.argv = ['x', '--input', 'a\\udce9.csv']; from data_pipeline import prepare; prepare.main()"
    run = Program("-c", code, cwd=tmp_path)
    assert run.end() == 1
    assert run.said == "data_pipeline.prepare: an argument is not valid UTF-8: 'a\\udce9.csv'\n"
