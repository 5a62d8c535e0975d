"""Answers that are a number, a yes or no, or a SMILES: what they say, and how near and how often right that is."""

import math
import re
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from llamo_jax.evaluation import intervals

_MINUS = "\u2212\u2010\u2011\u2012\u2013\u2014\ufe63\uff0d"  # what is typed or typeset for a minus
_RAISED = "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207a\u207b"
_SUPERSCRIPTS = str.maketrans(_RAISED, "0123456789+-")
# A number on its own: not the digits of a name ("C10", "2-methyl"), nor a pH that the value is given at.
_NUMBER = re.compile(
    r"(?<![\w.,])(?<!pH )(?<!pH=)"
    r"(?P<sign>[-+]?)(?P<gap>\s*)"
    r"(?:(?P<thousands>[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?)"  # 1,204.4
    r"|(?P<comma>\d+,\d+)"  # 3,5
    r"|(?P<point>\d+(?:\.\d*)?|\.\d+))"
    r"(?:[eE](?P<e>[-+]?\d+)|\s*[x\u00d7\u00b7*]\s*10\s*(?:\^|\*\*)?\s*[({]?(?P<ten>[-+]?\d+)[)}]?|\^(?P<power>[-+]?\d+))?"
    r"(?!\w*\d)(?![-,]\w*[A-Za-z])(?![.,]\d)"
)
_RANGE = re.compile(r"\s*(?:-|\.\.+|to\b|and\b)\s*[-+]?\.?\d")
_SIGN_BEFORE_SPACE = re.compile(r"(?:^|[=:(\u2248~<>]|\b(?:is|of|was|about|approximately))\s*$")
_YES_NO = re.compile(r"\b(?:(yes|true)|(no|not|false))\b", re.IGNORECASE)


def number_in(text: str) -> float | None:
    """The first number that an answer gives; None if there is none, it is not finite, or it could be meant otherwise.

    Thousands (1,204.4), decimal commas (3,5), powers of ten (1.2e-3, 1.2 x 10^-3, 10⁻³) and every kind of minus are
    read. A range, and a sign that may be a dash, are no number.

    >>> number_in("The logP is \N{MINUS SIGN}1.5, at pH 7.4."), number_in("It is 2-methylbutane.")
    (-1.5, None)
    >>> number_in("1,204.4 nM"), number_in("1.2 \N{MULTIPLICATION SIGN} 10⁻³ mol/L"), number_in("from 1 to 2")
    (1204.4, 0.0012, None)
    """
    text = re.sub(f"[{_MINUS}]", "-", text)
    text = re.sub(f"10([{_RAISED}]+)", r"10^\1", text).translate(_SUPERSCRIPTS)
    match = _NUMBER.search(text)
    if match is None or _RANGE.match(text, match.end()) or re.match(r"\s\d{3}\b", text[match.end() :]):  # 1 204
        return None
    sign = match["sign"]
    if sign and match["gap"] and not _SIGN_BEFORE_SPACE.search(text[: match.start()]):
        return None
    digits = match["thousands"] or match["comma"] or match["point"]
    if match["comma"]:
        whole, _, fraction = digits.partition(",")
        if len(fraction) == 3 and whole.strip("0"):  # 1204,500: thousands or decimals
            return None
        digits = f"{whole}.{fraction}"
    try:
        value = float(f"{digits.replace(',', '')}e{match['e'] or match['ten'] or 0}")
        value = value if match["power"] is None else value ** int(match["power"])
        value = -value if sign == "-" else value  # last: -10^2 is -100
    except (OverflowError, ValueError, ZeroDivisionError):
        return None
    return value if math.isfinite(value) else None


def yes_in(text: str) -> bool | None:
    """Whether an answer says yes (its first yes, true, no, not or false, or 1 or 0 alone); None if it says none."""
    alone = text.strip().rstrip(".")
    if alone in ("1", "0", "1.0", "0.0"):
        return alone[0] == "1"
    match = _YES_NO.search(text)
    return None if match is None else match.group(1) is not None


_FENCE = re.compile(r"```[\w-]*\s*\n?(.*?)```", re.DOTALL)
_BEFORE = re.compile(
    r"(?:the\s+)?(?:(?:canonical|isomeric|predicted|final)\s+)?"
    r"(?:answer|smiles|molecule|products?|reactants?|precursors?)(?:\s+smiles)?(?:\s+(?:is|are))?\s*[:=]\s*",
    re.IGNORECASE,
)


def smiles_in(text: str) -> str:
    """The SMILES that an answer is as a whole; the answer itself, stripped, where it is anything else.

    Taken away, in this order: what stands around a code fence or marks, a beginning such as "SMILES:" or "The product
    is:", and a full stop at the end. What is left counts as it is: an answer in words is no molecule, though RDKit
    would read its first word.

    >>> smiles_in("The product is: `CCO`."), smiles_in("SMILES: CCO."), smiles_in("C is the carbon source")
    ('CCO', 'CCO', 'C is the carbon source')
    """
    fence = _FENCE.fullmatch(text.strip()) or _FENCE.search(text)
    found = (fence[1] if fence else text).strip()
    found = _BEFORE.sub("", found, count=1) if _BEFORE.match(found) else found
    found = found.strip().removesuffix(".").strip("`\"'").strip().removesuffix(".")
    return found if found and not re.search(r"\s", found) else text.strip()


def by_property(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """(property, unit) → the rows that ask for it, in the words of the property tasks; others ask for a "value"."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        asked = re.fullmatch(r"What is the (.*?) of this molecule(?:, in (.*))?\?", row.get("question") or "")
        found.setdefault((asked[1], asked[2] or "") if asked else ("value", ""), []).append(row)
    return found


def regression_scores(
    predictions: Sequence[str], targets: Sequence[str], molecules: Sequence[Hashable] | None = None
) -> dict[str, Any]:
    """mae, rmse and r2 over the answers that contain a number, and their share, `answered`.

    `all_rows`: the same errors over all rows, where an answer without a number counts as the mean of all targets.
    Rows whose target has no number are left out and counted. What cannot be computed is None. molecules: whom each row
    asks about, where several ask about one; intervals draw molecules then.
    """
    truth = [number_in(target) for target in targets]
    kept = [index for index, value in enumerate(truth) if value is not None]
    y = np.array([truth[index] for index in kept], float)
    parsed = [number_in(predictions[index]) for index in kept]
    answered = np.array([value is not None for value in parsed], bool)
    mean = float(y.mean()) if len(y) else 0.0
    x = np.array([mean if value is None else value for value in parsed], float)
    everywhere = np.ones(len(y))
    return {
        **_errors(x[answered], y[answered]),
        "answered": float(answered.mean()) if len(y) else None,
        "unparsable": int((~answered).sum()),
        "all_rows": {"rows": len(y), **_errors(x, y)},
        "targets_without_number": len(truth) - len(kept),
        "intervals": intervals.intervals(
            len(y),
            {
                **_error_statistics(x - y, y, answered),
                "answered": intervals.mean(answered),
                **{f"all_rows.{name}": each for name, each in _error_statistics(x - y, y, everywhere).items()},
            },
            None if molecules is None else [molecules[index] for index in kept],
        ),
    }


def _error_statistics(errors: np.ndarray, truth: np.ndarray, counted: np.ndarray) -> dict[str, intervals.Statistic]:
    return {
        "mae": intervals.ratio(np.abs(errors) * counted, counted),
        "rmse": intervals.root_mean_square(errors, counted),
        "r2": intervals.r_squared(errors, truth, counted),
    }


def _errors(x: np.ndarray, y: np.ndarray) -> dict[str, float | None]:
    if not len(y):
        return {"mae": None, "rmse": None, "r2": None}
    spread = float(np.sum((y - y.mean()) ** 2))
    return {
        "mae": float(np.mean(np.abs(x - y))),
        "rmse": float(np.sqrt(np.mean((x - y) ** 2))),
        "r2": 1 - float(np.sum((x - y) ** 2)) / spread if spread else None,
    }


def classification_scores(
    predictions: Sequence[str],
    targets: Sequence[str],
    yes_probabilities: Sequence[float | None],
    molecules: Sequence[Hashable] | None = None,
) -> dict[str, Any]:
    """accuracy, f1 (of yes) and roc_auc; an answer that is neither yes nor no is wrong, and counted.

    yes_probabilities: of "yes" against "no" as the answer's beginning; None where they are not known, and roc_auc is
    None unless all are. Rows whose target is neither are left out and counted. molecules: as in `regression_scores`.
    """
    rows = [
        (yes_in(prediction), truth, probability)
        for prediction, target, probability in zip(predictions, targets, yes_probabilities, strict=True)
        if (truth := yes_in(target)) is not None
    ]
    positives = sum(truth for _, truth, _ in rows)
    claimed = sum(answer is True for answer, _, _ in rows)
    right = sum(answer is truth for answer, truth, _ in rows)
    true_positives = sum(answer is True and truth for answer, truth, _ in rows)
    scores = [probability for _, _, probability in rows if probability is not None]
    unparsable = sum(answer is None for answer, _, _ in rows)
    truths = np.array([truth for _, truth, _ in rows], bool)
    said = np.array([answer is True for answer, _, _ in rows], float)
    known = len(scores) == len(rows)
    asked = molecules and [one for one, target in zip(molecules, targets, strict=True) if yes_in(target) is not None]
    return {
        "accuracy": right / len(rows) if rows else None,
        "f1": 2 * true_positives / (claimed + positives) if claimed + positives else None,
        "roc_auc": _roc_auc(scores, truths.tolist()) if known else None,
        "yes_rate": claimed / len(rows) if rows else None,
        "answered": 1 - unparsable / len(rows) if rows else None,
        "unparsable": unparsable,
        "targets_without_class": len(targets) - len(rows),
        "intervals": intervals.intervals(
            len(rows),
            {
                "accuracy": intervals.mean(np.array([answer is truth for answer, truth, _ in rows])),
                "f1": intervals.ratio(2 * said * truths, said + truths),
                "yes_rate": intervals.mean(said),
                "answered": intervals.mean(np.array([answer is not None for answer, _, _ in rows])),
                **({"roc_auc": intervals.roc_auc(np.array(scores), truths)} if known else {}),
            },
            asked,
        ),
    }


def _roc_auc(scores: Sequence[float], truth: Sequence[bool]) -> float | None:
    """The chance that a positive scores higher than a negative (Mann and Whitney's U); None without one of both."""
    from scipy.stats import rankdata

    positive = np.array(truth, bool)
    count = int(positive.sum())
    if not 0 < count < len(positive):
        return None
    ranks = rankdata(scores)
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(positive) - count)))
