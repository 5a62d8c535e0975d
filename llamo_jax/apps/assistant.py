"""The assistant: a trained model that answers questions about molecules."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data_pipeline.batch import GraphArrays
from data_pipeline.conversation import Conversation, Message
from data_pipeline.guard import tried
from data_pipeline.molecule import featurize
from data_pipeline.records import featurized
from llamo_jax.config import ConfigError, DecodingConfig
from llamo_jax.generation.generator import Generator
from llamo_jax.loading import describe_model, load_generator

EMBEDDINGS = ("pooled", "graph_tokens", "levels")
"""What `Assistant.embed` gives."""


class Assistant:
    """Answers questions, one at a time or in batches; made by `Assistant.load`.

    about: what the model is and was taught, for people. trained_tokens: the longest row that it was trained on, if
    that is known.
    """

    def __init__(self, generator: Generator, about: str = "", trained_tokens: int | None = None):
        self.generator = generator
        self.about = about
        self.trained_tokens = trained_tokens

    @classmethod
    def load(
        cls, checkpoint_dir: str | os.PathLike, *, decoding: DecodingConfig | None = None, tensor: int = 0
    ) -> "Assistant":
        """From a run's workdir or a model folder; see `llamo_jax.loading.load_generator`. Raises CheckpointError."""
        generator, _ = load_generator(checkpoint_dir, decoding=decoding, tensor=tensor)
        return cls(generator, *describe_model(checkpoint_dir))

    def ask(self, question: str, *, smiles: str | Sequence[str] = (), history: Sequence[tuple[str, str]] = ()) -> str:
        """The answer to a question about the molecules, after earlier (question, answer) turns.

        Raises InvalidMoleculeError if a SMILES is refused.
        """
        return self.generator.answer([_conversation(question, smiles, history)])[0]

    def stream(
        self, question: str, *, smiles: str | Sequence[str] = (), history: Sequence[tuple[str, str]] = ()
    ) -> Iterator[str]:
        """The same answer, piece by piece, as its tokens are chosen."""
        return self.generator.stream(_conversation(question, smiles, history))

    def too_long(
        self, question: str, *, smiles: str | Sequence[str] = (), history: Sequence[tuple[str, str]] = ()
    ) -> str | None:
        """A line that says so, if the prompt is longer than anything that the model was trained on; else None."""
        (prompt,) = self.generator.encoder.encode([featurized(_conversation(question, smiles, history))])
        length = len(prompt.tokens)
        if self.trained_tokens is None or length <= self.trained_tokens:
            return None
        return f"the conversation has {length:,} tokens, the model was trained on at most {self.trained_tokens:,}"

    def answer_batch(self, requests: Sequence[Mapping[str, Any]]) -> list[str]:
        """Answers to requests {"question", "smiles", "history"} (the last two optional), decoded together."""
        return self.generator.answer([_conversation(**request) for request in requests])

    def embed(self, smiles: Sequence[str], *, what: str = "pooled") -> np.ndarray:
        """Vectors of molecules, float32, in their order, the same in any company.

        Raises InvalidMoleculeError, and ConfigError if the model has no graph tokens.

        what: "pooled" gives [n, D], the mean of the graph tokens; "graph_tokens" [n, Q, D], what the language model is
        shown; "levels" [n, L, F], the mean over the atoms of each of the encoder's levels, the features' first.
        """
        if what not in EMBEDDINGS:
            raise ValueError(f"what={what!r} is none of {', '.join(EMBEDDINGS)}")
        if what != "levels" and not self.generator.num_graph_tokens:
            raise ConfigError("this model's projector gives no graph tokens; ask for levels")
        graphs = [GraphArrays(*featurize(each)[1:]) for each in smiles]
        found: list[np.ndarray] = [np.empty(0)] * len(graphs)
        for index, vectors in self.generator.embed(graphs):
            tokens = vectors.graph_tokens
            found[index] = {"pooled": tokens.mean(0), "graph_tokens": tokens, "levels": vectors.levels}[what]
        return np.stack(found)


def _conversation(
    question: str, smiles: str | Sequence[str] = (), history: Sequence[tuple[str, str]] = ()
) -> Conversation:
    turns = [Message(role, text) for turn in history for role, text in zip(("user", "assistant"), turn, strict=True)]
    shown = (smiles,) if isinstance(smiles, str) else tuple(smiles)
    for each in shown:
        tried(featurize, each)  # whatever people type, the program goes on
    return Conversation(shown, (*turns, Message("user", question)))
