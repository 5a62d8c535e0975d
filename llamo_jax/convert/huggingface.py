"""Hugging Face's language models of the LLaMA family: read without torch, and written so that torch reads them."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline import storage
from data_pipeline.errors import DataError
from llamo_jax.config import ConfigError
from llamo_jax.convert.names import decoder_shapes, language_model_rules
from llamo_jax.models import DecoderConfig, LoRAConfig
from llamo_jax.models.llama import RopeScaling
from llamo_jax.models.lora import PARTS, decoder_targets
from llamo_jax.models.torch_names import from_torch
from llamo_jax.parameters import WeightsError
from llamo_jax.weights import Layer, Lazy, Stacked, Weights, read_folder

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
_FILES = ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*", "*.jinja",
          "special_tokens_map.json", "vocab.json", "merges.txt", "added_tokens.json")  # fmt: skip
_SECOND_COPIES = ["consolidated*", "original/*"]
"""The same weights in the makers' own format, as in Mistral's and Llama's repositories."""

NO_LORA = LoRAConfig(rank=0, alpha=32.0, dropout=0.05, targets=decoder_targets(("query", "value")))
_DEAD = r"(.*\.)?rotary_emb\.inv_freq"
"""Buffers that old checkpoints hold and that follow from the configuration."""


def locate(language_model: str) -> Path:
    """A local folder, or that of a model of the Hub, downloaded if there is a network.

    Raises WeightsError that says what to download and where to put it.
    """
    if Path(language_model).is_dir():
        return Path(language_model)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", language_model):
        raise WeightsError(f"{language_model}: no such folder, and not the id of a model on the Hugging Face Hub")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(language_model, allow_patterns=list(_FILES), ignore_patterns=_SECOND_COPIES))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise WeightsError(
            f"{language_model} cannot be downloaded from the Hugging Face Hub ({reason}). Download its config.json, "
            f"*.safetensors and tokenizer files elsewhere (hf download {language_model} --local-dir FOLDER), copy the "
            "folder here, and give it as --language_model FOLDER"
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises WeightsError if there is none."""
    try:
        return storage.read_json(path)
    except DataError as error:
        raise WeightsError(str(error)) from None


def decoder_config(hf: Mapping[str, Any]) -> DecoderConfig:
    """The decoder that a Hugging Face config.json describes; raises ConfigError, by name, for what is not built here.

    Both spellings are read: `rope_theta` and `rope_scaling`, and `rope_parameters` of transformers 5.
    """
    model_type = hf.get("model_type")
    if not isinstance(model_type, str) or model_type not in MODEL_TYPES:
        raise ConfigError(f"model_type {hf.get('model_type')!r} is not one of {', '.join(MODEL_TYPES)}")
    for name, wanted in {"hidden_act": "silu", "mlp_bias": False, "partial_rotary_factor": 1.0}.items():
        if hf.get(name, wanted) != wanted:
            raise ConfigError(f"{name}={hf[name]!r} is not implemented (only {wanted!r})")
    _check_types(hf)
    if hf.get("attention_bias") and hf["model_type"] != "qwen2":
        raise ConfigError("attention_bias=True is not implemented (biases of query, key and value: qwen2)")
    if hf.get("quantization_config"):
        raise ConfigError("quantization_config: convert the unquantised model")
    missing = [name for name in (*_SIZES.values(), "rms_norm_eps") if name not in hf]
    if missing:
        raise ConfigError(f"config.json lacks {', '.join(missing)}")
    rope = {
        "rope_theta": hf.get("rope_theta", 10000.0),
        **(hf.get("rope_scaling") or {}),
        **(hf.get("rope_parameters") or {}),
    }
    heads = hf["num_attention_heads"]
    return DecoderConfig(
        **{ours: hf[theirs] for ours, theirs in _SIZES.items()},
        num_kv_heads=hf.get("num_key_value_heads") or heads,
        head_width=hf.get("head_dim") or hf["hidden_size"] // heads,
        rope_theta=_theta(rope["rope_theta"]),
        rope_scaling=_rope_scaling(rope),
        rms_norm_eps=float(hf["rms_norm_eps"]),
        qkv_bias=hf["model_type"] == "qwen2",
        qk_norm=hf["model_type"] == "qwen3",
        tie_embeddings=bool(hf.get("tie_word_embeddings", False)),
        sliding_window=_sliding_window(hf),
    )


def _check_types(hf: Mapping[str, Any]) -> None:
    """Raises ConfigError, by name, for a value of another type than transformers writes, or one without sense."""
    counts = (*_SIZES.values(), "num_key_value_heads", "head_dim", "sliding_window", "max_window_layers")
    kinds: dict[str, tuple[Any, str]] = {name: (int, "a whole number above 0") for name in counts}
    kinds |= {name: (int | float, "a number above 0") for name in ("rms_norm_eps", "rope_theta")}
    kinds |= {name: (bool, "true or false") for name in ("tie_word_embeddings", "attention_bias", "use_sliding_window")}
    kinds |= {name: (dict, "an object") for name in ("rope_scaling", "rope_parameters")}
    kinds["layer_types"] = (list, "a list")
    optional = {"num_key_value_heads", "head_dim", "sliding_window", "rope_scaling", "rope_parameters", "layer_types",
                "max_window_layers", "use_sliding_window", "tie_word_embeddings", "attention_bias"}  # fmt: skip
    for name, (kind, wanted) in kinds.items():
        if name not in hf or (hf[name] is None and name in optional):
            continue
        value = hf[name]
        right = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        if right and isinstance(value, int | float) and kind is not bool:
            right = 0 < value < math.inf or (name == "max_window_layers" and value == 0)
        if not right:
            raise ConfigError(f"{name} must be {wanted}, not {str(value)[:60]!r}")


_SIZES = {
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "mlp_width": "intermediate_size",
}


def _rope_scaling(rope: Mapping[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise ConfigError(f"rope_type={kind!r} is not implemented (only 'default' and 'llama3')")
    try:
        return RopeScaling(
            factor=float(rope["factor"]),
            low_freq_factor=float(rope["low_freq_factor"]),
            high_freq_factor=float(rope["high_freq_factor"]),
            original_max_position_embeddings=int(rope["original_max_position_embeddings"]),
        )
    except KeyError as error:
        raise ConfigError(f"rope_scaling lacks {error}") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"rope_scaling holds no numbers ({error})") from None


def _theta(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigError(f"rope_theta must be a number above 0, not {str(value)[:60]!r}")
    return float(value)


def _sliding_window(hf: Mapping[str, Any]) -> int | None:
    """The window of the layers that have one; None if none has.

    Of Qwen2, the first `max_window_layers` layers see everything: where all do, there is no window.
    """
    kinds = {str(kind) for kind in hf.get("layer_types") or ()}
    if unknown := kinds - {"full_attention", "sliding_attention"}:
        raise ConfigError(f"layer_types {sorted(unknown)} are not implemented")
    if not kinds and hf.get("use_sliding_window") and hf["model_type"] != "mistral":
        full = hf.get("max_window_layers")
        if full is not None and full >= hf["num_hidden_layers"]:
            return None
    if kinds == {"full_attention"} or not hf.get("use_sliding_window", hf["model_type"] == "mistral"):
        return None
    return hf.get("sliding_window")


def read_language_model(folder: Path) -> tuple[DecoderConfig, dict[str, Any], dict[str, Any]]:
    """The decoder's configuration, its weights by path (lazy), and config.json.

    Raises WeightsError or ConfigError unless every tensor is there, has its shape, and is known.
    """
    hf = read_json(folder / "config.json")
    try:
        config = decoder_config(hf)
    except ConfigError as error:
        raise ConfigError(f"{folder}/config.json: {error}") from None
    tensors = without_dead(read_folder(folder))
    if config.tie_embeddings and "model.embed_tokens.weight" not in tensors and "lm_head.weight" in tensors:
        tensors["model.embed_tokens.weight"] = tensors.pop("lm_head.weight")  # as safetensors names a shared matrix
    if config.tie_embeddings and "lm_head.weight" in tensors:  # some checkpoints hold the one matrix twice
        if not np.array_equal(tensors["lm_head.weight"][...], tensors["model.embed_tokens.weight"][...]):
            raise WeightsError(f"{folder}: tie_word_embeddings is set, but lm_head.weight is another matrix")
        del tensors["lm_head.weight"]
    return config, from_torch(language_model_rules(config), tensors, decoder_shapes(config)), hf


def without_dead(tensors: Weights) -> dict[str, Any]:
    """The tensors of a language model without the buffers that nothing reads."""
    return {name: tensor for name, tensor in tensors.items() if not re.fullmatch(_DEAD, name)}


def write_config(config: DecoderConfig, source: Mapping[str, Any] | None, dtype: np.dtype) -> dict[str, Any]:
    """config.json for torch: that of the model it was made from, if known, with what is certain from ours over it."""
    family = "qwen3" if config.qk_norm else "qwen2" if config.qkv_bias else "llama"
    name = {"qwen3": "Qwen3ForCausalLM", "qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM"}[family]
    hf = dict(source or {"model_type": family, "architectures": [name], "hidden_act": "silu"})
    hf.pop("dtype", None)  # the newer name of torch_dtype, of the model it was made from
    hf |= {theirs: getattr(config, ours) for ours, theirs in _SIZES.items()}
    hf |= {
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_width,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": str(dtype),
    }
    if not hf.get("rope_parameters"):
        hf["rope_theta"] = config.rope_theta
        scaling = config.rope_scaling
        hf["rope_scaling"] = None if scaling is None else {"rope_type": "llama3", **scaling.__dict__}
    if decoder_config(hf) != config:
        raise WeightsError("config.json of the language model does not describe the model any more")
    return hf


def merged(arrays: Weights, lora: LoRAConfig, part: str = "language_model") -> dict[str, Any]:
    """Weights of a part of the model by path, adapters merged into the matrices (in float32), layer by layer."""
    result = {path: array for path, array in arrays.items() if path.rpartition("/")[2] not in PARTS}
    for path in arrays:
        stem, _, name = path.rpartition("/")
        if name != PARTS[0]:
            continue
        names = ("kernel", *PARTS[: 3 if lora.dora else 2])
        parts = [arrays[f"{stem}/{name}"] for name in names]
        scale = lora.scale_of(f"{part}/{stem}")
        if len(parts[0].shape) == 2:
            result[f"{stem}/kernel"] = Merged(parts, scale)
        else:
            stack = [[Layer(array, index) for array in parts] for index in range(parts[0].shape[0])]
            result[f"{stem}/kernel"] = Stacked([Merged(layer, scale) for layer in stack])
    return result


class Merged(Lazy):
    """`kernel + scale · a @ b`, with DoRA's norms if there are some; computed in float32, in the kernel's dtype.

    parts: kernel, a, b and perhaps the change of the norms, of one layer.
    """

    def __init__(self, parts: Sequence[Any], scale: float):
        self._parts, self._scale = parts, scale
        self.shape, self.dtype = tuple(parts[0].shape), np.dtype(parts[0].dtype)

    def __getitem__(self, index: Any) -> np.ndarray:
        kernel, a, b, *magnitude = (np.asarray(part[...]).astype(np.float32) for part in self._parts)
        # in float32: a bfloat16 sum would lose updates below half a step of the weight
        result = kernel + self._scale * (a @ b)
        for change in magnitude:
            result *= (np.linalg.norm(kernel, axis=0) + change) / np.linalg.norm(result, axis=0)
        return result.astype(self.dtype)[index]
