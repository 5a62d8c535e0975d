"""How probable given answers are: the log-probability of each of their tokens."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import logsumexp
from jaxtyping import Float

from data_pipeline.batch import Batch, EncodedConversation
from data_pipeline.progress import watched
from llamo_jax import distributed, sharding
from llamo_jax.generation.decode import replicated
from llamo_jax.generation.prompts import GraphRoom, collate_prompts
from llamo_jax.models.attention import any_length
from llamo_jax.models.definition import ModelDefinition
from llamo_jax.parameters import Arrays

CHUNK = 32  # positions whose logits exist at a time; divides every prompt bucket

ROWS = 16
"""Conversations that go through the model at a time, per batch shard."""


def target_log_probabilities(
    definition: ModelDefinition,
    arrays: Arrays,
    mesh: jax.sharding.Mesh,
    conversations: Sequence[EncodedConversation],
) -> list[np.ndarray]:
    """For each conversation: float32, the natural log-probability of each of its target tokens, in their order."""
    shards = sharding.batch_shards(mesh)
    rows = ROWS * shards
    room = GraphRoom.of(conversations)
    result: list[np.ndarray] = [np.zeros(0, np.float32)] * len(conversations)
    # neighbours in length share a batch, so that little is padding
    order = sorted(range(len(conversations)), key=lambda index: len(conversations[index].tokens))
    with jax.set_mesh(mesh):
        starts = range(0, len(order), rows)
        for start in watched(starts, desc="log-likelihoods", unit=" batches", disable=not distributed.is_main()):
            chunk = order[start : start + rows]
            batch = collate_prompts(
                [conversations[index] for index in chunk],
                rows=rows,
                shards=shards,
                room=room,
                vocabulary=definition.config.graph_encoder.vocabulary,
            )
            found = np.asarray(_log_probabilities(definition, arrays, sharding.put_global(batch, mesh)))
            for row, index in zip(found, chunk, strict=False):
                # position t predicts token t + 1
                result[index] = row[np.flatnonzero(conversations[index].is_target[1:])]
    return result


@functools.partial(jax.jit, static_argnames="definition")
def _log_probabilities(definition: ModelDefinition, arrays: Arrays, batch: Batch) -> Float[jax.Array, "B T"]:
    """Of the token that follows each position of the batch."""
    model = definition.merge(arrays)
    # not every conversation has a length that training's kernel takes, nor is it read where it was trained
    model.language_model.attention = any_length(model.language_model.attention)
    hidden, _ = model.hidden_states(batch)

    rows = hidden.shape[0]

    def in_chunks(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(rows, -1, CHUNK, *x.shape[2:]), 1, 0)

    def chunk(carry: None, inputs: tuple[jax.Array, jax.Array]) -> tuple[None, jax.Array]:
        hidden, targets = inputs
        logits = model.language_model.logits(hidden)
        return carry, jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0] - logsumexp(logits, axis=-1)

    _, found = jax.lax.scan(chunk, None, (in_chunks(hidden), in_chunks(batch.targets)))
    return replicated(jnp.moveaxis(found, 0, 1).reshape(rows, -1))
