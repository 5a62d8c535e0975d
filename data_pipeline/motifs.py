"""Functional-group motifs of a molecule and their 73 features, after ReLMole (Ji et al., 2022) as used by LLaMo.

A motif is a set of atoms: a ring (rings of the symmetrised SSSR that share more than two atoms are merged), or a group
around marked atoms. Marked are all non-carbon atoms, both ends of a double or triple bond, and sp3 carbons that carry
two of O, N, S. Marked atoms connected by non-ring bonds form one group, together with their unmarked neighbours over
non-ring bonds; a non-ring bond between two unmarked atoms is a group of its own; a single ring atom is no group.
"""

from typing import NamedTuple

import numpy as np
from rdkit import Chem

from data_pipeline.vocabulary import MOTIF_FEATURES

_ELEMENTS = (6, 8, 7, 15, 16)
_ELEMENT_SLOTS = (11, 6, 6, 6, 6)
_HALOGENS = frozenset((9, 17, 35, 53))
_BOND_SLOTS = (11, 8, 8, 8)
_SINGLE, _DOUBLE, _TRIPLE, _AROMATIC = range(4)
_BOND_KINDS = {
    Chem.BondType.SINGLE: _SINGLE,
    Chem.BondType.DOUBLE: _DOUBLE,
    Chem.BondType.TRIPLE: _TRIPLE,
    Chem.BondType.AROMATIC: _AROMATIC,
}
_ACETAL_NEIGHBOURS = frozenset((7, 8, 16))

_HALOGEN_COLUMN = sum(_ELEMENT_SLOTS)
_BOND_COLUMN = _HALOGEN_COLUMN + 2  # after "has a halogen" and "has another element"


class _Bond(NamedTuple):
    begin: int
    end: int
    kind: int
    exact: bool  # False: of another type, counted as single
    in_ring: bool


class _Graph(NamedTuple):
    """What the rules below need of a molecule, read from RDKit once."""

    numbers: list[int]
    aromatic: list[bool]
    connections: list[int]  # including hydrogens
    bonds: list[_Bond]
    rings: tuple[tuple[int, ...], ...]  # symmetrised SSSR, found by sanitisation


def motif_features(mol: Chem.Mol) -> np.ndarray:
    """Feature rows of all motifs of a sanitised `mol`: uint8[M, 73], zeros and ones; M = 0 if it has no motifs.

    Bonds of any kind but single, double, triple or aromatic (dative, quadruple, …) count as single bonds: the original
    raises there and falls back to "no motifs".
    """
    graph = _read(mol)
    motifs = _merged_rings(graph.rings) + _groups(graph)
    neighbours: list[list[tuple[int, _Bond]]] = [[] for _ in graph.numbers]
    for bond in graph.bonds:
        neighbours[bond.begin].append((bond.end, bond))
    rows = bytearray(len(motifs) * MOTIF_FEATURES)
    for number, atoms in enumerate(motifs):
        inside = [bond for atom in atoms for other, bond in neighbours[atom] if other in atoms]
        _fill_row(rows, number * MOTIF_FEATURES, [graph.numbers[atom] for atom in atoms], inside)
    return np.frombuffer(rows, np.uint8).reshape(-1, MOTIF_FEATURES)


def find_motifs(mol: Chem.Mol) -> list[frozenset[int]]:
    """Atom index sets of the motifs: rings first, then groups; see the module's docstring for the rules."""
    graph = _read(mol)
    return _merged_rings(graph.rings) + _groups(graph)


def _read(mol: Chem.Mol) -> _Graph:
    rings = mol.GetRingInfo()
    ring_bonds = frozenset(bond for ring in rings.BondRings() for bond in ring)
    atoms = [mol.GetAtomWithIdx(index) for index in range(mol.GetNumAtoms())]
    bonds = []
    for index in range(mol.GetNumBonds()):
        bond = mol.GetBondWithIdx(index)
        kind = _BOND_KINDS.get(bond.GetBondType())
        ends = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        bonds.append(_Bond(*ends, kind or _SINGLE, kind is not None, index in ring_bonds))
    return _Graph(
        [atom.GetAtomicNum() for atom in atoms],
        [atom.GetIsAromatic() for atom in atoms],
        [atom.GetTotalDegree() for atom in atoms],
        bonds,
        rings.AtomRings(),
    )


def _merged_rings(atom_rings: tuple[tuple[int, ...], ...]) -> list[frozenset[int]]:
    rings: list[frozenset[int]] = []
    for ring in map(frozenset, atom_rings):
        fused = [other for other in rings if len(other & ring) > 2]
        while fused:  # a grown ring may now share more than two atoms with a further one
            rings = [other for other in rings if len(other & ring) <= 2]
            ring = ring.union(*fused)
            fused = [other for other in rings if len(other & ring) > 2]
        rings.append(ring)
    return rings


def _groups(graph: _Graph) -> list[frozenset[int]]:
    marked = _marked_atoms(graph)
    groups = {atom: {atom} for atom in sorted(marked)}
    chain = [(bond.begin, bond.end) for bond in graph.bonds if not bond.in_ring]
    for begin, end in chain:
        if begin in marked and end in marked and groups[begin] is not groups[end]:
            smaller, larger = sorted((groups[begin], groups[end]), key=len)
            larger |= smaller
            for atom in smaller:
                groups[atom] = larger
    carbon_bonds = []
    for begin, end in chain:
        if begin not in marked and end not in marked:
            carbon_bonds.append(frozenset((begin, end)))
        elif begin not in marked:
            groups[end].add(begin)
        elif end not in marked:
            groups[begin].add(end)
    distinct = {id(group): group for group in groups.values()}.values()
    ring_atoms = frozenset(atom for ring in graph.rings for atom in ring)
    kept = [frozenset(group) for group in distinct if len(group) > 1 or not group <= ring_atoms]
    return kept + carbon_bonds


def _marked_atoms(graph: _Graph) -> set[int]:
    """Atoms that match the SMARTS `[!#6]`, `*=,#*` or `[CX4]([O,N,S])[O,N,S]` (its carbon)."""
    numbers, aromatic = graph.numbers, graph.aromatic
    marked = {index for index, number in enumerate(numbers) if number != 6}
    hetero_bonds = [0] * len(numbers)
    for begin, end, kind, exact, _ in graph.bonds:
        if kind in (_DOUBLE, _TRIPLE):
            marked.add(begin)
            marked.add(end)
        elif exact:  # a bond without a symbol in SMARTS is single or aromatic
            hetero_bonds[begin] += numbers[end] in _ACETAL_NEIGHBOURS and not aromatic[end]
            hetero_bonds[end] += numbers[begin] in _ACETAL_NEIGHBOURS and not aromatic[begin]
    for atom, count in enumerate(hetero_bonds):
        if count >= 2 and numbers[atom] == 6 and not aromatic[atom] and graph.connections[atom] == 4:
            marked.add(atom)
    return marked


def _fill_row(rows: bytearray, start: int, numbers: list[int], bonds: list[_Bond]) -> None:
    """Sets the ones of one motif's row, which starts at `rows[start]`, from its elements and the bonds inside it."""
    counted = 0
    column = start
    for element, slots in zip(_ELEMENTS, _ELEMENT_SLOTS, strict=True):
        count = numbers.count(element)
        rows[column + min(count, slots - 1)] = 1
        counted += count
        column += slots
    if counted < len(numbers):
        halogens = sum(number in _HALOGENS for number in numbers)
        rows[column] = halogens > 0
        rows[column + 1] = counted + halogens < len(numbers)
    kinds = [bond.kind for bond in bonds]
    column = start + _BOND_COLUMN
    for kind, slots in enumerate(_BOND_SLOTS):
        rows[column + min(kinds.count(kind), slots - 1)] = 1
        column += slots
    rows[column] = any(bond.in_ring for bond in bonds)
