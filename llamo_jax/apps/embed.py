"""Molecules of a file as vectors, for search, clustering or another model.

    python -m llamo_jax.apps.embed --checkpoint runs/stage1-tiny --input molecules.csv --output vectors.npz
    python -m llamo_jax.apps.embed --checkpoint runs/stage1-tiny --input molecules.smi --output vectors.parquet \
        --what levels

--what: `pooled` (the mean of the graph tokens, [D]; default), `graph_tokens` (what the language model is shown,
[Q, D]), or `levels` (of each of the encoder's levels the mean over the atoms, [L, F]). The output keeps the file's
order: `row` (from 1), `smiles` and `embedding` (float32; in Parquet a flat list, and the shape in the schema's
metadata). Rows that are no molecule are left out, and told by reason.
"""

import argparse
import itertools
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from data_pipeline import storage, tasks
from data_pipeline.command_line import program
from data_pipeline.errors import DataError
from data_pipeline.files import BadRow, read_rows
from data_pipeline.guard import tried
from data_pipeline.logs import quiet_libraries
from data_pipeline.molecule import InvalidMoleculeError, featurize
from data_pipeline.progress import watched

AT_A_TIME = 1024
"""Molecules that are featurised before they are embedded."""

FORMATS = (".npz", ".parquet")


@program("llamo_jax.apps.embed")
def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="llamo_jax.apps.embed", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, type=epath.Path, metavar="DIR", help="a run's workdir")
    parser.add_argument("--input", required=True, type=Path, metavar="FILE")
    parser.add_argument("--output", required=True, type=epath.Path, metavar="FILE.npz|.parquet")
    parser.add_argument("--what", choices=("pooled", "graph_tokens", "levels"), default="pooled")
    parser.add_argument("--smiles_column", help="default: guessed")
    options = parser.parse_args(arguments)
    quiet_libraries()
    from llamo_jax import runs
    from llamo_jax.apps.assistant import Assistant

    try:
        if options.output.suffix not in FORMATS:
            raise DataError(f"{options.output}: the name ends in {' or '.join(FORMATS)}")
        storage.check_new(options.output)
        rows, rejected = _molecules(options.input, options.smiles_column)
        runs.use_compilation_cache()
        assistant = Assistant.load(options.checkpoint)
        parts = [
            assistant.embed([smiles for _, smiles in batch], what=options.what)
            for batch in watched(list(_batches(rows)), desc="embeddings", unit=f" x {AT_A_TIME}")
        ]
        _write(options.output, rows, np.concatenate(parts))
    except runs.UserError as error:
        sys.exit(f"llamo_jax.apps.embed: {error}")
    print(f"{options.output}: {len(rows):,} molecules, float32{[*parts[0].shape[1:]]} each")
    for reason, count in rejected.most_common(10):
        print(f"  left out {count:>8,}  {reason}")


def _molecules(path: Path, column: str | None) -> tuple[list[tuple[int, str]], Counter[str]]:
    """(row, SMILES) of every row that is one molecule, and why the others are not; raises DataError if none is."""
    found: list[tuple[int, str]] = []
    rejected: Counter[str] = Counter()
    for number, row in enumerate(watched(read_rows(path), desc="molecules", unit=" rows"), start=1):
        if isinstance(row, BadRow):
            rejected[row.reason] += 1
            continue
        if column is None:
            column = tasks.smiles_column(list(row))
        elif column not in row:
            raise DataError(f"{path}: no column {column!r}; found {list(row)}")
        smiles = row.get(column)
        try:
            if not isinstance(smiles, str) or not smiles.strip():
                raise InvalidMoleculeError(str(smiles), f"empty {column}")
            tried(featurize, smiles.strip())
        except InvalidMoleculeError as error:
            rejected[error.reason] += 1
            continue
        found.append((number, smiles.strip()))
    if not found:
        raise DataError(f"{path}: no molecule in it ({dict(rejected.most_common(3))})")
    return found, rejected


def _batches(rows: list[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    source = iter(rows)
    while batch := list(itertools.islice(source, AT_A_TIME)):
        yield batch


def _write(path: epath.Path, rows: list[tuple[int, str]], vectors: np.ndarray) -> None:
    numbers, smiles = (list(column) for column in zip(*rows, strict=True))
    with storage.writing(path) as partial, partial.open("wb") as file:
        if path.suffix == ".npz":
            np.savez(file, row=np.array(numbers), smiles=np.array(smiles), embedding=vectors)
        else:
            _write_parquet(file, numbers, smiles, vectors)


def _write_parquet(file: Any, numbers: list[int], smiles: list[str], vectors: np.ndarray) -> None:
    import pyarrow
    from pyarrow import parquet

    flat = vectors.reshape(len(vectors), -1)
    lists = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(flat.ravel()), flat.shape[1])
    table = pyarrow.table({"row": numbers, "smiles": smiles, "embedding": lists})
    shape = ",".join(map(str, vectors.shape[1:]))
    parquet.write_table(table.replace_schema_metadata({"embedding_shape": shape}), file)


if __name__ == "__main__":
    main()
