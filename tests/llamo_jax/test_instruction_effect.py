"""Property questions before and after stage 2: paired changes by hand, and the program on small tables."""

import json

import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.jobs import Settings, prepare
from data_pipeline.tasks import Columns
from llamo_jax.analysis import instruction_effect


def rows(targets, predictions):
    return [{"target": t, "prediction": p} for t, p in zip(targets, predictions, strict=True)]


def test_changes_are_paired():
    targets = ["1.0", "2.0", "3.0", "4.0"]
    before = rows(targets, ["0.0", "2.0", "no idea", "7.0"])  # errors 1, 0, none, 3
    after = rows(targets, ["1.5", "4.0", "3.0", "4.0"])  # errors 0.5, 2, 0, 0
    found = instruction_effect.change(before, after, classes=False)
    assert found["questions"] == 3
    assert found["mean"] == pytest.approx((-0.5 + 2 - 3) / 3)
    low, high = found["interval"]
    assert low <= found["mean"] <= high
    targets = ["Yes", "No", "Yes"]
    found = instruction_effect.change(
        rows(targets, ["Yes.", "Yes.", "perhaps"]), rows(targets, ["No.", "No.", "Yes."]), classes=True
    )
    assert found["mean"] == pytest.approx((-1 + 1 + 1) / 3)
    nothing = instruction_effect.change(rows(["1"], ["x"]), rows(["1"], ["2"]), classes=False)
    assert nothing == {"mean": None, "interval": None, "questions": 0}


def test_bars_are_relative_and_not_of_a_few_answers():
    scores = {
        name: {
            "mae": mae,
            "roc_auc": 0.75,
            "answered": answered,
            "intervals": {"mae": [mae - 0.5, mae + 1], "roc_auc": None},
        }
        for name, mae, answered in (("constant", 2.0, 1.0), ("good", 1.0, 0.5), ("silent", 0.5, 0.4))
    }
    assert instruction_effect._bar(scores, "good", classes=False) == (0.5, 0.25, 1.0)
    assert np.isnan(instruction_effect._bar(scores, "silent", classes=False)).all()
    assert instruction_effect._bar(scores, "silent", classes=True) == (0.75, 0.75, 0.75)


@pytest.fixture(scope="module")
def tasks(embedded, tmp_path_factory):
    """Two tables of alcohols and rings, prepared."""
    root = tmp_path_factory.mktemp("tasks")
    molecules = [*("C" * n + "O" for n in range(1, 31)), *("c1ccccc1" + "C" * n for n in range(30))]
    numbers = "".join(f"{smiles},{len(smiles)}\n" for smiles in molecules)
    classes = "".join(f"{smiles},{int('O' in smiles)}\n" for smiles in molecules)
    for name, task, table in (("long", "property_regression", numbers), ("wet", "property_classification", classes)):
        (root / f"{name}.csv").write_text(f"smiles,{name}\n{table}")
        settings = Settings(task=task, tokenizer=str(embedded / "tokenizer"), columns=Columns(targets=(name,)))
        prepare({None: [root / f"{name}.csv"]}, root / "tasks" / name, settings)
    return root / "tasks"


@pytest.mark.slowest
def test_the_program(tasks, untrained, tmp_path, capsys):
    common = ["--tasks", str(tasks), "--output", str(tmp_path / "out"), "--limit", "4"]
    instruction_effect.main([*common, "--before", str(untrained), "--after", f"same={untrained}"])
    result = json.loads((tmp_path / "out" / "instruction_effect.json").read_text())
    assert {task: each["classes"] for task, each in result["tasks"].items()} == {"long": False, "wet": True}
    for each in result["tasks"].values():
        assert list(each["scores"]) == ["chance", "constant", "Morgan random forest", "before", "same"]
        assert each["scores"]["before"] == each["scores"]["same"]
        assert not each["change"]["same"]["mean"]  # 0, or None where no answer was a number
    assert (tmp_path / "out" / "instruction_effect.png").read_bytes().startswith(b"\x89PNG")
    assert "## wet: 4 questions" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="give each of several runs a name of its own"):
        instruction_effect.main([*common, "--before", str(untrained), "--after", str(untrained), str(untrained)])


def test_a_folder_without_properties(tmp_path):
    with pytest.raises(DataError, match="has no prepared folder of property_regression or property_classification"):
        instruction_effect.property_folders(tmp_path)


def test_models_are_asked_about_the_test_split(tmp_path, monkeypatch):
    asked = []

    def evaluate(config, workdir):
        asked.append((config.split, config.limit, config.task))
        return {}

    monkeypatch.setattr(instruction_effect, "evaluate", evaluate)
    monkeypatch.setattr(instruction_effect.storage, "read_json_lines", lambda path: [])
    instruction_effect.answered(tmp_path, tmp_path, classes=True, limit=7, workdir=tmp_path)
    assert asked == [("test", 7, "property_classification")]
