"""Conversations that are written and checked: rules, checks, plan, diversity and ratings of data_pipeline.instruct."""

import collections
import itertools
import json
import random
import re

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import Descriptors, rdMolDescriptors

from benchmarks import instruction_faults
from data_pipeline.conversation import Message
from data_pipeline.errors import DataError
from data_pipeline.files import TableOptions, read_rows
from data_pipeline.instruct import ratings, rule_turns
from data_pipeline.instruct.__main__ import main
from data_pipeline.instruct.assembly import Assembly, Written
from data_pipeline.instruct.diversity import Diversity
from data_pipeline.instruct.examples import EXAMPLES
from data_pipeline.instruct.kinds import KINDS
from data_pipeline.instruct.mending import better
from data_pipeline.instruct.openai_teacher import _retry_after, body
from data_pipeline.instruct.plan import kinds_in_turn, read_shares
from data_pipeline.instruct.quality import Shown, Thresholds, judged
from data_pipeline.instruct.requests import Reply, ReplyError, as_reply, made_request, parsed, seed_json
from data_pipeline.instruct.seeds import Columns, Excluded, Seed, facts_about, read_seeds
from data_pipeline.instruct.teachers import Answer, Usage

ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"
ALANINE = "C[C@H](N)C(=O)O"


@pytest.fixture(scope="module")
def written(shared_data, tmp_path_factory):
    """A folder of 400 conversations that rules wrote about molecules of ChEBI-20."""
    folder = tmp_path_factory.mktemp("instruct") / "talk"
    main(["--input", str(shared_data / "chebi20" / "train.tsv"), "--output", str(folder), "--conversations", "400"])
    return folder


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def talk(*texts: str) -> tuple[Message, ...]:
    return tuple(Message(role, text) for role, text in zip(itertools.cycle(("user", "assistant")), texts))


def reasons(*texts: str, smiles=(ASPIRIN,), written="", kind="structure", **thresholds) -> set[str]:
    shown = Shown(kind, smiles, (written,), talk(*texts))
    return {f"{f.check}: {f.reason}" for f in judged(shown, Thresholds()._replace(**thresholds)).findings}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: f"{example.kind} {example.smiles[0]}")
def test_our_own_examples_pass_every_check(example):
    assert reasons(*example.turns, smiles=example.smiles, kind=example.kind) == set()


def test_there_are_examples_of_every_kind():
    counts = collections.Counter(example.kind for example in EXAMPLES)
    assert set(counts) == set(KINDS)
    assert min(counts.values()) >= 2
    assert sum(kind.share for kind in KINDS.values()) == pytest.approx(1)


def test_rules_write_the_kinds_and_shares_that_are_asked_for(written):
    rows = rows_of(written / "conversations.jsonl")
    counts = collections.Counter(row["kind"] for row in rows)
    assert {kind: count / 400 for kind, count in counts.items()} == {name: kind.share for name, kind in KINDS.items()}
    assert len({row["id"] for row in rows}) == 400
    for row in rows:
        roles = [message["role"] for message in row["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2) != []
        assert len([row["smiles"]] if isinstance(row["smiles"], str) else row["smiles"]) == KINDS[row["kind"]].molecules
        origin = row["provenance"]
        assert origin["teacher"] == "rules"
        assert origin["seeds"][0]["file"] == "train.tsv"
        assert origin["seeds"][0]["texts"] == ["description"]
        assert origin["prompt_version"] == 1
        assert origin["messages_cut"] == 0
    quality = json.loads((written / "quality.json").read_text())
    assert quality["conversations"] == 400
    assert quality["written"] == 400 + len({row["id"] for row in rows_of(written / "rejected.jsonl")})
    assert quality["grounded"] > 0.999
    assert quality["diversity"]["molecules"] > 420


def test_what_rules_say_is_true_by_another_reading(written):
    """By RDKit alone, with patterns of this test's own: not a line of it is shared with the checks."""
    checked = wrong = 0
    for row in rows_of(written / "conversations.jsonl"):
        smiles = [row["smiles"]] if isinstance(row["smiles"], str) else row["smiles"]
        mols = [Chem.MolFromSmiles(each) for each in smiles]
        for message in row["messages"]:
            if message["role"] != "assistant":
                continue
            for sentence in re.split(r"(?<=[.:])\s", message["content"]):
                mol = mols["second molecule" in sentence]
                for right in _verdicts(sentence, mol, mols):
                    checked += 1
                    wrong += not right
    assert checked > 700
    assert wrong / checked <= 0.01


def _verdicts(sentence, mol, mols):
    lower = sentence.lower()
    for mass in re.findall(r"(\d+\.\d) g/mol", sentence):
        yield abs(float(mass) - Descriptors.MolWt(mol)) < 0.06
    for formula in re.findall(r"(?:formula|is) (C\d+H\d+[A-Za-z0-9]*[+-]?\d*)\b", sentence):
        yield formula.rstrip(".") in rdMolDescriptors.CalcMolFormula(mol)
    for charge in re.findall(r"net charge of ([+-]\d+)", sentence):
        yield int(charge) == sum(atom.GetFormalCharge() for atom in mol.GetAtoms())
    if re.search(r"is neutral|has no net charge", sentence):
        yield sum(atom.GetFormalCharge() for atom in mol.GetAtoms()) == 0
    for count in re.findall(r"(\d+|no) rings?\b(?! system)", sentence):
        yield (0 if count == "no" else int(count)) == mol.GetRingInfo().NumRings()
    for count in re.findall(r"(\d+|no) heavy atoms?", sentence):
        yield int(count) == sum(atom.GetAtomicNum() > 1 for atom in mol.GetAtoms())
    if "both molecules" not in lower and "share" not in lower:
        for name, symbol in {"carbon": 6, "nitrogen": 7, "oxygen": 8, "sulfur": 16, "chlorine": 17}.items():
            for count in re.findall(rf"(\d+) {name}\b", sentence):
                yield int(count) == sum(atom.GetAtomicNum() == symbol for atom in mol.GetAtoms())
    smarts = {"nitrile": "C#N", "nitro": "[N+](=O)[O-]", "carboxylic acid": "C(=O)[OX2H]", "sulfone": "S(=O)(=O)",
              "alcohol": "[CX4][OX2H]", "thiol": "[SX2H]", "phenol": "c[OX2H]", "chloro": "Cl"}  # fmt: skip
    for name, pattern in smarts.items():
        for match in re.finditer(rf"(no )?(?:\d+ )?\b{name} groups?\b", sentence):
            there = [each.HasSubstructMatch(Chem.MolFromSmarts(pattern)) for each in mols]
            if match[1]:
                if name not in ("sulfone", "nitrile", "alcohol", "chloro"):  # the patterns here are wider
                    yield not there[mols.index(mol)]
            else:
                yield all(there) if "both" in lower else there[mols.index(mol)]


def test_planted_faults_are_found_and_nothing_else(written):
    result = instruction_faults.measure(list(read_rows(written / "conversations.jsonl")), seed=0)
    assert result["conversations"] == 400
    assert all(fault["planted"] == 80 for fault in result["faults"].values())
    assert result["caught"] >= 0.95, result["missed"]
    assert result["false_alarms"] <= 0.02, result["alarms"]
    for name in ("another_molecule", "wrong_count", "absent_group", "wrong_charge"):
        assert result["faults"][name]["caught"] >= 0.95, (name, result["missed"])


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (("Describe it.", "It has an ester and a benzene ring."), set()),
        (("Describe it.", "It has a nitro group."), {"grounding: contradicted: group"}),
        (("Describe it.", "It has 2 esters and weighs 200.1 g/mol."),
         {"grounding: contradicted: group", "grounding: contradicted: mass"}),
        (("Has it a nitro group?", "Yes, in the middle."), {"grounding: contradicted: yes or no",
                                                           "grounding: does not answer the question",
                                                           "informativeness: says nothing of the molecule"}),
        (("Does it contain an ester?", "No, it has no ester group."),
         {"grounding: contradicted: group", "grounding: contradicted: yes or no"}),
        (("What is its net charge?", "It has a benzene ring."), {"grounding: does not answer the question"}),
        (("What is known of it?", "It has a role as a toxin. It has an ester."), {"grounding: not in the seed's text"}),
        (("What is it?", "An ester. It melts at 135 °C."), {"grounding: not in the seed's text"}),
        (("Describe it.", "As an AI language model, I see an ester."), {"form: speaks of itself"}),
        (("Describe it.", "According to the facts, it has an ester."), {"form: words of the prompt"}),
        (("Describe it.", "<graph> It has an ester."), {"form: markup"}),
        (("Describe it.", "It has an \ufffdester."), {"form: garbled characters"}),
        (("Describe it.", "Es hat eine Estergruppe und einen aromatischen Ring aus sechs Atomen."),
         {"form: language de"}),
        (("Describe it.", "It has an ester and a carboxylic acid and also"), {"form: cut short"}),
        (("Describe it.", f"It is {ASPIRIN}, an ester."), {"leakage: a SMILES"}),
        (("Describe it.", "It is O=C(C)Oc1ccccc1C(=O)O, an ester."), {"leakage: a SMILES"}),
        (("Describe it.", "The ester BSYNRYMUTXBXSQ-UHFFFAOYSA-N."), {"leakage: an identifier"}),
        (("Describe it.", "The molecule is a natural product found in willows."),
         {"informativeness: vacuous", "informativeness: says nothing of the molecule",
          "grounding: not in the seed's text"}),
        (("Describe it.", "It is what it is, says nobody."), {"informativeness: says nothing of the molecule"}),
        (("Describe it.", "ester " * 100_000), {"form: too long"}),
        (("Has it an ester?", "Yes, an ester.", "More?", "acid " * 100_000), {"form: too long"}),
        (("Describe it.",), {"form: roles do not alternate from user to assistant"}),
    ],
)  # fmt: skip
def test_what_checks_find(texts, found):
    assert reasons(*texts) == found


PARACETAMOL, GLUCOSE = "CC(=O)Nc1ccc(O)cc1", "OC[C@H]1OC(O)[C@H](O)[C@@H](O)[C@@H]1O"


@pytest.mark.parametrize(
    ("smiles", "question", "answer"),
    [
        (ASPIRIN, "Is there a ketone?", "No. Although there are two carbonyl carbons, neither is a ketone: one is "
         "part of an ester and the other of a carboxylic acid."),
        (ASPIRIN, "In water?", "The carboxylic acid would be deprotonated to a carboxylate at neutral pH."),
        (ASPIRIN, "Does it contain nitrogen?", "No, only carbon, hydrogen and oxygen are present."),
        ("Cn1c(=O)c2c(ncn2C)n(C)c1=O", "Can it donate hydrogen bonds?", "It has no hydrogen-bond donors because every "
         "ring nitrogen is either methylated or part of a double bond."),
        (GLUCOSE, "Is there an aldehyde?", "Not in this cyclic form; the aldehyde is masked as a hemiacetal."),
        ("C1CCCCC1", "Is it aromatic?", "None of its rings is aromatic; the ring is a saturated cyclohexane."),
        ("NCCN", "Describe it.", "It is a small chain without any rings, strongly basic because of its two nitrogens."),
        ("C=CC", "Describe it.", "It has one carbon–carbon double bond, an alkene."),
        (PARACETAMOL, "Is it drug-like?", "Yes: it has 2 hydrogen-bond donors and fewer than 10 acceptors."),
        (PARACETAMOL, "How many hydrogen-bond donors does it have?", "Two: the phenolic O–H and the amide N–H."),
        (PARACETAMOL, "Does it contain an amine?", "No, the nitrogen is part of an amide rather than a free amine."),
        ("[Na+].[O-]C(=O)c1ccccc1", "What is its net charge?", "Zero: the sodium cation balances the benzoate anion."),
        ("CCCCCC", "In water?", "No. It is a pure hydrocarbon with no polar groups, so it prefers oil."),
    ],
)  # fmt: skip
def test_true_sentences_of_a_good_writer_pass(smiles, question, answer):
    assert reasons(question, answer, smiles=(smiles,)) == set()


@pytest.mark.parametrize(
    "answer",
    [
        "Its molecular formula, C10H8O4, reflects the ring.",
        "It is an ester and has a chiral center.",
        "An ester with twelve stereocentres.",
        "It has a benzene ring, and its melting point is 135 °C.",
        "An ester, first synthesized by Felix Hoffmann in 1897.",
        "An ester with a TPSA of 150 Å².",
        "It has an ester. It is approved by the FDA.",
    ],
)
def test_false_and_unknown_sentences_do_not(answer):
    assert any(reason.startswith("grounding") for reason in reasons("Describe it.", answer))


def test_what_people_wrote_supports_what_no_structure_shows():
    text = "It has a role as an antipyretic and a plant hormone. It is found in willows."
    assert reasons("Known?", "The ester has a role as an antipyretic.", written=text) == set()
    unsaid = {"grounding: not in the seed's text"}
    assert reasons("Known?", "The ester has a role as a pesticide.", written=text) == unsaid
    assert reasons("Known?", "The ester has a role as a pesticide.", written=text, max_unsupported=1) == set()
    copy = {"form: a copy of the seed's text and nothing else"}
    assert reasons("Known?", text, written=text) >= copy
    assert not reasons("Known?", text, "And its groups?", "It has an ester group.", written=text) & copy


def test_sentences_are_about_the_molecule_that_they_name():
    both = (ASPIRIN, "CCN")
    right, wrong = (
        "The first molecule has an ester. The second has an amine.",
        "The first has an amine, the second an ester.",
    )
    assert reasons("Compare them.", right, smiles=both) == set()
    assert reasons("Compare them.", wrong, smiles=both) == {"grounding: contradicted: group"}
    assert reasons("Compare them.", "Both molecules have an ester.", smiles=both) == {"grounding: contradicted: group"}
    assert reasons("Compare them.", "One has an ester, the other an amine.", smiles=both) == set()


def test_a_turn_that_fails_is_cut_off_with_what_follows():
    shown = Shown("structure", (ASPIRIN,), ("",), talk(
        "Has it an ester?", "Yes, it has 1 ester group.", "Its charge?", "It has a net charge of +1.",
        "Its formula?", "It has the formula C9H8O4.",
        "Has it a nitro group?", "Yes, it has 1 nitro group."))  # fmt: skip
    verdict = judged(shown, Thresholds())
    assert [message.content for message in verdict.kept] == ["Has it an ester?", "Yes, it has 1 ester group."]
    assert (verdict.claims, verdict.true) == (4, 2)
    assert {finding.turn for finding in verdict.findings} == {3, 7}


def test_a_smiles_without_bonds_or_rings_is_given_away_too():
    assert reasons("Describe it.", "It is CCO, an alcohol.", smiles=("CCO",)) == {"leakage: a SMILES"}
    assert reasons("Describe it.", "It is OCC, an alcohol.", smiles=("OCC",)) == {"leakage: a SMILES"}


def test_thresholds_are_settings():
    changed = Thresholds().changed(["max_turns=2", "near_duplicate=0.5"])
    assert (changed.max_turns, changed.near_duplicate) == (2, 0.5)
    assert reasons("a b", "An ester.", "c d", "An ester.", max_turns=2) == {"form: too many turns"}
    for wrong in ("max_turn=2", "max_turns=many"):
        with pytest.raises(DataError, match="threshold"):
            Thresholds().changed([wrong])


def test_shares_are_kept_at_every_moment():
    shares = read_shares(["structure=3", "unknown=1"])
    kinds = list(itertools.islice(kinds_in_turn(shares), 40))
    for end in range(1, 41):
        assert abs(kinds[:end].count("structure") - 0.75 * end) <= 1
    assert kinds_in_turn(shares, {"structure": 2}).__next__() == "unknown"
    wrong = {"poem=1": "no kind 'poem'", "structure=x": "a share is a number", "structure=0": "above 0"}
    for setting, said in wrong.items():
        with pytest.raises(DataError, match=said):
            read_shares([setting])


def test_seeds_have_a_text_or_a_name_and_say_where_they_come_from(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("smiles,description,iupac_name\nCCO,An alcohol.,ethanol\nCC,,ethane\nC,,\n,A gas.,\n")
    seeds, rejected = read_seeds([path], Columns(), TableOptions())
    assert seeds == [Seed("CCO", "An alcohol.", "ethanol", "rows.csv", 1), Seed("CC", "", "ethane", "rows.csv", 2)]
    assert seeds[1].source() == {"file": "rows.csv", "row": 2, "texts": ["name"]}
    assert [(row["row"], row["reason"]) for row in rejected] == [(3, "empty iupac_name"), (4, "empty smiles")]
    path.write_text("smiles,colour\nCCO,red\n")
    with pytest.raises(DataError, match=r"no column 'description'.*--description_column"):
        read_seeds([path], Columns(), TableOptions())
    with pytest.raises(DataError, match=r"no column 'taste'.*--name_column"):
        read_seeds([path], Columns(name="taste"), TableOptions())


def test_molecules_of_evaluation_files_are_kept_out(tmp_path):
    path = tmp_path / "test.csv"
    path.write_text(f"smiles,y\n{ALANINE},1\nCCc1ccccc1,0\nnot a molecule,0\n")
    excluded = Excluded([path], scaffolds=False, options=TableOptions())
    assert excluded.unreadable == 1
    assert excluded.reason("C[C@@H](N)C(O)=O") == "leakage: in an excluded file"  # the other hand, written differently
    assert excluded.reason("Cc1ccccc1") is None
    assert excluded.reason("[Na+].C[C@H](N)C(=O)[O-]") == "leakage: in an excluded file"  # its salt
    wider = Excluded([path], scaffolds=True, options=TableOptions())
    assert wider.reason("Cc1ccccc1") == "leakage: the scaffold is in an excluded file"
    assert wider.reason("CCO") is None  # acyclic, as alanine is: that is no scaffold


def test_excluded_and_unreadable_seeds_are_passed_over_and_told(tmp_path):
    path, held_out, output = tmp_path / "rows.csv", tmp_path / "test.csv", tmp_path / "out"
    rows = [ALANINE, "nonsense", "CCO", "CCN", "c1ccccc1O", "CC(C)=O"]
    path.write_text("smiles,description\n" + "".join(f"{smiles},A substance.\n" for smiles in rows))
    held_out.write_text(f"smiles\n{ALANINE}\n")
    main(["--input", str(path), "--output", str(output), "--conversations", "8", "--exclude", str(held_out),
          "--kinds", "comparison=1", "structure=1"])  # fmt: skip
    shown = [row["smiles"] for row in rows_of(output / "conversations.jsonl")]
    assert {smiles for each in shown for smiles in ([each] if isinstance(each, str) else each)} == set(rows[2:])
    pairs = [each for each in shown if not isinstance(each, str)]
    assert len(pairs) == 4
    assert all(one != two for one, two in pairs)
    told = {row["row"]: row["reason"] for row in rows_of(output / "rejected.jsonl") if "row" in row}
    assert told[1] == "leakage: in an excluded file"
    assert set(told) == {1, 2}


def test_a_request_holds_what_rdkit_proves():
    asked = json.loads(seed_json("structure", [Seed(ALANINE, "An amino acid.", "", "f", 1)]))
    (molecule,) = asked["molecules"]
    assert molecule["description"] == "An amino acid."
    assert "iupac_name" not in molecule
    facts = molecule["facts"]
    assert (facts["formula"], facts["mass in g/mol"], facts["configuration"]) == ("C3H7NO2", 89.1, {"S": 1})
    assert facts["functional groups"] == {"carboxylic acid": 1, "primary amine": 1}
    assert facts["polar surface area in Å²"] == 63.3
    assert facts_about("c1ccccc1CC").scaffold == "c1ccccc1"


def test_replies_are_read_strictly_but_for_what_stands_around_them():
    text = '{"messages": [{"role": "user", "content": "a"}]}'
    for around in (text, f"```json\n{text}\n```", f"Here it is: {text} I hope that helps."):
        assert parsed(around, Reply) == Reply(messages=[{"role": "user", "content": "a"}])
    system = '{"messages": [{"role": "system", "content": ""}]}'
    wrong = {"hello": "no JSON", "{": "not JSON", system: "schema", '{"messages": [], "more": 1}': "schema"}
    for reply, said in wrong.items():
        with pytest.raises(ReplyError, match=said):
            parsed(reply, Reply)


def test_servers_may_name_seconds_or_a_date():
    import email.utils
    import time

    assert _retry_after("2.5") == 2.5
    assert _retry_after(email.utils.formatdate(time.time() + 100, usegmt=True)) == pytest.approx(100, abs=60)
    assert [_retry_after(value) for value in (None, "soon", "1e9")] == [None, None, None]
    assert _retry_after("-5") == 0


def test_near_duplicates_are_found_and_the_rest_is_counted():
    diversity = Diversity(0.8)
    text = " ".join(f"word{index}" for index in range(100))
    assert diversity.twin("a", ["CCO"], talk("What is it?", text)) is None
    assert diversity.twin("b", ["CCC"], talk("What is it?", text.replace("word50 ", "other "))) == "a"
    assert diversity.twin("c", ["CCC"], talk("What is it?", "Something else: an ester and a ketone.")) is None
    for atoms in (3, 10, 11, 100):
        diversity.sized(atoms)
    report = diversity.report()
    assert report["groups"] == {"ester": 1, "ketone": 1}
    assert report["molecules"] == 2
    assert list(report["heavy_atoms"].values()) == [2, 1, 0, 0, 0, 1]
    words = 3 + 100 + 3 + 7
    assert report["distinct_1"] == pytest.approx((words - 3) / words, abs=0.02)


def test_near_duplicates_are_dropped_from_the_output(tmp_path):
    said = [{"role": "user", "content": "Its groups?"}, {"role": "assistant", "content": "It has an alcohol group."}]
    written = [
        Written(name, "structure", (Seed(smiles, "", "", "f", 1),), Reply(messages=said), None, False)
        for name, smiles in (("one", "CCO"), ("two", "CCCO"))
    ]
    with Assembly.writing(tmp_path / "good", tmp_path / "bad", Thresholds(), {}) as assembly:
        assembly.add(written, 2)
    assert [row["id"] for row in rows_of(tmp_path / "good")] == ["one"]
    (rejected,) = rows_of(tmp_path / "bad")
    assert (rejected["id"], rejected["reasons"][0]["detail"]) == ("two", "of one")
    assert assembly.report({"structure": 1.0})["diversity"]["near_duplicates"] == 0.5


def test_what_does_not_depend_on_the_molecule_is_rejected(tmp_path):
    messages = [
        {"role": "user", "content": "Is it useful?"},
        {"role": "assistant", "content": "That depends."},
    ]
    more = [{"role": "user", "content": "Its groups?"}, {"role": "assistant", "content": "It has an alcohol group."}]
    written = [
        Written(f"key {number}", "structure", (Seed(f"{'C' * number}O", "", "", "f", number),),
                Reply(messages=[*more, *messages]), None, False)
        for number in range(1, 9)
    ]  # fmt: skip
    with Assembly.writing(tmp_path / "good", tmp_path / "bad", Thresholds(near_duplicate=1.0), {}) as assembly:
        assembly.add(written, len(written))
    counts = assembly.report({"structure": 1.0})["findings"]
    assert counts["informativeness: an answer that does not depend on the molecule"] == 8 - Thresholds().max_repeats
    kept = [row["messages"] for row in rows_of(tmp_path / "good")]
    assert {len(each) for each in kept} == {2, 4}
    assert {each[-1]["role"] for each in kept} == {"assistant"}


def test_agreement_is_krippendorffs():
    """The example of Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability": ordinal alpha 0.815."""
    nan = float("nan")
    table = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, nan, nan, nan],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, nan, 3],
        [nan, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, nan],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, nan],
    ]
    rated = [
        ratings.Rated(f"rater {row}", {str(place): (value, value, nan) for place, value in enumerate(values)})
        for row, values in enumerate(table)
    ]
    for each in rated:
        for name, values in list(each.scores.items()):
            if np.isnan(values[0]):
                del each.scores[name]
    rated[0].scores["0"] = (1, 1, 5)
    result = ratings.summarize(rated)
    assert result["scores"]["relevance"]["alpha"] == pytest.approx(0.815, abs=5e-4)
    assert result["conversations"] == 12
    assert result["shared"] == 11
    assert result["scores"]["helpfulness"] == {"mean": 5, "interval": None, "alpha": None, "by_rater": {"rater 0": 5}}
    low, high = result["scores"]["relevance"]["interval"]
    assert low < result["scores"]["relevance"]["mean"] < high


def test_sheets_go_out_and_come_back(written, tmp_path, capsys):
    main(["--output", str(written), "--sheet", "20"])
    page = (written / "sheet.html").read_text()
    assert page.count("<svg") >= 20
    blank = (written / "sheet.csv").read_text().splitlines()
    assert blank[0] == "conversation,relevance,correctness,helpfulness,comment"
    assert len(blank) == 21
    for name, score in (("anna", 5), ("ben", 4)):
        filled = [f"{line.split(',')[0]},{score},{3 + place % 3},,fine" for place, line in enumerate(blank[1:])]
        (tmp_path / f"{name}.csv").write_text("\n".join([blank[0], *filled]) + "\n")
    capsys.readouterr()
    main(["--output", str(written), "--ratings", str(tmp_path / "anna.csv"), str(tmp_path / "ben.csv")])
    printed = capsys.readouterr().out
    assert "20 conversations, 20 of them rated by more than one" in printed
    result = json.loads((written / "ratings.json").read_text())
    assert result["scores"]["relevance"]["mean"] == 4.5
    assert result["scores"]["correctness"]["alpha"] == pytest.approx(1)
    assert result["scores"]["relevance"]["by_rater"] == {"anna": 5, "ben": 4}
    (tmp_path / "anna.csv").write_text(f"{blank[0]}\nx,6,1,1,\n")
    with pytest.raises(SystemExit, match=r"anna.csv, line 2, relevance: '6' is no score from 1 to 5"):
        main(["--output", str(written), "--ratings", str(tmp_path / "anna.csv")])


class Judge:
    """A teacher of these tests: rates by the length of what was said."""

    metered = False

    def __init__(self, options):
        self.model = options.model
        self.asked = {"teacher": "judge", "model": options.model}

    async def answer(self, request, again=0):
        asked = json.loads(request.messages[-1].content)
        assert "5: all that is said of the molecules is true" in request.messages[0].content
        assert asked["molecules"][0]["facts"]["formula"]
        score = 1 + len(asked["messages"]) % 5 if self.model == "one" else 5
        rating = {"relevance": score, "correctness": score, "helpfulness": 9 if again == 0 else 2, "comment": "ok"}
        return Answer(json.dumps(rating), Usage(1, 1))  # 9 is no score: it is asked again

    async def close(self):
        pass


def test_judges_fill_sheets_too(written, capsys):
    judge = f"{__name__}:Judge"
    main(["--output", str(written), "--judge", f"{judge}=one", f"{judge}=two", "--judged", "30"])
    printed = capsys.readouterr().out
    assert "30 conversations, 30 of them rated by more than one" in printed
    result = json.loads((written / "ratings.json").read_text())
    assert result["raters"] == ["ratings-1-one", "ratings-2-two"]
    lengths = {row["id"]: len(row["messages"]) for row in rows_of(written / "conversations.jsonl")}
    lines = (written / "ratings-1-one.csv").read_text().splitlines()
    assert lines[0] == "conversation,relevance,correctness,helpfulness,comment"
    assert len(lines) == 31
    for line in lines[1:]:
        name, relevance, _, helpfulness, _ = line.split(",")
        assert (int(relevance), helpfulness) == (1 + lengths[name] % 5, "2")
    assert result["scores"]["relevance"]["by_rater"]["ratings-2-two"] == 5
    with pytest.raises(SystemExit, match="rules only write conversations"):
        main(["--output", str(written), "--judge", "rules"])


def test_what_texts_hold_stays_text_in_pages(tmp_path):
    rows = [{"id": "1", "kind": "structure", "smiles": "CCO",
             "messages": [{"role": "user", "content": "<script>alert(1)</script>"}]}]  # fmt: skip
    from data_pipeline.instruct.report import sheet_html

    page = sheet_html(rows, ratings.RUBRIC)
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--teacher", "nobody"], "no teacher 'nobody'; known: rules, openai, assistant, or MODULE:CLASS"),
        (["--teacher", "openai", "--base_url", "http://127.0.0.1:9/v1"], "teacher openai needs --model"),
        (["--teacher", "assistant"], "teacher assistant needs --model"),
        (["--max_cost", "1"], "--max_cost needs --price_input"),
        (["--kinds", "poem=1"], "no kind 'poem'"),
        (["--write_batch", "/tmp/never"], "--write_batch is for --teacher openai"),
        (["--output", "gs://bucket/talk"], "conversations are written on a local disk"),
    ],
)
def test_what_cannot_work_is_one_line(tmp_path, options, said):
    path = tmp_path / "rows.csv"
    path.write_text("smiles,description\nCCO,An alcohol.\nCCN,An amine.\nCCC,An alkane.\n")
    with pytest.raises(SystemExit) as error:
        main(["--input", str(path), "--output", str(tmp_path / "out"), "--conversations", "2", *options])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--input nosuch.csv", "nosuch.csv: no such file"),
        ("--input .", ".: no such file"),
        ("--exclude nosuch.csv", "nosuch.csv: no such file"),
        ("--exclude numbers.jsonl", "numbers.jsonl: no molecule in it, so that nothing would be excluded"),
        ("--output rows.csv", "rows.csv is a file; choose a folder"),
        ("--rounds -1", "--rounds is at least 0"),
        ("--conversations 0", "--conversations is at least 1"),
        ("--temperature nan", "--temperature is between 0 and 10"),
        ("--requests_per_minute inf", "--requests_per_minute is a number above 0"),
        ("--max_cost nan --price_input 1", "--max_cost is a number above 0"),
        ("--threshold near_duplicate=7", "threshold near_duplicate: 7 is not between 0 and 1"),
        ("--teacher os:path", "os:path is no class"),
        ("--teacher os:nothing", "os has no nothing"),
        ("--teacher nosuchmodule:Teacher", "needs nosuchmodule, which cannot be imported"),
        ("--smiles_column molecule", "no column 'molecule'"),
        ("--input one.csv --kinds comparison=1", "1 of 1 rows can be used: too few different molecules"),
        ("--input twice.csv --kinds comparison=1", "2 of 2 rows can be used: too few different molecules"),
        ("--input hydrogen.csv --kinds structure=1", "'no heavy atoms': 2"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    files = {"rows": ["CCO", "CCN", "c1ccccc1"], "one": ["CCO"], "twice": ["CCO", "OCC"], "hydrogen": ["[H][H]", "*"]}
    for name, smiles in files.items():
        (tmp_path / f"{name}.csv").write_text("smiles,description\n" + "".join(f"{each},A thing.\n" for each in smiles))
    (tmp_path / "numbers.jsonl").write_text('{"smiles": 5}\n{"smiles": [null]}\n')
    usual = [] if "--input" in options else ["--input", "rows.csv"]
    usual += [] if "--output" in options else ["--output", "out"]
    with pytest.raises(SystemExit) as error:
        main([*usual, *options.split()])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_first_try_that_failed_does_not_hold_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").write_text("structure,description\nCCO,An alcohol.\nCCN,An amine.\nCCC,An alkane.\n")
    usual = ["--input", "rows.csv", "--output", "out", "--conversations", "4"]
    with pytest.raises(SystemExit, match="name one with --smiles_column"):
        main(usual)
    main([*usual, "--smiles_column", "structure", "--dry_run"])
    main([*usual, "--smiles_column", "structure", "--seed", "5"])
    with pytest.raises(SystemExit, match="holds another job's conversations"):
        main([*usual, "--smiles_column", "structure", "--seed", "6"])
    assert len(rows_of(tmp_path / "out" / "conversations.jsonl")) > 0


def test_a_damaged_store_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").write_text("smiles,description\n" + "".join(f"{'C' * n}O,A.\n" for n in range(1, 40)))
    main(["--input", "rows.csv", "--output", "out", "--conversations", "30"])
    store = tmp_path / "out" / "replies.sqlite"
    whole = store.read_bytes()
    for page in range(1, len(whole) // 4096):
        store.write_bytes(whole[: page * 4096] + b"\xaa" * 4096 + whole[(page + 1) * 4096 :])
        for leftover in store.parent.glob("replies.sqlite-*"):
            leftover.unlink()
        with pytest.raises(SystemExit, match=r"replies.sqlite (?:cannot be used|is damaged): ") as error:
            main(["--input", "rows.csv", "--output", "out", "--conversations", "31"])
        assert "\n" not in str(error.value)


def test_excluded_salts_are_their_parents(tmp_path):
    path = tmp_path / "test.csv"
    path.write_text("smiles\n[Na+].CC(=O)[O-]\n")
    excluded = Excluded([path], scaffolds=False, options=TableOptions())
    assert excluded.reason("CC(=O)O") == "leakage: in an excluded file"
    assert excluded.reason("CCO") is None


def test_rules_say_what_their_numbers_say():
    rng = random.Random(0)
    of = {name: facts_about(smiles) for name, smiles in {
        "octane": "CCCCCCCC", "glycerol": "OCC(O)CO", "acetate": "CC(=O)[O-]", "butanol": "CCCCO", "methanol": "CO",
    }.items()}  # fmt: skip
    for name, lead in (("octane", "Rather poorly"), ("glycerol", "Rather well"), ("acetate", "As an ion"),
                       ("butanol", "Somewhere between")):  # fmt: skip
        assert rule_turns._solubility(of[name], rng)[1].startswith(lead)
    heavy, light = of["butanol"], of["methanol"]
    first, second = rule_turns._FIRST, rule_turns._SECOND
    assert rule_turns._heavier(heavy, light, rng)[1].startswith(f"{first} is the heavier one.")
    assert rule_turns._heavier(light, heavy, rng)[1].startswith(f"{second} is the heavier one.")
    assert rule_turns._heavier(light, light, rng)[1].startswith("They weigh the same.")
    assert rule_turns._more_polar(heavy, light, rng)[1].endswith(f"{second.lower()} should prefer water.")
    assert rule_turns._more_polar(light, heavy, rng)[1].endswith(f"{first.lower()} should prefer water.")


def test_a_mending_that_leaves_less_is_not_taken():
    seed = Seed("CCO", "", "", "f", 1)

    def answer(*texts):
        turns = [("user", "What is it?"), ("assistant", texts[0]), ("user", "And?"), ("assistant", texts[1])]
        return Answer(as_reply([text for _, text in turns]))

    good, bad = "It has an alcohol group.", "It has a nitro group."
    about = ("structure", [seed])
    assert better(about, answer(good, good + " It is acyclic."), answer(good, bad), Thresholds())
    assert not better(about, answer(good, bad), answer(good, good + " It is acyclic."), Thresholds())


def test_another_attempt_draws_another_answer():
    """A server that is asked the same with the same seed answers the same: what was unusable would stay so."""
    request = made_request([Message("user", "Rate it.")], Reply, "someone")
    asked = {"teacher": "openai", "model": "m", "seed": 7}
    bodies = [body(asked, request, "none", again) for again in range(3)]
    assert [each.pop("seed") for each in bodies] == [7, 8, 9]
    assert bodies[0] == bodies[2] == {"model": "m", "messages": [{"role": "user", "content": "Rate it."}]}
