"""How long records are: token lengths in their prompts, percentiles, and the row budgets that they suggest."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from data_pipeline import storage
from data_pipeline.batch import RowSize
from data_pipeline.packing import pack_rows
from data_pipeline.progress import watched
from data_pipeline.prompt import PromptEncoder
from data_pipeline.records import Record, RecordReader

SIZE_NAMES = ("molecules", "atoms", "edges", "motifs")
"""The columns of `RecordReader.sizes`."""

PERCENTILES = (0, 5, 25, 50, 75, 95, 99, 99.9, 100)
_CHUNK = 1024
_UNLIMITED = np.iinfo(np.int32).max
_SAMPLE = 50_000  # conversations whose packing tells the budgets


def token_lengths(reader: RecordReader, encoder: PromptEncoder) -> np.ndarray:
    """int32[C, 3] of every record: tokens, the end of its last graph token, the position of its first target.

    A record without targets has its first target beyond every length; one that cannot become a prompt has no tokens.
    Kept on disk beside the records, where that is possible, by the fingerprint of tokenizer and prompt style.
    """
    path = _path(reader.folder, reader.split, encoder)
    if path.exists():
        kept = _kept(path)
        if kept is not None and kept.shape == (len(reader), 3) and kept.dtype == np.int32:
            return kept
    lengths = np.empty((len(reader), 3), np.int32)
    with watched(total=len(reader), desc=f"measuring {reader.split}", unit=" records", delay=2) as progress:
        for start in range(0, len(reader), _CHUNK):
            stop = min(start + _CHUNK, len(reader))
            lengths[start:stop] = measured(reader.fetch(range(start, stop)), encoder)
            progress.update(stop - start)
    keep(reader.folder, reader.split, encoder, lengths)
    return lengths


def _kept(path: epath.Path) -> np.ndarray | None:
    """Lengths that were measured before; None where the file is damaged: it is a cache, and they are measured again."""
    try:
        with path.open("rb") as file:
            return np.load(file, allow_pickle=False)
    except (OSError, EOFError, ValueError):
        return None


def measured(records: list[Record], encoder: PromptEncoder) -> np.ndarray:
    """int32[C, 3] of these records; see token_lengths."""
    lengths = np.empty((len(records), 3), np.int32)
    for index, conversation in enumerate(encoder.encode_each(records)):
        if conversation is None:
            lengths[index] = (0, 0, _UNLIMITED)
            continue
        shown = np.flatnonzero(conversation.molecule >= 0)
        target = np.flatnonzero(conversation.is_target[1:])
        lengths[index] = (
            len(conversation.tokens),
            shown[-1] + 1 if len(shown) else 0,
            target[0] + 1 if len(target) else _UNLIMITED,
        )
    return lengths


def _path(folder: epath.Path, split: str, encoder: PromptEncoder) -> epath.Path:
    return folder / "lengths" / f"{split}-{encoder.fingerprint()}.npy"


def keep(folder: epath.Path, split: str, encoder: PromptEncoder, lengths: np.ndarray) -> None:
    """Leaves the lengths where `token_lengths` looks for them, unless the data set is read-only."""
    path = _path(folder, split, encoder)
    try:
        path.parent.mkdir(exist_ok=True)
        with storage.writing(path) as partial, partial.open("wb") as file:
            np.save(file, lengths)
    except OSError:
        return  # a read-only data set: measured again next time


def summary(sizes: Mapping[str, np.ndarray], tokens: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Percentiles by split and quantity: {"train": {"atoms": {"50": 23, ...}, ...}, ...}."""
    result: dict[str, Any] = {}
    for split, table in sizes.items():
        columns = dict(zip(SIZE_NAMES, table.T, strict=True))
        if split in tokens:
            columns["tokens"] = tokens[split][:, 0]
        result[split] = {
            name: {
                f"{p:g}": int(value) for p, value in zip(PERCENTILES, np.percentile(column, PERCENTILES), strict=True)
            }
            for name, column in columns.items()
        }
    return result


def suggest_budgets(sizes: np.ndarray, lengths: np.ndarray, tokens_per_row: int) -> dict[str, int]:
    """Row budgets as the fields of config.data: what 99.9 % of the rows need that are filled by tokens alone.

    sizes: int32[C, 4] and lengths: int32[C, 3] of a split's records, see `Source`. Records without a token, which the
    prompt style refuses, stand in no row; if there are no others, rows need nothing.
    """
    written = np.flatnonzero(lengths[:, 0])[:_SAMPLE]
    length = np.minimum(lengths[written, 0] - 1, tokens_per_row)
    table = np.concatenate([length[:, None], sizes[written]], axis=1)
    capacity = RowSize(tokens_per_row, *[_UNLIMITED] * len(SIZE_NAMES))
    rows = pack_rows(table, capacity, np.random.default_rng(0).permutation(len(table)))
    used = np.add.reduceat(table[rows.order], rows.starts[:-1], axis=0) if len(table) else table.sum(0, keepdims=True)
    needed = np.percentile(used, 99.9, axis=0, method="higher").astype(int)
    names = ("tokens_per_row", *(f"{name}_per_row" for name in SIZE_NAMES))
    return dict(zip(names, (tokens_per_row, *needed[1:].tolist()), strict=True))
