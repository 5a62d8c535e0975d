"""Functional-group motifs of a molecule and their 73 features, after ReLMole (Ji et al., 2022) as used by LLaMo.

A motif is a set of atoms: a ring (rings of the symmetrised SSSR that share more than two atoms are merged), or a group
around marked atoms. Marked are all non-carbon atoms, both ends of a double or triple bond, and sp3 carbons that carry
two of O, N, S. Marked atoms connected by non-ring bonds form one group, together with their unmarked neighbours over
non-ring bonds; a non-ring bond between two unmarked atoms is a group of its own; a single ring atom is no group.
"""

from collections.abc import Iterable

import numpy as np
from rdkit import Chem

from data_pipeline.vocabulary import MOTIF_FEATURES

_NON_CARBON = Chem.MolFromSmarts("[!#6]")
_MULTIPLE_BOND = Chem.MolFromSmarts("*=,#*")
_ACETAL_CARBON = Chem.MolFromSmarts("[CX4]([O,N,S])[O,N,S]")

_COUNTED_ELEMENTS = {6: 0, 8: 1, 7: 2, 15: 3, 16: 4}
_ELEMENT_SLOTS = (11, 6, 6, 6, 6)
_HALOGENS = frozenset((9, 17, 35, 53))
_BOND_KINDS = {
    Chem.BondType.SINGLE: 0,
    Chem.BondType.DOUBLE: 1,
    Chem.BondType.TRIPLE: 2,
    Chem.BondType.AROMATIC: 3,
}
_BOND_SLOTS = (11, 8, 8, 8)


def motif_features(mol: Chem.Mol) -> np.ndarray:
    """Feature rows of all motifs of `mol`: uint8[M, 73] of zeros and ones; M is 0 for a molecule without motifs.

    Bonds of any kind but single, double, triple or aromatic (dative, quadruple, …) count as single bonds: the original
    raises there and falls back to "no motifs".
    """
    motifs = find_motifs(mol)
    features = np.zeros((len(motifs), MOTIF_FEATURES), np.uint8)
    for row, atoms in zip(features, motifs, strict=True):
        _fill_row(row, mol, atoms)
    return features


def find_motifs(mol: Chem.Mol) -> list[frozenset[int]]:
    """Atom index sets of the motifs: rings first, then groups; see the module's docstring for the rules."""
    return _merged_rings(mol) + _groups(mol)


def _merged_rings(mol: Chem.Mol) -> list[frozenset[int]]:
    rings: list[set[int]] = []
    for ring in map(set, Chem.GetSymmSSSR(mol)):
        fused = [other for other in rings if len(other & ring) > 2]
        rings = [other for other in rings if len(other & ring) <= 2]
        while fused:  # a grown ring may now share more than two atoms with a further one
            ring = ring.union(*fused)
            fused = [other for other in rings if len(other & ring) > 2]
            rings = [other for other in rings if len(other & ring) <= 2]
        rings.append(ring)
    return [frozenset(ring) for ring in rings]


def _groups(mol: Chem.Mol) -> list[frozenset[int]]:
    marked = _marked_atoms(mol)
    groups = {atom: {atom} for atom in sorted(marked)}
    bonds = [(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in mol.GetBonds() if not b.IsInRing()]
    for begin, end in bonds:
        if begin in marked and end in marked and groups[begin] is not groups[end]:
            groups[begin] |= groups[end]
            for atom in groups[end]:
                groups[atom] = groups[begin]
    carbon_bonds = []
    for begin, end in bonds:
        if begin not in marked and end not in marked:
            carbon_bonds.append(frozenset((begin, end)))
        elif begin not in marked:
            groups[end].add(begin)
        elif end not in marked:
            groups[begin].add(end)
    distinct = {id(group): group for group in groups.values()}.values()
    is_ring_atom = [atom.IsInRing() for atom in mol.GetAtoms()]
    kept = [frozenset(group) for group in distinct if len(group) > 1 or not is_ring_atom[next(iter(group))]]
    return kept + carbon_bonds


def _marked_atoms(mol: Chem.Mol) -> set[int]:
    limit = 10**6  # RDKit's default of 1000 matches would cut large peptides silently
    marked = {atom for (atom,) in mol.GetSubstructMatches(_NON_CARBON, maxMatches=limit)}
    for match in mol.GetSubstructMatches(_MULTIPLE_BOND, maxMatches=limit):
        marked.update(match)
    marked.update(match[0] for match in mol.GetSubstructMatches(_ACETAL_CARBON, maxMatches=limit))
    return marked


def _fill_row(row: np.ndarray, mol: Chem.Mol, motif: Iterable[int]) -> None:
    atoms = frozenset(motif)
    elements = [0] * len(_ELEMENT_SLOTS)
    halogen = other = ring_bond = False
    kinds = [0] * len(_BOND_SLOTS)
    for index in atoms:
        atom = mol.GetAtomWithIdx(index)
        number = atom.GetAtomicNum()
        if number in _COUNTED_ELEMENTS:
            elements[_COUNTED_ELEMENTS[number]] += 1
        elif number in _HALOGENS:
            halogen = True
        else:
            other = True
        for bond in atom.GetBonds():
            neighbour = bond.GetOtherAtomIdx(index)
            if index < neighbour and neighbour in atoms:
                kinds[_BOND_KINDS.get(bond.GetBondType(), 0)] += 1
                ring_bond |= bond.IsInRing()
    offset = 0
    for count, slots in zip(elements, _ELEMENT_SLOTS, strict=True):
        row[offset + min(count, slots - 1)] = 1
        offset += slots
    row[offset], row[offset + 1] = halogen, other
    offset += 2
    for count, slots in zip(kinds, _BOND_SLOTS, strict=True):
        row[offset + min(count, slots - 1)] = 1
        offset += slots
    row[offset] = ring_bond
