"""A trained model as a teacher of data_pipeline.instruct: it answers the questions that rules ask."""

import asyncio
import random
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.instruct.requests import Reply, Request, as_reply
from data_pipeline.instruct.rules import asked_for, questions
from data_pipeline.instruct.teachers import Answer, TeacherOptions
from llamo_jax.apps.assistant import Assistant
from llamo_jax.config import DecodingConfig
from llamo_jax.runs import UserError


class AssistantTeacher:
    """--model: a run's workdir or a model folder; raises DataError without one, and for what is none.

    A model of this kind looks at graphs and answers; it does not write conversations by itself. So the questions are
    those of the rules for the same kind, and the answers its own, turn by turn: what the checks leave of them is what
    it already knows (rejection sampling, Yuan et al., 2023).
    """

    metered = False

    def __init__(self, options: TeacherOptions):
        if not options.model:
            raise DataError("teacher assistant needs --model, the folder of a run")
        try:
            decoding = DecodingConfig(
                temperature=options.temperature,
                top_p=options.top_p,
                seed=options.seed,
                max_new_tokens=options.max_tokens,
            )
            self._assistant = Assistant.load(options.model, decoding=decoding)
        except UserError as error:
            raise DataError(str(error)) from None
        self.model = str(options.model)
        self.asked: dict[str, Any] = {"teacher": "assistant", "model": self.model, **options._asdict()}
        for irrelevant in ("base_url", "timeout", "structured"):
            del self.asked[irrelevant]

    async def answer(self, request: Request, again: int = 0) -> Answer:
        """A conversation; raises RefusedError for a request for anything else."""
        if request.schema is not Reply:
            raise DataError("an assistant only writes conversations; choose another teacher")
        return await asyncio.to_thread(self._converse, request)

    def _converse(self, request: Request) -> Answer:
        asked = asked_for(request.messages)
        smiles = [molecule["smiles"] for molecule in asked["molecules"]]
        history: list[tuple[str, str]] = []
        for question in questions(asked, random.Random(request.key)):
            history.append((question, self._assistant.ask(question, smiles=smiles, history=history)))
        return Answer(as_reply([text for turn in history for text in turn]))

    async def close(self) -> None:
        """Nothing is held open."""
