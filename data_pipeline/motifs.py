"""Functional-group motifs of a molecule and their 73 features, after ReLMole (Ji et al., 2022) as used by LLaMo.

A motif is a set of atoms: a ring (rings of the symmetrised SSSR that share more than two atoms are merged), or a group
around marked atoms. Marked are all non-carbon atoms, both ends of a double or triple bond, and sp3 carbons that carry
two of O, N, S. Marked atoms connected by non-ring bonds form one group, together with their unmarked neighbours over
non-ring bonds; a non-ring bond between two unmarked atoms is a group of its own; a single ring atom is no group.
"""

import numpy as np
from rdkit import Chem

from data_pipeline.mol_graph import MolGraph
from data_pipeline.vocabulary import MOTIF_FEATURES

# (atomic number or kind of bond, its first column, how many columns), one-hot counts with the last for "or more"
_ELEMENT_COLUMNS = ((6, 0, 11), (8, 11, 6), (7, 17, 6), (15, 23, 6), (16, 29, 6))
_HALOGEN_COLUMN = 35  # has a halogen; has another element
_HALOGENS = frozenset((9, 17, 35, 53))
_SINGLE, _DOUBLE, _TRIPLE, _AROMATIC = range(4)
_BOND_KINDS = {
    Chem.BondType.SINGLE: _SINGLE,
    Chem.BondType.DOUBLE: _DOUBLE,
    Chem.BondType.TRIPLE: _TRIPLE,
    Chem.BondType.AROMATIC: _AROMATIC,
}
_BOND_COLUMNS = ((_SINGLE, 37, 11), (_DOUBLE, 48, 8), (_TRIPLE, 56, 8), (_AROMATIC, 64, 8))
_ACETAL_NEIGHBOURS = frozenset((7, 8, 16))


def motif_features(graph: MolGraph) -> np.ndarray:
    """Feature rows of all motifs of a molecule: uint8[M, 73], zeros and ones; M = 0 if it has no motifs.

    Rows are sorted, so that they do not depend on the order of the atoms.
    Bonds of any kind but single, double, triple or aromatic (dative, quadruple, …) count as single bonds: the original
    raises there and falls back to "no motifs".
    """
    rows = [row for row, _ in _rows_and_atoms(graph)]
    return np.frombuffer(bytearray().join(rows), np.uint8).reshape(-1, MOTIF_FEATURES)


def motif_atoms(graph: MolGraph) -> list[list[int]]:
    """The atoms of each motif, in the order of the rows of `motif_features`, which do not say where they are."""
    return [atoms for _, atoms in _rows_and_atoms(graph)]


def _rows_and_atoms(graph: MolGraph) -> list[tuple[bytearray, list[int]]]:
    """Sorted by rows; equal ones by atoms."""
    # Of every bond at the atom it begins at: the other end, its kind, whether it is in a ring.
    bonds_of: list[list[tuple[int, int, bool]]] = [[] for _ in graph.numbers]
    kinds = [_BOND_KINDS.get(kind, _SINGLE) for kind in graph.types]
    for begin, bond in zip(graph.begins, zip(graph.ends, kinds, graph.in_ring, strict=True), strict=True):
        bonds_of[begin].append(bond)
    rows = []
    for atoms in find_motifs(graph):
        inside = [bond for atom in atoms for bond in bonds_of[atom] if bond[0] in atoms]
        rows.append((_row([graph.numbers[atom] for atom in atoms], inside), sorted(atoms)))
    return sorted(rows)


def find_motifs(graph: MolGraph) -> list[frozenset[int]]:
    """Atom index sets of the motifs: rings first, then groups; see the module's docstring for the rules."""
    return _merged_rings(graph.rings) + _groups(graph)


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


def _groups(graph: MolGraph) -> list[frozenset[int]]:
    marked = _marked_atoms(graph)
    groups = {atom: {atom} for atom in sorted(marked)}  # merged like sets of a union-find, small into large
    bonds = zip(graph.begins, graph.ends, graph.in_ring, strict=True)
    chain = [(begin, end) for begin, end, in_ring in bonds if not in_ring]
    for begin, end in chain:
        if begin in marked and end in marked and groups[begin] is not groups[end]:
            smaller, larger = sorted((groups[begin], groups[end]), key=len)
            larger |= smaller
            for atom in smaller:
                groups[atom] = larger
    carbon_bonds = []  # a chain bond between two unmarked atoms is a motif of its own
    for begin, end in chain:
        if begin not in marked and end not in marked:
            carbon_bonds.append(frozenset((begin, end)))
        elif begin not in marked:
            groups[end].add(begin)
        elif end not in marked:
            groups[begin].add(end)
    distinct = {id(group): group for group in groups.values()}.values()
    kept = [frozenset(group) for group in distinct if len(group) > 1 or not group <= graph.ring_atoms]
    return kept + carbon_bonds


def _marked_atoms(graph: MolGraph) -> set[int]:
    """Atoms that match the SMARTS `[!#6]`, `*=,#*` or `[CX4]([O,N,S])[O,N,S]` (its carbon)."""
    numbers = graph.numbers
    marked = {index for index, number in enumerate(numbers) if number != 6}
    hetero = {index for index in marked if numbers[index] in _ACETAL_NEIGHBOURS and index not in graph.aromatic}
    hetero_bonds = [0] * len(numbers)
    for begin, end, kind in zip(graph.begins, graph.ends, graph.types, strict=True):
        if kind in (Chem.BondType.DOUBLE, Chem.BondType.TRIPLE):
            marked.add(begin)
            marked.add(end)
        elif kind in (Chem.BondType.SINGLE, Chem.BondType.AROMATIC):  # as a bond without a symbol in SMARTS
            hetero_bonds[begin] += end in hetero
            hetero_bonds[end] += begin in hetero
    for atom, count in enumerate(hetero_bonds):
        if count >= 2 and numbers[atom] == 6 and graph.connections[atom] == 4 and atom not in graph.aromatic:
            marked.add(atom)
    return marked


def _row(numbers: list[int], bonds: list[tuple[int, int, bool]]) -> bytearray:
    """One motif's row, from its elements and the bonds inside it."""
    row = bytearray(MOTIF_FEATURES)
    counted = 0
    for element, column, slots in _ELEMENT_COLUMNS:
        count = numbers.count(element)
        row[column + (count if count < slots else slots - 1)] = 1
        counted += count
    if counted < len(numbers):
        halogens = sum(number in _HALOGENS for number in numbers)
        row[_HALOGEN_COLUMN] = halogens > 0
        row[_HALOGEN_COLUMN + 1] = counted + halogens < len(numbers)
    kinds = [kind for _, kind, _ in bonds]
    for kind, column, slots in _BOND_COLUMNS:
        count = kinds.count(kind)
        row[column + (count if count < slots else slots - 1)] = 1
    row[-1] = any(in_ring for _, _, in_ring in bonds)
    return row
