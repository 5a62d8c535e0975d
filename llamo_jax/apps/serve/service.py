"""From a request to its answer: what stands between the protocol (api) and the rows of the model (batcher)."""

import asyncio
import dataclasses
import itertools
import secrets
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import numpy as np

from data_pipeline.batch import EncodedConversation
from data_pipeline.conversation import Conversation, Message
from data_pipeline.errors import DataError
from data_pipeline.guard import tried
from data_pipeline.molecule import InvalidMoleculeError, featurize, parse_smiles
from data_pipeline.records import featurized
from data_pipeline.tokenizer import pieces
from llamo_jax.apps.assistant import Assistant
from llamo_jax.apps.serve.schema import APIError, ChatRequest
from llamo_jax.config import ConfigError
from llamo_jax.generation.batcher import Batcher, BusyError, Piece, Sampling
from llamo_jax.generation.texts import TextStream

CONTEXT = 8
"""Tokens before a token that tell whether a space stands in front of it, and which character it ends."""

RETRY_SECONDS = 1
"""What a client is told to wait when the queue is full."""


@dataclasses.dataclass
class Choice:
    """One of the answers to a request, as far as it is there."""

    text: TextStream
    tokens: list[int] = dataclasses.field(default_factory=list)
    log_probabilities: list[float] = dataclasses.field(default_factory=list)
    said: str = ""
    reason: str | None = None  # "stop" or "length", at the end

    def take(self, piece: Piece) -> str:
        """What can be said beyond what was said."""
        self.tokens += piece.tokens
        self.log_probabilities += piece.log_probabilities
        new = self.text.shown(self.tokens, whole=piece.reason is not None)
        self.reason = "stop" if self.text.stopped else piece.reason
        self.said += new
        return new


@dataclasses.dataclass
class Answering:
    """A request that was understood: what it takes to answer it, and its answers so far."""

    prompt: EncodedConversation
    samplings: list[Sampling]
    choices: list[Choice]

    def usage(self) -> dict[str, int]:
        """Tokens of the prompt (graph tokens among them) and of all answers."""
        prompt, answers = len(self.prompt.tokens), sum(len(choice.tokens) for choice in self.choices)
        return {"prompt_tokens": prompt, "completion_tokens": answers, "total_tokens": prompt + answers}


class Service:
    """A model that answers many clients. default_temperature: where a request names none."""

    def __init__(self, assistant: Assistant, batcher: Batcher, *, seconds: float, default_temperature: float = 0.0):
        self.assistant = assistant
        self.batcher = batcher
        self.seconds = seconds
        self._temperature = default_temperature
        self._embedding = asyncio.Semaphore(1)  # one at a time: they share the devices with the answers

    def understand(self, request: ChatRequest) -> Answering:
        """Takes a fraction of a second, and may block; raises APIError for what cannot be answered."""
        messages = tuple(
            Message("system" if each.role == "developer" else each.role, each.text()) for each in request.messages
        )
        smiles = request.smiles()
        if len(smiles) > self.batcher.room.molecules:  # before any of them is read
            told = (
                f"the conversation shows {len(smiles):,} molecules; at most {self.batcher.room.molecules:,} are allowed"
            )
            raise APIError(400, told, code="context_length_exceeded", param="messages")
        conversation = Conversation(tuple(self._checked(smiles)), messages)
        generator = self.assistant.generator
        try:
            (prompt,) = generator.encoder.encode([featurized(conversation)])
        except (DataError, ValueError) as error:
            raise APIError(400, f"the conversation cannot be written as a prompt: {error}", code="bad_prompt") from None
        if refusal := self.batcher.refusal(prompt):
            raise APIError(400, refusal, code="context_length_exceeded", param="messages")
        limit = request.max_completion_tokens or request.max_tokens or self.batcher.max_new_tokens
        first = Sampling(
            max_new_tokens=min(limit, self.batcher.max_new_tokens),
            temperature=self._temperature if request.temperature is None else request.temperature,
            top_p=1.0 if request.top_p is None else request.top_p,
            seed=secrets.randbits(32) if request.seed is None else request.seed,
        )
        samplings = [first._replace(sample=number) for number in range(request.n or 1)]
        stops = request.stops()
        return Answering(prompt, samplings, [Choice(TextStream(generator.text, stops)) for _ in samplings])

    async def answer(self, asked: Answering) -> AsyncGenerator[tuple[int, str, Piece], None]:
        """(choice, new text, what it came from) until all choices have ended, as they come.

        Raises APIError if they cannot be answered. Whoever stops iterating gives the rows back.
        """
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()

        def deliver(number: int, piece: Piece) -> None:
            loop.call_soon_threadsafe(arrived.put_nowait, (number, piece))

        try:
            tickets = self.batcher.submit(asked.prompt, asked.samplings, deliver, seconds=self.seconds)
        except BusyError as error:
            status, code = (503, "stopping") if error.closing else (429, "queue_full")
            raise APIError(status, str(error), code=code, retry_after=RETRY_SECONDS) from None
        try:
            while any(choice.reason is None for choice in asked.choices):
                number, piece = await arrived.get()
                choice = asked.choices[number]
                if choice.reason is not None:
                    continue  # a text that ends answers came, and its row has gone on a little
                if piece.reason == "deadline":
                    raise APIError(503, f"no whole answer within {self.seconds:g} s", code="deadline_exceeded")
                if piece.reason in ("cancelled", "failed"):
                    raise APIError(503, piece.error or "the answer was given up", code="failed")
                text = choice.take(piece)
                if choice.reason is not None:
                    tickets[number].cancel()
                yield number, text, piece
        finally:
            for ticket in tickets:
                ticket.cancel()

    async def embed(self, smiles: Sequence[str], what: str) -> np.ndarray:
        """float32[n, …] as of Assistant.embed; raises APIError, also for a molecule larger than a chat may show."""
        most = self.batcher.room.atoms

        def embedded() -> np.ndarray:
            for number, each in enumerate(self._checked(smiles)):
                if (atoms := parse_smiles(each).GetNumAtoms()) > most:
                    told = f"a molecule has {atoms:,} atoms; at most {most:,} are allowed"
                    raise APIError(400, told, code="context_length_exceeded", param=f"input[{number}]")
            return self.assistant.embed(smiles, what=what)

        async with self._embedding:
            work = asyncio.ensure_future(asyncio.to_thread(embedded))
            try:
                return await asyncio.shield(work)
            except ConfigError as error:
                raise APIError(400, str(error), code="bad_model", param="what") from None
            except asyncio.CancelledError:
                # no thread can be stopped: the next one waits
                await asyncio.gather(work, return_exceptions=True)
                raise

    def log_probabilities(self, choice: Choice, piece: Piece) -> list[dict[str, Any]]:
        """OpenAI's objects for the tokens of the last piece that a choice took, up to a text that ends the answer."""
        decode, new = self.assistant.generator.encoder.tokenizer.decode, len(piece.tokens)
        if choice.text.stopped:
            texts = pieces(decode, choice.tokens)
            ends = itertools.accumulate(map(len, texts))
            blank = len("".join(texts)) - len("".join(texts).lstrip())
            said = [end - len(text) < blank + len(choice.said) for end, text in zip(ends, texts, strict=True)][-new:]
        else:
            texts, said = pieces(decode, choice.tokens[-new - CONTEXT :]), [True] * new
        return [
            {"token": text, "logprob": value, "bytes": list(text.encode()), "top_logprobs": []}
            for text, value, is_said in zip(texts[-new:], piece.log_probabilities, said, strict=True)
            if is_said
        ]

    @staticmethod
    def _checked(smiles: Sequence[str]) -> list[str]:
        for number, each in enumerate(smiles):
            try:
                tried(featurize, each)
            except InvalidMoleculeError as error:
                raise APIError(422, str(error), code="invalid_molecule", param=f"molecules[{number}]") from None
        return list(smiles)
