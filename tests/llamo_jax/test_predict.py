"""A question about every molecule of a file: the assistant's answers, in order, whatever interrupts."""

import csv
import json

import pytest

from llamo_jax import loading
from llamo_jax.apps import predict
from llamo_jax.apps.assistant import Assistant
from llamo_jax.config import DecodingConfig
from llamo_jax.generation.generator import Generator

SMILES = ["CCO", "nonsense", "c1ccccc1", "CC(=O)O", "CCN"]
QUESTION = "What is it?"


@pytest.fixture
def options(trained, tmp_path):
    source = tmp_path / "molecules.csv"
    source.write_text("smiles,other\n" + "\n".join(f"{smiles},CC" for smiles in SMILES) + "\n")
    return ["--checkpoint", str(trained), "--input", str(source), "--question", QUESTION, "--max_new_tokens", "6"]


def test_the_answers_are_the_assistants(options, trained, tmp_path, capsys):
    output = tmp_path / "answers.csv"
    predict.main([*options, "--output", str(output)])
    assert "answers.csv: 4 answers\n  left out        1  " in capsys.readouterr().out
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["row"], row["smiles"]) for row in rows] == [
        ("1", "CCO"),
        ("3", SMILES[2]),
        ("4", SMILES[3]),
        ("5", "CCN"),
    ]
    assistant = Assistant.load(trained, decoding=DecodingConfig(max_new_tokens=6))
    asked = [{"question": QUESTION, "smiles": row["smiles"]} for row in rows]
    assert [row["answer"] for row in rows] == assistant.answer_batch(asked)
    assert all(float(row["score"]) < 0 for row in rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.csv", "molecules.csv"]


def test_it_goes_on_where_it_was_interrupted(options, tmp_path, monkeypatch):
    drawn = [*options, "--temperature", "1.5"]
    predict.main([*drawn, "--output", str(tmp_path / "calm.jsonl")])
    generate = Generator.generate

    def interrupted(*arguments, **named):
        for number, found in enumerate(generate(*arguments, **named)):
            if number == 2:
                raise KeyboardInterrupt
            yield found

    output = ["--output", str(tmp_path / "out.jsonl")]
    monkeypatch.setattr(Generator, "generate", interrupted)
    with pytest.raises(SystemExit) as stopped:
        predict.main([*drawn, *output])
    assert stopped.value.code == 130
    with pytest.raises(SystemExit, match="holds answers of another run \\(other decoding\\)"):
        predict.main([*options, *output])
    with monkeypatch.context() as context:
        load = loading.load_generator
        context.setattr(loading, "load_generator", lambda *given, **named: (load(*given, **named)[0], "f" * 64))
        with pytest.raises(SystemExit, match="other model"):
            predict.main([*drawn, *output])
    with pytest.raises(SystemExit, match="other smiles_column"):
        predict.main([*drawn, *output, "--smiles_column", "other"])
    asked = []

    def counted(self, records, **named):
        asked.append(len(records))
        return generate(self, records, **named)

    monkeypatch.setattr(Generator, "generate", counted)
    predict.main([*drawn, *output])
    assert asked == [2]
    assert (tmp_path / "out.jsonl").read_text() == (tmp_path / "calm.jsonl").read_text()
    assert [json.loads(line)["row"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == [1, 3, 4, 5]


def test_a_row_without_the_column_is_left_out(options, tmp_path, capsys):
    source, output = tmp_path / "rows.jsonl", tmp_path / "answers.jsonl"
    source.write_text('{"smiles": "CCO"}\n{"name": "x"}\n{"smiles": null}\n')
    options = [str(source) if each.endswith("molecules.csv") else each for each in options]
    predict.main([*options, "--output", str(output)])
    printed = capsys.readouterr().out
    assert "1 answers" in printed
    assert "left out        1  no smiles" in printed
    assert "left out        1  empty smiles" in printed
    with pytest.raises(SystemExit, match=r"no column 'SMILES'; found \['smiles', 'name'\]"):
        predict.main([*options, "--output", str(tmp_path / "more.jsonl"), "--smiles_column", "SMILES"])
