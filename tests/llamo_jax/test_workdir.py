"""What a run's folder says before anything is computed: what it goes on with, what it starts from, what it trained."""

import dataclasses

import pytest

from configs import stage1, stage2
from data_pipeline import storage
from llamo_jax import runs
from llamo_jax.config import ConfigError
from llamo_jax.training import workdir


def begun(folder, config):
    """A run in `folder` that has done nothing yet."""
    folder.mkdir()
    here = {"config": workdir.identity(config, (), "")["config"], "data": [], "prompt": ""}
    workdir.claim(storage.as_path(folder), config, here)
    return folder


def test_a_run_goes_on_with_the_rows_that_it_began_with(tmp_path):
    """On other devices, of which the number of rows is taken where none is asked for."""
    config = runs.read_config(stage1.get_config("tiny"))
    budgets = {"rows": 24, "atoms_per_row": 70}
    folder = begun(tmp_path / "run", dataclasses.replace(config, data=dataclasses.replace(config.data, **budgets)))
    asked = dataclasses.replace(config, data=dataclasses.replace(config.data, rows=None, atoms_per_row=None))
    found = workdir.check(folder, asked).data
    assert (found.rows, found.atoms_per_row) == (24, 70)


def test_adapters_are_taken_over_with_their_scale(tmp_path):
    """Shapes alone would not tell."""
    config = runs.read_config(stage2.get_config("tiny"))
    assert config.model.lora.rank
    folder = begun(tmp_path / "run", config)
    same = dataclasses.replace(config, init_from=str(folder))
    workdir.check(tmp_path / "next", same)
    lora = dataclasses.replace(config.model.lora, alpha=2 * config.model.lora.alpha)
    other = dataclasses.replace(same, model=dataclasses.replace(same.model, lora=lora))
    with pytest.raises(ConfigError, match=r"config\.model\.lora is not that of config\.init_from: .*alpha"):
        workdir.check(tmp_path / "next", other)


def test_an_embedding_that_was_trained_is_told(tmp_path):
    config = runs.read_config(stage2.get_config("tiny"))
    for name, trained in ("with", True), ("without", False):
        train = dataclasses.replace(config.train, train_token_embedding=trained)
        folder = begun(tmp_path / name, dataclasses.replace(config, train=train))
        assert workdir.trained_language_model(folder) == ["language_model/embedding"] * trained
