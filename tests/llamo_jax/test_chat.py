"""The chat in the terminal: what it says of itself, its commands, and what Ctrl-C ends."""

import builtins
import json

import pytest

from data_pipeline import prepare
from data_pipeline.records import read_manifest
from llamo_jax.apps import chat
from llamo_jax.apps.assistant import Assistant
from llamo_jax.config import ConfigError, DecodingConfig
from llamo_jax.loading import describe_model


@pytest.fixture(scope="module")
def assistant(trained):
    return Assistant.load(trained, decoding=DecodingConfig(max_new_tokens=8))


@pytest.fixture
def talk(assistant):
    said: list[str] = []

    def say(*texts, end="\n", flush=True):
        said.append("".join(texts) + end)

    return chat.Chat(assistant, ["CCO"], say), said


def test_what_the_model_is_and_was_taught(trained, assistant, tmp_path):
    assert assistant.about == "stage1 of tiny, 2 layers of width 128, trained on instruction"
    content = json.loads((trained / "config.json").read_text())
    content["data"] |= {"source": "embedded", "task": "description"}
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert "trained on description; it only describes: other questions" in describe_model(tmp_path)[0]
    assert assistant.trained_tokens == 256
    assert assistant.too_long("What is it?", smiles="CCO") is None
    assert assistant.too_long("What is it? " * 200, smiles="CCO").endswith("the model was trained on at most 256")


def test_turns_are_kept_until_the_molecules_change(talk, assistant, tmp_path):
    conversation, said = talk
    conversation.answer("What is it?")
    first = "".join(said).removesuffix("\n")
    assert first.strip() == assistant.ask("What is it?", smiles="CCO").strip()
    said.clear()
    conversation.answer("And then?")
    expected = assistant.ask("And then?", smiles="CCO", history=[("What is it?", first)])
    assert "".join(said).strip() == expected.strip()
    conversation.command(f"/save {tmp_path / 'turns.jsonl'}")
    assert said[-1] == f"2 turns in {tmp_path / 'turns.jsonl'}\n"
    conversation.command(f"/save {tmp_path / 'turns.jsonl'}")
    assert "exists already" in said[-1]
    conversation.command(f"/save {tmp_path / 'no' / 'turns.jsonl'}")
    assert "cannot write" in said[-1]

    conversation.command("/add C1CC")
    assert said[-1] == "invalid SMILES 'C1CC': unclosed ring\n"
    conversation.command("/add O")
    assert said[-1] == "molecule 1: CCO\nmolecule 2: O\n"
    said.clear()
    conversation.answer("Compare.")
    assert "".join(said).strip() == assistant.ask("Compare.", smiles=["CCO", "O"]).strip()
    conversation.command("/smiles c1ccccc1")
    assert said[-1] == "molecule 1: c1ccccc1\n"
    conversation.command("/reset")
    assert said[-1].startswith("a new conversation")
    conversation.command("/save x")
    assert said[-1] == "nothing was asked yet\n"
    for line in ("/help", "/smiles", "/what"):
        conversation.command(line)
        assert said[-1] == chat.HELP + "\n"


def test_a_saved_conversation_is_a_row_that_prepare_reads(talk, tmp_path):
    conversation, _ = talk
    conversation.answer("What is it?")
    conversation.command(f"/save {tmp_path / 'turns.jsonl'}")
    prepare.main(
        ["--task", "instruction", "--input", str(tmp_path / "turns.jsonl"), "--output", str(tmp_path / "data")]
    )
    assert sum(read_manifest(tmp_path / "data")["splits"].values()) == 1
    row = json.loads((tmp_path / "turns.jsonl").read_text())
    assert row["smiles"] == ["CCO"]
    assert row["messages"][0] == {"role": "user", "content": "What is it?"}


def test_ctrl_c_ends_the_answer_and_not_the_chat(trained, monkeypatch, capsys):
    """At the first piece of an answer, and at an empty line; the chat goes on, and what was said stays in it."""
    stream = Assistant.stream
    answered: list[list] = []

    def interrupted(self, question, *, smiles, history):
        if question == "Stop.":
            answered.append(list(history))
            pieces = stream(self, question, smiles=smiles, history=history)
            yield next(pieces)
            raise KeyboardInterrupt
        if question == "Go on.":
            answered.append(list(history))
        yield from stream(self, question, smiles=smiles, history=history)

    lines = iter(["Stop.", KeyboardInterrupt, "/reset now", "Stop.", "Go on.", "/quit"])

    def typed(prompt):
        line = next(lines)
        if line is KeyboardInterrupt:
            raise KeyboardInterrupt
        return line

    monkeypatch.setattr(Assistant, "stream", interrupted)
    monkeypatch.setattr(builtins, "input", typed)
    chat.main(["--checkpoint", str(trained), "--smiles", "CCO", "--max_new_tokens", "8"])
    said = capsys.readouterr().out
    assert "trained on instruction" in said
    assert "molecule 1: CCO" in said
    assert "/help lists commands" in said
    assert "/quit or Ctrl-D leaves" in said
    assert [len(history) for history in answered] == [0, 0, 1]
    assert answered[2][0][0] == "Stop."
    assert answered[2][0][1]
    assert next(lines, None) is None


def test_a_line_that_cannot_be_answered_ends_nothing(trained, monkeypatch, capsys):
    """What was said can still be saved."""
    lines = iter(["first", "caf\udce9", "second"])

    def typed(_):
        line = next(lines, None)
        if line is None:
            raise EOFError
        return line

    def stream(self, question, **_):
        if question == "first":
            raise ConfigError("the conversation has no room")
        yield "an answer"

    monkeypatch.setattr(builtins, "input", typed)
    monkeypatch.setattr(Assistant, "stream", stream)
    chat.main(["--checkpoint", str(trained), "--smiles", "CCO"])
    printed = capsys.readouterr().out
    assert "the conversation has no room\n/reset begins a new conversation, /save FILE keeps this one" in printed
    assert "a line that is no text was left out" in printed
    assert "an answer" in printed
