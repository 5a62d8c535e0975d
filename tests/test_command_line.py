"""What people type: one clear line and a non-zero exit for whatever is wrong, nothing damaged on disk."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_pipeline import prepare
from data_pipeline.errors import DataError
from data_pipeline.records import read_manifest, read_records

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments, cwd):
    """A command as a process of its own, with only the last line of stderr kept."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=900
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", ROOT / "configs/stage1.py:huge"], "unknown preset 'huge'; known: tiny, small"),
        (["--config", ROOT / "configs/stage1.py", "--config.train.step=3"], 'Did you mean "steps"'),
        (
            ["--config", ROOT / "configs/stage1.py", "--config.prompt.style=latin"],
            "config.prompt.style: input should be 'plain'",
        ),
        (["--config", ROOT / "configs/stage1.py", "--config.mesh.data=3"], "does not fit 8 devices"),
        (["--config", ROOT / "configs/stage1.py", "--config.data.source=/nowhere"], "is not a prepared dataset"),
        (
            ["--config", ROOT / "configs/stage2.py", "--config.init_from=/nowhere"],
            "/nowhere is neither a training run nor a model folder",
        ),
        (["--config", ROOT / "configs/stage1.py", "--workdir", "a_file"], "cannot create a_file: File exists"),
        (["--config", ROOT / "configs/stage1.py", "extra"], "unexpected arguments"),
        (["--config", ROOT / "configs/stage9.py"], "No such file"),
        ([], "--config"),
    ],
)
def test_launch_says_what_is_wrong(tmp_path, arguments, message):
    (tmp_path / "a_file").write_text("precious")
    result = run(ROOT / "launch.py", *arguments, cwd=tmp_path)
    assert result.returncode != 0
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert (tmp_path / "a_file").read_text() == "precious"


REFUSED = "jnp.zeros(1 << 46).block_until_ready()"  # really, by the allocator
NO_MEMORY = f"a device ran out of memory: Out of memory allocating {4 << 46} bytes; "


@pytest.mark.parametrize(
    ("does", "options", "advice"),
    [
        ("_train", ["stage1.py"], "config.model.remat=dots"),
        ("_evaluate", ["evaluate.py", "--config.checkpoint=a"], "smaller config.decoding"),
    ],
)
def test_a_device_without_enough_memory_is_one_line(tmp_path, does, options, advice):
    arguments = ["launch.py", f"--config={ROOT}/configs/{options[0]}", *options[1:]]
    program = (
        f"import sys, launch, jax.numpy as jnp; sys.argv = {arguments}; launch.{does} = lambda: {REFUSED}; "
        "launch.app.run(launch.main, flags_parser=launch._parse_flags)"
    )
    result = run("-c", program, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(f"launch.py: {NO_MEMORY}what needs less: {advice}")
    assert "Traceback" not in result.stderr


def test_so_it_is_in_programs_that_answer(tmp_path):
    program = (
        "import jax.numpy as jnp; from llamo_jax.apps import predict; "
        f"predict.predict = lambda options: {REFUSED}; "
        "predict.main('--checkpoint=a --input=b --question=c --output=d.csv'.split())"
    )
    result = run("-c", program, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(f"llamo_jax.apps.predict: {NO_MEMORY}ask for fewer rows")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config.train.schedule=foo"], "config.train.schedule: input should be 'warmup_cosine'"),
        (["--config.init_from=/nowhere"], "/nowhere is neither a training run nor a model folder"),
        (["--config.init_from={run}", "--config.model.projector.depth=3"], "config.model.projector is not that of"),
        (["--workdir={run}", "--config.train.learning_rate=0.1"], "what differs: config.train.learning_rate=0.1"),
        (["--workdir={run}", "--config.train.steps=1"], "config.train.steps=1 is below the checkpoint of step"),
        (["--workdir=strangers"], "strangers is not empty and holds no run"),
        (["--workdir=strangers/file"], "cannot create strangers/file: File exists"),
    ],
)
def test_what_files_tell_is_told_before_anything_is_prepared(tmp_path, trained, options, message):
    """Before the embedded corpus is made, which takes a minute, and before devices are looked at."""
    (tmp_path / "strangers").mkdir()
    (tmp_path / "strangers" / "file").write_text("precious")
    before = sorted((trained / "run.json").parent.rglob("*"))
    options = [option.format(run=trained) for option in options]
    result = run(ROOT / "launch.py", "--config", ROOT / "configs/stage1.py", *options, cwd=tmp_path)
    assert result.returncode == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""
    assert [path.name for path in tmp_path.rglob("*")] == ["strangers", "file"]
    assert sorted(trained.rglob("*")) == before


def test_importing_the_package_loads_nothing_heavy():
    heavy = "{'tensorflow', 'rdkit', 'torch', 'transformers'}"
    code = f"import llamo_jax, llamo_jax.models, sys; print(*{heavy} & {{*sys.modules}})"
    result = run("-c", code, cwd=ROOT)
    assert result.stdout.strip() == ""
    assert result.returncode == 0, result.stderr


def write(path, *lines):
    path.write_text("".join(line + "\n" for line in lines))
    return path


def test_prepare_reads_tables_and_keeps_what_it_rejects(tmp_path, capsys):
    table = write(
        tmp_path / "a.tsv",
        "CID\tSMILES\tdescription",
        "1\tCCO\tAn alcohol.",
        "2\tC1CC\tBroken.",
        "3\tC\t",
        "4\tO\tWater.",
    )
    output = tmp_path / "out"
    prepare.main(
        ["--task", "description", "--input", str(table), "--output", str(output), "--validation_fraction", "0"]
    )
    assert "4 rows = 2 conversations + 2 rejected + 0 missing" in capsys.readouterr().out
    manifest = read_manifest(output)
    assert manifest["rejected"] == {"invalid SMILES": 1, "empty description": 1}
    rejected = [json.loads(line) for line in (output / "rejected.jsonl").read_text().splitlines()]
    assert [row["key"] for row in rejected] == ["a.tsv:2", "a.tsv:3"]
    found = {record.conversation.smiles[0]: record for record in read_records(output, "train")}
    assert found["CCO"].conversation.messages[1].content == "An alcohol."
    np.testing.assert_array_equal(found["CCO"].graphs[0].senders, [0, 1, 1, 2])
    assert found["O"].graphs[0].bonds.shape == (0, 3)
    with pytest.raises(DataError, match="no split 'test'"):
        read_records(output, "test")


def test_prepare_reads_conversations(tmp_path):
    turns = [{"role": "user", "content": "Which is larger?"}, {"role": "assistant", "content": "The second."}]
    rows = [{"smiles": ["C", "CCO"], "messages": turns}, {"messages": turns}, {"smiles": "O", "messages": turns[:1]}]
    table = write(tmp_path / "a.jsonl", *map(json.dumps, rows))
    output = tmp_path / "out"
    prepare.main(
        ["--task", "instruction", "--input", str(table), "--output", str(output), "--validation_fraction", "0"]
    )
    records = read_records(output, "train")
    assert sorted(record.conversation.smiles for record in records) == [(), ("C", "CCO")]
    assert {len(record.graphs) for record in records} == {0, 2}
    assert read_manifest(output)["rejected"] == {"no answer": 1}


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("a.csv", [], "no rows"),
        ("a.csv", ["smiles,description"], "no rows"),
        (
            "a.csv",
            ["structure,description", "C,x"],
            r"no column 'smiles'.*found \['structure', 'description'\].*--smiles_column",
        ),
        ("a.csv", ["smiles,description", "C1CC,x"], "none of the 1 rows could be used"),
        ("a.xlsx", ["x"], "unknown format '.xlsx'"),
    ],
)
def test_prepare_says_what_is_wrong(tmp_path, name, lines, message):
    table = write(tmp_path / name, *lines)
    with pytest.raises(SystemExit, match=message):
        prepare.main(["--task", "description", "--input", str(table), "--output", str(tmp_path / "out")])
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


def test_prepare_overwrites_nothing(tmp_path):
    table = write(tmp_path / "a.csv", "smiles,description", "C,x")
    (tmp_path / "out").mkdir()
    with pytest.raises(SystemExit, match="exists already"):
        prepare.main(["--task", "description", "--input", str(table), "--output", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="no such file"):
        prepare.main(["--task", "description", "--input", str(tmp_path / "b.csv"), "--output", str(tmp_path / "o")])


def test_real_descriptions(tmp_path, shared_data):
    """ChEBI-20's own validation file, whole."""
    output = tmp_path / "chebi"
    prepare.main(
        ["--task", "description", "--input", str(shared_data / "chebi20" / "valid.tsv"), "--output", str(output)]
    )
    manifest = read_manifest(output)
    assert sum(manifest["splits"].values()) == 300
    assert 0 < manifest["splits"]["validation"] < 60
    assert manifest["rejected"] == {}
    assert manifest["sources"][0]["name"] == "valid.tsv"
