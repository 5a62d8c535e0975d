"""LoRA adapters as PEFT saves them."""

from pathlib import Path
from typing import Any

from data_pipeline import storage
from llamo_jax.config import ConfigError
from llamo_jax.convert.huggingface import adapter_target, read_json
from llamo_jax.convert.names import PROJECTIONS, adapted_projections, decoder_shapes, lora_rules
from llamo_jax.models import DecoderConfig, LoRAConfig
from llamo_jax.models.lora import decoder_targets
from llamo_jax.models.torch_names import from_torch, to_torch
from llamo_jax.parameters import WeightsError
from llamo_jax.weights import Weights, read_file, write_file

_READ = ("peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "init_lora_weights")
_HARMLESS = ("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
             "layers_pattern", "megatron_core", "qalora_group_size", "ensure_weight_tying")  # fmt: skip
"""Options of adapter_config.json that are understood, and those that change no weight by themselves."""

_INITIAL = (True, False, None, "gaussian", "orthogonal", "eva")
"""Values of init_lora_weights that only chose where training began; the others changed the base's matrices as well."""

_UNSET: tuple[Any, ...] = (None, False, "none", "", {}, [])
"""What every other option must be: one that is not known here may mean anything."""


def read_adapter(folder: Path, config: DecoderConfig) -> tuple[LoRAConfig, dict[str, Any]]:
    """An adapter's configuration and its arrays by path, for a decoder; raises WeightsError."""
    content = read_json(folder / "adapter_config.json")
    if content.get("peft_type") != "LORA":
        raise WeightsError(f"{folder}: peft_type {content.get('peft_type')!r} is not LORA")
    for name, value in content.items():
        if name not in (*_READ, *_HARMLESS) and value not in _UNSET:
            raise WeightsError(f"{folder}: {name}={value!r} is not implemented")
    if content.get("init_lora_weights") not in _INITIAL:
        raise WeightsError(
            f"{folder}: init_lora_weights={content['init_lora_weights']!r} changed the base model's weights; "
            "save the adapter for the original ones (path_initial_model_for_weight_conversion in peft)"
        )
    targets = content.get("target_modules")
    if not isinstance(targets, list):
        raise WeightsError(f"{folder}: target_modules must be a list of names, not {targets!r}")
    try:
        found = {adapter_target(name) for name in targets}
        lora = LoRAConfig(
            rank=_number(folder, content, "r"),
            alpha=_number(folder, content, "lora_alpha"),
            dropout=_number(folder, content, "lora_dropout"),
            targets=decoder_targets([name for name in PROJECTIONS if name in found]),
        )
    except KeyError as error:
        raise WeightsError(f"{folder}/adapter_config.json lacks {error}") from None
    except ConfigError as error:
        raise WeightsError(f"{folder}/adapter_config.json: {error}") from None
    if not (folder / "adapter_model.safetensors").is_file() and (folder / "adapter_model.bin").is_file():
        raise WeightsError(f"{folder} holds a pickle (adapter_model.bin); save it with safe_serialization=True")
    tensors = read_file(folder / "adapter_model.safetensors")
    return lora, from_torch(lora_rules(config, lora), tensors, decoder_shapes(config, lora))


def _number(folder: Path, content: dict[str, Any], name: str) -> Any:
    """A number of adapter_config.json; LoRAConfig checks its range."""
    value = content[name]
    if name == "r" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise WeightsError(f"{folder}/adapter_config.json: r must be a whole number above 0, not {value!r}")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise WeightsError(f"{folder}/adapter_config.json: {name} must be a number, not {value!r}")
    return value


def write_adapter(folder: Path, config: DecoderConfig, lora: LoRAConfig, arrays: Weights, base_model: str) -> None:
    """Writes adapter_model.safetensors and adapter_config.json into an existing folder, for `PeftModel`."""
    write_file(folder / "adapter_model.safetensors", to_torch(lora_rules(config, lora), arrays))
    content = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": [PROJECTIONS[name].split(".")[1] for name in adapted_projections(lora)],
        "bias": "none",
        "fan_in_fan_out": False,
    }
    storage.write_json(folder / "adapter_config.json", content)
