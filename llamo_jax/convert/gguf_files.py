"""Language models of the LLaMA family in GGUF files (of llama.cpp), dequantised; tokenizer and template come along.

What a file says is told by name: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md lists the metadata, and
https://github.com/ggml-org/llama.cpp/blob/master/convert_hf_to_gguf.py is where the tensors got their order.
"""

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipeline import storage
from data_pipeline.tokenizer import HuggingFaceTokenizer, TextTokenizer, load_tokenizer
from llamo_jax.config import ConfigError
from llamo_jax.convert import huggingface
from llamo_jax.convert.names import decoder_shapes, language_model_rules
from llamo_jax.models import DecoderConfig
from llamo_jax.models.llama import RopeScaling, stretches
from llamo_jax.models.torch_names import from_torch
from llamo_jax.parameters import WeightsError
from llamo_jax.weights import Lazy, finite

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
"""GGUF's names of architectures that are read, which are Hugging Face's `model_type`s, too → their classes."""

_SIZES = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
    "context_length": "max_position_embeddings",
}
"""Metadata below the architecture's name → Hugging Face's config.json."""

_TRIVIAL: dict[str, tuple[Any, ...]] = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "rope.scaling.type": ("none",),
    "rope.scale_linear": (1.0,),
}
"""Metadata for what is not built here, and the values that ask for nothing."""

_IGNORED = ("vocab_size", "rope.dimension_count", "attention.value_length")
"""What tensors tell, or is compared with the width of a head."""

_TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

_ROPE_FACTORS = "rope_freqs.weight"
"""Llama 3's stretched wavelengths, H/2 numbers: their formula's parameters are not in the file."""

_PUBLISHED_SCALINGS = tuple(
    RopeScaling(factor=factor, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
    for factor in (8.0, 32.0)
)
"""Of Llama 3.1 and 3.3, and of Llama 3.2 (their config.json)."""


class GGUF(NamedTuple):
    """A file: `metadata` by key, lists included, and its tensors by name as `gguf.ReaderTensor`."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, Any]


def read(path: Path) -> GGUF:
    """Opens a file; its tensors stay on disk. Raises WeightsError if it is none, is cut short, or `gguf` is missing."""
    try:
        import gguf
    except ImportError:
        raise WeightsError("GGUF files are read with the package gguf: pip install 'llamo_jax[gguf]'") from None
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    if storage.is_lfs_pointer(path):
        raise WeightsError(f"{path} is a Git LFS pointer, not the file; git lfs pull downloads it")
    try:
        reader = gguf.GGUFReader(path)
        metadata = {name: _plain(field.contents()) for name, field in reader.fields.items()}
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        swapped = reader.byte_order == "S"
    # a damaged file raises whatever its reader stumbles over first
    except Exception as error:
        raise WeightsError(f"{path}: not a readable GGUF file, or cut short ({_first_line(error)})") from None
    if swapped:
        raise WeightsError(f"{path}: its numbers have the byte order of another kind of processor; not implemented")
    if (parts := metadata.get("split.count", 1)) > 1:
        raise WeightsError(f"{path}: one of {parts} parts; put them together with llama-gguf-split --merge")
    return GGUF(path, metadata, tensors)


def _plain(value: Any) -> Any:
    """A float32 as the decimal number that was meant: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def read_language_model(file: GGUF, dtype: np.dtype) -> tuple[DecoderConfig, dict[str, Any], dict[str, Any]]:
    """The decoder's configuration, its weights by path (lazy, dequantised to `dtype`), and Hugging Face's config.json.

    Raises WeightsError or ConfigError, by name, for an architecture, metadata, quantisation or tensor that is unknown.
    """
    try:
        hf = _config_json(file)
        config = huggingface.decoder_config(hf)
    except ConfigError as error:
        raise ConfigError(f"{file.path}: {error}") from None
    tensors = {}
    for name, tensor in file.tensors.items():
        if name == _ROPE_FACTORS:
            continue
        heads = _interleaved_heads(hf["model_type"], name, config)
        tensors[_hugging_face_name(name)] = Dequantised(tensor, dtype, heads)
    try:
        weights = from_torch(language_model_rules(config), tensors, decoder_shapes(config))
    except WeightsError as error:
        raise WeightsError(f"{file.path}: {error}") from None
    return config, weights, hf


def _config_json(file: GGUF) -> dict[str, Any]:
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise ConfigError(f"general.architecture is {architecture!r}; known are {', '.join(ARCHITECTURES)}")
    prefix = f"{architecture}."
    found = {key.removeprefix(prefix): value for key, value in file.metadata.items() if key.startswith(prefix)}
    for key, value in found.items():
        if key in _TRIVIAL and value not in _TRIVIAL[key]:
            raise ConfigError(f"{prefix}{key}={value!r} is not implemented")
        if key not in _SIZES and key not in _TRIVIAL and key not in _IGNORED:
            raise ConfigError(f"{prefix}{key}={str(value)[:60]!r} is unknown, and might change the model")
    hf = {theirs: found[ours] for ours, theirs in _SIZES.items() if ours in found}
    hf |= {"model_type": architecture, "architectures": [ARCHITECTURES[architecture]], "hidden_act": "silu"}
    hf["tie_word_embeddings"] = "output.weight" not in file.tensors
    if "token_embd.weight" in file.tensors:
        hf["vocab_size"] = _shape(file.tensors["token_embd.weight"])[0]
    for name, key in {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}.items():
        hf[name] = file.metadata.get(f"tokenizer.ggml.{key}_token_id")
    config = huggingface.decoder_config(hf)
    for key in ("rope.dimension_count", "attention.value_length"):
        if found.get(key, config.head_width) != config.head_width:
            raise ConfigError(f"{prefix}{key}={found[key]} is not the width of a head, {config.head_width}")
    if _ROPE_FACTORS in file.tensors:
        scaling = _rope_scaling(file.tensors[_ROPE_FACTORS], config)
        hf["rope_scaling"] = {"rope_type": "llama3", **scaling.__dict__}
    return hf


def _rope_scaling(tensor: Any, config: DecoderConfig) -> RopeScaling:
    factors = Dequantised(tensor, np.dtype(np.float32))[...]
    for scaling in _PUBLISHED_SCALINGS:
        expected = stretches(config, scaling)
        if factors.shape == expected.shape and np.allclose(factors, expected, rtol=1e-4):
            return scaling
    raise ConfigError(f"{_ROPE_FACTORS} holds the scaling of no published Llama")


def _hugging_face_name(name: str) -> str:
    """Unchanged where it is unknown: then it is in nobody's table, and refused by this name."""
    parts = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if parts is None or parts[2] not in _TENSORS:
        return name
    layer = "" if parts[1] is None else f"model.layers.{parts[1]}."
    return f"{layer}{_TENSORS[parts[2]]}.{parts[3]}"


def _interleaved_heads(model_type: str, name: str, config: DecoderConfig) -> int:
    """Of how many heads the rows stand as llama.cpp rotates LLaMA's queries and keys, by neighbours; 0: they do not."""
    stem = name.split(".")[-2] if "." in name else ""
    return {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}.get(stem, 0) if model_type == "llama" else 0


def _shape(tensor: Any) -> tuple[int, ...]:
    """As in torch: GGUF lists the fastest axis first."""
    return tuple(int(size) for size in reversed(tensor.shape))


class Dequantised(Lazy):
    """A tensor of a GGUF file, dequantised when it is read.

    heads: if not 0, the rows of each head are those of rotated pairs (0, 1), (2, 3), …; they become Hugging Face's
    halves.
    """

    def __init__(self, tensor: Any, dtype: np.dtype, heads: int = 0):
        self._tensor, self._heads = tensor, heads
        self.shape, self.dtype = _shape(tensor), np.dtype(dtype)
        try:
            self._read(tensor.data[:1])
        except NotImplementedError:
            raise WeightsError(
                f"{tensor.name}: the quantisation {tensor.tensor_type.name} is not known to the package gguf"
            ) from None

    def _read(self, data: np.ndarray) -> np.ndarray:
        import gguf

        return gguf.dequantize(data, self._tensor.tensor_type)

    def __getitem__(self, index: Any) -> np.ndarray:
        array = finite(self._tensor.name, self._read(self._tensor.data).reshape(self.shape))
        if self._heads:
            array = array.reshape(self._heads, -1, 2, *self.shape[1:]).swapaxes(1, 2).reshape(self.shape)
        return array[index].astype(self.dtype)


# Tokenizers

_LLAMA3, _QWEN2, _SMOLLM, _GPT2 = "llama3", "qwen2", "smollm", "gpt2"
_PRE_TOKENIZERS = {
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "smollm": _SMOLLM,
    "gpt-2": _GPT2,
}
"""llama.cpp's names for how texts are cut before merges (tokenizer.ggml.pre) → the family whose rules they are."""


def read_tokenizer(file: GGUF) -> TextTokenizer:
    """The tokenizer, its control tokens and its chat template; raises WeightsError, by name, for an unknown kind."""
    kind = file.metadata.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise WeightsError(f"{file.path}: tokenizer.ggml.model is {kind!r}; known are 'gpt2' and 'llama'")
    missing = [key for key in ("tokens", "token_type", "eos_token_id", *(["merges"] if kind == "gpt2" else ["scores"]))
               if f"tokenizer.ggml.{key}" not in file.metadata]  # fmt: skip
    if missing:
        raise WeightsError(f"{file.path}: lacks tokenizer.ggml.{missing[0]}")
    try:
        return _byte_level(file) if kind == "gpt2" else _sentencepiece(file)
    except WeightsError:
        raise
    except Exception as error:  # of tokenizers (its own type is bare), sentencepiece, or lists that do not fit
        raise WeightsError(f"{file.path}: its tokenizer is damaged ({_first_line(error)})") from None


def _special_tokens(metadata: Mapping[str, Any]) -> dict[str, str]:
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in names.items()}
    return {name: metadata["tokenizer.ggml.tokens"][index] for name, index in ids.items() if index is not None}


def _byte_level(file: GGUF) -> TextTokenizer:
    from gguf import TokenType
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    metadata = file.metadata
    name = metadata.get("tokenizer.ggml.pre")
    if name not in _PRE_TOKENIZERS:
        raise WeightsError(f"{file.path}: tokenizer.ggml.pre is {name!r}; known are {', '.join(_PRE_TOKENIZERS)}")
    family = _PRE_TOKENIZERS[name]
    vocabulary = {token: index for index, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = [_pair(merge) for merge in metadata["tokenizer.ggml.merges"]]
    # Llama 3 takes a word that is a token whole, whatever merges would make of it
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=family == _LLAMA3))
    tokenizer.normalizer, tokenizer.pre_tokenizer = _cut(family)
    tokenizer.decoder = decoders.ByteLevel()
    kinds = zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"], strict=True)
    added = [
        AddedToken(token, special=kind == TokenType.CONTROL, normalized=False)
        for token, kind in kinds
        if kind in (TokenType.CONTROL, TokenType.USER_DEFINED)
    ]
    tokenizer.add_tokens(added)
    return HuggingFaceTokenizer(
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            clean_up_tokenization_spaces=False,
            chat_template=metadata.get("tokenizer.chat_template"),
            **_special_tokens(metadata),
        )
    )


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right


def _cut(family: str) -> tuple[Any, Any]:
    """Normaliser and pre-tokenizer of a family, as in the tokenizer.json that its models are published with."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    if family == _GPT2:
        return None, pre_tokenizers.ByteLevel(add_prefix_space=False)
    if family == _SMOLLM:
        digits = pre_tokenizers.Digits(individual_digits=True)
        return None, pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    digits_at_once = {_LLAMA3: "{1,3}", _QWEN2: ""}[family]
    words = Regex(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + digits_at_once +
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )  # fmt: skip
    cut = pre_tokenizers.Split(words, behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return (normalizers.NFC() if family == _QWEN2 else None), pre_tokenizers.Sequence([cut, byte_level])


def _sentencepiece(file: GGUF) -> TextTokenizer:
    """The sentencepiece model that a file's pieces and scores came from."""
    from gguf import TokenType
    from transformers.utils import sentencepiece_model_pb2_new as protocol

    metadata = file.metadata
    tokens, scores, kinds = (metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "scores", "token_type"))
    model: Any = protocol.ModelProto()  # type: ignore[attr-defined]  # protobuf fills its module when it is imported
    # what frames conversations is no text, as which older files have it: a message could end its turn with it
    template = metadata.get("tokenizer.chat_template") or ""
    framing = {metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("bos", "eos", "padding")}
    for index, (token, score, kind) in enumerate(zip(tokens, scores, kinds, strict=True)):
        named = index in framing and kind != TokenType.UNKNOWN  # which pads in some models
        mark = kind == TokenType.USER_DEFINED and re.fullmatch(r"<\S+>|\[/?\S+\]", token) is not None
        frames = named or (mark and token in template)
        # GGUF took sentencepiece's numbers over
        model.pieces.add(piece=token, score=score, type=int(TokenType.CONTROL if frames else kind))
    spec = model.trainer_spec
    spec.model_type, spec.vocab_size, spec.byte_fallback = spec.BPE, len(tokens), True
    for name, key in {"unk": "unknown", "bos": "bos", "eos": "eos", "pad": "padding"}.items():
        known = metadata.get(f"tokenizer.ggml.{key}_token_id")
        setattr(spec, f"{name}_id", -1 if known is None else known)
        if known is not None:
            setattr(spec, f"{name}_piece", tokens[known])
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.remove_extra_whitespaces = False
    model.normalizer_spec.add_dummy_prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    configuration = {"chat_template": metadata.get("tokenizer.chat_template"), **_special_tokens(metadata)}
    with tempfile.TemporaryDirectory() as folder:
        with storage.writing(Path(folder) / "tokenizer.model") as partial, partial.open("wb") as written:
            written.write(model.SerializeToString())
        storage.write_json(Path(folder) / "tokenizer_config.json", configuration)
        return load_tokenizer(folder)
