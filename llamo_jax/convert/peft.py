"""LoRA adapters as PEFT saves them: plain, rank-stabilised (rsLoRA) and weight-decomposed (DoRA)."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipeline import storage
from llamo_jax.config import ConfigError
from llamo_jax.convert.huggingface import read_json
from llamo_jax.convert.names import PROJECTIONS, adapted_projections, decoder_shapes, lora_rules, projection_path
from llamo_jax.models import DecoderConfig, LoRAConfig
from llamo_jax.models.lora import decoder_targets
from llamo_jax.models.torch_names import from_torch, to_torch
from llamo_jax.parameters import WeightsError
from llamo_jax.weights import Layer, Stacked, Weights, read_file, write_file

_READ = (
    "peft_type",
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "use_dora",
    "init_lora_weights",
)
_HARMLESS = ("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
             "megatron_core", "qalora_group_size", "ensure_weight_tying")  # fmt: skip
"""Options of adapter_config.json that are understood, and those that change no weight by themselves."""

_INITIAL = (True, False, None, "gaussian", "orthogonal", "eva")
"""Values of init_lora_weights that only chose where training began; the others changed the base's matrices as well."""

_UNSET: tuple[Any, ...] = (None, False, "none", "", {}, [])
"""What every other option must be: one that is not known here may mean anything."""

_PREFIX = "base_model.model."
"""Of every tensor's name in an adapter."""


class _Adapter(NamedTuple):
    """One adapter, of one projection in one layer."""

    rank: int
    scale: float


def read_adapter(
    folder: Path, config: DecoderConfig, base: Weights | None = None, notes: list[str] | None = None
) -> tuple[LoRAConfig, dict[str, Any]]:
    """An adapter's configuration and its arrays by path, for a decoder with the weights `base`; raises WeightsError.

    base is needed for DoRA alone, whose norms are kept as differences from its matrices'.

    Where a projection's adapters differ between layers (ranks, scales, layers without one), they are filled up with
    zeros to the largest rank, and their own scales are in lora_b: the same function, and zeros stay zeros in training,
    since each of the two matrices gets its gradient through the other.
    """
    content = read_json(folder / "adapter_config.json")
    try:
        options = _options(content)
        layout = _layout(options, config.num_layers)
        lora = _config(options, layout)
    except (ConfigError, WeightsError) as error:
        raise WeightsError(f"{folder}/adapter_config.json: {error}") from None
    if not (folder / "adapter_model.safetensors").is_file() and (folder / "adapter_model.bin").is_file():
        raise WeightsError(f"{folder} holds a pickle (adapter_model.bin); save it with safe_serialization=True")
    tensors: Weights = read_file(folder / "adapter_model.safetensors")
    if _differs(lora, layout, config.num_layers):
        if notes is not None:
            notes.append("adapters that differ between layers are filled up with zeros to the same rank")
        tensors = _filled_up(tensors, config, lora, layout)
    arrays = from_torch(lora_rules(config, lora), tensors, decoder_shapes(config, lora))
    if lora.dora and base is None:
        raise WeightsError(f"{folder}: use_dora=True needs the weights of the model that the adapter stands on")
    return lora, _with_norms(arrays, base or {}, lora, -1)


def _options(content: Mapping[str, Any]) -> dict[str, Any]:
    """adapter_config.json with the values that PEFT has for what is absent; raises WeightsError for what is unknown."""
    if content.get("peft_type") != "LORA":
        raise WeightsError(f"peft_type {content.get('peft_type')!r} is not LORA")
    for name, value in content.items():
        if name not in (*_READ, *_HARMLESS) and value not in _UNSET:
            raise WeightsError(f"{name}={value!r} is not implemented")
    if missing := [name for name in ("r", "lora_alpha", "lora_dropout", "target_modules") if name not in content]:
        raise WeightsError(f"lacks {', '.join(missing)}")
    initial = content.get("init_lora_weights")
    if not (isinstance(initial, bool | str) or initial is None) or initial not in _INITIAL:
        raise WeightsError(
            f"init_lora_weights={initial!r} changed the base model's weights; save the adapter for the original ones "
            "(path_initial_model_for_weight_conversion in peft)"
        )
    options = {name: content.get(name) for name in _READ}
    options["r"] = _rank("r", options["r"])
    for name in ("lora_alpha", "lora_dropout"):
        options[name] = _number(name, options[name])
    for name, check in (("rank_pattern", _rank), ("alpha_pattern", _number)):
        patterns = options[name] or {}
        if not isinstance(patterns, dict):
            raise WeightsError(f"{name} must be an object, not {patterns!r}")
        options[name] = {_pattern(name, key): check(f"{name}[{key!r}]", value) for key, value in patterns.items()}
    for name in ("use_rslora", "use_dora"):
        if not isinstance(options[name], bool | None):
            raise WeightsError(f"{name} must be true or false, not {options[name]!r}")
    for name in ("target_modules", "exclude_modules", "layers_pattern"):
        value = options[name] or []
        if isinstance(value, str):
            _pattern(name, value)
        elif not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise WeightsError(f"{name} must be a text or a list of names, not {value!r}")
        options[name] = value
    layers = options["layers_to_transform"]
    layers = [layers] if isinstance(layers, int) else layers or []
    if not isinstance(layers, list) or any(isinstance(layer, bool) or not isinstance(layer, int) for layer in layers):
        raise WeightsError(f"layers_to_transform must be numbers of layers, not {layers!r}")
    options["layers_to_transform"] = layers
    return options


def _rank(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise WeightsError(f"{name} must be a whole number above 0, not {value!r}")
    return value


def _number(name: str, value: Any) -> float:
    """A number; LoRAConfig checks its range."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise WeightsError(f"{name} must be a number, not {value!r}")
    return float(value)


def _pattern(name: str, value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise WeightsError(f"{name}: {value!r} is no regular expression ({error})") from None
    return value


def _layout(options: Mapping[str, Any], num_layers: int) -> dict[str, dict[int, _Adapter]]:
    """Our name of a projection → layer → its adapter; raises WeightsError if a target is something else."""
    keys = {f"model.layers.{layer}.{theirs}": (ours, layer)
            for ours, theirs in PROJECTIONS.items() for layer in range(num_layers)}  # fmt: skip
    targets = options["target_modules"]
    if isinstance(targets, list):
        for target in targets:
            if not any(_named(key, (target,)) for key in keys):
                raise WeightsError(f"target_modules: {target!r} is not a projection of the decoder's layers")
    elif targets != "all-linear" and re.fullmatch(targets or "", "lm_head"):
        raise WeightsError(f"target_modules: {targets!r} covers lm_head, which is not a projection of the layers")
    found: dict[str, dict[int, _Adapter]] = {}
    for key, (ours, layer) in keys.items():
        if not _is_target(key, options):
            continue
        rank = _of_pattern(key, options["rank_pattern"], options["r"])
        alpha = _of_pattern(key, options["alpha_pattern"], options["lora_alpha"])
        scale = alpha / (math.sqrt(rank) if options["use_rslora"] else rank)
        found.setdefault(ours, {})[layer] = _Adapter(rank, scale)
    if not found:
        raise WeightsError(f"target_modules: {targets!r} matches no projection of the decoder's layers")
    if options["use_dora"] and any(len(layers) < num_layers for layers in found.values()):
        raise WeightsError("use_dora=True is not implemented for some of the layers alone")
    return found


def _is_target(key: str, options: Mapping[str, Any]) -> bool:
    """Whether a module has an adapter, by the rules of peft (check_target_module_exists)."""
    targets, excluded, layers = (options[name] for name in ("target_modules", "exclude_modules", "layers_to_transform"))
    if re.fullmatch(excluded, key) if isinstance(excluded, str) else _named(key, excluded or ()):
        return False
    if isinstance(targets, str):
        return targets == "all-linear" or bool(re.fullmatch(targets, key))
    if key in targets or not layers:
        return _named(key, targets)
    patterns = options["layers_pattern"] or [r"[^.]*"]
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if match := re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", key):
            return int(match.group(1)) in layers and _named(key, targets)
    return False


def _named(key: str, names: Sequence[str]) -> bool:
    return any(key == name or key.endswith(f".{name}") for name in names)


def _of_pattern(key: str, patterns: Mapping[str, Any], default: Any) -> Any:
    """The value of the first pattern that matches the end of a module's name, by the rules of peft."""
    return next((value for name, value in patterns.items() if re.match(rf"(.*\.)?({name})$", key)), default)


def _config(options: Mapping[str, Any], layout: Mapping[str, Mapping[int, _Adapter]]) -> LoRAConfig:
    """Ours: one rank and one scale for a projection, those of its adapter of the largest rank."""
    root = bool(options["use_rslora"])
    ranks, alphas = {}, {}
    for name in (name for name in PROJECTIONS if name in layout):
        largest = max(layout[name].values())
        ranks[name] = largest.rank
        # given back as peft has it: dividing and multiplying again may be off in the last digit
        known = (options["lora_alpha"], *options["alpha_pattern"].values())
        alpha = largest.scale * (math.sqrt(largest.rank) if root else largest.rank)
        alphas[name] = min(known, key=lambda value: abs(value - alpha))
    return LoRAConfig(
        rank=options["r"],
        alpha=options["lora_alpha"],
        dropout=options["lora_dropout"],
        targets=decoder_targets(list(ranks)),
        rank_stabilized=root,
        dora=bool(options["use_dora"]),
        rank_pattern=tuple((projection_path(name), rank) for name, rank in ranks.items() if rank != options["r"]),
        alpha_pattern=tuple(
            (projection_path(name), alpha) for name, alpha in alphas.items() if alpha != options["lora_alpha"]
        ),
    )


def _differs(lora: LoRAConfig, layout: Mapping[str, Mapping[int, _Adapter]], num_layers: int) -> bool:
    """Whether some projection's adapters are not the same in all layers."""
    return any(len(layers) < num_layers or len(set(layers.values())) > 1 for layers in layout.values())


def _filled_up(
    tensors: Weights, config: DecoderConfig, lora: LoRAConfig, layout: Mapping[str, Mapping[int, _Adapter]]
) -> dict[str, np.ndarray]:
    """The tensors as of adapters that are alike in all layers; raises WeightsError unless those are there."""
    shapes = decoder_shapes(config, lora)
    left = dict(tensors)
    result: dict[str, np.ndarray] = {}
    for name, layers in layout.items():
        widths = (shapes[f"layers/{name}/lora_a"][1], shapes[f"layers/{name}/lora_b"][2])
        rank, scale = lora.rank_of(projection_path(name)), lora.scale_of(projection_path(name))
        for layer in range(config.num_layers):
            module = f"{_PREFIX}model.layers.{layer}.{PROJECTIONS[name]}"
            own = layers.get(layer, _Adapter(0, 0.0))
            a = result[f"{module}.lora_A.weight"] = np.zeros((rank, widths[0]), np.float32)
            b = result[f"{module}.lora_B.weight"] = np.zeros((widths[1], rank), np.float32)
            if not own.rank:
                continue
            a[: own.rank] = _taken(left, f"{module}.lora_A.weight", (own.rank, widths[0]))
            b[:, : own.rank] = _taken(left, f"{module}.lora_B.weight", (widths[1], own.rank))
            b *= own.scale / scale
            if lora.dora:
                norms = f"{module}.lora_magnitude_vector"
                result[norms] = _taken(left, norms, (widths[1],))
    if left:
        raise WeightsError(f"tensors do not fit the adapter's configuration; unexpected: {sorted(left)}")
    return result


def _taken(tensors: dict[str, Any], name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name not in tensors:
        raise WeightsError(f"tensors do not fit the adapter's configuration; missing: {name}")
    array = tensors.pop(name)
    if tuple(array.shape) != shape:
        raise WeightsError(f"{name}: expected shape {shape}, got {tuple(array.shape)}")
    return np.asarray(array[...]).astype(np.float32)


def _with_norms(arrays: Weights, base: Weights, lora: LoRAConfig, sign: int) -> dict[str, Any]:
    """DoRA's magnitudes ± the norms of the base's matrices: peft stores norms, we how far they are from the base's."""
    if not lora.dora:
        return dict(arrays)
    result = dict(arrays)
    for name in adapted_projections(lora):
        kernel, magnitude = base[f"layers/{name}/kernel"], arrays[f"layers/{name}/lora_magnitude"]
        result[f"layers/{name}/lora_magnitude"] = Stacked(
            [
                np.asarray(Layer(magnitude, layer)[...]).astype(np.float32)
                + sign * np.linalg.norm(np.asarray(Layer(kernel, layer)[...]).astype(np.float32), axis=0)
                for layer in range(kernel.shape[0])
            ]
        )
    return result


def write_adapter(folder: Path, config: DecoderConfig, lora: LoRAConfig, arrays: Weights, base_model: str) -> None:
    """Writes adapter_model.safetensors and adapter_config.json into an existing folder, for `PeftModel`."""
    arrays = _with_norms(arrays, arrays, lora, +1)
    write_file(folder / "adapter_model.safetensors", to_torch(lora_rules(config, lora), arrays))
    names = adapted_projections(lora)
    ranks = {name: lora.rank_of(projection_path(name)) for name in names}
    alphas = {name: lora.alpha_of(projection_path(name)) for name in names}
    content = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.rank_stabilized,
        "use_dora": lora.dora,
        "rank_pattern": {_module(name): rank for name, rank in ranks.items() if rank != lora.rank},
        "alpha_pattern": {_module(name): alpha for name, alpha in alphas.items() if alpha != lora.alpha},
        "target_modules": [_module(name) for name in names],
        "bias": "none",
        "fan_in_fan_out": False,
    }
    storage.write_json(folder / "adapter_config.json", content)


def _module(name: str) -> str:
    """What PEFT calls one of our projections, such as q_proj."""
    return PROJECTIONS[name].split(".")[1]
