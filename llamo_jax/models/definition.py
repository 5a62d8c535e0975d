"""Building a model's definition, and creating its arrays already sharded."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import AbstractMesh

from llamo_jax import parameters, sharding
from llamo_jax.models.config import ModelConfig
from llamo_jax.models.llamo import LLaMo
from llamo_jax.parameters import Arrays


@dataclasses.dataclass(frozen=True, eq=False)
class ModelDefinition:
    """A model without values: its graph definition and abstract variables; equal to itself alone, so hashable."""

    config: ModelConfig
    graphdef: nnx.GraphDef
    variables: nnx.State

    def names(self) -> set[str]:
        """Paths of all arrays."""
        return {parameters.path_name(path) for path, _ in nnx.to_flat_state(self.variables)}

    def merge(self, *arrays: Mapping[str, Array]) -> LLaMo:
        """The model with the given variables; inside jit, so that nothing is copied."""
        merged = {name: value for part in arrays for name, value in part.items()}
        return nnx.merge(self.graphdef, parameters.unflatten(self.variables, merged))


def define_model(config: ModelConfig) -> ModelDefinition:
    """The model without values; nothing is allocated.

    The same one for the same configuration and mesh: what was compiled for it is found again.
    """
    return _defined(config, sharding.current_mesh())


@functools.lru_cache(maxsize=16)
def _defined(config: ModelConfig, _mesh: AbstractMesh | None) -> ModelDefinition:
    return ModelDefinition(config, *nnx.split(sharding.without_values(lambda: LLaMo(config, rngs=nnx.Rngs(0)))))


def statistics_names(definition: ModelDefinition) -> set[str]:
    """Paths of BatchNorm's running statistics."""
    variables = nnx.to_flat_state(definition.variables)
    return {parameters.path_name(path) for path, variable in variables if isinstance(variable, nnx.BatchStat)}


def initial_arrays(config: ModelConfig, abstract: Mapping[str, Any], seed: int) -> Arrays:
    """Freshly drawn arrays for the names in `abstract`, created on their shards."""

    def create(seed: Array) -> Arrays:
        arrays = parameters.flatten(nnx.state(LLaMo(config, rngs=nnx.Rngs(jax.random.key(seed)))))
        return {name: arrays[name].astype(spec.dtype) for name, spec in abstract.items()}

    # one program for all seeds
    return jax.jit(create, out_shardings={name: spec.sharding for name, spec in abstract.items()})(np.uint32(seed))
