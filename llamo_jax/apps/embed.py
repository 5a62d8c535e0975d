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
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from data_pipeline import storage
from data_pipeline.command_line import program
from data_pipeline.errors import DataError
from data_pipeline.logs import quiet_libraries
from data_pipeline.progress import watched
from llamo_jax.apps.molecule_files import AT_A_TIME, MoleculeRow, in_batches, read_molecules, told

FORMATS = (".npz", ".parquet")
MOST_CHARACTERS = 2**28  # of all SMILES in a .npz, at four bytes each: a gigabyte


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
        rows, rejected, _ = read_molecules(options.input, options.smiles_column)
        longest = max(len(each.smiles) for each in rows)
        if options.output.suffix == ".npz" and len(rows) * longest > MOST_CHARACTERS:
            raise DataError(
                f"{options.output}: numpy gives every SMILES the room of the longest ({longest:,} characters), too "
                f"much for {len(rows):,}; choose a name that ends in .parquet"
            )
        runs.use_compilation_cache()
        assistant = Assistant.load(options.checkpoint)
        parts = [
            assistant.embed([each.smiles for each in batch], what=options.what)
            for batch in watched(list(in_batches(rows)), desc="embeddings", unit=f" x {AT_A_TIME}")
        ]
        _write(options.output, rows, np.concatenate(parts))
    except runs.UserError as error:
        sys.exit(f"llamo_jax.apps.embed: {error}")
    print(f"{options.output}: {len(rows):,} molecules, float32{[*parts[0].shape[1:]]} each{told(rejected)}")


def _write(path: epath.Path, rows: Sequence[MoleculeRow], vectors: np.ndarray) -> None:
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
