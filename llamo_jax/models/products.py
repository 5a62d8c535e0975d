"""Matrix products as the platform computes them fast."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from llamo_jax import sharding


def matmul(x: Float[Array, "*batch inside"], matrix: Float[Array, "inside outside"]) -> Float[Array, "*batch outside"]:
    """`x @ matrix`, in their dtype; sums are float32 on every platform, also in the backward pass.

    XLA on CPU has bfloat16 products by AMX and AVX-512 for float32 results alone; asked for a bfloat16 result, it
    computes with float32 copies of both. On two Xeon cores with AMX that is 150 GFLOP/s instead of 570 to 730.
    """
    if x.dtype != jnp.bfloat16 or sharding.platform() != "cpu":
        return x @ matrix
    return _matmul(x, matrix)


@jax.custom_vjp
def _matmul(x: Array, matrix: Array) -> Array:
    return jnp.matmul(x, matrix, preferred_element_type=jnp.float32).astype(x.dtype)


def _forward(x: Any, matrix: Any) -> tuple[Array, tuple[Array | None, Array | None]]:
    """With what the backward pass needs; of symbolic_zeros, a frozen matrix is not perturbed, and no input is kept."""
    kept = (x.value if matrix.perturbed else None, matrix.value if x.perturbed else None)
    return _matmul(x.value, matrix.value), kept


def _backward(kept: tuple[Array | None, Array | None], cotangent: Array) -> tuple[Array | None, Array | None]:
    x, matrix = kept
    to_x = None if matrix is None else _matmul(cotangent, matrix.T)
    to_matrix = None
    if x is not None:
        rows, outputs = (array.reshape(-1, array.shape[-1]) for array in (x, cotangent))
        to_matrix = _matmul(rows.T, outputs)
    return to_x, to_matrix


_matmul.defvjp(_forward, _backward, symbolic_zeros=True)
