"""Tokenizers: any Hugging Face folder, used without ever turning text into control tokens; and training a small one."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "Assistant: {{ message['content'] }}{{ eos_token }}{% else %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


class TextTokenizer:
    """Encodes plain text: what looks like a control token in it is ordinary text.

    bos_id, eos_id: ids that frame conversations and answers; size: ids are below it.
    """

    def __init__(self, hugging_face: Any):
        self._tokenizer = hugging_face
        self.size = len(hugging_face)
        if hugging_face.eos_token_id is None:
            raise ValueError(f"the tokenizer {hugging_face.name_or_path!r} has no end-of-sequence token")
        self.eos_id: int = hugging_face.eos_token_id
        self.bos_id: int | None = hugging_face.bos_token_id

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "TextTokenizer":
        """From an ordinary Hugging Face tokenizer folder; raises FileNotFoundError if it is none."""
        if not (Path(folder) / "tokenizer_config.json").is_file():
            raise FileNotFoundError(f"{folder} is not a tokenizer folder (no tokenizer_config.json)")
        from transformers import AutoTokenizer  # takes seconds to import

        return cls(AutoTokenizer.from_pretrained(folder, local_files_only=True))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without any control token."""
        if not texts:
            return []
        return self._tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, control tokens left out."""
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def save(self, folder: str | os.PathLike) -> None:
        """Writes an ordinary Hugging Face tokenizer folder."""
        self._tokenizer.save_pretrained(folder)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> TextTokenizer:
    """A byte-level BPE tokenizer of at most `vocab_size` ids; digits are single tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    # Words keep their space and their punctuation: SMILES fragments such as "C(=O)O" become single tokens.
    pieces = pre_tokenizers.Split(Regex(r" ?[^\s\d]+|\d|\s"), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pieces, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return TextTokenizer(
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token=PAD,
            bos_token=BOS,
            eos_token=EOS,
            clean_up_tokenization_spaces=False,
            chat_template=_CHAT_TEMPLATE,
        )
    )
