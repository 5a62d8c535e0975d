"""Conversations to tokens: where molecules and their graph tokens stand, and which tokens are to be learned."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from data_pipeline.batch import EncodedConversation, GraphArrays
from data_pipeline.conversation import Conversation, Message
from data_pipeline.errors import DataError, PromptError
from data_pipeline.tokenizer import (
    TEMPLATE_SETTINGS,
    ChatTokenizer,
    HuggingFaceTokenizer,
    SentencePieceTokenizer,
    TextTokenizer,
)

PROMPT_VERSION = 1
"""Raise when the same conversation gets other tokens; measured token lengths are keyed by it."""


class Text(NamedTuple):
    """Plain text, tokenized on its own; never becomes control tokens. `bare`: it directly follows a control token."""

    text: str
    is_target: bool = False
    bare: bool = False


class Control(NamedTuple):
    """One control token, by its id."""

    token: int | None  # None: the tokenizer has no such token, and the prompt goes without
    is_target: bool = False


class Graph(NamedTuple):
    """The graph tokens of one of the conversation's molecules."""

    molecule: int


Piece = Text | Control | Graph
PromptStyle = Callable[[Conversation, bool, TextTokenizer], Iterator[Piece]]
"""(conversation, show_smiles, tokenizer) → the pieces of its prompt; a conversation may end with a user turn."""


def plain_style(conversation: Conversation, show_smiles: bool, tokenizer: TextTokenizer) -> Iterator[Piece]:
    r"""`<s>User: SMILES [graph] question\nAssistant: answer</s>User: …`, for models trained from scratch.

    All molecules stand in the first user turn; `show_smiles` False leaves only their graphs. A conversation that ends
    with a user turn ends in the prompt for the answer.
    """
    yield Control(tokenizer.bos_id)
    place = _graph_place(conversation)
    for index, (role, content) in enumerate(conversation.messages):
        if role == "assistant":
            # the space is a target too: byte-level tokenizers join it with the word, and prompts end in "Assistant:"
            yield Text(f" {content.strip()}", is_target=True)
            yield Control(tokenizer.eos_id, is_target=True)
            continue
        yield Text(f"{role.capitalize()}:")
        before, after = _split_at_graphs(content, index, place)
        if before is not None:
            for molecule, smiles in enumerate(conversation.smiles):
                if show_smiles:
                    yield Text(f" {smiles}")
                if not before:
                    yield Graph(molecule)
            if before:
                yield Text(f" {before.strip()}")
                yield from map(Graph, range(len(conversation.smiles)))
        yield Text(f" {after.strip()}\n")
        if role == "user":
            yield Text("Assistant:")


LLAMA2_SYSTEM = "The following is a conversation between a curious human and AI assistant."
_LLAMA2_SMILES = 128  # characters of a SMILES that are shown; the graph is always whole


def llama2_style(conversation: Conversation, show_smiles: bool, tokenizer: TextTokenizer) -> Iterator[Piece]:
    """The original's prompt around Llama-2-chat, token for token for every well-formed conversation.

    `[INST] <<SYS>> system <</SYS>> SMILES <graph> question [/INST] answer </s>`, later turns `<s>[INST] question
    [/INST]`. The text between two graphs is stripped and tokenized on its own. A system message replaces the standard
    one.
    """
    yield Control(tokenizer.bos_id)
    place = _graph_place(conversation)
    system = "\n".join(message.content for message in conversation.messages if message.role == "system")
    last = len(conversation.messages) - 1
    # after_eos: a text behind a control token is tokenized without sentencepiece's space in front, as the original's is
    first_turn, after_eos = True, False
    for index, (role, content) in enumerate(conversation.messages):
        if role == "system":
            continue
        if role == "assistant":
            # only the last answer is stripped in the original; its token ids are those of the golden prompts
            yield from _stripped(content.strip() if index == last else content, is_target=True, strip=False)
            yield Control(tokenizer.eos_id, is_target=True)
            after_eos = True
            continue
        if after_eos:
            yield Control(tokenizer.bos_id)
        before, after = _split_at_graphs(content, index, place)
        text = f"[INST] <<SYS>>\n{system or LLAMA2_SYSTEM}\n<</SYS>>\n\n" if first_turn else "[INST] "
        if before is not None:
            for molecule, smiles in enumerate(conversation.smiles):
                if show_smiles:
                    text += smiles[:_LLAMA2_SMILES]
                if before:
                    text += " "
                else:
                    yield from _stripped(text, bare=after_eos)
                    yield Graph(molecule)
                    text = " "
            if before:
                yield from _stripped(text + before, bare=after_eos)
                yield from map(Graph, range(len(conversation.smiles)))
                text = ""
        yield from _stripped(f"{text}{after} [/INST]", bare=after_eos and before is None)
        first_turn = False


def chat_template_style(conversation: Conversation, show_smiles: bool, tokenizer: TextTokenizer) -> Iterator[Piece]:
    """The tokenizer's own chat template (Llama-3, Qwen2, Mistral, …); messages are stripped, and stay plain text.

    Targets are the assistant's words and the control token after them.
    """
    if not isinstance(tokenizer, HuggingFaceTokenizer | SentencePieceTokenizer):
        raise DataError("prompt style 'chat_template' needs a tokenizer with a chat template")
    # sentencepiece puts a space in front of a text where the prompt begins, and behind control tokens at most
    behind: Piece | None = None
    for piece in _joined(_chat_pieces(conversation, show_smiles, tokenizer)):
        if isinstance(piece, Text) and behind is not None:
            piece = piece._replace(bare=not (isinstance(behind, Control) and tokenizer.space_after_control))
        behind = piece
        yield piece


def _chat_pieces(conversation: Conversation, show_smiles: bool, tokenizer: ChatTokenizer) -> Iterator[Piece]:
    place = _graph_place(conversation)
    contents: list[list[Piece]] = []
    for index, (role, content) in enumerate(conversation.messages):
        before, after = _split_at_graphs(content, index, place)
        before, after = before and before.strip(), after.strip()
        pieces: list[Piece] = []
        if before is not None:
            for molecule, smiles in enumerate(conversation.smiles):
                pieces += [Text(smiles)] if show_smiles else []
                pieces += [] if before else [Graph(molecule)]
            pieces += [Text(f" {before}"), *map(Graph, range(len(conversation.smiles)))] if before else []
            after = f" {after}"
        contents.append([*pieces, Text(after, is_target=role == "assistant")])
    marks = [f"\ue000{index}\ue001" for index in range(len(contents))]  # private use: no template contains them
    messages = [{"role": m.role, "content": mark} for m, mark in zip(conversation.messages, marks, strict=True)]
    # The template is rendered around marks instead of the messages, so that it is known where its own text ends and a
    # message begins: control tokens come from the template alone, whatever a message says.
    rendered = tokenizer.render_chat(messages, add_generation_prompt=conversation.messages[-1].role == "user")
    control = tokenizer.control_tokens()
    pattern = "|".join(["\ue000\\d+\ue001", *map(re.escape, sorted(control, key=len, reverse=True))])
    in_answer = False
    for part in re.split(f"({pattern})", rendered):
        if part in control:
            yield Control(control[part], is_target=in_answer)
            in_answer = False
        elif part in marks:
            index = marks.index(part)
            in_answer = conversation.messages[index].role == "assistant"
            yield from contents[index]
        elif part:
            yield Text(part, is_target=in_answer)


def _joined(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Neighbouring texts of a chat template as one, so that tokens are those of the whole; targets stay apart."""
    waiting: Text | None = None
    for piece in pieces:
        if isinstance(piece, Text) and waiting is not None and piece.is_target == waiting.is_target:
            waiting = waiting._replace(text=waiting.text + piece.text)
            continue
        if waiting is not None:
            yield waiting
        waiting = piece if isinstance(piece, Text) else None
        if waiting is None:
            yield piece
    if waiting is not None:
        yield waiting


PROMPT_STYLES: dict[str, PromptStyle] = {
    "plain": plain_style,
    "llama2": llama2_style,
    "chat_template": chat_template_style,
}


def _graph_place(conversation: Conversation) -> tuple[int, int] | None:
    """(message, character) of the conversation's graphs: where it says, or at the start of the first user turn."""
    if not conversation.smiles:
        return None
    if conversation.graph_at is not None:
        return conversation.graph_at
    users = [index for index, message in enumerate(conversation.messages) if message.role == "user"]
    if not users:
        raise PromptError("no question")
    return users[0], 0


def _split_at_graphs(content: str, index: int, place: tuple[int, int] | None) -> tuple[str | None, str]:
    """The message's text before and after the graphs; (None, text) if they do not stand in it."""
    if place is None or place[0] != index:
        return None, content
    return content[: place[1]], content[place[1] :]


def _stripped(text: str, *, is_target: bool = False, bare: bool = False, strip: bool = True) -> Iterator[Text]:
    text = text.strip() if strip else text
    if text:
        yield Text(text, is_target, bare)


class PromptEncoder:
    """Encodes conversations in one prompt style with one tokenizer, for a model with `num_graph_tokens` (Q).

    show_smiles, show_graph: what of a molecule the prompts show; without its graph, or any token for it (Q = 0), no
    molecule enters a batch.
    end_id: the token that ends an answer in training; stop_ids: those that end a generated one.
    """

    def __init__(
        self, tokenizer: TextTokenizer, num_graph_tokens: int, *, style: str, show_smiles: bool, show_graph: bool = True
    ):
        if style not in PROMPT_STYLES:
            raise ValueError(f"unknown prompt style {style!r}; known: {', '.join(sorted(PROMPT_STYLES))}")
        self.tokenizer = tokenizer
        self.num_graph_tokens = num_graph_tokens
        self._style_name = style
        self._style = PROMPT_STYLES[style]
        self._show_smiles = show_smiles
        self.show_graph = show_graph and num_graph_tokens > 0
        self.end_id = self._end_of_answer()
        self.stop_ids = tuple(dict.fromkeys((self.end_id, tokenizer.eos_id)))

    def encode(self, examples: Sequence[tuple[Conversation, tuple[GraphArrays, ...]]]) -> list[EncodedConversation]:
        """All examples at once: their texts go through the tokenizer together. Raises PromptError."""
        layouts = [list(self._layout(conversation)) for conversation, _ in examples]
        texts = [piece for layout in layouts for piece in layout if isinstance(piece, Text)]
        ids = iter(self.tokenizer.encode([piece.text for piece in texts], [piece.bare for piece in texts]))
        return [self._assemble(layout, ids, graphs) for layout, (_, graphs) in zip(layouts, examples, strict=True)]

    def encode_each(
        self, examples: Sequence[tuple[Conversation, tuple[GraphArrays, ...]]]
    ) -> list[EncodedConversation | None]:
        """As `encode`; None for what the prompt style refuses."""
        try:
            return list(self.encode(examples))
        except PromptError:
            return [None] if len(examples) == 1 else [self.encode_each([example])[0] for example in examples]

    def fingerprint(self) -> str:
        """Equal for encoders that give equal tokens."""
        parts = (
            PROMPT_VERSION,
            self.tokenizer.fingerprint(),
            self._style_name,
            self._show_smiles,
            self.num_graph_tokens,
            *([] if self.show_graph else ["no graphs"]),
            *([TEMPLATE_SETTINGS] if self._style_name == "chat_template" and self._asks_for_settings() else []),
        )
        if self._style_name == "chat_template" and isinstance(self.tokenizer, SentencePieceTokenizer):
            # not in its own
            return _digest((*parts, self.tokenizer.chat_template, self.tokenizer.space_after_control))
        return _digest(parts)

    def _asks_for_settings(self) -> bool:
        template = str(getattr(self.tokenizer, "chat_template", ""))
        return any(name in template for name in TEMPLATE_SETTINGS)

    def _layout(self, conversation: Conversation) -> Iterator[Piece]:
        pieces = self._style(conversation, self._show_smiles, self.tokenizer)
        return pieces if self.show_graph else (piece for piece in pieces if not isinstance(piece, Graph))

    def _end_of_answer(self) -> int:
        turn = Conversation((), (Message("user", "?"), Message("assistant", "!")))
        ends = [piece.token for piece in self._layout(turn) if isinstance(piece, Control) and piece.is_target]
        if not ends or ends[0] is None:
            raise DataError(f"prompt style {self._style_name!r}: no control token ends the answers")
        return ends[0]

    def _assemble(
        self, layout: list[Piece], ids: Iterator[list[int]], graphs: tuple[GraphArrays, ...]
    ) -> EncodedConversation:
        count = self.num_graph_tokens
        tokens: list[int] = []
        target: list[bool] = []
        spans: list[tuple[int, int]] = []  # (first position, molecule)
        for piece in layout:
            if isinstance(piece, Graph):
                spans.append((len(tokens), piece.molecule))
                tokens += [0] * count
                target += [False] * count
                continue
            control = piece.token if isinstance(piece, Control) else None
            new = next(ids) if isinstance(piece, Text) else [] if control is None else [control]
            tokens += new
            target += [piece.is_target] * len(new)
        molecule = np.full(len(tokens), -1, np.int32)
        query = np.zeros(len(tokens), np.int32)
        for start, index in spans:
            molecule[start : start + count] = index
            query[start : start + count] = np.arange(count)
        graphs = graphs if self.show_graph else ()
        return EncodedConversation(np.array(tokens, np.int32), np.array(target, bool), molecule, query, graphs)


def _digest(parts: tuple) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def without_answers(conversation: EncodedConversation, first: int | None = None) -> EncodedConversation:
    """The conversation without its target tokens, or its `first` ones: what the original's evaluation leaves of one."""
    tokens, is_target, molecule, query, graphs = conversation
    kept = ~is_target if first is None else ~is_target | (np.cumsum(is_target) > first)
    return EncodedConversation(tokens[kept], is_target[kept], molecule[kept], query[kept], graphs)


def truncate(conversation: EncodedConversation, max_tokens: int) -> EncodedConversation:
    """The first `max_tokens` predictions of a conversation, never cut inside graph tokens.

    Raises PromptError if that leaves nothing to predict, or cuts off a molecule's graph tokens.
    """
    length = max_tokens + 1  # the last token is only a target, and takes no place in a row
    if np.any(conversation.molecule[length:] >= 0):
        raise PromptError("graph tokens beyond the row's end")
    if not conversation.is_target[1:length].any():
        raise PromptError("no answer within the row")
    tokens, is_target, molecule, query, graphs = conversation
    return EncodedConversation(tokens[:length], is_target[:length], molecule[:length], query[:length], graphs)
