"""Records on disk: conversations with the arrays of their molecules, written and read through TFDS (ArrayRecord).

A prepared folder holds `records/` (TFDS), `manifest.json`, `rejected.jsonl` and, for the embedded corpus,
`tokenizer/`. It appears under its name only when it is complete.
"""

import contextlib
import functools
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipeline.batch import GraphArrays
from data_pipeline.conversation import Conversation, Message
from data_pipeline.molecule import featurize
from data_pipeline.vocabulary import ATOM_CARDINALITIES, BOND_CARDINALITIES, MOTIF_FEATURES

FORMAT_VERSION = "1.0.0"


class DataError(ValueError):
    """Input or prepared data that cannot be used; the message says what is wrong and what to do."""


class Record(NamedTuple):
    """A conversation and the arrays of its molecules, in the same order."""

    conversation: Conversation
    graphs: tuple[GraphArrays, ...]


def featurized(conversation: Conversation) -> Record:
    """The conversation with canonical SMILES and its molecules' arrays; raises InvalidMoleculeError."""
    molecules = [_featurize(smiles) for smiles in conversation.smiles]
    canonical = tuple(molecule.smiles for molecule in molecules)
    return Record(conversation._replace(smiles=canonical), tuple(GraphArrays(*m[1:]) for m in molecules))


# Several conversations in a row, and both tasks of the embedded corpus, are often about the same molecule.
_featurize = functools.lru_cache(maxsize=8192)(featurize)


def read_manifest(folder: str | os.PathLike) -> dict[str, Any]:
    """The manifest of a prepared folder; raises DataError if the folder is not one."""
    path = Path(folder) / "manifest.json"
    if not path.is_file():
        raise DataError(f"{folder} is not a prepared dataset (no manifest.json); make one with data_pipeline.prepare")
    return json.loads(path.read_text())


def read_records(folder: str | os.PathLike, split: str) -> list[Record]:
    """All records of one split, in the order of the files; raises DataError if there is no such split."""
    import tensorflow_datasets as tfds

    manifest = read_manifest(folder)
    if split not in manifest["splits"]:
        raise DataError(f"{folder} has no split {split!r}; it has {sorted(manifest['splits'])}")
    builder = tfds.builder_from_directory(str(Path(folder) / manifest["records"]))
    return [_from_example(example) for example in builder.as_data_source(split)]


RecordSource = Callable[[], Iterator[tuple[str, Record]]]
"""Yields (key, record) pairs; the keys of a split are distinct and give the order on disk."""


def write_records(folder: Path, name: str, splits: Mapping[str, RecordSource]) -> str:
    """Writes splits as a TFDS dataset below `folder`; returns its path relative to `folder`."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    builder = _builder_class(name)(data_dir=str(folder / "records"), file_format="array_record", splits=splits)
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints a "downloading" line; nothing is downloaded
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    return str(Path(builder.data_dir).relative_to(folder))


class new_folder:  # noqa: N801 - reads as a verb: `with new_folder(path) as partial:`
    """A context in which `path`'s content is written elsewhere; on success it appears at `path` in one step."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.partial = self.path.with_name(f".{self.path.name}.partial-{os.getpid()}")

    def __enter__(self) -> Path:
        try:
            self.partial.mkdir(parents=True)
        except OSError as error:
            raise DataError(f"cannot write to {self.path.parent}: {error.strerror}") from None
        return self.partial

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            try:
                os.rename(self.partial, self.path)
            except OSError as error:  # another process was faster, or something else stands there
                if not (self.path / "manifest.json").is_file():
                    raise DataError(f"cannot create {self.path}: {error.strerror}") from None
        shutil.rmtree(self.partial, ignore_errors=True)


def _builder_class(name: str) -> type:
    import tensorflow_datasets as tfds

    # Not registered: several datasets are written in one process, and reading needs no builder class.
    with tfds.core.registered.skip_registration():

        class ConversationsBuilder(tfds.core.GeneratorBasedBuilder):
            """Conversations about molecules, with graphs and motifs precomputed."""

            VERSION = tfds.core.Version(FORMAT_VERSION)

            def __init__(self, *, splits: Mapping[str, RecordSource], **kwargs: Any):
                self._sources = splits
                super().__init__(**kwargs)

            def _info(self) -> tfds.core.DatasetInfo:
                return tfds.core.DatasetInfo(builder=self, features=_features(), description=type(self).__doc__)

            def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
                del dl_manager  # nothing is downloaded
                return {split: self._generate_examples(split) for split in self._sources}

            def _generate_examples(self, split: str) -> Iterator[tuple[str, dict]]:
                for key, record in self._sources[split]():
                    yield key, _to_example(record)

    ConversationsBuilder.name = name
    return ConversationsBuilder


def _features() -> Any:
    import tensorflow_datasets as tfds

    def array(*shape: int | None, dtype: type) -> Any:
        return tfds.features.Tensor(shape=shape, dtype=dtype)

    return tfds.features.FeaturesDict(
        {
            # JSON: {"smiles": [...], "messages": [[role, content], ...]}
            "conversation": tfds.features.Text(),
            # The molecules' arrays one after the other, and each molecule's (atoms, edges, motifs).
            "sizes": array(None, 3, dtype=np.int32),
            "atoms": array(None, len(ATOM_CARDINALITIES), dtype=np.uint8),
            "bonds": array(None, len(BOND_CARDINALITIES), dtype=np.uint8),
            "senders": array(None, dtype=np.int32),
            "receivers": array(None, dtype=np.int32),
            "motifs": array(None, MOTIF_FEATURES, dtype=np.uint8),
        }
    )


def _to_example(record: Record) -> dict[str, Any]:
    sizes = [(len(graph.atoms), len(graph.bonds), len(graph.motifs)) for graph in record.graphs]
    empty = GraphArrays(
        np.zeros((0, len(ATOM_CARDINALITIES)), np.uint8),
        np.zeros((0, len(BOND_CARDINALITIES)), np.uint8),
        np.zeros(0, np.int32),
        np.zeros(0, np.int32),
        np.zeros((0, MOTIF_FEATURES), np.uint8),
    )
    columns = [np.concatenate(column) for column in zip(*record.graphs, empty, strict=True)]
    text = json.dumps({"smiles": record.conversation.smiles, "messages": record.conversation.messages})
    return {
        "conversation": text,
        "sizes": np.array(sizes, np.int32).reshape(-1, 3),
        **dict(zip(GraphArrays._fields, columns, strict=True)),
    }


def _from_example(example: Mapping[str, Any]) -> Record:
    content = json.loads(example["conversation"])
    messages = tuple(Message(role, text) for role, text in content["messages"])
    ends = np.cumsum(example["sizes"], axis=0)[:-1]
    atoms, edges, motifs = ends.T if len(ends) else ((), (), ())
    parts = zip(
        np.split(example["atoms"], atoms),
        np.split(example["bonds"], edges),
        np.split(example["senders"], edges),
        np.split(example["receivers"], edges),
        np.split(example["motifs"], motifs),
        strict=True,
    )
    graphs = tuple(GraphArrays(*part) for part in parts)[: len(example["sizes"])]
    return Record(Conversation(tuple(content["smiles"]), messages), graphs)
