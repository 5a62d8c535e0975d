"""The tokens that BLEU and METEOR count; papers use SciBERT's or Llama's, and their scores differ."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_pipeline.errors import DataError

MAX_TOKENS = 512
"""Longer texts are cut, as in MolT5's evaluation, which others have taken over."""

HUB_IDS = {"scibert": "allenai/scibert_scivocab_uncased", "llama2": "meta-llama/Llama-2-7b-hf"}

WORDS = "words"

_WORD = re.compile(r"\w+|[^\w\s]")


class MetricTokenizer(NamedTuple):
    """split: texts → their tokens, without control tokens; name: what to print beside the scores."""

    name: str
    split: Callable[[Sequence[str]], list[list[str]]]


def load_metric_tokenizer(name: str) -> MetricTokenizer:
    """The tokenizer of that name; raises DataError if it cannot be loaded.

    name: "words" (lower-case words and single punctuation marks), "scibert" or "llama2" (from the Hugging Face hub or
    its cache), a tokenizer folder, a WordPiece vocabulary (.txt, lower-cased as SciBERT's and BERT's uncased ones), or
    a sentencepiece model (.model).
    """
    if name == WORDS:
        return MetricTokenizer(WORDS, lambda texts: [_WORD.findall(text.lower()) for text in texts])
    path = Path(name)
    if path.is_dir():
        files = [path / file for file in ("tokenizer.model", "tokenizer.json", "vocab.txt")]
        found = next((file for file in files if file.is_file()), None)
        if found is None:
            raise DataError(f"{name} is not a tokenizer folder (no {', '.join(file.name for file in files)})")
        return _from_file(found, os.path.basename(os.path.realpath(path)))
    if path.is_file():
        return _from_file(path, path.name)
    if name not in HUB_IDS:
        raise DataError(f"metric tokenizer {name!r} is none of {WORDS}, {', '.join(HUB_IDS)}, nor a file or folder")
    return _from_hub(name)


def _from_file(path: Path, name: str) -> MetricTokenizer:
    try:
        if path.suffix == ".model":
            return MetricTokenizer(f"sentencepiece ({name})", _sentencepiece(path))
        if path.suffix == ".txt":
            return MetricTokenizer(f"WordPiece ({name})", _wordpiece(path))
        from tokenizers import Tokenizer

        return MetricTokenizer(f"tokenizers ({name})", _fast(Tokenizer.from_file(str(path))))
    except Exception as error:  # the libraries raise bare Exceptions
        raise DataError(f"{path} is not a tokenizer ({str(error).splitlines()[0]})") from None


def _from_hub(name: str) -> MetricTokenizer:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(HUB_IDS[name], trust_remote_code=False)
    except (OSError, ValueError):
        raise DataError(
            f"metric tokenizer {name!r}: {HUB_IDS[name]} is neither in the Hugging Face cache nor to be had; "
            f"give its folder, its vocab.txt or its tokenizer.model, or {WORDS!r}"
        ) from None
    return MetricTokenizer(HUB_IDS[name], _fast(tokenizer.backend_tokenizer))


def _sentencepiece(path: Path) -> Callable[[Sequence[str]], list[list[str]]]:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return lambda texts: processor.encode(list(texts), out_type=str)


def _wordpiece(path: Path) -> Callable[[Sequence[str]], list[list[str]]]:
    from tokenizers import BertWordPieceTokenizer

    return _fast(BertWordPieceTokenizer(str(path), lowercase=True))


def _fast(tokenizer: Any) -> Callable[[Sequence[str]], list[list[str]]]:
    def split(texts: Sequence[str]) -> list[list[str]]:
        return [encoding.tokens for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    return split
