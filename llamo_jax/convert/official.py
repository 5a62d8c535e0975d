"""Checkpoints of the original LLaMo (a Lightning file of everything) and of MoleculeSTM (the graph encoder).

Torch files are read with `weights_only=True` and mapped, not loaded (extra `[convert]`).
"""

import dataclasses
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import ml_dtypes
import numpy as np
from flax import nnx

from data_pipeline.errors import DataError
from data_pipeline.torch_files import check_archive
from llamo_jax.config import ConfigError, Kinds
from llamo_jax.convert.huggingface import NO_LORA, decoder_config, read_json, without_dead
from llamo_jax.convert.names import adapted_projections, below, decoder_shapes, language_model_rules, lora_rules
from llamo_jax.models import DecoderConfig, GINConfig, LoRAConfig, MultiLevelConfig
from llamo_jax.models.graph_encoders import GRAPH_ENCODERS
from llamo_jax.models.interfaces import GraphEncoderConfig, ProjectorConfig
from llamo_jax.models.lora import decoder_targets
from llamo_jax.models.migrations import SchemaError, migrated_model
from llamo_jax.models.projectors import PROJECTORS
from llamo_jax.models.torch_names import from_torch, rules_of, variable_shapes
from llamo_jax.parameters import WeightsError
from llamo_jax.weights import Lazy, Weights, finite, read_file

T = TypeVar("T")

DEAD = (
    r"ln_graph_model\.(weight|bias)",  # its result is thrown away
    r"graph_model\..*\.num_batches_tracked",  # counters that nothing reads
)
"""Tensors of a Lightning checkpoint that nothing depends on; any other that is left over is an error."""

LORA = LoRAConfig(rank=8, alpha=32.0, dropout=0.05, targets=decoder_targets(("query", "value")))
"""The original's adapters: written into its code, whatever its command line said."""

GRAPH_ENCODER = GINConfig.paper()
"""MoleculeSTM's and LLaMo's."""

PROJECTOR = MultiLevelConfig.paper(share_level_attention=True)
"""The original's: its code shares one attention between the levels, which its paper does not say."""

GRAPH_CONFIG = "graph_config.json"
"""Configuration of a graph encoder and a projector, beside their safetensors files."""


def graph_configs(graph_encoder: Path | None, projector: Path | None) -> tuple[GraphEncoderConfig, ProjectorConfig]:
    """The configurations of these files: from GRAPH_CONFIG beside them, else the paper's.

    The paper's projector has an attention for each level, unless the file shows that it has one for all.
    """
    encoder = _configured(graph_encoder, "graph_encoder", GRAPH_ENCODERS) or GRAPH_ENCODER
    configured = _configured(projector, "projector", PROJECTORS)
    if configured is not None:
        return encoder, configured
    shared = projector is not None and not any(name.startswith("cross_attention.1.") for name in read_file(projector))
    return encoder, dataclasses.replace(PROJECTOR, share_level_attention=shared)


def _configured(file: Path | None, part: str, kinds: Kinds[T]) -> T | None:
    """A part's configuration from GRAPH_CONFIG beside its own file; None if there is none."""
    path = file and file.parent / GRAPH_CONFIG
    if path is None or not path.is_file():
        return None
    content = read_json(path)
    try:
        content = migrated_model(
            content | {"lora": {"targets": ()}, "language_model": {}}, content.get("schema_version", 1)
        )
        return kinds.read(content[part], part)
    except (KeyError, TypeError, ValueError, ConfigError, SchemaError) as error:
        raise WeightsError(f"{path} is damaged: {error}") from None


class Checkpoint:
    """A Lightning checkpoint of stage 1 or 2, taken apart; all weights by path (lazy, where they are large)."""

    def __init__(self, path: Path, hf: Mapping[str, Any]):
        """hf: config.json of the language model; the vocabulary is the checkpoint's, one pad token larger."""
        content = read_torch(path)
        parameters = content.get("hyper_parameters") or {}
        if parameters.get("peft_config") or parameters.get("peft_dir"):
            raise WeightsError(f"{path}: trained with an adapter configuration of its own (peft_config, peft_dir)")
        tensors = content.get("state_dict")
        if not isinstance(tensors, Mapping):
            raise WeightsError(f"{path}: not a Lightning checkpoint (no state_dict)")
        foreign = sorted(name for name in tensors if not name.startswith("mllm."))
        if foreign:
            raise WeightsError(f"{path}: unexpected tensors {foreign}")
        tensors = {
            name: as_array(name, tensor)
            for name, tensor in below("mllm.", tensors).items()
            if not any(re.fullmatch(pattern, name) for pattern in DEAD)
        }
        parts = {part: below(f"{part}.", tensors) for part in ("graph_model", "abstractor", "language_model")}
        left = sorted(set(tensors) - {f"{part}.{name}" for part, found in parts.items() for name in found})
        if left:
            raise WeightsError(f"{path}: unexpected tensors {left}")
        self.decoder = dataclasses.replace(decoder_config(hf), vocab_size=_vocabulary(path, parts["language_model"]))
        self.notes: list[str] = []
        self.graph_encoder = _graph_encoder(parts["graph_model"], GRAPH_ENCODER, self.notes)
        abstractor = _one_attention(parts["abstractor"])
        self.projector = _projector(abstractor, PROJECTOR, GRAPH_ENCODER, self.decoder.width)
        self.lora, self.language_model = _language_model(without_dead(parts["language_model"]), self.decoder)


def read_graph_encoder(path: Path, config: GraphEncoderConfig, notes: list[str]) -> dict[str, Any]:
    """MoleculeSTM's `molecule_model.pth`, or the same tensors as safetensors, as arrays by path.

    What had to be adapted is appended to `notes`.
    """
    tensors: Weights = read_file(path) if path.suffix == ".safetensors" else read_torch(path)
    return _graph_encoder({name: as_array(name, tensor) for name, tensor in tensors.items()}, config, notes)


def read_projector(path: Path, config: ProjectorConfig, encoder: GraphEncoderConfig, out_width: int) -> dict[str, Any]:
    """A projector's safetensors file as arrays by path."""
    return _projector(read_file(path), config, encoder, out_width)


def _graph_encoder(tensors: Weights, config: GraphEncoderConfig, notes: list[str]) -> dict[str, Any]:
    tensors, found = config.adapted(tensors)
    notes += found
    shapes = variable_shapes(lambda: config.build(rngs=nnx.Rngs(0)))
    return from_torch(rules_of(config, shapes), tensors, shapes)


def _projector(tensors: Weights, config: ProjectorConfig, encoder: GraphEncoderConfig, width: int) -> dict[str, Any]:
    levels = encoder.num_levels
    shapes = variable_shapes(lambda: config.build(encoder.width, levels, width, rngs=nnx.Rngs(0)))
    return from_torch(rules_of(config, shapes, levels), tensors, shapes)


def _one_attention(tensors: Weights) -> dict[str, Any]:
    """The projector's tensors with one level attention; raises WeightsError if its six names are not one tensor."""
    kept = {}
    for name, tensor in tensors.items():
        level = re.fullmatch(r"cross_attention\.(\d+)\.(.*)", name)
        if level is None or level[1] == "0":
            kept[name] = tensor
            continue
        first = f"cross_attention.0.{level[2]}"
        if first not in tensors or not np.array_equal(tensors[first][...], tensor[...]):
            raise WeightsError(f"abstractor.{name} differs from abstractor.{first}: the original has one attention")
    expected = {f"cross_attention.{level}" for level in range(GRAPH_ENCODER.num_levels)}
    missing = expected - {".".join(name.split(".")[:2]) for name in tensors}
    if missing:
        raise WeightsError(f"abstractor: missing {sorted(missing)}")
    return kept


def _vocabulary(path: Path, tensors: Weights) -> int:
    sizes = {tensor.shape[0] for name, tensor in tensors.items() if name.endswith("model.embed_tokens.weight")}
    if len(sizes) != 1:
        raise WeightsError(f"{path}: holds no language model (mllm.language_model.model.embed_tokens.weight)")
    return sizes.pop()


def _language_model(tensors: Weights, config: DecoderConfig) -> tuple[LoRAConfig, dict[str, Any]]:
    """Stage 1: Hugging Face's names; stage 2: PEFT's, with adapters."""
    wrapper = "base_model.model."
    if not any(name.startswith(wrapper) for name in tensors):
        return NO_LORA, from_torch(language_model_rules(config), tensors, decoder_shapes(config))
    base = language_model_rules(config, wrapper, adapted_projections(LORA))
    adapter = lora_rules(config, LORA, ".default")
    return LORA, from_torch([*base, *adapter], tensors, decoder_shapes(config, LORA))


class TorchTensor(Lazy):
    """A tensor of a mapped torch file."""

    def __init__(self, name: str, tensor: Any):
        self._name, self._tensor = name, tensor
        self.shape = tuple(tensor.shape)
        kind = str(tensor.dtype).removeprefix("torch.")
        self.dtype = np.dtype(ml_dtypes.bfloat16 if kind == "bfloat16" else kind)

    def __getitem__(self, index: Any) -> np.ndarray:
        import torch

        part = self._tensor[index].contiguous()
        if part.dtype == torch.bfloat16:
            return finite(self._name, part.view(torch.int16).numpy().view(self.dtype))
        return finite(self._name, part.numpy())


def as_array(name: str, tensor: Any) -> Any:
    """A torch tensor as a lazy array; numpy's and lazy ones as they are. Raises WeightsError for what is none."""
    if not hasattr(tensor, "shape") or not hasattr(tensor, "dtype"):
        raise WeightsError(
            f"{name} is no tensor but {type(tensor).__name__}: not a file of a module's tensors alone; LLaMo's own "
            "checkpoints are read with from_official"
        )
    return tensor if isinstance(tensor, Lazy | np.ndarray) else TorchTensor(name, tensor)


def read_torch(path: Path) -> dict[str, Any]:
    """The mapping in a torch file; raises WeightsError if torch is missing, or refuses to load it safely."""
    try:
        import torch
    except ImportError:
        raise WeightsError(f"{path}: reading torch files needs torch: pip install 'llamo_jax[convert]'") from None
    try:
        check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except DataError as error:
        raise WeightsError(str(error)) from None
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"{path}: torch refuses to load it safely ({reason})") from None
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path}: not a mapping of names to tensors")
    return dict(content)
