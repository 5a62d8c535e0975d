"""Scores: against published outputs and their scores, and on everything that answers can be."""

import dataclasses
import json
import math
import random
import shutil
import subprocess
import sys
import types
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import evaluate as evaluate_config
from data_pipeline import storage
from data_pipeline.batch import GraphArrays
from data_pipeline.conversation import Message
from data_pipeline.errors import DataError
from data_pipeline.functional_groups import functional_groups, mentioned_groups
from data_pipeline.jobs import Settings, prepare_records
from data_pipeline.molecule import parse_smiles
from data_pipeline.prompt import without_answers
from data_pipeline.records import Record, read_records
from data_pipeline.vocabulary import MOLECULES
from llamo_jax import runs, sharding
from llamo_jax.config import ConfigError, from_dict, to_dict
from llamo_jax.evaluation import __main__ as command
from llamo_jax.evaluation import graph_use, iupac, run, wordnet
from llamo_jax.evaluation.answers import classification_scores, number_in, regression_scores, smiles_in, yes_in
from llamo_jax.evaluation.claims import check, checked_rows, claims_in, hallucination_scores
from llamo_jax.evaluation.config import EvaluationConfig
from llamo_jax.evaluation.examples import read_examples
from llamo_jax.evaluation.functional_groups import describe_records
from llamo_jax.evaluation.metric_tokenizer import MAX_TOKENS, load_metric_tokenizer
from llamo_jax.evaluation.molecules import compare, molecule_scores
from llamo_jax.evaluation.predictions import read_predictions
from llamo_jax.evaluation.questions import group_questions
from llamo_jax.evaluation.report import write_report
from llamo_jax.evaluation.scores import KINDS, score
from llamo_jax.evaluation.text import meteor_rows, rouge_l, rouge_rows, text_scores
from llamo_jax.generation.prompts import GraphRoom, collate_prompts
from llamo_jax.loading import load_generator
from tests import helpers
from tests.llamo_jax.test_training import small_run

WORDS = load_metric_tokenizer("words")
ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"


@pytest.fixture(scope="module")
def words_net():
    """WordNet 3.0; the package wordnet-base of Debian has it."""
    found = wordnet.find_wordnet()
    if found is None:
        pytest.skip(f"needs WordNet 3.0: {wordnet.HOW_TO_INSTALL}")
    return found


def published(shared_data, name):
    lines = (shared_data / "molt5_predictions" / f"molt5-small-{name}.txt").read_text().splitlines()[1:]
    rows = [line.split("\t") for line in lines]
    key = "smiles" if name == "smiles2caption" else "description"
    return [{key: given, "target": target, "prediction": output} for given, target, output in rows]


def test_scores_of_published_descriptions(shared_data, tmp_path, capsys):
    """MolT5's outputs through the command line: to four decimals what an independent evaluation gives."""
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in published(shared_data, "smiles2caption")))
    vocabulary = shared_data / "tokenizers" / "scibert_scivocab_uncased_vocab.txt"
    command.main(["--task", "description", "--predictions", str(path), "--metric_tokenizer", str(vocabulary)])
    got = json.loads(capsys.readouterr().out.splitlines()[-1])
    expected = json.loads((shared_data / "molt5_predictions" / "scores.json").read_text())["smiles2caption"]
    assert got["rows"] == expected["n"]
    for name in ("bleu2", "bleu4", "rouge1", "rouge2", "rougeL"):
        assert round(got[name], 4) == expected[name], name
    assert got["metric_tokenizer"] == "WordPiece (scibert_scivocab_uncased_vocab.txt)"
    # a small model says more that is wrong than the people who wrote the targets
    assert 0.65 < got["hallucination"]["precision"] < 0.8 < 0.85 < got["hallucination"]["target_precision"]


def test_scores_of_published_molecules(shared_data):
    rows = published(shared_data, "caption2smiles")
    got = score("molecule_generation", rows, WORDS)
    expected = json.loads((shared_data / "molt5_predictions" / "scores.json").read_text())["caption2smiles"]
    for name in ("bleu", "levenshtein", "maccs", "rdk", "morgan", "validity"):
        assert round(got[name], 4) == expected[name], name
    assert round(got["exact"], 4) == expected["exact_inchi"]
    valid = got["validity"] * len(rows)
    assert got["valid_rows"]["rows"] == pytest.approx(valid)
    for name in ("maccs", "rdk", "morgan", "exact"):
        assert got["all_rows"][name] * len(rows) == pytest.approx(got["valid_rows"][name] * valid)


def test_meteor_with_and_without_wordnet(shared_data, words_net):
    tokenizer = load_metric_tokenizer(str(shared_data / "tokenizers" / "scibert_scivocab_uncased_vocab.txt"))
    examples = json.loads((shared_data / "wordnet" / "meteor_examples.json").read_text())
    examples = [example for example in examples if "ground_truth" in example]
    assert examples

    class NoWords:
        def synsets(self, word):
            return []

    for example in examples:
        pair = tokenizer.split([example["output"]]), tokenizer.split([example["ground_truth"]])
        assert meteor_rows(*pair, words_net)["meteor"].mean() == pytest.approx(
            example["meteor_scibert_wordnet"], abs=1e-9
        )
        assert meteor_rows(*pair, NoWords())["meteor"].mean() == pytest.approx(
            example["meteor_scibert_no_wordnet"], abs=1e-9
        )
    rows = published(shared_data, "smiles2caption")
    texts = (tokenizer.split([row[key] for row in rows]) for key in ("prediction", "target"))
    expected = json.loads((shared_data / "molt5_predictions" / "scores.json").read_text())["smiles2caption"]
    assert round(meteor_rows(*texts, words_net)["meteor"].mean(), 4) == expected["meteor"]
    toy = [["the molecule has a function as a medication".split()], ["the molecule has a role as a medicine".split()]]
    assert meteor_rows(*toy, words_net)["meteor"].mean() == pytest.approx(0.87372, abs=1e-5)


def test_missing_wordnet_is_said_and_not_scored(monkeypatch):
    monkeypatch.setattr("llamo_jax.evaluation.text.find_wordnet", lambda: None)
    scores = text_scores(["a b"], ["a b"], WORDS)
    assert scores["meteor"] is None
    assert "apt-get install wordnet-base" in scores["meteor_missing"]
    assert scores["bleu2"] == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.text("ab c.", max_size=30), st.text("ab c.é", max_size=30)), min_size=1, max_size=5))
def test_rouge_is_that_of_rouge_score(pairs):
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    expected = [scorer.score(target, prediction) for prediction, target in pairs]
    got = {name: values.mean() for name, values in rouge_rows(*zip(*pairs, strict=True)).items()}
    for name, value in got.items():
        assert value == pytest.approx(np.mean([scores[name].fmeasure for scores in expected]), abs=1e-12)


TARGETS = {
    "text": ["The molecule is an ester.", "It has a benzene ring (and π-stacking), naïvely."],
    "molecule": [ASPIRIN, "C/C=C/C.[Na+].[Cl-]"],
    "number": ["-3.2 log mol/L", "1.5"],
    "yes_no": ["Yes", "No"],
}
PERFECT = {
    "text": {"bleu2": 1, "bleu4": 1, "rouge1": 1, "rouge2": 1, "rougeL": 1, "exact": 1},
    "molecule": {"bleu": 1, "exact": 1, "levenshtein": 0, "validity": 1, "maccs": 1, "rdk": 1, "morgan": 1},
    "number": {"mae": 0, "rmse": 0, "r2": 1, "answered": 1},
    "yes_no": {"accuracy": 1, "f1": 1, "answered": 1, "yes_rate": 0.5},
}
EMPTY = {
    "text": {"bleu2": 0, "bleu4": 0, "rouge1": 0, "rouge2": 0, "rougeL": 0, "exact": 0},
    "molecule": {"bleu": 0, "exact": 0, "validity": 0, "maccs": None, "levenshtein": np.mean([21, 19])},
    "number": {"mae": None, "answered": 0, "unparsable": 2},
    "yes_no": {"accuracy": 0, "f1": 0, "answered": 0, "unparsable": 2},
}


def rows_of(predictions, targets):
    return [{"prediction": p, "target": t, "smiles": [ASPIRIN]} for p, t in zip(predictions, targets, strict=True)]


@pytest.mark.parametrize("task", KINDS)
def test_perfect_empty_and_strange_answers(task, tmp_path):
    targets = TARGETS[KINDS[task]]
    for predictions, expected in ((targets, PERFECT), (["", ""], EMPTY)):
        got = score(task, rows_of(predictions, targets), WORDS)
        for name, value in expected[KINDS[task]].items():
            assert got[name] == (value if value is None else pytest.approx(value)), name
    rng = random.Random(0)
    long = " ".join(rng.choice(["the", "C1CC1", "ester", "7.25", "yes"]) for _ in range(10_000))
    strange = ["\u202e日本 \U0001f9ea \x00\ufffd C1=CC", long]
    got = score(task, rows_of(strange, targets), WORDS)
    numbers = [value for value in got.values() if isinstance(value, float)]
    assert all(map(math.isfinite, numbers))
    json.dumps(got, allow_nan=False)
    if KINDS[task] == "text":
        assert got["truncated"] == {"max_tokens": MAX_TOKENS, "predictions": 1, "targets": 0}
        same = score(task, rows_of([long], [long]), WORDS)
        assert (same["bleu4"], same["rougeL"]) == (pytest.approx(1), 1)
    for name in ("report.html", "report.md"):
        write_report(tmp_path / name, task, got, rows_of(strange, targets))
        page = (tmp_path / name).read_text()
        assert "Worst answers" in page
        assert "http" not in page.replace("http://www.w3.org/", "").replace("https://www.w3.org/", "")


def test_molecules_are_compared_as_molecules():
    same = molecule_scores(["OCC", "C(C)O"], ["CCO", "CCO"])
    assert (same["exact"], same["morgan"], same["levenshtein"]) == (1, 1, 2)
    other = molecule_scores(["C[C@H](O)F", "CC", "not a molecule"], ["C[C@@H](O)F", "CCO", "CCO"])
    assert other["exact"] == 0
    assert other["validity"] == pytest.approx(2 / 3)
    assert 0 < other["valid_rows"]["maccs"] < 1
    assert molecule_scores(["CC"], ["C1CC"])["invalid_targets"] == 1


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("-3.2 log mol/L", -3.2), ("It is \u22121.5e-3.", -1.5e-3), ("about .5", 0.5), ("logD at pH 7.4 is 2.1", 2.1),
        ("The log10 solubility is 4", 4), ("2-methylpropane", None), ("C10H8", None), ("none", None), ("1e999", None),
        ("12 kcal/mol", 12), ("3. It is so", 3), ("1,204.4", 1204.4), ("12,345,678", 12345678), ("-3,5", -3.5),
        ("0,204", 0.204), ("1204,500", None), ("1.204,4", None), ("1 204", None), ("1.2 x 10^-3", 1.2e-3),
        ("1.2 \u00d7 10\u207b\u00b3 mol/L", 1.2e-3), ("10\u207b\u00b3", 1e-3), ("10^99999", None), ("2*10**3", 2000),
        ("5.0e\u20134", 5e-4), ("- 2.5", -2.5), ("logP: - 2.5", -2.5), ("solubility - 2.5", None), ("1.2-1.5", None),
        ("1.2 to 1.5", None), ("between 1 and 2", None), ("1.2 \u00b1 0.1", 1.2), ("2.5%", 2.5),
        ("-5e" + "9" * 5000, None), ("-10^2", -100), ("-10^-2", -0.01),
    ],
)  # fmt: skip
def test_the_number_of_an_answer(text, number):
    assert number_in(text) == number


def test_regression_counts_answers_without_a_number():
    got = regression_scores(["1.0", "no idea", "4", "2"], ["1.5", "2", "3", "unknown"])
    assert got["mae"] == pytest.approx(0.75)
    assert got["rmse"] == pytest.approx(math.sqrt((0.25 + 1) / 2))
    assert got["answered"] == pytest.approx(2 / 3)
    assert got["unparsable"] == 1
    mean = (1.5 + 2 + 3) / 3
    assert got["all_rows"]["mae"] == pytest.approx((0.5 + abs(mean - 2) + 1) / 3)
    assert got["targets_without_number"] == 1


def test_classification():
    assert [yes_in(text) for text in ("Yes, it has.", "No.", "It is not.", "TRUE", "maybe", "Nothing known")] == [
        True, False, False, True, None, None,
    ]  # fmt: skip
    assert [yes_in(text) for text in ("1", "0.", "1.0", "10", "It has 1.")] == [True, False, True, None, None]
    answers, targets = ["Yes", "no", "Yes", "perhaps"], ["Yes", "No", "No", "Yes"]
    got = classification_scores(answers, targets, [0.9, 0.2, 0.4, 0.3])
    assert (got["accuracy"], got["f1"]) == (0.5, 0.5)
    assert got["roc_auc"] == pytest.approx(3 / 4)  # of four pairs, 0.3 against 0.4 is wrong
    assert got["answered"] == 0.75
    assert classification_scores(answers, targets, [0.9, 0.2, 0.4, None])["roc_auc"] is None
    assert classification_scores(["Yes"], ["Yes"], [0.9])["roc_auc"] is None


CLAIMS = {
    "It carries ester and carboxylic acid groups. It includes a benzene ring.": [],
    "It has 9 carbon and 4 oxygen atoms. It has the formula C9H8O4 and weighs 180.2 g/mol.": [],
    "It has 1 hydrogen-bond donor and 3 acceptors. It is neutral. It has no stereocentres.": [],
    "It has no nitro group, is aromatic and contains one ester.": [],
    "It has a ketone group and 2 benzene rings.": ["ketone", "2 benzene"],
    "It contains chlorine but no oxygen. It is acyclic.": ["chlorine", "no oxygen", "no ring"],
    "The molecule is ATP.": [],
    "The molecule is a member of pyridines. It has the formula C9H8O3.": ["pyridines", "C9H8O3 formula"],
    # what it comes from or is not says nothing about what it has
    "It is obtained by formal condensation of the amino group of aniline. It derives from a thiol.": [],
}


@pytest.mark.parametrize(("text", "false"), CLAIMS.items())
def test_claims_are_checked_against_the_molecule(text, false):
    from llamo_jax.evaluation.claims import _shown

    assert sorted(_shown(claim) for claim in check(text, ASPIRIN).false) == sorted(false)


def test_answers_with_false_claims_are_listed():
    rows = [
        {"smiles": ["CCO"], "prediction": "It has a ketone.", "target": "It has an alcohol."},
        {"smiles": ["CCO"], "prediction": "It has an alcohol.", "target": "It has a ketone."},
        {"smiles": ["CCO", "C"], "prediction": "It has a ketone.", "target": ""},  # of which one?
        {"smiles": ["C(C"], "prediction": "It has a ketone.", "target": ""},
        {"smiles": [], "prediction": "It has a ketone.", "target": ""},
    ]
    (found,) = checked_rows(rows)
    assert (found["smiles"], found["prediction"]) == ("CCO", "It has a ketone.")
    assert [(claim["kind"], claim["claim"]) for claim in found["false_claims"]] == [("group", "ketone")]


def test_descriptions_written_from_facts_claim_nothing_false(embedded):
    records = read_records(embedded / "description", "test")
    texts = [record.conversation.messages[-1].content for record in records]
    smiles = [record.conversation.smiles[0] for record in records]
    scores = hallucination_scores(texts, smiles)
    assert scores["precision"] == 1.0
    assert scores["by_kind"]["group"]["recall"] == 1.0
    assert scores["by_kind"]["ring"]["recall"] == 1.0
    assert scores["claims"] > 3 * len(texts)
    swapped = hallucination_scores(texts, smiles[::-1])
    assert swapped["precision"] < 0.4
    assert swapped["false_claims"] > 1000
    assert claims_in("") == []


def test_group_questions_are_balanced_and_true(embedded):
    smiles = [record.conversation.smiles[0] for record in read_records(embedded / "description", "test")[:60]]
    questions = group_questions(smiles)
    assert [question.answer for question in questions].count("Yes") == len(questions) / 2 > 40
    for question in questions:
        there = question.group in functional_groups(parse_smiles(question.conversation.smiles[0]))
        assert there == (question.answer == "Yes")
        assert question.group in question.conversation.messages[0].content
    assert questions == group_questions(smiles)


def test_metric_tokenizers(shared_data, golden, tmp_path):
    text = "The molecule is Cyclo-hexanol."
    assert WORDS.split([text, ""]) == [["the", "molecule", "is", "cyclo", "-", "hexanol", "."], []]
    scibert = load_metric_tokenizer(str(shared_data / "tokenizers" / "scibert_scivocab_uncased_vocab.txt"))
    assert scibert.split([text])[0][:3] == ["the", "molecule", "is"]
    llama = load_metric_tokenizer(str(shared_data / "tokenizers" / "llama2_tokenizer.model"))
    folder = load_metric_tokenizer(str(golden.parent / "tokenizer_llama2"))
    assert llama.split([text]) == folder.split([text])
    assert llama.split([text])[0][0] == "▁The"
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe")
    for wrong in ("nonsense", "scibert", str(tmp_path / "nowhere"), str(tmp_path / "vocab.txt")):
        with pytest.raises(DataError, match="tokenizer"):
            load_metric_tokenizer(wrong)


def test_broken_lines_are_named_and_counted(tmp_path, capsys):
    path = tmp_path / "answers.jsonl"
    good = {"prediction": "CCO", "target": "CCO"}
    lines = [
        json.dumps(good),
        "{",
        '{"prediction": "x"}',
        '{"prediction": [3], "target": "x"}',
        '["x"]',
        json.dumps(good),
    ]
    path.write_bytes("\n".join(lines).encode() + b'\n{"prediction": "\xff", "target": "x"}\n')
    command.main(["--task", "forward_reaction", "--predictions", str(path)])
    output = capsys.readouterr()
    got = json.loads(output.out)
    assert (got["rows"], got["exact"]) == (2, 1)
    assert sum(got["broken_rows"].values()) == 5
    assert f"{path}, line 2: left out: not JSON" in output.err
    assert 'line 3: left out: no "target"' in output.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "description", "--predictions", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["--task", "description", "--predictions", "empty.jsonl"], "no rows"),
        (["--task", "description", "--predictions", "bad.jsonl"], 'no row with "prediction" and "target"'),
    ],
)
def test_the_command_says_what_is_wrong(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("empty.jsonl").write_text("")
    Path("bad.jsonl").write_text("{}\n")
    with pytest.raises(SystemExit, match=message):
        command.main(arguments)


def evaluation(trained, data, **changes):
    config = evaluate_config.get_config()
    config.checkpoint, config.data = str(trained), str(data)
    config.decoding.max_new_tokens = 12
    config.graph_use = config.group_questions = 6
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return run.read_config(config)


def test_an_evaluation_continues_and_repeats_itself(trained, few, tmp_path, monkeypatch):
    metrics = run.evaluate(evaluation(trained, few / "description"), tmp_path / "whole")
    rows = helpers.json_lines(tmp_path / "whole" / "predictions.jsonl")
    assert [row["index"] for row in rows] == list(range(20))
    assert metrics["rows"] == 20
    assert metrics["graph_use"]["rows"] == 6
    assert set(metrics["graph_use"]["change"]) == {"other", "blank"}
    assert metrics["group_questions"]["questions"] > 4
    assert 0 <= metrics["group_questions"]["roc_auc"] <= 1
    assert json.loads((tmp_path / "whole" / "metrics.json").read_text())["decoding"]["max_new_tokens"] == 12
    assert "<svg" not in (tmp_path / "whole" / "report.html").read_text()  # pictures are embedded as data
    assert "data:image/svg+xml" in (tmp_path / "whole" / "report.html").read_text()

    # interrupted after seven answers, in the middle of writing the eighth
    answered = run._row

    def interrupted(index, example, samples):
        if path.exists() and path.read_text().count("\n") == 7:
            with path.open("a") as file:
                file.write('{"index": 19, "pred')
            raise KeyboardInterrupt
        return answered(index, example, samples)

    path = tmp_path / "cut" / "answers.partial.jsonl"
    monkeypatch.setattr(run, "_row", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.evaluate(evaluation(trained, few / "description"), tmp_path / "cut")
    monkeypatch.setattr(run, "_row", answered)
    assert path.read_text().count("\n") == 7
    run.evaluate(evaluation(trained, few / "description"), tmp_path / "cut")
    continued = helpers.json_lines(tmp_path / "cut" / "predictions.jsonl")
    for ours, theirs in zip(continued, rows, strict=True):
        assert ours.pop("score") == pytest.approx(theirs.pop("score"), abs=1e-3)  # other rows were beside it
        assert ours == theirs
    assert (tmp_path / "cut" / "metrics.json").read_text() == (tmp_path / "whole" / "metrics.json").read_text()
    assert not path.exists()
    # a finished one is scored again, and not answered again: also if that is interrupted, whatever its texts hold
    finished = tmp_path / "cut" / "predictions.jsonl"
    continued[3]["prediction"] = "a\u2028b\x85c"
    storage.write_json_lines(finished, continued)
    path.write_text("")
    monkeypatch.setattr(run, "_row", None)
    run.evaluate(evaluation(trained, few / "description"), tmp_path / "cut")
    again = helpers.json_lines(finished)
    assert [row["index"] for row in again] == list(range(20))
    assert again[3]["prediction"] == "a\u2028b\x85c"
    with pytest.raises(
        ConfigError, match=r"another evaluation; what differs: config.decoding.max_new_tokens=9 \(there 12\)"
    ):
        run.evaluate(evaluation(trained, few / "description", decoding__max_new_tokens=9), tmp_path / "cut")


def test_an_evaluation_of_a_file_with_classes(trained, shared_data, tmp_path):
    table = tmp_path / "bbbp.csv"
    lines = (shared_data / "property" / "bbbp.csv").read_text().splitlines()
    table.write_text("\n".join([*lines[:13], lines[1].replace("C", "C1", 1)]))
    changes = {"graph_use": 0, "group_questions": 0, "limit": 10}
    config = evaluation(trained, table, task="property_classification", **changes)
    metrics = run.evaluate(config, tmp_path / "run")
    rows = helpers.json_lines(tmp_path / "run" / "predictions.jsonl")
    assert len(rows) == metrics["rows"] == 10
    assert all(0 < row["yes_probability"] < 1 for row in rows)
    assert {row["target"] for row in rows} <= {"Yes", "No"}
    assert metrics["targets_without_class"] == 0
    assert "graph_use" not in metrics


NAMED = {  # molecule, its name, and an answer
    "c1ccccc1O": ("phenol", "hydroxybenzene"),  # another name of the same
    "CCO": ("ethanol", "propan-1-ol"),
    "CC(=O)O": ("acetic acid", "acid of\nvinegar, \x00 like \ud800"),
    "C[C@H](N)C(=O)O": ("(2S)-2-aminopropanoic acid", "(2R)-2-aminopropanoic acid"),
}


def named():
    smiles, names = list(NAMED), list(NAMED.values())
    return [{"prediction": ours, "target": theirs, "smiles": [molecule]}
            for molecule, (theirs, ours) in zip(smiles, names, strict=True)]  # fmt: skip


@pytest.mark.skipif(shutil.which("java") is None, reason="OPSIN is a Java program")
def test_iupac_names_are_read_as_structures():
    got = score("iupac_name", named(), WORDS)["structures"]
    assert (got["valid"], got["structure"], got["target_structure"]) == (0.75, 0.25, 1.0)
    assert 0.25 < got["morgan"] < 0.75
    assert got["intervals"]["valid"][0] < 0.75 < got["intervals"]["valid"][1]


@pytest.mark.skipif(shutil.which("java") is None, reason="OPSIN is a Java program")
def test_names_say_more_than_flat_molecules():
    """Prepared records have no stereochemistry: a name's is neither right nor wrong there."""
    rows = [{"prediction": name, "target": "(2S)-2-aminopropanoic acid", "smiles": ["CC(N)C(=O)O"]}
            for name in ("(2R)-2-aminopropanoic acid", "2-aminopropanoic acid", "3-aminopropanoic acid")]  # fmt: skip
    got = score("iupac_name", rows, WORDS)["structures"]
    assert got["target_structure"] == 1.0
    assert got["structure"] == pytest.approx(2 / 3)


@pytest.mark.skipif(shutil.which("java") is None, reason="OPSIN is a Java program")
def test_a_text_that_goes_on_and_on_is_no_name(monkeypatch):
    monkeypatch.setattr(iupac, "LONGEST_NAME", 7)
    assert iupac.name_to_smiles(["ethanol", "propanol"]) == ["C(C)O", ""]


def test_without_java_names_stay_words(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    got = score("iupac_name", named(), WORDS)
    assert got["structures"] is None
    assert "pip install 'llamo_jax[opsin]'" in got["structures_missing"]
    assert got["exact"] == 0


def test_what_the_prompt_style_refuses_is_left_out_and_counted(trained, few, tmp_path):
    """One conversation that no prompt can show neither ends an evaluation nor the validations of a training run."""
    good = read_records(few / "description", "validation")[:2]
    answers = (Message("assistant", "Hello."), Message("assistant", "Good bye."))  # no question, no place for graphs
    refused = good[0]._replace(conversation=good[0].conversation._replace(messages=answers))
    pairs = [("train", good[0])] + [(split, r) for split in ("validation", "test") for r in (good[0], refused, good[1])]
    settings = Settings(task="description", tokenizer=str(few / "description" / "tokenizer"))
    prepare_records([*pairs, ("only", refused)], tmp_path / "data", MOLECULES, settings)
    nothing = {"graph_use": 0, "group_questions": 0}
    metrics = run.evaluate(evaluation(trained, tmp_path / "data", **nothing), tmp_path / "run")
    assert metrics["rows"] == 2
    assert metrics["rejected"] == {"refused by the prompt style": 1}
    config = small_run(few)
    data = dataclasses.replace(config.data, source=str(tmp_path / "data"))
    train = dataclasses.replace(config.train, samples=3)
    config = dataclasses.replace(config, data=data, train=train)
    _, read, _ = runs.read_data(config, sharding.make_mesh(config.mesh))
    assert [r.conversation.messages for r in read.samples] == [r.conversation.messages for r in good]
    with pytest.raises(DataError, match=r"nothing to evaluate; \{'refused by the prompt style': 1\}"):
        run.evaluate(evaluation(trained, tmp_path / "data", split="only", **nothing), tmp_path / "nothing")


def test_a_file_is_read_as_prepare_reads_it(trained, tmp_path):
    """Columns and the table's form are given in the same words; without them the file is refused."""
    table = tmp_path / "mine.txt"
    table.write_text(
        'structure;"what it is"\nCCO;"An alcohol; it has two carbons."\nCCN;"An amine."\n', encoding="utf-16"
    )
    given = {"smiles_column": "structure", "text_column": "what it is", "delimiter": ";", "encoding": "utf-16"}
    nothing = {"graph_use": 0, "group_questions": 0}
    metrics = run.evaluate(evaluation(trained, table, **nothing, **given), tmp_path / "run")
    rows = helpers.json_lines(tmp_path / "run" / "predictions.jsonl")
    assert [(row["smiles"], row["target"]) for row in rows] == [
        (["CCO"], "An alcohol; it has two carbons."), (["CCN"], "An amine.")
    ]  # fmt: skip
    assert metrics["rejected"] == {}
    with pytest.raises(DataError, match="--smiles_column"):
        run.evaluate(evaluation(trained, table, **nothing), tmp_path / "refused")


def next_log_probabilities(generator, record, *, questions_only=False):
    """float[V]: of what follows a prompt, from the whole model's logits in one pass."""
    (prompt,) = generator.encoder.encode([record])
    prompt = without_answers(prompt) if questions_only else prompt
    batch = jax.tree.map(jnp.asarray, collate_prompts([prompt]))
    logits = helpers.logits(generator._definition, generator._arrays, batch)
    return np.asarray(jax.nn.log_softmax(logits[0, len(prompt.tokens) - 1]), np.float64)


def first_token(generator, record, word):
    """The id that an answer of this word begins with."""
    messages = (*record.conversation.messages, Message("assistant", word))
    whole = record._replace(conversation=record.conversation._replace(messages=messages))
    prompt, encoded = generator.encoder.encode([record, whole])
    return int(encoded.tokens[encoded.is_target][prompt.is_target.sum()])


def test_the_probability_of_yes_is_the_models(trained, tmp_path):
    """P(yes) / (P(yes) + P(no)) of an evaluation's rows, against the next token's distribution."""
    table = tmp_path / "classes.csv"
    table.write_text("smiles,p_np\nCCO,1\nc1ccccc1O,0\nCC(=O)Nc1ccc(O)cc1,1\n")
    config = evaluation(trained, table, task="property_classification", graph_use=0, group_questions=0)
    run.evaluate(config, tmp_path / "run")
    generator, _ = load_generator(trained)
    found = []
    for example in read_examples(table, "property_classification", "").examples:
        probabilities = np.exp(next_log_probabilities(generator, example.prompt))
        yes, no = (probabilities[first_token(generator, example.prompt, word)] for word in ("Yes", "No"))
        found.append(yes / (yes + no))
    rows = helpers.json_lines(tmp_path / "run" / "predictions.jsonl")
    assert [row["target"] for row in rows] == ["Yes", "No", "Yes"]
    np.testing.assert_allclose([row["yes_probability"] for row in rows], found, rtol=1e-4)
    assert min(abs(value - 0.5) for value in found) > 1e-3  # yes and no swapped would show


@pytest.mark.parametrize("context", ["full", "questions_only"])
def test_the_probability_of_yes_sees_what_the_answers_see(trained, tmp_path, context):
    """After an earlier turn, whose answer stays in the prompt or does not."""
    turns = ["Is it a solid?", "No, it boils at 78 °C.", "Does it have a hydroxy group?", "Yes"]
    roles = ("user", "assistant") * 2
    messages = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=True)]
    path = tmp_path / "turns.jsonl"
    path.write_text(json.dumps({"smiles": "CCO", "messages": messages}) + "\n")
    generator, _ = load_generator(trained)
    (example,) = read_examples(path, "instruction", "").examples
    only = context == "questions_only"
    probabilities = np.exp(next_log_probabilities(generator, example.prompt, questions_only=only))
    yes, no = (probabilities[first_token(generator, example.prompt, word)] for word in ("Yes", "No"))
    (found,) = run.yes_probabilities(generator, [example], questions_only=only)
    np.testing.assert_allclose(found, yes / (yes + no), rtol=1e-4)
    (other,) = run.yes_probabilities(generator, [example], questions_only=not only)
    assert abs(other - found) > 1e-4


def test_graph_use_compares_with_the_graphs_it_says(trained, few, tmp_path):
    """Log-likelihoods with the own, another's and no graph, each computed alone from whole logits."""
    metrics = run.evaluate(evaluation(trained, few / "description", limit=5, graph_use=5, group_questions=0), tmp_path)
    generator, _ = load_generator(trained)
    records = read_records(few / "description", "validation")[:5]

    def by_row(graphs):
        values = []
        for record, shown in zip(records, graphs, strict=True):
            (encoded,) = generator.encoder.encode([Record(record.conversation, shown)])
            batch = jax.tree.map(jnp.asarray, collate_prompts([encoded], room=GraphRoom(1, 128)))  # few programs
            every = jax.nn.log_softmax(helpers.logits(generator._definition, generator._arrays, batch)[0])
            chosen = every[np.arange(len(encoded.tokens) - 1), encoded.tokens[1:]]
            values.append(np.asarray(chosen)[encoded.is_target[1:]])
        return values

    own = [record.graphs for record in records]
    blank = [(GraphArrays(*(array[:0] for array in graphs[0])),) for graphs in own]
    rows = {"true": by_row(own), "other": by_row([*own[2:], *own[:2]]), "blank": by_row(blank)}
    expected = {name: float(np.concatenate(values).mean()) for name, values in rows.items()}
    sums = {name: np.array([values.sum() for values in each]) for name, each in rows.items()}
    found = metrics["graph_use"]
    for name, value in expected.items():
        assert found["per_token"][name] == pytest.approx(value, abs=2e-5), name
    for name in ("other", "blank"):
        assert found["change"][name] == pytest.approx(expected["true"] - expected[name], abs=4e-5)
        assert abs(found["change"][name]) > 1e-3  # a graph compared with itself would give 0
        assert found["prefers_true"][name] == np.mean(sums["true"] > sums[name])


def test_a_graph_that_changes_nothing_is_not_preferred(few, monkeypatch):
    """Answers as probable with any graph: half of the rows, or all, would tell of a use that is not there."""

    def constant(records):
        return [np.full(len(record.conversation.messages[-1].content), -1.5) for record in records]

    examples = read_examples(few / "description", "description", "validation").examples[:6]
    monkeypatch.setattr(graph_use, "_tokens", lambda *_: [])
    found = graph_use.likelihood_graph_use(types.SimpleNamespace(target_log_probabilities=constant), examples)
    assert found["change"] == {"other": 0.0, "blank": 0.0}
    assert found["prefers_true"] == {"other": 0.0, "blank": 0.0}


def test_regression_errors_have_their_textbook_values():
    """R² divides by the spread around the mean of the targets: 1 - 1.5 / 17.1875."""
    scores = regression_scores(["1.5", "2", "4", "7"], ["1", "2", "3", "6.5"])
    errors = np.array([0.5, 0.0, 1.0, 0.5])
    truth = np.array([1, 2, 3, 6.5])
    assert scores["mae"] == pytest.approx(errors.mean())
    assert scores["rmse"] == pytest.approx(math.sqrt((errors**2).mean()))
    assert scores["r2"] == pytest.approx(1 - (errors**2).sum() / ((truth - truth.mean()) ** 2).sum())
    assert scores["r2"] == pytest.approx(1 - 1.5 / 17.1875)
    assert regression_scores(["0", "0", "0", "0"], ["1", "2", "3", "6.5"])["r2"] < 0  # worse than the mean


@pytest.mark.parametrize(
    "words",
    ["It has no {}.", "It does not contain a {}.", "A molecule without a {}.", "It lacks a {}.", "It lack {} groups.",
     "Lacking a {}, it is stable.", "It has neither a {} nor a halogen.", "It has neither halogens nor a {}.",
     "It is free of {} groups.", "It is devoid of any {}."],
)  # fmt: skip
def test_what_is_denied_is_read_as_denied(words):
    """Ethanol has no ketone: a denial is true of it, and of acetone false."""
    text = words.format("ketone")
    assert [claim.number for claim in claims_in(text) if claim.name == "ketone"] == [0]
    assert "ketone" not in {claim.name for claim in check(text, "CCO").false}
    assert "ketone" in {claim.name for claim in check(text, "CC(C)=O").false}


def test_examples_are_conversations_up_to_their_last_answer(few, tmp_path):
    found = read_examples(few / "instruction", "instruction", "")
    records = read_records(few / "instruction", "validation")
    for example, record in zip(found.examples, records, strict=True):
        assert (*example.prompt.conversation.messages, ("assistant", example.target)) == record.conversation.messages
    table = tmp_path / "rows.csv"
    table.write_text("smiles,description\nCCO,An alcohol.\nC1CC,Broken.\n,Nothing.\n")
    from_file = read_examples(table, "description", "")
    assert [example.target for example in from_file.examples] == ["An alcohol."]
    assert sum(from_file.rejected.values()) == 2
    table.write_text("smiles,description\nC1CC,Broken.\n")
    with pytest.raises(DataError, match="nothing to evaluate"):
        read_examples(table, "description", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "config.checkpoint: give a run's workdir"),
        (("--config.checkpoint=/nowhere",), "/nowhere is neither a training run nor a model folder"),
        (("--config.checkpoint=/nowhere", "--config.task=poetry"), "unknown task 'poetry'"),
        (("--config.checkpoint=/nowhere", "--config.data=/nowhere.csv"), "/nowhere.csv: no such file"),
        (
            ("--config.checkpoint=/nowhere", "--config.decoding.top_p=0.0"),
            "config.decoding.top_p: input should be",
        ),
    ],
)
def test_launch_says_what_is_wrong(options, message, few, tmp_path):
    root = Path(__file__).resolve().parents[2]
    data = () if any("data" in option for option in options) else (f"--config.data={few / 'description'}",)
    command_line = [sys.executable, root / "launch.py", "--config", root / "configs/evaluate.py", *options, *data]
    result = subprocess.run(command_line, cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False)
    assert result.returncode == 1
    assert message in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_rouge_l_of_nothing_is_zero():
    assert rouge_l("", "a") == rouge_l("a", "") == rouge_l("", "") == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lacks an aldehyde but has an ester.", {"aldehyde": 0, "ester": None}),
        ("No ether, alcohol or nitrile; an amide.", {"ether": 0, "alcohol": 0, "nitrile": 0, "amide": None}),
        ("It lacks an aldehyde, a ketone and an ether.", {"aldehyde": 0, "ketone": 0, "ether": 0}),
        ("It is not only a ketone.", {"ketone": None}),
        ("It does not have an imide, but a thiol.", {"imide": 0, "thiol": None}),
        ("It is not aromatic and has a thiol.", {"thiol": None, "aromatic ring": 0}),
        ("It has no ring, an azide and an oxime.", {"azide": None, "oxime": None, "rings": 0}),
        ("without any urea, whereas a carbamate is there", {"urea": 0, "carbamate": None}),
    ],
)
def test_negations_reach_as_far_as_they_are_meant(text, expected):
    assert {claim.name: claim.number for claim in claims_in(text)} == expected


def test_nothing_that_could_be_named_is_no_division_by_zero():
    scores = hallucination_scores(["It is methane."], ["CCCCCC"])
    assert (scores["recall"], scores["precision"], scores["by_kind"]["group"]["recall"]) == (None, None, None)


def test_claims_of_a_long_repetitive_text_are_read_in_linear_time():
    """200,000 characters; with time that grows by the square it would take hours."""
    for piece, name in (("no ester ", "ester"), ("not an ester but ", "ester"), ("1", None), ("is C1", None),
                        ("in which the ", None), ("acyl group has ", None), ("of the ester ", None)):  # fmt: skip
        claims = claims_in(piece * (200_000 // len(piece)))
        assert {claim.name for claim in claims} == ({name} if name else set())


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("CCO", "CCO"),
        ("```smiles\nCCO\n```", "CCO"),
        ("Here it is:\n```\nCCO\n```\nAn alcohol.", "CCO"),
        ("`CCO`.", "CCO"),
        ("SMILES: CCO.", "CCO"),
        ("The predicted product is: CCO", "CCO"),
        ('"CC(=O)O"', "CC(=O)O"),
        ("I cannot determine the reactants.", "I cannot determine the reactants."),
        ("C is the only carbon source", "C is the only carbon source"),
        ("CCO ethanol", "CCO ethanol"),
    ],
)
def test_an_answer_is_one_smiles_as_a_whole(answer, expected):
    assert smiles_in(answer) == expected
    pair = compare(answer, "CCO" if expected == "CCO" else "CC(=O)O")
    assert pair.exact == pair.valid == (" " not in expected)
    assert not compare(answer, "I").exact
    scores = molecule_scores([answer], ["CCO"])
    assert scores["validity"] == float(" " not in expected)


def test_predictions_that_json_writes_as_numbers(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"prediction": -1.5, "target": 2}\n{"prediction": true, "target": "Yes"}\n{"prediction": [1], "target": "x"}\n'
        '{"prediction": NaN, "target": "x"}\n'
    )
    found = read_predictions(path)
    assert [(row["prediction"], row["target"]) for row in found.rows] == [("-1.5", "2"), ("yes", "Yes")]
    assert found.broken == {'"prediction" is neither text nor a number': 2}


def test_probabilities_are_read_from_tables_too(tmp_path):
    rows = [("Yes", "Yes", 0.75), ("No", "Yes", 1e-3), ("Yes", "No", None)]
    lines = [json.dumps({"prediction": p, "target": t, "yes_probability": y}) for p, t, y in rows]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    cells = [f"{p},{t},{'' if y is None else y}" for p, t, y in rows]
    (tmp_path / "a.csv").write_text("\n".join(["prediction,target,yes_probability", *cells]))
    found = [
        [row["yes_probability"] for row in read_predictions(tmp_path / f"a.{kind}").rows] for kind in ("jsonl", "csv")
    ]
    assert found == [[0.75, 1e-3, None]] * 2
    more = '{"prediction": "Yes", "target": "Yes", "yes_probability": NaN}\n'
    wrong = [more.replace("NaN", each) for each in ("true", '"high"', "[1]")]
    (tmp_path / "b.jsonl").write_text("".join([more, *wrong, more.replace("}", ', "question": 3}')]))
    odd = read_predictions(tmp_path / "b.jsonl")
    assert [row["yes_probability"] for row in odd.rows] == [None]
    assert odd.broken == {'"yes_probability" is not a number': 3, '"question" is no text': 1}


def test_reports_and_scores_survive_hostile_molecules(tmp_path):
    """A drawing that would take hours, nesting that crashes RDKit, and text that would be a link or fetch an image."""
    hostile = ["C" * 5000, "C" + "(C" * 20_000 + ")" * 20_000, "C" * 50_000, "[x](javascript:alert(1))"]
    rows = [{"prediction": text, "target": "CCO", "smiles": [text]} for text in hostile]
    metrics = score("forward_reaction", rows, load_metric_tokenizer("words"))
    assert metrics["validity"] == 0.25
    texts = [
        "![pixel](http://tracker.example/x.png)",
        "[x](javascript:alert(1))",
        "<img src=x>",
        "a | b\n*c* https://x.y",
    ]
    rows += [{"prediction": text, "target": text, "smiles": ["CCO"]} for text in texts]
    write_report(tmp_path / "a.md", "forward_reaction", metrics, rows)
    write_report(tmp_path / "a.html", "forward_reaction", metrics, rows)
    page = (tmp_path / "a.md").read_text()
    assert "more than 300 atoms, not drawn" in page
    assert r"\!\[pixel\]\(http\://tracker.example/x.png\)" in page
    assert r"\[x\]\(javascript\:alert\(1\)\)" in page
    assert "&lt;img src=x&gt;" in page
    assert r"a \| b<br>\*c\* https\://x.y" in page
    assert "<img src=x>" not in (tmp_path / "a.html").read_text()
    claims = hallucination_scores(["It has an ester."] * 4, hostile)
    assert claims["invalid_molecules"] == 3


def test_looking_for_wordnet_asks_no_network(monkeypatch):
    """Where it is not installed, that is said; nothing is downloaded unasked."""
    import socket

    def refused(*arguments, **options):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket, "create_connection", refused)
    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(wordnet, "_loads", lambda reader: False)
    monkeypatch.setattr(wordnet, "DEBIAN_FOLDER", Path("/nowhere"))
    wordnet.find_wordnet.cache_clear()
    assert wordnet.find_wordnet() is None
    wordnet.find_wordnet.cache_clear()


def test_the_test_split_is_what_is_evaluated(few, tmp_path):
    records = read_records(few / "description", "validation")[:4]
    splits = ["validation", "validation", "test", "test"]
    settings = Settings(task="description", tokenizer=str(few / "description" / "tokenizer"))
    prepare_records(zip(splits, records, strict=True), tmp_path / "data", MOLECULES, settings)
    for split, expected in (("", records[2:]), ("test", records[2:]), ("validation", records[:2])):
        found = read_examples(tmp_path / "data", "description", split).examples
        assert [example.target for example in found] == [r.conversation.messages[-1].content for r in expected]


def test_another_evaluation_does_not_go_on_with_these_answers(tmp_path):
    values = evaluate_config.get_config().to_dict() | {"checkpoint": "run"}
    config = to_dict(from_dict(EvaluationConfig, values))
    kept = {name: value for name, value in config.items() if name not in run.MAY_CHANGE}
    about = {"model": "a", "data": "b", "prompt": "c", "config": kept}
    run._claim(tmp_path, about)
    run._claim(tmp_path, about)
    for name in ("model", "data", "prompt"):
        with pytest.raises(ConfigError, match=f"what differs: the {name}"):
            run._claim(tmp_path, about | {name: "another"})


class Stub:
    """A generator that answers in the order of finishing, which is not that of the questions."""

    def __init__(self, answer):
        self.answer, self.asked = answer, []
        self.encoder = types.SimpleNamespace(show_graph=False)

    def generate(self, prompts, **settings):
        self.asked.append((prompts, settings))
        for index in reversed(range(len(prompts))):
            yield index, [types.SimpleNamespace(text=self.answer(prompts[index]), score=-1.0)]

    def answer_records(self, prompts):
        self.asked.append((prompts, {}))
        return [""] * len(prompts)


def test_answers_to_questions_about_groups_are_theirs(few, monkeypatch):
    examples = read_examples(few / "description", "description", "validation").examples
    monkeypatch.setattr(run, "yes_probabilities", lambda generator, asked: [0.5] * len(asked))

    def right(record):
        (group,) = mentioned_groups(record.conversation.messages[0].content)
        return "Yes" if group in functional_groups(parse_smiles(record.conversation.smiles[0])) else "No"

    config = types.SimpleNamespace(graph_use=0, group_questions=6)
    found = run._beyond(config, Stub(right), examples)["group_questions"]
    assert found["questions"] >= 10
    assert found["accuracy"] == 1


@pytest.mark.parametrize("context", ["full", "questions_only"])
def test_answers_are_asked_for_in_their_context(few, tmp_path, context):
    examples = read_examples(few / "description", "description", "validation").examples[:3]
    config = types.SimpleNamespace(context=context, task="description")
    stub = Stub(lambda record: record.conversation.smiles[0])
    rows = run._answers(config, storage.as_path(tmp_path), stub, examples)
    assert stub.asked[0][1]["questions_only"] == (context == "questions_only")
    assert [row["prediction"] for row in rows] == [row["smiles"][0] for row in rows]


def test_descriptions_are_asked_for_with_the_graphs_that_are_given(few):
    records = read_records(few / "description", "validation")[:3]
    others = [*records[1:], records[0]]
    stub = Stub(str)
    describe_records(stub, records, graphs_of=others)
    ((prompts, _),) = stub.asked
    assert [prompt.conversation.smiles for prompt in prompts] == [record.conversation.smiles for record in records]
    for prompt, other in zip(prompts, others, strict=True):
        assert prompt.graphs is other.graphs


def test_absent_groups_are_asked_about_as_often_as_molecules_have_them(embedded):
    """Else a rare name alone would mean no."""
    smiles = [record.conversation.smiles[0] for record in read_records(embedded / "description", "test")]
    frequency = Counter(group for text in smiles for group in functional_groups(parse_smiles(text)))
    asked = [question.group for question in group_questions(smiles) if question.answer == "No"]
    mean = sum(frequency[group] for group in asked) / len(asked)
    of_all = sum(count**2 for count in frequency.values()) / frequency.total()
    of_names = frequency.total() / len(frequency)
    assert abs(mean - of_all) < 0.5 * abs(of_all - of_names)
