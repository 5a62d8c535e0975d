"""The embedded corpus as a prepared data set: no download, for tests, demonstrations and the preset `tiny`."""

import json
import os
import random
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from etils import epath

from data_pipeline import corpus, describe, storage
from data_pipeline.errors import BusyError
from data_pipeline.jobs import VOCAB_SIZE, Runner, Settings, job_folder, prepare_rows, prompt_lines
from data_pipeline.molecule import FEATURE_VERSION, parse_smiles
from data_pipeline.progress import watched
from data_pipeline.records import FORMAT_VERSION
from data_pipeline.shards import CutRow
from data_pipeline.tokenizer import TextTokenizer, load_tokenizer, train_tokenizer


def prepare_embedded(cache_dir: str | Path, runner: Runner | None = None) -> epath.Path:
    """The embedded corpus below `cache_dir`, prepared if it is missing: description/, instruction/, tokenizer/.

    Several processes may ask for it at the same time: one prepares it, the others wait.
    """
    folder = (
        epath.Path(cache_dir) / f"embedded-{corpus.CORPUS_VERSION}-features{FEATURE_VERSION}-format{FORMAT_VERSION}"
    )
    waiting = False
    while not (folder / "manifest.json").exists():
        try:
            _prepare(folder, runner or Runner())
        except BusyError:
            if not waiting:
                print(f"waiting for another process that prepares {folder}", file=sys.stderr)
            waiting = True
            time.sleep(0.5)
    return folder


def _prepare(folder: epath.Path, runner: Runner) -> None:
    sources = [{"name": "embedded corpus", "version": corpus.CORPUS_VERSION}]
    with job_folder(folder, {"sources": sources}) as partial:
        if (folder / "manifest.json").exists():
            raise BusyError(f"another process has prepared {folder}")
        texts = _embedded_texts()
        if not (partial / "tokenizer").exists():
            saved = partial / "tokenizer.new"
            _embedded_tokenizer(texts).save(os.fspath(saved))
            saved.rename(partial / "tokenizer")
        tokenizer = load_tokenizer(os.fspath(partial / "tokenizer"))
        splits = {}
        for task, rows in texts.items():
            settings = Settings(task="instruction", tokens_per_row=256)
            manifest = prepare_rows(rows.__iter__, [task], sources, partial / task, settings, runner, tokenizer)
            splits[task] = manifest["splits"]
        storage.write_text(
            partial / "manifest.json", json.dumps({"sources": sources, "splits": splits}, indent=2) + "\n"
        )


_EMBEDDED_WRITERS = {"description": describe.description_messages, "instruction": describe.conversation_messages}


def _embedded_texts() -> dict[str, list[CutRow]]:
    """The corpus' conversations about its molecules, by task."""
    texts: dict[str, list[CutRow]] = {task: [] for task in _EMBEDDED_WRITERS}
    molecules = corpus.build_corpus()
    progress = watched(molecules, desc="writing descriptions", unit=" molecules")
    for number, molecule in enumerate(progress, start=1):
        facts = describe.facts_of(parse_smiles(molecule.smiles))
        for task, write in _EMBEDDED_WRITERS.items():
            messages = [message._asdict() for message in write(facts, random.Random(f"{task} {molecule.smiles}"))]
            row = {"smiles": molecule.smiles, "messages": messages}
            texts[task].append(CutRow(0, number, molecule.split, row))
    return texts


def _embedded_tokenizer(texts: Mapping[str, Sequence[CutRow]]) -> TextTokenizer:
    """Trained on the training split's texts, as they stand in prompts."""
    lines = []
    for cut in (cut for task in texts.values() for cut in task if cut.split == "train"):
        if isinstance(cut.row, dict):
            lines += prompt_lines((cut.row["smiles"],), [message["content"] for message in cut.row["messages"]])
    return train_tokenizer(lines, VOCAB_SIZE)
