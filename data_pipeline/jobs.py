"""Jobs of data preparation: rows from anywhere to a complete prepared folder, restartable at any moment.

A job cuts its rows into chunks, has the shards of every chunk made (data_pipeline.shards), gives them to TFDS
(data_pipeline.builders), measures lengths and writes the manifest. Until it is complete it lives beside its
destination, in a folder whose name ends in `.partial`.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from data_pipeline import lengths, shards, storage, tasks
from data_pipeline.conversation import Conversation
from data_pipeline.errors import DataError, WorkerError
from data_pipeline.files import BadRow, TableOptions, read_rows
from data_pipeline.molecule import FEATURE_VERSION
from data_pipeline.progress import watched
from data_pipeline.prompt import PromptEncoder
from data_pipeline.records import FORMAT_VERSION, Record, RecordReader, record_size, serialize
from data_pipeline.shards import CutRow, ShardJob
from data_pipeline.tokenizer import TextTokenizer, load_tokenizer, train_tokenizer
from data_pipeline.vocabulary import MOLECULES, GraphVocabulary

VOCAB_SIZE = 2048
"""Of the tokenizers that are trained on the data."""

CHUNK_BYTES = 2**24
"""Of rows that are cut into one chunk, at most, whatever their number: a worker holds a chunk in memory."""

TOKENIZER_SAMPLE = 50_000
"""Conversations from which a data set's own tokenizer is trained."""


_ANY_TABLE = TableOptions()


@dataclasses.dataclass(frozen=True)
class Runner:
    """Who makes the shards: processes on this machine, or an Apache Beam runner with its options."""

    num_workers: int = 1
    beam_runner: str | None = None
    beam_options: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the content of a prepared folder, besides its input rows."""

    task: str
    columns: tasks.Columns = dataclasses.field(default_factory=tasks.Columns)
    table: TableOptions = _ANY_TABLE  # how tables are written, where that shall not be found out
    validation_fraction: float | None = None  # see `fractions`
    test_fraction: float | None = None
    split: str = "scaffold"  # or "random": what is held out together
    rows_per_shard: int = 1024
    file_format: str = "array_record"
    time_limit: float = 10.0  # CPU seconds a row
    tokenizer: str | None = None  # folder; None: one is trained on the records
    prompt_style: str = "plain"
    show_smiles: bool = True
    num_graph_tokens: int = 28
    tokens_per_row: int = 512  # for which budgets are suggested

    def fractions(self) -> dict[str, float]:
        """What is held out: a tenth each for validation and test; none for the latter if only the former is given."""
        validation, test = self.validation_fraction, self.test_fraction
        if test is None:
            test = 0.1 if validation is None else 0.0
        return {"validation": 0.1 if validation is None else validation, "test": test}


FINISHED, UNFINISHED = "job.sha256", ".job.sha256"
"""What says whose job made a folder; the second one, on object stores, while it is at work."""

_HERE = Runner()

Inputs = Mapping[str | None, Sequence[Path]]
"""Files by split; the molecules of split None are divided into training and validation by their scaffolds."""


def prepare(inputs: Inputs, folder: epath.PathLike, settings: Settings, runner: Runner = _HERE) -> dict[str, Any]:
    """Prepares the rows of files; returns the manifest.

    Raises DataError if an input cannot be used, no row is left, or the folder exists with other content.
    """
    files = [(split, path) for split, paths in inputs.items() for path in paths]
    for _, path in files:
        if not storage.as_path(path).is_file():
            raise DataError(f"{path}: no such file")
    sources = [{"split": split, **_fingerprint(path)} for split, path in files]
    names = _unique_names([path for _, path in files])

    def rows() -> Iterator[CutRow]:
        for index, (split, path) in enumerate(files):
            with storage.read_file_locally(path) as local:
                for number, row in enumerate(read_rows(local, settings.table, _say), start=1):
                    yield CutRow(index, number, split, row)

    return prepare_rows(rows, names, sources, folder, settings, runner)


def prepare_rows(
    rows: Callable[[], Iterable[CutRow]],
    names: Sequence[str],
    sources: Sequence[Mapping[str, Any]],
    folder: epath.PathLike,
    settings: Settings,
    runner: Runner = _HERE,
    tokenizer: TextTokenizer | None = None,
) -> dict[str, Any]:
    """Prepares rows from anywhere; `names` are those of the files that the rows say they come from.

    `sources` identify the rows: another call with equal sources, settings and versions continues this one.
    """
    identity = {
        "format_version": FORMAT_VERSION,
        "feature_version": FEATURE_VERSION,
        "settings": _identity(settings),
        "sources": list(sources),
    }
    if settings.task in shards.SPLIT_CHANGED:
        identity["split_version"] = shards.SPLIT_VERSION
    folder = epath.Path(folder)
    if is_done(folder, identity):
        return storage.read_json(folder / "manifest.json")
    if settings.tokenizer:
        tokenizer = load_tokenizer(settings.tokenizer)
        _encoder(tokenizer, settings)  # what is wrong with it shall be said before anything takes time
    with job_folder(folder, identity) as partial:
        work = partial / "work"
        cut = _cut(rows, names, work, settings)
        job = ShardJob(
            work=os.fspath(work),
            task=settings.task,
            columns=settings.columns,
            found=tuple(map(tuple, cut["found"])),
            names=tuple(names),
            fractions=settings.fractions(),
            split=settings.split,
            file_format=settings.file_format,
            time_limit=settings.time_limit,
            prompt=_prompt(settings),
        )
        chunks = range(cut["chunks"])  # the unit of work: what is done of them is what a killed job has kept

        def make_shards(download_config: Any) -> tuple[epath.Path, Iterable[int]]:
            del download_config  # the runner is given already
            pending = [chunk for chunk in chunks if shards.read_outcome(work, chunk) is None]
            _run(job, pending, min(cut["rows"], len(pending) * settings.rows_per_shard), runner)
            return work, chunks

        manifest = {**identity, "rows": cut["rows"], "examples": cut.get("examples")}
        return _finish(partial, manifest, settings, make_shards, chunks, MOLECULES, tokenizer)


def prepare_records(
    records: Iterable[tuple[str, Record]], folder: epath.PathLike, vocabulary: GraphVocabulary, settings: Settings
) -> dict[str, Any]:
    """Prepares (split, record) pairs that exist already, such as those of data_pipeline.generic_graph, in one process.

    Returns the manifest; raises DataError if the folder exists.
    """
    folder = epath.Path(folder)
    if folder.exists():
        raise DataError(f"{folder} exists already; remove it or choose another folder")
    identity = {"format_version": FORMAT_VERSION, "settings": _identity(settings)}
    with job_folder(folder, {**identity, "process": os.getpid()}) as partial:
        work = partial / "work"
        (work / "shards").mkdir(parents=True)
        by_split: dict[str, list[Record]] = {}
        for split, record in records:
            by_split.setdefault(split, []).append(record)
        sizes = {split: [record_size(record) for record in group] for split, group in by_split.items()}

        def make_shards(download_config: Any) -> tuple[epath.Path, Iterable[int]]:
            del download_config
            serialized = {s: [serialize(record, vocabulary) for record in group] for s, group in by_split.items()}
            shards.write_shard(work, 0, shards.Shard(serialized, sizes, [], {}, Counter(), []), settings.file_format)
            return work, [0]

        count = sum(map(len, sizes.values()))
        manifest = {**identity, "rows": count, "examples": count}
        tokenizer = load_tokenizer(settings.tokenizer) if settings.tokenizer else None
        return _finish(partial, manifest, settings, make_shards, [0], vocabulary, tokenizer)


def prompt_lines(smiles: Sequence[str], contents: Sequence[str]) -> list[str]:
    """The texts of a conversation as they stand in prompts, for training a tokenizer."""
    return [f"User: {each}" for each in smiles] + [f" {content}\nAssistant:" for content in contents]


@contextlib.contextmanager
def job_folder(folder: epath.Path, identity: Mapping[str, Any]) -> Iterator[epath.Path]:
    """The folder in which a job does its work; it becomes `folder` at the end.

    What an interrupted job with the same identity left there is kept, of another one nothing. Raises DataError if
    `folder` cannot be written, or another process is at it.
    """
    digest = _digest(identity)
    # object stores cannot rename a folder: there it is filled in place, and done when job.sha256 says so
    remote = storage.is_remote(folder)
    partial = folder if remote else folder.with_name(f".{folder.name}{storage.PARTIAL}")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with storage.locked(partial):
            previous = partial / (UNFINISHED if remote else FINISHED)
            if not previous.exists() or previous.read_text() != digest:
                for content in partial.iterdir():
                    if content.name != storage.LOCK:
                        storage.remove(content)
                storage.write_text(previous, digest)
            try:
                yield partial
            except WorkerError:
                raise
            except DataError:
                # wrong from the beginning, so that there is nothing to continue; but what is finished stays
                patterns = ("work/shards/*-*", "records/*", "*/manifest.json")  # records, and whole tasks of a corpus
                if not any(True for pattern in patterns for _ in partial.glob(pattern)):
                    storage.remove(partial)
                raise
            if remote:
                storage.write_text(folder / FINISHED, digest)
            else:
                storage.finish_folder(partial, folder)
    except OSError as error:
        raise DataError(f"cannot write to {folder.parent}: {error.strerror or error}") from None


def is_done(folder: epath.Path, identity: Mapping[str, Any]) -> bool:
    """Whether a job with this identity has made `folder`; raises DataError if it holds something else."""
    stamp = folder / FINISHED
    if not folder.exists() or (not stamp.exists() and (folder / UNFINISHED).exists()):
        return False
    if stamp.exists() and stamp.read_text() == _digest(identity):
        return True
    raise DataError(f"{folder} exists already, with other content; remove it or choose another --output")


def _identity(settings: Settings) -> dict[str, Any]:
    """What two starts of a job compare; options that do what was done before there were any are none."""
    values = dataclasses.asdict(settings)
    values |= {f"{split}_fraction": fraction for split, fraction in settings.fractions().items()}
    later = {"table": _ANY_TABLE, "test_fraction": 0.0, "split": "scaffold"}
    return {name: value for name, value in values.items() if name not in later or value != later[name]}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # standard output is the program's result


def _digest(identity: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()


def _cut(
    rows: Callable[[], Iterable[CutRow]], names: Sequence[str], work: epath.Path, settings: Settings
) -> dict[str, Any]:
    """Cuts the rows into chunks in the work folder, once; returns {"chunks", "rows", "examples", "found"}.

    examples: what all rows should give: as many as rows, or as labels in the property tasks.
    """
    done = work / "rows" / "done.json"
    if done.exists():
        return storage.read_json(done)
    (work / "rows").mkdir(parents=True, exist_ok=True)
    (work / "shards").mkdir(parents=True, exist_ok=True)
    found: list[list[str] | None] = [None] * len(names)
    first: list[list[tasks.Row]] = [[] for _ in names]
    counts = [0] * len(names)
    chunks = 0

    def checked() -> Iterator[tuple[CutRow, str]]:
        """The rows and their JSON; what is wrong with a file as a whole ends the job here."""
        for cut in watched(rows(), desc="reading", unit=" rows"):
            counts[cut.file] += 1
            known = found[cut.file]
            if known is not None and isinstance(cut.row, dict) and not cut.row.keys() <= set(known):
                found[cut.file] = [*known, *(name for name in cut.row if name not in known)]  # rows of JSON may differ
            if len(first[cut.file]) < _FIRST_ROWS and not isinstance(cut.row, BadRow):
                first[cut.file].append(cut.row)
                if len(first[cut.file]) == 1:
                    found[cut.file] = list(cut.row)
                    reader = _reader(settings, names[cut.file], list(cut.row))
                    if reader.columns:
                        _say(f"{names[cut.file]}: reads {', '.join(map(repr, reader.columns))} of {list(cut.row)}")
                if len(first[cut.file]) == _FIRST_ROWS:
                    _check_molecules(settings, names[cut.file], first[cut.file])
            yield cut, cut.to_json() + "\n"

    for chunk, lines in enumerate(_batched(checked(), settings.rows_per_shard)):
        storage.write_text(shards.rows_path(work, chunk), "".join(lines))
        chunks = chunk + 1
    examples = 0
    for name, columns, few, count in zip(names, found, first, counts, strict=True):
        if columns is None:
            raise DataError(f"{name}: none of its rows can be read")
        if len(few) < _FIRST_ROWS:
            _check_molecules(settings, name, few)
        examples += count * _reader(settings, name, columns).examples
    result = {"chunks": chunks, "rows": sum(counts), "examples": examples, "found": found}
    storage.write_text(done, json.dumps(result))
    return result


_FIRST_ROWS = 100
"""Of each file, which tell whether its molecules would be overlooked."""


def _reader(settings: Settings, name: str, columns: Sequence[str]) -> tasks.RowReader:
    try:
        return tasks.TASKS[settings.task](columns, settings.columns)
    except DataError as error:
        raise DataError(f"{name}: {error}") from None


def _check_molecules(settings: Settings, name: str, rows: Sequence[tasks.Row]) -> None:
    column = tasks.overlooked_molecules(settings.task, rows, settings.columns)
    if column is not None:
        raise DataError(
            f"{name}: no column is called smiles, but {column!r} holds molecules, which nothing would show; "
            f"give --smiles_column {column}"
        )


def _batched(rows: Iterable[tuple[CutRow, str]], size: int) -> Iterator[list[str]]:
    """The lines of each chunk: so many rows, fewer where they are long."""
    lines: list[str] = []
    length = 0
    for _, line in rows:
        lines.append(line)
        length += len(line)
        if len(lines) == size or length > CHUNK_BYTES:
            yield lines
            lines, length = [], 0
    if lines:
        yield lines


def _run(job: ShardJob, chunks: list[int], rows: int, runner: Runner) -> None:
    """Makes the shards of the chunks that are not done yet."""
    if not chunks:
        return
    if runner.beam_runner:
        _run_beam(job, chunks, runner)
        return
    with watched(total=rows, desc="featurising", unit=" rows") as progress:
        workers = [shards.Worker() for _ in range(min(runner.num_workers, len(chunks)))]
        shards.process_chunks(job, chunks, workers, progress.update)
        for worker in workers:
            worker.close()


def _run_beam(job: ShardJob, chunks: list[int], runner: Runner) -> None:
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions

        from data_pipeline.beam_shards import MakeShard
    except ImportError:
        raise DataError("--beam_runner needs Apache Beam: pip install 'llamo_jax[beam]'") from None
    print(f"{len(chunks)} chunks on {runner.beam_runner}", flush=True)
    with beam.Pipeline(runner=runner.beam_runner, options=PipelineOptions(list(runner.beam_options))) as pipeline:
        numbers = pipeline | beam.Create(chunks) | beam.Reshuffle()
        numbers | beam.ParDo(MakeShard(job.to_json()))


def _finish(
    partial: epath.Path,
    manifest: dict[str, Any],
    settings: Settings,
    make_shards: Callable,
    chunks: Iterable[int],
    vocabulary: GraphVocabulary,
    tokenizer: TextTokenizer | None,
) -> dict[str, Any]:
    """Makes the shards, and of them the TFDS dataset, sizes, tokenizer, lengths and manifest; removes the work."""
    import tensorflow_datasets as tfds

    from data_pipeline.builders import BUILDERS

    for content in partial.iterdir():
        if content.name not in ("work", FINISHED, UNFINISHED, storage.LOCK):
            storage.remove(content)
    # before anything else, so that rows that nobody could use are reported before TFDS complains of an empty data set
    work, _ = make_shards(None)
    reasons: Counter[str] = Counter()
    parts: dict[str, list[np.ndarray]] = {}
    tokens: dict[str, list[np.ndarray]] = {}
    missing: Counter[str] = Counter()
    content = hashlib.sha256()
    digests: list[np.ndarray] = []
    with (partial / "rejected.jsonl").open("w") as file:
        for chunk in chunks:
            outcome = shards.read_outcome(work, chunk) or {}
            for split, rows in sorted(outcome["sizes"].items()):
                content.update(storage.digest(shards.shard_path(work, chunk, split)).encode())
                parts.setdefault(split, []).append(np.array(rows, np.int32))
                if split in outcome.get("lengths", {}):
                    tokens.setdefault(split, []).append(np.array(outcome["lengths"][split], np.int32))
            missing.update(outcome.get("missing", {}))
            digests.append(np.array(outcome.get("digests", []), np.uint64))
            for row in outcome["rejected"]:
                row = shards.Rejected(*row)
                reasons[row.reason] += 1
                file.write(json.dumps(row._asdict()) + "\n")
    accounted = reasons.total() + missing.total() + sum(len(group) for some in parts.values() for group in some)
    if manifest["examples"] not in (None, accounted):  # None: rows that an earlier version has cut
        raise AssertionError(f"{manifest['examples']} examples were read, {accounted} are accounted for")
    sizes = {split: np.concatenate(parts[split]) for split in sorted(parts)}
    if not sizes:
        without = f"; labels that are empty: {dict(missing)}" if missing else ""
        raise DataError(f"none of the {manifest['rows']} rows could be used: {dict(reasons)}{without}")
    builder = BUILDERS[settings.task](
        make_shards=make_shards,
        vocabulary=vocabulary,
        data_dir=os.fspath(partial / "records"),
        file_format=settings.file_format,
    )
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints a "downloading" line; nothing is downloaded
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    storage.remove(partial / "records" / "downloads")  # TFDS makes it, though nothing is downloaded
    table = io.BytesIO()  # a zip file, which goes back and forth; object stores cannot
    np.savez(table, allow_pickle=False, **sizes)
    (partial / "sizes.npz").write_bytes(table.getvalue())
    manifest |= {
        "task": settings.task,
        "file_format": settings.file_format,
        "vocabulary": list(vocabulary),
        "records": os.path.relpath(builder.data_dir, partial),
        "splits": {split: len(rows) for split, rows in sizes.items()},
        "rejected": dict(reasons.most_common()),
        "missing": dict(missing.most_common()),
        "duplicates": sum(map(len, digests)) - len(np.unique(np.concatenate([np.zeros(0, np.uint64), *digests]))),
        "without_molecule": sum(int(np.sum(rows[:, 0] == 0)) for rows in sizes.values()),
        "fingerprint": content.hexdigest(),
    }
    storage.write_text(partial / "manifest.json", json.dumps(manifest))
    for split, lengths_of in tokens.items():
        if tokenizer is not None and len(lengths_of) == len(parts[split]):  # the workers have measured them all
            lengths.keep(partial, split, _encoder(tokenizer, settings), np.concatenate(lengths_of))
    manifest |= _lengths(partial, settings, sizes, tokenizer)
    storage.write_text(partial / "manifest.json", json.dumps(manifest, indent=2) + "\n")
    storage.remove(work)
    return manifest


def _lengths(
    partial: epath.Path, settings: Settings, sizes: Mapping[str, np.ndarray], tokenizer: TextTokenizer | None
) -> dict[str, Any]:
    """The data set's tokenizer, token lengths in its prompts, and what the lengths suggest."""
    if settings.file_format != "array_record":
        return {"lengths": lengths.summary(sizes, {}), "suggested": None}
    readers = {split: RecordReader(partial, split) for split in sizes}
    if tokenizer is None:
        sample = readers.get("train") or next(iter(readers.values()))
        conversations: list[Conversation] = []
        for start in range(0, min(len(sample), TOKENIZER_SAMPLE), 1024):
            stop = min(start + 1024, len(sample))
            conversations += [record.conversation for record in sample.fetch(range(start, stop))]
        lines = [line for c in conversations for line in prompt_lines(c.smiles, [m.content for m in c.messages])]
        tokenizer = train_tokenizer(lines, VOCAB_SIZE)
    tokenizer.save(os.fspath(partial / "tokenizer"))
    encoder = _encoder(tokenizer, settings)
    split = "train" if "train" in sizes else next(iter(sizes))
    measured = {split: lengths.token_lengths(reader, encoder) for split, reader in readers.items()}
    return {
        "prompt": {"style": settings.prompt_style, "show_smiles": settings.show_smiles},
        "lengths": lengths.summary(sizes, measured),
        "suggested": lengths.suggest_budgets(sizes[split], measured[split], settings.tokens_per_row),
    }


def _prompt(settings: Settings) -> tuple[str, int, str, bool] | None:
    """For workers, which can measure lengths where the tokenizer is there already and not trained on the records."""
    if settings.tokenizer is None:
        return None
    return settings.tokenizer, settings.num_graph_tokens, settings.prompt_style, settings.show_smiles


def _encoder(tokenizer: TextTokenizer, settings: Settings) -> PromptEncoder:
    return PromptEncoder(
        tokenizer, settings.num_graph_tokens, style=settings.prompt_style, show_smiles=settings.show_smiles
    )


def _unique_names(paths: Sequence[Path]) -> list[str]:
    """File names, with as much of their folders as tells them apart."""
    if len({path.name for path in paths}) == len(paths):
        return [path.name for path in paths]
    return [os.fspath(path) for path in paths]


def _fingerprint(path: Path) -> dict[str, Any]:
    return {"name": path.name, "bytes": storage.as_path(path).stat().length, "sha256": storage.digest(path)}
