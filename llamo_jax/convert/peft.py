"""LoRA adapters as PEFT saves them."""

from pathlib import Path
from typing import Any

from data_pipeline import storage
from llamo_jax.convert.huggingface import adapter_target, read_json
from llamo_jax.convert.names import PROJECTIONS, adapted_projections, decoder_shapes, lora_rules
from llamo_jax.models import DecoderConfig, LoRAConfig
from llamo_jax.models.lora import decoder_targets
from llamo_jax.models.torch_names import from_torch, to_torch
from llamo_jax.parameters import WeightsError
from llamo_jax.weights import Weights, read_file, write_file

_UNSUPPORTED = {
    "use_dora": False,
    "use_rslora": False,
    "fan_in_fan_out": False,
    "bias": "none",
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
    "layers_to_transform": None,
    "lora_bias": False,
    "trainable_token_indices": None,
    "target_parameters": None,
    "layer_replication": None,
    "exclude_modules": None,
}
"""Options of adapter_config.json and the only value that is implemented here."""


def read_adapter(folder: Path, config: DecoderConfig) -> tuple[LoRAConfig, dict[str, Any]]:
    """An adapter's configuration and its arrays by path, for a decoder; raises WeightsError."""
    content = read_json(folder / "adapter_config.json")
    if content.get("peft_type") != "LORA":
        raise WeightsError(f"{folder}: peft_type {content.get('peft_type')!r} is not LORA")
    for name, wanted in _UNSUPPORTED.items():
        if content.get(name) and content[name] != wanted:
            raise WeightsError(f"{folder}: {name}={content[name]!r} is not implemented (only {wanted!r})")
    targets = content.get("target_modules")
    if not isinstance(targets, list):
        raise WeightsError(f"{folder}: target_modules must be a list of names, not {targets!r}")
    try:
        found = {adapter_target(name) for name in targets}
        lora = LoRAConfig(
            rank=content["r"],
            alpha=float(content["lora_alpha"]),
            dropout=float(content["lora_dropout"]),
            targets=decoder_targets([name for name in PROJECTIONS if name in found]),
        )
    except KeyError as error:
        raise WeightsError(f"{folder}/adapter_config.json lacks {error}") from None
    if not (folder / "adapter_model.safetensors").is_file() and (folder / "adapter_model.bin").is_file():
        raise WeightsError(f"{folder} holds a pickle (adapter_model.bin); save it with safe_serialization=True")
    tensors = read_file(folder / "adapter_model.safetensors")
    return lora, from_torch(lora_rules(config, lora), tensors, decoder_shapes(config, lora))


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
