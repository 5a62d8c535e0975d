import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem

from data_pipeline.functional_groups import functional_groups, has_ring
from data_pipeline.known_molecules import known_molecules
from data_pipeline.molecule import InvalidMoleculeError, featurize
from data_pipeline.vocabulary import ATOM_CARDINALITIES, BOND_CARDINALITIES, MOTIF_FEATURES

KNOWN = tuple(known_molecules().values())


@pytest.mark.parametrize(
    ("smiles", "motifs"),
    [
        ("C", 0),
        ("[CH3]", 0),
        ("[13CH4]", 0),
        ("O", 1),
        ("[Na+].[Cl-]", 2),
        ("CC", 1),
        ("c1ccccc1", 1),
        ("c1ccccc1C", 2),
    ],
)
def test_number_of_motifs(smiles, motifs):
    assert featurize(smiles).motifs.shape == (motifs, MOTIF_FEATURES)


def test_unusual_bonds_count_as_single():
    """The original raises for dative and quadruple bonds."""
    single_bonds = slice(11 + 24 + 2, 11 + 24 + 2 + 11)
    (quadruple,) = featurize("[Re]$[Re]").motifs
    assert quadruple[single_bonds].argmax() == 1
    dative = featurize("[NH3]->[Pt](Cl)(Cl)<-[NH3]").motifs
    assert [row[single_bonds].argmax() for row in dative] == [4]


def test_all_of_a_polymer_is_seen():
    """RDKit counts 1000 matches of a pattern, unless it is told to go on."""
    aromatic = featurize("C(c1ccccc1)" * 180).atoms[:, 7]
    assert aromatic.sum() == 180 * 6
    assert functional_groups(Chem.MolFromSmiles("C(O)" * 1100)) == {"alcohol": 1100}
    assert has_ring(Chem.MolFromSmiles("C(c1ccccc1)" * 1001), "benzene") == 1001


def test_large_molecules():
    chain = featurize("C" * 10_000)
    assert (len(chain.atoms), len(chain.bonds), len(chain.motifs)) == (10_000, 19_998, 9_999)
    peptide = featurize("".join("NC(CC(C)C)C(=O)" for _ in range(100)) + "O")
    assert (len(peptide.atoms), len(peptide.motifs)) == (801, 501)


@pytest.mark.parametrize(
    ("smiles", "reason"),
    [
        ("", "no atoms"),
        ("C1CC", ": unclosed ring$"),
        ("CC)", ": extra close parentheses$"),
        ("[#119]", "Atomic number not found"),
        ("C\0C", "syntax error"),
        ("\ud800", "surrogates not allowed"),
        ("C" * 100_001, "longer than 100,000 characters"),
        ("C(C)(C)(C)(C)C", "valence"),
        ("c1cccc1", "kekulize"),
    ],
)
def test_refused_smiles(smiles, reason, capfd):
    with pytest.raises(InvalidMoleculeError, match=f"(?i){reason}") as caught:
        featurize(smiles)
    assert "\n" not in caught.value.reason
    assert capfd.readouterr().err == ""
    assert pickle.loads(pickle.dumps(caught.value)).reason == caught.value.reason


def test_real_refused_and_nasty_molecules(shared_data):
    refused = [line.split("\t")[0] for line in (shared_data / "smiles" / "invalid.smi").read_text().splitlines()]
    for smiles in refused[::5]:
        with pytest.raises(InvalidMoleculeError):
            featurize(smiles)
    nasty = [line.split("\t")[0] for line in (shared_data / "smiles" / "edge_cases.smi").read_text().splitlines()]
    for smiles in nasty[::5]:
        molecule = featurize(smiles)
        assert np.all(molecule.atoms < np.array(ATOM_CARDINALITIES))
        assert np.all(molecule.bonds < np.array(BOND_CARDINALITIES))
        assert len(molecule.atoms) == Chem.MolFromSmiles(smiles).GetNumAtoms()


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(KNOWN), st.integers(0, 2**16))
def test_atom_order_does_not_matter(smiles, seed):
    """Another way to write the molecule permutes atoms and bonds, and changes nothing else."""
    mol = Chem.MolFromSmiles(smiles)
    order = np.random.default_rng(seed).permutation(mol.GetNumAtoms()).tolist()
    rewritten = Chem.MolToSmiles(Chem.RenumberAtoms(mol, order), canonical=False, isomericSmiles=False)
    one, other = featurize(Chem.MolToSmiles(mol, isomericSmiles=False)), featurize(rewritten)
    assert one.smiles == other.smiles
    assert sorted(map(bytes, one.atoms)) == sorted(map(bytes, other.atoms))
    assert sorted(map(bytes, one.bonds)) == sorted(map(bytes, other.bonds))
    np.testing.assert_array_equal(one.motifs, other.motifs)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(KNOWN))
def test_every_bond_appears_in_both_directions(smiles):
    molecule = featurize(smiles)
    np.testing.assert_array_equal(molecule.senders[0::2], molecule.receivers[1::2])
    np.testing.assert_array_equal(molecule.receivers[0::2], molecule.senders[1::2])
    np.testing.assert_array_equal(molecule.bonds[0::2], molecule.bonds[1::2])
    # each one-hot block of a motif row has exactly one entry
    bounds = np.cumsum((0, 11, 6, 6, 6, 6))
    for start, end in itertools.pairwise(bounds):
        assert np.all(molecule.motifs[:, start:end].sum(axis=1) == 1)
