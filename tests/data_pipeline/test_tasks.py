"""From rows to conversations, on the tables that people really have."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError, RowError
from data_pipeline.files import read_rows
from data_pipeline.molecule import InvalidMoleculeError, parse_smiles
from data_pipeline.tasks import TASKS, Columns, Missing, components, overlooked_molecules


def conversations(task, path, columns=None, limit=300):
    rows = list(itertools.islice(read_rows(path), limit))
    reader = TASKS[task](list(rows[0]), columns or Columns())
    found, refused = [], []
    for row in rows:
        try:
            found += reader(row)
        except (RowError, InvalidMoleculeError) as error:
            refused.append(error)
    return found, refused


def turn(conversation):
    return tuple(message.content for message in conversation.messages)


@pytest.mark.parametrize(
    ("task", "file", "smiles", "question", "answer"),
    [
        ("property_regression", "property/esol.csv", None, "(log10) of this molecule, in log mol/L", "-0.77"),
        ("property_regression", "property/freesolv.csv", "CN(C)C(=O)c1ccc(cc1)OC", "in kcal/mol", "-11.01"),
        ("property_regression", "property/lipophilicity.csv", None, "logD at pH 7.4 of this molecule?", "3.54"),
        ("property_regression", "property/bace.csv", None, "pIC50", "9.1549015"),
        ("property_classification", "property/bace.csv", None, "BACE-1", "Yes"),
        ("property_classification", "property/bbbp.csv", "[Cl].CC(C)NCC(O)COc1cccc2ccccc12", "blood-brain", "Yes"),
        ("iupac_name", "iupac/iupac_pairs.csv", None, "IUPAC name", "(1R,2R)-2-amino-1,2-diphenyl-2-tritioethanol"),
        ("description", "chebi20/valid.tsv", None, "", "The molecule is an acetate salt obtained by combining"),
    ],
)  # fmt: skip
def test_guesses_of_columns(shared_data, task, file, smiles, question, answer):
    found, refused = conversations(task, shared_data / file)
    first = found[0]
    assert len(found) > 290
    assert not refused
    assert first.smiles == (smiles,) or smiles is None
    assert question in turn(first)[0]
    assert turn(first)[1].startswith(answer)


def test_qm9_asks_for_every_property_with_its_unit(shared_data):
    found, _ = conversations("property_regression", shared_data / "property" / "qm9_subset.csv", limit=1)
    assert [turn(each) for each in found] == [
        ("What is the HOMO energy of this molecule, in Hartree?", "-0.3385"),
        ("What is the LUMO energy of this molecule, in Hartree?", "0.1041"),
        ("What is the HOMO-LUMO gap of this molecule, in Hartree?", "0.4426"),
    ]
    chosen, _ = conversations(
        "property_regression", shared_data / "property" / "qm9_subset.csv", Columns(targets=("alpha",)), limit=1
    )
    assert [turn(each) for each in chosen] == [("What is the alpha of this molecule?", "23.95")]


def test_reactions_show_every_molecule(shared_data):
    forward, refused = conversations("forward_reaction", shared_data / "reaction" / "uspto1k_forward.csv")
    assert not refused
    assert forward[1].smiles == ("Cc1ccc(NC(=O)c2cc(F)cc(N3CCOCC3)c2)cc1N", "O=C(Cl)c1ccc(Cl)nc1")
    assert turn(forward[1])[1] == "Cc1ccc(NC(=O)c2cc(F)cc(N3CCOCC3)c2)cc1NC(=O)c1ccc(Cl)nc1"
    retro, refused = conversations("retrosynthesis", shared_data / "reaction" / "uspto50k_valid.csv")
    assert not refused
    assert len(retro[0].smiles) == 1
    assert turn(retro[0])[1] == "CC(C)(C)OC(=O)NCCCCN.CC(C)C[C@H](NC(=O)c1cc2ccccc2s1)C(=O)O"


def test_reaction_smiles_lose_their_maps():
    row = {"rxn": "[CH3:1][OH:2].[Na+].[Cl-]>O>[CH3:1][O:2]C |f:1.2|"}
    (forward,) = TASKS["forward_reaction"](["rxn"], Columns())(row)
    assert forward.smiles == ("[CH3][OH]", "O", "[Na+].[Cl-]")
    assert turn(forward)[1] == "COC"
    (retro,) = TASKS["retrosynthesis"](["rxn"], Columns())(row)
    assert retro.smiles == ("[CH3][O]C",)
    assert turn(retro)[1] == "CO.[Cl-].[Na+]"
    for broken in ("C.C", ">>C", "C>>", "C>C"):
        with pytest.raises(RowError, match="reactants>reagents>products"):
            TASKS["forward_reaction"](["rxn"], Columns())({"rxn": broken})


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from(["CCO", "[Na+]", "[Cl-]", "C[N+](=O)[O-]", "[NH4+]", "[Fe+3]", "[Cu++]"]), max_size=6))
def test_components_keep_every_atom(parts):
    found = components(".".join(parts))
    assert sorted(".".join(found).split(".")) == sorted(parts or [""])
    charges = [sum(atom.GetFormalCharge() for atom in parse_smiles(each).GetAtoms()) for each in found]
    assert sum(charge != 0 for charge in charges) <= 1


def test_generation_shows_no_graph():
    reader = TASKS["molecule_generation"](["SMILES", "description"], Columns())
    (found,) = reader({"SMILES": "OC[C@H](O)C", "description": "A diol."})
    assert found.smiles == ()
    assert turn(found)[0].endswith("A diol.")
    assert turn(found)[1] == "C[C@@H](O)CO"
    with pytest.raises(InvalidMoleculeError):
        reader({"SMILES": "C1", "description": "Broken."})


def test_the_smiles_column_of_conversations_is_found():
    row = {"SMILES": "C", "messages": TURNS}
    (guessed,) = TASKS["instruction"](list(row), Columns())(row)
    (named,) = TASKS["instruction"](list(row), Columns(smiles="smiles"))(row)
    assert guessed.smiles == named.smiles == ("C",)
    with pytest.raises(DataError, match="no column 'structure'"):
        TASKS["instruction"](list(row), Columns(smiles="structure"))


def test_records_in_the_original_layout():
    reader = TASKS["instruction"](["smiles", "instruction", "output"], Columns())
    (plain,) = reader({"smiles": "C", "instruction": "What is it?", "output": "Methane."})
    assert (plain.smiles, plain.graph_at) == (("C",), None)
    (marked,) = reader({"smiles": "C", "instruction": "Look at <graph>: what?", "output": "Methane."})
    assert (turn(marked)[0], marked.graph_at) == ("Look at : what?", (0, 8))
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    (several,) = reader({"smiles": "C", "instruction": turns, "output": "d"})
    assert turn(several) == ("a", "b", "c", "d")


TURNS = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": "x"}, "messages are not a list"),
        ({"text": "a row without messages"}, "messages are not a list"),
        ({"messages": [{"role": "user"}]}, "without content"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "unknown role"),
        ({"messages": [{"role": "user", "content": "x"}]}, "no answer"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "no question"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "not valid Unicode"),
        ({"smiles": 3, "messages": TURNS}, "not text"),
    ],
)  # fmt: skip
def test_conversations_that_cannot_be_used(row, reason):
    with pytest.raises(RowError, match=reason):
        TASKS["instruction"](["messages"], Columns())(row)


@pytest.mark.parametrize("value", ["high", "inf", "1,204", "1 2"])
def test_numbers_and_classes_that_are_none(value):
    (found,) = TASKS["property_regression"](["smiles", "gap"], Columns())({"smiles": "C", "gap": value})
    assert found.reason == "gap is not a number"
    (found,) = TASKS["property_classification"](["smiles", "p_np"], Columns())({"smiles": "C", "p_np": value})
    assert found.reason == "p_np is neither yes nor no"


def test_an_empty_label_leaves_the_others():
    """Of a table with several: a conversation for each known one, the rest is named."""
    read = TASKS["property_regression"](["smiles", "homo", "lumo", "gap"], Columns())
    for empty in ("", None, "NaN", "n/a", float("nan")):
        one = TASKS["property_regression"](["smiles", "gap"], Columns())
        assert one({"smiles": "C", "gap": empty}) == [Missing("gap")]
        found = read({"smiles": "C", "homo": "-0.25", "lumo": empty, "gap": "wide"})
        assert found[0].messages[1].content == "-0.25"
        assert found[1] == Missing("lumo")
        assert found[2].reason == "gap is not a number"
    tox = TASKS["property_classification"](["smiles", "NR-AR", "SR-p53"], Columns(targets=("NR-AR", "SR-p53")))
    assert tox({"smiles": "C", "NR-AR": "", "SR-p53": "1.0"})[0] == Missing("NR-AR")
    assert tox({"smiles": "C", "NR-AR": "", "SR-p53": "1.0"})[1].messages[1].content == "Yes"


@pytest.mark.parametrize("task", sorted(TASKS))
def test_a_wrong_guess_lists_the_columns(task):
    with pytest.raises(DataError, match=r"\['a', 'b'\]"):
        TASKS[task](["a", "b"], Columns())


@pytest.mark.parametrize("column", ["Drug", "molecule_smiles", "input", "structure"])
def test_molecules_in_a_column_of_another_name_are_not_overlooked(column):
    """Conversations without their molecules, and not a word about it."""
    texts = ["CCO", "c1ccccc1", "[C][C][O]"]
    rows = [{column: text, "instruction": "What?", "output": "A thing."} for text in texts]
    assert overlooked_molecules("instruction", rows, Columns()) == column
    assert overlooked_molecules("instruction", rows, Columns(smiles=column)) is None
    assert overlooked_molecules("description", rows, Columns()) is None
    told = [*rows, {column: "an alcohol", "instruction": "What?", "output": "No."}]
    assert overlooked_molecules("instruction", told, Columns()) is None
    assert overlooked_molecules("instruction", [{"smiles": "", **row} for row in rows], Columns()) is None
    short = [{"grade": "C", "messages": TURNS}, {"grade": "B", "messages": TURNS}]
    assert overlooked_molecules("instruction", short, Columns()) is None


def test_alpacas_input_is_part_of_the_question():
    row = {"instruction": "Answer.", "input": "What is CO2?", "output": "A gas.", "smiles": "O=C=O"}
    (found,) = TASKS["instruction"](list(row), Columns())(row)
    assert turn(found) == ("Answer.\nWhat is CO2?", "A gas.")
    row = {"instruction": "Describe it.", "input": "O=C=O", "output": "A gas."}
    (found,) = TASKS["instruction"](list(row), Columns(smiles="input"))(row)
    assert (found.smiles, turn(found)[0]) == (("O=C=O",), "Describe it.")


def test_selfies_become_smiles():
    """As the library decodes them; in every task that reads a molecule."""
    read = TASKS["description"](["smiles", "text"], Columns())
    (found,) = read({"smiles": "[C][=C][C][=C][C][=C][Ring1][=Branch1]", "text": "Benzene."})
    assert parse_smiles(found.smiles[0]).GetNumAtoms() == 6
    (found,) = TASKS["instruction"](["smiles", "messages"], Columns())(
        {"smiles": ["[C][C][O]", "C"], "messages": TURNS}
    )
    assert found.smiles == ("CCO", "C")
    (found,) = TASKS["molecule_generation"](["smiles", "text"], Columns())({"smiles": "[O][C]", "text": "x"})
    assert turn(found)[1] == "CO"
    reaction = {"reaction": "[CH3:1][I:2].[Br:5][Br:6]>[CH3:3][Mg:4][Br:7]>[CH3:1][CH2:3][I:2]"}  # maps, not SELFIES
    (found,) = TASKS["forward_reaction"](["reaction"], Columns())(reaction)
    assert [parse_smiles(smiles).GetNumAtoms() for smiles in found.smiles] == [2, 2, 3]
    with pytest.raises(RowError, match="not readable as SELFIES"):
        read({"smiles": "[C][Unknown][O]", "text": "x"})
    with pytest.raises(InvalidMoleculeError, match="this is SELFIES"):
        parse_smiles("[C][C][O]")


@pytest.mark.parametrize(
    "text",
    [
        "I cannot determine the reactants.",
        "C is the only carbon source",
        "CCO\nCCN",
        "CCO ethanol",
        "CCO\tlot 5",
        "No way",
    ],
)
def test_a_text_is_no_molecule_because_its_first_word_is(text):
    with pytest.raises(InvalidMoleculeError, match="stands behind the SMILES"):
        parse_smiles(text)
    assert parse_smiles(" CCO \n").GetNumAtoms() == 3
    assert parse_smiles("CC[C@H](O)Cl |o1:2|").GetNumAtoms() == 5


def test_reactions_as_files_have_them():
    read = TASKS["forward_reaction"](["rxn"], Columns())
    (dative,) = read({"rxn": "CN->[Cu].O>>C[NH2]->[Cu]"})
    assert dative.smiles == ("CN->[Cu]", "O")
    (grouped,) = read({"rxn": "CCO.[Na+].[OH-]>>CC |f:1.2,a.b|"})
    assert grouped.smiles == ("CCO", "[Na+].[OH-]")
    with pytest.raises(RowError, match="text behind the reaction"):
        read({"rxn": "CCO>>CC lot.B"})
    columns = ["reactants", "reagents", "product"]
    row = dict(zip(columns, ("CCO", "O", "CC"), strict=True))
    read = TASKS["forward_reaction"](columns, Columns())
    assert read(row)[0].smiles == ("CCO", "O")
    for name in columns:
        with pytest.raises(RowError, match=f"text behind the SMILES in {name}"):
            read(row | {name: row[name] + " lot.B"})


def test_reagents_are_no_reactants():
    columns = ["reactants", "reagents", "product"]
    row = {"reactants": "CCO", "reagents": "O", "product": "CC"}
    (retro,) = TASKS["retrosynthesis"](columns, Columns())(row)
    (forward,) = TASKS["forward_reaction"](columns, Columns())(row)
    assert turn(retro)[1] == "CCO"
    assert retro.smiles == ("CC",)
    assert forward.smiles == ("CCO", "O")
