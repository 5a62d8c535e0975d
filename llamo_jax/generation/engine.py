"""Rows of answers on the devices, which are given to prompts and go on some tokens at a time."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from data_pipeline.batch import EncodedConversation
from llamo_jax import sharding
from llamo_jax.config import DecodingConfig
from llamo_jax.generation.decode import Generated, admit, advance, empty_rows, released
from llamo_jax.generation.processing import Choices
from llamo_jax.generation.prompts import GraphRoom, collate_prompts, prompt_bucket, row_bucket
from llamo_jax.models.definition import ModelDefinition
from llamo_jax.parameters import Arrays

ADMITTED = 16
"""Prompts that go through the model at a time on each batch shard: their activations need room, too."""


class Engine:
    """`rows` answers side by side, to prompts of at most `prompt_tokens` and of graphs that fit `room`.

    Three programs do all: one for the next tokens, and two for new prompts, many of them or few. own_choices: prompts
    bring settings of their own, which take the place of `decoding`'s. The mesh is set for each call only, since callers
    may wait.
    """

    def __init__(
        self,
        model: tuple[ModelDefinition, Arrays],
        mesh: Mesh,
        decoding: DecodingConfig,
        stop_ids: tuple[int, ...],
        rows: int,
        prompt_tokens: int,
        room: GraphRoom,
        own_choices: bool = False,
    ):
        self._model = model
        self._settings = {"decoding": decoding, "stop_ids": stop_ids}
        self._mesh = mesh
        self._count = rows
        self._shards = sharding.batch_shards(mesh)
        self._room = room
        many = min(rows, ADMITTED * self._shards)
        self._sizes = sorted({row_bucket(max(1, many // 4), self._shards), many})
        slots = prompt_bucket(prompt_tokens) + decoding.max_new_tokens
        with jax.set_mesh(mesh):
            self._rows = empty_rows(*model, rows=rows, slots=slots, own_choices=own_choices, **self._settings)

    def admit(self, prompts: Sequence[tuple[int, EncodedConversation, np.ndarray]]) -> None:
        """Gives rows to (row, prompt, key's data)."""
        for start in range(0, len(prompts), self._sizes[-1]):
            group = prompts[start : start + self._sizes[-1]]
            self._admit(group, next(size for size in self._sizes if size >= len(group)), self._room)

    def admit_alone(
        self, row: int, prompt: EncodedConversation, key: np.ndarray, *, temperature: float, top_p: float, limit: int
    ) -> None:
        """Gives a row to one prompt with settings of its own; see processing.Choices.

        It goes through the model without others, with as much padding as its own size asks for: its answer is the same
        to the last bit in any company.
        """
        many = self._shards  # of which the others are padding
        choices = Choices(
            jnp.full(many, temperature, jnp.float32),
            jnp.full(many, top_p, jnp.float32),
            jnp.full(many, limit, jnp.int32),
        )
        self._admit([(row, prompt, key)], many, GraphRoom.of([prompt], coarse=True), choices)

    def _admit(
        self,
        prompts: Sequence[tuple[int, EncodedConversation, np.ndarray]],
        count: int,
        room: GraphRoom,
        choices: Choices | None = None,
    ) -> None:
        encoded = [prompt for _, prompt, _ in prompts]
        vocabulary = self._model[0].config.graph_encoder.vocabulary
        batch = collate_prompts(encoded, rows=count, shards=self._shards, room=room, vocabulary=vocabulary)
        places = np.full(count, self._count, np.int32)
        places[: len(prompts)] = [place for place, _, _ in prompts]
        data = np.zeros((count, 2), np.uint32)  # a threefry key is two numbers: (seed, number of the sample)
        data[: len(prompts)] = [key for _, _, key in prompts]
        with jax.set_mesh(self._mesh):
            batch = sharding.put_global(batch, self._mesh)
            self._rows = admit(*self._model, self._rows, batch, data, places, choices=choices, **self._settings)

    def advance(self, tokens: int) -> tuple[Generated, np.ndarray]:
        """Up to `tokens` more for every row: the answers so far, and which are finished, on the host."""
        with jax.set_mesh(self._mesh):
            self._rows, generated, finished = advance(*self._model, self._rows, tokens=tokens, **self._settings)
        return jax.device_get((generated, finished))

    def release(self, rows: Sequence[int]) -> None:
        """Ends these answers where they are."""
        places = np.full(self._count, self._count, np.int32)
        places[: len(rows)] = rows
        with jax.set_mesh(self._mesh):
            self._rows = released(self._rows, places)
