"""From logits to the next token: what is forbidden, made less probable, and drawn from (Hugging Face's definitions)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, Key

from llamo_jax.config import DecodingConfig

_NEVER = jnp.finfo(jnp.float32).min  # finite: a row of nothing else must not become NaN


class Choices(NamedTuple):
    """How the tokens of each row are chosen, where rows differ: values, so that none of them compiles a program.

    temperature 0: the most probable token. limit: tokens of the answer, at most.
    """

    temperature: Float[Array, " B"]
    top_p: Float[Array, " B"]
    limit: Int[Array, " B"]


def processed(
    scores: Float[Array, "*rows V"],
    seen: Bool[Array, "*rows V"] | None,
    chosen: Int[Array, "*rows"],
    decoding: DecodingConfig,
    stop_ids: tuple[int, ...],
) -> Float[Array, "*rows V"]:
    """Scores (logits, or log-probabilities in beam search) with everything but `warped`'s settings applied.

    seen: tokens that the text holds already, needed for a penalty only; chosen: how many tokens the answer has.
    """
    if decoding.repetition_penalty != 1 and seen is not None:
        penalty = decoding.repetition_penalty
        scores = jnp.where(seen, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)
    if decoding.min_new_tokens:
        stops = jnp.zeros(scores.shape[-1], bool).at[jnp.array(stop_ids)].set(True)
        early = chosen < decoding.min_new_tokens
        scores = jnp.where(early[..., None] & stops, _NEVER, scores)
    if decoding.suppressed_ids:
        ids = jnp.arange(scores.shape[-1])
        inside = [(first <= ids) & (ids <= last) for first, last in decoding.suppressed_ids]
        scores = jnp.where(jnp.any(jnp.stack(inside), axis=0), _NEVER, scores)
    return scores


def warped(logits: Float[Array, "*rows V"], decoding: DecodingConfig) -> Float[Array, "*rows V"]:
    """Logits to draw from: divided by the temperature, then cut to `top_k`, then to `top_p`."""
    logits = logits / decoding.temperature
    if 0 < decoding.top_k < logits.shape[-1]:
        smallest = jax.lax.top_k(logits, decoding.top_k)[0][..., -1:]
        logits = jnp.where(logits < smallest, _NEVER, logits)
    return nucleus(logits, decoding.top_p) if decoding.top_p < 1 else logits


def nucleus(logits: Float[Array, "*rows V"], top_p: Float[Array, "*rows"] | float) -> Float[Array, "*rows V"]:
    """Logits of the most probable tokens that reach `top_p` together; the others are made impossible."""
    descending = jnp.sort(logits, axis=-1, descending=True)
    probabilities = jax.nn.softmax(descending)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    # "before": the probability that those above already have; the token that crosses top_p is still kept
    kept = jnp.sum(before < jnp.asarray(top_p)[..., None], axis=-1, keepdims=True)  # at least the most probable
    smallest = jnp.take_along_axis(descending, kept - 1, axis=-1)
    return jnp.where(logits < smallest, _NEVER, logits)


def next_token(
    scores: Float[Array, "B V"], keys: Key[Array, " B"], chosen: Int[Array, " B"], decoding: DecodingConfig
) -> Int[Array, " B"]:
    """The most probable token, or one that is drawn: the same for the same key and place in the answer."""
    if decoding.temperature == 0:
        return most_probable(scores)
    places = jax.vmap(jax.random.fold_in)(keys, chosen)
    return jax.vmap(jax.random.categorical)(places, warped(scores, decoding)).astype(jnp.int32)


def next_token_of_each(
    scores: Float[Array, "B V"], keys: Key[Array, " B"], chosen: Int[Array, " B"], choices: Choices
) -> Int[Array, " B"]:
    """As `next_token`, by each row's own settings. While no row draws, nothing is sorted."""

    def drawn() -> Int[Array, " B"]:
        places = jax.vmap(jax.random.fold_in)(keys, chosen)
        logits = scores / jnp.maximum(choices.temperature, 1e-6)[:, None]
        # 1 cuts nothing; the sum of all would, where rounding takes it to 1 before the last token
        logits = jnp.where(choices.top_p[:, None] < 1, nucleus(logits, choices.top_p), logits)
        found = jax.vmap(jax.random.categorical)(places, logits).astype(jnp.int32)
        return jnp.where(choices.temperature > 0, found, most_probable(scores))

    return jax.lax.cond(jnp.any(choices.temperature > 0), drawn, lambda: most_probable(scores))


def most_probable(scores: Float[Array, "*rows V"]) -> Int[Array, "*rows"]:
    """The first of the highest scores, as `jnp.argmax` finds it, by two plain reductions.

    XLA on CPU does not vectorise a reduction that carries the place along: it takes five times as long.
    """
    last = scores.shape[-1] - 1  # where nothing equals the highest score, which is a NaN then
    places = jnp.where(scores == jnp.max(scores, axis=-1, keepdims=True), jnp.arange(last + 1), last)
    return jnp.min(places, axis=-1).astype(jnp.int32)
