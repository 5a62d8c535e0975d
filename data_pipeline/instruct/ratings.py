"""Sheets for people who rate conversations, and what filled ones say: means, intervals, and agreement."""

import csv
import io
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from data_pipeline import storage
from data_pipeline.errors import DataError
from data_pipeline.files import BadRow, read_rows

RUBRIC = {
    "relevance": "5: every answer is about the molecules and the question; 3: some beside the point; 1: none is.",
    "correctness": "5: all that is said of the molecules is true; 3: a minor fault; 1: a fault that misleads.",
    "helpfulness": "5: a chemist or student would keep it; 3: true and thin; 1: of no use.",
}
"""What is rated, from 1 to 5."""

COLUMNS = ("conversation", *RUBRIC, "comment")
RATINGS = "ratings.json"
CONFIDENCE = 0.95


def as_json(value: Any) -> str:
    """Text of an object, the same whatever the order of its keys."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def as_csv(rows: Sequence[Sequence[Any]]) -> str:
    """The text of a sheet with these rows."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([COLUMNS, *rows])
    return text.getvalue()


def sample(path: epath.Path, count: int, seed: int) -> list[dict[str, Any]]:
    """Conversations of a file, drawn without looking; raises DataError if it is not there or has none."""
    rows: list[dict[str, Any]] = []
    rng = random.Random(seed)
    if not path.exists():
        raise DataError(f"{path}: no such file; write conversations first, with --input")
    with path.open() as lines, storage.understood(path):
        for number, line in enumerate(lines):  # reservoir sampling: the file may be larger than the memory
            place = number if number < count else rng.randint(0, number)
            if place < len(rows):
                rows[place] = json.loads(line)
            elif place < count:
                rows.append(json.loads(line))
    return rows


class Rated(NamedTuple):
    """One rater's scores, by conversation: relevance, correctness, helpfulness; NaN where a cell is empty."""

    rater: str
    scores: dict[str, tuple[float, ...]]


def read_sheet(path: Path) -> Rated:
    """A filled sheet; raises DataError, with the line, if a score is none of 1 to 5."""
    scores: dict[str, tuple[float, ...]] = {}
    for number, row in enumerate(read_rows(path), start=2):
        if isinstance(row, BadRow):
            raise DataError(f"{path}, line {number}: {row.reason}")
        missing = [name for name in ("conversation", *RUBRIC) if name not in row]
        if missing:
            raise DataError(f"{path} is no sheet: no column {', '.join(missing)}")
        values = tuple(_score(str(row[name] or ""), f"{path}, line {number}, {name}") for name in RUBRIC)
        if not all(map(np.isnan, values)):
            scores[str(row["conversation"])] = values
    if not scores:
        raise DataError(f"{path}: nothing is filled in")
    return Rated(path.stem, scores)


def _score(text: str, where: str) -> float:
    if not text.strip():
        return float("nan")
    try:
        value = float(text.strip().replace(",", "."))
    except ValueError:
        value = 0.0
    if not 1 <= value <= 5:
        raise DataError(f"{where}: {text!r} is no score from 1 to 5")
    return value


def read_ratings(folder: epath.Path, paths: Sequence[Path]) -> str:
    """Means and agreement of several sheets, to DIR/ratings.json; returns a table for people."""
    rated = [read_sheet(Path(path)) for path in paths]
    if len({each.rater for each in rated}) < len(rated):  # anna/sheet.csv, ben/sheet.csv
        rated = [each._replace(rater=str(path.with_suffix(""))) for each, path in zip(rated, paths, strict=True)]
    result = summarize(rated)
    storage.write_json(folder / RATINGS, result)
    lines = [f"{'':<14}{'mean':>7}{'95 % interval':>18}{'alpha':>8}   by rater"]
    for name, values in result["scores"].items():
        mean, alpha = ("" if values[key] is None else f"{values[key]:.2f}" for key in ("mean", "alpha"))
        interval = "{:.2f} to {:.2f}".format(*values["interval"]) if values["interval"] else ""
        raters = ", ".join(f"{rater} {mean:.2f}" for rater, mean in values["by_rater"].items())
        lines.append(f"{name:<14}{mean:>7}{interval:>18}{alpha:>8}   {raters}")
    lines.append(f"{result['conversations']:,} conversations, {result['shared']:,} of them rated by more than one")
    return "\n".join(lines)


def summarize(rated: Sequence[Rated]) -> dict[str, Any]:
    """Means over conversations with bootstrap intervals (SciPy), and Krippendorff's alpha for ordinal scores.

    alpha (Krippendorff, 2004, by the library krippendorff): 1 for perfect agreement, 0 for chance; None where no
    conversation has two raters or all scores are one.
    """
    names = list(dict.fromkeys(name for each in rated for name in each.scores))
    empty = (float("nan"),) * len(RUBRIC)
    table = np.array([[each.scores.get(name, empty) for name in names] for each in rated])  # [raters, names, scores]
    result: dict[str, Any] = {
        "raters": [each.rater for each in rated],
        "conversations": len(names),
        "shared": int(((~np.isnan(table).all(axis=2)).sum(0) > 1).sum()),
        "scores": {},
    }
    for column, name in enumerate(RUBRIC):
        scores = table[:, :, column]
        there = ~np.isnan(scores).all(0)
        means = np.nanmean(scores[:, there], axis=0)
        result["scores"][name] = {
            "mean": float(means.mean()) if there.any() else None,
            "interval": _interval(means),
            "alpha": _alpha(scores),
            "by_rater": {
                each.rater: float(np.nanmean(row))
                for each, row in zip(rated, scores, strict=True)
                if not np.isnan(row).all()
            },
        }
    return result


def _interval(values: np.ndarray) -> list[float] | None:
    from scipy import stats

    if len(values) < 2 or np.ptp(values) == 0:
        return None
    found = stats.bootstrap((values,), np.mean, confidence_level=CONFIDENCE, method="percentile", rng=0)
    return [float(found.confidence_interval.low), float(found.confidence_interval.high)]


def _alpha(scores: np.ndarray) -> float | None:
    import krippendorff

    shared = (~np.isnan(scores)).sum(0) > 1
    values = scores[:, shared]
    if not shared.any() or len(np.unique(values[~np.isnan(values)])) < 2:
        return None
    return float(krippendorff.alpha(reliability_data=scores, level_of_measurement="ordinal"))
