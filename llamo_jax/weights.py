"""Weights in files: arrays that are read when and where they are needed, and safetensors files written piece by piece.

`Weights` are arrays by name; an array may be numpy's, JAX's or a `Lazy` one: all have a shape, a dtype and can be
indexed. Nothing here ever holds more than one matrix in host memory, however large the model is.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from data_pipeline import storage
from data_pipeline.errors import DataError
from llamo_jax.parameters import Arrays, WeightsError, check_names

Weights = Mapping[str, Any]
"""Name → array: numpy's, JAX's or `Lazy`."""

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


_LONG = 1 << 30
"""Bytes from which on writing shows its progress."""


class Lazy:
    """An array that is read or computed when it is indexed; the base of the kinds below."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def __getitem__(self, index: Any) -> np.ndarray:
        raise NotImplementedError

    @property
    def T(self) -> "Lazy":  # noqa: N802 - as in numpy
        """The transpose of a matrix."""
        return Transposed(self)


class StoredTensor(Lazy):
    """A tensor of a safetensors file; the file is open only while it is read."""

    def __init__(self, path: Path, name: str, shape: Sequence[int], dtype: np.dtype):
        self.path, self.name, self.shape, self.dtype = path, name, tuple(shape), dtype

    def __getitem__(self, index: Any) -> np.ndarray:
        # opened anew each time: a mapping of a 14 GB file that stays open counts as this process' memory
        with _opened(self.path) as file:
            tensor = file.get_slice(self.name)[index] if self.shape else file.get_tensor(self.name)
        return finite(self.name, tensor)


class Transposed(Lazy):
    """The transpose of a matrix."""

    def __init__(self, matrix: Any):
        self._matrix = matrix
        self.shape, self.dtype = tuple(matrix.shape[::-1]), np.dtype(matrix.dtype)

    def __getitem__(self, index: Any) -> np.ndarray:
        # rows of the transpose are columns of the matrix: only the part that is asked for is read
        rows, columns = _slices(index, 2)
        return np.asarray(self._matrix[columns, rows]).T


class Stacked(Lazy):
    """Equally shaped arrays, one for each layer, along a new leading axis; float32 if their dtypes differ."""

    def __init__(self, layers: Sequence[Any]):
        self._layers = list(layers)
        shapes = {tuple(layer.shape) for layer in layers}
        if len(shapes) != 1:
            raise WeightsError(f"layers of different shapes {sorted(shapes)}")
        dtypes = {np.dtype(layer.dtype) for layer in layers}
        self.shape = (len(self._layers), *shapes.pop())
        self.dtype = dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)

    def __getitem__(self, index: Any) -> np.ndarray:
        if isinstance(index, int):
            return np.asarray(self._layers[index][...]).astype(self.dtype, copy=False)
        layers, *rest = _slices(index, len(self.shape))
        inner = tuple(rest) or ...
        return np.stack([np.asarray(layer[inner]).astype(self.dtype, copy=False) for layer in self._layers[layers]])


class Layer(Lazy):
    """One layer of an array that is stacked along its leading axis."""

    def __init__(self, stack: Any, layer: int):
        self._stack, self._layer = stack, layer
        self.shape, self.dtype = tuple(stack.shape[1:]), np.dtype(stack.dtype)

    def __getitem__(self, index: Any) -> np.ndarray:
        return np.asarray(self._stack[self._layer])[index]


def stack(layers: Sequence[Any]) -> Any:
    """Arrays along a new leading axis: lazily if they are lazy."""
    return Stacked(layers) if any(isinstance(layer, Lazy) for layer in layers) else np.stack(layers)


def _slices(index: Any, ndim: int) -> tuple[slice, ...]:
    """An index of slices (or Ellipsis) as one slice for each axis."""
    given = () if index is ... else index if isinstance(index, tuple) else (index,)
    return (*given, *(slice(None),) * (ndim - len(given)))


def finite(name: str, array: np.ndarray) -> np.ndarray:
    """The array itself; raises WeightsError, with its name, if it holds a NaN or an infinity."""
    if array.dtype.kind not in "biu" and not np.isfinite(array).all():
        raise WeightsError(f"{name}: holds NaN or infinity")
    return array


# Reading


def read_file(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file; raises WeightsError if it is none or cut short."""
    with _opened(path) as file:
        tensors = {}
        for name in file.keys():  # noqa: SIM118 - not a mapping
            part = file.get_slice(name)
            dtype = _DTYPES.get(part.get_dtype())
            if dtype is None:
                raise WeightsError(f"{path}: {name} has the dtype {part.get_dtype()}, known are {', '.join(_DTYPES)}")
            tensors[name] = StoredTensor(path, name, part.get_shape(), dtype)
        return tensors


def read_folder(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of `model.safetensors`, or of the files that `model.safetensors.index.json` lists.

    Raises WeightsError if a file is missing, outside the folder, or does not hold what the index says.
    """
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        single = folder / "model.safetensors"
        if single.is_file():
            return read_file(single)
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        hint = f"; it holds pickled weights ({pickled[0]}): save them with safe_serialization=True" if pickled else ""
        raise WeightsError(f"{folder}: no model.safetensors and no model.safetensors.index.json{hint}")
    try:
        weight_map = storage.read_json(index).get("weight_map")
    except DataError as error:
        raise WeightsError(f"{index}: not an index of weights (no weight_map): {error}") from None
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise WeightsError(f"{index}: not an index of weights (no weight_map of names)")
    files = sorted(set(weight_map.values()))
    tensors: dict[str, StoredTensor] = {}
    for name in files:
        if Path(name).name != name or "\0" in name:
            raise WeightsError(f"{index}: {name!r} is not in the folder of the index; refused")
        found = read_file(folder / name)
        expected = {tensor for tensor, file in weight_map.items() if file == name}
        try:
            check_names(expected, found)
        except WeightsError as error:
            raise WeightsError(f"{folder / name}: not what the index says: {error}") from None
        tensors |= found
    return tensors


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if storage.is_remote(path):
        raise WeightsError(f"{path}: safetensors files are mapped into memory, which needs a local copy of the folder")
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except SafetensorError as error:
        if storage.is_lfs_pointer(path):
            raise WeightsError(
                f"{path} is a Git LFS pointer, not the weights; run git lfs pull in its repository"
            ) from None
        cut = _cut_tensors(path)
        reason = f"cut short in the tensors {cut}" if cut else str(error)
        raise WeightsError(f"{path}: not a readable safetensors file: {reason}") from None


def _cut_tensors(path: Path) -> list[str]:
    """Names of tensors that a safetensors file announces and does not hold whole."""
    try:
        with path.open("rb") as file:
            start = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(start))
        size = path.stat().st_size - 8 - start
        return sorted(name for name, t in header.items() if name != "__metadata__" and t["data_offsets"][1] > size)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, MemoryError, OverflowError):
        return []


def place(weights: Weights, abstract: Mapping[str, jax.ShapeDtypeStruct]) -> Arrays:
    """Arrays on the shards that `abstract` (path → shape, dtype, sharding) asks for; each process reads its own alone.

    Raises WeightsError if names or shapes differ, or a value is not finite.
    """
    check_names(set(abstract), weights)
    arrays: Arrays = {}
    for name, spec in abstract.items():
        source = weights[name]
        if tuple(source.shape) != spec.shape:
            raise WeightsError(f"{name}: expected shape {spec.shape}, got {tuple(source.shape)}")

        def part(index: tuple[slice, ...] | None, source: Any = source, dtype: Any = spec.dtype) -> np.ndarray:
            return np.asarray(source[index or ...]).astype(dtype)

        arrays[name] = jax.make_array_from_callback(spec.shape, spec.sharding, part)
    return arrays


# Writing


def write_file(path: epath.Path | Path, weights: Weights) -> None:
    """Writes a safetensors file; on several hosts all must call it, and the first one writes.

    A stacked array is fetched and written one layer at a time: it need not fit in memory. (The safetensors library
    can only write arrays that are in memory all at once.)
    """
    names = {dtype: name for name, dtype in _DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, array in weights.items():
        dtype = np.dtype(array.dtype)
        end = offset + int(np.prod(array.shape, dtype=np.int64)) * dtype.itemsize
        header[name] = {"dtype": names[dtype], "shape": list(array.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the first tensor to 8 bytes
    with contextlib.ExitStack() as stack:
        file = None
        if jax.process_index() == 0:
            partial = stack.enter_context(storage.writing(path))
            file = stack.enter_context(partial.open("wb"))
        bar = tqdm(total=offset, desc=path.name, unit="B", unit_scale=True, disable=offset < _LONG or not file)
        stack.enter_context(bar)
        if file:
            file.write(len(text).to_bytes(8, "little") + text)
        for name, array in weights.items():
            for piece in _pieces(array):
                finite(name, piece)
                bar.update(piece.nbytes)
                if file:
                    file.write(np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data)


def _pieces(array: Any) -> Iterator[np.ndarray]:
    if len(array.shape) > 2:  # stacked layers; a single matrix is the largest piece that is ever on the host
        for layer in range(array.shape[0]):
            yield _on_host(array[layer])
    else:
        yield _on_host(array[...])


def _on_host(array: Any) -> np.ndarray:
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)
