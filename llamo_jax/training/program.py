"""What a run computes with, before any value exists: shapes, shardings, and the jitted steps."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from data_pipeline.batch import BatchShape, RowSize
from llamo_jax import parameters, sharding
from llamo_jax.config import ConfigError
from llamo_jax.models import quantization
from llamo_jax.models.definition import ModelDefinition, define_model, statistics_names
from llamo_jax.parameters import Arrays
from llamo_jax.training.config import Config
from llamo_jax.training.loss import answer_likelihood
from llamo_jax.training.step import TrainState, empty_log, make_eval_step, make_train_step
from llamo_jax.training.trainable import describe_trainable, make_optimizer, rules_of, select_trainable
from llamo_jax.training.words import (
    answer_and_word_likelihood,
    idf_answer_and_word_likelihood,
    word_likelihood,
)

OBJECTIVES = {
    "answers": (answer_likelihood, answer_likelihood),
    "words": (word_likelihood, word_likelihood),
    "answers+words": (answer_and_word_likelihood, answer_likelihood),
    "idf_answers+words": (idf_answer_and_word_likelihood, answer_likelihood),
}
"""config.train.objective → what a step minimises, and what a validation measures."""


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """The shapes and shardings of a run's arrays, and its steps; see llamo_jax.training.step for these.

    state, frozen: ShapeDtypeStructs with shardings; between them, they hold every array of the model once.
    """

    definition: ModelDefinition
    state: Any
    frozen: dict[str, jax.ShapeDtypeStruct]
    train_step: Callable[..., Any]
    eval_step: Callable[..., Any]
    _optimizer: optax.GradientTransformation

    def arrays(self) -> dict[str, jax.ShapeDtypeStruct]:
        """All arrays of the model, by path."""
        return {**self.state.trained, **self.state.statistics, **self.frozen}

    def initial_state(self, arrays: Arrays) -> TrainState:
        """Step 0 with these weights, which may be more than the state holds."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.state)
        trained = {name: arrays[name] for name in self.state.trained}
        return TrainState(
            step=jax.device_put(np.int32(0), shardings.step),
            trained=trained,
            statistics={name: arrays[name] for name in self.state.statistics},
            # out_shardings: zeros do not inherit their parameter's sharding, moments would be replicated
            optimizer=jax.jit(self._optimizer.init, out_shardings=shardings.optimizer)(trained),
            log=self._empty_log(),
        )

    def logged(self, state: TrainState) -> TrainState:
        """The state after a line has been logged: its sums start again."""
        return state._replace(log={**self._empty_log(), "skipped_in_a_row": state.log["skipped_in_a_row"]})

    def _empty_log(self) -> dict[str, jax.Array]:
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.state.log)
        return jax.tree.map(jax.device_put, empty_log(), shardings)

    def summary(self) -> str:
        """A table for people: parameters per component, trained and frozen."""
        return describe_trainable(self.state.trained, self.frozen)


def make_program(config: Config, mesh: Mesh) -> Program:
    """The program of a configuration on a mesh, whose devices need not be there.

    Raises ConfigError if the trainable rules or the mesh do not fit the model.
    """
    trained_for, measured = OBJECTIVES[config.train.objective]
    definition = define_model(config.model)
    statistics = statistics_names(definition)
    names = [parameters.path_name(path) for path, _ in nnx.to_flat_state(definition.variables)]
    trained = select_trainable([name for name in names if name not in statistics], rules_of(config.train))
    for name, on in trained.items():
        if on and name.rpartition("/")[2] in (quantization.VALUES, quantization.SCALE):
            raise ConfigError(f"config.model.quantize: {name} is trained; only frozen matrices can be quantized")
    abstract = parameters.abstract_arrays(definition.variables, config.model.frozen_dtype, mesh, trained)
    optimizer = make_optimizer(config.train)
    # a part of the model whose parameters are all frozen keeps its BatchNorm statistics, as in torch's eval mode
    with_statistics = {name.split("/")[0] for name in statistics}
    moves_statistics = any(on for name, on in trained.items() if name.split("/")[0] in with_statistics)
    state = _abstract_state(abstract, trained, statistics, optimizer, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    return Program(
        definition,
        state,
        {name: abstract[name] for name, on in trained.items() if not on},
        make_train_step(
            definition,
            optimizer,
            batch_statistics=moves_statistics,
            seed=config.seed,
            objective=trained_for,
            shardings=shardings,
        ),
        make_eval_step(definition, measured),
        optimizer,
    )


def _abstract_state(
    abstract: dict, trained: dict[str, bool], statistics: set[str], optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Shapes and shardings of the TrainState; the optimizer's moments are sharded like their parameters."""
    parameters_ = {name: abstract[name] for name, on in trained.items() if on}
    if not parameters_:
        raise ConfigError("config.train.trainable selects no parameter")
    moments = jax.eval_shape(optimizer.init, parameters_)  # of trained parameters alone: frozen ones have none
    replicated = sharding.replicated(mesh)

    def place(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        # moments are mappings by parameter path somewhere inside of optax's states; counters are not in a mapping
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        place = parameters_[names[-1]].sharding if names else replicated
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    return TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated),
        trained=parameters_,
        statistics={name: abstract[name] for name in abstract if name in statistics},
        optimizer=jax.tree_util.tree_map_with_path(place, moments),
        log={name: jax.ShapeDtypeStruct((), x.dtype, sharding=replicated) for name, x in empty_log().items()},
    )


def batch_shape(config: Config, shards: int) -> BatchShape:
    """The shape of all batches; raises ConfigError if the rows do not divide, or a budget is not given."""
    data = config.data
    rows = data.rows or data.rows_per_device * shards
    if rows % shards:
        raise ConfigError(
            f"config.data.rows={data.rows} does not divide over {shards} batch shards; set --config.data.rows"
        )
    budgets = (data.molecules_per_row, data.atoms_per_row, data.edges_per_row, data.motifs_per_row)
    known = [budget for budget in budgets if budget is not None]
    if len(known) < len(budgets):
        raise ConfigError(f"config.data: {budgets} is what a row holds, and no data are here that would tell the rest")
    row = RowSize(data.tokens_per_row, *known)
    return BatchShape(rows, shards, row, *config.model.graph_encoder.vocabulary.widths)


def abstract_batches(batch: Any, mesh: Mesh, *, leading: int = 1) -> Any:
    """Shapes and shardings of what `put_batch` makes of a whole batch of host arrays, for compiling ahead of time."""
    place = sharding.batch_sharding(mesh, leading=leading)
    ones = (1,) * leading
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(ones + np.shape(x), x.dtype, sharding=place), batch)
