"""Raw files to records on disk: featurise every molecule once, count and keep what is rejected.

python -m data_pipeline.prepare --task description --input train.tsv --output data/chebi20
python -m data_pipeline.prepare --embedded --output data     # the embedded corpus, as `make train` uses it
"""

import argparse
import contextlib
import hashlib
import json
import random
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from tqdm import tqdm

from data_pipeline import corpus, describe, readers, records
from data_pipeline.conversation import Conversation
from data_pipeline.logs import quiet_libraries
from data_pipeline.molecule import FEATURE_VERSION, InvalidMoleculeError, parse_smiles
from data_pipeline.tokenizer import TextTokenizer, train_tokenizer

EMBEDDED_VOCAB_SIZE = 2048


class Example(NamedTuple):
    """A conversation to prepare: `key` is unique and stable, `split` names where it goes."""

    key: str
    split: str
    conversation: Conversation


class Rejected(NamedTuple):
    """A row that was not prepared, and why; `reason` is counted, `detail` is for people."""

    key: str
    reason: str
    detail: str


def prepare(examples: Iterable[Example | Rejected], folder: Path, name: str, about: dict[str, Any]) -> dict[str, Any]:
    """Featurises examples and writes a prepared folder (see data_pipeline.records); returns its manifest.

    Raises DataError if no example is left, or the folder exists.
    """
    if folder.exists():
        raise records.DataError(f"{folder} exists already; remove it or choose another --output")
    prepared: dict[str, list[tuple[str, records.Record]]] = {}
    rejected: list[Rejected] = []
    for example in tqdm(examples, desc=f"featurising {name}", unit=" rows", disable=None):
        if isinstance(example, Rejected):
            rejected.append(example)
            continue
        try:
            record = records.featurized(example.conversation)
        except InvalidMoleculeError as error:
            rejected.append(Rejected(example.key, "invalid SMILES", str(error)))
            continue
        prepared.setdefault(example.split, []).append((example.key, record))
    if not prepared:
        raise records.DataError(f"none of the {len(rejected)} rows could be used: {_counts(rejected)}")
    splits = {split: (lambda rows=rows: iter(rows)) for split, rows in prepared.items()}
    with records.new_folder(folder) as partial:
        manifest = {
            "format_version": records.FORMAT_VERSION,
            "feature_version": FEATURE_VERSION,
            "records": records.write_records(partial, name, splits),
            "splits": {split: len(rows) for split, rows in prepared.items()},
            "rejected": _counts(rejected),
            **about,
        }
        lines = [json.dumps(row._asdict()) + "\n" for row in rejected]
        (partial / "rejected.jsonl").write_text("".join(lines))
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


def prepare_embedded(cache_dir: str | Path) -> Path:
    """The embedded corpus below `cache_dir`, prepared if it is missing: description/, instruction/, tokenizer/."""
    folder = Path(cache_dir) / f"embedded-{corpus.CORPUS_VERSION}-features{FEATURE_VERSION}"
    if (folder / "manifest.json").is_file():
        return folder
    with records.new_folder(folder) as partial:
        molecules = corpus.build_corpus()
        texts: dict[str, list[Example]] = {"description": [], "instruction": []}
        for number, molecule in enumerate(
            tqdm(molecules, desc="writing descriptions", unit=" molecules", disable=None)
        ):
            facts = describe.facts_of(parse_smiles(molecule.smiles))
            for task, write in _EMBEDDED_WRITERS.items():
                messages = write(facts, random.Random(f"{task} {molecule.smiles}"))
                conversation = Conversation((molecule.smiles,), tuple(messages))
                texts[task].append(Example(f"embedded:{number}", molecule.split, conversation))
        _embedded_tokenizer(texts).save(partial / "tokenizer")
        about = {"source": "embedded corpus", "corpus_version": corpus.CORPUS_VERSION}
        splits = {task: prepare(rows, partial / task, task, about)["splits"] for task, rows in texts.items()}
        (partial / "manifest.json").write_text(json.dumps({**about, "splits": splits}, indent=2) + "\n")
    return folder


_EMBEDDED_WRITERS = {"description": describe.description_messages, "instruction": describe.conversation_messages}


def _embedded_tokenizer(examples: dict[str, list[Example]]) -> TextTokenizer:
    """Trained on the training split's texts, as they stand in prompts."""
    texts = []
    for task in examples.values():
        for _, split, conversation in task:
            if split == "train":
                texts += [f"User: {smiles}" for smiles in conversation.smiles]
                texts += [f" {message.content}\nAssistant:" for message in conversation.messages]
    return train_tokenizer(texts, EMBEDDED_VOCAB_SIZE)


def examples_from_files(
    files: list[Path], task: str, columns: readers.Columns, split: str
) -> Iterator[Example | Rejected]:
    """The rows of the files as examples of one split; keys are "FILE NAME:ROW NUMBER"."""
    for path in files:
        reader = None
        for number, row in enumerate(readers.read_rows(path), start=1):
            key = f"{split}:{path.name}:{number}"
            try:
                reader = reader or readers.TASKS[task](list(row), columns)
            except records.DataError as error:
                raise records.DataError(f"{path}: {error}") from None
            try:
                yield Example(key, split, reader(row))
            except readers.RowError as error:
                yield Rejected(key, error.reason, json.dumps(row))


def hold_out(examples: Iterable[Example | Rejected], fraction: float) -> Iterator[Example | Rejected]:
    """Moves about `fraction` of the examples to "validation", by the scaffold of their first molecule."""
    for example in examples:
        if isinstance(example, Example) and _scaffold_position(example.conversation) < fraction:
            example = example._replace(split="validation")
        yield example


def _scaffold_position(conversation: Conversation) -> float:
    """A number in [0, 1) that depends on the molecule's scaffold alone; on the SMILES where there is no scaffold."""
    text = conversation.smiles[0] if conversation.smiles else conversation.messages[0].content
    with contextlib.suppress(ValueError):  # RDKit refuses the SMILES; featurising reports it
        text = corpus.murcko_scaffold(text) or text
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def _counts(rejected: list[Rejected]) -> dict[str, int]:
    return dict(Counter(row.reason for row in rejected).most_common())


def _fingerprint(path: Path) -> dict[str, Any]:
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see --help\n")


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = _Parser(prog="data_pipeline.prepare", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--task", choices=sorted(readers.TASKS))
    parser.add_argument("--input", nargs="+", type=Path, metavar="FILE", help=".tsv, .csv or .jsonl, for training")
    parser.add_argument("--validation_input", nargs="+", type=Path, default=[], metavar="FILE")
    parser.add_argument(
        "--validation_fraction", type=float, default=0.05, help="held out by scaffold, without --validation_input"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="must not exist yet")
    parser.add_argument("--smiles_column", help="default: guessed")
    parser.add_argument("--text_column", help="default: guessed")
    parser.add_argument("--embedded", action="store_true", help="prepare the embedded corpus instead of files")
    options = parser.parse_args(arguments)
    if not options.embedded and not (options.task and options.input):
        parser.error("--task and --input are required")
    quiet_libraries()
    try:
        if options.embedded:
            print(prepare_embedded(options.output))
            return
        columns = readers.Columns(options.smiles_column, options.text_column)
        examples: Iterable[Example | Rejected] = examples_from_files(options.input, options.task, columns, "train")
        if options.validation_input:
            held_out = examples_from_files(options.validation_input, options.task, columns, "validation")
            examples = [*examples, *held_out]
        else:
            examples = hold_out(examples, options.validation_fraction)
        about = {
            "task": options.task,
            "sources": [_fingerprint(f) for f in (*options.input, *options.validation_input) if f.is_file()],
        }
        manifest = prepare(examples, options.output, options.task, about)
    except records.DataError as error:
        sys.exit(f"data_pipeline.prepare: {error}")
    print(f"{options.output}: {manifest['splits']}; rejected: {manifest['rejected'] or 'none'}")


if __name__ == "__main__":
    main()
