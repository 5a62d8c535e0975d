"""Property questions answered by chance, a constant and a forest."""

import sys

import numpy as np
import pytest

from data_pipeline.conversation import Conversation, Message
from data_pipeline.records import Record
from llamo_jax.config import ConfigError
from llamo_jax.evaluation.baselines import BASELINES, baseline_scores, chance, constant, forest

ALCOHOLS = ["C" * length + "O" for length in range(1, 13)]
ALKANES = ["C" * length for length in range(2, 14)]


def record(smiles, question, answer):
    return Record(Conversation((smiles,), (Message("user", question), Message("assistant", answer))), ())


def numbers(factor, question):
    return [record(smiles, question, f"{factor * len(smiles):.1f}") for smiles in ALKANES]


def test_questions_are_learned_one_by_one():
    train = [*numbers(1.0, "What is the length of this molecule?"), *numbers(-10.0, "What is its negative?")]
    test = [record("CCCCCCC", question, answer) for question, answer in
            (("What is the length of this molecule?", "7.0"), ("What is its negative?", "-70.0"))]  # fmt: skip
    by_forest = baseline_scores(train, test, forest, classes=False)
    assert by_forest["mae"] < 25  # of two questions that are 77 apart
    mean = np.mean([len(smiles) for smiles in ALKANES])
    by_mean = baseline_scores(train, test, constant, classes=False)
    assert by_mean["mae"] == pytest.approx((abs(mean - 7) + 10 * abs(mean - 7)) / 2)
    assert by_mean["answered"] == 1


def test_classes():
    question = "Is it an alcohol?"
    train = [record(smiles, question, "Yes.") for smiles in ALCOHOLS[::2]] + [
        record(smiles, question, "No.") for smiles in ALKANES[::2]
    ]
    test = [record(smiles, question, "Yes.") for smiles in ALCOHOLS[1::2]] + [
        record(smiles, question, "No.") for smiles in ALKANES[1::2]
    ]
    scores = {name: baseline_scores(train, test, predict, classes=True) for name, predict in BASELINES.items()}
    assert scores["Morgan random forest"]["roc_auc"] == scores["Morgan random forest"]["accuracy"] == 1
    assert scores["constant"]["roc_auc"] == 0.5
    assert scores["constant"]["yes_rate"] == 0  # a share of exactly a half is no yes
    # one class alone: nothing else is ever said
    only = baseline_scores(train[:3], test, forest, classes=True)
    assert only["yes_rate"] == 1


def test_what_the_forest_needs_is_said_in_a_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    with pytest.raises(ConfigError, match=r"pip install .llamo_jax\[baselines\]"):
        baseline_scores(numbers(1.0, "How long?"), numbers(1.0, "How long?"), forest, classes=False)


def test_chance_draws_what_was_seen():
    values = np.array([1.0, 5.0, 9.0])
    found = chance([], values, [None] * 500)
    assert set(found) == set(values)
    assert np.bincount(found.astype(int))[[1, 5, 9]] == pytest.approx(500 / 3, rel=0.25)
