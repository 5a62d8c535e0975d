"""IUPAC names as structures: what a name means, read by OPSIN (Lowe et al., 2011), not how many of its words are right.

OPSIN is a Java program, which the package py2opsin (extra `[opsin]`) brings and runs.
"""

import contextlib
import importlib.util
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rdkit import Chem

from data_pipeline.errors import DataError
from data_pipeline.molecule import InvalidMoleculeError, flat, parse_smiles
from llamo_jax.evaluation import intervals
from llamo_jax.evaluation.molecules import compare

MISSING = "names were not read as structures: that needs Java and py2opsin; pip install 'llamo_jax[opsin]'"


def is_available() -> bool:
    """Whether OPSIN can be run here."""
    return shutil.which("java") is not None and importlib.util.find_spec("py2opsin") is not None


LONGEST_NAME = 5000
"""Characters; longer texts are no name. Of 50,000, as models that repeat themselves write, OPSIN takes 3 s each."""


def name_to_smiles(names: Sequence[str]) -> list[str]:
    """The SMILES of each name; "" for what OPSIN cannot read. Raises DataError if OPSIN does not run."""
    from py2opsin import py2opsin

    # a line each, of characters that a file can hold
    asked = [
        (" ".join(name.split()).encode("utf-8", "replace").decode() or "-") if len(name) <= LONGEST_NAME else "-"
        for name in names
    ]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a complaint about each name that it cannot read
        found = py2opsin(asked, tmp_fpath=str(Path(folder) / "names.txt")) if asked else []
    if not isinstance(found, list) or len(found) != len(asked):
        raise DataError(f"OPSIN has not answered for {len(asked):,} names; does `java -version` run?")
    return found


def structure_scores(predictions: Sequence[str], smiles: Sequence[str], targets: Sequence[str]) -> dict[str, Any]:
    """valid: share of names that are a molecule; structure: that are the right one; morgan: their mean similarity.

    morgan counts names that are none as 0. target_structure: `structure` of the targets, what can be reached. Compared
    by InChI with the molecules that were to be named: with stereochemistry and isotopes where their SMILES have any, as
    prepared records have not.
    """
    read = name_to_smiles([*predictions, *targets])
    pairs = [compare(_as_detailed(ours, theirs), theirs) for ours, theirs in zip(read, [*smiles, *smiles], strict=True)]
    pairs, of_targets = pairs[: len(predictions)], pairs[len(predictions) :]
    columns = {
        "valid": np.array([pair.valid for pair in pairs], float),
        "structure": np.array([pair.exact for pair in pairs], float),
        "morgan": np.array([pair.morgan for pair in pairs], float),
    }
    return {
        **{name: float(values.mean()) for name, values in columns.items()},
        "target_structure": float(np.mean([pair.exact for pair in of_targets])),
        "intervals": intervals.intervals(
            len(pairs), {name: intervals.mean(values) for name, values in columns.items()}
        ),
    }


def _as_detailed(smiles: str, reference: str) -> str:
    """The molecule without stereochemistry and isotopes if the reference has none; what is no molecule as it is."""
    with contextlib.suppress(InvalidMoleculeError):
        if flat(reference) == Chem.MolToSmiles(parse_smiles(reference)):
            return flat(smiles)
    return smiles
