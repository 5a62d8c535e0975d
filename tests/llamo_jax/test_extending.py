"""The example of docs/extending.md, as it stands there: new kinds in all that a model does."""

import dataclasses
import json
import re
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from configs import stage2
from data_pipeline.batch import BatchShape
from llamo_jax import parameters, runs
from llamo_jax.apps.assistant import Assistant
from llamo_jax.config import DecodingConfig
from llamo_jax.convert import __main__ as convert
from llamo_jax.models import LLaMo
from llamo_jax.models.folder import read_model
from llamo_jax.models.graph_encoders import GRAPH_ENCODERS
from llamo_jax.models.projectors import PROJECTORS
from llamo_jax.training.checkpoints import Checkpoints
from llamo_jax.training.flops import minimal_flops
from tests import helpers
from tests.llamo_jax.test_training import losses, small_run

PAGE = Path(__file__).resolve().parents[2] / "docs" / "extending.md"
TARGETS = ("language_model/layers/query", "projector/out")


@pytest.fixture(scope="module")
def get_config():
    """The page's two blocks, run."""
    module, config_file = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len([line for line in module.splitlines() if line.strip() and "import" not in line]) <= 40
    found = types.ModuleType("extension")
    exec(compile(module, str(PAGE), "exec"), vars(found))
    exec(compile(config_file, str(PAGE), "exec"), vars(found))
    yield found.get_config
    del GRAPH_ENCODERS._configs["mean"], PROJECTORS._configs["pooled"]


@pytest.fixture(scope="module")
def trained(get_config, few, tmp_path_factory):
    """The folders of a run, and of a second stage with adapters on the language model and on the new projector."""
    folder = tmp_path_factory.mktemp("extension")
    config = small_run(few, types.SimpleNamespace(get_config=get_config))
    runs.train(dataclasses.replace(config, train=dataclasses.replace(config.train, steps=4)), folder / "one")
    runs.train(config, folder / "one")  # and goes on

    def with_kinds(preset):
        values = stage2.get_config(preset)
        with values.unlocked():
            values.model.update({name: get_config(preset).model[name] for name in ("graph_encoder", "projector")})
            values.model.graph_encoder = get_config(preset).model.graph_encoder
            values.model.projector = get_config(preset).model.projector
            values.model.lora.targets = TARGETS
            values.train.trainable = ((r".*/lora_.*", True), (".*", False))
        return values

    runs.train(
        small_run(few, types.SimpleNamespace(get_config=with_kinds), init_from=str(folder / "one")), folder / "two"
    )
    return folder


def test_it_trains_and_continues(trained):
    curve = losses(trained / "one")
    assert [step for step, _ in curve] == [2, 4, 6]
    assert curve[-1][1] < curve[0][1]
    with Checkpoints(trained / "two") as saved:
        names = saved._checkpointer.checkpointables_metadata(6).metadata["state"]["trained"]
    assert sorted(names) == sorted(f"{target}/{part}" for target in TARGETS for part in ("lora_a", "lora_b"))


def test_it_is_saved_loaded_and_answers(trained, tmp_path):
    assistant = Assistant.load(trained / "two", decoding=DecodingConfig(max_new_tokens=6))
    answer = assistant.ask("Describe this molecule.", smiles="CCO")
    convert.main(["to_huggingface", "--checkpoint", str(trained / "two"), "--output", str(tmp_path / "hf")])
    convert.main(
        ["to_peft", "--checkpoint", str(trained / "two"), "--base_model", "base", "--output", str(tmp_path / "peft")]
    )
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["target_modules"] == ["q_proj"]
    command = ["from_huggingface", "--language_model", str(tmp_path / "hf"), "--output", str(tmp_path / "model")]
    for part in ("graph_encoder", "projector"):
        command += [f"--{part}", str(tmp_path / "hf" / f"{part}.safetensors")]
    convert.main([*command, "--prompt_style", "plain"])
    # adapters of both parts are merged now, and the answer is the same
    stored = read_model(tmp_path / "model")
    assert (stored.config.graph_encoder.kind, stored.config.projector.kind) == ("mean", "pooled")
    assert not any("lora" in name for name in stored.weights)
    merged = Assistant.load(tmp_path / "model", decoding=DecodingConfig(max_new_tokens=6))
    assert merged.ask("Describe this molecule.", smiles="CCO") == answer
    model = LLaMo.load(tmp_path / "model")
    model.save(tmp_path / "again")
    again = LLaMo.load(tmp_path / "again")
    for (_, a), (_, b) in zip(nnx.to_flat_state(nnx.state(model)), nnx.to_flat_state(nnx.state(again)), strict=True):
        np.testing.assert_array_equal(a[...], b[...])


def test_padding_changes_nothing_and_adapters_start_at_nothing(get_config):
    config = runs.read_config(get_config()).model
    config = dataclasses.replace(helpers.model_config(), graph_encoder=config.graph_encoder, projector=config.projector)
    definition, arrays = helpers.definition_and_arrays(config)
    assert config.num_graph_tokens == 2
    small, large = (
        jax.tree.map(np.asarray, helpers.batch(row=row))
        for row in (helpers.ROW, helpers.ROW._replace(atoms=60, edges=200, molecules=5))
    )
    real = small.segments > 0
    query = np.minimum(small.molecule_query, 1)  # there are two graph tokens, not 28
    run = jax.jit(lambda arrays, batch: definition.merge(arrays)(batch)[0])
    got = [np.asarray(run(arrays, batch._replace(molecule_query=query)))[real] for batch in (small, large)]
    np.testing.assert_allclose(got[1], got[0], atol=1e-5)
    lora = dataclasses.replace(config.lora, rank=4, targets=("projector/out",))
    adapted = LLaMo(dataclasses.replace(config, lora=lora), rngs=nnx.Rngs(0))
    plain = LLaMo(config, rngs=nnx.Rngs(0))
    arrays, base = (parameters.flatten(nnx.state(model)) for model in (adapted, plain))
    assert sorted(set(arrays) - set(base)) == ["projector/out/lora_a", "projector/out/lora_b"]
    for name, array in base.items():
        np.testing.assert_array_equal(arrays[name], array)


def test_its_flops_are_counted(get_config):
    config = runs.read_config(get_config()).model
    shape = BatchShape(8, 2, helpers.ROW)
    slots, atoms, _, _ = shape.per_shard()
    found = minimal_flops(config, shape, {"projector/out/kernel"})["graph_side"]
    mix, out = 2 * 2 * atoms * 64 * 64, 2 * 2 * 2 * slots * 64 * config.language_model.width
    assert found == (mix + out, 0, out)
