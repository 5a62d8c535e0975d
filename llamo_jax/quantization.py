"""Frozen matrices in 8 or 4 bits (QLoRA, Dettmers et al. 2023), by the library qwix (extra [quant])."""

from collections.abc import Collection, Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from llamo_jax.config import ConfigError

KINDS = ("none", "int8", "nf4")
TILE = 64
"""Input rows that share a scale in nf4; in int8 there is one scale per output column."""

VALUES, SCALE = "kernel_values", "kernel_scale"
"""Last path components of a quantized matrix, where there would be "kernel"."""


def quantize(kernel: Float[Array, "*stack in out"], kind: str) -> tuple[Array, Float[Array, "*stack tiles out"]]:
    """The values (int8, or uint4 indices of nf4) in the kernel's shape, and their float32 scales.

    kind: int8 or nf4. Raises ConfigError if qwix is not installed or the size does not divide into tiles.
    """
    qwix = _library()
    rows = kernel.ndim - 2
    others = [axis for axis in range(kernel.ndim) if axis != rows]
    if kind == "int8":
        array = qwix.quantize(kernel, jnp.int8, channelwise_axes=others)
    else:
        if kernel.shape[rows] % TILE:
            raise ConfigError(f"config.model.quantize=nf4 needs matrices of a multiple of {TILE} rows: {kernel.shape}")
        array = qwix.quantize(kernel, "nf4", channelwise_axes=others, tiled_axes={rows: TILE})
    return array.qvalue, array.scale.astype(jnp.float32)


def dequantize(values: Array, scale: Array, kind: str, dtype: jnp.dtype) -> Float[Array, "in out"]:
    """The matrix again, in `dtype`."""
    qwix = _library()
    return qwix.dequantize(qwix.QArray(values, scale.astype(dtype), qtype=values.dtype if kind == "int8" else kind))


def quantize_arrays(arrays: Mapping[str, Array], names: Collection[str], kind: str) -> dict[str, Array]:
    """`arrays` by the names of a quantized model: each matrix that `names` has in two parts is quantized."""
    result = {}
    for name, array in arrays.items():
        values, scale = parts_of(name)
        if name.endswith("/kernel") and values in names:
            result[values], result[scale] = quantize(array, kind)
        else:
            result[name] = array
    return result


def whole(abstract: Mapping[str, Any]) -> dict[str, Any]:
    """The shapes of a quantized model's arrays as they are before: its matrices in bfloat16 and in one part."""
    result = {name: spec for name, spec in abstract.items() if not name.endswith((f"/{VALUES}", f"/{SCALE}"))}
    for name, spec in abstract.items():
        if name.endswith(f"/{VALUES}"):
            result[name.removesuffix(VALUES) + "kernel"] = spec.update(dtype=jnp.dtype("bfloat16"))
    return result


def parts_of(name: str) -> tuple[str, str]:
    """The paths of the values and the scale of the matrix with this path."""
    stem = name.rpartition("/")[0]
    return f"{stem}/{VALUES}", f"{stem}/{SCALE}"


def _library():
    try:
        import qwix
    except ImportError:
        raise ConfigError('config.model.quantize needs qwix: pip install "llamo_jax[quant]"') from None
    return qwix
