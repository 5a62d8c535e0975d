"""Conversations to tokens: where molecules and their graph tokens stand, and which tokens are to be learned."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from data_pipeline.batch import EncodedConversation, GraphArrays
from data_pipeline.conversation import Conversation
from data_pipeline.tokenizer import TextTokenizer


class PromptError(ValueError):
    """A conversation that cannot become a prompt; `reason` is a short phrase that can be counted."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


class Text(NamedTuple):
    """Plain text, tokenized on its own; never becomes control tokens."""

    text: str
    is_target: bool = False


class Control(NamedTuple):
    """One control token: "bos" or "eos"."""

    name: str
    is_target: bool = False


class Graph(NamedTuple):
    """The graph tokens of one of the conversation's molecules."""

    molecule: int


Piece = Text | Control | Graph
PromptStyle = Callable[[Conversation, bool], Iterator[Piece]]


def plain_style(conversation: Conversation, show_smiles: bool) -> Iterator[Piece]:
    r"""`<s>User: SMILES [graph] question\nAssistant: answer</s>User: …`, for models trained from scratch.

    All molecules stand at the beginning of the first user turn; `show_smiles` False leaves only their graphs. A
    conversation that ends with a user turn ends in the prompt for the answer.
    """
    yield Control("bos")
    molecules_shown = False
    for role, content in conversation.messages:
        if role == "assistant":
            yield Text(f" {content.strip()}", is_target=True)
            yield Control("eos", is_target=True)
            continue
        yield Text(f"{role.capitalize()}:")
        if role == "user" and not molecules_shown:
            molecules_shown = True
            for index, smiles in enumerate(conversation.smiles):
                if show_smiles:
                    yield Text(f" {smiles}")
                yield Graph(index)
        yield Text(f" {content.strip()}\n")
        if role == "user":
            yield Text("Assistant:")


PROMPT_STYLES: dict[str, PromptStyle] = {"plain": plain_style}


class PromptEncoder:
    """Encodes conversations in one prompt style with one tokenizer, for a model with `num_graph_tokens` (Q)."""

    def __init__(self, tokenizer: TextTokenizer, num_graph_tokens: int, *, style: str, show_smiles: bool):
        if style not in PROMPT_STYLES:
            raise ValueError(f"unknown prompt style {style!r}; known: {', '.join(sorted(PROMPT_STYLES))}")
        self.tokenizer = tokenizer
        self.num_graph_tokens = num_graph_tokens
        self._style = PROMPT_STYLES[style]
        self._show_smiles = show_smiles

    def encode(self, examples: Sequence[tuple[Conversation, tuple[GraphArrays, ...]]]) -> list[EncodedConversation]:
        """All examples at once: their texts go through the tokenizer together."""
        layouts = [list(self._style(conversation, self._show_smiles)) for conversation, _ in examples]
        texts = [piece.text for layout in layouts for piece in layout if isinstance(piece, Text)]
        ids = iter(self.tokenizer.encode(texts))
        return [self._assemble(layout, ids, graphs) for layout, (_, graphs) in zip(layouts, examples, strict=True)]

    def _assemble(
        self, layout: list[Piece], ids: Iterator[list[int]], graphs: tuple[GraphArrays, ...]
    ) -> EncodedConversation:
        tokens: list[int] = []
        target: list[bool] = []
        molecule: list[int] = []
        query: list[int] = []
        for piece in layout:
            if isinstance(piece, Graph):
                count = self.num_graph_tokens
                tokens += [0] * count
                target += [False] * count
                molecule += [piece.molecule] * count
                query += range(count)
                continue
            new = next(ids) if isinstance(piece, Text) else self._control(piece.name)
            tokens += new
            target += [piece.is_target] * len(new)
            molecule += [-1] * len(new)
            query += [0] * len(new)
        return EncodedConversation(
            np.array(tokens, np.int32),
            np.array(target, bool),
            np.array(molecule, np.int32),
            np.array(query, np.int32),
            graphs,
        )

    def _control(self, name: str) -> list[int]:
        token = self.tokenizer.bos_id if name == "bos" else self.tokenizer.eos_id
        return [] if token is None else [token]


def truncate(conversation: EncodedConversation, max_tokens: int) -> EncodedConversation:
    """The first `max_tokens` predictions of a conversation, never cut inside graph tokens.

    Raises PromptError if that leaves nothing to predict, or cuts off a molecule's graph tokens.
    """
    length = max_tokens + 1  # the last token is only a target
    if np.any(conversation.molecule[length:] >= 0):
        raise PromptError("graph tokens beyond the row's end")
    if not conversation.is_target[1:length].any():
        raise PromptError("no answer within the row")
    tokens, is_target, molecule, query, graphs = conversation
    return EncodedConversation(tokens[:length], is_target[:length], molecule[:length], query[:length], graphs)
