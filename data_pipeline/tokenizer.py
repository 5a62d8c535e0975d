"""Tokenizers: any Hugging Face folder, used without ever turning text into control tokens; and training a small one."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from data_pipeline import storage
from data_pipeline.errors import DataError, PromptError
from data_pipeline.guard import fate

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


MAX_TEMPLATE = 100_000
"""Characters of a chat template; those of published models have a few thousand."""


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

    def ids(self) -> set[int]:
        """The ids that have a token; others below `size` are gaps."""

    def fingerprint(self) -> str:
        """Equal for tokenizers that encode alike."""


def load_tokenizer(folder: str | os.PathLike) -> TextTokenizer:
    """The tokenizer of a Hugging Face folder; raises DataError if it is none.

    A sentencepiece `tokenizer.model` goes before a `tokenizer.json`: Llama-2's ids are those of sentencepiece. Where
    it is another library's (Llama 3's is tiktoken's), the tokenizer.json beside it is read.
    """
    with storage.read_locally(folder) as local:
        for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json"):
            if storage.is_lfs_pointer(local / name):
                raise DataError(f"{local / name} is a Git LFS pointer, not the file; git lfs pull downloads it")
        if (local / "tokenizer.model").is_file() and not (
            (local / "tokenizer.json").is_file() and _is_tiktoken(local / "tokenizer.model")
        ):
            return SentencePieceTokenizer(local)
        if not (local / "tokenizer_config.json").is_file():
            raise DataError(f"{folder} is not a tokenizer folder (no tokenizer.model and no tokenizer_config.json)")
        from transformers import AutoTokenizer  # takes seconds to import

        try:
            return HuggingFaceTokenizer(
                AutoTokenizer.from_pretrained(local, local_files_only=True, trust_remote_code=False)
            )
        except Exception as error:  # of transformers, tokenizers (its own type is bare) and json
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise DataError(f"{folder} is no readable tokenizer folder: {reason}") from None


def _is_tiktoken(path: Path) -> bool:
    """Whether a tokenizer.model holds lines of base64 and rank."""
    with path.open("rb") as file:
        return re.match(rb"[A-Za-z0-9+/]+=* \d+\r?\n", file.read(1000)) is not None


class ChatTokenizer(TextTokenizer, Protocol):
    """A tokenizer that may bring a chat template.

    space_after_control: whether sentencepiece's space stands behind every
    control token (Hugging Face's `legacy`).
    """

    space_after_control: bool

    @property
    def chat_template(self) -> str | None:
        """None if it brings none."""

    def control_tokens(self) -> dict[str, int]:
        """The texts of its control tokens and their ids."""

    def render_chat(self, messages: Sequence[dict[str, str]], *, add_generation_prompt: bool) -> str:
        """The conversation in the chat template; raises DataError if there is none, PromptError if it refuses."""


def pieces(decode: Callable[[Sequence[int]], str], ids: Sequence[int]) -> list[str]:
    """What each token adds to the text of `ids`: joined, they are that text, spaces between words among them.

    A token decoded by itself may have lost the space before it (sentencepiece's). Of a character that several tokens
    make up, the last one adds it; one that is not whole at the end is left out.
    """
    found: list[str] = []
    there = ""
    for end in range(1, len(ids) + 1):
        text = decode(ids[:end]).rstrip("\ufffd")  # the beginning of a character
        if len(text) < len(there):  # of several characters in bytes, some decoders tell all or none
            found.append("")
            continue
        found.append(text[len(there) :])
        there = text
    return found


class HuggingFaceTokenizer:
    """A `tokenizers`-based tokenizer; see ChatTokenizer."""

    space_after_control = False

    def __init__(self, hugging_face: Any):
        self._tokenizer = hugging_face
        self.size = 1 + max(self.ids(), default=-1)
        if hugging_face.eos_token_id is None:
            raise ValueError(f"the tokenizer {hugging_face.name_or_path!r} has no end-of-sequence token")
        self.eos_id: int = hugging_face.eos_token_id
        self.bos_id: int | None = hugging_face.bos_token_id

    def ids(self) -> set[int]:
        """See TextTokenizer."""
        return {*self._tokenizer.get_vocab().values(), *self._tokenizer.added_tokens_decoder}

    @property
    def chat_template(self) -> str | None:
        """See ChatTokenizer."""
        return _default(self._tokenizer.chat_template)

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
        """See ChatTokenizer."""
        return {token.content: index for index, token in self._tokenizer.added_tokens_decoder.items() if token.special}

    def render_chat(self, messages: Sequence[dict[str, str]], *, add_generation_prompt: bool) -> str:
        """See ChatTokenizer."""
        special = self._tokenizer.special_tokens_map
        return _rendered(self.chat_template, messages, add_generation_prompt, special)


def _tried_template(text: str) -> None:
    """Renders a short conversation, in a process that may be killed: a template is a program, and may never end."""
    from transformers.utils.chat_template_utils import render_jinja_template

    template, special = json.loads(text)
    turns = [{"role": role, "content": role} for role in ("user", "assistant", "user")]
    render_jinja_template([turns], chat_template=template, add_generation_prompt=True, **special)


TEMPLATE_SETTINGS: dict[str, Any] = {"date_string": "26 Jul 2024", "enable_thinking": False}
"""What templates ask for beside the messages: Llama-3.1's and 3.2's for the day, which would change prompts overnight
(this is their own default), Qwen3's for whether the answer that is asked for begins with thoughts, as none does that
is trained."""


def _rendered(
    template: str | None, messages: Sequence[dict[str, str]], add_generation_prompt: bool, special: Mapping[str, Any]
) -> str:
    if not template:
        raise DataError("the tokenizer has no chat template; use prompt style 'plain'")
    if not isinstance(template, str) or len(template) > MAX_TEMPLATE:
        raise DataError(f"the tokenizer's chat template is no text of at most {MAX_TEMPLATE:,} characters; refused")
    reason = fate(_tried_template, json.dumps([template, dict(special)], default=str))
    if reason is not None:
        raise DataError(f"the tokenizer's chat template {reason}; refused")
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        rendered: Any = render_jinja_template(
            [list(messages)],
            chat_template=template,
            add_generation_prompt=add_generation_prompt,
            **TEMPLATE_SETTINGS,
            **special,
        )
    except Exception as error:  # whatever the template raises, such as "roles must alternate"
        raise PromptError(f"refused by the chat template: {str(error).splitlines()[0]}") from None
    return rendered[0][0]  # of the first conversation; the second of the two is about generated parts


class SentencePieceTokenizer:
    """A sentencepiece model, as Llama-2's, with the tokens and the chat template beside it; see ChatTokenizer."""

    FILES = ("tokenizer_config.json", "added_tokens.json", "special_tokens_map.json", "chat_template.jinja")

    def __init__(self, folder: Path):
        import sentencepiece

        content = (folder / "tokenizer.model").read_bytes()
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=content + _NO_DUMMY_PREFIX)
        except RuntimeError as error:
            raise DataError(f"{folder}/tokenizer.model is not a sentencepiece model ({error})") from None
        # Whether texts begin with a space is the model's; which of ours do, is told by `bare`.
        first = sentencepiece.SentencePieceProcessor(model_proto=content).encode_as_pieces("a")[0]
        self._space = _SPACE if first.startswith(_SPACE) else ""
        self._content = content
        self._beside = {name: (folder / name).read_bytes() for name in self.FILES if (folder / name).is_file()}
        configuration = self._json(folder, "tokenizer_config.json")
        # ids behind the model's own: special ones (True) frame, others are text that has a token of its own
        self._added: dict[int, tuple[str, bool]] = {
            index: (text, True) for text, index in self._json(folder, "added_tokens.json").items()
        }
        for index, token in configuration.get("added_tokens_decoder", {}).items():
            self._added[int(index)] = (token["content"], bool(token.get("special")))
        count = self._processor.vocab_size()
        self.size: int = max([count, *(index + 1 for index in self._added)])
        self._control = {self._processor.id_to_piece(i): i for i in range(count) if self._processor.is_control(i)}
        self._control |= {text: index for index, (text, special) in self._added.items() if special}
        self._special = {name: _content(configuration.get(name)) for name in ("bos_token", "eos_token")}
        bos = self._control.get(self._special["bos_token"] or "", self._processor.bos_id())
        self.bos_id: int | None = bos if bos >= 0 else None
        self.eos_id: int = self._control.get(self._special["eos_token"] or "", self._processor.eos_id())
        if self.eos_id < 0:
            raise DataError(f"{folder} has no end-of-sequence token")
        template = configuration.get("chat_template")
        if isinstance(template, list):
            template = {entry["name"]: entry["template"] for entry in template}
        beside = self._beside.get("chat_template.jinja")
        self.chat_template: str | None = _default(template) if beside is None else beside.decode()
        self.space_after_control = bool(configuration.get("legacy", False))

    def encode(self, texts: Sequence[str], bare: Sequence[bool] | None = None) -> list[list[int]]:
        """See TextTokenizer; a text gets sentencepiece's space in front unless it is bare."""
        bare = bare or [False] * len(texts)
        pieces = [text if alone else f"{self._space}{text}" for text, alone in zip(texts, bare, strict=True)]
        return self._processor.encode(pieces)

    def decode(self, ids: Sequence[int]) -> str:
        """See TextTokenizer."""
        control = set(self._control.values())
        text, run = "", list[int]()
        for index in [*(i for i in ids if i not in control), None]:
            if index is not None and index < self._processor.vocab_size():
                run.append(index)
                continue
            text += self._processor.decode(run)
            text += self._added.get(index, ("", False))[0] if index is not None else ""
            run = []
        return text.removeprefix(" ")

    def ids(self) -> set[int]:
        """See TextTokenizer."""
        return {*range(self._processor.vocab_size()), *self._added}

    def save(self, folder: str | os.PathLike) -> None:
        """See TextTokenizer; the model and what stood beside it as they were."""
        with storage.write_locally(folder) as local:
            for name, content in {"tokenizer.model": self._content, **self._beside}.items():
                (local / name).write_bytes(content)

    def fingerprint(self) -> str:
        """See TextTokenizer."""
        own = b"" if self._space else b"no space"
        if self.eos_id != self._processor.eos_id() or self.size > self._processor.vocab_size():
            own += repr((self.eos_id, sorted(self._added.items()))).encode()
        return hashlib.sha256(self._content + own).hexdigest()

    def control_tokens(self) -> dict[str, int]:
        """See ChatTokenizer."""
        return dict(self._control)

    def render_chat(self, messages: Sequence[dict[str, str]], *, add_generation_prompt: bool) -> str:
        """See ChatTokenizer."""
        special = {name: token for name, token in self._special.items() if token is not None}
        return _rendered(self.chat_template, messages, add_generation_prompt, special)

    def _json(self, folder: Path, name: str) -> dict[str, Any]:
        """A file beside the model, {} if there is none; raises DataError if it is damaged."""
        try:
            content = json.loads(self._beside.get(name, b"{}"))
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise DataError(f"{folder / name} is not a JSON object")
        return content


def _default(template: Any) -> Any:
    """Of several templates by name, such as Hermes' for tools, the one for conversations."""
    return template.get("default") if isinstance(template, dict) else template


def _content(token: Any) -> str | None:
    """A token's text, however a configuration writes it."""
    return token.get("content") if isinstance(token, dict) else token


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
