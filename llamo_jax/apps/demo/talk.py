"""What happens between the page and the model: checks, answers piece by piece, explanations."""

import dataclasses
import queue
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from data_pipeline.conversation import Conversation, Message
from data_pipeline.errors import DataError
from data_pipeline.guard import tried
from data_pipeline.molecule import InvalidMoleculeError, featurize
from data_pipeline.records import featurized
from llamo_jax.apps.assistant import Assistant, Explanation
from llamo_jax.generation.batcher import Batcher, BusyError, Piece, Sampling, Ticket
from llamo_jax.generation.texts import TextStream

MAX_MOLECULES = 4
MAX_QUESTION = 2000
"""Characters of a question."""
MAX_SMILES = 1000
"""Characters of a molecule."""
KEPT = 128
"""Explanations that are kept."""

Turns = list[tuple[str, str]]


class RefusedError(ValueError):
    """What was asked cannot be answered, in a line for people."""


@dataclasses.dataclass(frozen=True)
class Style:
    """How an answer is chosen; see DecodingConfig."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


def lines_of(text: str) -> list[str]:
    """The molecules that were typed, one a line."""
    return [line.strip() for line in text.splitlines() if line.strip()]


class Talk:
    """Answers the conversations of many people; seconds: for one answer, its waiting included."""

    def __init__(self, assistant: Assistant, batcher: Batcher, *, seconds: float = 300.0):
        self.assistant = assistant
        self.batcher = batcher
        self._seconds = seconds
        self._running: dict[str, Ticket] = {}
        self._explained: OrderedDict[tuple, Explanation] = OrderedDict()
        self._explaining = threading.Lock()

    @staticmethod
    def checked(question: str, smiles: Sequence[str]) -> list[str]:
        """The molecules, if all can be asked about; raises RefusedError."""
        if not question.strip():
            raise RefusedError("type a question first")
        if len(question) > MAX_QUESTION:
            raise RefusedError(f"the question has {len(question):,} characters; at most {MAX_QUESTION:,} are allowed")
        if len(smiles) > MAX_MOLECULES:
            raise RefusedError(f"{len(smiles)} molecules are shown; at most {MAX_MOLECULES} are allowed")
        for each in smiles:
            if len(each) > MAX_SMILES:
                raise RefusedError(f"a molecule has {len(each):,} characters; at most {MAX_SMILES:,} are allowed")
            try:
                tried(featurize, each)
            except InvalidMoleculeError as error:
                raise RefusedError(str(error)) from None
        return list(smiles)

    def answer(
        self, who: str, question: str, smiles: Sequence[str], turns: Turns, style: Style, other: str | None = None
    ) -> Iterator[str]:
        """The answer as far as it is there, again and again; raises RefusedError.

        who: of all that are answered at a time, whom `stop` ends. other: a molecule whose graph is shown instead of the
        only one's.
        """
        record = featurized(_conversation(question, smiles, turns))
        if other is not None:
            (graph,) = featurized(Conversation((other,), ())).graphs
            record = record._replace(graphs=(graph,))
        generator = self.assistant.generator
        try:
            (prompt,) = generator.encoder.encode([record])
        except DataError as error:
            raise RefusedError(str(error)) from None
        if refusal := self.batcher.refusal(prompt):
            raise RefusedError(f"{refusal}; begin a new conversation")
        pieces: queue.SimpleQueue[Piece] = queue.SimpleQueue()
        sampling = Sampling(**dataclasses.asdict(style))
        try:
            (ticket,) = self.batcher.submit(
                prompt, [sampling], lambda _, piece: pieces.put(piece), seconds=self._seconds
            )
        except BusyError as error:
            raise RefusedError(f"{error}; try again in a moment") from None
        self._running[who] = ticket
        text, tokens, said = TextStream(generator.text), list[int](), ""
        try:
            while True:
                piece = pieces.get()
                if piece.reason == "failed":
                    raise RefusedError(f"the model failed: {piece.error}")
                tokens += piece.tokens
                said += text.shown(tokens, whole=piece.reason is not None)
                yield said
                if piece.reason is not None:
                    return
        finally:
            ticket.cancel()
            if self._running.get(who) is ticket:
                del self._running[who]

    def stop(self, who: str) -> None:
        """Ends what is being said to somebody; what was said stays."""
        if ticket := self._running.get(who):
            ticket.cancel()

    def explain(self, smiles: Sequence[str], turns: Turns) -> Explanation:
        """Of the last turn's answer; kept, so that looking again takes no time."""
        key = (tuple(smiles), tuple(turns))
        if key not in self._explained:
            *before, (question, answer) = turns
            with self._explaining:
                self._explained[key] = self.assistant.explain(question, smiles=smiles, history=before, answer=answer)
            while len(self._explained) > KEPT:
                self._explained.popitem(last=False)
        return self._explained[key]


def _conversation(question: str, smiles: Sequence[str], turns: Turns) -> Conversation:
    roles = ("user", "assistant")
    messages = [Message(role, text) for turn in turns for role, text in zip(roles, turn, strict=True)]
    return Conversation(tuple(smiles), (*messages, Message("user", question)))
