"""The paper's tasks: what is trained on, what is asked, and the tables of scores."""

import json
import shutil

import pytest

from benchmarks import paper_tasks
from data_pipeline.functional_groups import functional_groups
from data_pipeline.molecule import parse_smiles
from data_pipeline.records import read_records
from llamo_jax.evaluation.baselines import BASELINES, baseline_scores, forest
from llamo_jax.evaluation.molecules import compare

pytestmark = pytest.mark.slowest
ROWS = 30


@pytest.fixture(scope="module")
def tasks(shared_data, embedded, tmp_path_factory):
    """The first rows of every table, and all of two; the last name to train on is of a molecule of the test."""
    root = tmp_path_factory.mktemp("paper_tasks")
    for table in shared_data.glob("*/*"):
        if table.parent.name in ("chebi20", "pubchem324k", "property"):
            lines = table.read_text().splitlines()[: None if table.stem in ("esol", "bace") else ROWS + 1]
            copy = root / "data" / table.parent.name / table.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text("\n".join(lines) + "\n")
    pubchem = root / "data" / "pubchem324k"
    known = (pubchem / "description_test_half.tsv").read_text().splitlines()[1]
    with (pubchem / "iupac_train.tsv").open("a") as file:
        file.write(known + "\n")
    arguments = ["--data", str(root / "data"), "--tokenizer", str(embedded / "tokenizer"), "--num_workers", "1"]
    paper_tasks.main(["prepare", *arguments, "--output", str(root / "tasks")])
    return root / "tasks", known.split("\t")[1]


def shows(folder, split, smiles):
    """Whether a record is about the molecule."""
    records = read_records(folder, split)
    assert len(records) >= ROWS
    return any(compare(record.conversation.smiles[0], smiles).exact for record in records)


def test_no_molecule_of_a_test_is_trained_on(tasks):
    folder, known = tasks
    assert shows(folder / "descriptions", "test", known)
    for name in ("names", "descriptions", "groups"):
        assert not shows(folder / name, "train", known)
        assert not shows(folder / name, "validation", known)
    mixture = (folder / "mixture.txt").read_text().strip()
    assert mixture.split(",")[:2] == [f"{folder}/descriptions=3", f"{folder}/names=3"]
    assert all((folder / part.split("=")[0].rsplit("/")[-1]).is_dir() for part in mixture.split(","))


def test_questions_about_groups_are_true_and_balanced(tasks):
    folder, _ = tasks
    answers = []
    for record in read_records(folder / "groups", "train"):
        (smiles,), messages = record.conversation.smiles, record.conversation.messages
        groups = functional_groups(parse_smiles(smiles))
        asked = {message.content for message in messages[::2]}
        assert len(asked) == len(messages) // 2
        for question, answer in zip(messages[::2], messages[1::2], strict=True):
            name = question.content.removeprefix("Does it contain ").removeprefix("Is there ")
            name = name.removeprefix("an ").removeprefix("a ").removesuffix(" group?")
            assert (name in groups) == (answer.content == "Yes."), (smiles, question)
            answers.append(answer.content)
    assert 0.3 < answers.count("Yes.") / len(answers) < 0.6  # who has no group left is not asked for one


def test_a_forest_predicts_solubility_on_scaffolds_it_has_not_seen(tasks):
    train, test = (read_records(tasks[0] / "esol", split) for split in ("train", "test"))
    scores = baseline_scores(train, test, forest, classes=False)
    assert scores["all_rows"]["rows"] == len(read_records(tasks[0] / "esol", "test")) > 50
    assert scores["r2"] > 0.25
    assert 0.5 < scores["mae"] < scores["rmse"]
    train, test = (read_records(tasks[0] / "bace", split) for split in ("train", "test"))
    bace = baseline_scores(train, test, forest, classes=True)
    assert bace["answered"] == 1
    assert 0.6 < bace["roc_auc"] < 1


def test_models_stand_beside_a_forest(tasks, trained, tmp_path, capsys):
    folder, _ = tasks
    command = ["score", "--tasks", str(folder), "--output", str(tmp_path), "--limit", "3"]
    command += ["--model", f"tiny={trained}", "--only", "names", "esol"]
    paper_tasks.main(command)
    printed = capsys.readouterr().out
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert sorted(scores) == ["esol", "names"]
    assert list(scores["esol"]) == ["tiny", *BASELINES]
    best, tiny = scores["esol"]["Morgan random forest"], scores["esol"]["tiny"]
    assert tiny["rows"] == 3
    assert best["answered"] == 1
    names = scores["names"]["tiny"]
    low, high = names["intervals"]["group_questions.accuracy"]
    assert f"| {names['group_questions']['accuracy']:.3f} ({low:.3f} to {high:.3f}) |" in printed
    low, high = best["intervals"]["mae"]
    assert f"| Morgan random forest | {best['mae']:.3f} ({low:.3f} to {high:.3f}) |" in printed
    assert (names["structures"] is None) == (shutil.which("java") is None)
    if names["structures"]:
        low, high = names["structures"]["intervals"]["valid"]
        assert f"| {names['structures']['valid']:.3f} ({low:.3f} to {high:.3f}) |" in printed
    answered = json.loads((tmp_path / "tiny" / "esol" / "metrics.json").read_text())
    assert answered["rows"] == 3
    assert answered["mae"] == tiny["mae"]
