"""A trained model as a teacher: rules ask, it answers, and the checks decide what is kept."""

import json
from collections import defaultdict

import pytest

from data_pipeline.instruct.__main__ import main
from llamo_jax.apps.assistant import Assistant
from llamo_jax.config import DecodingConfig


def test_what_is_no_model_is_one_line(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("smiles,description\nCCO,An alcohol.\n")
    options = ["--input", str(path), "--output", str(tmp_path / "out"), "--teacher", "assistant", "--model", "nowhere"]
    for more, message in (([], "nowhere"), (["--top_p", "0"], "top_p"), (["--seed", "-1"], "seed")):
        with pytest.raises(SystemExit, match=message):
            main([*options, *more])


def test_the_answers_are_the_models(trained, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("smiles,description\nCCO,An alcohol.\nCCN,An amine.\nCC(=O)C,A ketone.\n")
    output = tmp_path / "out"
    options = (
        f"--teacher assistant --model {trained} --rounds 0 --conversations 3 --temperature 0 --max_answer_tokens 8"
    )
    main(["--input", str(path), "--output", str(output), "--kinds", "structure=1", *options.split()])
    files = [output / f"{name}.jsonl" for name in ("conversations", "rejected")]
    rows = [json.loads(line) for path in files for line in path.read_text().splitlines()]
    assert {row.get("kind") for row in rows} == {"structure"}
    whole = defaultdict(list)  # what is kept of a conversation, and what was cut off
    for row in rows:
        whole[row["id"]] += row["messages"]
    key, messages = next((key, messages) for key, messages in whole.items() if len(messages) >= 4)
    smiles = next(row["smiles"] for row in rows if row["id"] == key)
    assistant = Assistant.load(trained, decoding=DecodingConfig(max_new_tokens=8))
    first, answer, second, then = (message["content"] for message in messages[:4])
    assert answer == assistant.ask(first, smiles=smiles)
    assert then == assistant.ask(second, smiles=smiles, history=[(first, answer)])
    quality = json.loads((output / "quality.json").read_text())
    assert quality["teacher"] | {"seed": 0} == {
        "teacher": "assistant", "model": str(trained), "temperature": 0.0, "top_p": 1.0, "max_tokens": 8, "seed": 0,
    }  # fmt: skip
