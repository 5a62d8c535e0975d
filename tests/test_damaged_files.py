"""Whatever stands in a JSON file on the disk: it is understood, or refused in one line that names the file."""

import dataclasses
import json
import math
import os
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from flax import nnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs import evaluate as evaluate_config
from configs import stage1
from data_pipeline.errors import DataError
from data_pipeline.records import RecordReader, data_fingerprint, read_manifest
from data_pipeline.tokenizer import load_tokenizer
from data_pipeline.torch_files import read_torch
from llamo_jax import runs
from llamo_jax.convert import huggingface, official, peft
from llamo_jax.evaluation import run as evaluation
from llamo_jax.loading import describe_model, load_generator
from llamo_jax.models import LLaMo
from llamo_jax.models.folder import read_model
from llamo_jax.parameters import WeightsError
from llamo_jax.training import metrics, workdir
from llamo_jax.weights import read_folder
from tests import helpers
from tests.llamo_jax.test_convert import torch_model

VALUES = [None, True, False, -1, 0, 1, 2.5, math.nan, math.inf, 10**30, "", "x", "1e-5", "\0", [], [1], {}, {"a": 1}]
"""What a value is replaced with: every type, and the numbers that programs stumble over."""


def places(content, path=()):
    """The path of every value inside."""
    found = [path]
    children = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, child in children:
        found += places(child, (*path, key))
    return found


def changed(content, path, value, delete):
    """The content with one value replaced or taken out."""
    if not path:
        return value
    copy = json.loads(json.dumps(content))
    parent = copy
    for key in path[:-1]:
        parent = parent[key]
    if delete:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    return copy


@st.composite
def damages(draw):
    """How a file is damaged: (kind, a number in [0, 1) that says where, a value)."""
    kind = draw(st.sampled_from(["value", "value", "value", "delete", "cut", "byte"]))
    return kind, draw(st.floats(0, 1, exclude_max=True)), draw(st.sampled_from(VALUES))


def damaged(original: bytes, damage) -> bytes:
    kind, where, value = damage
    if kind in ("value", "delete"):
        content = json.loads(original)
        found = places(content)
        path = found[int(where * len(found))]
        return json.dumps(changed(content, path, value, kind == "delete" and bool(path))).encode()
    place = int(where * len(original))
    return original[:place] + (b"" if kind == "cut" else b"\xff\x00" + original[place + 1 :])


@pytest.fixture(scope="module")
def files(tmp_path_factory, few, trained):
    """Name → (a folder, the file in it that is damaged, what reads it)."""
    folder = tmp_path_factory.mktemp("files")
    base = torch_model("qwen2")
    base.save_pretrained(folder / "base", max_shard_size="20KB")
    from peft import LoraConfig, get_peft_model

    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(folder / "adapter")
    decoder, weights, _ = huggingface.read_language_model(folder / "base")
    LLaMo(helpers.model_config(lora_rank=2), rngs=nnx.Rngs(0)).save(folder / "model")
    (folder / "graph").mkdir()
    model = json.loads((folder / "model" / "config.json").read_text())["model"]
    content = {name: model[name] for name in ("graph_encoder", "projector")}
    (folder / "graph" / official.GRAPH_CONFIG).write_text(json.dumps(content | {"schema_version": 4}))
    shutil.copytree(few / "description", folder / "data")
    shutil.copytree(trained, folder / "run")
    (folder / "run" / "base.json").write_text(
        json.dumps({"folder": "../other", "step": 3, "digest": "ab", "checksum_version": 2})
    )
    config = evaluate_config.get_config()
    config.checkpoint, config.data = "x", "y"
    asked = evaluation.read_config(config)
    about = {"model": "m", "data": "d", "prompt": "p", "config": json.loads(json.dumps(dataclasses.asdict(asked)))}
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "evaluation.json").write_text(json.dumps(about))
    stored = workdir.read_config(trained)
    here = workdir.identity(stored, [], "")

    def graph(where: Path):
        for part in ("graph_encoder", "projector"):
            (where / f"{part}.safetensors").touch()
        official._configured(where / "graph_encoder.safetensors", "graph_encoder", official.GRAPH_ENCODERS)
        official._configured(where / "projector.safetensors", "projector", official.PROJECTORS)

    return {
        "config of a language model": (folder / "base", "config.json", huggingface.read_language_model),
        "index of weights": (folder / "base", "model.safetensors.index.json", read_folder),
        "adapter": (folder / "adapter", "adapter_config.json", lambda at: peft.read_adapter(at, decoder, weights, [])),
        "model folder": (folder / "model", "config.json", read_model),
        "graph side": (folder / "graph", official.GRAPH_CONFIG, graph),
        "config of a run": (folder / "run", "config.json", lambda at: (workdir.read_config(at), describe_model(at))),
        "identity of a run": (folder / "run", "run.json", lambda at: workdir.claim(at, stored, here)),
        "base of a run": (folder / "run", "base.json", workdir.read_base),
        "manifest": (folder / "data", "manifest.json",
                     lambda at: (read_manifest(at), data_fingerprint(at), RecordReader(at, "train").fetch(range(1)))),
        "evaluation": (folder / "evaluation", "evaluation.json", lambda at: evaluation._claim(at, about)),
        "tokenizer's config": (folder / "data" / "tokenizer", "tokenizer_config.json", load_tokenizer),
    }  # fmt: skip


NAMES = ["config of a language model", "index of weights", "adapter", "model folder", "graph side", "config of a run",
         "identity of a run", "base of a run", "manifest", "evaluation", "tokenizer's config"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_any_damage_is_a_line_or_harmless(files, name, tmp_path):
    folder, file, read = files[name]
    original = (folder / file).read_bytes()
    copy = tmp_path / "copy"

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(damages())
    def check(damage):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy, copy_function=os.link)  # checkpoints are large
        (copy / file).unlink()
        (copy / file).write_bytes(damaged(original, damage))
        said = ""
        try:
            read(copy)
        except runs.UserError as error:
            said = str(error).strip()
        assert "\n" not in said

    check()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rms_norm_eps": math.nan}, "rms_norm_eps must be a number above 0, not 'nan'"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps must be a number above 0, not '1e-5'"),
        ({"hidden_size": True}, "hidden_size must be a whole number above 0, not 'True'"),
        ({"num_attention_heads": 0}, "num_attention_heads must be a whole number above 0"),
        ({"num_hidden_layers": 10**9}, "num_layers"),
        ({"vocab_size": 32.0}, "vocab_size must be a whole number above 0"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings must be true or false"),
        ({"rope_parameters": [1]}, "rope_parameters must be an object"),
        ({"rope_theta": -1.0, "rope_parameters": None}, "rope_theta must be a number above 0"),
        ({"model_type": ["qwen2"]}, "model_type"),
        ({"layer_types": 3}, "layer_types must be a list"),
    ],
)
def test_wrong_values_of_a_language_model_are_named(files, tmp_path, change, message):
    folder, file, read = files["config of a language model"]
    shutil.copytree(folder, tmp_path / "copy")
    content = json.loads((folder / file).read_text()) | change
    (tmp_path / "copy" / file).write_text(json.dumps(content))
    with pytest.raises(runs.UserError, match=rf"copy/config.json: .*{message}"):
        read(tmp_path / "copy")


def test_a_damaged_log_loses_its_lines_and_no_more(tmp_path, capsys):
    """A bad byte in metrics.jsonl, or in the answers of an interrupted evaluation: the rest goes on."""
    rows = [{"index": i, "smiles": ["C"], "question": "q", "prediction": "a", "target": "b"} for i in range(3)]
    lines = [json.dumps(row).encode() for row in rows]
    lines[1] = lines[1].replace(b"prediction", b"pred\xffiction")
    (tmp_path / "answers.partial.jsonl").write_bytes(b"\n".join([*lines, b'{"index": "5"}', b"[1]", b'{"index": 4']))
    assert sorted(evaluation._read_done(tmp_path)) == [0, 2]
    assert "answers.partial.jsonl, line 2: damaged, left out" in capsys.readouterr().err
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 2}\n{"st\xffep": 4}\n{"no": 1}\n{"step": 6}\n{"step": 8}\n')
    log = metrics.MetricsLog(tmp_path, "id", without_sinks(), 6)
    log.close()
    assert [row["step"] for row in helpers.json_lines(tmp_path / "metrics.jsonl")] == [2, 6]


def without_sinks():
    config = runs.read_config(stage1.get_config("tiny"))
    return dataclasses.replace(config, train=dataclasses.replace(config.train, sinks=()))


def test_what_a_full_disk_left_blocks_no_evaluation_and_no_run(tmp_path, trained):
    about = {"model": "m", "data": "d", "prompt": "p", "config": {"decoding": {}}}
    (tmp_path / ".evaluation.json.17-0.partial").write_text("{")
    evaluation._claim(tmp_path, about)
    assert (tmp_path / "evaluation.json").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".run.json.17-0.partial").write_text("{")
    stored = workdir.read_config(trained)
    assert workdir.claim(tmp_path / "run", stored, workdir.identity(stored, [], ""))


def test_git_lfs_pointers_are_called_by_their_name(files, tmp_path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    for name, file in (("config of a language model", "config.json"), ("tokenizer's config", "tokenizer.json")):
        folder, _, read = files[name]
        shutil.copytree(folder, tmp_path / name)
        (tmp_path / name / file).write_text(pointer)
        with pytest.raises(runs.UserError, match="Git LFS pointer"):
            read(tmp_path / name)
    folder, _, read = files["index of weights"]
    shutil.copytree(folder, tmp_path / "weights")
    next((tmp_path / "weights").glob("*.safetensors")).write_text(pointer)
    with pytest.raises(runs.UserError, match="Git LFS pointer, not the weights"):
        read(tmp_path / "weights")


@pytest.mark.parametrize("damage", ["empty", "cut", "overwritten"])
def test_damaged_records_are_told_in_one_line(few, tmp_path, damage):
    """By whoever reads them, also where tf.data's threads do."""
    shutil.copytree(few / "description", tmp_path / "data")
    (path,) = (tmp_path / "data" / "records").rglob("*-train.array_record-*")
    content = path.read_bytes()
    third = len(content) // 3
    path.write_bytes({"empty": b"", "cut": content[:third], "overwritten": b"\xff" * len(content)}[damage])
    with pytest.raises(DataError, match=r"data: its records are damaged \(.*\); prepare the data again"):
        RecordReader(tmp_path / "data", "train").fetch([0])
    config = stage1.get_config("tiny")
    config.update_from_flattened_dict({"data.source": str(tmp_path / "data"), "data.rows": 8, "train.samples": 0})
    config.model.language_model.num_layers = 1
    with pytest.raises(DataError, match="its records are damaged"):
        runs.train(runs.read_config(config), tmp_path / "run")


def test_damaged_descriptions_of_checkpoints(trained, tmp_path):
    """What Orbax keeps beside the arrays: the checkpoint loads all the same, or it is said which does not."""
    inside = sorted((trained / "checkpoints").rglob("*"))
    files = [path for path in inside if path.is_file() and path.parent.name != "d"]
    assert len(files) > 3
    for path in files:
        for number, content in enumerate((b"[]", b"\xff\xfe")):
            copy = tmp_path / f"{path.name}-{number}"
            shutil.copytree(trained, copy)
            (copy / path.relative_to(trained)).write_bytes(content)
            said = ""
            try:
                load_generator(copy / "checkpoints" / "best")
            except workdir.CheckpointError as error:
                said = str(error)
            assert said == "" or (str(copy) in said and "\n" not in said)
            shutil.rmtree(copy)


def test_torch_files_that_unpack_to_more_than_they_are(tmp_path):
    rows = [{"smiles": "C" * 1000, "description": "An alkane."}] * 100
    torch.save(rows, tmp_path / "stored.pt")
    assert len(list(read_torch(tmp_path / "stored.pt"))) == 100
    with zipfile.ZipFile(tmp_path / "stored.pt") as stored, zipfile.ZipFile(tmp_path / "packed.pt", "w") as packed:
        for member in stored.infolist():
            packed.writestr(member.filename, stored.read(member), zipfile.ZIP_DEFLATED)
    (tmp_path / "empty.pt").write_bytes(b"")
    for name, reason in (("packed.pt", "is compressed, which torch never does; refused"), ("empty.pt", "is empty")):
        with pytest.raises(DataError, match=f"{name}.* {reason}"):
            list(read_torch(tmp_path / name))
        with pytest.raises(WeightsError, match=f"{name}.* {reason}"):
            official.read_torch(tmp_path / name)
