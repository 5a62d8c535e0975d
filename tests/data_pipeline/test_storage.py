"""Files that are whole or not there, folders that one writer has, and addresses that are no local paths."""

import ast
import contextlib
import json
import multiprocessing
import os
from pathlib import Path

import pytest
from etils import epath

from data_pipeline import storage
from data_pipeline.errors import BusyError, DataError
from data_pipeline.tokenizer import load_tokenizer, train_tokenizer
from tests import helpers_store

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    (tmp_path / "store" / "bucket").mkdir(parents=True)
    helpers_store.install(str(tmp_path / "store"), monkeypatch)
    return epath.Path("gs://bucket")


def interrupt(writer, write):
    """A user's Ctrl-C after `write`, while `writer` is at work."""
    with contextlib.suppress(KeyboardInterrupt), writer as partial:
        write(partial)
        raise KeyboardInterrupt


def test_a_file_is_the_old_or_the_new_one(tmp_path):
    path = tmp_path / "a.json"
    storage.write_json(path, {"a": 1})
    interrupt(storage.writing(path), lambda partial: partial.write_text("half of"))
    assert json.loads(path.read_text()) == {"a": 1}
    assert [found.name for found in tmp_path.iterdir()] == ["a.json"]
    with storage.writing(path) as partial:
        partial.write_text("new")
        assert json.loads(path.read_text()) == {"a": 1}
    assert path.read_text() == "new"


def test_content_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    order = []

    def noted(name, function, what):
        def call(*arguments):
            order.append((name, what(*arguments)))
            return function(*arguments)

        monkeypatch.setattr(os, name, call)

    noted("fsync", os.fsync, lambda descriptor: os.readlink(f"/proc/self/fd/{descriptor}"))
    noted("replace", os.replace, lambda old, new: os.fspath(new))
    storage.write_text(tmp_path / "a", "text")
    kinds = [kind for kind, _ in order]
    assert kinds == ["fsync", "replace", "fsync"]
    assert order[0][1].endswith(storage.PARTIAL)
    assert order[2][1] == str(tmp_path)

    (tmp_path / "half" / "below").mkdir(parents=True)
    (tmp_path / "half" / "below" / "file").write_text("text")
    noted("rename", os.rename, lambda old, new: os.fspath(new))
    order.clear()
    storage.finish_folder(storage.as_path(tmp_path / "half"), storage.as_path(tmp_path / "whole"))
    before = {path for kind, path in order[: [kind for kind, _ in order].index("rename")] if kind == "fsync"}
    assert {str(tmp_path / "half" / part) for part in ("below/file", "below", "")} <= before
    assert order[-1] == ("fsync", str(tmp_path))


def test_lines_survive_a_cut(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    with storage.LineWriter(path) as lines:
        lines.write({"text": "one\u2028two\x85"})
        assert storage.read_json_lines(path) == [{"text": "one\u2028two\x85"}]  # at once, not at the end
    with path.open("ab") as file:
        file.write(b'{"text": "thr')
    assert len(storage.read_json_lines(path)) == 1
    with storage.LineWriter(path) as lines:
        lines.write({"text": "four"})
    assert [row["text"] for row in storage.read_json_lines(path)] == ["one\u2028two\x85", "four"]
    assert storage.read_json_lines(tmp_path / "none") == []
    path.write_text('{"a": 1}\n{"a": \n{"a": 3}\n')
    assert storage.read_json_lines(path) == [{"a": 1}, {"a": 3}]
    assert f"{path}, line 2: damaged, left out" in capsys.readouterr().err


def test_a_folder_appears_whole(tmp_path):
    interrupt(storage.new_folder(tmp_path / "model"), lambda partial: (partial / "weights").write_text("half"))
    assert not (tmp_path / "model").exists()
    with storage.new_folder(tmp_path / "model") as partial:
        assert [path.name for path in partial.iterdir()] == [storage.LOCK]  # what the attempt before left is gone
        (partial / "sub").mkdir()
        (partial / "sub" / "weights").write_text("whole")
        with pytest.raises(BusyError), storage.new_folder(tmp_path / "model"):
            pass
    assert sorted(path.name for path in (tmp_path / "model").rglob("*")) == ["sub", "weights"]
    with pytest.raises(DataError, match="exists already"), storage.new_folder(tmp_path / "model"):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="not a folder"):
        storage.check_new(tmp_path / "file" / "model")


def hold(folder, ready, done):
    with storage.locked(folder):
        ready.set()
        done.wait(300)


def test_one_writer_for_a_folder_whatever_happens_to_it(tmp_path):
    (tmp_path / ".a.json.123-0.partial").write_text("left by a writer that was killed")
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    writer = context.Process(target=hold, args=(tmp_path, ready, done))
    writer.start()
    assert ready.wait(300)
    with pytest.raises(BusyError, match="another process is working in"), storage.locked(tmp_path):
        pass
    writer.kill()
    writer.join()
    with storage.locked(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [storage.LOCK]


def test_addresses_are_never_local_folders(bucket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = storage.make_folder(bucket / "run")
    storage.write_json(folder / "run.json", {"a": 1})
    with storage.LineWriter(folder / "metrics.jsonl") as lines:
        lines.write({"step": 1})
        lines.write({"step": 2})
    with storage.LineWriter(folder / "metrics.jsonl") as lines:
        lines.write({"step": 3})
    with storage.new_folder(bucket / "model") as partial:
        storage.write_text(partial / "config.json", "{}")
    with storage.locked(folder):
        pass
    tokenizer = train_tokenizer(["some text about molecules"] * 9, 280)
    tokenizer.save(os.fspath(folder / "tokenizer"))
    assert load_tokenizer(folder / "tokenizer").encode(["molecules"]) == tokenizer.encode(["molecules"])
    assert os.fspath(storage.absolute("gs://bucket/run")) == "gs://bucket/run"
    with pytest.raises(DataError, match="gs://bucket/nothing is not a tokenizer folder"):
        load_tokenizer(bucket / "nothing")
    assert not (tmp_path / "gs:").exists()
    assert json.loads((tmp_path / "store" / "bucket" / "run" / "run.json").read_text()) == {"a": 1}
    assert [row["step"] for row in storage.read_json_lines(folder / "metrics.jsonl")] == [1, 2, 3]
    assert (tmp_path / "store" / "bucket" / "model" / "config.json").read_text() == "{}"
    with pytest.raises(DataError, match="exists already"):
        storage.check_new(bucket / "model")


def test_a_store_that_cannot_be_reached_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="cannot create gs://no-such-bucket/run") as error:
        storage.make_folder("gs://no-such-bucket/run")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_nobody_else_writes_files():
    """Renames, locks and direct writes stand in storage; other modules call it."""
    allowed = {
        "data_pipeline/storage.py",
        "data_pipeline/jobs.py",  # rejected.jsonl and sizes.npz, in a folder that is not finished
        "data_pipeline/tokenizer.py",  # into a folder of storage.write_locally
        "data_pipeline/record_files.py",  # into a temporary folder
    }
    wrong = []
    for path in [*(ROOT / "llamo_jax").rglob("*.py"), *(ROOT / "data_pipeline").rglob("*.py")]:
        name = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or name in allowed:
                continue
            called = node.func.attr
            owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
            writes = called in ("write_text", "write_bytes", "rmtree", "flock", "mkdtemp") and owner != "storage"
            writes |= called == "resolve"  # storage.absolute: epath makes a local path of an address
            writes |= called in ("rename", "replace") and owner == "os"
            writes |= (
                called == "open"
                and any(
                    isinstance(arg, ast.Constant) and isinstance(arg.value, str) and set(arg.value) & set("wax")
                    for arg in node.args
                )
                and owner != "partial"
            )
            if writes:
                wrong.append(f"{name}:{node.lineno} {called}")
    assert wrong == []
