"""Files of molecules, as the programs read them that do something to every row."""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from data_pipeline import tasks
from data_pipeline.errors import DataError
from data_pipeline.files import BadRow, read_rows
from data_pipeline.guard import tried
from data_pipeline.molecule import InvalidMoleculeError, featurize
from data_pipeline.progress import watched

T = TypeVar("T")

AT_A_TIME = 1024
"""Rows that are featurised before something is done to them."""


class MoleculeRow(NamedTuple):
    """A row (from 1) of a file and its SMILES, which RDKit reads."""

    row: int
    smiles: str


def read_molecules(path: Path, column: str | None) -> tuple[list[MoleculeRow], Counter[str], str]:
    """Every row that is a molecule, why the others are not, and the column of SMILES; None: it is guessed by its name.

    Raises DataError if no row is a molecule, or has the column.
    """
    found: list[MoleculeRow] = []
    rejected: Counter[str] = Counter()
    columns: dict[str, None] = {}
    for number, row in enumerate(watched(read_rows(path), desc="molecules", unit=" rows"), start=1):
        if isinstance(row, BadRow):
            rejected[row.reason] += 1
            continue
        columns |= dict.fromkeys(row)
        if column is None:
            column = tasks.smiles_column(list(row))
        if column not in row:
            rejected[f"no {column}"] += 1
            continue
        smiles = row[column]
        try:
            if not isinstance(smiles, str) or not smiles.strip():
                raise InvalidMoleculeError(str(smiles), f"empty {column}")
            tried(featurize, smiles.strip())
        except InvalidMoleculeError as error:
            rejected[error.reason] += 1
            continue
        found.append(MoleculeRow(number, smiles.strip()))
    if column is not None and columns and column not in columns:
        raise DataError(f"{path}: no column {column!r}; found {list(columns)}")
    if not found:
        raise DataError(f"{path}: no molecule in it ({dict(rejected.most_common(3))})")
    assert column is not None
    return found, rejected, column


def in_batches(rows: Sequence[T]) -> Iterator[list[T]]:
    """AT_A_TIME of them, and the rest."""
    source = iter(rows)
    while batch := list(itertools.islice(source, AT_A_TIME)):
        yield batch


def told(rejected: Counter[str]) -> str:
    """Lines for people: what was left out, and why."""
    return "".join(f"\n  left out {count:>8,}  {reason}" for reason, count in rejected.most_common(10))
