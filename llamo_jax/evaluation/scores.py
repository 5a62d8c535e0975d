"""The scores of each task, and of each row."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from data_pipeline.errors import DataError
from llamo_jax.evaluation import intervals, iupac
from llamo_jax.evaluation.answers import by_property, classification_scores, number_in, regression_scores, yes_in
from llamo_jax.evaluation.claims import hallucination_scores
from llamo_jax.evaluation.metric_tokenizer import MetricTokenizer
from llamo_jax.evaluation.molecules import compare, molecule_scores
from llamo_jax.evaluation.text import rouge_l, text_scores

TEXT, MOLECULE, NUMBER, YES_NO = "text", "molecule", "number", "yes_no"

KINDS = {
    "description": TEXT,
    "iupac_name": TEXT,
    "instruction": TEXT,
    "forward_reaction": MOLECULE,
    "retrosynthesis": MOLECULE,
    "molecule_generation": MOLECULE,
    "property_regression": NUMBER,
    "property_classification": YES_NO,
}
"""What the answers of a task are."""

Row = Mapping[str, Any]


def score(task: str, rows: Sequence[Row], tokenizer: MetricTokenizer) -> dict[str, Any]:
    """All scores of a task's rows {"prediction", "target"}; see the modules of each kind of answer.

    Descriptions that come with their molecule ("smiles") are also searched for claims that the molecule disproves, and
    IUPAC names are read as structures, where OPSIN is installed.
    tokenizer: for text. Raises DataError if there is no such task.
    """
    predictions, targets = [row["prediction"] for row in rows], [row["target"] for row in rows]
    kind = kind_of(task)
    if kind == MOLECULE:
        return molecule_scores(predictions, targets)
    if kind == NUMBER:
        return regression_scores(predictions, targets, asked_about(rows)) | _by_property(rows)
    if kind == YES_NO:
        yes = [row.get("yes_probability") for row in rows]
        return classification_scores(predictions, targets, yes, asked_about(rows))
    scores = text_scores(predictions, targets, tokenizer)
    exact = np.array([p.strip() == t.strip() for p, t in zip(predictions, targets, strict=True)], float)
    scores["exact"] = float(exact.mean())
    scores["intervals"] |= intervals.intervals(len(rows), {"exact": intervals.mean(exact)})
    described = [row for row in rows if len(row.get("smiles") or ()) == 1]
    if task == "description" and described:
        smiles = [row["smiles"][0] for row in described]
        found = hallucination_scores([row["prediction"] for row in described], smiles)
        # people's descriptions are not wholly true for our reading of them either: what a good answer can reach
        of_targets = hallucination_scores([row["target"] for row in described], smiles)
        scores["hallucination"] = found | {"target_precision": of_targets["precision"]}
    if task == "iupac_name" and len(described) == len(rows):
        if iupac.is_available():
            smiles = [row["smiles"][0] for row in described]
            scores["structures"] = iupac.structure_scores(predictions, smiles, targets)
        else:
            scores |= {"structures": None, "structures_missing": iupac.MISSING}
    return scores


def asked_about(rows: Sequence[Row]) -> list[tuple[str, ...]] | None:
    """The molecules of each row; None where a row shows none, or all show the same: rows are what is drawn then."""
    found = [tuple(row.get("smiles") or ()) for row in rows]
    return found if all(found) and len(set(found)) > 1 else None


def _by_property(rows: Sequence[Row]) -> dict[str, Any]:
    """Where rows ask for several properties, the errors of each: units differ, and together they tell little."""
    properties = by_property(rows)
    if len(properties) < 2:
        return {}
    found = {}
    for (name, unit), group in properties.items():
        scores = regression_scores([row["prediction"] for row in group], [row["target"] for row in group])
        kept = {key: scores[key] for key in ("mae", "rmse", "r2", "unparsable")}
        found[name] = {"unit": unit, "rows": len(group), **kept}
    return {"by_property": found}


def kind_of(task: str) -> str:
    """What a task's answers are: one of TEXT, MOLECULE, NUMBER, YES_NO; raises DataError."""
    if task not in KINDS:
        raise DataError(f"unknown task {task!r}; known: {', '.join(KINDS)}")
    return KINDS[task]


def _near(prediction: str, target: str) -> float | None:
    ours, theirs = number_in(prediction), number_in(target)
    return None if ours is None or theirs is None else -abs(ours - theirs)


ROW_SCORES: dict[str, tuple[str, Callable[[str, str], float | None]]] = {
    TEXT: ("ROUGE-L", rouge_l),
    MOLECULE: ("Morgan Tanimoto", lambda prediction, target: compare(prediction, target).morgan),
    NUMBER: ("negative absolute error", _near),
    YES_NO: ("correct", lambda prediction, target: float(yes_in(prediction) is yes_in(target))),
}
"""By kind of answer: the name and the function of a score of one row, higher is better; None: no such answer."""
