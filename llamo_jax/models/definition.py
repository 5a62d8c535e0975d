"""Building a model's definition, and creating its arrays already sharded."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from llamo_jax import parameters, sharding
from llamo_jax.config import ModelConfig
from llamo_jax.models.llamo import LLaMo
from llamo_jax.parameters import Arrays

DecodingArrays = Mapping[str, Array | tuple[Array, ...]]
"""Path → array, or a tuple with one array for each layer; see `for_decoding`."""

_LAYERS = ("language_model", "layers")


@dataclasses.dataclass(frozen=True, eq=False)
class ModelDefinition:
    """A model without values: its graph definition and abstract variables; equal to itself alone, so hashable."""

    graphdef: nnx.GraphDef
    variables: nnx.State

    @functools.cached_property
    def transposed(self) -> "ModelDefinition":
        """The same model with its language model's matrices as [out, in]; see `for_decoding`."""

        def transposed(model: LLaMo) -> LLaMo:
            model.language_model.transpose()
            return model

        model = nnx.merge(self.graphdef, self.variables)
        with nnx.logical_axis_rules(sharding.RULES):  # inside of jax.set_mesh, eval_shape looks them up
            return ModelDefinition(*nnx.split(nnx.eval_shape(transposed, model)))

    def names(self) -> set[str]:
        """Paths of all arrays."""
        return {parameters.path_name(path) for path, _ in nnx.to_flat_state(self.variables)}

    def merge(self, *arrays: DecodingArrays) -> LLaMo:
        """The model with the given variables; inside jit, so that nothing is copied but layers that are apart."""
        merged = {
            name: jnp.stack(value) if isinstance(value, tuple) else value
            for part in arrays
            for name, value in part.items()
        }
        return nnx.merge(self.graphdef, parameters.unflatten(self.variables, merged))

    def layer_states(self, arrays: DecodingArrays) -> list[nnx.State] | None:
        """The states of the decoder's layers, one by one, if `arrays` holds them so; see `for_decoding`."""
        layers = [(path, variable) for path, variable in nnx.to_flat_state(self.variables) if path[:2] == _LAYERS]
        found = [(path[2:], variable, arrays[parameters.path_name(path)]) for path, variable in layers]
        if not all(isinstance(values, tuple) for _, _, values in found):
            return None
        return [
            nnx.from_flat_state([(path, variable.replace(values[layer])) for path, variable, values in found])
            for layer in range(len(found[0][2]))
        ]


def for_decoding(definition: ModelDefinition, arrays: Arrays, mesh: Mesh) -> tuple[ModelDefinition, DecodingArrays]:
    """The model as decoding reads it fastest on these devices.

    On a single CPU device, matrices are transposed (see few_rows) and the decoder's layers come one by one: a slice of
    a stacked array is a copy, which takes a third of the time of a token.
    """
    if mesh.size > 1 or mesh.devices.flat[0].platform != "cpu":
        return definition, arrays
    layers = parameters.path_name((*_LAYERS, ""))
    result: dict[str, Array | tuple[Array, ...]] = {}
    for name, array in arrays.items():
        is_matrix = name.startswith("language_model/") and name.endswith("/kernel")
        if name.startswith(layers):
            result[name] = tuple(layer.T if is_matrix else layer for layer in array)
        else:
            result[name] = array.T if is_matrix else array
    return definition.transposed, result


def define_model(config: ModelConfig) -> ModelDefinition:
    """The model without values; nothing is allocated."""
    with nnx.logical_axis_rules(sharding.RULES):  # inside of jax.set_mesh, eval_shape looks them up
        return ModelDefinition(*nnx.split(nnx.eval_shape(lambda: LLaMo(config, rngs=nnx.Rngs(0)))))


def statistics_names(definition: ModelDefinition) -> set[str]:
    """Paths of BatchNorm's running statistics."""
    variables = nnx.to_flat_state(definition.variables)
    return {parameters.path_name(path) for path, variable in variables if isinstance(variable, nnx.BatchStat)}


def initial_arrays(config: ModelConfig, abstract: Mapping[str, Any], seed: int) -> Arrays:
    """Freshly drawn arrays for the names in `abstract`, created on their shards."""

    def create() -> Arrays:
        arrays = parameters.flatten(nnx.state(LLaMo(config, rngs=nnx.Rngs(seed))))
        return {name: arrays[name].astype(spec.dtype) for name, spec in abstract.items()}

    return jax.jit(create, out_shardings={name: spec.sharding for name, spec in abstract.items()})()
