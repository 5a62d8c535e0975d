"""One molecule as arrays: OGB atom and bond features, directed edges, motif features.

`featurize` is the only place where SMILES become numbers; everything downstream reads its `Molecule`.
"""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from rdkit import Chem, rdBase

from data_pipeline.motifs import motif_features
from data_pipeline.vocabulary import ATOM_CARDINALITIES, BOND_CARDINALITIES

FEATURE_VERSION = 1
"""Written into every manifest; raise it when any feature of the same SMILES changes."""

_CHIRALITY = ("CHI_UNSPECIFIED", "CHI_TETRAHEDRAL_CW", "CHI_TETRAHEDRAL_CCW", "CHI_OTHER")
_HYBRIDIZATION = ("SP", "SP2", "SP3", "SP3D", "SP3D2")
_BOND_TYPE = ("SINGLE", "DOUBLE", "TRIPLE", "AROMATIC")
_STEREO = ("STEREONONE", "STEREOZ", "STEREOE", "STEREOCIS", "STEREOTRANS", "STEREOANY")

_CHIRALITY_INDEX = {Chem.ChiralType.names[name]: i for i, name in enumerate(_CHIRALITY)}
_HYBRIDIZATION_INDEX = {Chem.HybridizationType.names[name]: i for i, name in enumerate(_HYBRIDIZATION)}
_BOND_TYPE_INDEX = {Chem.BondType.names[name]: i for i, name in enumerate(_BOND_TYPE)}
_STEREO_INDEX = {Chem.BondStereo.names[name]: i for i, name in enumerate(_STEREO)}


class InvalidMoleculeError(ValueError):
    """A SMILES that RDKit refuses, or one without any atom; `reason` is one line, RDKit's own where it gave one."""

    def __init__(self, smiles: str, reason: str):
        shown = smiles if len(smiles) <= 100 else smiles[:97] + "..."
        super().__init__(f"invalid SMILES {shown!r}: {reason}")
        self.smiles = smiles
        self.reason = reason

    def __reduce__(self):  # the default would call __init__ with the message alone
        return type(self), (self.smiles, self.reason)


class Molecule(NamedTuple):
    """One molecule's features (N atoms, E directed edges, M motifs).

    smiles: canonical SMILES without stereochemistry and isotopes, the text that prompts show.
    atoms: uint8[N, 9], OGB feature order, atoms in the order of the given SMILES.
    bonds: uint8[E, 3], OGB feature order; every bond appears twice, as begin→end and end→begin, next to each other.
    senders, receivers: int32[E], atom indices of each directed edge.
    motifs: uint8[M, 73], zeros and ones; M = 0 for a molecule without motifs such as methane.
    """

    smiles: str
    atoms: np.ndarray
    bonds: np.ndarray
    senders: np.ndarray
    receivers: np.ndarray
    motifs: np.ndarray


def featurize(smiles: str) -> Molecule:
    """The molecule's features; raises InvalidMoleculeError if RDKit refuses the SMILES or it has no atoms."""
    mol = parse_smiles(smiles)
    canonical = Chem.MolToSmiles(mol, isomericSmiles=False)
    flat = parse_smiles(canonical)
    senders, receivers, bonds = _edges(mol)
    return Molecule(canonical, _atoms(mol), bonds, senders, receivers, motif_features(flat))


def parse_smiles(smiles: str) -> Chem.Mol:
    """An RDKit molecule with at least one atom; raises InvalidMoleculeError with RDKit's reason otherwise."""
    with quiet_rdkit():
        mol = Chem.MolFromSmiles(smiles)
        if mol is None:
            raise InvalidMoleculeError(smiles, _refusal(smiles))
    if mol.GetNumAtoms() == 0:
        raise InvalidMoleculeError(smiles, "no atoms")
    return mol


def _refusal(smiles: str) -> str:
    """Why RDKit refuses a SMILES; the exception of the step that fails carries the reason."""
    mol = Chem.MolFromSmiles(smiles, sanitize=False)
    if mol is None:
        return "not valid SMILES syntax"
    try:
        Chem.SanitizeMol(mol)
    except Chem.MolSanitizeException as error:
        return str(error).strip()
    return "refused by RDKit"


@contextlib.contextmanager
def quiet_rdkit() -> Iterator[None]:
    """RDKit's complaints become exceptions here, so they need not be printed as well."""
    blocker = rdBase.BlockLogs()
    try:
        yield
    finally:
        del blocker


def _atoms(mol: Chem.Mol) -> np.ndarray:
    rows = []
    for atom in mol.GetAtoms():
        number = atom.GetAtomicNum()
        charge = atom.GetFormalCharge()
        rows.append(
            (
                number - 1 if 1 <= number <= 118 else 118,
                _CHIRALITY_INDEX.get(atom.GetChiralTag(), 4),
                min(atom.GetTotalDegree(), 11),
                charge + 5 if -5 <= charge <= 5 else 11,
                min(atom.GetTotalNumHs(), 9),
                min(atom.GetNumRadicalElectrons(), 5),
                _HYBRIDIZATION_INDEX.get(atom.GetHybridization(), 5),
                atom.GetIsAromatic(),
                atom.IsInRing(),
            )
        )
    return np.array(rows, np.uint8).reshape(-1, len(ATOM_CARDINALITIES))


def _edges(mol: Chem.Mol) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    begin, end, rows = [], [], []
    for bond in mol.GetBonds():
        begin.append(bond.GetBeginAtomIdx())
        end.append(bond.GetEndAtomIdx())
        # A stereo label outside the vocabulary (atropisomers) counts as none; the original raises.
        stereo = _STEREO_INDEX.get(bond.GetStereo(), 0)
        rows.append((_BOND_TYPE_INDEX.get(bond.GetBondType(), 4), stereo, bond.GetIsConjugated()))
    both = np.array([begin, end], np.int32).reshape(2, -1)
    senders = both.T.reshape(-1)
    receivers = both[::-1].T.reshape(-1)
    bonds = np.repeat(np.array(rows, np.uint8).reshape(-1, len(BOND_CARDINALITIES)), 2, axis=0)
    return np.ascontiguousarray(senders), np.ascontiguousarray(receivers), bonds
