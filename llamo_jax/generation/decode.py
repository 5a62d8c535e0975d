"""Decoding with a key-value cache: whole answers in one program, or rows that come and go (continuous batching).

A row's tokens lie in its cache from slot 0 on, wherever the batch has its padding: rows of any length, at any point of
their answers, are decoded side by side.
"""

import functools
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec
from jaxtyping import Bool, Float, Int, Key, UInt32

from data_pipeline.batch import Batch
from llamo_jax import sharding
from llamo_jax.config import DecodingConfig
from llamo_jax.generation.few_rows import COMPILER_OPTIONS
from llamo_jax.generation.processing import Choices, next_token, next_token_of_each, processed
from llamo_jax.models import LLaMo
from llamo_jax.models.definition import ModelDefinition
from llamo_jax.models.llama import LlamaDecoder
from llamo_jax.parameters import Arrays

T = TypeVar("T")


class Generated(NamedTuple):
    """Answers: token ids, and the model's log-probability of each; from its end on, a row holds a stop id and 0.

    lengths: tokens of each answer, the stop token included.
    """

    tokens: Int[Array, "B W"]
    log_probabilities: Float[Array, "B W"]
    lengths: Int[Array, " B"]


class Rows(NamedTuple):
    """Answers in the making. The last token of each has been chosen, but has not gone through the model yet."""

    cache: Any  # of the decoder's type: models.llama.KVCache, or generation.unstacked.LayerCaches
    filled: Int[Array, " B"]  # tokens in the cache: the prompt, and the answer but for its last token
    generated: Generated
    finished: Bool[Array, " B"]
    keys: Key[Array, " B"]  # of what is drawn
    seen: Bool[Array, "B V"] | None  # tokens of prompt and answer; only for a repetition penalty
    choices: Choices | None = None  # of rows whose settings differ; they take the place of DecodingConfig's


def greedy(definition: ModelDefinition, arrays: Arrays, batch: Batch, *, max_new_tokens: int, eos_id: int) -> Generated:
    """The most probable continuation of each row; W = max_new_tokens. See `generate`."""
    decoding = DecodingConfig(max_new_tokens=max_new_tokens)
    keys = jax.random.split(jax.random.key(0), batch.tokens.shape[0])
    return generate(definition, arrays, batch, keys, decoding=decoding, stop_ids=(eos_id,))


@functools.partial(jax.jit, static_argnames=("definition", "decoding", "stop_ids"), compiler_options=COMPILER_OPTIONS)
def generate(
    definition: ModelDefinition,
    arrays: Arrays,
    batch: Batch,
    keys: Key[Array, " B"],
    *,
    decoding: DecodingConfig,
    stop_ids: tuple[int, ...],
) -> Generated:
    """Whole answers to a batch of prompts, padded on the left or on the right; W = decoding.max_new_tokens.

    keys: one for each row; only used at a temperature above 0. Rows without any token count as finished.
    """
    model = definition.merge(arrays)
    slots = batch.tokens.shape[1] + decoding.max_new_tokens  # J: the prompt's padding is room for the answer, too
    rows = _started(model, batch, keys, slots, decoding, stop_ids)
    rows = _continued(model.language_model, rows, decoding.max_new_tokens, decoding, stop_ids)
    return replicated(rows.generated)


@functools.partial(jax.jit, static_argnames=("definition", "rows", "slots", "decoding", "stop_ids", "own_choices"))
def empty_rows(
    definition: ModelDefinition,
    arrays: Arrays,
    *,
    rows: int,
    slots: int,
    decoding: DecodingConfig,
    stop_ids: tuple[int, ...],
    own_choices: bool = False,
) -> Rows:
    """B = `rows` finished answers, whose places can be given to prompts; `slots` of cache for each.

    own_choices: prompts will bring settings of their own; see `admit`.
    """
    model = definition.merge(arrays)
    vocabulary = model.language_model.config.vocab_size
    return Rows(
        model.language_model.empty_cache(rows, slots),
        jnp.zeros(rows, jnp.int32),
        _blank(rows, decoding, stop_ids),
        jnp.ones(rows, bool),  # finished: free to be given away
        jax.random.split(jax.random.key(0), rows),
        jnp.zeros((rows, vocabulary), bool) if decoding.repetition_penalty != 1 else None,
        Choices(jnp.zeros(rows), jnp.ones(rows), jnp.zeros(rows, jnp.int32)) if own_choices else None,
    )


@functools.partial(
    jax.jit,
    static_argnames=("definition", "decoding", "stop_ids"),
    donate_argnames="rows",
    compiler_options=COMPILER_OPTIONS,
)
def admit(
    definition: ModelDefinition,
    arrays: Arrays,
    rows: Rows,
    batch: Batch,
    key_data: UInt32[Array, "n 2"],
    places: Int[Array, " n"],
    *,
    decoding: DecodingConfig,
    stop_ids: tuple[int, ...],
    choices: Choices | None = None,
) -> Rows:
    """`rows` with new prompts at `places`, whatever was there; each has its first token.

    key_data: of the keys that tokens are drawn with, as numbers, which a program of several processes can be given.
    Of the batch's n rows, those beyond its prompts have a place that does not exist. `rows` is donated. choices: of
    each prompt, if the rows were made for such.
    """
    keys = jax.random.wrap_key_data(key_data)
    model, length = definition.merge(arrays), batch.tokens.shape[1]
    # the prompts go through the model with a cache of their own length, which is then copied into the rows' longer one
    new = _started(model, batch, keys, length, decoding, stop_ids, choices)
    # mode="drop": surplus rows of the batch have a place beyond the last row
    cache = rows.cache.map(lambda old, x: old.at[places, :, :length].set(x, mode="drop"), new.cache)
    merged = (
        jax.tree.map(lambda old, x: old.at[places].set(x, mode="drop"), mine, theirs)
        for mine, theirs in zip(rows[1:], new[1:], strict=True)
    )
    return Rows(cache, *merged)


@functools.partial(
    jax.jit,
    static_argnames=("definition", "tokens", "decoding", "stop_ids"),
    donate_argnames="rows",
    compiler_options=COMPILER_OPTIONS,
)
def advance(
    definition: ModelDefinition,
    arrays: Arrays,
    rows: Rows,
    *,
    tokens: int,
    decoding: DecodingConfig,
    stop_ids: tuple[int, ...],
) -> tuple[Rows, Generated, Bool[Array, " B"]]:
    """Up to `tokens` more tokens for every row that is not finished; also the answers so far and which are finished.

    The latter two are the same on every device, so that each process can read them. `rows` is donated.
    """
    rows = _continued(definition.merge(arrays).language_model, rows, tokens, decoding, stop_ids)
    return rows, replicated(rows.generated), replicated(rows.finished)


@functools.partial(jax.jit, donate_argnames="rows")
def released(rows: Rows, places: Int[Array, " n"]) -> Rows:
    """`rows` with those at `places` finished, wherever they were; places that do not exist are passed over."""
    return rows._replace(finished=rows.finished.at[places].set(True, mode="drop"))


def _started(
    model: LLaMo,
    batch: Batch,
    keys: Key[Array, " B"],
    slots: int,
    decoding: DecodingConfig,
    stop_ids: tuple[int, ...],
    choices: Choices | None = None,
) -> Rows:
    """The prompts through the model, and the first token of each answer."""
    rows = batch.tokens.shape[0]
    hidden, cache, lengths = prefill(model, batch, slots)
    seen = None
    if decoding.repetition_penalty != 1:
        seen = seen_tokens(batch, model.language_model.config.vocab_size)
    # rows without a token are padding of the batch: finished from the beginning
    state = Rows(cache, lengths, _blank(rows, decoding, stop_ids), lengths == 0, keys, seen, choices)
    return _chosen(model.language_model, state, hidden, decoding, stop_ids)


def _continued(
    decoder: LlamaDecoder, rows: Rows, tokens: int, decoding: DecodingConfig, stop_ids: tuple[int, ...]
) -> Rows:
    """Up to `tokens` more tokens, until all rows are finished."""

    def step(carry: tuple[Int[Array, ""], Rows]) -> tuple[Int[Array, ""], Rows]:
        count, rows = carry
        hidden, cache = next_hidden(decoder, rows.cache, rows.filled, last_tokens(rows.generated))
        # a finished row's place does not move on: what it writes there is overwritten, and never read
        rows = rows._replace(cache=cache, filled=rows.filled + ~rows.finished)
        return count + 1, _chosen(decoder, rows, hidden, decoding, stop_ids)

    def unfinished(carry: tuple[Int[Array, ""], Rows]) -> Bool[Array, ""]:
        return (carry[0] < tokens) & ~jnp.all(carry[1].finished)

    return jax.lax.while_loop(unfinished, step, (jnp.zeros((), jnp.int32), rows))[1]


def _chosen(
    decoder: LlamaDecoder,
    rows: Rows,
    hidden: Float[Array, "B D"],
    decoding: DecodingConfig,
    stop_ids: tuple[int, ...],
) -> Rows:
    """The next token of every answer that is not finished, which follows from `hidden`."""
    logits = decoder.logits(hidden)
    old, everyone = rows.generated, jnp.arange(len(logits))
    scores = processed(logits, rows.seen, old.lengths, decoding, stop_ids)
    if rows.choices is None:
        limit = jnp.int32(decoding.max_new_tokens)
        token = next_token(scores, rows.keys, old.lengths, decoding)
    else:
        limit = jnp.minimum(rows.choices.limit, decoding.max_new_tokens)
        token = next_token_of_each(scores, rows.keys, old.lengths, rows.choices)
    # of the model itself, whatever penalties and temperature the token was chosen by
    log_probability = logits[everyone, token] - jax.nn.logsumexp(logits, axis=-1)
    # rows that are finished go on through the model with the others (shapes are static), but write beyond the end,
    # where mode="drop" loses it
    place = jnp.where(rows.finished, decoding.max_new_tokens, old.lengths)
    generated = Generated(
        old.tokens.at[everyone, place].set(token, mode="drop"),
        old.log_probabilities.at[everyone, place].set(log_probability, mode="drop"),
        old.lengths + ~rows.finished,
    )
    # the stop token belongs to the answer: it is written, counted and has a log-probability
    stopped = jnp.any(token[:, None] == jnp.array(stop_ids), axis=1)
    finished = rows.finished | stopped | (generated.lengths == limit)
    seen = None if rows.seen is None else rows.seen.at[everyone, token].set(True)
    return rows._replace(generated=generated, finished=finished, seen=seen)


def prefill(model: LLaMo, batch: Batch, slots: int) -> tuple[Float[Array, "B D"], Any, Int[Array, " B"]]:
    """The prompts through the model: the hidden state of each one's end, a cache of `slots`, and their lengths."""
    real = batch.segments > 0
    # prompts may be padded on the left (as Hugging Face does) or on the right; here their tokens move to the front
    order = jnp.argsort(~real, axis=1, stable=True)  # real tokens first, so that a token's place is its position
    aligned: dict[str, Any] = {
        name: jnp.take_along_axis(x, order, axis=1) for name, x in batch._asdict().items() if name != "molecules"
    }
    batch = batch._replace(**aligned)
    lengths = jnp.sum(real, axis=1, dtype=jnp.int32)
    graph_tokens, _ = model.encode_graphs(batch.molecules)
    embeddings = model.splice(batch, graph_tokens)
    hidden, cache = model.language_model.prefill(embeddings, batch.segments, slots)
    return hidden, cache, lengths


def next_hidden(
    decoder: LlamaDecoder, cache: Any, filled: Int[Array, " B"], tokens: Int[Array, " B"]
) -> tuple[Float[Array, "B D"], Any]:
    """One more token for each row of the cache: the hidden states that the next ones follow from, and the cache."""
    hidden, cache = decoder.extend(cache, filled, decoder.embed(tokens[:, None]))
    return hidden[:, 0], cache


def last_tokens(generated: Generated) -> Int[Array, " B"]:
    """The last token of each answer."""
    return generated.tokens[jnp.arange(len(generated.lengths)), jnp.maximum(generated.lengths - 1, 0)]


def seen_tokens(batch: Batch, vocab_size: int) -> Bool[Array, "B V"]:
    """Which tokens the prompts' texts hold; graph tokens are none."""
    # where a graph token stands, `tokens` holds 0, which is no word of the prompt
    text = (batch.segments > 0) & (batch.molecule_slot < 0)
    rows = jnp.arange(len(text))[:, None]
    return (
        jnp.zeros((len(text), vocab_size), bool)
        .at[rows, jnp.where(text, batch.tokens, vocab_size)]
        .set(True, mode="drop")
    )


def replicated(result: T) -> T:
    """The same on every device, so that each process can read it."""
    return jax.tree.map(lambda x: sharding.constrain(x, PartitionSpec()), result)


def _blank(rows: int, decoding: DecodingConfig, stop_ids: tuple[int, ...]) -> Generated:
    shape = (rows, decoding.max_new_tokens)
    return Generated(jnp.full(shape, stop_ids[0], jnp.int32), jnp.zeros(shape), jnp.zeros(rows, jnp.int32))
