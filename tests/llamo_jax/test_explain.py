"""What an answer claims, and where each of its words looked: of every molecule, of the last answer."""

import numpy as np
import pytest

from data_pipeline.molecule import parse_smiles
from llamo_jax.apps.assistant import Assistant

ASPIRIN, PYRIDINE = "CC(=O)Oc1ccccc1C(=O)O", "c1ccncc1"
QUESTION = "Describe this molecule."
ANSWER = "It has a carboxylic acid group and two nitrile groups. It includes a benzene ring."


@pytest.fixture(scope="module")
def assistant(trained):
    return Assistant.load(trained)


def test_claims_are_checked(assistant):
    found = assistant.explain(QUESTION, smiles=ASPIRIN, answer=ANSWER)
    assert found.answer == ANSWER
    verdicts = {each.claim.name.partition(":")[2] or each.claim.name: each.true for each in found.claims}
    assert verdicts["carboxylic acid"]
    assert verdicts["benzene"]
    assert not any(true for name, true in verdicts.items() if "nitrile" in name)
    # what is true of one of several molecules is true
    both = assistant.explain(QUESTION, smiles=[PYRIDINE, ASPIRIN], answer="It has a pyridine ring and an ester group.")
    assert {each.claim.name: each.true for each in both.claims} == {"pyridine": True, "ester": True}
    assert assistant.explain(QUESTION, answer=ANSWER) == (ANSWER, [], [])


def test_its_own_answer_is_explained(assistant):
    found = assistant.explain(QUESTION, smiles=ASPIRIN)
    assert found.answer == assistant.ask(QUESTION, smiles=ASPIRIN)
    assert "".join(found.looks[0].words)[:10] == "".join(found.answer.split())[:10]


def test_every_molecule_has_its_own_atoms(assistant):
    looks = assistant.explain(QUESTION, smiles=[ASPIRIN, PYRIDINE], answer=ANSWER).looks
    assert [look.words for look in looks] == [ANSWER.split()] * 2
    for look, smiles in zip(looks, (ASPIRIN, PYRIDINE), strict=True):
        assert look.atoms.shape == (len(ANSWER.split()), parse_smiles(smiles).GetNumAtoms())
        assert np.all(look.atoms >= 0)
        # what a graph token looks at are shares: over atoms, where it looks at atoms
        of_atoms = look.attention.atoms.sum(axis=1)
        of_motifs = look.attention.motifs.sum(axis=1)
        np.testing.assert_allclose(of_atoms + of_motifs, 1, atol=1e-4)
        # no word gives graph tokens more than there is
        assert np.all(look.attention.graph.sum(axis=1) < 1)
    # the projector sees each graph by itself: what its tokens look at does not depend on the other molecule
    alone = assistant.explain(QUESTION, smiles=[PYRIDINE], answer=ANSWER).looks[0]
    np.testing.assert_allclose(looks[1].attention.atoms, alone.attention.atoms, atol=1e-5)
    np.testing.assert_allclose(looks[1].attention.motifs, alone.attention.motifs, atol=1e-5)
    assert not np.allclose(looks[0].attention.graph, looks[1].attention.graph)


def test_the_last_answer_is_looked_at(assistant):
    history = [(QUESTION, "Something else was said.")]
    look = assistant.explain("And now?", smiles=ASPIRIN, history=history, answer=ANSWER).looks[0]
    assert look.words == ANSWER.split()
    # it is its own prompt that it follows from
    other = assistant.explain("And now?", smiles=ASPIRIN, answer=ANSWER).looks[0]
    assert not np.allclose(look.attention.graph, other.attention.graph)
