"""Bootstrap intervals: of exactly the scores that are reported, seeded, and as wide as another library's."""

import csv
import random
import re

import numpy as np
import pytest
from scipy import stats

from llamo_jax.evaluation import intervals
from llamo_jax.evaluation.metric_tokenizer import WORDS, load_metric_tokenizer
from llamo_jax.evaluation.report import write_report
from llamo_jax.evaluation.scores import score

TOKENIZER = load_metric_tokenizer(WORDS)
QUESTIONS = ("What is the HOMO energy of this molecule, in Hartree?", "What is the pIC50 of this molecule?")


def described(shared_data, count=40):
    """Descriptions of which every third belongs to another molecule."""
    with (shared_data / "chebi20" / "valid.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[:count]
    return [
        {"smiles": [row["SMILES"]], "prediction": rows[i - i % 3 // 2]["description"], "target": row["description"]}
        for i, row in enumerate(rows)
    ]


def numbers(count=60, questions=QUESTIONS):
    rng = random.Random(3)
    rows = []
    for index in range(count):
        truth = rng.gauss(0, 1)
        answer = "I cannot say" if index % 10 == 0 else f"{truth + rng.gauss(0, 0.3):.3f}"
        asked = questions[index % len(questions)]
        rows.append({"smiles": ["CCO"], "question": asked, "prediction": answer, "target": f"{truth:.3f}"})
    return rows


def classes(count=50):
    rng = random.Random(4)
    rows = []
    for index in range(count):
        truth, answer = rng.random() < 0.4, ("Yes", "No", "Perhaps")[rng.choices((0, 1, 2), (5, 5, 1))[0]]
        chance = round(0.3 * truth + 0.7 * rng.random(), 1)  # with ties
        rows.append(
            {"prediction": answer, "target": "Yes" if truth else "No", "yes_probability": chance, "index": index}
        )
    return rows


def molecules(count=40):
    targets = ["CCO", "c1ccccc1O", "CC(=O)Oc1ccccc1C(=O)O", "C1CCNCC1"]
    answers = ["CCO", "c1ccccc1N", "C1CC", "CC(=O)O"]
    rng = random.Random(5)
    return [{"prediction": rng.choice(answers), "target": rng.choice(targets)} for _ in range(count)]


def rows_of(task, shared_data):
    return {
        "description": lambda: described(shared_data),
        "property_regression": numbers,
        "property_classification": classes,
        "forward_reaction": molecules,
    }[task]()


TASKS = ("description", "property_regression", "property_classification", "forward_reaction")


def value_at(metrics, name):
    for part in name.split("."):
        metrics = metrics[part]
    return metrics


@pytest.mark.parametrize("task", TASKS)
def test_with_every_row_once_they_are_the_scores(task, shared_data, monkeypatch):
    """So that each interval is of the score whose name it has."""
    monkeypatch.setattr(intervals, "_weights", lambda rows: [np.ones((1, rows))])
    rows = rows_of(task, shared_data)
    metrics = score(task, rows, TOKENIZER)
    groups = [metrics] + ([metrics["hallucination"]] if "hallucination" in metrics else [])
    for scores in groups:
        assert len(scores["intervals"]) > 3
        for name, found in scores["intervals"].items():
            value = value_at(scores, name)
            expected = None if value is None else [pytest.approx(value, abs=1e-9)] * 2
            assert found == expected, name


@pytest.mark.parametrize("task", TASKS)
def test_they_hold_the_score_and_repeat(task, shared_data):
    rows = rows_of(task, shared_data)
    metrics = score(task, rows, TOKENIZER)
    assert metrics["intervals"] == score(task, rows, TOKENIZER)["intervals"]
    for name, found in metrics["intervals"].items():
        value = value_at(metrics, name)
        assert found[0] <= value <= found[1]
        assert found[0] < found[1] or value in (0, 1), name


def test_they_are_as_wide_as_scipys(monkeypatch):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=200), rng.gamma(2.0, size=200)
    ours = intervals.intervals(200, {"mean": intervals.mean(x), "ratio": intervals.ratio(x, y)})
    options = {"n_resamples": 4000, "method": "percentile", "rng": 1, "vectorized": True}
    theirs = {
        "mean": stats.bootstrap((x,), np.mean, **options),
        "ratio": stats.bootstrap((x, y), lambda a, b, axis: a.sum(axis) / b.sum(axis), paired=True, **options),
    }
    for name, found in theirs.items():
        width = found.confidence_interval.high - found.confidence_interval.low
        assert ours[name] == pytest.approx(list(found.confidence_interval), abs=0.1 * width)
    scores, positive = rng.random(60).round(1), rng.random(60) < 0.4
    assert intervals.intervals(1, {"mean": intervals.mean(x[:1])}) == {"mean": None}
    with_ties = intervals.roc_auc(scores, positive)(np.ones((1, 60)))[0]
    u = stats.mannwhitneyu(scores[positive], scores[~positive]).statistic
    assert with_ties == pytest.approx(u / positive.sum() / (~positive).sum())
    monkeypatch.setattr(intervals, "_NUMBERS_AT_A_TIME", 2000)  # many rows come in several goes
    assert intervals.intervals(200, {"mean": intervals.mean(x)})["mean"] == ours["mean"]


def test_the_first_screen_says_what_was_evaluated_and_how_it_went(shared_data, tmp_path):
    rows = described(shared_data)
    metrics = score("description", rows, TOKENIZER)
    found = metrics["hallucination"]
    about = {
        "model": {"checkpoint": "runs/mine", "fingerprint": "abc"},
        "source": {"data": "data/mine", "split": "test", "fingerprint": "def"},
        "rejected": {"invalid SMILES": 3},
        "graph_use": {"rows": 40, "change": {"other": 0.9, "blank": 0.5}, "intervals": {"change.other": [0.8, 1.0]}},
    }
    write_report(tmp_path / "page.md", "description", metrics | about, rows)
    first = (tmp_path / "page.md").read_text().split("## Scores")[0].replace("\\", "")
    assert "40 answers of runs/mine (weights abc) to data/mine, split test. Left out: 3 invalid SMILES." in first
    assert f"Of {found['claims']} claims" in first
    low, high = found["intervals"]["precision"]
    assert f"{found['precision']:.1%} ({low:.1%} to {high:.1%}) are true" in first
    assert "costs 0.90 (0.80 to 1.00) nats more, without any graph 0.50;" in first
    assert first.count("data:image/png") == 1

    several = numbers()
    metrics = score("property_regression", several, TOKENIZER)
    homo = score("property_regression", several[::2], TOKENIZER)
    assert metrics["by_property"]["HOMO energy"] == {
        "unit": "Hartree", "rows": 30, **{name: homo[name] for name in ("mae", "rmse", "r2", "unparsable")}
    }  # fmt: skip
    assert "by_property" not in homo
    write_report(tmp_path / "one.html", "property_regression", homo, several[::2])
    page = (tmp_path / "one.html").read_text()
    low, high = homo["intervals"]["mae"]
    assert f"off by {homo['mae']:.3g} ({low:.3g} to {high:.3g}) Hartree on average" in page
    assert page.index("Result") < page.index("Scores")


def test_a_page_shows_the_best_answers_as_the_best(tmp_path):
    rows = [{"smiles": ["CCO"], "prediction": said, "target": "No", "question": "Is it an acid?", "index": number}
            for number, said in enumerate(["Yes, it is wrong.", "No.", "No, indeed."])]  # fmt: skip
    texts = [{**row, "prediction": said, "target": "It is an alcohol"} for row, said in
             zip(rows, ["A fox.", "It is an alcohol", "It is an acid"], strict=True)]  # fmt: skip
    write_report(tmp_path / "page.md", "description", score("description", texts, TOKENIZER), texts)
    page = (tmp_path / "page.md").read_text()
    best, worst = page.split("## Best answers")[1].split("## Worst answers")
    for part, order in (best, (1, 2, 0)), (worst, (0, 2, 1)):
        assert [int(line.split("|")[1]) for line in part.splitlines() if re.match(r"\| \d", line)] == list(order)
    yes = [*rows, {**rows[0], "target": "Yes"}]  # one of four
    write_report(tmp_path / "yes.md", "property_classification", score("property_classification", yes, TOKENIZER), yes)
    told = (tmp_path / "yes.md").read_text().replace("\\", "")
    assert "the more frequent answer, always given, would be in 75.0%" in told


def test_what_is_asked_about_one_molecule_is_drawn_together():
    """Three equal rows of each molecule tell no more than one does."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=40)
    once = intervals.intervals(40, {"mean": intervals.mean(values)})
    thrice = intervals.intervals(120, {"mean": intervals.mean(np.repeat(values, 3))}, np.repeat(np.arange(40), 3))
    np.testing.assert_allclose(thrice["mean"], once["mean"])
    narrow = intervals.intervals(120, {"mean": intervals.mean(np.repeat(values, 3))})
    assert np.ptp(narrow["mean"]) < 0.7 * np.ptp(once["mean"])
    assert intervals.intervals(3, {"mean": intervals.mean(np.ones(3))}, ["one"] * 3) == {"mean": None}
    rows = [{"smiles": [f"{'C' * (i // 3 + 1)}O"], "prediction": f"{v:.3f}", "target": "0.0", "question": ""}
            for i, v in enumerate(np.repeat(values, 3))]  # fmt: skip
    single = [row for i, row in enumerate(rows) if i % 3 == 0]
    got, expected = (score("property_regression", each, TOKENIZER)["intervals"] for each in (rows, single))
    np.testing.assert_allclose(got["mae"], expected["mae"])
    yes = [{**row, "prediction": "Yes" if i % 6 < 3 else "No", "target": "Yes"} for i, row in enumerate(rows)]
    got, expected = (
        score("property_classification", each, TOKENIZER)["intervals"]["accuracy"] for each in (yes, yes[::3])
    )
    np.testing.assert_allclose(got, expected)
