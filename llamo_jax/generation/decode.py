"""Greedy generation: one jitted program for prefill and decoding with a key-value cache."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Int

from data_pipeline.batch import Batch, BatchShape, EncodedConversation, RowSize, collate
from llamo_jax.models import KVCache
from llamo_jax.models.definition import Arrays, ModelDefinition
from llamo_jax.models.llama import causal_mask

PROMPT_BUCKET = 64
"""Prompt lengths are padded to multiples of this, so that few programs are compiled."""


def collate_prompts(prompts: Sequence[EncodedConversation], eos_id: int) -> Batch:
    """Prompts as a batch of one conversation per row, aligned to the right; sizes are rounded up to buckets.

    The number of rows is a power of two; the surplus rows are padding.
    """
    # collate takes the last token for a target only: give every prompt one more.
    extended = [
        EncodedConversation(
            np.append(prompt.tokens, eos_id).astype(np.int32),
            np.append(prompt.is_target, False),
            np.append(prompt.molecule, -1).astype(np.int32),
            np.append(prompt.query, 0).astype(np.int32),
            prompt.graphs,
        )
        for prompt in prompts
    ]
    sizes = np.max([prompt.size() for prompt in extended], axis=0)
    buckets = np.array([PROMPT_BUCKET, 1, 32, 64, 16])
    capacity = RowSize(*(int(size) for size in -(-np.maximum(sizes, 1) // buckets) * buckets))
    rows = 1 << (len(prompts) - 1).bit_length()
    batch = collate([[prompt] for prompt in extended], BatchShape(rows, 1, capacity))
    shifts = [capacity.tokens - prompt.size().tokens for prompt in extended] + [0] * (rows - len(prompts))
    columns = (np.arange(capacity.tokens) - np.array(shifts)[:, None]) % capacity.tokens
    arrays = batch._asdict()
    molecules = arrays.pop("molecules")
    return Batch(**{name: np.take_along_axis(x, columns, axis=1) for name, x in arrays.items()}, molecules=molecules)


class _State(NamedTuple):
    """The decoding loop's state; `step` tokens are written to `tokens`, `last` is the newest of each row."""

    step: Int[Array, ""]
    tokens: Int[Array, "B W"]
    last: Int[Array, " B"]
    finished: Bool[Array, " B"]
    cache: KVCache | None


@functools.partial(jax.jit, static_argnames=("definition", "max_new_tokens", "eos_id"))
def greedy(
    definition: ModelDefinition, arrays: Arrays, batch: Batch, *, max_new_tokens: int, eos_id: int
) -> Int[Array, "B W"]:
    """The most probable continuation of each row, token by token: int32[B, max_new_tokens].

    batch: from `collate_prompts`. A row that ended holds eos_id from there on; padding rows hold it throughout.
    """
    model = definition.merge(arrays)
    decoder = model.language_model
    rows, length = batch.tokens.shape
    real = batch.segments > 0
    graph_tokens, _ = model.encode_graphs(batch.molecules)
    beyond = jnp.zeros((rows, length, max_new_tokens), bool)
    mask = jnp.concatenate([causal_mask(batch.segments), beyond], axis=-1)
    hidden, cache = decoder(
        model.splice(batch, graph_tokens),
        batch.positions,
        mask,
        cache=decoder.empty_cache(rows, length + max_new_tokens),
        cache_index=jnp.zeros((), jnp.int32),
    )
    prompt_lengths = jnp.sum(real, axis=1)
    written = jnp.arange(max_new_tokens)

    def choose(hidden: Array, finished: Array) -> tuple[Array, Array]:
        token = jnp.argmax(decoder.logits(hidden[:, -1]), axis=-1).astype(jnp.int32)
        token = jnp.where(finished, eos_id, token)
        return token, finished | (token == eos_id)

    def step(state: _State) -> _State:
        mask = jnp.concatenate([real, jnp.broadcast_to(written <= state.step, (rows, max_new_tokens))], axis=1)
        hidden, cache = decoder(
            decoder.embed(state.last[:, None]),
            (prompt_lengths + state.step)[:, None],
            mask[:, None],
            cache=state.cache,
            cache_index=length + state.step,
        )
        token, finished = choose(hidden, state.finished)
        tokens = jax.lax.dynamic_update_index_in_dim(state.tokens, token, state.step + 1, axis=1)
        return _State(state.step + 1, tokens, token, finished, cache)

    first, finished = choose(hidden, prompt_lengths == 0)
    tokens = jnp.full((rows, max_new_tokens), eos_id, jnp.int32).at[:, 0].set(first)
    state = _State(jnp.zeros((), jnp.int32), tokens, first, finished, cache)
    state = jax.lax.while_loop(lambda s: (s.step < max_new_tokens - 1) & ~jnp.all(s.finished), step, state)
    return state.tokens
