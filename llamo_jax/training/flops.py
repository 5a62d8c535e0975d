"""Matrix-multiplication FLOPs that a train step needs at least, and what devices can do: model FLOPs utilisation."""

from collections.abc import Collection

import jax

from data_pipeline.batch import BatchShape
from llamo_jax.models import ModelConfig
from llamo_jax.models.flops import Flops, LinearFlops

PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}
"""Dense bfloat16 FLOPs per second and chip by the beginning of JAX's device_kind (data sheets of Google and NVIDIA)."""


def peak_flops(device: jax.Device) -> float | None:
    """The data sheet's bfloat16 FLOPs per second of a device; None if it is not in PEAK_FLOPS."""
    names = [name for name in PEAK_FLOPS if device.device_kind.startswith(name)]
    return PEAK_FLOPS[max(names, key=len)] if names else None


def minimal_flops(config: ModelConfig, shape: BatchShape, trained: Collection[str]) -> dict[str, Flops]:
    """By part: decoder_layers, head, graph_side. trained: paths of trained parameters."""
    decoder, linear = config.language_model, LinearFlops(trained, config.lora, "language_model")
    return {
        "decoder_layers": decoder.layer_flops(shape.rows, shape.row.tokens, linear),
        "head": decoder.head_flops(shape.rows * shape.row.tokens, linear),  # fewer targets need less
        "graph_side": graph_side_flops(config, shape, trained),
    }


def needed_flops(config: ModelConfig, shape: BatchShape, trained: Collection[str], target_share: float) -> float:
    """Of a batch whose logits are needed at this share of its positions; without what rematerialisation repeats."""
    parts = minimal_flops(config, shape, trained)
    return sum(part.total() * (target_share if name == "head" else 1) for name, part in parts.items())


def graph_side_flops(config: ModelConfig, shape: BatchShape, trained: Collection[str]) -> Flops:
    """Counted for every slot of the graph budgets, padding included."""
    encoder = LinearFlops(trained, config.lora, "graph_encoder")
    projector = LinearFlops(trained, config.lora, "projector")
    return config.graph_encoder.flops(shape, encoder) + config.projector.flops(
        shape,
        config.graph_encoder.width,
        config.num_levels,
        config.language_model.width,
        projector,
        to_levels=encoder.any_trained(),
    )
