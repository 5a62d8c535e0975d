"""The assistant: a trained model that answers questions about molecules."""

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from data_pipeline.batch import GraphArrays
from data_pipeline.claims import Claim, check, claims_in
from data_pipeline.conversation import Conversation, Message
from data_pipeline.guard import tried
from data_pipeline.mol_graph import read_mol
from data_pipeline.molecule import featurize, parse_smiles
from data_pipeline.motifs import motif_atoms
from data_pipeline.records import featurized
from llamo_jax.analysis.attention import Attention, attend, words_of
from llamo_jax.config import ConfigError, DecodingConfig
from llamo_jax.generation.generator import Generator
from llamo_jax.loading import describe_model, load_generator, load_model
from llamo_jax.models import LLaMo

EMBEDDINGS = ("pooled", "graph_tokens", "levels")
"""What `Assistant.embed` gives."""


class Verdict(NamedTuple):
    """A claim of an answer, and whether it is true of at least one of the molecules."""

    claim: Claim
    true: bool


class Look(NamedTuple):
    """Where an answer looked, of one molecule with N atoms.

    words: the answer's; atoms: float32[words, N], the attention of each to each atom, directly and as a part of motifs;
    attention: of every token, to graph tokens and motifs as well.
    """

    words: list[str]
    atoms: np.ndarray
    attention: Attention


class Explanation(NamedTuple):
    """An answer, its claims, and where it looked: one entry for each molecule, none if the model does not tell."""

    answer: str
    claims: list[Verdict]
    looks: list[Look]


class Assistant:
    """Answers questions, one at a time or in batches; made by `Assistant.load`.

    about: what the model is and was taught, for people. trained_tokens: the longest row that it was trained on, if
    that is known.
    """

    def __init__(
        self,
        generator: Generator,
        about: str = "",
        trained_tokens: int | None = None,
        module: Callable[[], LLaMo] | None = None,
    ):
        """module: what makes the model's module for `explain`, when it is asked for first."""
        self.generator = generator
        self.about = about
        self.trained_tokens = trained_tokens
        self._make_module = module
        self._module: LLaMo | None = None
        self._making = threading.Lock()

    @classmethod
    def load(
        cls, checkpoint_dir: str | os.PathLike, *, decoding: DecodingConfig | None = None, tensor: int = 0
    ) -> "Assistant":
        """From a run's workdir or a model folder; see `llamo_jax.loading.load_generator`. Raises CheckpointError."""
        generator, _ = load_generator(checkpoint_dir, decoding=decoding, tensor=tensor)
        return cls(generator, *describe_model(checkpoint_dir), lambda: load_model(checkpoint_dir))

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

    def explain(
        self,
        question: str,
        *,
        smiles: str | Sequence[str] = (),
        history: Sequence[tuple[str, str]] = (),
        answer: str | None = None,
    ) -> Explanation:
        """The answer, or the one given, with its claims checked by RDKit and the atoms that its words looked at.

        Attention shows where a model looks, and not why (llamo_jax.analysis.attention). The first call loads the
        weights once more, onto the first device. Raises InvalidMoleculeError.
        """
        asked = _conversation(question, smiles, history)
        answer = self.generator.answer([asked])[0] if answer is None else answer
        if not answer.strip():
            return Explanation(answer, [], [])
        return Explanation(answer, _verdicts(answer, asked.smiles), self._looks(asked, answer))

    def _looks(self, asked: Conversation, answer: str) -> list[Look]:
        if not (asked.smiles and self.generator.encoder.show_graph and self._make_module):
            return []
        with self._making:
            self._module = self._module or self._make_module()
        record = featurized(asked._replace(messages=(*asked.messages, Message("assistant", answer))))
        found = []
        for number, each in enumerate(asked.smiles):
            try:
                attention = attend(self._module, self.generator.encoder, record, number)
            except ConfigError:  # a projector that does not tell
                return []
            per_token = attention.of_atoms(motif_atoms(read_mol(parse_smiles(each))))
            words = words_of(attention.tokens)
            atoms = np.stack([per_token[places].mean(axis=0) for _, places in words])
            found.append(Look([word for word, _ in words], atoms, attention))
        return found


def _verdicts(answer: str, smiles: Sequence[str]) -> list[Verdict]:
    if not smiles:
        return []
    true = {claim for each in smiles for claim in check(answer, each).true}
    return [Verdict(claim, claim in true) for claim in dict.fromkeys(claims_in(answer))]


def _conversation(
    question: str, smiles: str | Sequence[str] = (), history: Sequence[tuple[str, str]] = ()
) -> Conversation:
    turns = [Message(role, text) for turn in history for role, text in zip(("user", "assistant"), turn, strict=True)]
    shown = (smiles,) if isinstance(smiles, str) else tuple(smiles)
    for each in shown:
        tried(featurize, each)  # whatever people type, the program goes on
    return Conversation(shown, (*turns, Message("user", question)))
