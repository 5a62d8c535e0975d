"""Beam search in one jitted program."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from data_pipeline.batch import Batch
from llamo_jax.config import DecodingConfig
from llamo_jax.generation.decode import next_hidden, prefill, replicated, seen_tokens
from llamo_jax.generation.few_rows import COMPILER_OPTIONS
from llamo_jax.generation.processing import processed
from llamo_jax.models.definition import ModelDefinition
from llamo_jax.parameters import Arrays


class Beams(NamedTuple):
    """The best continuations of each prompt, best first; from its end on, a continuation holds a stop id.

    scores: summed log-probabilities / (number of tokens, the end included) ** length_penalty; lengths: these numbers.
    """

    tokens: Int[Array, "B Z W"]
    scores: Float[Array, "B Z"]
    lengths: Int[Array, "B Z"]


@functools.partial(jax.jit, static_argnames=("definition", "decoding", "stop_ids"), compiler_options=COMPILER_OPTIONS)
def beam_search(
    definition: ModelDefinition,
    arrays: Arrays,
    batch: Batch,
    *,
    decoding: DecodingConfig,
    stop_ids: tuple[int, ...],
) -> Beams:
    """Beam search as in Hugging Face's transformers (early_stopping=False); Z = num_beams, W = max_new_tokens.

    In each step the best continuations are looked at, Z more than there are stop tokens for each beam: those among the
    first Z that end are hypotheses, the first Z that go on are the next beams. A prompt is done when Z hypotheses are
    kept and no beam can beat the worst of them.
    """
    model = definition.merge(arrays)
    decoder = model.language_model
    beams, width, length_penalty = decoding.num_beams, decoding.max_new_tokens, decoding.length_penalty
    hidden, cache, lengths = prefill(model, batch, batch.tokens.shape[1] + width)
    rows, candidates = len(lengths), beams * (1 + len(stop_ids))
    seen = seen_tokens(batch, decoder.config.vocab_size) if decoding.repetition_penalty != 1 else None
    lengths, hidden, seen = jax.tree.map(lambda x: jnp.repeat(x, beams, axis=0), (lengths, hidden, seen))
    cache = cache.map(lambda x: jnp.repeat(x, beams, axis=0))

    class State(NamedTuple):
        step: Int[Array, ""]  # tokens chosen so far
        tokens: Int[Array, "B Z W"]  # of the beams
        sums: Float[Array, "B Z"]  # their summed log-probabilities
        ended: Beams
        done: Bool[Array, " B"]
        hidden: Float[Array, "BZ D"]
        cache: Any
        seen: Bool[Array, "BZ V"] | None

    def keep_best(ended: Beams, tokens: Array, scores: Array, length: Array) -> Beams:
        scores, order = jax.lax.top_k(jnp.concatenate([ended.scores, scores], axis=1), beams)
        lengths = jnp.concatenate([ended.lengths, jnp.broadcast_to(length, tokens.shape[:2])], axis=1)
        tokens = jnp.concatenate([ended.tokens, tokens], axis=1)
        return Beams(_take(tokens, order), scores, _take(lengths, order))

    def extend(state: State) -> tuple[State, Int[Array, "B Z"]]:
        """The state with one more token per beam, except for what the model makes of it; and each beam's origin."""
        chosen = jnp.broadcast_to(state.step, rows * beams)
        log_probabilities = jax.nn.log_softmax(decoder.logits(state.hidden))
        scores = processed(log_probabilities, state.seen, chosen, decoding, stop_ids).reshape(rows, beams, -1)
        vocabulary = scores.shape[-1]
        # Z · (1 + stop tokens) candidates: even if every beam's best ones all end, Z that do not are among them
        sums, flat = jax.lax.top_k((state.sums[..., None] + scores).reshape(rows, -1), candidates)
        source, token = flat // vocabulary, (flat % vocabulary).astype(jnp.int32)
        tokens = _take(state.tokens, source).at[:, :, state.step].set(token)
        ends = jnp.any(token[..., None] == jnp.array(stop_ids), axis=-1)
        penalty = (state.step + 1.0) ** length_penalty
        is_hypothesis = ends & (jnp.arange(candidates) < beams) & ~state.done[:, None]
        ended = keep_best(state.ended, tokens, jnp.where(is_hypothesis, sums / penalty, -jnp.inf), state.step + 1)
        # transformers' early_stopping=False: a beam that goes on only loses probability, so the present score of the
        # best one is taken as the bound of all to come
        done = state.done | (ended.scores[:, -1] >= sums[:, 0] / penalty)
        continuing = jnp.argsort(ends, axis=1, stable=True)[:, :beams]
        source, tokens, sums = (_take(x, continuing) for x in (source, tokens, sums))
        return state._replace(step=state.step + 1, tokens=tokens, sums=sums, ended=ended, done=done), source

    def step(state: State) -> State:
        state, source = extend(state)
        origin = (jnp.arange(rows)[:, None] * beams + source).reshape(-1)
        last = state.tokens[:, :, state.step - 1].reshape(-1)
        cache = state.cache.map(lambda x: x[origin])
        seen = None if state.seen is None else state.seen[origin].at[jnp.arange(rows * beams), last].set(True)
        hidden, cache = next_hidden(decoder, cache, lengths + state.step - 1, last)
        return state._replace(hidden=hidden, cache=cache, seen=seen)

    # what is not written yet reads as a stop token, so that a beam's end is known by its length alone
    blank = jnp.full((rows, beams, width), stop_ids[0], jnp.int32)
    # all beams start as the same prompt: only the first may be extended
    # -1e9 as in Hugging Face, and not -inf, so that all scores stay numbers
    sums = jnp.broadcast_to(jnp.where(jnp.arange(beams) == 0, 0.0, -1e9), (rows, beams))
    none_ended = Beams(blank, jnp.full((rows, beams), -jnp.inf), jnp.zeros((rows, beams), jnp.int32))
    done = lengths[::beams] == 0
    state = State(jnp.zeros((), jnp.int32), blank, sums, none_ended, done, hidden, cache, seen)
    state = jax.lax.while_loop(lambda s: (s.step < width - 1) & ~jnp.all(s.done), step, state)
    state, _ = extend(state)
    scores = jnp.where(state.done[:, None], -jnp.inf, state.sums / float(width) ** length_penalty)
    return replicated(keep_best(state.ended, state.tokens, scores, state.step))


def _take(x: Array, order: Int[Array, "B Z"]) -> Array:
    """x[b, order[b, k]] for every b and k."""
    return jnp.take_along_axis(x, order.reshape(*order.shape, *(1,) * (x.ndim - 2)), axis=1)
