"""What conversations start from: a row's molecule, its description and name, and the facts that RDKit proves."""

import functools
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rdkit import Chem
from rdkit.Chem import rdMolDescriptors

from data_pipeline import storage, tasks
from data_pipeline.claims import cip_labels, lipinski_violations
from data_pipeline.corpus import murcko_scaffold
from data_pipeline.describe import Facts, facts_of
from data_pipeline.errors import DataError, RowError
from data_pipeline.files import BadRow, Row, TableOptions, read_rows
from data_pipeline.guard import tried
from data_pipeline.molecule import InvalidMoleculeError, parse_smiles, quiet_rdkit


class Seed(NamedTuple):
    """A row: its molecule as the file writes it, and what the file says of it ("" where it says nothing)."""

    smiles: str
    description: str
    name: str  # IUPAC
    file: str
    row: int  # from 1

    def source(self) -> dict[str, Any]:
        """Where it comes from, and which of its texts are people's: kept with every conversation."""
        texts = [kind for kind in ("description", "name") if getattr(self, kind)]
        return {"file": self.file, "row": self.row, "texts": texts}


class MoleculeFacts(NamedTuple):
    """What RDKit proves about a molecule; `basic` as in embedded descriptions.

    scaffold: canonical SMILES of the Murcko scaffold, "" for acyclic molecules. surface: topological polar surface
    area in Å² (Ertl et al., 2000). logp: Crippen's (Wildman and Crippen, 1999). rule_of_five: violated rules of four.
    """

    basic: Facts
    scaffold: str
    configuration: dict[str, int]  # CIP label → how many: R, S, E, Z, and rarer ones
    rings: int
    aromatic_rings: int
    rotatable_bonds: int
    surface: float
    logp: float
    rule_of_five: int

    def as_json(self) -> dict[str, Any]:
        """For a request: names that people would use, with units."""
        basic = self.basic
        return {
            "formula": basic.formula,
            "mass in g/mol": round(basic.weight, 1),
            "functional groups": basic.groups,
            "ring systems": dict(Counter(basic.rings)),
            "number of rings": self.rings,
            "aromatic rings": self.aromatic_rings,
            "aromatic": basic.aromatic,
            "stereocentres": basic.stereocentres,
            "configuration": self.configuration,
            "net charge": basic.charge,
            "hydrogen-bond donors": basic.donors,
            "hydrogen-bond acceptors": basic.acceptors,
            "rotatable bonds": self.rotatable_bonds,
            "heavy atoms": basic.heavy_atoms,
            "elements": basic.elements,
            "polar surface area in Å²": round(self.surface, 1),
            "Crippen logP": round(self.logp, 2),
            "Lipinski violations": self.rule_of_five,
            "scaffold": self.scaffold,
        }


@functools.lru_cache(maxsize=4096)
def facts_about(smiles: str) -> MoleculeFacts:
    """The facts of a molecule; raises InvalidMoleculeError, also if it brings RDKit down (data_pipeline.guard)."""
    return tried(_facts, smiles)


def _facts(smiles: str) -> MoleculeFacts:
    mol = parse_smiles(smiles)
    basic = facts_of(mol)
    return MoleculeFacts(
        basic,
        murcko_scaffold(smiles),
        dict(Counter(cip_labels(mol, bonds=False) + cip_labels(mol, bonds=True))),
        mol.GetRingInfo().NumRings(),
        rdMolDescriptors.CalcNumAromaticRings(mol),
        rdMolDescriptors.CalcNumRotatableBonds(mol),
        rdMolDescriptors.CalcTPSA(mol),
        rdMolDescriptors.CalcCrippenDescriptors(mol)[0],
        lipinski_violations(mol, basic),
    )


class Columns(NamedTuple):
    """Names of the columns to read; None: guess, as data_pipeline.prepare does."""

    smiles: str | None = None
    description: str | None = None
    name: str | None = None


def read_seeds(
    files: Sequence[Path], columns: Columns, options: TableOptions
) -> tuple[list[Seed], list[dict[str, Any]]]:
    """The rows that conversations can start from, their molecules not yet looked at, and the others with reasons.

    Raises DataError if a file has neither descriptions nor IUPAC names, or no row is left.
    """
    seeds: list[Seed] = []
    rejected: list[dict[str, Any]] = []
    for path in files:
        readers: dict[str, tasks.RowReader] | None = None
        for number, row in enumerate(read_rows(path, options), start=1):
            try:
                if isinstance(row, BadRow):
                    raise RowError(row.reason)
                readers = readers or _readers(path, row, columns)
                seeds.append(_seed(row, readers, path.name, number))
            except RowError as error:
                rejected.append({"file": path.name, "row": number, "reason": error.reason})
    if not seeds:
        raise DataError(f"no row to start a conversation from: {dict(Counter(row['reason'] for row in rejected))}")
    return seeds, rejected


def _readers(path: Path, row: Row, columns: Columns) -> dict[str, tasks.RowReader]:
    found = list(row)
    readers = {}
    faults = []
    for kind, reader, column in (
        ("description", tasks.description_reader, columns.description),
        ("name", tasks.iupac_name_reader, columns.name),
    ):
        try:
            readers[kind] = reader(found, tasks.Columns(columns.smiles, column))
        except DataError as error:
            if column:
                raise DataError(f"{path}: {str(error).replace('--text_column', f'--{kind}_column')}") from None
            faults.append(str(error).replace("--text_column", f"--{kind}_column"))
    if not readers:
        raise DataError(f"{path}: {faults[0]}")
    return readers


def _seed(row: Row, readers: dict[str, tasks.RowReader], file: str, number: int) -> Seed:
    smiles, texts, reason = "", {}, RowError("no text")
    for kind, reader in readers.items():
        try:
            (conversation,) = reader(row)
        except RowError as error:
            reason = error
            continue
        assert not isinstance(conversation, tasks.Missing | RowError)
        smiles, texts[kind] = conversation.smiles[0], conversation.messages[1].content
    if not texts:
        raise reason
    return Seed(smiles, texts.get("description", ""), texts.get("name", ""), file, number)


class Excluded:
    """Molecules of evaluation files, which no conversation may show: by InChIKey's first block, or scaffold too."""

    def __init__(self, files: Iterable[Path], *, scaffolds: bool, options: TableOptions):
        self._skeletons: set[str] = set()
        self._scaffolds: set[str] | None = set() if scaffolds else None
        self.unreadable = 0
        for path in files:
            for smiles in _molecules(path, options):
                try:
                    skeleton, scaffold = tried(_identity, smiles)
                except InvalidMoleculeError:
                    self.unreadable += 1
                    continue
                self._skeletons.add(skeleton)
                if self._scaffolds is not None and scaffold:  # "": acyclic molecules share none
                    self._scaffolds.add(scaffold)

    def reason(self, smiles: str) -> str | None:
        """Why a molecule is excluded; None if it is not. Raises InvalidMoleculeError."""
        skeleton, scaffold = tried(_identity, smiles)
        if skeleton in self._skeletons:
            return "leakage: in an excluded file"
        if self._scaffolds and scaffold in self._scaffolds:
            return "leakage: the scaffold is in an excluded file"
        return None


def _identity(smiles: str) -> tuple[str, str]:
    mol = parse_smiles(smiles)
    with quiet_rdkit():
        return Chem.MolToInchiKey(mol).partition("-")[0] or Chem.MolToSmiles(mol), murcko_scaffold(smiles)


def _molecules(path: Path, options: TableOptions) -> Iterator[str]:
    column = None
    for row in read_rows(path, options):
        if isinstance(row, BadRow):
            continue
        if column is None:
            try:
                column = tasks.smiles_column(list(row))
            except DataError as error:
                raise DataError(f"{path}: {error}") from None
        value = row.get(column)
        yield from [value] if isinstance(value, str) else value or ()


def fingerprint(files: Iterable[Path]) -> list[dict[str, str]]:
    """Names and checksums, for the identity of a job."""
    return [{"name": path.name, "sha256": storage.digest(path)} for path in files]


def digest_of(text: str) -> str:
    """SHA-256, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()
