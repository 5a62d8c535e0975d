"""How many answers fit side by side: the memory of a device after its weights, over what a row of cache takes."""

import math

import jax
import jax.numpy as jnp

from llamo_jax.models import ModelConfig

WORKING_SHARE = 0.2
"""Share of a device's memory that stays free for what is computed: activations of prompts, logits, copies."""


def device_bytes() -> tuple[float, int | float]:
    """Memory of the first device, and what of it is in use; (inf, 0) where a device does not say, as CPUs."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit", math.inf), stats.get("bytes_in_use", 0)


def row_bytes(model: ModelConfig, slots: int, tensor: int) -> int:
    """Bytes that one answer's keys and values take on a device, where `tensor` devices share the kv heads.

    Llama-2-7B, 640 slots, bfloat16: 0.34 GB, so 64 rows take 21.5 GB, more than its weights.
    """
    decoder = model.language_model
    heads = decoder.num_kv_heads // tensor if decoder.num_kv_heads % tensor == 0 else decoder.num_kv_heads
    return 2 * decoder.num_layers * heads * slots * decoder.head_width * jnp.dtype(model.compute_dtype).itemsize


def rows_per_shard(model: ModelConfig, slots: int, tensor: int, limit: float, used: float) -> float:
    """Rows of cache for which a device with `limit` bytes, `used` of them in use, has room; inf if it has no limit."""
    left = (1 - WORKING_SHARE) * limit - used
    return left // row_bytes(model, slots, tensor) if math.isfinite(left) else math.inf
