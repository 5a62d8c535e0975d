"""What a run tells of itself, and how it answers while it validates or stands still."""

import dataclasses
import json
import sys
import threading
import time
import types

import jax
import numpy as np
import pytest

from data_pipeline.loader import BatchLoader
from llamo_jax import distributed, runs, sharding
from llamo_jax.config import ConfigError
from llamo_jax.training import checkpoints, loop, metrics, workdir
from llamo_jax.training.config import Config, TrainConfig
from llamo_jax.training.flops import peak_flops
from llamo_jax.training.program import batch_shape, make_program
from llamo_jax.training.trainable import learning_rate_schedule
from tests import helpers
from tests.llamo_jax.test_training import small_run


def changed(config: Config, **train: object) -> Config:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **train))


class Tracker(types.ModuleType):
    """Stands for wandb or trackio: takes note of what it is told."""

    def __init__(self, name: str):
        super().__init__(name)
        self.__spec__ = types.SimpleNamespace()
        self.told: list = []

    def init(self, **options: object):
        self.told.append(("init", options))
        return self

    def log(self, values: dict, step: int) -> None:
        self.told.append(("log", step, values))

    def finish(self) -> None:
        self.told.append(("finish",))


def test_a_run_says_how_fast_it_is_and_where(few, tmp_path, monkeypatch, capsys):
    """Lines, sinks and a profile; the time left is known from the second step on."""
    wandb, trackio = Tracker("wandb"), Tracker("trackio")
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    config = changed(
        small_run(few), steps=4, eval_every=4, profile_steps=(2, 3), sinks=("tensorboard", "wandb", "trackio")
    )
    runs.train(config, tmp_path / "run")
    lines = helpers.json_lines(tmp_path / "run" / "metrics.jsonl")
    for line in lines:
        assert line["step_seconds"] > line["input_wait_seconds"] >= 0
        assert line["tokens_per_second"] > 0
        assert "mfu" not in line  # no data sheet tells a CPU's peak
    assert [line["step"] for line in lines] == [2, 4]
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))
    assert list((tmp_path / "run").glob("events.out.tfevents.*"))
    run_id = json.loads((tmp_path / "run" / "run.json").read_text())["run_id"]
    for tracker in (wandb, trackio):
        kind, options = tracker.told[0]
        assert (kind, options["project"], options["name"]) == ("init", "llamo_jax", f"run-{run_id[:8]}")
        assert options["config"]["train"]["steps"] == 4
        assert [(step, values["loss"]) for _, step, values in tracker.told[1:-1]] == [
            (line["step"], line["loss"]) for line in lines
        ]
        assert tracker.told[-1] == ("finish",)
    assert wandb.told[0][1]["id"] == run_id
    said = capsys.readouterr().out
    assert "1 process, 8 x cpu; mesh data=1 fsdp=8 tensor=1; 1 row per device" in said
    assert "profile of steps 2 to 3" in said


def test_a_sink_that_is_not_installed_is_named_at_once(few, tmp_path):
    with pytest.raises(ConfigError, match=r'sinks=wandb needs its library: pip install "llamo_jax\[wandb\]"'):
        runs.train(changed(small_run(few), sinks=("wandb",)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_validation_sees_some_batches_spread_over_the_split(few, monkeypatch):
    config = small_run(few)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, rows=1))
    mesh = sharding.single_device_mesh()
    _, data, _ = runs.read_data(config, mesh)
    everything = [np.asarray(batch.tokens) for batch in data.validation.evaluation_batches()]
    assert len(everything) > 3
    some = [np.asarray(batch.tokens) for batch in data.validation.evaluation_batches(None, 2)]
    for found, index in zip(some, (0, len(everything) // 2), strict=True):
        np.testing.assert_array_equal(found, everything[index])
    assert len(list(data.validation.evaluation_batches(None, 1000))) == len(everything)


def test_a_run_asked_to_stop_while_it_validates_stops_there(few, tmp_path, monkeypatch, capsys):
    """The step is saved, the unfinished validation is not written, and the run goes on."""
    asked = []
    batches = BatchLoader.evaluation_batches

    def stopping(self, *arguments):
        for batch in batches(self, *arguments):
            asked.append(1)
            if len(asked) == first + 1:
                signal_.append(1)
            yield batch

    signal_: list[int] = []
    config = changed(small_run(few), eval_every=2)
    mesh = sharding.make_mesh(config.mesh)
    first = len(list(runs.read_data(config, mesh)[1].validation.evaluation_batches()))  # before training
    monkeypatch.setattr(BatchLoader, "evaluation_batches", stopping)
    monkeypatch.setattr("llamo_jax.training.preemption.StopRequest.requested", lambda self: bool(signal_))
    state = runs.train(config, tmp_path / "run")
    assert int(state.step) == 2
    assert len(asked) == first + 1  # not one batch more
    assert "stopped after step 2 of 6, as requested; the newest checkpoint is of step 2" in capsys.readouterr().out
    (line,) = helpers.json_lines(tmp_path / "run" / "metrics.jsonl")
    assert "validation_loss" not in line
    signal_.clear()
    assert int(runs.train(config, tmp_path / "run").step) == 6
    lines = helpers.json_lines(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines if "validation_loss" in line] == [4, 6]


def test_the_last_validation_is_finished_whoever_asks(few, tmp_path, monkeypatch):
    """No later one would make up for it, and status 0 brings nobody back."""
    asked: list[int] = []
    evaluated = metrics.Validations.add  # comes after the validation
    monkeypatch.setattr(metrics.Validations, "add", lambda *a: asked.clear() or evaluated(*a))
    batches = BatchLoader.evaluation_batches

    def stopping(self, *arguments):
        for batch in batches(self, *arguments):
            asked.append(1)
            yield batch

    config = changed(small_run(few), steps=2, eval_every=2)
    monkeypatch.setattr("llamo_jax.training.preemption.StopRequest.requested", lambda self: len(asked) > before)
    mesh = sharding.make_mesh(config.mesh)
    before = len(list(runs.read_data(config, mesh)[1].validation.evaluation_batches()))
    monkeypatch.setattr(BatchLoader, "evaluation_batches", stopping)
    assert int(runs.train(config, tmp_path / "run").step) == 2
    (line,) = helpers.json_lines(tmp_path / "run" / "metrics.jsonl")
    assert line["validation_loss"] > 0


def test_a_line_after_a_stop_is_as_fast_as_its_steps(monkeypatch):
    """It counts the tokens of 18 steps of an earlier start as well, whose time nobody knows."""
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    progress = metrics.Progress(118, 200, unlogged=18)
    progress.compiled(119, None)
    clock[0] = 2.0
    found, _ = progress.measure(120, 20 * 1000)
    assert found["tokens_per_second"] == 500.0
    clock[0] = 42.0
    assert progress.measure(140, 20 * 1000)[0]["tokens_per_second"] == 500.0


def test_progress_counts_from_the_end_of_compiling(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    progress = metrics.Progress(10, 110)
    clock[0] = 60.0  # the first step: nearly all of it is compiling
    progress.compiled(11, None)
    with progress.waiting():
        clock[0] += 1.0
    clock[0] += 3.0
    found, left = progress.measure(15, 5000)  # five steps' tokens, of which four are timed
    assert found == {"tokens_per_second": 1000.0, "step_seconds": 1.0, "input_wait_seconds": 0.25}
    assert left == "0:01:35"
    with progress.pause():
        clock[0] += 15.0  # a validation: it does not slow the steps down, but it takes time
    clock[0] += 1.0
    found, left = progress.measure(20, 5000)
    assert found["tokens_per_second"] == 5000.0
    assert left == "0:03:20"  # 90 steps, at nine in 20 s
    first = metrics.Progress(0, 4)
    clock[0] += 8.0
    first.compiled(1, None)
    assert first.measure(1, 80) == ({}, "?")  # all of it was compiling
    clock[0] += 2.0
    assert first.measure(2, 80) == (
        {"tokens_per_second": 40.0, "step_seconds": 2.0, "input_wait_seconds": 0.0},
        "0:00:04",
    )


def test_utilisation_is_of_the_data_sheets_peak(few, monkeypatch):
    """Of two chips at 459 TFLOP/s each, with accumulation; memory where devices tell."""
    config = helpers.with_row(changed(small_run(few), accumulate=3))
    shape = batch_shape(config, 8)
    program = make_program(config, sharding.make_mesh(config.mesh))
    chip = types.SimpleNamespace(device_kind="TPU v5p", memory_stats=lambda: {"peak_bytes_in_use": 7})
    mesh = types.SimpleNamespace(devices=np.array([chip, chip]), size=2)
    used = metrics.Utilisation(config, shape, list(program.state.trained), mesh)
    positions = shape.rows * shape.row.tokens
    half, whole = (metrics.needed_flops(config.model, shape, program.state.trained, share) for share in (0.5, 1.0))
    monkeypatch.setattr(jax, "local_devices", lambda: [chip])
    found = used.measure(0.1, 3 * positions / 2)
    assert found == {"mfu": pytest.approx(3 * half / 0.1 / (2 * 459e12)), "peak_bytes": 7}
    assert whole > half


def test_who_is_behind_is_named():
    assert distributed._behind({0: 7, 1: 5, 2: 5}) == "process 1, 2 is behind, at step 5, while others are at 7"
    assert distributed._behind({0: 7, 1: 7}) == "all processes are at step 7"
    assert distributed._behind({0: 7}) == "it is at step 7"


def test_a_process_that_stands_still_is_stopped():
    said: list[str] = []
    stopped = threading.Event()

    def stop(message: str) -> None:
        said.append(message)
        stopped.set()
        distributed._pace.limit = float("inf")  # a real one ends the process

    with distributed.watched(stop), distributed.paced(0.4):
        distributed.moved(7)
        assert stopped.wait(600)
    assert said[0].startswith("process 0 of 1 stops: nothing was done for ")
    assert said[0].endswith("it is at step 7")


def test_loading_and_saving_are_no_stall(few, tmp_path, monkeypatch):
    """Each may take minutes: the time that counts as standing still begins anew after every one of them."""
    happened: list[str] = []

    def noted(owner: object, name: str) -> None:
        original = getattr(owner, name)

        def wrapped(*arguments: object):
            found = original(*arguments)
            happened.append(name)
            return found

        monkeypatch.setattr(owner, name, wrapped)

    noted(checkpoints.Checkpoints, "restore")
    noted(loop, "_starting_weights")
    noted(checkpoints.Checkpoints, "save")
    noted(distributed, "moved")
    settings = {"steps": 2, "log_every": 1, "eval_every": 2, "checkpoint_every": 1, "accumulate": 2}
    config = changed(small_run(few), **settings)
    runs.train(config, tmp_path / "run")
    data = runs.read_data(config, sharding.make_mesh(config.mesh))[1]
    schedule = learning_rate_schedule(config.train)
    for number, line in enumerate(map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())):
        assert line["learning_rate"] == pytest.approx(float(schedule(number)))  # of the step's own update
        assert line["epoch"] == pytest.approx(data.train.epochs(config.seed, 2 * (number + 1)))
    for name, times in (("restore", 1), ("_starting_weights", 1), ("save", 2)):
        places = [index for index, what in enumerate(happened) if what == name]
        assert len(places) == times
        assert all(happened[index + 1] == "moved" for index in places), happened


def test_a_line_has_means():
    log = {"loss": 6.0, "targets": 3, "tokens": 12, "grad_norm": 8.0, "steps": 4, "skipped": 0}
    assert loop._line(log) == {"loss": 2.0, "grad_norm": 2.0, "target_tokens": 3, "tokens": 12}
    # no loss of 0 where there is none
    nothing = dict.fromkeys(log, 0) | {"skipped": 4}
    assert loop._line(nothing) == {"target_tokens": 0, "tokens": 0, "skipped_steps": 4}
    told = loop._readable(8, 20, loop._line(nothing) | {"epoch": 0.5}, "0:01:00")
    assert told == "step      8/20  epoch 0.50  4 steps skipped (loss not finite)  0:01:00 left"


def test_peaks_are_those_of_the_whole_name():
    kinds = {"TPU v5 lite": 197e12, "TPU v5": 459e12, "TPU v6 lite": 918e12, "NVIDIA H100 80GB HBM3": 989e12, "x": None}
    assert {kind: peak_flops(types.SimpleNamespace(device_kind=kind)) for kind in kinds} == kinds


def test_what_decides_a_result_is_a_runs_identity():
    """Everything of an optimizer; a run that goes on with another weight decay is another run."""
    fields = {f"train.{field.name}" for field in dataclasses.fields(TrainConfig)}
    assert fields - set(workdir.MAY_CHANGE) == {
        f"train.{name}"
        for name in (
            *("objective", "accumulate", "schedule", "learning_rate", "final_learning_rate", "warmup_steps"),
            *("initial_learning_rate", "steps_per_epoch", "weight_decay", "decay", "adam_b1", "adam_b2", "clip"),
            *("trainable", "train_token_embedding"),
        )
    }
    assert {name for name in workdir.MAY_CHANGE if name.startswith("model.")} == {
        "model.attention", "model.remat", "model.loss_chunk",
    }  # fmt: skip
    assert {name for name in workdir.MAY_CHANGE if name.startswith("data.")} == {
        "data.source", "data.task", "data.tokenizer", "data.cache_dir", "data.rows_per_device",
    }  # fmt: skip
    assert not [name for name in workdir.MAY_CHANGE if name.startswith(("prompt", "seed"))]
