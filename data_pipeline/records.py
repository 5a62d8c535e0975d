"""Records: conversations with the arrays of their molecules, stored as `tf.train.Example`s by TFDS.

A prepared folder holds `records/` (TFDS, ArrayRecord or TFRecord), `sizes.npz`, `manifest.json`, `rejected.jsonl` and
`tokenizer/`. It appears under its name only when it is complete.
"""

import contextlib
import functools
import hashlib
import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from data_pipeline import storage
from data_pipeline.batch import GraphArrays
from data_pipeline.conversation import Conversation, Message
from data_pipeline.errors import DataError
from data_pipeline.guard import tried
from data_pipeline.molecule import FEATURE_VERSION, featurize
from data_pipeline.record_files import RecordFiles
from data_pipeline.vocabulary import MOLECULES, MOTIF_FEATURES, GraphVocabulary

FORMAT_VERSION = "2.0.0"


class Record(NamedTuple):
    """A conversation and the arrays of its molecules, in the same order."""

    conversation: Conversation
    graphs: tuple[GraphArrays, ...]


def without_last_message(record: Record) -> Record:
    """The record as a prompt for its last message."""
    return record._replace(conversation=record.conversation._replace(messages=record.conversation.messages[:-1]))


def featurized(conversation: Conversation) -> Record:
    """The conversation with canonical SMILES and its molecules' arrays; raises InvalidMoleculeError."""
    molecules = [_featurize(smiles) for smiles in conversation.smiles]
    canonical = tuple(molecule.smiles for molecule in molecules)
    return Record(conversation._replace(smiles=canonical), tuple(GraphArrays(*m[1:]) for m in molecules))


def featurized_safely(conversation: Conversation) -> Record:
    """As `featurized`, for SMILES from outside, which may bring RDKit down: see data_pipeline.guard."""
    for smiles in conversation.smiles:
        tried(featurize, smiles)
    return featurized(conversation)


# Several conversations in a row, and both tasks of the embedded corpus, are often about the same molecule; 8192 are
# those of eight chunks.
_featurize = functools.lru_cache(maxsize=8192)(featurize)


def read_manifest(folder: str | os.PathLike) -> dict[str, Any]:
    """The manifest of a prepared folder; raises DataError if it is not one, or was made by another version."""
    path = storage.as_path(folder) / "manifest.json"
    if not path.exists():
        raise DataError(f"{folder} is not a prepared dataset (no manifest.json); make one with data_pipeline.prepare")
    manifest = storage.read_json(path)
    with storage.understood(path):
        manifest["splits"] = {str(name): int(count) for name, count in manifest["splits"].items()}
        manifest |= {name: str(manifest[name]) for name in ("task", "records", "file_format")}
    for key, current in (("format_version", FORMAT_VERSION), ("feature_version", FEATURE_VERSION)):
        if manifest.get(key, current) != current:
            raise DataError(f"{folder} has {key} {manifest[key]}, this program needs {current}; prepare it again")
    return manifest


def data_fingerprint(folder: str | os.PathLike) -> str:
    """Equal for prepared folders with the same records, whatever they are called and wherever they lie."""
    manifest = read_manifest(folder)
    if "fingerprint" in manifest:  # the records' bytes, in order
        return manifest["fingerprint"]
    # prepared before fingerprints were kept: what decided the records, and their sizes
    decided = {name: manifest.get(name) for name in ("settings", "sources", "splits", "rejected")}
    sizes = storage.digest(storage.as_path(folder) / "sizes.npz")
    return hashlib.sha256(json.dumps([decided, sizes], sort_keys=True, default=str).encode()).hexdigest()


class RecordReader:
    """Random access to the records of one split; any thread may read.

    sizes: int32[C, 4], molecules, atoms, edges and motifs of each of the C records.
    """

    def __init__(self, folder: str | os.PathLike, split: str):
        import tensorflow_datasets as tfds

        manifest = read_manifest(folder)
        if split not in manifest.get("splits", {}):
            raise DataError(f"{folder} has no split {split!r}; it has {sorted(manifest.get('splits', {}))}")
        if manifest["file_format"] != "array_record":
            raise DataError(
                f"{folder} is in {manifest['file_format']} format, which has no random access; "
                "prepare it with --file_format=array_record"
            )
        self.folder = storage.as_path(folder)
        self.split = split
        with storage.understood(self.folder / "manifest.json"):
            self.vocabulary = GraphVocabulary(*map(tuple, manifest["vocabulary"]))
        try:
            with (self.folder / "sizes.npz").open("rb") as file, np.load(file, allow_pickle=False) as sizes:
                self.sizes: np.ndarray = sizes[split]
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise DataError(f"{folder}/sizes.npz is damaged ({error}); prepare the data again") from None
        with self._whole():
            info = tfds.builder_from_directory(os.fspath(self.folder / manifest["records"])).info
            self._features = info.features
            shards = info.splits[split]
            # not TFDS's own data source: it keeps every file open that it has read from
            self._files = RecordFiles(list(map(storage.as_path, shards.filepaths)), shards.shard_lengths)

    def __len__(self) -> int:
        return len(self.sizes)

    def fetch(self, indices: Iterable[int]) -> list[Record]:
        """The records at these positions; raises DataError if they are damaged."""
        with self._whole():
            serialized = self._files.fetch(list(indices))
            return [_from_example(self._features.deserialize_example_np(each)) for each in serialized]

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        """What TFDS, ArrayRecord and protocol buffers say of damaged files, in types of their own, in one line."""
        try:
            yield
        except (DataError, MemoryError):
            raise
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise DataError(f"{self.folder}: its records are damaged ({reason}); prepare the data again") from None


def read_records(folder: str | os.PathLike, split: str) -> list[Record]:
    """All records of one split, in the order of the files; raises DataError if there is no such split."""
    reader = RecordReader(folder, split)
    return reader.fetch(range(len(reader)))


@functools.cache
def record_features(vocabulary: GraphVocabulary = MOLECULES) -> Any:
    """The `tfds.features.FeaturesDict` of records; arrays are stored as bytes, which read fastest."""
    import tensorflow_datasets as tfds

    def array(*shape: int | None, dtype: Any) -> Any:
        return tfds.features.Tensor(shape=shape, dtype=dtype, encoding=tfds.features.Encoding.BYTES)

    return tfds.features.FeaturesDict(
        {
            # JSON: {"smiles": [...], "messages": [[role, content], ...], "graph_at": null or [message, character]}
            "conversation": tfds.features.Text(),
            # The molecules' arrays one after the other, and each molecule's (atoms, edges, motifs).
            "sizes": array(None, 3, dtype=np.int32),
            "atoms": array(None, len(vocabulary.nodes), dtype=index_dtype(vocabulary.nodes)),
            "bonds": array(None, len(vocabulary.edges), dtype=index_dtype(vocabulary.edges)),
            "senders": array(None, dtype=np.int32),
            "receivers": array(None, dtype=np.int32),
            "motifs": array(None, MOTIF_FEATURES, dtype=np.uint8),
        }
    )


def serialize(record: Record, vocabulary: GraphVocabulary = MOLECULES) -> bytes:
    """The record as a serialised `tf.train.Example` with `record_features(vocabulary)`."""
    from tensorflow_datasets.proto import tf_example_pb2

    sizes = [(len(graph.atoms), len(graph.bonds), len(graph.motifs)) for graph in record.graphs]
    columns = [np.concatenate(column) for column in zip(*record.graphs, _no_graph(vocabulary), strict=True)]
    serialized = record_features(vocabulary).serialize_example(
        {
            "conversation": json.dumps(record.conversation._asdict()),
            "sizes": np.array(sizes, np.int32).reshape(-1, 3),
            **dict(zip(GraphArrays._fields, columns, strict=True)),
        }
    )
    # TFDS leaves the order of the features to chance; equal records shall be equal bytes.
    return tf_example_pb2.Example.FromString(serialized).SerializeToString(deterministic=True)


def record_size(record: Record) -> tuple[int, int, int, int]:
    """Molecules, atoms, edges and motifs of a record."""
    graphs = record.graphs
    atoms, edges, motifs = (sum(len(graph[i]) for graph in graphs) for i in (0, 1, 4))
    return len(graphs), atoms, edges, motifs


def _no_graph(vocabulary: GraphVocabulary) -> GraphArrays:
    return GraphArrays(
        np.zeros((0, len(vocabulary.nodes)), index_dtype(vocabulary.nodes)),
        np.zeros((0, len(vocabulary.edges)), index_dtype(vocabulary.edges)),
        np.zeros(0, np.int32),
        np.zeros(0, np.int32),
        np.zeros((0, MOTIF_FEATURES), np.uint8),
    )


def index_dtype(cardinalities: Sequence[int]) -> np.dtype:
    """The smallest unsigned type that holds all indices of these features."""
    return np.min_scalar_type(max(cardinalities, default=1) - 1)


def _from_example(example: Mapping[str, Any]) -> Record:
    content = json.loads(example["conversation"])
    messages = tuple(Message(role, text) for role, text in content["messages"])
    graph_at = content["graph_at"] and tuple(content["graph_at"])
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
    return Record(Conversation(tuple(content["smiles"]), messages, graph_at), graphs)
