"""How much of what descriptions claim about their molecules is true (data_pipeline.claims), as scores."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from data_pipeline.claims import CLAIMABLE, KINDS, Claim, Molecule, check, claims_in
from data_pipeline.claims import shown as _shown
from data_pipeline.molecule import InvalidMoleculeError
from data_pipeline.progress import watched
from llamo_jax.evaluation import intervals

__all__ = ["KINDS", "Claim", "Molecule", "check", "checked_rows", "claims_in", "hallucination_scores"]


def hallucination_scores(descriptions: Sequence[str], smiles: Sequence[str]) -> dict[str, Any]:
    """How much of what descriptions claim is true, and how much of what there is they name; micro-averaged.

    precision (true claims / claims) and false_claims, of all kinds and by kind; recall, by kind, of the functional
    groups, named ring systems and elements other than carbon; most_common_false lists what is claimed wrongly.
    Molecules that RDKit refuses are left out and counted. What cannot be computed is None.

    >>> hallucination_scores(["It has a ketone and 2 ester groups."], ["CC(C)=O"])["precision"]
    0.5
    """
    rows = len(smiles)
    true, false = (np.zeros((rows, len(KINDS))) for _ in range(2))
    there, named = (np.zeros((rows, len(CLAIMABLE))) for _ in range(2))
    wrong: Counter[str] = Counter()
    invalid = 0
    pairs = zip(descriptions, smiles, strict=True)
    for row, (description, text) in enumerate(watched(pairs, desc="claims", total=rows, unit=" rows")):
        try:
            checked = check(description, text)
        except InvalidMoleculeError:
            invalid += 1
            continue
        for counts, claims in ((true, checked.true), (false, checked.false)):
            for claim in claims:
                counts[row, KINDS.index(claim.kind)] += 1
        wrong.update(_shown(claim) for claim in checked.false)
        for column, kind in enumerate(CLAIMABLE):
            there[row, column], named[row, column] = len(checked.there[kind]), len(checked.named[kind])
    made = true + false
    statistics = {
        "precision": intervals.ratio(true.sum(1), made.sum(1)),
        "recall": intervals.ratio(named.sum(1), there.sum(1)),
        **{f"by_kind.{kind}.precision": intervals.ratio(true[:, i], made[:, i]) for i, kind in enumerate(KINDS)},
        **{f"by_kind.{kind}.recall": intervals.ratio(named[:, i], there[:, i]) for i, kind in enumerate(CLAIMABLE)},
    }
    by_kind: dict[str, dict[str, float | int | None]] = {
        kind: {"precision": _share(true[:, i], made[:, i]), "claims": int(made[:, i].sum())}
        for i, kind in enumerate(KINDS)
    }
    for i, kind in enumerate(CLAIMABLE):
        by_kind[kind]["recall"] = _share(named[:, i], there[:, i])
    return {
        "precision": _share(true, made),
        "recall": _share(named, there),
        "claims": int(made.sum()),
        "false_claims": int(false.sum()),
        "by_kind": by_kind,
        "most_common_false": dict(wrong.most_common(20)),
        "invalid_molecules": invalid,
        "intervals": intervals.intervals(rows, statistics),
    }


def _share(part: np.ndarray, whole: np.ndarray) -> float | None:
    return float(part.sum() / whole.sum()) if whole.sum() else None


def checked_rows(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each row with one valid molecule that has false claims: its molecule, its text and those claims."""
    found = []
    for row in rows:
        if len(row.get("smiles") or ()) != 1:
            continue
        try:
            checked = check(row["prediction"], row["smiles"][0])
        except InvalidMoleculeError:
            continue
        if checked.false:
            claims = [{"kind": claim.kind, "claim": _shown(claim), "words": claim.words} for claim in checked.false]
            found.append({"smiles": row["smiles"][0], "prediction": row["prediction"], "false_claims": claims})
    return found
