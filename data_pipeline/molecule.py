"""One molecule as arrays: OGB atom and bond features, directed edges, motif features.

`featurize` is the only place where SMILES become numbers; everything downstream reads its `Molecule`.
"""

import contextlib
import logging
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from rdkit import Chem, rdBase

from data_pipeline.mol_graph import MolGraph, read_mol
from data_pipeline.motifs import motif_features
from data_pipeline.vocabulary import ATOM_CARDINALITIES, BOND_CARDINALITIES, MOTIF_FEATURES

FEATURE_VERSION = 1
"""Written into every manifest; raise it when any feature of the same SMILES changes."""

MAX_SMILES = 100_000
"""Longer texts are refused unread: RDKit's parser recurses, and no molecule of the field comes near."""

_CHIRALITY = ("CHI_UNSPECIFIED", "CHI_TETRAHEDRAL_CW", "CHI_TETRAHEDRAL_CCW", "CHI_OTHER")
_HYBRIDIZATION = ("SP", "SP2", "SP3", "SP3D", "SP3D2")
_BOND_TYPE = ("SINGLE", "DOUBLE", "TRIPLE", "AROMATIC")
_STEREO = ("STEREONONE", "STEREOZ", "STEREOE", "STEREOCIS", "STEREOTRANS", "STEREOANY")

_NUMBER_INDEX = (118, *range(118))  # atomic number 0 (a wildcard) is the last row, as for all unknown elements
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
    motifs: uint8[M, 73], zeros and ones, sorted rows; M = 0 for a molecule without motifs such as methane.
    """

    smiles: str
    atoms: np.ndarray
    bonds: np.ndarray
    senders: np.ndarray
    receivers: np.ndarray
    motifs: np.ndarray


def featurize(smiles: str) -> Molecule:
    """The molecule's features; raises InvalidMoleculeError if RDKit refuses the SMILES or it has no atoms.

    Motifs are those of the canonical SMILES. If RDKit cannot read that back there are none (M = 0), as in the original.

    >>> molecule = featurize("OCC")
    >>> molecule.smiles, molecule.atoms.shape, molecule.senders.tolist()
    ('CCO', (3, 9), [0, 1, 1, 2])
    """
    mol = parse_smiles(smiles)
    with _refused(smiles):
        with quiet_rdkit():
            canonical = Chem.MolToSmiles(mol, isomericSmiles=False)
        graph = read_mol(mol)
    return Molecule(canonical, _atoms(graph), *_edges(graph), _motifs(graph, canonical))


def _motifs(graph: MolGraph, canonical: str) -> np.ndarray:
    """Motif features of the canonical SMILES; read again only where it may differ from the molecule in hand.

    It differs by hydrogens: labelled ones ([2H]) are atoms in the molecule and none once their label is gone.
    """
    if 1 in graph.numbers:
        try:
            graph = read_mol(parse_smiles(canonical))
        except InvalidMoleculeError:
            return np.zeros((0, MOTIF_FEATURES), np.uint8)
    return motif_features(graph)


def parse_smiles(smiles: str) -> Chem.Mol:
    """An RDKit molecule with at least one atom; raises InvalidMoleculeError with RDKit's reason otherwise."""
    if len(smiles) > MAX_SMILES:
        raise InvalidMoleculeError(smiles, f"longer than {MAX_SMILES:,} characters")
    # RDKit reads the first word alone: "I cannot tell." is iodine to it. Its CXSMILES extensions stand between bars.
    first, *behind = smiles.split(None, 1)[:2] or [""]
    if behind and not re.fullmatch(r"\|.*\|\s*", behind[0], re.DOTALL):
        raise InvalidMoleculeError(smiles, f"{behind[0].strip()[:40]!r} stands behind the SMILES")
    if is_selfies(first):
        raise InvalidMoleculeError(smiles, "this is SELFIES, not SMILES")
    with _refused(smiles):
        with quiet_rdkit():
            mol = Chem.MolFromSmiles(smiles)
        if mol is None:
            raise InvalidMoleculeError(smiles, _reason(_messages(smiles)))
    if mol.GetNumAtoms() == 0:
        raise InvalidMoleculeError(smiles, "no atoms")
    return mol


def flat(smiles: str) -> str:
    """Canonical SMILES without stereochemistry or isotopes, as records have them; raises InvalidMoleculeError."""
    mol = parse_smiles(smiles)
    with _refused(smiles), quiet_rdkit():
        return Chem.MolToSmiles(mol, isomericSmiles=False)


_SELFIES_ONLY = re.compile(r"\[(?:[=#/\\]?(?:B|C|N|O|S|P|F|Cl|Br|I)|[=#/\\][^\]]+|[=#/\\]?(?:Branch|Ring)\d|nop)\]")

_SMILES_ONLY = re.compile(r"(?!nop)[a-z].*|\d*[A-Z][a-z]?(@{0,2}H([+-].*)?|H[234])")
"""Tokens that SELFIES lacks: aromatic atoms, hydrogens without a number, and several of them on a neutral atom."""


def is_selfies(text: str) -> bool:
    """Whether a text is SELFIES: nothing but tokens in brackets, one right after another, some of which SMILES lack.

    [C][C][O] would be a SMILES too, of carbon atoms without any hydrogen; nobody writes that. [CH3][I] is one: programs
    write it, and chemists' atom maps leave it behind. [Br][Br] is both, and the same molecule.

    >>> is_selfies("[C][C][O]"), is_selfies("[Na+].[Cl-]"), is_selfies("[13CH3][13CH3]"), is_selfies("[C]")
    (True, False, False, False)
    >>> is_selfies("[CH3][I]"), is_selfies("[Br][Br]"), is_selfies("[C][C][NH3+1]"), is_selfies("[C][C@@H1][F]")
    (False, False, True, True)
    """
    text = text.strip()
    if "][" not in text or not re.fullmatch(r"(\[[^\[\]]+\])+(\.(\[[^\[\]]+\])+)*", text):
        return False
    tokens = re.findall(r"\[([^\[\]]+)\]", text)
    if any(map(_SMILES_ONLY.fullmatch, tokens)) or set(tokens) <= {"F", "Cl", "Br", "I"}:
        return False
    return _SELFIES_ONLY.search(text) is not None


@contextlib.contextmanager
def _refused(smiles: str) -> Iterator[None]:
    """RDKit's exceptions (broken invariants, text that is not Unicode) as InvalidMoleculeError."""
    try:
        yield
    except InvalidMoleculeError:
        raise
    except (RuntimeError, ValueError) as error:
        raise InvalidMoleculeError(smiles, _reason(str(error).splitlines())) from None


def _messages(smiles: str) -> list[str]:
    """The lines that RDKit logs when it refuses a SMILES: the reason of a syntax error stands nowhere else."""
    messages = _Messages()
    logger = logging.getLogger("rdkit")
    handlers, logger.handlers = logger.handlers, [messages]
    propagate, logger.propagate = logger.propagate, False
    rdBase.LogToPythonLogger()
    try:
        Chem.MolFromSmiles(smiles)
    except SystemError:  # a message that cuts a character of several bytes in two is no Python text
        pass
    finally:
        rdBase.LogToCppStreams()
        logger.handlers, logger.propagate = handlers, propagate
    return messages.lines


class _Messages(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines += re.sub(r"^\[[\d:]+\]", "", record.getMessage()).splitlines()


def _reason(lines: list[str]) -> str:
    """One line out of several: the first that says something, without the SMILES in it."""
    said = [line.strip() for line in lines if line.strip(" *")]
    if not said:
        return "refused by RDKit"
    first = ": ".join(said[:2]) if said[0].endswith("Violation") else said[0]
    return re.sub(r" (while parsing|for input):.*", "", first.removeprefix("SMILES Parse Error: "))


@contextlib.contextmanager
def quiet_rdkit() -> Iterator[None]:
    """RDKit's complaints become exceptions here, so they need not be printed as well."""
    blocker = rdBase.BlockLogs()
    try:
        yield
    finally:
        del blocker


def _atoms(graph: MolGraph) -> np.ndarray:
    atoms = np.zeros((len(graph.numbers), len(ATOM_CARDINALITIES)), np.uint8)
    atoms[:, 0] = [_NUMBER_INDEX[number] for number in graph.numbers]
    atoms[:, 2] = np.minimum(graph.connections, 11)
    atoms[:, 3] = 5
    atoms[:, 4] = np.minimum(graph.hydrogens, 9)
    atoms[:, 6] = [_HYBRIDIZATION_INDEX.get(hybridization, 5) for hybridization in graph.hybridizations]
    atoms[list(graph.aromatic), 7] = 1
    atoms[list(graph.ring_atoms), 8] = 1
    for index, charge in graph.charges.items():
        atoms[index, 1] = _CHIRALITY_INDEX.get(graph.chirality[index], 4)
        atoms[index, 3] = charge + 5 if -5 <= charge <= 5 else 11
        atoms[index, 5] = min(graph.radicals[index], 5)
    return atoms


def _edges(graph: MolGraph) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, senders and receivers of the directed edges."""
    both = np.array([graph.begins, graph.ends], np.int32).reshape(2, -1)
    bonds = np.zeros((both.shape[1], len(BOND_CARDINALITIES)), np.uint8)
    bonds[:, 0] = [_BOND_TYPE_INDEX.get(kind, 4) for kind in graph.types]
    for index, stereo in graph.stereo.items():
        bonds[index, 1] = _STEREO_INDEX[stereo]
    bonds[:, 2] = graph.conjugated
    return np.repeat(bonds, 2, axis=0), both.T.reshape(-1), both[::-1].T.reshape(-1)
