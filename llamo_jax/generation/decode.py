"""Generation: one jitted program for prefill and decoding with a key-value cache; greedy, and beam search."""

import functools
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import PartitionSpec
from jaxtyping import Bool, Float, Int

from data_pipeline.batch import Batch, BatchShape, EncodedConversation, RowSize, collate
from llamo_jax import sharding
from llamo_jax.models import KVCache, LlamaDecoder, LLaMo
from llamo_jax.models.attention import causal_mask
from llamo_jax.models.definition import ModelDefinition
from llamo_jax.parameters import Arrays

T = TypeVar("T")

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


class Generated(NamedTuple):
    """Continuations: token ids, and the log-probability of each token; from its end on, a row holds eos_id and 0."""

    tokens: Int[Array, "B W"]
    log_probabilities: Float[Array, "B W"]


class Beams(NamedTuple):
    """The best continuations of each prompt, best first; from its end on, a continuation holds eos_id.

    scores: summed log-probabilities / (number of tokens, the end included) ** length_penalty.
    """

    tokens: Int[Array, "B K W"]
    scores: Float[Array, "B K"]


@functools.partial(jax.jit, static_argnames=("definition", "max_new_tokens", "eos_id"))
def greedy(definition: ModelDefinition, arrays: Arrays, batch: Batch, *, max_new_tokens: int, eos_id: int) -> Generated:
    """The most probable continuation of each row, token by token; W = max_new_tokens.

    batch: from `collate_prompts`. Padding rows count as ended.
    """
    model = definition.merge(arrays)
    decoder = model.language_model
    prompt, hidden, cache = _prefill(model, batch, max_new_tokens)
    rows = len(batch.tokens)

    class State(NamedTuple):
        step: Int[Array, ""]  # tokens chosen so far
        generated: Generated
        finished: Bool[Array, " B"]
        hidden: Float[Array, "B D"]  # what the next token follows from
        cache: KVCache

    def choose(state: State) -> State:
        log_probabilities = jax.nn.log_softmax(decoder.logits(state.hidden))
        token = jnp.argmax(log_probabilities, axis=-1).astype(jnp.int32)
        chosen = jnp.take_along_axis(log_probabilities, token[:, None], axis=-1)[:, 0]
        token = jnp.where(state.finished, eos_id, token)
        generated = Generated(
            state.generated.tokens.at[:, state.step].set(token),
            state.generated.log_probabilities.at[:, state.step].set(jnp.where(state.finished, 0, chosen)),
        )
        return state._replace(generated=generated, finished=state.finished | (token == eos_id))

    def step(state: State) -> State:
        last = state.generated.tokens[:, state.step]
        hidden, cache = _advance(decoder, prompt, last, state.step, state.cache)
        return choose(state._replace(step=state.step + 1, hidden=hidden, cache=cache))

    blank = Generated(jnp.full((rows, max_new_tokens), eos_id, jnp.int32), jnp.zeros((rows, max_new_tokens)))
    state = choose(State(jnp.zeros((), jnp.int32), blank, prompt.lengths == 0, hidden, cache))
    state = jax.lax.while_loop(lambda s: (s.step < max_new_tokens - 1) & ~jnp.all(s.finished), step, state)
    return _replicated(state.generated)


@functools.partial(jax.jit, static_argnames=("definition", "max_new_tokens", "eos_id", "num_beams"))
def beam_search(
    definition: ModelDefinition,
    arrays: Arrays,
    batch: Batch,
    *,
    max_new_tokens: int,
    eos_id: int,
    num_beams: int,
    length_penalty: float = 1.0,
) -> Beams:
    """Beam search as in Hugging Face's transformers (early_stopping=False); K = num_beams, W = max_new_tokens.

    In each step the 2K best continuations are looked at: those among the first K that end are hypotheses, the first K
    that go on are the next beams. A prompt is done when K hypotheses are kept and no beam can beat the worst of them.
    """
    model = definition.merge(arrays)
    decoder = model.language_model
    prompt, hidden, cache = _prefill(model, batch, max_new_tokens)
    rows, beams = len(batch.tokens), num_beams
    prompt, hidden, cache = (
        jax.tree.map(lambda x: jnp.repeat(x, beams, axis=0), prompt._replace(length=0))._replace(length=prompt.length),
        jnp.repeat(hidden, beams, axis=0),
        jax.tree.map(lambda x: jnp.repeat(x, beams, axis=1), cache),
    )

    class State(NamedTuple):
        step: Int[Array, ""]  # tokens chosen so far
        tokens: Int[Array, "B K W"]  # of the beams
        sums: Float[Array, "B K"]  # their summed log-probabilities
        ended: Beams
        done: Bool[Array, " B"]
        hidden: Float[Array, "BK D"]
        cache: KVCache

    def keep_best(ended: Beams, tokens: Array, scores: Array) -> Beams:
        scores, order = jax.lax.top_k(jnp.concatenate([ended.scores, scores], axis=1), beams)
        return Beams(_take(jnp.concatenate([ended.tokens, tokens], axis=1), order), scores)

    def extend(state: State) -> tuple[State, Int[Array, "B K"]]:
        """The state with one more token per beam, except for `hidden`; and which beam each new one goes on."""
        log_probabilities = jax.nn.log_softmax(decoder.logits(state.hidden)).reshape(rows, beams, -1)
        vocabulary = log_probabilities.shape[-1]
        sums = (state.sums[..., None] + log_probabilities).reshape(rows, -1)
        sums, flat = jax.lax.top_k(sums, 2 * beams)
        source, token = flat // vocabulary, (flat % vocabulary).astype(jnp.int32)
        tokens = _take(state.tokens, source).at[:, :, state.step].set(token)
        ends = token == eos_id
        penalty = (state.step + 1.0) ** length_penalty
        is_hypothesis = ends & (jnp.arange(2 * beams) < beams) & ~state.done[:, None]
        ended = keep_best(state.ended, tokens, jnp.where(is_hypothesis, sums / penalty, -jnp.inf))
        done = state.done | (ended.scores[:, -1] >= sums[:, 0] / penalty)
        going_on = jnp.argsort(ends, axis=1, stable=True)[:, :beams]
        source, tokens, sums = (_take(x, going_on) for x in (source, tokens, sums))
        return state._replace(step=state.step + 1, tokens=tokens, sums=sums, ended=ended, done=done), source

    def step(state: State) -> State:
        state, source = extend(state)
        rows_of = (jnp.arange(rows)[:, None] * beams + source).reshape(-1)
        cache = jax.tree.map(lambda x: x[:, rows_of], state.cache)
        last = state.tokens[:, :, state.step - 1].reshape(-1)
        hidden, cache = _advance(decoder, prompt, last, state.step - 1, cache)
        return state._replace(hidden=hidden, cache=cache)

    blank = jnp.full((rows, beams, max_new_tokens), eos_id, jnp.int32)
    # all beams start as the same prompt: only the first may be extended
    sums = jnp.broadcast_to(jnp.where(jnp.arange(beams) == 0, 0.0, -1e9), (rows, beams))
    none_ended = Beams(blank, jnp.full((rows, beams), -jnp.inf))
    state = State(jnp.zeros((), jnp.int32), blank, sums, none_ended, prompt.lengths[::beams] == 0, hidden, cache)
    state = jax.lax.while_loop(lambda s: (s.step < max_new_tokens - 1) & ~jnp.all(s.done), step, state)
    state, _ = extend(state)
    scores = jnp.where(state.done[:, None], -jnp.inf, state.sums / float(max_new_tokens) ** length_penalty)
    return _replicated(keep_best(state.ended, state.tokens, scores))


def _replicated(result: T) -> T:
    """The same on every device, so that each process can read it."""
    return jax.tree.map(lambda x: sharding.constrain(x, PartitionSpec()), result)


def _take(x: Array, order: Int[Array, "B K"]) -> Array:
    """x[b, order[b, k]] for every b and k."""
    return jnp.take_along_axis(x, order.reshape(*order.shape, *(1,) * (x.ndim - 2)), axis=1)


class _Prompt(NamedTuple):
    """What decoding needs of the prompts: which positions are real, how many are, and how long the rows are."""

    real: Bool[Array, "B T"]
    lengths: Int[Array, " B"]
    length: int


def _prefill(model: LLaMo, batch: Batch, max_new_tokens: int) -> tuple[_Prompt, Float[Array, "B D"], KVCache]:
    """The prompts through the model: the hidden state of each one's end, and a cache with room for new tokens."""
    rows, length = batch.tokens.shape
    graph_tokens, _ = model.encode_graphs(batch.molecules)
    beyond = jnp.zeros((rows, length, max_new_tokens), bool)
    hidden, cache = model.language_model.extend(
        model.language_model.empty_cache(rows, length + max_new_tokens),
        jnp.zeros((), jnp.int32),
        model.splice(batch, graph_tokens),
        batch.positions,
        jnp.concatenate([causal_mask(batch.segments), beyond], axis=-1),
    )
    real = batch.segments > 0
    return _Prompt(real, jnp.sum(real, axis=1), length), hidden[:, -1], cache


def _advance(
    decoder: LlamaDecoder, prompt: _Prompt, tokens: Int[Array, " B"], step: Int[Array, ""], cache: KVCache
) -> tuple[Float[Array, "B D"], KVCache]:
    """Feeds the tokens chosen in `step` (from 0); returns the hidden states that the next ones follow from."""
    room = cache.keys.shape[2] - prompt.length
    written = jnp.broadcast_to(jnp.arange(room) <= step, (len(tokens), room))
    hidden, cache = decoder.extend(
        cache,
        prompt.length + step,
        decoder.embed(tokens[:, None]),
        (prompt.lengths + step)[:, None],
        jnp.concatenate([prompt.real, written], axis=1)[:, None],
    )
    return hidden[:, 0], cache
