"""What happens at every validation: sample answers, the best checkpoint, and the end of a run that gets no better."""

import itertools
import json
import math

import pytest

from configs import stage2
from data_pipeline import storage
from data_pipeline.records import read_records
from llamo_jax import distributed, runs, sharding
from llamo_jax.config import ConfigError
from llamo_jax.loading import load_generator
from llamo_jax.training import checkpoints, loop, workdir
from llamo_jax.training.metrics import Validations
from tests.llamo_jax.test_faults import abstract, replaced, state_at
from tests.llamo_jax.test_training import small_run


def answers(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def test_samples_are_validation_rows_at_every_validation(few, tmp_path):
    config = small_run(few, stage2)
    config = replaced(replaced(config, "train.samples", 2), "train.eval_every", 4)
    config = replaced(config, "init_from", "")
    config = replaced(config, "train.trainable", ((".*", True),))
    runs.train(config, tmp_path)
    rows = [record.conversation for record in read_records(few / "instruction", "validation")]
    expected = [(row.messages[-2].content, row.messages[-1].content, list(row.smiles)) for row in (rows[0], rows[10])]
    found = answers(tmp_path)
    assert [line["step"] for line in found] == [4, 4, 6, 6]
    assert [(line["question"], line["target"], line["smiles"]) for line in found] == 2 * expected
    # killed after its last checkpoint, and before its last samples; or after samples, and before their checkpoint
    storage.write_json_lines(tmp_path / "samples.jsonl", [*found[:2], *({**line, "step": 8} for line in found[:2])])
    runs.train(config, tmp_path)
    assert answers(tmp_path) == found
    runs.train(config, tmp_path)
    assert answers(tmp_path) == found


def test_the_best_checkpoint_is_kept_and_a_run_that_gets_worse_ends(few, tmp_path):
    config = small_run(few)
    for name, value in {
        "steps": 20, "eval_every": 2, "checkpoint_every": 20, "keep_checkpoints": 1, "early_stopping": 3,
        "warmup_steps": 300, "learning_rate": 1.0,  # growing with every step
    }.items():  # fmt: skip
        config = replaced(config, f"train.{name}", value)
    run = tmp_path / "run"
    state = runs.train(config, run)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["validation_loss"] for line in lines if "validation_loss" in line}
    best = min(losses, key=losses.get)
    assert int(state.step) == best + 6 < 20  # three validations in a row were no better
    assert runs.is_finished(config, run, state)
    data = runs.read_data(config, sharding.make_mesh(config.mesh))[1].train
    rows = [conversations for batch in range(4) for _, conversations in data.training_rows(config.seed, batch)]
    count = next(n for n in range(1, len(rows)) if len(set(itertools.chain(*rows[:n]))) == 80)  # rows of an epoch
    assert [line["epoch"] for line in lines] == pytest.approx([8 * step / count for step in losses])
    with checkpoints.Checkpoints(run) as saved:
        assert saved.steps() == [best + 6, best]
        assert saved.best() == (best, losses[best])
    digests = {name: load_generator(run / name)[1] for name in ("", "checkpoints/best", f"checkpoints/{best}")}
    assert digests["checkpoints/best"] == digests[f"checkpoints/{best}"] != digests[""]
    with pytest.raises(workdir.CheckpointError, match=f"holds steps {best}, {best + 6}, and not 4000"):
        load_generator(run / "checkpoints" / "4000")

    assert int(runs.train(config, run).step) == best + 6  # it has ended, and knows it
    assert int(runs.train(replaced(config, "train.early_stopping", 0), run).step) == 20
    # what began with the best one goes on from it, though the run has a newer one
    second = replaced(replaced(small_run(few), "init_from", str(run / "checkpoints" / "best")), "train.steps", 2)
    runs.train(second, tmp_path / "second")
    base = workdir.read_base(tmp_path / "second")
    assert (base.folder, base.step) == (run.resolve() / "checkpoints" / str(best), best)
    second = replaced(second, "train.steps", 4)
    with pytest.raises(ConfigError, match=r"config.init_from=.*checkpoints/20"):
        runs.train(replaced(second, "init_from", str(run / "checkpoints" / "20")), tmp_path / "second")
    assert int(runs.train(second, tmp_path / "second").step) == 4


def test_a_damaged_best_checkpoint_is_best_no_more(tmp_path):
    """What was set aside must not keep a later one from being kept."""
    with checkpoints.Checkpoints(tmp_path, "a run", keep=1, keep_best=True) as saved:

        def save(step, loss):
            saved.save(state_at(step), loss)
            saved.finish()

        save(2, 0.1)
        save(4, 0.5)
        assert saved.steps() == [4, 2]
        for path in (tmp_path / "checkpoints" / "4" / "state").rglob("*"):
            if path.is_file():
                path.write_bytes(b"")
    with checkpoints.Checkpoints(tmp_path, "a run", keep=1, keep_best=True) as saved:
        assert int(saved.restore(abstract(state_at(2))).step) == 2  # the best, and the only whole one
        saved._set_aside([2])
        for step, loss in ((6, 0.3), (8, 0.4)):
            saved.save(state_at(step), loss)
            saved.finish()
        assert saved.steps() == [8, 6]
        assert saved.best() == (6, 0.3)


def test_validations_in_a_row(tmp_path):
    found = Validations(tmp_path, 0)
    assert [found.add(step, loss) for step, loss in enumerate((1.0, 1.1, 0.9, 1.0))] == [True, False, True, False]
    assert (found.best, found.best_step, found.since) == (0.9, 2, 1)
    assert not found.ended(2)
    found.add(4, float("nan"))
    assert found.ended(2)
    assert not found.ended(0)


def test_a_validation_is_a_mean_over_targets():
    assert loop._mean([(10.0, 10), (30.0, 5)]) == pytest.approx(40 / 15)
    with pytest.raises(ConfigError, match=r"config\.train\.objective=words has nothing to learn in the validation"):
        loop._mean([(0.0, 0), (0.0, 0)], "words")


def test_all_processes_have_the_validations_of_the_first(tmp_path, monkeypatch):
    """Who reads them knows the best; the others, which have no folder, would save and stop at other steps."""
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    monkeypatch.setattr(distributed, "from_main", lambda values: [0.25, 40.0, 2.0][: len(values)])
    found = Validations(tmp_path, 60)
    assert (found.best, found.best_step, found.since) == (0.25, 40, 2)
    assert not found.add(60, 0.3)
    assert found.ended(3)


def test_a_loss_that_is_no_number_is_not_the_best(tmp_path):
    with checkpoints.Checkpoints(tmp_path, "a run", keep=1, keep_best=True) as saved:
        for step, loss in ((2, math.nan), (4, 0.5), (6, 0.6)):
            saved.save(state_at(step), loss)
            saved.finish()
        assert saved.steps() == [6, 4]
        assert saved.best() == (4, 0.5)
