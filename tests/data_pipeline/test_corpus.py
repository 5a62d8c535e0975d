import random

import pytest
from rdkit import Chem

from data_pipeline import corpus, describe
from data_pipeline.functional_groups import functional_groups, mentioned_groups, ring_systems
from data_pipeline.known_molecules import known_molecules


@pytest.fixture(scope="module")
def molecules():
    return corpus.build_corpus(1200)


def test_corpus_is_distinct_and_reproducible(molecules):
    assert len({molecule.smiles for molecule in molecules}) == len(molecules) == 1200
    assert corpus.build_corpus(1200) == molecules
    named = {molecule.name for molecule in molecules if molecule.name}
    assert {"aspirin", "caffeine", "ferrocene"} <= named
    assert len(named) >= 400


def test_no_scaffold_is_in_two_splits(molecules):
    splits: dict[str, set[str]] = {}
    for molecule in molecules:
        splits.setdefault(corpus.murcko_scaffold(molecule.smiles), set()).add(molecule.split)
    assert all(len(found) == 1 for found in splits.values())
    counts = {split: sum(m.split == split for m in molecules) for split in ("train", "validation", "test")}
    assert counts["validation"] > 80
    assert counts["test"] > 80
    assert counts["train"] > 800


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("aspirin", {"carboxylic acid": 1, "ester": 1}),
        ("paracetamol", {"amide": 1, "phenol": 1}),
        ("D-glucose", {"hemiacetal": 1, "alcohol": 4}),
        ("diethyl ether", {"ether": 1}),
        ("ethylene oxide", {"epoxide": 1}),
        ("sulfanilamide", {"primary amine": 1, "sulfonamide": 1}),
        ("acetylcholine", {"ester": 1, "quaternary ammonium": 1}),
        ("2,4,6-trinitrotoluene", {"nitro": 3}),
        ("trifluoroacetic acid", {"carboxylic acid": 1, "trifluoromethyl": 1}),
        ("hydroxyurea", {"urea": 1}),
        ("hexane", {}),
    ],
)
def test_functional_groups(name, groups):
    assert functional_groups(Chem.MolFromSmiles(known_molecules()[name])) == groups


@pytest.mark.parametrize(
    ("smiles", "groups"),
    [
        ("CN(C)C(C)=O", {"amide": 1}),
        ("CN(C)C", {"tertiary amine": 1}),
        ("CNS(C)(=O)=O", {"sulfonamide": 1}),
        ("CNC", {"secondary amine": 1}),
        ("NC(C)=O", {"amide": 1}),
        ("CN", {"primary amine": 1}),
        ("CC(=O)OC", {"ester": 1}),
        ("CC(=O)SC", {"thioester": 1}),
        ("CC(=O)OC(C)=O", {"acid anhydride": 1}),
        ("CC(=O)NC(C)=O", {"imide": 1}),
        ("CC(=O)Cl", {"acyl halide": 1}),
        ("CCCl", {"chloro": 1}),
        ("COC(=O)OC", {"carbonate": 1}),
        ("COC(=O)NC", {"carbamate": 1}),
        ("COCOC", {"acetal": 1}),
        ("OC=C", {"enol": 1, "alkene": 1}),
        ("FC(F)(F)C", {"trifluoromethyl": 1}),
        ("CSC", {"thioether": 1}),
        ("CS(C)=O", {"sulfoxide": 1}),
        ("CS(C)(=O)=O", {"sulfone": 1}),
        ("CC(=O)[O-]", {"carboxylate": 1}),
        ("CC(=O)NO", {"hydroxamic acid": 1}),
        ("CC(=O)NN", {"hydrazide": 1}),
        ("CC(N)=S", {"thioamide": 1}),
        ("NC(N)=S", {"thiourea": 1}),
        ("NC(=N)N", {"guanidine": 1}),
        ("CC(=N)N", {"amidine": 1}),
        ("CN=C=O", {"isocyanate": 1}),
        ("CN=C=S", {"isothiocyanate": 1}),
        ("CC=O", {"aldehyde": 1}),
        ("CC(C)=O", {"ketone": 1}),
        ("CC#N", {"nitrile": 1}),
        ("CC(C)=NO", {"oxime": 1}),
        ("CC(C)=NN", {"hydrazone": 1}),
        ("CC(C)=NC", {"imine": 1}),
        ("CO[N+](=O)[O-]", {"nitrate ester": 1}),
        ("CN=[N+]=[N-]", {"azide": 1}),
        ("CN=NC", {"azo": 1}),
        ("CNNC", {"hydrazine": 1}),
        ("C[NH3+]", {"ammonium": 1}),
        ("COOC", {"peroxide": 1}),
        ("CS", {"thiol": 1}),
        ("CSSC", {"disulfide": 1}),
        ("CS(=O)(=O)O", {"sulfonic acid": 1}),
        ("CS(=O)(=O)[O-]", {"sulfonate": 1}),
        ("COS(C)(=O)=O", {"sulfonate": 1}),
        ("COS(=O)(=O)O", {"sulfate": 1}),
        ("COP(=O)(O)O", {"phosphate": 1}),
        ("CP(=O)(O)O", {"phosphonate": 1}),
        ("CP(C)C", {"phosphine": 1}),
        ("CB(O)O", {"boronic acid": 1}),
        ("CF", {"fluoro": 1}),
        ("CBr", {"bromo": 1}),
        ("CI", {"iodo": 1}),
        ("CC#CC", {"alkyne": 1}),
    ],
)
def test_a_group_is_not_a_part_of_another(smiles, groups):
    assert functional_groups(Chem.MolFromSmiles(smiles)) == groups


def test_ring_systems():
    found = {
        name: ring_systems(Chem.MolFromSmiles(known_molecules()[name])) for name in ("caffeine", "nicotine", "camphor")
    }
    assert found == {
        "caffeine": ["purine ring"],
        "nicotine": ["pyrrolidine ring", "pyridine ring"],
        "camphor": ["2-ring fused system"],
    }


def test_mentions_are_read_longest_first():
    text = "It has quaternary ammonium, sulfonic acid and thioether groups, 2 nitro groups and no ethereal scent."
    assert mentioned_groups(text) == {"quaternary ammonium", "sulfonic acid", "thioether", "nitro"}


def test_descriptions_state_the_facts(molecules):
    for molecule in molecules[::10]:
        facts = describe.facts_of(Chem.MolFromSmiles(molecule.smiles))
        text = describe.describe(facts, random.Random(molecule.smiles))
        assert mentioned_groups(text) == set(facts.groups), text
        assert text == describe.describe(facts, random.Random(molecule.smiles))
        messages = describe.conversation_messages(facts, random.Random(molecule.smiles))
        assert [message.role for message in messages] == ["user", "assistant"] * (len(messages) // 2)
        assert len(messages) >= 4


def test_yes_no_questions_are_true_and_balanced(molecules):
    answers = []
    for molecule in molecules:
        facts = describe.facts_of(Chem.MolFromSmiles(molecule.smiles))
        messages = describe.conversation_messages(facts, random.Random(molecule.smiles))
        for ask, answer in zip(messages[0::2], messages[1::2], strict=True):
            if answer.content.startswith(("Yes", "No")):
                (name,) = mentioned_groups(ask.content)
                assert answer.content.startswith("Yes") == (name in facts.groups), (molecule.smiles, ask, answer)
                answers.append(answer.content.startswith("Yes"))
    assert len(answers) == len(molecules)
    assert 0.4 < sum(answers) / len(answers) < 0.6
