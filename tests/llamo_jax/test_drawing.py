"""Drawings of molecules, and programs on servers where RDKit finds no X11 libraries to draw with."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rdkit import Chem

from data_pipeline import drawing

ROOT = Path(__file__).resolve().parents[2]
ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"
WITHOUT_X11 = """
import sys

class Bare:  # every import of this interpreter, and of those that it starts, is as on a server without libXrender
    def find_spec(self, name, path=None, target=None):
        if name == "rdkit.Chem.Draw":
            raise ImportError("libXrender.so.1: cannot open shared object file: No such file or directory")

sys.meta_path.insert(0, Bare())
"""
WHY = "libXrender.so.1: cannot open shared object file: No such file or directory; on Debian or Ubuntu: apt-get install"


@pytest.fixture
def bare(tmp_path):
    """Runs a Python program as on a server without libXrender."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(WITHOUT_X11)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "path"), str(ROOT)])}

    def run(*command):
        return subprocess.run(
            [sys.executable, *map(str, command)], cwd=tmp_path, env=environment, capture_output=True, text=True,
            timeout=600, check=False,
        )  # fmt: skip

    return run


def test_svg_and_png():
    mol = Chem.MolFromSmiles(ASPIRIN)
    svg = drawing.svg(mol, (220, 160), highlightAtoms=[0], highlightAtomColors={0: (0.0, 1.0, 0.0)})
    assert svg.startswith("<svg")
    assert svg.rstrip().endswith("</svg>")
    assert "width='220px' height='160px'" in svg
    assert "#00FF00" in svg
    assert "#00FF00" not in drawing.markup(mol, (220, 160))
    content = drawing.png(mol, (64, 48))
    assert content.startswith(b"\x89PNG")
    assert [int.from_bytes(content[place : place + 4]) for place in (16, 20)] == [64, 48]


def test_a_report_has_the_smiles_where_nothing_can_be_drawn(bare, tmp_path):
    row = {"prediction": "It has an ester.", "target": "It has an ester group.", "smiles": [ASPIRIN]}
    (tmp_path / "answers.jsonl").write_text(json.dumps(row) + "\n")
    command = ("-m", "llamo_jax.evaluation", "--task", "description", "--predictions", "answers.jsonl")
    done = bare(*command, "--report", "page.html")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == 1
    assert WHY in done.stderr
    page = (tmp_path / "page.html").read_text()
    assert WHY in page
    assert f'<td class="text">{ASPIRIN}</td>' in page
    assert "svg+xml" not in page


def test_conversations_are_written_where_nothing_can_be_drawn(bare, tmp_path):
    (tmp_path / "train.tsv").write_text(
        f"smiles\tdescription\n{ASPIRIN}\tIt has an ester group.\nCCO\tIt has a hydroxy group.\n"
    )
    done = bare("-m", "data_pipeline.instruct", "--input", "train.tsv", "--output", "talk", "--conversations", "2")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "talk" / "report.html").read_text()
    assert WHY in page
    assert "<code>C" in page


def test_a_picture_of_attention_is_refused_at_once_where_nothing_can_be_drawn(bare):
    done = bare("-m", "llamo_jax.analysis.attention", "--checkpoint", "nowhere", "--output", "there")
    assert done.returncode == 1
    assert done.stderr.startswith(f"llamo_jax.analysis.attention: molecules cannot be drawn here: {WHY}")
    assert len(done.stderr.splitlines()) == 1


def test_assistants_and_the_page_need_no_drawings(bare):
    done = bare("-c", f"from llamo_jax.apps.demo import shown; print(shown.molecules([{ASPIRIN!r}]))")
    assert done.returncode == 0, done.stderr
    assert f"<code>{ASPIRIN}</code><figcaption>C9H8O4, 180.16 g/mol" in done.stdout
