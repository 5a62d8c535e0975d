"""Projectors compared: equal budgets, cells that are not trained twice, means and differences by hand."""

import itertools
import json
import os
import types

import numpy as np
import pytest

from data_pipeline.records import read_records
from llamo_jax import runs, sharding
from llamo_jax.analysis import ablation, cells, experiments

KINDS = ("multi_level", "none")


def command(few, output, *more):
    return [
        *("--output", str(output), "--data", str(few / "description"), "--split", "validation", "--kinds", *KINDS),
        *("--text", "hidden", "--steps", "2", "--molecules", "4", *more),
    ]


@pytest.fixture(scope="module")
def undisturbed(few, tmp_path_factory):
    output = tmp_path_factory.mktemp("ablation") / "out"
    ablation.main(command(few, output, "--seeds", "1"))
    return output


def without_seconds(output):
    result = json.loads((output / "ablation.json").read_text())
    for cell in result["cells"]:
        assert cell.pop("seconds") > 0
    return result


def test_every_cell_has_the_same_budget(undisturbed):
    result = without_seconds(undisturbed)
    by_kind = {cell["kind"]: cell for cell in result["cells"]}
    assert set(by_kind) == set(KINDS)
    tokens = [by_kind[kind]["target_tokens"] for kind in KINDS]
    assert min(tokens) > 500
    # rows without graph tokens are shorter, and hold as many conversations
    assert tokens[1] == pytest.approx(tokens[0], rel=0.1)
    assert [by_kind[kind]["graph_tokens"] for kind in KINDS] == [28, 0]
    assert by_kind["none"]["other_costs"] == 0  # what is not shown costs nothing
    assert by_kind["none"]["f1"] == by_kind["none"]["f1_other"]
    assert by_kind["multi_level"]["other_costs"] != 0
    page = (undisturbed / "ablation.md").read_text()
    assert "| multi_level | hidden | 28 | 147,904 | 2 |" in page
    assert (undisturbed / "ablation.png").read_bytes().startswith(b"\x89PNG")
    # the same molecules, read as the run's validation reads them, if fewer
    assert by_kind["none"]["loss"] == pytest.approx(by_kind["none"]["validation_loss"], rel=0.3)


def test_it_goes_on_where_it_was_interrupted(undisturbed, few, tmp_path, monkeypatch):
    trained = []
    train = runs.train

    def interrupted(config, workdir):
        trained.append(config.model.projector.kind)
        if trained == ["multi_level", "none"]:
            raise KeyboardInterrupt
        return train(config, workdir)

    monkeypatch.setattr(cells.runs, "train", interrupted)
    with pytest.raises(SystemExit) as stopped:
        ablation.main(command(few, tmp_path / "out", "--seeds", "1"))
    assert stopped.value.code == 130
    ablation.main(command(few, tmp_path / "out", "--seeds", "1"))
    assert trained == ["multi_level", "none", "none"]  # the finished cell was read
    assert without_seconds(tmp_path / "out") == without_seconds(undisturbed)
    with pytest.raises(SystemExit, match="holds a cell of another comparison"):
        ablation.main(command(few, tmp_path / "out", "--seeds", "1", "--steps", "4"))


def test_a_cell_that_was_stopped_is_not_measured(few, tmp_path, monkeypatch):
    trained = []

    def stopped(config, workdir):
        trained.append(workdir)
        return types.SimpleNamespace(step=1)  # what SIGTERM leaves of two steps

    monkeypatch.setattr(cells.runs, "train", stopped)
    with pytest.raises(SystemExit) as end:
        ablation.main(command(few, tmp_path / "out", "--seeds", "1"))
    assert end.value.code == os.EX_TEMPFAIL
    assert len(trained) == 1
    assert list((tmp_path / "out").rglob("result.json")) == []


def test_the_plan(few, tmp_path, capsys):
    ablation.main(command(few, tmp_path / "out", "--seeds", "3", "--dry_run"))
    printed = capsys.readouterr().out
    assert "6 runs of 2 steps" in printed
    assert "| none | 3 |" in printed
    assert not (tmp_path / "out").exists()


def test_rows_hold_as_many_conversations_whatever_is_shown(few):
    values = experiments.read_config_file("configs/stage1.py:tiny")
    values.data.source = str(few / "description")
    rows = {}
    for kind, text in itertools.product(KINDS, ("hidden", "shown")):
        config = cells.cell_config(values, cells.Cell(kind, text, seed=0))
        _, data, _ = runs.read_data(config, sharding.make_mesh(config.mesh))
        rows[kind, text] = (config.data.tokens_per_row, data.train.conversations_per_row(0))
    tokens = {cell: each[0] for cell, each in rows.items()}
    assert tokens["multi_level", "hidden"] == 256
    assert tokens["none", "hidden"] < tokens["none", "shown"] < 256 < tokens["multi_level", "shown"]
    held = [each[1] for each in rows.values()]
    # of about two hundred slots, 28 or 50 more a conversation would be another fifth of them
    assert held == pytest.approx([held[0]] * 4, rel=0.07)


def test_means_and_paired_differences():
    scores = dict.fromkeys(ablation.METRICS, 0.0) | {"meteor": None}
    about = {"text": "hidden", "graph_tokens": 28, "parameters": 1, "steps": 2, "target_tokens": 7}
    values = {"a": [1.0, 2.0, 4.0], "b": [2.0, 4.0, 5.0]}
    results = [{**scores, **about, "kind": kind, "seed": seed, "f1": value}
             for kind, found in values.items() for seed, value in enumerate(found)]  # fmt: skip
    a, b = cells.compared(results, "a", tuple(ablation.METRICS))
    assert a["f1"] == {"mean": pytest.approx(7 / 3), "std": pytest.approx(np.std([1, 2, 4], ddof=1))}
    assert "meteor" not in a
    difference = b["f1"]["difference"]
    assert difference["mean"] == pytest.approx(4 / 3)
    # differences 1, 2, 1: t of two degrees of freedom is 4.3027
    half = 4.3027 * np.std([1, 2, 1], ddof=1) / np.sqrt(3)
    assert difference["interval"] == pytest.approx([4 / 3 - half, 4 / 3 + half], abs=1e-4)
    assert experiments.over_seeds([3.0]) == {"mean": 3.0, "std": None}
    assert experiments.paired_difference([3.0], [1.0])["interval"] is None


def test_cells_have_their_seeds(few):
    values = experiments.read_config_file("configs/stage1.py:tiny")
    values.data.source = str(few / "description")
    found = [cells.cell_config(values, cells.Cell("multi_level", "hidden", seed)).seed for seed in (0, 2)]
    assert found == [0, 2]


def test_what_another_graph_costs(few, monkeypatch):
    """Nats that answers lose: more than nothing where another molecule's graph makes them less likely."""
    likelihoods = iter(([np.array([-1.0])] * 4, [np.array([-3.0])] * 4))
    stub = types.SimpleNamespace(target_log_probabilities=lambda records: next(likelihoods))
    monkeypatch.setattr(ablation, "load_generator", lambda *_, **__: (stub, ""))
    monkeypatch.setattr(ablation, "describe_records", lambda generator, records, graphs_of: [""] * len(records))
    found = ablation.measure("run", read_records(few / "description", "validation")[:4])
    assert (found["loss"], found["other_costs"]) == (1.0, 2.0)
