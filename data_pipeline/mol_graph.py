"""An RDKit molecule as plain lists: everything the features need, with as few calls into RDKit as possible.

A call from Python into RDKit costs more than what it computes, so rare properties are asked for only where one query
over the whole molecule says that they occur.
"""

import itertools
from typing import NamedTuple

from rdkit import Chem
from rdkit.Chem import rdqueries


class MolGraph(NamedTuple):
    """A sanitised molecule with n atoms and m bonds.

    Of atoms, n each: numbers (atomic), hydrogens (not in the graph), connections (neighbours and hydrogens),
    hybridizations. By atom, only where they may not be trivial: charges, radicals, chirality. Sets of atoms: aromatic,
    ring_atoms. Of bonds, m each: begins, ends, types, conjugated, in_ring; stereo by bond, double bonds only.
    rings: atoms of each ring of the symmetrised SSSR.
    """

    numbers: list[int]
    hydrogens: list[int]
    connections: list[int]
    hybridizations: list[Chem.HybridizationType]
    charges: dict[int, int]
    radicals: dict[int, int]
    chirality: dict[int, Chem.ChiralType]
    aromatic: frozenset[int]
    ring_atoms: frozenset[int]
    begins: list[int]
    ends: list[int]
    types: list[Chem.BondType]
    conjugated: list[bool]
    in_ring: list[bool]
    stereo: dict[int, Chem.BondStereo]
    rings: tuple[tuple[int, ...], ...]


def matches(mol: Chem.Mol, pattern: Chem.Mol) -> tuple[tuple[int, ...], ...]:
    """The atoms of every match; RDKit's default limit of 1000 would cut large molecules silently."""
    return mol.GetSubstructMatches(pattern, maxMatches=10**7)


def read_mol(mol: Chem.Mol) -> MolGraph:
    """The molecule as plain lists; `mol` is sanitised."""
    atoms = list(map(mol.GetAtomWithIdx, range(mol.GetNumAtoms())))
    bonds = list(map(mol.GetBondWithIdx, range(mol.GetNumBonds())))
    hydrogens = list(map(Chem.Atom.GetTotalNumHs, atoms))
    connections = hydrogens.copy()
    begins = list(map(Chem.Bond.GetBeginAtomIdx, bonds))
    ends = list(map(Chem.Bond.GetEndAtomIdx, bonds))
    for index in begins:
        connections[index] += 1
    for index in ends:
        connections[index] += 1
    types = list(map(Chem.Bond.GetBondType, bonds))
    special = [index for (index,) in matches(mol, _SPECIAL)]
    rings = mol.GetRingInfo().AtomRings()
    return MolGraph(
        numbers=list(map(Chem.Atom.GetAtomicNum, atoms)),
        hydrogens=hydrogens,
        connections=connections,
        hybridizations=list(map(Chem.Atom.GetHybridization, atoms)),
        charges={index: atoms[index].GetFormalCharge() for index in special},
        radicals={index: atoms[index].GetNumRadicalElectrons() for index in special},
        chirality={index: atoms[index].GetChiralTag() for index in special},
        aromatic=frozenset(index for (index,) in matches(mol, _AROMATIC)),
        ring_atoms=frozenset(itertools.chain.from_iterable(rings)),
        begins=begins,
        ends=ends,
        types=types,
        conjugated=list(map(Chem.Bond.GetIsConjugated, bonds)),
        in_ring=list(map(Chem.Bond.IsInRing, bonds)),
        stereo={index: bonds[index].GetStereo() for index, kind in enumerate(types) if kind == _DOUBLE},
        rings=rings,
    )


_DOUBLE = Chem.BondType.DOUBLE
_AROMATIC = Chem.MolFromSmarts("a")


def _special_atoms() -> Chem.Mol:
    """A query for atoms with a charge, radical electrons or a chiral tag."""
    atom = rdqueries.FormalChargeEqualsQueryAtom(0, negate=True)
    for other in (rdqueries.NumRadicalElectronsEqualsQueryAtom(0, negate=True), rdqueries.HasChiralTagQueryAtom()):
        atom.ExpandQuery(other, how=Chem.CompositeQueryType.COMPOSITE_OR)
    query = Chem.RWMol(Chem.MolFromSmarts("*"))
    query.ReplaceAtom(0, atom)
    return query.GetMol()


_SPECIAL = _special_atoms()
