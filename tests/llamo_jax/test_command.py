"""`llamo`: one command in front of all programs."""

import subprocess
import sys
from pathlib import Path

import pytest

from llamo_jax import __version__
from llamo_jax.apps import command

ROOT = Path(__file__).resolve().parents[2]


def test_version_help_and_what_is_no_command(capsys):
    with pytest.raises(SystemExit) as end:
        command.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"llamo_jax {__version__}\n"
    with pytest.raises(SystemExit) as end:
        command.main([])
    assert end.value.code == 0
    told = capsys.readouterr().out
    assert all(f"    {name} " in told for name in command.COMMANDS)
    with pytest.raises(SystemExit) as end:
        command.main(["nonsense"])
    assert end.value.code == 2
    assert "invalid choice: 'nonsense'" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name, each in command.COMMANDS.items() if each.module])
def test_every_command_reaches_its_program(name, capsys):
    with pytest.raises(SystemExit) as end:
        command.main([name, "--help"] if name != "ask" else [name, "?", "--help"])
    assert end.value.code == 0
    program = command.COMMANDS[name].module.removesuffix(".__main__")
    assert capsys.readouterr().out.startswith(f"usage: {program} ")


def test_a_question_is_asked(trained, capsys):
    options = ["--checkpoint", str(trained), "--smiles", "CCO", "--max_new_tokens", "4"]
    command.main(["ask", "What is it?", *options])
    once = capsys.readouterr().out
    command.main(["chat", "--question", "What is it?", *options])
    assert once == capsys.readouterr().out != ""


def test_training_needs_a_checkout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"llamo train: launch\.py is not here; run it in a checkout"):
        command.main(["train"])
    wrong = ["train", "--config", "configs/stage1.py", "--config.train.steps=-3"]
    run = subprocess.run(
        [sys.executable, "-m", "llamo_jax.apps.command", *wrong], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert "launch.py: " in run.stderr
    assert "steps" in run.stderr


def test_the_shell_completes_commands(capsys):
    with pytest.raises(SystemExit):
        command.main(["--print-completion", "bash"])
    script = capsys.readouterr().out
    asked = "COMP_WORDS=(llamo se); COMP_CWORD=1; _shtab_llamo; echo ${COMPREPLY[@]}"
    run = subprocess.run(["bash", "-c", f"{script}\n{asked}"], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["serve"]
