"""The assistant: a trained model that answers questions about molecules."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.conversation import Conversation, Message
from data_pipeline.prompt import PromptEncoder
from data_pipeline.tokenizer import load_tokenizer
from llamo_jax import sharding
from llamo_jax.config import MeshConfig
from llamo_jax.generation.generator import Generator
from llamo_jax.models.definition import define_model
from llamo_jax.parameters import abstract_arrays
from llamo_jax.training import checkpoints


class Assistant:
    """Answers questions, one at a time or in batches; made by `Assistant.load`."""

    def __init__(self, generator: Generator):
        self.generator = generator

    @classmethod
    def load(cls, checkpoint_dir: str | os.PathLike, *, max_new_tokens: int = 128) -> "Assistant":
        """From a run's workdir or a model folder; raises CheckpointError if it is none or not whole.

        A run that started from another is whole only as long as that one is unchanged.
        """
        model, prompt = checkpoints.read_model_config(checkpoint_dir)
        if prompt is None:
            raise checkpoints.CheckpointError(f"{checkpoint_dir} does not say how prompts are written (config.json)")
        definition = define_model(model)
        mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=-1, tensor=1))
        abstract = abstract_arrays(definition.variables, model.frozen_dtype, mesh, trained={})
        arrays = checkpoints.load_weights(checkpoint_dir, abstract, model.quantize).arrays
        missing = sorted(set(abstract) - set(arrays))
        if missing:
            raise checkpoints.CheckpointError(f"{checkpoint_dir} is not a whole model; it lacks {missing}")
        tokenizer = load_tokenizer(Path(checkpoint_dir) / "tokenizer")
        encoder = PromptEncoder(tokenizer, model.num_graph_tokens, style=prompt.style, show_smiles=prompt.show_smiles)
        return cls(Generator(definition, arrays, encoder, max_new_tokens=max_new_tokens))

    def ask(self, question: str, *, smiles: str | Sequence[str] = (), history: Sequence[tuple[str, str]] = ()) -> str:
        """The answer to a question about the molecules, after earlier (question, answer) turns.

        Raises InvalidMoleculeError if a SMILES is refused.
        """
        return self.generator.answer([_conversation(question, smiles, history)])[0]

    def answer_batch(self, requests: Sequence[Mapping[str, Any]]) -> list[str]:
        """Answers to requests {"question", "smiles", "history"} (the last two optional), decoded together."""
        return self.generator.answer([_conversation(**request) for request in requests])


def _conversation(
    question: str, smiles: str | Sequence[str] = (), history: Sequence[tuple[str, str]] = ()
) -> Conversation:
    turns = [Message(role, text) for turn in history for role, text in zip(("user", "assistant"), turn, strict=True)]
    shown = (smiles,) if isinstance(smiles, str) else tuple(smiles)
    return Conversation(shown, (*turns, Message("user", question)))
