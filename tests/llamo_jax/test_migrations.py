"""Runs and model folders of older versions are read; `stored/N` holds what version N wrote."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from configs import stage2
from llamo_jax import checksums, parameters, runs
from llamo_jax.config import ConfigError
from llamo_jax.convert import official
from llamo_jax.models import LLaMo
from llamo_jax.models.definition import define_model
from llamo_jax.models.folder import read_model
from llamo_jax.models.migrations import SCHEMA_VERSION
from llamo_jax.training import checkpoints, workdir
from llamo_jax.training.step import TrainState
from tests import helpers
from tests.llamo_jax.test_faults import abstract, assert_equal, replaced, save_whole, state_at

STORED = Path(__file__).with_name("stored")
VERSIONS = sorted(int(path.name) for path in STORED.iterdir())


def test_every_version_is_kept():
    assert list(range(1, SCHEMA_VERSION + 1)) == VERSIONS


@pytest.mark.parametrize("version", VERSIONS)
def test_the_configuration_of_a_run(tmp_path, version):
    """All versions wrote the same run: stage 2 of `tiny`."""
    shutil.copy(STORED / str(version) / "run.json", tmp_path / "config.json")
    today = stage2.get_config()
    if version < 3:  # what those versions did, where today's default is another
        today.train.update({"eval_batches": 0, "stall_seconds": 0})
    if version < 6:
        today.train.graph_use_every = 0
    if version < 5:
        today.sample_smiles = ("CC(=O)Oc1ccccc1C(=O)O",)
        today.train.update({"keep_best": False, "samples": 0})
        budgets = {"molecules": 5, "atoms": 72, "edges": 160, "motifs": 32}
        today.data.update({f"{name}_per_row": budget for name, budget in budgets.items()})
    assert workdir.read_config(tmp_path) == runs.read_config(today)


def test_a_run_of_version_2_goes_on(trained, few, tmp_path):
    """Its identity lacks fields of the model that came later; a difference is still found."""
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    content = json.loads((run / "run.json").read_text())
    identity = content["identity"]["config"]
    del identity["model"]["language_model"]["qk_norm"], identity["train"]["objective"], identity["prompt"]["show_graph"]
    (run / "run.json").write_text(json.dumps(content | {"schema_version": 2}))
    config = replaced(workdir.read_config(run), "data.source", str(few / "description"))
    more = replaced(replaced(config, "train.steps", 3), "train.log_every", 1)
    assert int(runs.train(more, run).step) == 3
    with pytest.raises(ConfigError, match=r"what differs: config.model.language_model.qk_norm"):
        runs.train(replaced(more, "model.language_model.qk_norm", True), run)


def test_settings_that_were_legal_once(tmp_path):
    """Validations between logged lines, and a task that was ignored: neither makes a run of version 1 damaged."""
    content = json.loads((STORED / "1" / "run.json").read_text())
    content["train"] |= {"log_every": 20, "eval_every": 50}
    content["data"]["task"] = "iupac_name"
    (tmp_path / "config.json").write_text(json.dumps(content))
    config = workdir.read_config(tmp_path)
    assert (config.train.eval_every, config.data.task) == (60, "description")
    content["train"]["steps"] = -5
    (tmp_path / "config.json").write_text(json.dumps(content | {"schema_version": 1}))
    model, prompt = workdir.read_model_config(tmp_path)  # how it was trained is nothing to those who ask
    assert (model, prompt) == (config.model, config.prompt)


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory):
    """A folder of today, and its logits."""
    definition, arrays = helpers.definition_and_arrays(helpers.model_config(lora_rank=2))
    folder = tmp_path_factory.mktemp("saved") / "model"
    definition.merge(arrays).save(folder)
    return folder, helpers.logits(definition, arrays, helpers.batch())


@pytest.mark.parametrize("version", VERSIONS)
def test_a_model_folder(saved_model, tmp_path, version):
    folder, expected = saved_model
    shutil.copytree(folder, tmp_path / "model")
    shutil.copy(STORED / str(version) / "model.json", tmp_path / "model" / "config.json")
    stored = read_model(tmp_path / "model")
    assert stored.config.lora.targets == ("language_model/layers/(query|value)",)
    assert stored.prompt.style == "plain"
    loaded = parameters.flatten(nnx.state(LLaMo.load(tmp_path / "model")))
    np.testing.assert_array_equal(helpers.logits(define_model(stored.config), loaded, helpers.batch()), expected)


def test_a_newer_version_is_refused(tmp_path):
    content = json.loads((STORED / str(SCHEMA_VERSION) / "run.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(content | {"schema_version": SCHEMA_VERSION + 1}))
    with pytest.raises(workdir.CheckpointError, match=rf"schema version {SCHEMA_VERSION + 1}.*update llamo_jax"):
        workdir.read_config(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(workdir.CheckpointError, match="is damaged"):
        workdir.read_config(tmp_path)


def test_a_graph_side_written_for_torch_without_kinds(tmp_path):
    """graph_config.json of to_huggingface, as version 1 wrote it."""
    model = json.loads((STORED / "1" / "model.json").read_text())["model"]
    content = {name: model[name] for name in ("graph_encoder", "projector")}
    (tmp_path / official.GRAPH_CONFIG).write_text(json.dumps(content))
    encoder, projector = official.graph_configs(
        tmp_path / "graph_encoder.safetensors", tmp_path / "projector.safetensors"
    )
    assert (encoder, projector) == (helpers.model_config().graph_encoder, helpers.model_config().projector)


def old_names(state: TrainState) -> TrainState:
    return state._replace(log={{"skipped_in_a_row": "in_row"}.get(name, name): x for name, x in state.log.items()})


def test_a_checkpoint_of_version_1(tmp_path, monkeypatch):
    """Another name in the log, checksums of the first kind, no run's id: it is restored, and not called damaged."""
    state = state_at(2)
    sums = checksums.checksums
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.checksums, "checksums", lambda arrays, version=1: sums(arrays, 1))
        patch.setattr(checkpoints.checksums, "VERSION", 1)
        with checkpoints.Checkpoints(tmp_path, "") as saved:
            saved._run_id = None
            saved.save(old_names(state))
    with checkpoints.Checkpoints(tmp_path, "the run") as saved:
        found = saved.restore(abstract(state))
        assert_equal(found, state)
        save_whole(saved, 4)
        assert_equal(saved.restore(abstract(state)), state_at(4))
    assert not (tmp_path / "damaged_checkpoints").exists()
    path = next(path for path in (tmp_path / "checkpoints" / "2").rglob("*") if path.stat().st_size > 100_000)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)
    shutil.rmtree(tmp_path / "checkpoints" / "4")
    with (
        checkpoints.Checkpoints(tmp_path, "the run") as saved,
        pytest.raises(workdir.CheckpointError, match="no checkpoint in"),
    ):
        saved.restore(abstract(state))
