"""What conversations start from: a row's molecule, its description and name, and the facts that RDKit proves."""

import functools
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rdkit import Chem, rdBase
from rdkit.Chem import rdMolDescriptors
from rdkit.Chem.MolStandardize import rdMolStandardize

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
    names = Counter(path.name for path in files)
    for path in files:
        label = path.name if names[path.name] == 1 else str(path)  # a/train.tsv and b/train.tsv
        before = len(seeds)
        fault: DataError | None = None
        readers: dict[tuple[str, ...], dict[str, tasks.RowReader]] = {}  # rows of JSON may differ in what they have
        for number, row in enumerate(read_rows(path, options), start=1):
            try:
                if isinstance(row, BadRow):
                    raise RowError(row.reason)
                found = tuple(row)
                if found not in readers:
                    readers[found] = _readers(path, row, columns)
                seeds.append(_seed(row, readers[found], label, number))
            except RowError as error:
                rejected.append({"file": label, "row": number, "reason": error.reason})
            except DataError as error:
                fault = fault or error
                rejected.append({"file": label, "row": number, "reason": "no description and no name"})
        if len(seeds) == before and fault is not None:
            raise fault
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
    """Molecules of evaluation files, which no conversation may show: by InChIKey's first block, or scaffold too.

    Salts count as their parent, neutral and without counterions, too. molecules: how many were read; unreadable: rows
    that hold none. Raises DataError if a file has no molecule at all.
    """

    def __init__(self, files: Iterable[Path], *, scaffolds: bool, options: TableOptions):
        self._skeletons: set[str] = set()
        self._scaffolds: set[str] | None = set() if scaffolds else None
        self.molecules = self.unreadable = 0
        for path in files:
            before = self.molecules
            for smiles in _molecules(path, options):
                try:
                    if smiles is None:
                        raise InvalidMoleculeError("", "no text")
                    skeletons, scaffold = tried(_identity, smiles)
                except InvalidMoleculeError:
                    self.unreadable += 1
                    continue
                self.molecules += 1
                self._skeletons.update(skeletons)
                if self._scaffolds is not None and scaffold:  # "": acyclic molecules share none
                    self._scaffolds.add(scaffold)
            if self.molecules == before:
                raise DataError(f"{path}: no molecule in it, so that nothing would be excluded")

    def reason(self, smiles: str) -> str | None:
        """Why a molecule is excluded; None if it is not. Raises InvalidMoleculeError."""
        if not self._skeletons:
            return None
        skeletons, scaffold = tried(_identity, smiles)
        if self._skeletons & set(skeletons):
            return "leakage: in an excluded file"
        if self._scaffolds and scaffold in self._scaffolds:
            return "leakage: the scaffold is in an excluded file"
        return None


def _identity(smiles: str) -> tuple[tuple[str, ...], str]:
    """First blocks of InChIKeys, of the molecule and of its parent, and the scaffold."""
    mol = parse_smiles(smiles)
    with quiet_rdkit(), rdBase.BlockLogs():
        mols = (mol, rdMolStandardize.ChargeParent(mol))
        skeletons = tuple(Chem.MolToInchiKey(each).partition("-")[0] or Chem.MolToSmiles(each) for each in mols)
    return skeletons, murcko_scaffold(smiles)


def _molecules(path: Path, options: TableOptions) -> Iterator[str | None]:
    """The SMILES of a file's rows; None for what is none."""
    column = None
    for row in read_rows(path, options):
        if isinstance(row, BadRow):
            yield None
            continue
        if column is None:
            names = {name.lower(): name for name in row}
            column = next((names[name] for name in tasks.SMILES_COLUMNS if name in names), None)
            if column is None:
                known = ", ".join(tasks.SMILES_COLUMNS)
                raise DataError(f"{path}: no column of molecules ({known}); found {list(row)}")
        value = row.get(column)
        for each in value if isinstance(value, list) else [value]:
            yield each if isinstance(each, str) else None


def fingerprint(files: Iterable[Path]) -> list[dict[str, str]]:
    """Names and checksums, for the identity of a job."""
    return [{"name": path.name, "sha256": storage.digest(path)} for path in files]


@functools.lru_cache(maxsize=4096)
def canonical(smiles: str) -> str:
    """Canonical SMILES; raises InvalidMoleculeError."""
    return Chem.MolToSmiles(tried(parse_smiles, smiles))


def digest_of(text: str) -> str:
    """SHA-256, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()
