"""Files of predictions: JSON lines of {"prediction", "target"}, and whatever else is known of a row."""

import math
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple, cast

from data_pipeline.errors import DataError
from data_pipeline.files import BadRow, read_rows

SHOWN = 5  # broken lines that are named one by one


class Predictions(NamedTuple):
    """Rows of a file, each with at least two texts, "prediction" and "target"; and why the others are none.

    broken: reason → count; broken_lines: the first few, as (line, from 1, and reason).
    """

    rows: list[dict[str, Any]]
    broken: dict[str, int]
    broken_lines: list[tuple[int, str]]


def read_predictions(path: Path) -> Predictions:
    """The rows of a .jsonl file (or any that `read_rows` reads, with such columns); raises DataError if none is whole.

    Numbers, true and false are read as texts of them. smiles, if there, may be a SMILES or a list of them;
    yes_probability is a number, also in the text of a table; an empty cell is a missing one.
    """
    rows, broken, lines = [], Counter[str](), []
    for number, row in enumerate(read_rows(path), start=1):
        reason = row.reason if isinstance(row, BadRow) else _fault(row)
        if reason:
            broken[reason] += 1
            lines.append((number, reason))
        else:
            row = cast(dict[str, Any], row)
            texts = {key: _as_text(row[key]) for key in ("prediction", "target")}
            rows.append({**row, **texts, "smiles": _smiles(row.get("smiles"))})
            if "yes_probability" in row:
                rows[-1]["yes_probability"] = _probability(row["yes_probability"])
    if not rows:
        raise DataError(f'{path}: no row with "prediction" and "target"; {dict(broken)}')
    return Predictions(rows, dict(broken), lines[:SHOWN])


def _fault(row: dict[str, Any]) -> str | None:
    """What is wrong with a row; None if nothing is."""
    for key in ("prediction", "target"):
        if key not in row:
            return f'no "{key}"'
        value = row[key]
        if not isinstance(value, str | int | float) or (isinstance(value, float) and not math.isfinite(value)):
            return f'"{key}" is neither text nor a number'
        try:
            _as_text(value).encode()
        except UnicodeEncodeError:
            return f'"{key}" is not valid Unicode'
    try:
        _probability(row.get("yes_probability"))
    except (TypeError, ValueError):
        return '"yes_probability" is not a number'
    question = row.get("question")
    if question is not None and not isinstance(question, str):
        return '"question" is no text'
    return None


def _probability(value: Any) -> float | None:
    """A number, as JSON or a table writes it; None where it is missing: empty, or not a number. Raises ValueError."""
    if isinstance(value, bool):
        raise ValueError("a truth value")
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    number = float(value)
    return None if math.isnan(number) else number


def _as_text(value: Any) -> str:
    """JSON's numbers as it writes them, true and false as yes and no."""
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _smiles(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []
