"""The configuration is strict, and nothing in it is ignored."""

import dataclasses
import re
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from configs import evaluate, stage0, stage1, stage2
from llamo_jax import runs
from llamo_jax.config import ConfigError, DecodingConfig, MeshConfig, field_table, from_dict, to_dict
from llamo_jax.evaluation.config import EvaluationConfig
from llamo_jax.models import DecoderConfig, GINConfig, LoRAConfig, ModelConfig, MultiLevelConfig
from llamo_jax.models.graph_encoders import GRAPH_ENCODERS
from llamo_jax.models.projectors import PROJECTORS
from llamo_jax.training.config import Config, DataConfig, TrainConfig

ROOT = Path(__file__).resolve().parents[2]


def test_every_field_is_read():
    source = "\n".join(path.read_text() for path in [ROOT / "launch.py", *(ROOT / "llamo_jax").rglob("*.py")])
    rows = [*field_table(Config), *field_table(EvaluationConfig)]
    assert len(rows) > 80
    names = {row.path.rpartition(".")[2] for row in rows} - {"kind"}  # read by the registry of kinds
    assert sorted(name for name in names if not re.search(rf"\.{name}\b", source)) == []


@pytest.mark.parametrize("stage", [stage0, stage1, stage2])
@pytest.mark.parametrize("preset", ["tiny", "smollm2", "llama2_7b"])
def test_every_field_can_be_set_on_the_command_line(stage, preset):
    """ml_collections takes no option for a field that a configuration leaves to its default."""

    def names(section):
        return {
            f"{name}.{below}" if below else name
            for name, value in section.items()
            for below in (names(value) if isinstance(value, dict) else [""])
        }

    values = stage.get_config(preset)
    assert names(values.to_dict()) == names(to_dict(runs.read_config(values)))


def test_every_field_is_described():
    for row in [*field_table(Config), *field_table(EvaluationConfig)]:
        assert len(row.description) >= 1, row
        assert row.legal, row


def test_architecture_constants_have_no_defaults():
    for section in (GINConfig, MultiLevelConfig, DecoderConfig, LoRAConfig, ModelConfig, DataConfig, TrainConfig):
        for name, field in section.__pydantic_fields__.items():
            # what adapters can do besides is off unless it is asked for
            off = section is LoRAConfig and not field.default
            assert field.is_required() or name == "kind" or off, f"{section.__name__}.{name}"


def changed(path, value):
    """The configuration of `tiny` with one field changed, as a config file gives it."""
    values = stage1.get_config().to_dict()
    *parents, name = path.split(".")
    section = values
    for parent in parents:
        section = section[parent]
    section[name] = value
    return values


LEGAL = {
    "seed": (0, 2**32 - 1),
    "mesh.data": (-1, 8),
    "train.clip": (None, 0.5),
    "train.warmup_steps": (0,),
    "train.learning_rate": (1, 1e-9),  # an integer is a float
    "sample_smiles": ((), ["CCO"]),
    "train.trainable": ((), [["a", True]]),
}
WRONG = {
    "seed": (-1, 2**32, 1.5, "1", True, None),
    "sample_smiles": ("CCO", (1,), None),
    "train.trainable": ("ab", (("a",),), (("a", 1),), (("(a", True),)),
    "train.log_every": (0, -1, 20.0),
    "train.checkpoint_every": (0, -20, 30),
    "train.eval_every": (0, 30),
    "train.keep_checkpoints": (0, -1),
    "train.keep_best": (1, "yes"),
    "train.objective": ("loss", ""),
    "train.graph_use_every": (-1, 1.5),
    "train.early_stopping": (-1, 1.5),
    "train.samples": (-1,),
    "train.max_nonfinite_steps": (0,),
    "train.steps": (0, -1, "many"),
    "train.accumulate": (0,),
    "train.learning_rate": (float("nan"), float("inf"), 0, -1e-3, "1e-3", True),
    "train.final_learning_rate": (float("nan"), -1.0),
    "train.weight_decay": (float("nan"), -0.1),
    "train.adam_b1": (1.0, -0.1, float("nan")),
    "train.adam_b2": (1.0, 2),
    "train.clip": (0, -1, float("nan")),
    "train.steps_per_epoch": (0,),
    "train.schedule": ("cosine", ""),
    "train.decay": ("some",),
    "train.on_save_failure": ("ignore",),
    "data.rows": (0, -8),
    "data.tokens_per_row": (1,),
    "data.source": ("", None),
    "data.task": ("forward_reaction", ""),
    "prompt.style": ("chatml",),
    "prompt.show_smiles": (1, "yes"),
    "prompt.show_graph": (0, "no"),
    "model.remat": ("all",),
    "model.attention": ("flash",),
    "model.quantize": ("int4",),
    "model.compute_dtype": ("float64",),
    "model.loss_chunk": (0,),
    "model.graph_encoder.kind": ("gat",),
    "model.graph_encoder.width": (0,),
    "model.graph_encoder.dropout": (1, -0.5),
    "model.graph_encoder.atom_cardinalities": ("119", 119),
    "model.projector.depth": (0,),
    "model.projector.layer_norm_eps": (0,),
    "model.language_model.rope_theta": (0, float("inf")),
    "model.language_model.num_kv_heads": (0, 3),
    "model.language_model.head_width": (7,),
    "model.language_model.sliding_window": (0, -3),
    "model.lora.rank": (-1,),
    "model.lora.alpha": (0, float("nan")),
    "model.lora.dropout": (1, 1.5),
    "model.lora.targets": ("query", ("*query",)),
    "mesh.data": (0, -2, 1.0),
}


@pytest.mark.parametrize(("path", "value"), [(path, value) for path, values in LEGAL.items() for value in values])
def test_legal_values_are_taken(path, value):
    config = runs.read_config(changed(path, value))
    assert from_dict(Config, to_dict(config)) == config


@pytest.mark.parametrize(("path", "value"), [(path, value) for path, values in WRONG.items() for value in values])
def test_a_wrong_value_is_named_in_one_line(path, value):
    with pytest.raises(ConfigError) as error:
        runs.read_config(changed(path, value))
    assert "\n" not in str(error.value)
    assert path.rpartition(".")[2] in str(error.value)
    assert f"config.{path.rpartition('.')[0]}".rstrip(".") in str(error.value)


def test_every_wrong_key_is_named():
    values = stage1.get_config().to_dict()
    values["train"]["stepps"] = values["train"].pop("steps")
    del values["model"]["projector"]["depth"]
    with pytest.raises(ConfigError) as error:
        runs.read_config(values)
    for part in ("config.train.steps is missing", "config.train.stepps: unknown key", "config.model.projector.depth"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("limit", -1),
        ("graph_use", -1),
        ("tensor", -1),
        ("context", "none"),
        ("checkpoint", ""),
        ("group_questions", 1.0),
    ],
)
def test_a_wrong_value_of_an_evaluation_is_named(path, value):
    values = evaluate.get_config().to_dict() | {"checkpoint": "somewhere"}
    assert from_dict(EvaluationConfig, values).limit == 0
    with pytest.raises(ConfigError, match=path):
        from_dict(EvaluationConfig, values | {path: value})


@pytest.mark.parametrize("values", [{"top_p": 0}, {"temperature": float("nan")}, {"num_beams": 2, "temperature": 1.0}])
def test_values_made_in_python_are_checked_as_well(values):
    with pytest.raises(ConfigError, match=next(iter(values)).split("_")[-1].rstrip("s")):
        DecodingConfig(**values)
    with pytest.raises(ConfigError, match="top_k"):
        dataclasses.replace(DecodingConfig(), top_k=-1)


def test_a_mesh_axis_of_no_device_is_refused():
    with pytest.raises(ConfigError, match="at least one device"):
        MeshConfig(data=1, fsdp=0, tensor=1)


def test_kinds_are_told_apart_by_name():
    assert "gin" in GRAPH_ENCODERS.names()
    assert "multi_level" in PROJECTORS.names()
    parsed = PROJECTORS.parse(to_dict(MultiLevelConfig.paper()))
    assert parsed == MultiLevelConfig.paper()
    assert parsed.num_tokens(6) == 28
    with pytest.raises(ValueError, match="registered already"):
        PROJECTORS.register(MultiLevelConfig)


@pytest.mark.parametrize("field", ["rows", "molecules_per_row", "atoms_per_row", "edges_per_row", "motifs_per_row"])
@pytest.mark.parametrize("value", [None, 64])
def test_sizes_that_follow_from_devices_and_data_can_be_set_on_the_command_line(monkeypatch, field, value):
    given = [] if value is None else [f"--config.data.{field}={value}"]
    monkeypatch.setattr("sys.argv", ["launch.py", *given])  # where config_flags looks for fields
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", stage1.get_config("llama2_7b"), flag_values=values)
    values(["launch.py", *given])
    assert getattr(runs.read_config(values.config).data, field) == value
