"""Building a model's definition, and creating its arrays already sharded."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from llamo_jax import parameters, sharding
from llamo_jax.config import ModelConfig
from llamo_jax.models import LLaMo
from llamo_jax.training.step import Arrays, ModelDefinition

LANGUAGE_MODEL = "language_model/"


def define_model(config: ModelConfig) -> ModelDefinition:
    """The model without values; nothing is allocated."""
    return ModelDefinition(*nnx.split(nnx.eval_shape(lambda: LLaMo(config, rngs=nnx.Rngs(0)))))


def statistics_names(definition: ModelDefinition) -> set[str]:
    """Paths of BatchNorm's running statistics."""
    variables = nnx.to_flat_state(definition.variables)
    return {parameters.path_name(path) for path, variable in variables if isinstance(variable, nnx.BatchStat)}


def abstract_arrays(
    definition: ModelDefinition, config: ModelConfig, mesh: Mesh, trained: Mapping[str, bool]
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape, dtype and sharding of every array: frozen weights of the language model in `frozen_dtype`.

    trained: path → whether it is trained; paths that are absent are frozen.
    """
    shardings = {
        parameters.path_name(path): variable.get_value()
        for path, variable in nnx.to_flat_state(sharding.parameter_shardings(definition.variables, mesh))
    }
    result = {}
    for path, variable in nnx.to_flat_state(definition.variables):
        name = parameters.path_name(path)
        frozen = name.startswith(LANGUAGE_MODEL) and not trained.get(name, False)
        dtype = jnp.dtype(config.frozen_dtype) if frozen else variable.dtype
        result[name] = jax.ShapeDtypeStruct(variable.shape, dtype, sharding=shardings[name])
    return result


def initial_arrays(config: ModelConfig, abstract: Mapping[str, Any], seed: int) -> Arrays:
    """Freshly drawn arrays for the names in `abstract`, created on their shards."""

    def create() -> Arrays:
        arrays = parameters.flatten(nnx.state(LLaMo(config, rngs=nnx.Rngs(seed))))
        return {name: arrays[name].astype(spec.dtype) for name, spec in abstract.items()}

    return jax.jit(create, out_shardings={name: spec.sharding for name, spec in abstract.items()})()
