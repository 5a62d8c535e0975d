"""Preparation as a job: restartable, parallel, and proof against molecules that crash or stall."""

import dataclasses
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from data_pipeline import jobs, lengths, prepare, shards, storage
from data_pipeline.corpus import murcko_scaffold
from data_pipeline.errors import DataError, WorkerError
from data_pipeline.inspect import main as inspect
from data_pipeline.jobs import Runner, Settings
from data_pipeline.records import RecordReader, read_manifest, read_records
from data_pipeline.shards import Worker

SETTINGS = Settings(task="description", rows_per_shard=16, tokens_per_row=128)


def digest(folder):
    """Every file of a prepared folder and its content."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Some hundred rows, a few of them useless."""
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    lines = ["smiles,text"]
    for index in range(150):
        smiles = ("C" * (index % 7 + 1), "c1ccccc1" + "C" * (index % 5), f"C{index}CC", "OCC=O")[index % 4]
        lines.append(f'{smiles},"The molecule, number {index}."')
    lines += ["C", "C,\ud800x,y", '"open']
    path.write_bytes(("\n".join(lines) + "\n").encode(errors="replace"))
    return path


@pytest.fixture(scope="module")
def undisturbed(table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "data"
    jobs.prepare({None: [table]}, folder, SETTINGS)
    return folder


def test_every_row_is_accounted_for(table, undisturbed):
    manifest = read_manifest(undisturbed)
    assert manifest["rows"] == 153
    assert sum(manifest["splits"].values()) + sum(manifest["rejected"].values()) == 153
    lines = (undisturbed / "rejected.jsonl").read_text().splitlines()
    assert len(lines) == sum(manifest["rejected"].values())
    assert manifest["sources"][0]["sha256"] == hashlib.sha256(table.read_bytes()).hexdigest()
    reader = RecordReader(undisturbed, "train")
    for record, size in zip(reader.fetch(range(len(reader))), reader.sizes, strict=True):
        (graph,) = record.graphs
        np.testing.assert_array_equal(size, [1, len(graph.atoms), len(graph.bonds), len(graph.motifs)])
    one, other = reader.fetch([7, 3])
    assert one.conversation == reader.fetch([7])[0].conversation != other.conversation


def test_manifest_describes_lengths_and_suggests_budgets(undisturbed, capsys, tmp_path):
    manifest = read_manifest(undisturbed)
    sizes = RecordReader(undisturbed, "train").sizes
    assert manifest["lengths"]["train"]["atoms"]["100"] == sizes[:, 1].max()
    assert manifest["lengths"]["train"]["atoms"]["50"] == int(np.percentile(sizes[:, 1], 50))
    assert manifest["lengths"]["train"]["tokens"]["0"] > 28
    suggested = manifest["suggested"]
    assert suggested["atoms_per_row"] >= sizes[:, 1].max()
    inspect([str(undisturbed), "--picture", str(tmp_path / "lengths.png")])
    said = capsys.readouterr().out
    assert f"--config.data.atoms_per_row={suggested['atoms_per_row']}" in said
    assert (tmp_path / "lengths.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match="is not a prepared dataset"):
        inspect([str(tmp_path)])


def test_budgets_are_what_999_of_1000_rows_need():
    """Rows of one conversation each; five are large. What the prompt style refuses stands in no row."""
    sizes = np.tile(np.int32([1, 20, 40, 3]), (1000, 1))
    sizes[::200] = 1, 90, 180, 9
    lengths_of = np.tile(np.int32([256, 30, 40]), (1000, 1))
    found = lengths.suggest_budgets(sizes, lengths_of, 256)
    expected = {"tokens_per_row": 256, "molecules_per_row": 1, "atoms_per_row": 90, "edges_per_row": 180,
                "motifs_per_row": 9}  # fmt: skip
    assert found == expected
    refused = np.int32([[2, 500, 900, 40]] * 300), np.zeros((300, 3), np.int32)
    sizes, lengths_of = (np.concatenate(pair) for pair in zip(refused, (sizes, lengths_of), strict=True))
    assert lengths.suggest_budgets(sizes, lengths_of, 256) == expected
    assert set(lengths.suggest_budgets(*refused, 256).values()) == {256, 0}


def test_features_of_another_version_are_refused(undisturbed, tmp_path):
    manifest = json.loads((undisturbed / "manifest.json").read_text())
    for name in ("format_version", "feature_version"):
        (tmp_path / "manifest.json").write_text(json.dumps(manifest | {name: "0"}))
        with pytest.raises(DataError, match=f"has {name} 0, this program needs .*; prepare it again"):
            read_manifest(tmp_path)


def test_workers_do_not_change_the_result(table, undisturbed, tmp_path):
    jobs.prepare({None: [table]}, tmp_path / "data", SETTINGS, Runner(num_workers=3))
    assert digest(tmp_path / "data") == digest(undisturbed)


def test_beam_does_not_change_the_result(table, undisturbed, tmp_path):
    jobs.prepare({None: [table]}, tmp_path / "data", SETTINGS, Runner(beam_runner="DirectRunner"))
    assert digest(tmp_path / "data") == digest(undisturbed)


def test_the_same_command_again_changes_nothing(table, undisturbed):
    before = digest(undisturbed)
    assert jobs.prepare({None: [table]}, undisturbed, SETTINGS) == read_manifest(undisturbed)
    assert digest(undisturbed) == before
    other = Settings(task="description", rows_per_shard=16, validation_fraction=0.5)
    with pytest.raises(DataError, match="exists already, with other content"):
        jobs.prepare({None: [table]}, undisturbed, other)
    assert digest(undisturbed) == before


def test_killed_ten_times_and_run_again(table, undisturbed, tmp_path):
    """The whole process group is killed at random moments of the same job."""
    output = tmp_path / "data"
    command = [sys.executable, "-m", "data_pipeline.prepare", "--task", "description", "--input", str(table)]
    command += ["--output", str(output), "--num_workers", "2", "--rows_per_shard", "16", "--tokens_per_row", "128"]
    start = time.monotonic()
    subprocess.run(command, check=True)
    usual = time.monotonic() - start
    rng = random.Random(0)
    for _ in range(10):
        if output.exists():
            assert digest(output) == digest(undisturbed)
            shutil.rmtree(output)
        process = subprocess.Popen(command, start_new_session=True)
        time.sleep(usual * rng.uniform(0.2, 1.0))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True)
    assert digest(output) == digest(undisturbed)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_interrupted_after_every_single_step(table, undisturbed, tmp_path):
    """An exception at each file that a job completes, then the same job again until it is done."""
    original = storage.write_text
    countdown = 0

    def failing(path, text):
        nonlocal countdown
        countdown -= 1
        if countdown == 0:
            raise KeyboardInterrupt
        original(path, text)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "write_text", failing)
        for attempt in range(1, 40):
            countdown = attempt
            try:
                jobs.prepare({None: [table]}, tmp_path / "data", SETTINGS)
            except KeyboardInterrupt:
                continue
            break
    assert 3 < attempt < 39
    assert digest(tmp_path / "data") == digest(undisturbed)


def test_labels_that_are_missing_are_counted(tmp_path, capsys):
    """Of a table of three properties: conversations, rejected and missing labels are all cells."""
    table = tmp_path / "rows.csv"
    table.write_text("smiles,homo,lumo,gap\nC,1,2,3\nCC,1,,3\nCCC,,,0.5\nCO,1,wide,3\nC1CC,1,2,3\n")
    command = ["--task", "property_regression", "--input", str(table), "--output", str(tmp_path / "data")]
    prepare.main([*command, "--validation_fraction", "0", "--tokens_per_row", "128"])
    manifest = read_manifest(tmp_path / "data")
    assert manifest["missing"] == {"lumo": 2, "homo": 1}
    assert manifest["rejected"] == {"invalid SMILES": 3, "lumo is not a number": 1}
    assert sum(manifest["splits"].values()) + 3 + 4 == 15
    said = capsys.readouterr().out
    assert "5 rows with 3 labels each, 15 = 8 conversations + 4 rejected + 3 missing" in said
    assert "missing               2  lumo is empty" in said


def test_validation_has_scaffolds_that_training_has_not(tmp_path):
    """Decorations of one scaffold stay together, whatever their texts; so do repeated molecules without a ring."""
    scaffolds = ["c1ccccc1", "c1ccncc1", "C1CCCCC1", "c1ccc2ccccc2c1", "c1ccoc1", "c1ccsc1", "C1CCNCC1", "C1CCOC1"]
    lines = ["smiles,text"]
    for number in range(240):
        scaffold = scaffolds[number % len(scaffolds)]
        lines.append(f"{'C' * (number % 5 + 1)}{scaffold},{'N' if number % 2 else 'Text'} {number}.")
    lines += [f"{'C' * (number % 6 + 1)}O,Chain {number}." for number in range(60)]
    table = tmp_path / "rows.csv"
    table.write_text("\n".join(lines) + "\n")
    settings = Settings(task="description", rows_per_shard=16, tokens_per_row=128, validation_fraction=0.4)
    jobs.prepare({None: [table]}, tmp_path / "data", settings)
    split_of = {}
    for split in ("train", "validation"):
        for record in read_records(tmp_path / "data", split):
            smiles = record.conversation.smiles[0]
            split_of.setdefault(murcko_scaffold(smiles) or smiles, set()).add(split)
    assert len(split_of) == len(scaffolds) + 6
    assert {len(splits) for splits in split_of.values()} == {1}
    assert {split for splits in split_of.values() for split in splits} == {"train", "validation"}


def splits_of(folder):
    """Split → its records."""
    return {split: list(read_records(folder, split)) for split in read_manifest(folder)["splits"]}


def test_a_reaction_is_held_out_by_its_product(tmp_path):
    """The solvent, which stands first, is in every row."""
    table = tmp_path / "rows.csv"
    rings = ("c1ccccc1", "c1ccncc1", "C1CCCCC1", "c1ccc2ccccc2c1", "c1ccoc1", "c1ccsc1", "C1CCNCC1", "c1cc[nH]c1")
    lines = [f"C1CCOC1.{'C' * (n % 5 + 1)}N>>{'C' * (n % 4 + 2)}{rings[n % 8]}" for n in range(160)]
    table.write_text("\n".join(["reaction", *lines]) + "\n")
    settings = Settings(task="forward_reaction", tokens_per_row=128, validation_fraction=0.4)
    jobs.prepare({None: [table]}, tmp_path / "data", settings)
    found = splits_of(tmp_path / "data")
    products = {
        split: {murcko_scaffold(r.conversation.messages[-1].content) for r in records}
        for split, records in found.items()
    }
    assert len(found) == 2
    assert not products["train"] & products["validation"]
    assert all(record.conversation.smiles[0] == "C1CCOC1" for records in found.values() for record in records)


def test_what_is_held_out_is_in_no_conversation_about_several(tmp_path):
    """Nor do conversations without a molecule go by their answers, which may be but yes and no."""
    chains = ["C" * length + end for length in range(1, 13) for end in ("O", "N", "S", "F")]
    rng = random.Random(0)
    turns = [{"role": "user", "content": "Alike?"}, {"role": "assistant", "content": "No."}]
    rows = [{"smiles": rng.sample(chains, 2), "messages": turns} for _ in range(300)]
    rows += [{"smiles": chain, "messages": turns} for chain in chains]
    asked = [[{"role": "user", "content": f"Is {number} even?"}, {"role": "assistant", "content": answer}]
             for number, answer in ((n, "No." if n % 2 else "Yes.") for n in range(80))]  # fmt: skip
    table = tmp_path / "rows.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in [*({"messages": turn} for turn in asked), *rows]))
    settings = Settings(task="instruction", tokens_per_row=128, validation_fraction=0.2, test_fraction=0.2)
    manifest = jobs.prepare({None: [table]}, tmp_path / "data", settings)
    assert sum(manifest["splits"].values()) == 428
    found = splits_of(tmp_path / "data")
    homes = {r.conversation.smiles[0]: split for split, records in found.items() for r in records if len(r.graphs) == 1}
    assert len(homes) == len(chains)  # the first row, which shows no molecule, does not tell all columns
    for split, records in found.items():
        order = ("train", "validation", "test")
        for record in records:
            if len(record.graphs) == 2:
                assert split == max((homes[smiles] for smiles in record.conversation.smiles), key=order.index)
        answers = {r.conversation.messages[-1].content for r in records if not r.graphs}
        assert answers == {"Yes.", "No."}


def test_lengths_are_no_rows_time(tmp_path, monkeypatch):
    """Nor the loading of a tokenizer: the limit of the last row ends before."""
    _, job = make_job(tmp_path, [{"smiles": "CCO", "text": "a"}, {"smiles": "O", "text": "b"}])
    told = []
    monkeypatch.setattr(shards, "_encoder", lambda *_: told.append("encoder"))
    monkeypatch.setattr(shards, "measured", lambda records, _: np.zeros((len(records), 3), np.int32))
    shards.make_shard(dataclasses.replace(job, prompt=("nowhere", 28, "plain", True)), 0, {}, told.append)
    assert told == [0, 1, None, "encoder"]


def test_what_is_finished_outlives_a_late_failure(table, undisturbed, tmp_path, monkeypatch):
    """A job that fails while its lengths are measured keeps its records; run again, it goes on from there."""

    def fail(*arguments):
        raise DataError("the tokenizer cannot be trained")

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "train_tokenizer", fail)
        with pytest.raises(DataError, match="cannot be trained"):
            jobs.prepare({None: [table]}, tmp_path / "data", SETTINGS)
    run, pending = jobs._run, []
    monkeypatch.setattr(jobs, "_run", lambda job, chunks, *rest: (pending.append(chunks), run(job, chunks, *rest)))
    jobs.prepare({None: [table]}, tmp_path / "data", SETTINGS)
    assert pending == [[]] * len(pending)
    assert len(pending) > 0
    assert digest(tmp_path / "data") == digest(undisturbed)


def test_two_processes_do_not_share_a_job(table, tmp_path):
    folder = jobs.epath.Path(tmp_path / "data")
    with (
        pytest.raises(DataError, match="another process is working in"),
        jobs.job_folder(folder, {}),
        jobs.job_folder(folder, {}),
    ):
        raise AssertionError("the second must not get in")


def make_job(tmp_path, rows, time_limit=10.0):
    work = shards.epath.Path(tmp_path / "work")
    (work / "rows").mkdir(parents=True)
    (work / "shards").mkdir()
    cut = [shards.CutRow(0, number, "train", row) for number, row in enumerate(rows, start=1)]
    shards.rows_path(work, 0).write_text("".join(row.to_json() + "\n" for row in cut))
    columns = SETTINGS.columns
    return work, shards.ShardJob(
        str(work), "description", columns, (("smiles", "text"),), ("x",), {}, "scaffold", "array_record", time_limit
    )


def test_a_molecule_that_stalls_is_rejected(tmp_path):
    rows = [{"smiles": "CCO", "text": "a"}, {"smiles": "C" * 50_000, "text": "b"}, {"smiles": "O", "text": "c"}]
    work, job = make_job(tmp_path, rows, time_limit=0.3)
    worker = Worker()
    worker.run(job, 0)
    worker.close()
    outcome = shards.read_outcome(work, 0)
    assert [reason for _, reason, _ in outcome["rejected"]] == ["took more than 0.3 CPU seconds"]
    assert len(outcome["sizes"]["train"]) == 2


def test_a_chunk_without_its_records_is_not_done(tmp_path):
    work, job = make_job(tmp_path, [{"smiles": "CCO", "text": "a"}])
    worker = Worker()
    worker.run(job, 0)
    assert len(shards.read_outcome(work, 0)["sizes"]["train"]) == 1
    shards.shard_path(work, 0, "train").unlink()
    assert shards.read_outcome(work, 0) is None
    worker.run(job, 0)
    worker.close()
    assert shards.read_outcome(work, 0) is not None


def test_a_worker_that_is_killed_does_its_chunk_again(tmp_path):
    work, job = make_job(tmp_path, [{"smiles": "C" * (i + 1), "text": "a"} for i in range(300)])
    worker = Worker()
    kills = iter([50, 120])
    next_kill = next(kills)

    def kill(index):
        nonlocal next_kill
        if next_kill and index >= next_kill:
            next_kill = next(kills, None)
            os.kill(worker._process.pid, signal.SIGKILL)

    worker.run(job, 0, kill)
    assert shards.read_outcome(work, 0)["rejected"] == []
    assert len(shards.read_outcome(work, 0)["sizes"]["train"]) == 300
    with pytest.raises(WorkerError, match="keep dying"):
        worker.run(job, 0, lambda index: os.kill(worker._process.pid, signal.SIGKILL))
    worker.close()


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_a_row_that_crashes_the_process_is_rejected(number, tmp_path):
    work, job = make_job(tmp_path, [{"smiles": "C" * (i + 1), "text": "a"} for i in range(200)])
    worker = Worker()
    crashed = []

    def crash(index):
        if index >= 100 and not crashed:
            crashed.append(index)
            os.kill(worker._process.pid, number)

    worker.run(job, 0, crash)
    worker.close()
    outcome = shards.read_outcome(work, 0)
    assert [reason for _, reason, _ in outcome["rejected"]] == [f"crashed RDKit (signal {number:d})"]
    assert len(outcome["sizes"]["train"]) == 199


def test_tfrecord_files_are_ordinary_tfds(table, undisturbed, tmp_path):
    import tensorflow_datasets as tfds

    settings = Settings(task="description", rows_per_shard=16, file_format="tfrecord")
    manifest = jobs.prepare({None: [table]}, tmp_path / "data", settings)
    builder = tfds.builder_from_directory(str(tmp_path / "data" / manifest["records"]))
    read = tfds.ReadConfig(try_autocache=False)
    texts = [json.loads(example["conversation"].numpy()) for example in builder.as_dataset("train", read_config=read)]
    expected = [record.conversation for record in read_records(undisturbed, "train")]
    assert [text["smiles"] for text in texts] == [list(conversation.smiles) for conversation in expected]
    with pytest.raises(DataError, match="no random access"):
        RecordReader(tmp_path / "data", "train")


def test_beam_options_are_passed_on(monkeypatch, table, tmp_path):
    given = {}
    monkeypatch.setattr(prepare, "prepare", lambda *arguments: given.update(zip("abcd", arguments, strict=True)) or {
        "splits": {}, "rejected": {}, "missing": {}, "rows": 0, "examples": 0, "task": "description"
    })  # fmt: skip
    options = ["--task", "description", "--input", str(table), "--output", str(tmp_path / "o")]
    prepare.main([*options, "--beam_runner=FlinkRunner", "--beam_options", "--flink_master=x:1", "--parallelism=4"])
    assert given["d"].beam_runner == "FlinkRunner"
    assert given["d"].beam_options == ("--flink_master=x:1", "--parallelism=4")


def test_a_failing_worker_ends_the_job(tmp_path):
    _, job = make_job(tmp_path, [{"smiles": "C", "text": "a"}])
    workers = [Worker()]
    with pytest.raises(WorkerError, match=r"cannot write to .*: No such file"):
        shards.process_chunks(job, range(1, 5), workers, lambda count: None)


def test_a_chunk_that_is_damaged_itself_ends_the_job(tmp_path, capfd):
    work, job = make_job(tmp_path, [{"smiles": smiles, "text": "a"} for smiles in "CNO"])
    lines = shards.rows_path(work, 0).read_text().splitlines()
    shards.rows_path(work, 0).write_text("\n".join([lines[0], "[0, 2]", lines[2]]))
    worker = Worker()
    with pytest.raises(WorkerError, match="keep dying"):
        worker.run(job, 0)
    worker.close()
    assert "ValueError" in capfd.readouterr().err


def test_own_data_is_divided_counted_and_explained(tmp_path, capsys):
    """Training, validation and test; what is said twice; which columns; and what to run next."""
    table = tmp_path / "mine.csv"
    rows = [f"{'C' * (1 + i % 40)}{'N' * (1 + i // 40)},text {i},{i}" for i in range(400)]
    table.write_text("\n".join(["SMILES,description,extra", *rows, *rows[:7]]) + "\n")
    for split in ("scaffold", "random"):
        command = ["--task", "description", "--input", str(table), "--output"]
        prepare.main([*command, str(tmp_path / split), "--split", split])
        said, explained = capsys.readouterr()
        assert "mine.csv: reads 'SMILES', 'description' of ['SMILES', 'description', 'extra']" in explained
        assert "407 rows = 407 conversations + 0 rejected + 0 missing" in said
        assert "7 say what another one says" in said
        assert f"next: python launch.py --config configs/stage1.py --config.data.source={tmp_path / split}" in said
        manifest = read_manifest(tmp_path / split)
        sizes = manifest["splits"]
        assert sum(sizes.values()) == 407
        assert 20 < sizes["validation"] < 65
        assert 20 < sizes["test"] < 65
        assert manifest["duplicates"] == 7
        shown = [{r.conversation.smiles[0] for r in read_records(tmp_path / split, part)} for part in sizes]
        together = set.union(*shown)
        # by scaffold (of these, the molecule itself), no molecule is in two splits; by row, those twice may be
        assert sum(map(len, shown)) == len(together) or split == "random"
    prepare.main([*command, str(tmp_path / "all"), "--validation_fraction", "0", "--test_fraction", "0"])
    said = capsys.readouterr().out
    # two examples as the model sees them: the SMILES, graph tokens, and in brackets what is learned
    assert "train 0: CN\n  user: " in said
    assert said.count(" tokens, ") == 2
    assert re.search(r"<28 graph tokens>.*\[.*text.*\|0.*\]", said)
    inspect([str(tmp_path / "all"), "--examples", "3"])
    assert re.findall(r"^train (\d+): ", capsys.readouterr().out, re.MULTILINE) == ["0", "135", "271"]
    assert read_manifest(tmp_path / "all")["splits"] == {"train": 407}
    with pytest.raises(SystemExit):
        prepare.main([*command, str(tmp_path / "x"), "--test_fraction", "0.95"])
    assert "must leave something for training" in capsys.readouterr().err


def test_long_work_writes_a_line_now_and_then_into_a_file(monkeypatch, capfd):
    from data_pipeline import progress

    monkeypatch.setattr(progress, "SECONDS", 0.01)
    for _ in progress.watched(range(30), desc="reading", unit=" rows"):
        time.sleep(0.003)
    lines = capfd.readouterr().err.splitlines()
    assert lines
    assert all(line.startswith("reading") and "\r" not in line for line in lines)
    assert "30/30" in lines[-1]
    monkeypatch.setattr(progress, "SECONDS", 30)
    assert list(progress.watched(range(3), desc="reading")) == [0, 1, 2]
    assert capfd.readouterr().err == ""


def test_a_folder_of_an_earlier_version_is_still_done(table, tmp_path, capsys):
    """Its manifest lacks counts that came later: it is used, and told of, as it is."""
    command = ["--task", "description", "--input", str(table), "--output", str(tmp_path / "data")]
    prepare.main(command)
    path = tmp_path / "data" / "manifest.json"
    manifest = json.loads(path.read_text())
    for name in ("examples", "missing", "duplicates", "without_molecule", "fingerprint"):
        del manifest[name]
    path.write_text(json.dumps(manifest))
    capsys.readouterr()
    prepare.main(command)
    assert "153 rows = " in capsys.readouterr().out
    assert len(read_records(tmp_path / "data", "train")) == manifest["splits"]["train"]


def test_what_another_job_has_left_is_not_continued(table, undisturbed, tmp_path, monkeypatch):
    other = tmp_path / "other.csv"
    other.write_text("smiles,text\n" + "".join(f'{"C" * (n + 1)},"Chain {n}."\n' for n in range(20)))

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(jobs, "_run", killed)
        with pytest.raises(KeyboardInterrupt):
            jobs.prepare({None: [other]}, tmp_path / "data", SETTINGS)
    assert list(tmp_path.glob(".data*/work/rows/*"))  # cut already
    jobs.prepare({None: [table]}, tmp_path / "data", SETTINGS)
    assert digest(tmp_path / "data") == digest(undisturbed)


def test_chunks_of_long_rows_are_shorter(monkeypatch):
    monkeypatch.setattr(jobs, "CHUNK_BYTES", 100)
    chunks = list(jobs._batched(((None, "x" * 30) for _ in range(10)), 16))
    assert [len(chunk) for chunk in chunks] == [4, 4, 2]
    assert [len(chunk) for chunk in jobs._batched(((None, "x") for _ in range(20)), 16)] == [16, 4]
