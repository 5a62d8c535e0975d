"""Frozen matrices in 8 or 4 bits (QLoRA, Dettmers et al. 2023), by the library qwix (extra [quant]).

Applied to a finished model: the linear maps that TARGETS matches are replaced by maps that dequantise when called.
"""

import functools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Float

from llamo_jax.config import ConfigError
from llamo_jax.models import layers

TARGETS = ("language_model/layers/.*",)
"""Paths of the linear maps that are quantised: the projections of the decoder's layers, nearly all of the weights."""

TILE = 64
"""Input rows that share a scale in nf4; in int8 there is one scale per output column."""

VALUES, SCALE = "kernel_values", "kernel_scale"
"""Last path components of a quantized matrix, where there would be "kernel"."""


class QuantizedLinear(layers.Linear):
    """A linear map whose matrix is held as `kernel_values` and `kernel_scale`; it is whole only while it multiplies."""

    def __init__(self, linear: layers.Linear, kind: str):
        layers.take_over(self, linear)
        _, axes = linear.kernel_spec()
        del self.kernel  # or the matrix would be held twice
        values, scale = quantize(linear.kernel[...], kind)
        self.kernel_values = nnx.Param(values, out_sharding=axes, eager_sharding=False)
        # keep_dtype: scales stay float32 when frozen weights are kept in bfloat16
        self.kernel_scale = nnx.Param(
            scale, out_sharding=(*axes[:-2], None, axes[-1]), eager_sharding=False, keep_dtype=True
        )
        self.quantization = kind

    def kernel_spec(self) -> tuple[tuple[int, ...], tuple[str | None, ...]]:
        """As for any linear map: what is stored has the matrix's own shape."""
        return tuple(self.kernel_values.shape), tuple(self.kernel_values.get_metadata("out_sharding"))

    def matrix(self, dtype: jnp.dtype) -> Float[Array, "in_width out_width"]:
        """The dequantised matrix of one layer."""
        return dequantize(self.kernel_values[...], self.kernel_scale[...], self.quantization, dtype)


def quantize_model(model: nnx.Module, kind: str) -> None:
    """Quantises the linear maps of `model` that TARGETS matches; kind: none, int8 or nf4."""
    if kind != "none":
        layers.replace_linears(
            model, TARGETS, lambda _, linear: QuantizedLinear(linear, kind), what="config.model.quantize"
        )


def quantize(kernel: Float[Array, "*stack in out"], kind: str) -> tuple[Array, Float[Array, "*stack tiles out"]]:
    """The values (int8, or uint4 indices of nf4) in the kernel's shape, and their float32 scales.

    kind: int8 or nf4. Raises ConfigError if qwix is not installed or the size does not divide into tiles.
    """
    qwix = _library()
    rows = kernel.ndim - 2  # the axis "in", behind the stack's
    others = [axis for axis in range(kernel.ndim) if axis != rows]
    if kind == "nf4" and kernel.shape[rows] % TILE:
        raise ConfigError(f"config.model.quantize=nf4 needs matrices of a multiple of {TILE} rows: {kernel.shape}")
    with jax.numpy_dtype_promotion("standard"):  # the library's own arithmetic, whatever ours allows
        if kind == "int8":
            array = qwix.quantize(kernel, jnp.int8, channelwise_axes=others)
        else:
            array = qwix.quantize(kernel, "nf4", channelwise_axes=others, tiled_axes={rows: TILE})
    # scales in float32: there are 1/64 as many as values (nf4), and every value is multiplied by one
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
            result[values], result[scale] = _quantize_in_pieces(array, kind)
        else:
            result[name] = array
    return result


_PIECES = 16
"""Of a layer's matrix, quantised one after the other."""


def _quantize_in_pieces(kernel: Array, kind: str) -> tuple[Array, Array]:
    """As `quantize`, for a sharded stack: layer by layer, and of each layer some columns of every shard at a time.

    At once, qwix takes 141 bytes for each element of the stack (nf4) or 9 (int8); in pieces, 0.6 and 0.4 for each of
    one layer. Columns are independent of each other: scales are of one column.
    """
    *stack, _, columns = kernel.shape
    spec: list[Any] = [None] * kernel.ndim
    mesh = None
    if isinstance(kernel.sharding, NamedSharding):
        mesh = kernel.sharding.mesh
        spec = [*kernel.sharding.spec, *spec][: kernel.ndim]
    names = (spec[-1],) if isinstance(spec[-1], str) else spec[-1] or ()
    shards = 1 if mesh is None else math.prod(mesh.shape[name] for name in names)
    pieces = max(count for count in range(1, _PIECES + 1) if columns // shards % count == 0)
    abstract = jax.eval_shape(lambda x: quantize(x, kind), jax.ShapeDtypeStruct(kernel.shape, kernel.dtype))

    def placed(axes: Sequence[Any]) -> NamedSharding | None:
        return None if mesh is None else NamedSharding(mesh, PartitionSpec(*axes))

    def reshaped(x: Array, shape: tuple[int, ...], axes: Sequence[Any], **settings: Any) -> Array:
        return jax.jit(jnp.reshape, static_argnums=1, out_shardings=placed(axes), **settings)(x, shape)

    def empty(part: jax.ShapeDtypeStruct, rows_axis: Any) -> Array:
        shape = (math.prod(stack), part.shape[-2], shards, pieces, columns // shards // pieces)
        zeros = functools.partial(jnp.zeros, shape, part.dtype)
        return jax.jit(zeros, out_shardings=placed([None, rows_axis, spec[-1], None, None]))()

    values, scale = empty(abstract[0], spec[-2]), empty(abstract[1], None)
    for layer in range(math.prod(stack)):
        for piece in range(pieces):
            values, scale = _quantize_piece(values, scale, kernel, layer, piece, kind)
    return (
        reshaped(values, abstract[0].shape, spec, donate_argnums=0),
        reshaped(scale, abstract[1].shape, [*spec[:-2], None, spec[-1]]),
    )


@functools.partial(jax.jit, static_argnames="kind", donate_argnums=(0, 1))
def _quantize_piece(
    values: Array, scale: Array, kernel: Array, layer: Array | int, piece: Array | int, kind: str
) -> tuple[Array, Array]:
    """`values` and `scale`, [layers, rows or tiles, shards, pieces, columns], with one piece of a layer's `kernel`."""
    _, rows, shards, _, width = values.shape
    start = (layer, 0, 0, piece, 0)
    part = jax.lax.dynamic_slice(kernel.reshape(values.shape), start, (1, rows, shards, 1, width))
    new = [x.reshape(1, -1, shards, 1, width) for x in quantize(part.reshape(rows, shards * width), kind)]
    values, scale = (jax.lax.dynamic_update_slice(x, y, start) for x, y in zip((values, scale), new, strict=True))
    return values, scale


def unquantized(abstract: Mapping[str, Any]) -> dict[str, Any]:
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
