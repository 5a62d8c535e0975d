"""Many files of records read as one, few of them open; and object stores."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import psutil
import pytest
from etils import epath

from data_pipeline import record_files
from data_pipeline.record_files import RecordFiles, groups, join_files
from data_pipeline.shards import write_record_file

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def files(tmp_path):
    """Files of 0 to 6 records, and all of these in their order."""
    paths, counts, everything = [], [], []
    for number in range(20):
        records = [f"{number}-{index}".encode() * (index + 1) for index in range(number % 7)]
        paths.append(epath.Path(tmp_path / f"shard-{number:02}"))
        write_record_file(paths[-1], records, "array_record")
        counts.append(len(records))
        everything += records
    return paths, counts, everything


def test_any_records_in_any_order_from_few_open_files(files, monkeypatch):
    paths, counts, everything = files
    monkeypatch.setattr(record_files, "MOST_OPEN", 3)
    reader = RecordFiles(paths, counts)
    assert len(reader) == len(everything)
    rng = np.random.default_rng(0)
    for _ in range(20):
        indices = rng.integers(0, len(everything), 9).tolist()
        assert reader.fetch(indices) == [everything[index] for index in indices]
        opened = {each.path for each in psutil.Process().open_files()} & {os.fspath(path) for path in paths}
        assert len(opened) <= 3
    assert reader.fetch([]) == []


def test_joined_files_hold_the_same_records(files, tmp_path):
    paths, _, everything = files
    join_files(paths, epath.Path(tmp_path / "joined"), "array_record")
    assert RecordFiles([epath.Path(tmp_path / "joined")], [len(everything)]).fetch(range(len(everything))) == everything
    join_files(paths[:1], epath.Path(tmp_path / "alone"), "array_record")
    assert (tmp_path / "alone").read_bytes() == Path(paths[0]).read_bytes()


def test_neighbours_are_joined_until_they_are_large(monkeypatch):
    monkeypatch.setattr(record_files, "SHARD_BYTES", 10)
    assert list(groups([4, 4, 4, 20, 1, 1])) == [[0, 1, 2], [3], [4, 5]]
    assert list(groups([])) == []


def run(code: str, tmp_path: Path, *paths: Path) -> subprocess.CompletedProcess:
    """A program of its own, in a new folder."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (*paths, ROOT)))}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip


def test_many_small_files_need_no_more_open_ones_than_allowed(tmp_path):
    """Prepared, read and prepared again where a process may open 128 files; the first attempt is cut off late."""
    (tmp_path / "rows.csv").write_text(
        "smiles,text\n" + "".join(f"{'C' * (i % 9 + 1)},Text {i}.\n" for i in range(800))
    )
    code = """
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
        from pathlib import Path
        from data_pipeline import jobs, record_files
        from data_pipeline.jobs import Runner, Settings
        from data_pipeline.records import RecordReader

        record_files.SHARD_BYTES = 1  # as many files as chunks
        settings = Settings(task="description", rows_per_shard=1, tokens_per_row=128, validation_fraction=0.0)
        measure, jobs.lengths.token_lengths = jobs.lengths.token_lengths, None
        try:
            jobs.prepare({None: [Path("rows.csv")]}, "data", settings, Runner(2))
        except TypeError:
            pass
        jobs.lengths.token_lengths = measure
        jobs.shards.Worker = None  # nothing is left to be featurised
        jobs.prepare({None: [Path("rows.csv")]}, "data", settings, Runner(2))
        reader = RecordReader("data", "train")
        records = reader.fetch(range(0, 800, 7))
        print(len(list(Path("data/records").rglob("*array_record*"))), len(reader), len(records))
        assert [r.conversation.messages[1].content for r in records] == [f"Text {i}." for i in range(0, 800, 7)]
    """
    result = run(code, tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.split() == ["800", "800", "115"]


BUCKET = """
# Every process of Python here takes gs://… for a folder of this machine.
import os
import sys

sys.path.insert(0, {root!r})
from tests.helpers_store import install

install({store!r})
"""


def test_an_object_store_from_rows_to_batches_and_scores(tmp_path):
    """Preparation on Beam, reading, training and an evaluation, with everything but the run's folder on the store."""
    store = tmp_path / "store" / "bucket"
    store.mkdir(parents=True)
    rows = "".join(f"{'C' * (i % 9 + 1)}O,An alcohol with {i % 9 + 1} carbon atoms.\n" for i in range(60))
    (store / "rows.csv").write_text("smiles,text\n" + rows)
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(BUCKET.format(root=str(ROOT), store=str(tmp_path / "store")))
    code = """
        import json
        from data_pipeline import prepare
        from configs import evaluate, stage1
        from llamo_jax import runs
        from llamo_jax.evaluation import run

        command = ["--task", "description", "--input", "gs://bucket/rows.csv", "--output", "gs://bucket/data",
                   "--rows_per_shard", "16", "--beam_runner", "DirectRunner", "--validation_fraction", "0"]
        prepare.main(command)
        prepare.main(command)  # done already
        config = stage1.get_config()
        config.update_from_flattened_dict({"data.source": "gs://bucket/data", "train.steps": 2, "train.samples": 0})
        config.model.language_model.num_layers = 1
        config.train.update({"log_every": 1, "eval_every": 2, "checkpoint_every": 2, "warmup_steps": 0})
        runs.train(runs.read_config(config), "run")
        config = evaluate.get_config()
        config.update({"checkpoint": "run", "data": "gs://bucket/data", "graph_use": 0, "group_questions": 0})
        config.split = "train"
        config.decoding.max_new_tokens = 8
        print(json.dumps(run.evaluate(run.read_config(config), "scores")["rows"]))
    """
    result = run(code, tmp_path, site)
    assert result.returncode == 0, result.stderr[-3000:]
    rows = int(result.stdout.splitlines()[-1])
    manifest = json.loads((store / "data" / "manifest.json").read_text())
    assert rows == manifest["splits"]["train"] == 60
    assert {path.name for path in tmp_path.iterdir()} == {"store", "site", "run", "scores"}  # no folder "gs:"
    assert not (store / "data" / "work").exists()
