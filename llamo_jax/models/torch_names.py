"""Which torch tensors are which of our arrays: tables that are read in both directions.

Torch's linear weights are [out, in], ours [in, out]; layers are separate tensors there and one stacked array here. A
module's table stands in the module's file; here are the kinds of entries that tables are made of.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from llamo_jax import sharding
from llamo_jax.parameters import WeightsError, path_name
from llamo_jax.weights import Layer, Weights, stack


class Rule(NamedTuple):
    """Some torch tensors that become some of our arrays, or of one layer of them."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    to_ours: Callable[[list], Sequence[Any]]
    to_theirs: Callable[[list], Sequence[Any]]
    layer: int | None = None


def from_torch(rules: Iterable[Rule], tensors: Weights, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Our arrays from torch tensors; `shapes` is what the model wants, by path.

    Raises WeightsError, naming the tensors, if some are missing, left over, or of another shape.
    """
    rules = list(rules)
    # What torch should hold follows from our shapes through the table's other direction, so both are checked. A
    # broadcast zero has a shape and takes no memory.
    blank = {path: np.broadcast_to(np.float32(0), shape) for path, shape in shapes.items()}
    expected = {name: tuple(tensor.shape) for name, tensor in to_torch(rules, blank).items()}
    missing, unexpected = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    if missing or unexpected:
        raise WeightsError(f"tensors do not fit the model; missing: {missing}; unexpected: {unexpected}")
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            raise WeightsError(f"{name}: expected shape {shape}, got {tuple(tensors[name].shape)}")
    arrays: dict[str, Any] = {}
    layers: dict[str, list] = {}
    for rule in rules:
        for path, array in zip(rule.ours, rule.to_ours([tensors[name] for name in rule.theirs]), strict=True):
            if rule.layer is None:
                arrays[path] = array
            else:
                layers.setdefault(path, []).append(array)
    # layers in the order of the rules, which tables list from the first to the last
    return arrays | {path: stack(found) for path, found in layers.items()}


def to_torch(rules: Iterable[Rule], arrays: Weights) -> dict[str, Any]:
    """Torch tensors from our arrays; the inverse of `from_torch`. Raises WeightsError if an array is missing."""
    rules = list(rules)
    missing = sorted({path for rule in rules for path in rule.ours} - set(arrays))
    if missing:
        raise WeightsError(f"the table of torch names wants arrays that the model lacks: {missing}")
    tensors: dict[str, Any] = {}
    for rule in rules:
        ours = [arrays[path] if rule.layer is None else Layer(arrays[path], rule.layer) for path in rule.ours]
        tensors |= dict(zip(rule.theirs, rule.to_theirs(ours), strict=True))
    return tensors


def variable_shapes(make: Callable[[], Any]) -> dict[str, tuple[int, ...]]:
    """Shape by path of every variable of the module that `make` builds; nothing is allocated."""
    variables = nnx.to_flat_state(nnx.state(sharding.without_values(make)))
    return {path_name(path): tuple(variable.shape) for path, variable in variables}


def rules_of(config: Any, shapes: Mapping[str, tuple[int, ...]], *args: Any) -> list[Rule]:
    """The table of a module's configuration; our own paths, of which `shapes` has all, where it has none."""
    return config.torch_names(*args) or [same(path, path) for path in shapes]


def same(theirs: str, ours: str) -> Rule:
    """The same array under another name."""
    return Rule((theirs,), (ours,), list, list)


def transposed(theirs: str, ours: str) -> Rule:
    """A matrix that lies the other way round."""
    return Rule((theirs,), (ours,), lambda found: [found[0].T], lambda found: [found[0].T])


def linear(theirs: str, ours: str, bias: bool = True) -> list[Rule]:
    """`torch.nn.Linear`: a matrix, and its bias if it has one."""
    kernel = transposed(f"{theirs}.weight", f"{ours}/kernel")
    return [kernel, same(f"{theirs}.bias", f"{ours}/bias")] if bias else [kernel]


def batch_norm(theirs: str, ours: str) -> list[Rule]:
    """`torch.nn.BatchNorm1d`, its running statistics included, its counter of batches left out."""
    names = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    return [same(f"{theirs}.{theirs_}", f"{ours}/{ours_}") for theirs_, ours_ in names.items()]


def tables(theirs: Sequence[str], ours: str, sizes: Sequence[int]) -> Rule:
    """Embedding tables, one a feature, that are one array here."""
    starts = np.cumsum(sizes)[:-1]

    def joined(found: list) -> Sequence[Any]:
        return [np.concatenate([np.asarray(table[...]) for table in found])]

    return Rule(tuple(theirs), (ours,), joined, lambda found: np.split(np.asarray(found[0][...]), starts))


def attention(theirs: str) -> list[Rule]:
    """torch.nn.MultiheadAttention: the weights of query, key and value are one array, in this order."""
    parts = ("query", "key", "value")
    # torch's [3 · F, F] is cut into three [F, F], each of which is [out, in] there and [in, out] here
    weights = Rule(
        (f"{theirs}.in_proj_weight",),
        tuple(f"{part}/kernel" for part in parts),
        lambda found: [part.T for part in np.split(np.asarray(found[0][...]), 3)],
        lambda found: [np.concatenate([np.asarray(part[...]).T for part in found])],
    )
    biases = Rule(
        (f"{theirs}.in_proj_bias",),
        tuple(f"{part}/bias" for part in parts),
        lambda found: np.split(np.asarray(found[0][...]), 3),
        lambda found: [np.concatenate([np.asarray(part[...]) for part in found])],
    )
    return [weights, biases, *linear(f"{theirs}.out_proj", "out")]


def in_layer(layer: int, rules: list[Rule], prefix: str = "layers/") -> list[Rule]:
    """The entries of one layer of a stacked module, whose paths start with `prefix`."""
    return [rule._replace(ours=tuple(prefix + path for path in rule.ours), layer=layer) for rule in rules]
