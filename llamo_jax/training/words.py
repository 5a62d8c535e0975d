"""Stage 0's objective: graph tokens that stand where the words of their molecule's description stand; no decoder.

A frozen language model reads graph tokens best where its own words are: at rows of its embedding table. So each word
that is said about some molecule of a batch is a yes/no question to every molecule: is one of its graph tokens there?
Words count by their inverse document frequency (Spärck Jones, 1972): what every answer says tells no molecules apart.
No layer of the language model is computed: around SmolLM2, a molecule costs a fortieth of what it does in stage 1.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, Key

from data_pipeline.batch import Batch
from llamo_jax.models import LLaMo
from llamo_jax.training.loss import cross_entropy

SHARPNESS = 16.0
"""Between the logits of a token at a word and of one at the middle of all words; a probability of 0.9997 or 0.0003."""

DISTANCE = 0.1
"""Weight of the squared distance of a graph token from the middle of all words, beyond a word's mean one and in units
of it: the questions alone let tokens go four times as far as any word is."""

MOST_WORDS = 2048
"""Different words of a shard that are told apart; those with higher token ids count no further. 32 rows of the embedded
descriptions use 173."""


def word_likelihood(
    model: LLaMo, batch: Batch, *, batch_statistics: bool = False, dropout_key: Key[Array, ""] | None = None
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """Weighted negative log-likelihood (nats) of which words answers use, given their molecule's graph tokens alone.

    Summed; the second is the number of words (different ones in each answer). Words that no answer of a shard uses are
    no question in it, conversations about no molecule or several none either.
    """
    graph_tokens, _ = model.encode_graphs(batch.molecules, batch_statistics=batch_statistics, dropout_key=dropout_key)
    return questions_about_words(model, graph_tokens, batch)


def answer_and_word_likelihood(
    model: LLaMo, batch: Batch, *, batch_statistics: bool = False, dropout_key: Key[Array, ""] | None = None
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """The sum of both, over the number of target tokens: graph tokens stay among words while the decoder is asked."""
    hidden, out = model.hidden_states(batch, batch_statistics=batch_statistics, dropout_key=dropout_key)
    answers, count = cross_entropy(model, hidden, batch)
    return answers + questions_about_words(model, out["graph_tokens"], batch)[0], count


def idf_answer_and_word_likelihood(
    model: LLaMo, batch: Batch, *, batch_statistics: bool = False, dropout_key: Key[Array, ""] | None = None
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """As `answer_and_word_likelihood`, where a target counts 1 and its word's inverse document frequency besides.

    How a sentence is put says nothing about the molecule, and half of the answers' tokens are that: to frozen language
    models, noise that hides what there is to be read.
    """
    hidden, out = model.hidden_states(batch, batch_statistics=batch_statistics, dropout_key=dropout_key)
    weights = 1 + inverse_document_frequency(batch, len(model.language_model.embedding[...]))
    answers, count = cross_entropy(model, hidden, batch, weights)
    return answers + questions_about_words(model, out["graph_tokens"], batch)[0], count


def inverse_document_frequency(batch: Batch, vocabulary: int) -> Float[Array, "B T"]:
    """Of each target's word, among the answers of its shard that are about one molecule; 0 for other positions."""
    shards, slots = batch.molecules.atoms.n_node.shape

    def shard(targets: Int[Array, " n"], owners: Int[Array, " n"]) -> Float[Array, " n"]:
        words, used = _used_words(targets, owners, vocabulary, slots)
        place = jnp.minimum(jnp.searchsorted(words, targets), len(words) - 1)
        return jnp.where((owners >= 0) & (words[place] == targets), _idf(used)[place], 0)

    targets, owners = (x.reshape(shards, -1) for x in (batch.targets, _owners(batch)))
    return jax.vmap(shard)(targets, owners).reshape(batch.targets.shape)


def questions_about_words(
    model: LLaMo, graph_tokens: Float[Array, "S G Q D"], batch: Batch
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """See `word_likelihood`."""
    table = jax.lax.stop_gradient(model.language_model.embedding[...]).astype(jnp.float32)
    middle = jnp.mean(table, axis=0)
    spread = jnp.mean(jnp.sum((table - middle) ** 2, axis=1))
    shards = graph_tokens.shape[0]

    def shard(tokens: Float[Array, "G Q D"], targets: Array, owners: Array) -> tuple[Array, Array]:
        words, used = _used_words(targets, owners, len(table), len(tokens))
        places = tokens.astype(jnp.float32) - middle
        away = table[jnp.minimum(words, len(table) - 1)] - middle
        # the share of the way from the middle of all words to this one
        reached = jnp.einsum("gqd,kd->gqk", places, away / jnp.sum(away**2, axis=1, keepdims=True))
        logits = jax.nn.logsumexp(SHARPNESS * reached, axis=1) - SHARPNESS / 2
        shown = jnp.any(used, axis=1)
        asked = shown[:, None] & jnp.any(used, axis=0)
        questions = jnp.sum(jnp.where(asked, _idf(used) * jax.nn.softplus(jnp.where(used, -logits, logits)), 0))
        beyond = jax.nn.relu(jnp.sum(places**2, axis=-1) / spread - 1)
        distance = jnp.sum(jnp.where(shown[:, None], beyond, 0)) * DISTANCE
        return questions + distance, jnp.sum(used, dtype=jnp.int32)

    targets, owners = (x.reshape(shards, -1) for x in (batch.targets, _owners(batch)))
    totals, counts = jax.vmap(shard)(graph_tokens, targets, owners)
    return jnp.sum(totals), jnp.sum(counts)


def _idf(used: Bool[Array, "G K"]) -> Float[Array, " K"]:
    """Minus the logarithm of the share of answers that use each word."""
    answers = jnp.sum(jnp.any(used, axis=1))
    return -jnp.log(jnp.clip(jnp.sum(used, axis=0) / jnp.maximum(answers, 1), 1e-6, 1))


def _owners(batch: Batch) -> Int[Array, "B T"]:
    """The slot of the one molecule that each target's conversation shows; -1 for other positions."""

    def row(segments: Int[Array, " T"], slots: Int[Array, " T"], mask: Bool[Array, " T"]) -> Int[Array, " T"]:
        count = segments.shape[0] + 1
        last = jax.ops.segment_max(slots, segments, count)
        first = jax.ops.segment_min(jnp.where(slots >= 0, slots, jnp.iinfo(jnp.int32).max), segments, count)
        return jnp.where(mask & (first == last)[segments], last[segments], -1)

    return jax.vmap(row)(batch.segments, batch.molecule_slot, batch.target_mask)


def _used_words(
    targets: Int[Array, " n"], owner: Int[Array, " n"], vocabulary: int, slots: int
) -> tuple[Int[Array, " K"], Bool[Array, "G K"]]:
    """Words of a shard in rising order, filled up with a number that is none, and which molecule's answers use them."""
    size = min(vocabulary, targets.shape[0], MOST_WORDS)
    said = owner >= 0
    # one more than fits, to drop the number that stands for positions without a target
    words = jnp.unique(jnp.where(said, targets, vocabulary), size=size, fill_value=vocabulary)
    place = jnp.minimum(jnp.searchsorted(words, targets), size - 1)
    said &= words[place] == targets
    return words, jnp.zeros((slots, size), bool).at[jnp.where(said, owner, slots), place].set(True, mode="drop")
