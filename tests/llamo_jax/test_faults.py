"""What goes wrong in long runs: damaged checkpoints, full disks, losses that are not finite, kills at any moment."""

import contextlib
import dataclasses
import json
import multiprocessing
import random
import resource
import shutil
import signal
import time
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from configs import stage1, stage2
from data_pipeline import storage
from data_pipeline.errors import DataError
from data_pipeline.loader import BatchLoader
from data_pipeline.tokenizer import train_tokenizer
from llamo_jax import runs, sharding
from llamo_jax.config import ConfigError, MeshConfig
from llamo_jax.training import checkpoints, loop, workdir
from llamo_jax.training.step import TrainState, empty_log, make_train_step
from llamo_jax.training.trainable import updates
from tests import helpers
from tests.llamo_jax.test_training import losses, small_run, stacked, start


def state_at(step: int) -> TrainState:
    """Some 3 MB of arrays, sharded."""
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=4, tensor=1))
    place = NamedSharding(mesh, PartitionSpec("fsdp"))

    def array(seed: int) -> jax.Array:
        return jax.device_put(np.random.default_rng((step, seed)).normal(size=(512, 512)).astype(np.float32), place)

    everywhere = sharding.replicated(mesh)
    log = jax.device_put(empty_log(), everywhere)
    return TrainState(
        jax.device_put(np.int32(step), everywhere), {"w": array(0)}, {"s": array(1)}, {"m": {"w": array(2)}}, log
    )


def abstract(state: TrainState) -> TrainState:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def assert_equal(a: TrainState, b: TrainState) -> None:
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


def data_files(folder: Path) -> list[Path]:
    """Files of a checkpoint that hold array data."""
    return [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 100_000]


def flip(folder: Path) -> None:
    path = data_files(folder)[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def truncate(folder: Path) -> None:
    path = data_files(folder)[0]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize("damage", [flip, truncate, empty])
def test_a_damaged_checkpoint_is_named_and_skipped(damage, tmp_path, caplog):
    with checkpoints.Checkpoints(tmp_path, "a run") as saved:
        for step in (2, 4):
            saved.save(state_at(step))
    damage(tmp_path / "checkpoints" / "4")
    with checkpoints.Checkpoints(tmp_path, "a run") as saved:
        found = saved.restore(abstract(state_at(4)))
        assert_equal(found, state_at(2))
        assert "skipping a damaged checkpoint" in caplog.text
        assert "step 4: " in caplog.text
        assert (tmp_path / "damaged_checkpoints" / "4").is_dir()
        save_whole(saved, 3)  # the run goes on, and comes to that step again
        assert_equal(saved.restore(abstract(state_at(3))), state_at(3))
        saved.save(state_at(4))
    with checkpoints.Checkpoints(tmp_path, "a run") as saved:
        assert_equal(saved.restore(abstract(state_at(4))), state_at(4))
        assert saved.steps() == [4, 3]
    for step in (3, 4):
        damage(tmp_path / "checkpoints" / str(step))
    with (
        checkpoints.Checkpoints(tmp_path, "a run") as saved,
        pytest.raises(workdir.CheckpointError, match=r"no checkpoint in .* loads \(step 4: .*; step 3: "),
    ):
        saved.restore(abstract(state_at(4)))


def test_weights_of_a_damaged_checkpoint_are_refused(tmp_path):
    state = state_at(2)
    with checkpoints.Checkpoints(tmp_path, "a run") as saved:
        saved.save(state)
    specs = {
        name: spec for part in (abstract(state).trained, abstract(state).statistics) for name, spec in part.items()
    }
    with checkpoints.Checkpoints(tmp_path, "a run") as saved:
        loaded = saved.restore_weights({**specs, "w": specs["w"].update(dtype=jnp.bfloat16)})
        assert loaded.arrays["w"].dtype == jnp.bfloat16
        np.testing.assert_array_equal(loaded.arrays["s"], state.statistics["s"])
        for path in data_files(tmp_path / "checkpoints" / "2"):
            content = bytearray(path.read_bytes())
            content[2000::4000] = bytes(x ^ 1 for x in content[2000::4000])
            path.write_bytes(content)
        with pytest.raises(workdir.CheckpointError, match=r"step 2 .* does not load"):
            saved.restore_weights(specs)


def save_whole(saved: checkpoints.Checkpoints, step: int) -> None:
    saved.save(state_at(step))
    saved.finish()


@contextlib.contextmanager
def full_disk():
    """Files may not grow beyond 100 kB, which the operating system tells as it does of a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_best_is_one_that_is_there(tmp_path):
    """Not the one of a lower loss that could not be written: the real one would be removed for its sake."""
    with checkpoints.Checkpoints(tmp_path, "a run", keep=1, keep_best=True, on_save_failure="continue") as saved:
        saved.save(state_at(2), 1.05)
        saved.finish()
        with full_disk():
            saved.save(state_at(4), 1.0)
            saved.finish()
        assert saved.failed == 4
        for step, loss in ((6, 1.1), (8, 1.2)):
            saved.save(state_at(step), loss)
            saved.finish()
        assert saved.steps() == [8, 2]
        assert saved.best() == (2, 1.05)


def test_saving_asks_nobody_whether_to_stop(tmp_path, monkeypatch):
    """JAX knows one count of questions, and training's own is it: see preemption."""
    asked: list[int] = []
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", lambda step: bool(asked.append(step)))
    with checkpoints.Checkpoints(tmp_path, "a run") as saved:
        save_whole(saved, 2)
        save_whole(saved, 4)
        assert saved.steps() == [4, 2]
    assert asked == []


@pytest.mark.parametrize("policy", ["stop", "continue"])
def test_a_full_disk_keeps_the_old_checkpoint(policy, tmp_path, caplog):
    with checkpoints.Checkpoints(tmp_path, "a run", on_save_failure=policy) as saved:
        save_whole(saved, 2)
        with full_disk():
            if policy == "stop":
                with pytest.raises(workdir.CheckpointError, match=r"step 4 cannot be written.*step 2 is still"):
                    save_whole(saved, 4)
            else:
                save_whole(saved, 4)
                assert "checkpoint of step 4 cannot be written" in caplog.text
                assert "the one of step 2 is still there" in caplog.text
                assert saved.failed == 4
                assert saved.on_disk() == "the newest checkpoint is of step 2"
        if policy == "continue":
            save_whole(saved, 6)
            assert saved.failed is None
    with checkpoints.Checkpoints(tmp_path, "a run") as saved:
        expected = 6 if policy == "continue" else 2
        assert_equal(saved.restore(abstract(state_at(2))), state_at(expected))


def test_a_step_that_is_not_finite_changes_nothing():
    _, step, state, frozen = start(helpers.model_config(), ((".*", True),))
    batches = stacked(helpers.batch())
    state, _ = step(state, frozen, batches)
    before = jax.device_get(state)
    name = "language_model/norm/scale"
    broken = state._replace(trained={**state.trained, name: state.trained[name].at[3].set(jnp.nan)})
    after, metrics = step(broken, frozen, batches)
    assert int(after.step) == 2
    assert int(metrics["skipped_in_a_row"]) == 1
    assert not np.isfinite(metrics["loss"])
    for part in ("statistics", "optimizer"):
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(getattr(after, part)), getattr(before, part))
    for other, array in before.trained.items():
        if other != name:
            np.testing.assert_array_equal(after.trained[other], array)
    assert int(after.log["skipped"]) == 1
    assert int(after.log["steps"]) == 1
    assert updates(after.optimizer) == updates(before.optimizer) == 1
    np.testing.assert_array_equal(after.log["loss"], before.log["loss"])
    healed = after._replace(trained={**after.trained, name: jnp.asarray(before.trained[name])})
    healed, metrics = step(healed, frozen, batches)
    assert int(metrics["skipped_in_a_row"]) == 0
    assert int(healed.log["skipped"]) == 1
    assert updates(healed.optimizer) == 2


def test_a_gradient_that_is_not_finite_changes_nothing():
    """Behind a loss that is: the square root of nothing."""
    definition, _, state, frozen = start(helpers.model_config(), ((".*", True),))

    def rooted(model, batch, *, batch_statistics=False, dropout_key=None):
        return jnp.sum(jnp.sqrt(0 * model.language_model.norm.scale[...])), jnp.int32(1)

    optimizer = optax.adam(0.1)
    state = state._replace(optimizer=optimizer.init(state.trained))
    before = jax.device_get(state.trained)
    step = make_train_step(definition, optimizer, batch_statistics=False, seed=0, objective=rooted)
    after, metrics = step(state, frozen, stacked(helpers.batch()))
    assert float(metrics["loss"]) == 0
    assert not np.isfinite(metrics["grad_norm"])
    assert int(after.log["skipped"]) == 1
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(after.trained), before)


def test_what_skipped_steps_read_is_named_batch_by_batch(tmp_path):
    config = runs.read_config(stage1.get_config("tiny"))
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, accumulate=3, max_nonfinite_steps=2))
    loader = types.SimpleNamespace(training_rows=lambda seed, batch: [[0, [batch]]])
    guard = loop._NonFiniteGuard(config, storage.as_path(tmp_path), loader)
    for step, skipped in ((4, 0), (5, 1), (6, 2)):
        guard.check(step, np.int32(skipped))
    with pytest.raises(FloatingPointError, match="not finite in 2 steps in a row, up to step 6"):
        guard.finish()
    steps = json.loads((tmp_path / "nonfinite.json").read_text())["steps"]
    assert [step["step"] for step in steps] == [5, 6]
    assert [[batch["batch"] for batch in step["batches"]] for step in steps] == [[12, 13, 14], [15, 16, 17]]
    assert steps[1]["batches"][2]["rows"] == [[0, [17]]]


def test_a_run_whose_loss_stays_infinite_stops_and_names_its_data(few, tmp_path):
    config = small_run(few)
    train = dataclasses.replace(config.train, steps=30, learning_rate=1e30, clip=None, max_nonfinite_steps=3)
    with pytest.raises(FloatingPointError, match=r"not finite in 3 steps in a row.*nonfinite\.json"):
        runs.train(dataclasses.replace(config, train=train), tmp_path / "run")
    found = json.loads((tmp_path / "run" / "nonfinite.json").read_text())
    assert found["source"] == str(few / "description")
    assert len(found["steps"]) == 3
    numbers = [entry["step"] for entry in found["steps"]]
    assert numbers == list(range(numbers[0], numbers[0] + 3))
    (batch,) = found["steps"][0]["batches"]
    assert batch["batch"] == numbers[0] - 1
    assert len(batch["rows"]) == config.data.rows
    assert all(source == 0 and conversations for source, conversations in batch["rows"])
    skipped = sum(line.get("skipped_steps", 0) for line in map(json.loads, lines(tmp_path / "run")))
    assert skipped > 0


def test_sigterm_ends_a_run_after_a_checkpoint(few, tmp_path, monkeypatch, capsys):
    """And the run that goes on from there logs what an undisturbed one does, sums of the cut line included."""
    config = small_run(few)
    runs.train(config, tmp_path / "whole")

    def terminated(self, *arguments):
        for number, batch in enumerate(training_batches(self, *arguments)):
            if number == 3:
                signal.raise_signal(signal.SIGTERM)
            yield batch

    training_batches = BatchLoader.training_batches
    with monkeypatch.context() as patch:
        patch.setattr(BatchLoader, "training_batches", terminated)
        state = runs.train(config, tmp_path / "stopped")
    step = int(state.step)
    assert 3 <= step <= 5
    assert (
        f"stopped after step {step} of 6, as requested; the newest checkpoint is of step {step}"
        in capsys.readouterr().out
    )
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    runs.train(config, tmp_path / "stopped")
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")


def train_with(values: dict, workdir: Path) -> None:
    """In a process of its own."""
    runs.train(runs.read_config(values), workdir)


def test_twenty_kills_at_random_moments_change_nothing(few, tmp_path, monkeypatch):
    """SIGKILL while starting, stepping, saving: the parameters at the end are those of an undisturbed run."""
    values = stage1.get_config("tiny")
    values.data.source = str(few / "description")
    values.model.language_model.num_layers = 1
    values.train.samples = 0
    values.train.update({"steps": 40, "log_every": 2, "eval_every": 1000, "checkpoint_every": 2, "warmup_steps": 2})
    values = values.to_dict()
    # its own: a process that is killed may leave half of a program there
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    monkeypatch.setenv("XLA_FLAGS", "")  # one device; compiled once, and then well: most of the time are steps
    context = multiprocessing.get_context("forkserver")
    # children start without importing
    context.set_forkserver_preload(["tensorflow", "transformers.models.auto.tokenization_auto", __name__])

    def child(workdir: Path) -> multiprocessing.process.BaseProcess:
        process = context.Process(target=train_with, args=(values, workdir))
        process.start()
        return process

    whole = child(tmp_path / "whole")
    whole.join(1200)
    assert whole.exitcode == 0
    rng = random.Random(0)
    reached = []
    startup = 6.0  # seconds, until one was measured
    for attempt in range(20):
        process = child(tmp_path / "killed")
        begin = time.monotonic()
        if attempt % 5 > 2:  # else anywhere, mostly while starting
            since = len(lines(tmp_path / "killed"))
            end = time.monotonic() + 120
            while process.is_alive() and time.monotonic() < end and len(lines(tmp_path / "killed")) <= since:
                time.sleep(0.01)
            startup = min(startup, time.monotonic() - begin)
            time.sleep(rng.uniform(0, 0.6))
        else:
            time.sleep(rng.uniform(0, startup))
        process.kill()
        process.join()
        reached.append(len(lines(tmp_path / "killed")))
    assert 0 < reached[-1] < 20  # of 20 lines
    last = child(tmp_path / "killed")
    last.join(1200)
    assert last.exitcode == 0
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    states = []
    for name in ("whole", "killed"):
        with checkpoints.Checkpoints(tmp_path / name) as saved:
            names = saved.steps()
            assert names[0] == 40
            states.append(saved._checkpointer.load_checkpointables(40)["state"])
    jax.tree.map(np.testing.assert_array_equal, *states)


def lines(workdir: Path) -> list[str]:
    path = workdir / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def test_a_reader_changes_nothing_on_the_disk(tmp_path):
    """Not even what looks like the leftover of a killed save: it may be a save that is running."""
    with checkpoints.Checkpoints(tmp_path, "a run") as saved:
        saved.save(state_at(2))
    running = tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp"
    running.mkdir()
    (running / "data").write_text("half of it")

    def everything():
        return {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))}

    before = everything()
    specs = {**abstract(state_at(2)).trained, **abstract(state_at(2)).statistics}
    with checkpoints.Checkpoints(tmp_path) as reader:
        assert reader.steps() == [2]
        np.testing.assert_array_equal(reader.restore_weights(specs).arrays["w"], state_at(2).trained["w"])
    time.sleep(1)  # Orbax cleans in the background
    assert everything() == before
    with pytest.raises(workdir.CheckpointError, match="holds no checkpoint"):
        checkpoints.Checkpoints(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_a_checkpoint_of_another_run_or_step_is_refused(tmp_path):
    for name in ("ours", "theirs"):
        with checkpoints.Checkpoints(tmp_path / name, name) as saved:
            saved.save(state_at(2))
            saved.save(state_at(4))
    shutil.rmtree(tmp_path / "ours" / "checkpoints" / "4")
    shutil.copytree(tmp_path / "theirs" / "checkpoints" / "4", tmp_path / "ours" / "checkpoints" / "4")
    with (
        checkpoints.Checkpoints(tmp_path / "ours", "ours") as saved,
        pytest.raises(workdir.CheckpointError, match=r"step 4 .* belongs to another run \(theirs, not ours\)"),
    ):
        saved.restore(abstract(state_at(4)))
    # a state of another step than its folder's name is damaged
    shutil.rmtree(tmp_path / "ours" / "checkpoints" / "4")
    shutil.copytree(tmp_path / "ours" / "checkpoints" / "2", tmp_path / "ours" / "checkpoints" / "3")
    with checkpoints.Checkpoints(tmp_path / "ours", "ours") as saved:
        assert int(saved.restore(abstract(state_at(4))).step) == 2
    assert (tmp_path / "ours" / "damaged_checkpoints" / "3").is_dir()


def test_a_run_whose_end_is_not_saved_says_so(few, tmp_path, monkeypatch):
    """on_save_failure=continue goes on, but its last word and its exit status are about what is on the disk."""
    config = small_run(few)
    train = dataclasses.replace(config.train, on_save_failure="continue")

    def fail(self, step, *arguments, **options):
        if step == 6:
            raise OSError("No space left on device")
        return save(self, step, *arguments, **options)

    save = checkpoints.ocp.training.Checkpointer.save_checkpointables_async
    monkeypatch.setattr(checkpoints.ocp.training.Checkpointer, "save_checkpointables_async", fail)
    with pytest.raises(workdir.CheckpointError, match=r"step 6 of 6 was reached, but not saved; .* is of step 4"):
        runs.train(dataclasses.replace(config, train=train), tmp_path / "run")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("sample_smiles", ("C1CC",), "unclosed ring"),
        ("model.lora.rank", 4, None),
        ("train.trainable", (("decoder/.*", True), (".*", False)), "'decoder/.*' matches no parameter"),
    ],
)
def test_what_cannot_be_run_is_said_before_data_are_read(few, tmp_path, monkeypatch, path, value, message):
    def read_data(*arguments):
        raise AssertionError("too late")

    monkeypatch.setattr(runs, "read_data", read_data)
    config = small_run(few)
    if message is None:
        config = replaced(config, "model.lora.targets", ("language_model/layers/queries",))
        message = "matches no linear map; there are graph_encoder/layers/hidden"
    with pytest.raises(ValueError, match=message):
        runs.train(replaced(config, path, value), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_address_is_no_folder_here(few, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="cannot create gs://no-such-bucket/run"):
        runs.train(small_run(few), "gs://no-such-bucket/run")
    assert list(tmp_path.iterdir()) == []


def test_one_run_works_in_a_folder(few, tmp_path):
    config = small_run(few)
    (tmp_path / "run").mkdir()
    with storage.locked(tmp_path / "run"), pytest.raises(DataError, match="another process is working in"):
        runs.train(config, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [storage.LOCK]


CHANGES = {
    "seed": ("seed", 1),
    "accumulate": ("train.accumulate", 2),
    "learning rate": ("train.learning_rate", 1e-3),
    "rows": ("data.rows", 16),
    "prompt": ("prompt.show_smiles", False),
    "model": ("model.projector.share_level_attention", True),
    "clip": ("train.clip", None),
    "trainable": ("train.train_token_embedding", True),
}


def replaced(config, path, value):
    """A configuration with one field changed."""
    name, _, rest = path.partition(".")
    return dataclasses.replace(config, **{name: replaced(getattr(config, name), rest, value) if rest else value})


def test_a_run_is_continued_only_as_itself(trained, few, tmp_path):
    """Whatever decides the result is compared before the folder is touched, and named."""
    folder = Path(shutil.copytree(trained, tmp_path / "run"))
    config = replaced(workdir.read_config(folder), "data.source", str(few / "description"))

    def everything():
        return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}

    before = everything()
    for path, value in CHANGES.values():
        with pytest.raises(ConfigError, match=rf"holds another run; what differs: .*config\.{path}="):
            runs.train(replaced(config, path, value), folder)
    with pytest.raises(ConfigError, match="what differs: the records in"):
        runs.train(replaced(config, "data.source", str(few / "instruction")), folder)
    other = tmp_path / "tokenizer"
    train_tokenizer(["another tokenizer's text"] * 9, 300).save(other)
    with pytest.raises(ConfigError, match="what differs: the tokenizer"):
        runs.train(replaced(config, "data.tokenizer", str(other)), folder)
    with pytest.raises(ConfigError, match=r"steps=1 is below the checkpoint of step 2"):
        runs.train(replaced(config, "train.steps", 1), folder)
    assert everything() == before
    # what may change does
    more = replaced(replaced(config, "train.steps", 4), "mesh.fsdp", 8)
    moved = tmp_path / "moved"
    shutil.copytree(few / "description", moved)
    state = runs.train(replaced(replaced(more, "data.source", str(moved)), "model.remat", "full"), folder)
    assert int(state.step) == 4
    assert json.loads((folder / "run.json").read_text()) == json.loads(before[folder / "run.json"])


def test_stage_2_is_continued_from_the_same_weights_only(few, tmp_path):
    runs.train(small_run(few), tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    config = small_run(few, stage2, init_from=str(tmp_path / "one"))
    runs.train(config, tmp_path / "stage2")
    with pytest.raises(ConfigError, match=r"config.init_from='.*other' \(there '.*one'\)"):
        runs.train(replaced(config, "init_from", str(tmp_path / "other")), tmp_path / "stage2")
    # moved together, the two still belong together
    (tmp_path / "moved").mkdir()
    for name in ("one", "stage2"):
        shutil.move(tmp_path / name, tmp_path / "moved" / name)
    moved = replaced(replaced(config, "init_from", str(tmp_path / "moved" / "one")), "train.steps", 8)
    assert int(runs.train(moved, tmp_path / "moved" / "stage2").step) == 8


def test_a_base_that_did_not_do_is_forgotten(few, tmp_path, monkeypatch):
    """A first start from weights that lack something leaves nothing behind that a second one, from others, meets."""
    runs.train(small_run(few), tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "lacking")
    load = checkpoints.load_weights

    def without_projector(folder, *arguments):
        found = load(folder, *arguments)
        kept = {name: x for name, x in found.arrays.items() if not name.startswith("graph_encoder/layers/out/kernel")}
        return found._replace(arrays=kept)

    config = small_run(few, stage2, init_from=str(tmp_path / "lacking"))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "load_weights", without_projector)
        with pytest.raises(ConfigError, match="would stay random, such as graph_encoder/layers/out/kernel"):
            runs.train(config, tmp_path / "two")
    assert not (tmp_path / "two" / "base.json").exists()
    runs.train(replaced(config, "init_from", str(tmp_path / "one")), tmp_path / "two")
    assert workdir.read_base(tmp_path / "two").folder == (tmp_path / "one").resolve()
    # a run that started from nothing does not get a base later
    with pytest.raises(ConfigError, match=r"config.init_from='.*one' .there ''"):
        runs.train(replaced(small_run(few), "init_from", str(tmp_path / "one")), tmp_path / "lacking")


def test_training_goes_on_without_room_for_samples(few, tmp_path, monkeypatch, caplog):
    def answer_records(self, records):
        raise ConfigError("no room for the cache")

    monkeypatch.setattr("llamo_jax.generation.generator.Generator.answer_records", answer_records)
    config = replaced(small_run(few), "sample_smiles", ("CCO",))
    assert int(runs.train(replaced(config, "train.steps", 2), tmp_path / "run").step) == 2
    assert "no sample answers: no room for the cache" in caplog.text


def test_processes_that_see_different_checkpoints_stop(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints.distributed, "all_agree", lambda holds: False)
    with (
        checkpoints.Checkpoints(tmp_path, "a run") as saved,
        pytest.raises(workdir.CheckpointError, match="see different checkpoints"),
    ):
        saved.restore(abstract(state_at(2)))


def test_a_start_that_failed_before_the_first_step_can_be_corrected(few, tmp_path):
    config = small_run(few)
    wrong = replaced(config, "train.trainable", (("language_model/.*", False), (".*", True)))
    with pytest.raises(ConfigError, match="would stay random"):
        runs.train(wrong, tmp_path / "run")
    assert int(runs.train(config, tmp_path / "run").step) == 6
