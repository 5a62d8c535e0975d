"""Molecule against molecule, from SMILES: for reactions, retrosynthesis and molecule generation (MolT5, section 4)."""

import functools
import re
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from rdkit import Chem, DataStructs
from rdkit.Chem import rdFingerprintGenerator, rdMolDescriptors

from data_pipeline.guard import tried
from data_pipeline.molecule import InvalidMoleculeError, parse_smiles, quiet_rdkit
from data_pipeline.progress import watched
from llamo_jax.evaluation import intervals
from llamo_jax.evaluation.answers import smiles_in
from llamo_jax.evaluation.text import bleu_counts, corpus_bleu


class MoleculePair(NamedTuple):
    """How a predicted SMILES compares with its target; similarities are Tanimoto's, 0 if the prediction is invalid."""

    valid: bool  # the prediction is a molecule
    target_valid: bool
    exact: bool  # the same InChI; where InChI has none, the same canonical SMILES
    levenshtein: int  # characters to insert, delete or replace
    maccs: float
    rdk: float
    morgan: float  # counts of circular fragments, radius 2


def molecule_scores(predictions: Sequence[str], targets: Sequence[str]) -> dict[str, Any]:
    """Scores of predicted SMILES; fractions, but for levenshtein, which is in characters.

    bleu (of characters), exact, levenshtein and validity are over all rows; maccs, rdk and morgan over the rows whose
    prediction is a valid molecule, as in MolT5's tables. `all_rows` and `valid_rows` have every score over all rows
    (an invalid prediction has similarity 0) and over valid ones. Scores over no row at all are None. Molecules are
    what `answers.smiles_in` takes out of answers; bleu and levenshtein are of the answers as they are.
    """
    pairs = [
        compare(prediction, target)
        for prediction, target in watched(
            zip(predictions, targets, strict=True), desc="molecules", total=len(targets), unit=" rows", disable=None
        )
    ]
    valid = [index for index, pair in enumerate(pairs) if pair.valid and pair.target_valid]
    over_all = _summary(pairs, predictions, targets)
    over_valid = _summary(
        [pairs[index] for index in valid],
        [predictions[index] for index in valid],
        [targets[index] for index in valid],
    )
    return {
        **{name: over_all[name] for name in ("bleu", "exact", "levenshtein")},
        "validity": statistics.fmean(pair.valid for pair in pairs) if pairs else None,
        **{name: over_valid[name] for name in ("maccs", "rdk", "morgan")},
        "all_rows": {"rows": len(pairs), **over_all},
        "valid_rows": {"rows": len(valid), **over_valid},
        "invalid_targets": sum(not pair.target_valid for pair in pairs),
        "intervals": intervals.intervals(len(pairs), _statistics(pairs, predictions, targets)),
    }


def _statistics(
    pairs: Sequence[MoleculePair], predictions: Sequence[str], targets: Sequence[str]
) -> dict[str, intervals.Statistic]:
    """Of the same scores."""
    column = {name: np.array([getattr(pair, name) for pair in pairs], float) for name in MoleculePair._fields}
    both = column["valid"] * column["target_valid"]
    counts = bleu_counts(list(map(list, predictions)), list(map(list, targets)))
    over_valid = {name: intervals.ratio(column[name] * both, both) for name in _COMPARED}
    over_all = {name: intervals.mean(column[name]) for name in _COMPARED}
    return {
        "bleu": intervals.bleu(counts, 4),
        **{name: over_all[name] for name in ("exact", "levenshtein")},
        "validity": intervals.mean(column["valid"]),
        **{name: over_valid[name] for name in ("maccs", "rdk", "morgan")},
        "all_rows.bleu": intervals.bleu(counts, 4),
        **{f"all_rows.{name}": statistic for name, statistic in over_all.items()},
        "valid_rows.bleu": intervals.bleu(counts * both[:, None].astype(int), 4),
        **{f"valid_rows.{name}": statistic for name, statistic in over_valid.items()},
    }


_COMPARED = ("exact", "levenshtein", "maccs", "rdk", "morgan")


def compare(prediction: str, target: str) -> MoleculePair:
    """Compares two SMILES; an empty one is invalid."""
    from rapidfuzz.distance import Levenshtein

    ours, theirs = _fingerprints(smiles_in(prediction)), _fingerprints(smiles_in(target))
    distance = Levenshtein.distance(prediction, target)
    if ours is None or theirs is None:
        return MoleculePair(ours is not None, theirs is not None, False, distance, 0.0, 0.0, 0.0)
    return MoleculePair(
        valid=True,
        target_valid=True,
        exact=ours.identity == theirs.identity,
        levenshtein=distance,
        maccs=DataStructs.TanimotoSimilarity(ours.maccs, theirs.maccs),
        rdk=DataStructs.TanimotoSimilarity(ours.rdk, theirs.rdk),
        morgan=DataStructs.TanimotoSimilarity(ours.morgan, theirs.morgan),
    )


def _summary(pairs: Sequence[MoleculePair], predictions: Sequence[str], targets: Sequence[str]) -> dict[str, Any]:
    means = {name: statistics.fmean(getattr(pair, name) for pair in pairs) if pairs else None for name in _COMPARED}
    return {"bleu": _character_bleu(predictions, targets), **means}


def _character_bleu(predictions: Sequence[str], targets: Sequence[str]) -> float | None:
    return corpus_bleu(list(map(list, predictions)), list(map(list, targets)), (4,))[0] if targets else None


class _Fingerprints(NamedTuple):
    identity: str
    maccs: Any
    rdk: Any
    morgan: Any


@functools.lru_cache(maxsize=4096)  # targets repeat, and perfect predictions are their targets
def _fingerprints(smiles: str) -> _Fingerprints | None:
    """None if RDKit refuses the SMILES, it has no atom, or is more than one word."""
    if re.search(r"\s", smiles):
        return None
    try:
        return tried(_computed, smiles)
    except InvalidMoleculeError:
        return None


def _computed(smiles: str) -> _Fingerprints:
    mol = parse_smiles(smiles)
    with quiet_rdkit():
        identity = Chem.MolToInchi(mol) or Chem.MolToSmiles(mol)
        return _Fingerprints(
            identity,
            rdMolDescriptors.GetMACCSKeysFingerprint(mol),
            Chem.RDKFingerprint(mol),
            _morgan_generator().GetSparseCountFingerprint(mol),
        )


@functools.cache
def _morgan_generator() -> Any:
    return rdFingerprintGenerator.GetMorganGenerator(radius=2)
