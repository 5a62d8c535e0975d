"""Tokenizers: any Hugging Face folder, used without ever turning text into control tokens; and training a small one."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from data_pipeline import storage
from data_pipeline.errors import DataError, PromptError

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
_SPACE = "\u2581"  # sentencepiece's "▁"
# The model is a protocol buffer, and concatenated ones merge: normalizer_spec {add_dummy_prefix: false}.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"
_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "Assistant: {{ message['content'] }}{{ eos_token }}{% else %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


class TextTokenizer(Protocol):
    """Encodes plain text: what looks like a control token in it is ordinary text.

    bos_id, eos_id: ids that frame conversations and answers; size: ids are below it.
    """

    bos_id: int | None
    eos_id: int
    size: int

    def encode(self, texts: Sequence[str], bare: Sequence[bool] | None = None) -> list[list[int]]:
        """Token ids of each text, without any control token.

        bare: which texts directly follow a control token, where sentencepiece puts no space in front.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, control tokens left out."""

    def save(self, folder: str | os.PathLike) -> None:
        """Writes an ordinary Hugging Face tokenizer folder."""

    def fingerprint(self) -> str:
        """Equal for tokenizers that encode alike."""


def load_tokenizer(folder: str | os.PathLike) -> TextTokenizer:
    """The tokenizer of a Hugging Face folder; raises DataError if it is none.

    A sentencepiece `tokenizer.model` goes before a `tokenizer.json`: Llama-2's ids are those of sentencepiece.
    """
    with storage.read_locally(folder) as local:
        if (local / "tokenizer.model").is_file():
            return SentencePieceTokenizer(local)
        if not (local / "tokenizer_config.json").is_file():
            raise DataError(f"{folder} is not a tokenizer folder (no tokenizer.model and no tokenizer_config.json)")
        from transformers import AutoTokenizer  # takes seconds to import

        try:
            return HuggingFaceTokenizer(AutoTokenizer.from_pretrained(local, local_files_only=True))
        except (OSError, ValueError) as error:
            raise DataError(f"{folder}: {str(error).splitlines()[0]}") from None


class HuggingFaceTokenizer:
    """A `tokenizers`-based tokenizer; see TextTokenizer."""

    def __init__(self, hugging_face: Any):
        self._tokenizer = hugging_face
        self.size = len(hugging_face)
        if hugging_face.eos_token_id is None:
            raise ValueError(f"the tokenizer {hugging_face.name_or_path!r} has no end-of-sequence token")
        self.eos_id: int = hugging_face.eos_token_id
        self.bos_id: int | None = hugging_face.bos_token_id

    def encode(self, texts: Sequence[str], bare: Sequence[bool] | None = None) -> list[list[int]]:
        """See TextTokenizer; byte-level tokenizers know no spaces in front."""
        del bare
        if not texts:
            return []
        # split_special_tokens: "</s>" in a message is text, and no end of the answer
        return self._tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def decode(self, ids: Sequence[int]) -> str:
        """See TextTokenizer."""
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def save(self, folder: str | os.PathLike) -> None:
        """See TextTokenizer."""
        with storage.write_locally(folder) as local:
            self._tokenizer.save_pretrained(local)

    def fingerprint(self) -> str:
        """See TextTokenizer."""
        parts = (self._tokenizer.backend_tokenizer.to_str(), self._tokenizer.chat_template, self.bos_id, self.eos_id)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def control_tokens(self) -> dict[str, int]:
        """The texts of its control tokens and their ids."""
        return {token.content: index for index, token in self._tokenizer.added_tokens_decoder.items() if token.special}

    def render_chat(self, messages: Sequence[dict[str, str]], *, add_generation_prompt: bool) -> str:
        """The conversation in the tokenizer's own chat template; raises DataError if it has none or refuses."""
        if not self._tokenizer.chat_template:
            raise DataError("the tokenizer has no chat template; use prompt style 'plain'")
        try:
            return self._tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except Exception as error:  # whatever the template raises, such as "roles must alternate"
            raise PromptError(f"refused by the chat template: {str(error).splitlines()[0]}") from None


class SentencePieceTokenizer:
    """A bare sentencepiece model, as Llama-2's; see TextTokenizer."""

    def __init__(self, folder: Path):
        import sentencepiece

        content = (folder / "tokenizer.model").read_bytes()
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=content + _NO_DUMMY_PREFIX)
        except RuntimeError as error:
            raise DataError(f"{folder}/tokenizer.model is not a sentencepiece model ({error})") from None
        self._content = content
        configuration = folder / "tokenizer_config.json"
        self._configuration = configuration.read_bytes() if configuration.is_file() else None
        self.size: int = self._processor.vocab_size()
        self.bos_id: int | None = self._processor.bos_id()
        self.eos_id: int = self._processor.eos_id()

    def encode(self, texts: Sequence[str], bare: Sequence[bool] | None = None) -> list[list[int]]:
        """See TextTokenizer; a text gets sentencepiece's space in front unless it is bare."""
        bare = bare or [False] * len(texts)
        pieces = [text if alone else f"{_SPACE}{text}" for text, alone in zip(texts, bare, strict=True)]
        return self._processor.encode(pieces)

    def decode(self, ids: Sequence[int]) -> str:
        """See TextTokenizer."""
        text = self._processor.decode([i for i in ids if not self._processor.is_control(i)])
        return text.removeprefix(" ")

    def save(self, folder: str | os.PathLike) -> None:
        """See TextTokenizer; the model and its configuration as they were."""
        with storage.write_locally(folder) as local:
            (local / "tokenizer.model").write_bytes(self._content)
            if self._configuration is not None:
                (local / "tokenizer_config.json").write_bytes(self._configuration)

    def fingerprint(self) -> str:
        """See TextTokenizer."""
        return hashlib.sha256(self._content).hexdigest()


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> HuggingFaceTokenizer:
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
    return HuggingFaceTokenizer(
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token=PAD,
            bos_token=BOS,
            eos_token=EOS,
            clean_up_tokenization_spaces=False,
            chat_template=_CHAT_TEMPLATE,
        )
    )
