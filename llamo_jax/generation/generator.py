"""Answers to questions about molecules: prompts in, text out."""

from collections.abc import Sequence

import numpy as np

from data_pipeline.conversation import Conversation
from data_pipeline.prompt import PromptEncoder
from data_pipeline.records import Record, featurized
from llamo_jax.generation.decode import collate_prompts, greedy
from llamo_jax.models.definition import ModelDefinition
from llamo_jax.parameters import Arrays

MAX_BATCH = 64
"""Prompts decoded at a time; more are done in several batches."""


class Generator:
    """A model, its weights and its prompt encoder; answers conversations greedily."""

    def __init__(
        self, definition: ModelDefinition, arrays: Arrays, encoder: PromptEncoder, *, max_new_tokens: int = 128
    ):
        self._definition = definition
        self._arrays = arrays
        self._encoder = encoder
        self._max_new_tokens = max_new_tokens

    def answer(self, conversations: Sequence[Conversation]) -> list[str]:
        """The answer to each conversation, which ends with a user turn; raises InvalidMoleculeError."""
        return self.answer_records([featurized(conversation) for conversation in conversations])

    def answer_records(self, records: Sequence[Record]) -> list[str]:
        """The same for conversations whose molecules are featurised already."""
        answers: list[str] = []
        eos = self._encoder.end_id
        for start in range(0, len(records), MAX_BATCH):
            chunk = records[start : start + MAX_BATCH]
            batch = collate_prompts(self._encoder.encode(chunk), eos)
            found = greedy(self._definition, self._arrays, batch, max_new_tokens=self._max_new_tokens, eos_id=eos)
            answers += [self._text(row) for row in np.asarray(found.tokens)[: len(chunk)]]
        return answers

    def _text(self, tokens: np.ndarray) -> str:
        ended = np.flatnonzero(tokens == self._encoder.end_id)
        return self._encoder.tokenizer.decode((tokens[: ended[0]] if len(ended) else tokens).tolist()).strip()
