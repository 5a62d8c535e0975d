"""From cut rows to shards: what one worker does, and a process around it that a molecule may kill.

A job's rows are cut into numbered chunks (`rows/00012.jsonl` in the work folder). Whoever processes a chunk writes one
record file for each split and then, as the sign that the chunk is done, `shards/00012.json`. Every file appears
complete or not at all, and depends on the chunk alone: any number of workers, on one machine or many, gives the same.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import mmap
import os
import queue
import signal
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, NamedTuple

from etils import epath

from data_pipeline import storage
from data_pipeline.conversation import Conversation
from data_pipeline.corpus import murcko_scaffold
from data_pipeline.errors import WorkerError
from data_pipeline.examples import Refused, examples_of
from data_pipeline.files import BadRow
from data_pipeline.lengths import measured
from data_pipeline.molecule import flat
from data_pipeline.prompt import PromptEncoder
from data_pipeline.records import Record, record_features, record_size, serialize
from data_pipeline.subprocesses import start_module
from data_pipeline.tasks import TASKS, Columns, Missing
from data_pipeline.tokenizer import load_tokenizer

MAX_DETAIL = 10_000
"""Characters of a rejected row that are kept."""

_MAX_DEATHS = 3
"""How often a worker may be killed from outside (not by its row) before the job gives up."""

_REPORT_EVERY = 50  # rows
_ROW = struct.Struct("q")
_NO_ROW = -1


@dataclasses.dataclass(frozen=True)
class ShardJob:
    """What a worker must know; JSON through `to_json`, so that any process on any machine can take part.

    work: the work folder (a path, or an address such as gs://…). found: the columns of each input file.
    """

    work: str
    task: str
    columns: Columns
    found: tuple[tuple[str, ...], ...]
    names: tuple[str, ...]
    fractions: dict[str, float]  # held out, by split
    split: str  # scaffold or random
    file_format: str
    time_limit: float  # CPU seconds a row
    prompt: tuple[str, int, str, bool] | None = None
    """(tokenizer's folder, graph tokens, style, show_smiles), for which token lengths are measured; None: not here."""

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ShardJob":
        """The job of such a line."""
        values = json.loads(text)
        smiles, text, targets = values["columns"]
        values["columns"] = Columns(smiles, text, tuple(targets))
        values["found"] = tuple(map(tuple, values["found"]))
        values["names"] = tuple(values["names"])
        values["prompt"] = values["prompt"] and tuple(values["prompt"])
        return cls(**values)


class CutRow(NamedTuple):
    """A row on its way to a worker: its file and number there, its split (None: held out by scaffold) and content."""

    file: int
    number: int
    split: str | None
    row: dict[str, Any] | BadRow

    def to_json(self) -> str:
        """One line of JSON; values that JSON has no form for become text."""
        return json.dumps([self.file, self.number, self.split, self.row], default=str)

    @classmethod
    def from_json(cls, text: str) -> "CutRow":
        """The row of such a line."""
        file, number, split, row = json.loads(text)
        return cls(file, number, split, row if isinstance(row, dict) else BadRow(*row))


class Rejected(NamedTuple):
    """An example that was not prepared, and why; `reason` is counted, `detail` is for people."""

    key: str
    reason: str
    detail: str


def rows_path(work: epath.Path, chunk: int) -> epath.Path:
    """Where the cut rows of a chunk are."""
    return work / "rows" / f"{chunk:06}.jsonl"


def shard_path(work: epath.Path, chunk: int, split: str) -> epath.Path:
    """Where a chunk's records of one split are."""
    return work / "shards" / f"{split}-{chunk:06}"


def read_outcome(work: epath.Path, chunk: int) -> dict[str, Any] | None:
    """What `write_shard` left of a chunk: the fields of Shard but for the records; None if it is not done."""
    path = work / "shards" / f"{chunk:06}.json"
    if not path.exists():
        return None
    outcome = json.loads(path.read_text())
    done = all(shard_path(work, chunk, split).exists() for split in outcome["sizes"])
    return outcome if done else None


class Shard(NamedTuple):
    """The records of a chunk, by split: serialised, their sizes and token lengths (or {}).

    rejected: what could not be used; missing: labels that were empty, by column; digests: of molecules and texts,
    equal for records that say the same.
    """

    serialized: dict[str, list[bytes]]
    sizes: dict[str, list[tuple[int, int, int, int]]]
    rejected: list[Rejected]
    lengths: dict[str, list[list[int]]]
    missing: Counter[str]
    digests: list[int]


def make_shard(job: ShardJob, chunk: int, skip: dict[int, str], on_row: Callable[[int | None], None]) -> Shard:
    """The records of a chunk; `skip` gives a reason of rejection for rows, by index, that must not be tried.

    on_row: is told of every row before it is read, and with None that all are.
    """
    work = epath.Path(job.work)
    serialized, sizes, rejected, lengths, missing, digests = shard = Shard({}, {}, [], {}, Counter(), [])
    records: dict[str, list[Record]] = {}
    readers = [TASKS[job.task](found, job.columns) for found in job.found]
    for index, line in enumerate(rows_path(work, chunk).read_text().splitlines()):
        on_row(index)
        cut = CutRow.from_json(line)
        key = f"{job.names[cut.file]}:{cut.number}"
        detail = (cut.row.text if isinstance(cut.row, BadRow) else json.dumps(cut.row))[:MAX_DETAIL]
        row = BadRow(skip[index], detail) if index in skip else cut.row
        for found in examples_of(readers[cut.file], row):
            if isinstance(found, Missing):
                missing[found.column] += 1
                continue
            if isinstance(found, Refused):
                rejected.append(Rejected(key, found.reason, (found.detail or detail)[:MAX_DETAIL]))
                continue
            split = cut.split or _split_of(found.conversation, key, job)
            text = json.dumps([found.conversation.smiles, found.conversation.messages])
            digests.append(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))
            serialized.setdefault(split, []).append(serialize(found))
            sizes.setdefault(split, []).append(record_size(found))
            records.setdefault(split, []).append(found)
    on_row(None)
    if job.prompt is not None:
        encoder = _encoder(*job.prompt)
        lengths.update({split: measured(group, encoder).tolist() for split, group in records.items()})
    return shard


@functools.lru_cache(maxsize=1)
def _encoder(tokenizer: str, graph_tokens: int, style: str, show_smiles: bool) -> PromptEncoder:
    return PromptEncoder(load_tokenizer(tokenizer), graph_tokens, style=style, show_smiles=show_smiles)


def write_shard(work: epath.Path, chunk: int, shard: Shard, file_format: str) -> None:
    """Writes a chunk's records, then the sign that it is done."""
    for split, examples in shard.serialized.items():
        write_record_file(shard_path(work, chunk, split), examples, file_format)
    outcome = {name: getattr(shard, name) for name in ("sizes", "rejected", "lengths", "missing", "digests")}
    storage.write_text(work / "shards" / f"{chunk:06}.json", json.dumps(outcome))


def write_record_file(path: epath.Path, examples: list[bytes], file_format: str) -> None:
    """A file of serialised examples, complete or not at all."""
    from tensorflow_datasets.core import file_adapters

    adapter = file_adapters.ADAPTER_FOR_FORMAT[file_adapters.FileFormat.from_value(file_format)]
    with storage.writing(path) as partial, tempfile.TemporaryDirectory() as folder:
        local = epath.Path(folder) / "records"  # ArrayRecord writes to local disks only
        adapter.write_examples(local, enumerate(examples))
        storage.copy(local, partial)


SPLIT_VERSION = 2
"""Raised when conversations of these tasks come into other splits than before."""
SPLIT_CHANGED = ("forward_reaction", "molecule_generation", "instruction")


def _split_of(conversation: Conversation, key: str, job: ShardJob) -> str:
    """Training, or held out: by the scaffolds of its molecules (see `_families`), or by the row.

    Of several molecules, one that is held out is enough: the training set shows none of those.
    """
    if not any(job.fractions.values()):
        return "train"
    families = [f"row {key}"] if job.split == "random" else _families(conversation, job.task)
    # a hash, not a random number: the same scaffold is held out in every chunk, on every machine, in every run
    places = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64 for text in families]
    begin = 0.0
    found = dict.fromkeys(places, "train")
    for split, fraction in job.fractions.items():
        found |= {place: split for place in places if begin <= place < begin + fraction}
        begin += fraction
    order = ("test", *job.fractions, "train")  # what is held out for the last comes first
    return min(found.values(), key=order.index)


def _families(conversation: Conversation, task: str) -> list[str]:
    """What decides about a conversation's split: each molecule's scaffold, its flat SMILES where it has no ring.

    Of reactions the product's alone: a solvent is in half of them. Of generated molecules the answer's. Without a
    molecule all that is said: an answer may be but a yes.
    """
    molecules = conversation.smiles
    if task in ("forward_reaction", "molecule_generation"):
        molecules = (flat(conversation.messages[-1].content),)
    return [_family(smiles) for smiles in molecules] or [json.dumps(conversation.messages)]


def _family(text: str) -> str:
    with contextlib.suppress(ValueError, RuntimeError):  # not a molecule
        text = murcko_scaffold(text) or text
    return text


class Worker:
    """A process that makes shards. A row that kills it, or takes too long, is rejected and the chunk done again."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._closed = False
        # The process writes here which row it is at: the last word of one that dies.
        self._row_file = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self._row_file.truncate(_ROW.size)

    def run(self, job: ShardJob, chunk: int, on_rows: Callable[[int], None] = lambda count: None) -> None:
        """Processes a chunk; `on_rows` is told now and then how many rows are done.

        Raises WorkerError if the process cannot work at all.
        """
        skip: dict[int, str] = {}
        deaths = 0
        while True:
            self._set_row(_NO_ROW)
            process = self._process = self._process or _start_worker(self._row_file.fileno())
            assert process.stdin is not None
            assert process.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps({"job": job.to_json(), "chunk": chunk, "skip": skip}) + "\n")
                process.stdin.flush()
            for line in process.stdout:
                answer = json.loads(line)
                if "error" in answer:
                    raise WorkerError(answer["error"])
                on_rows(answer["rows"])
                if answer["done"]:
                    return
            # its output ended before it said "done": it died, and the row file tells at which row
            code = process.wait()
            self._process = None
            if self._closed:
                raise WorkerError("the job was given up")
            row = self._row() if self._row() not in skip else _NO_ROW
            if row != _NO_ROW and code == -signal.SIGPROF:
                skip[row] = f"took more than {job.time_limit:g} CPU seconds"
            elif row != _NO_ROW and code in (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS, -signal.SIGFPE):
                skip[row] = f"crashed RDKit (signal {-code})"
            elif row != _NO_ROW and code == 1:  # Python's own exit code; the traceback is on standard error
                skip[row] = "internal error"
            else:
                deaths += 1
                if deaths == _MAX_DEATHS:
                    raise WorkerError(f"workers of chunk {chunk} keep dying (exit code {code}): is memory short?")

    def close(self) -> None:
        """Ends the process; from another thread too, while it works."""
        self._closed = True
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
        self._row_file.close()

    def _row(self) -> int:
        self._row_file.seek(0)
        return _ROW.unpack(self._row_file.read(_ROW.size))[0]

    def _set_row(self, row: int) -> None:
        self._row_file.seek(0)
        self._row_file.write(_ROW.pack(row))
        self._row_file.flush()


def process_chunks(
    job: ShardJob, chunks: Sequence[int], workers: Sequence[Worker], on_rows: Callable[[int], Any]
) -> None:
    """Divides chunks among workers on this machine; `on_rows` is told of rows as they are done."""
    idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def work(chunk: int) -> None:
        reported = 0

        def report(count: int) -> None:
            nonlocal reported
            on_rows(max(0, count - reported))  # a chunk that is done again counts its rows once
            reported = max(count, reported)

        worker = idle.get()
        try:
            worker.run(job, chunk, report)
        finally:
            idle.put(worker)

    with ThreadPoolExecutor(len(workers)) as pool:
        futures = [pool.submit(work, chunk) for chunk in chunks]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in workers:
                worker.close()  # what still runs ends with its process
            raise


def _start_worker(row_file: int) -> subprocess.Popen[str]:
    return start_module("data_pipeline.shards", str(row_file), pass_fds=(row_file,))


def _serve(row_file: int) -> None:
    """The worker process: a task a line on standard input, answers as JSON lines on standard output."""
    parent = os.getppid()
    current_row = mmap.mmap(row_file, _ROW.size)
    record_features()  # its imports shall not count as the first row's time
    with os.fdopen(os.dup(1), "w", buffering=1) as channel:
        os.dup2(2, 1)  # whatever a library prints must not be taken for an answer
        for line in sys.stdin:
            task = json.loads(line)
            job = ShardJob.from_json(task["job"])
            rows = 0

            def on_row(index: int | None, limit: float = job.time_limit) -> None:
                nonlocal rows
                if index is None:  # lengths of a whole chunk are no row's time
                    signal.setitimer(signal.ITIMER_PROF, 0)
                    return
                rows = index + 1
                if os.getppid() != parent:
                    os._exit(1)
                if index and index % _REPORT_EVERY == 0:
                    channel.write(json.dumps({"rows": index, "done": False}) + "\n")
                _ROW.pack_into(current_row, 0, index)
                # The signal's default action ends the process, also inside RDKit, which Python could not interrupt.
                signal.setitimer(signal.ITIMER_PROF, limit)

            skip = {int(index): reason for index, reason in task["skip"].items()}
            try:
                shard = make_shard(job, task["chunk"], skip, on_row)
                write_shard(epath.Path(job.work), task["chunk"], shard, job.file_format)
                answer: dict[str, Any] = {"rows": rows, "done": True}
            except OSError as error:
                answer = {"error": f"cannot write to {job.work}: {error.strerror or error}"}
            channel.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
