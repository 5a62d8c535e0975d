"""A model's variables as a flat mapping from path to array: the one form that checkpoints and converters share.

A path joins attribute names with "/", for example "language_model/layers/query/kernel".
"""

from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from llamo_jax import sharding

Arrays = dict[str, Array]
"""Path → array."""


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


def abstract_arrays(
    variables: nnx.State, frozen_dtype: str, mesh: Mesh, trained: Mapping[str, bool]
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape, dtype and sharding of every variable of a `LLaMo`: its language model's frozen weights in `frozen_dtype`.

    trained: path → whether it is trained; paths that are absent are frozen. Integers (quantised values) keep their
    dtype, and so does what is marked with `keep_dtype`.
    """
    shardings = {
        path_name(path): variable.get_value()
        for path, variable in _variables(sharding.parameter_shardings(variables, mesh))
    }
    result = {}
    for path, variable in _variables(variables):
        name = path_name(path)
        # trained weights are float32 masters: AdamW's updates are smaller than half a bfloat16 step (golden quirk 2)
        frozen = name.startswith("language_model/") and not trained.get(name, False)
        castable = jnp.issubdtype(variable.dtype, jnp.floating) and not variable.get_metadata().get("keep_dtype")
        dtype = jnp.dtype(frozen_dtype) if frozen and castable else variable.dtype
        result[name] = jax.ShapeDtypeStruct(variable.shape, dtype, sharding=shardings[name])
    return result


def _variables(state: nnx.State) -> Iterator[tuple[tuple, nnx.Variable]]:
    return iter(nnx.to_flat_state(state))
