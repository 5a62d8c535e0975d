"""What is installed works outside of a checkout, and takes no name that others use."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the installed wheel, built from a copy of the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(".*", "runs", "data", "build", "dist", "*.egg-info", "__pycache__", "tests")
    shutil.copytree(ROOT, folder / "source", ignore=ignored)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(folder / "source")]
    subprocess.run([*pip, *build], check=True, timeout=900)
    (wheel,) = folder.glob("*.whl")
    subprocess.run(
        [*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel)], check=True, timeout=900
    )
    return wheel, folder / "site"


def run(site, cwd, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(site), "XLA_FLAGS": ""}
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=900, check=False)


def test_it_holds_two_packages_and_their_types(site):
    names = zipfile.ZipFile(site[0]).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"llamo_jax", "data_pipeline"}
    assert {"llamo_jax/py.typed", "data_pipeline/py.typed"} <= set(names)
    assert not [name for name in names if "test" in name]


def test_its_commands_run_elsewhere(site, tmp_path):
    (tmp_path / "rows.csv").write_text("smiles,description\nCCO,An alcohol.\nCCN,An amine.\nC1CC,Broken.\n")
    result = run(
        site[1], tmp_path, "data_pipeline.prepare", "--task", "description", "--input", "rows.csv", "--output", "data",
        "--validation_fraction", "0",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "3 rows = 2 conversations + 1 rejected" in result.stdout
    (tmp_path / "answers.jsonl").write_text(
        '{"prediction": "1.5", "target": "2"}\n{"prediction": "3", "target": "3"}\n'
    )
    task = ("--task", "property_regression", "--predictions", "answers.jsonl")
    result = run(site[1], tmp_path, "llamo_jax.evaluation", *task)
    assert json.loads(result.stdout)["mae"] == 0.25, result.stderr
    for command in ("llamo_jax.convert", "llamo_jax.apps.chat", "data_pipeline.inspect"):
        result = run(site[1], tmp_path, command, "--help")
        assert result.returncode == 0, result.stderr
    where = subprocess.run(
        [sys.executable, "-c", "import llamo_jax; print(llamo_jax.__file__)"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(site[1])}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert where.stdout.startswith(str(site[1]))
