"""Torch files of molecules and texts, read with `weights_only=True` (extra `[convert]`).

Two layouts are known: plain Python (a list of records, or a mapping of columns), as LLaMo's instruction data; and the
(data, slices) pair of a PyTorch Geometric InMemoryDataset with string lists, as PubChem324k is distributed. The latter
needs no PyTorch Geometric: stand-ins for its containers are allowed by name, everything else is refused by torch.
"""

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_pipeline import storage
from data_pipeline.errors import DataError

_CONTAINERS = (
    "torch_geometric.data.data.Data",
    "torch_geometric.data.data.DataEdgeAttr",
    "torch_geometric.data.data.DataTensorAttr",
    "torch_geometric.data.storage.GlobalStorage",
)
_TEXT_COLUMNS = ("smiles", "text", "description", "instruction", "output", "messages", "cid", "id")


class _Container:
    """Stands in for any of `_CONTAINERS`: holds the pickled state and gives its mapping of columns."""

    def __new__(cls, *_: Any) -> "_Container":
        return super().__new__(cls)

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)

    def columns(self) -> Mapping[str, Any]:
        store = self.__dict__.get("_store", self)
        return store.__dict__.get("_mapping", store.__dict__)


def read_torch(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a torch file; raises DataError if torch is missing, refuses the file, or the layout is unknown."""
    check_archive(path)
    try:
        import torch
    except ImportError:
        raise DataError(f"{path}: reading .pt files needs torch: pip install 'llamo_jax[convert]'") from None
    try:
        with torch.serialization.safe_globals([(_Container, name) for name in _CONTAINERS]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises its own, pickle's and zip's errors
        raise DataError(f"{path}: torch refuses to load it safely ({str(error).splitlines()[0]})") from None
    if isinstance(content, tuple) and content and isinstance(content[0], _Container):
        content = content[0].columns()
    if isinstance(content, Mapping):
        content = _rows_of_columns(path, content)
    if not isinstance(content, list) or not all(isinstance(row, Mapping) for row in content):
        raise DataError(f"{path}: neither a list of records nor a mapping of columns")
    yield from map(dict, content)


def check_archive(path: Path) -> None:
    """Raises DataError if a torch file is empty, or unpacks to more than it is: torch stores without compressing."""
    if storage.as_path(path).stat().length == 0:
        raise DataError(f"{path} is empty")
    if not zipfile.is_zipfile(path):
        return  # torch's older layout
    with zipfile.ZipFile(path) as archive:
        packed = [member.filename for member in archive.infolist() if member.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise DataError(f"{path}: {packed[0]} in it is compressed, which torch never does; refused")


def _rows_of_columns(path: Path, columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Records from the columns that hold text; tensors (the graphs, which are computed anew) are left out."""
    lists = {name: column for name, column in columns.items() if isinstance(column, list | tuple)}
    known = {name: column for name, column in lists.items() if name.lower() in _TEXT_COLUMNS}
    if not known or len({len(column) for column in known.values()}) != 1:
        raise DataError(f"{path}: no text columns of equal length; found {sorted(map(str, columns))}")
    return [dict(zip(known, row, strict=True)) for row in zip(*known.values(), strict=True)]
