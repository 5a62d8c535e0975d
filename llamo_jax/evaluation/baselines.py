"""What property answers are worth: the same questions answered by chance, by a constant, and by a random forest."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from data_pipeline.molecule import parse_smiles
from data_pipeline.records import Record
from llamo_jax.config import ConfigError
from llamo_jax.evaluation.answers import classification_scores, number_in, regression_scores, yes_in

FOREST = {"n_estimators": 200, "max_features": 1 / 3, "n_jobs": -1}
FOREST_SEEDS = 3

Predictor = Callable[[Sequence[Record], np.ndarray, Sequence[Record]], np.ndarray]
"""(training records, their values, test records), all of one question → a value for each test record."""


def baseline_scores(
    train: Sequence[Record], test: Sequence[Record], predict: Predictor, *, classes: bool
) -> dict[str, Any]:
    """Scores of a baseline on property questions, as of a model's answers; each question is learned by itself.

    classes: whether answers are yes or no, and values the probability of yes; else they are numbers.
    """
    values = [_value(record, classes=classes) for record in train]
    known = [(record, value) for record, value in zip(train, values, strict=True) if value is not None]
    found = np.zeros(len(test))
    asked = [_question(record) for record in test]
    for question in dict.fromkeys(asked):
        own = [(record, value) for record, value in known if _question(record) == question]
        places = np.array([each == question for each in asked])
        records = [record for record, place in zip(test, places, strict=True) if place]
        found[places] = predict([record for record, _ in own], np.array([value for _, value in own], float), records)
    targets = [record.conversation.messages[-1].content for record in test]
    molecules = [record.conversation.smiles for record in test]
    if classes:
        answers = ["Yes" if value > 0.5 else "No" for value in found]
        return classification_scores(answers, targets, found.tolist(), molecules)
    return regression_scores([f"{value:.6f}" for value in found], targets, molecules)


def chance(train: Sequence[Record], values: np.ndarray, test: Sequence[Record]) -> np.ndarray:
    """A value of the training set, drawn at random."""
    return np.random.default_rng(0).choice(values, len(test))


def constant(train: Sequence[Record], values: np.ndarray, test: Sequence[Record]) -> np.ndarray:
    """The mean of the training set; of classes, the share of yes."""
    return np.full(len(test), values.mean())


def forests() -> tuple[Any, Any]:
    """scikit-learn's random forests, of classes and of numbers; raises ConfigError where it is missing.

    Ask for them before models answer, which takes hours.
    """
    try:
        from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
    except ImportError:
        raise ConfigError('the random forest needs scikit-learn: pip install "llamo_jax[baselines]"') from None
    return RandomForestClassifier, RandomForestRegressor


def forest(train: Sequence[Record], values: np.ndarray, test: Sequence[Record]) -> np.ndarray:
    """A random forest on Morgan fingerprints, the mean of FOREST_SEEDS of them; needs scikit-learn ([baselines])."""
    classifier, regressor = forests()
    classes = set(np.unique(values)) <= {0.0, 1.0}
    x, unseen = fingerprints(train), fingerprints(test)
    answers = np.zeros(len(test))
    for seed in range(FOREST_SEEDS):
        model = (classifier if classes else regressor)(random_state=seed, **FOREST).fit(x, values)
        # of a training set with one class alone, its only probability is that class's
        yes = list(model.classes_).index(1.0) if classes and 1.0 in model.classes_ else None
        if classes:
            answers += 0 if yes is None else model.predict_proba(unseen)[:, yes]
        else:
            answers += model.predict(unseen)
    return answers / FOREST_SEEDS


BASELINES: dict[str, Predictor] = {"chance": chance, "constant": constant, "Morgan random forest": forest}
"""Name → predictor, from the poorest to the best."""


def fingerprints(records: Sequence[Record]) -> np.ndarray:
    """uint8[records, 2048], of each record's first molecule."""
    from rdkit.Chem.rdFingerprintGenerator import GetMorganGenerator

    generator = GetMorganGenerator(radius=2, fpSize=2048)
    molecules = [parse_smiles(record.conversation.smiles[0]) for record in records]
    return np.stack([generator.GetFingerprintAsNumPy(molecule) for molecule in molecules])


def _question(record: Record) -> str:
    return record.conversation.messages[0].content


def _value(record: Record, *, classes: bool) -> float | None:
    answer = record.conversation.messages[-1].content
    if classes:
        yes = yes_in(answer)
        return None if yes is None else float(yes)
    return number_in(answer)
