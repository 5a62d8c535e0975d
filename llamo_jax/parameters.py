"""A model's variables as a flat mapping from path to array: the one form that checkpoints and converters share.

A path joins attribute names with "/", for example "language_model/layers/query/kernel".
"""

from collections.abc import Iterator, Mapping

from flax import nnx
from jax import Array


class WeightsError(ValueError):
    """Weights that do not fit a model: missing, unexpected or mis-shaped; the message lists the names."""


def path_name(path: tuple) -> str:
    """The "/"-joined name of a path in an `nnx.State`."""
    return "/".join(map(str, path))


def flatten(state: nnx.State) -> dict[str, Array]:
    """Path → array for every variable of a state, in the state's order."""
    return {path_name(path): variable[...] for path, variable in _variables(state)}


def unflatten(state: nnx.State, arrays: Mapping[str, Array]) -> nnx.State:
    """`state` with the given arrays instead of its own; raises WeightsError unless names and shapes agree.

    Dtypes may differ: modules compute in the dtype of their inputs, whatever their weights are stored in.
    """
    names = {path_name(path) for path, _ in _variables(state)}
    check_names(names, arrays)
    for path, variable in _variables(state):
        name = path_name(path)
        if arrays[name].shape != variable.shape:
            raise WeightsError(f"{name}: expected shape {variable.shape}, got {arrays[name].shape}")
    return nnx.from_flat_state(
        [(path, variable.replace(arrays[path_name(path)])) for path, variable in _variables(state)]
    )


def check_names(expected: set[str], given: Mapping[str, object]) -> None:
    """Raises WeightsError with two sorted lists if the names differ."""
    missing, unexpected = sorted(expected - set(given)), sorted(set(given) - expected)
    if missing or unexpected:
        raise WeightsError(f"weights do not fit the model; missing: {missing}; unexpected: {unexpected}")


def _variables(state: nnx.State) -> Iterator[tuple[tuple, nnx.Variable]]:
    return iter(nnx.to_flat_state(state))
