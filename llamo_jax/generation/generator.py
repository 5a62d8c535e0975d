"""Answers to conversations: prompts in, text out, while rows of a batch come and go."""

import dataclasses
import functools
import math
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from data_pipeline.batch import EncodedConversation, GraphArrays
from data_pipeline.conversation import Conversation
from data_pipeline.prompt import PromptEncoder, without_answers
from data_pipeline.records import Record, featurized
from llamo_jax import distributed, sharding
from llamo_jax.config import ConfigError, DecodingConfig
from llamo_jax.generation.beams import beam_search
from llamo_jax.generation.cpu import for_decoding
from llamo_jax.generation.decode import Generated
from llamo_jax.generation.embeddings import Embedded, embed_graphs
from llamo_jax.generation.engine import Engine
from llamo_jax.generation.likelihood import target_log_probabilities
from llamo_jax.generation.memory import device_bytes, rows_per_shard
from llamo_jax.generation.prompts import GraphRoom, collate_prompts, prompt_bucket, row_bucket
from llamo_jax.generation.texts import TextStream
from llamo_jax.models.definition import ModelDefinition
from llamo_jax.parameters import Arrays

MAX_ROWS = 256
"""Answers decoded side by side on each batch shard, where there is room for them (llamo_jax.generation.memory). More
are no faster: from 240 (v5e) to 295 (H100) rows on, products with bfloat16 weights wait for arithmetic."""

CPU_ROWS = 64
"""The same in all, where devices do not tell how much memory they have."""

TOKENS_AT_A_TIME = 16
"""After so many tokens, finished rows are given to waiting prompts."""


class Answer(NamedTuple):
    """One answer: its text, its tokens (a stop token, if there is one, included), and their log-probabilities.

    log_probabilities: of the model, before any processing; in beam search none are known, and the beam's score is.
    """

    text: str
    tokens: np.ndarray  # int32[n]
    log_probabilities: np.ndarray | None  # float32[n]
    score: float  # summed log-probability; of a beam, divided by its length ** length_penalty


def _within(decoding: DecodingConfig, encoder: PromptEncoder, vocab_size: int) -> DecodingConfig:
    """Never an id that the tokenizer has no token for: models pad their vocabularies, and some have gaps.

    Raises ConfigError if the tokenizer has ids, or `decoding` stops at one, that the model does not know.
    """
    if encoder.tokenizer.size > vocab_size:
        raise ConfigError(
            f"the tokenizer has {encoder.tokenizer.size:,} tokens, the model knows {vocab_size:,}; take the model's own"
        )
    if any(index >= vocab_size for index in decoding.stop_ids):
        raise ConfigError(f"config.decoding.stop_ids: {decoding.stop_ids}, but the model has {vocab_size:,} tokens")
    known = encoder.tokenizer.ids()
    unknown = [index for index in range(vocab_size) if index not in known]
    return dataclasses.replace(decoding, suppressed_ids=(*decoding.suppressed_ids, *_ranges(unknown)))


def _ranges(ids: Sequence[int]) -> list[tuple[int, int]]:
    """(first, last) of every run of neighbours in ascending numbers."""
    found: list[tuple[int, int]] = []
    for index in ids:
        if found and index == found[-1][1] + 1:
            found[-1] = (found[-1][0], index)
        else:
            found.append((index, index))
    return found


class Generator:
    """A model, its weights on a mesh, and its prompt encoder.

    decoding: how answers are chosen. max_rows: how many are decoded side by side at most; by default as many as there
    is memory for. arrays_stay: the caller keeps `arrays`; see `for_decoding`.
    """

    def __init__(
        self,
        definition: ModelDefinition,
        arrays: Arrays,
        encoder: PromptEncoder,
        mesh: Mesh,
        decoding: DecodingConfig | None = None,
        *,
        max_rows: int | None = None,
        arrays_stay: bool = False,
    ):
        self.encoder = encoder
        self.decoding = _within(decoding or DecodingConfig(), encoder, definition.config.language_model.vocab_size)
        prepare = functools.partial(for_decoding, arrays_stay=True) if arrays_stay else for_decoding
        self._definition, self._arrays = prepare(definition, arrays, mesh)
        self.mesh = mesh
        self._max_rows = max_rows
        self.stop_ids = (*encoder.stop_ids, *self.decoding.stop_ids)

    def answer(self, conversations: Sequence[Conversation]) -> list[str]:
        """The answer to each conversation, which ends with a user turn; raises InvalidMoleculeError."""
        return self.answer_records([featurized(conversation) for conversation in conversations])

    def answer_records(self, records: Sequence[Record]) -> list[str]:
        """The same for conversations whose molecules are featurised already; the first of several samples."""
        found = dict(self.generate(records))
        return [found[index][0].text for index in range(len(records))]

    def generate(
        self, records: Sequence[Record], *, numbers: Sequence[int] | None = None, questions_only: bool = False
    ) -> Iterator[tuple[int, list[Answer]]]:
        """(index, its `num_samples` answers) for every record, as they are finished.

        numbers: what identifies each record, by default its index: with the same seed and number, the same is drawn,
        whatever is decoded beside it. With beams, the best ones are the samples. questions_only: earlier answers are
        left out of the prompts.
        """
        prompts = self.encoder.encode(records)
        if questions_only:
            prompts = list(map(without_answers, prompts))
        groups: dict[int, list[int]] = defaultdict(list)
        for index, prompt in enumerate(prompts):
            groups[prompt_bucket(len(prompt.tokens))].append(index)
        numbers = range(len(records)) if numbers is None else numbers
        # one group for each length bucket, so that no prompt is padded to twice its length
        for length in sorted(groups, reverse=True):  # what needs most memory first
            if self.decoding.num_beams > 1:
                yield from self._search(prompts, groups[length], length)
            else:
                yield from self._sampled(prompts, groups[length], length, numbers)

    def stream(self, conversation: Conversation) -> Iterator[str]:
        """The answer, piece by piece; together they are what `answer` returns. Raises InvalidMoleculeError."""
        if self.decoding.num_beams > 1:
            yield self.answer([conversation])[0]
            return
        (prompt,) = self.encoder.encode([featurized(conversation)])
        engine = self.engine(sharding.batch_shards(self.mesh), len(prompt.tokens), GraphRoom.of([prompt]))
        engine.admit([(0, prompt, self._key(0, 0))])
        text, finished = TextStream(self.text), False
        while not finished:
            generated, (finished, *_) = engine.advance(1)
            if piece := text.shown(generated.tokens[0, : generated.lengths[0]].tolist(), whole=bool(finished)):
                yield piece

    @property
    def num_graph_tokens(self) -> int:
        """Q, of a molecule."""
        return self._definition.config.num_graph_tokens

    def engine(self, rows: int, prompt_tokens: int, room: GraphRoom, *, own_choices: bool = False) -> Engine:
        """Rows for prompts of at most so many tokens, on the devices; raises ConfigError if they do not fit."""
        model = (self._definition, self._arrays)
        return Engine(model, self.mesh, self.decoding, self.stop_ids, rows, prompt_tokens, room, own_choices)

    def fitting_rows(self, count: int, prompt_tokens: int) -> int:
        """Answers to such prompts that fit side by side, if `count` are wanted; raises ConfigError if none does."""
        return self._rows(count, prompt_tokens)

    def embed(self, graphs: Sequence[GraphArrays]) -> Iterator[tuple[int, Embedded]]:
        """(index, graph tokens and means of the encoder's levels) of every molecule, as they are finished."""
        return embed_graphs(self._definition, self._arrays, self.mesh, graphs)

    def target_log_probabilities(self, records: Sequence[Record]) -> list[np.ndarray]:
        """For each conversation, which holds its answers: float32, the log-probability of each target token."""
        return self.log_probabilities(self.encoder.encode(records))

    def log_probabilities(self, conversations: Sequence[EncodedConversation]) -> list[np.ndarray]:
        """As `target_log_probabilities`, of conversations that are encoded already."""
        return target_log_probabilities(self._definition, self._arrays, self.mesh, conversations)

    def _sampled(
        self, prompts: Sequence[EncodedConversation], indices: Sequence[int], length: int, numbers: Sequence[int]
    ) -> Iterator[tuple[int, list[Answer]]]:
        """Continuous batching: a row that is finished goes to the next prompt."""
        samples = self.decoding.num_samples
        waiting = deque((index, sample) for index in indices for sample in range(samples))
        rows = self._rows(len(waiting), length)
        mine = [prompts[index] for index in indices]
        engine = self.engine(rows, max(len(prompt.tokens) for prompt in mine), GraphRoom.of(mine))
        running: dict[int, tuple[int, int]] = {}  # row → (prompt, sample)
        done: dict[int, dict[int, Answer]] = defaultdict(dict)
        free = list(range(rows))
        while waiting or running:
            # several at a time: a prompt alone would cost the others nearly as much waiting
            if waiting and len(free) >= min(len(waiting), max(1, rows // 4)):
                places = free[: len(waiting)]
                free = free[len(places) :]
                running |= {place: waiting.popleft() for place in places}
                engine.admit(
                    [(place, prompts[running[place][0]], self._key(numbers[running[place][0]], running[place][1]))
                     for place in places]
                )  # fmt: skip
            # one program runs several tokens without the host: at one a time, a small model would wait for Python
            generated, finished = engine.advance(TOKENS_AT_A_TIME)
            for place in [place for place in running if finished[place]]:
                index, sample = running.pop(place)
                free.append(place)
                done[index][sample] = self._answer(generated, place)
                if len(done[index]) == samples:
                    yield index, [done[index][number] for number in range(samples)]
                    del done[index]

    def _search(
        self, prompts: Sequence[EncodedConversation], indices: Sequence[int], length: int
    ) -> Iterator[tuple[int, list[Answer]]]:
        shards = sharding.batch_shards(self.mesh)
        rows = self._rows(len(indices), length, self.decoding.num_beams)
        room = GraphRoom.of(prompts[index] for index in indices)
        for start in range(0, len(indices), rows):
            chunk = indices[start : start + rows]
            batch = collate_prompts(
                [prompts[index] for index in chunk],
                rows=rows,
                shards=shards,
                room=room,
                vocabulary=self._definition.config.graph_encoder.vocabulary,
            )
            with jax.set_mesh(self.mesh):
                found = beam_search(
                    self._definition,
                    self._arrays,
                    sharding.put_global(batch, self.mesh),
                    decoding=self.decoding,
                    stop_ids=self.stop_ids,
                )
            tokens, scores, lengths = map(np.asarray, found)
            for row, index in enumerate(chunk):
                yield (
                    index,
                    [
                        Answer(self.text(ids[:length].tolist()), ids[:length], None, float(score))
                        for ids, score, length in list(zip(tokens[row], scores[row], lengths[row], strict=True))[
                            : self.decoding.num_samples
                        ]
                    ],
                )

    def _rows(self, count: int, length: int, beams: int = 1) -> int:
        """Rows of a batch for `count` prompts of `length` tokens; raises ConfigError if not even one fits."""
        shards = sharding.batch_shards(self.mesh)
        slots = length + self.decoding.max_new_tokens
        # the least of all processes: they run one program, of one shape
        fit = distributed.least(
            rows_per_shard(self._definition.config, slots, self.mesh.shape["tensor"], *device_bytes())
        )
        if fit < beams:
            raise ConfigError(
                f"no room for the cache of {beams} answers of {slots} tokens beside the weights; use more devices "
                "(config.tensor), fewer beams, or config.decoding.max_new_tokens"
            )
        most = min(MAX_ROWS, fit) * shards if math.isfinite(fit) else CPU_ROWS
        most = (most if self._max_rows is None else min(self._max_rows, most)) // beams
        rows = row_bucket(min(count, max(1, int(most))), shards)
        return rows if rows * beams <= fit * shards else rows // 2  # buckets round up

    def _key(self, number: int, sample: int) -> np.ndarray:
        """What a sample is drawn from: uint32[2], the key's data."""
        return np.array([self.decoding.seed, number * self.decoding.num_samples + sample], np.uint32)

    def _answer(self, generated: Generated, row: int) -> Answer:
        length = int(generated.lengths[row])
        tokens = np.asarray(generated.tokens[row, :length])
        log_probabilities = np.asarray(generated.log_probabilities[row, :length])
        return Answer(self.text(tokens.tolist()), tokens, log_probabilities, float(np.sum(log_probabilities)))

    def text(self, ids: Sequence[int]) -> str:
        """What an answer of these tokens says, without the stop token that may end it."""
        return self.encoder.tokenizer.decode(ids[:-1] if ids and ids[-1] in self.stop_ids else ids).strip()
