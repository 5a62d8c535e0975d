"""Products of few rows with a large matrix on CPU, as decoding makes them: as fast as the matrix can be read.

XLA's own product brings the matrix into another order first, every time. A reduction with several outputs reads it
once, as it lies, on all cores; it is vectorised in programs whose sums may be taken in any order (COMPILER_OPTIONS).
"""

import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.xla_metadata import set_xla_metadata
from jaxtyping import Float

MAX_ROWS = 32
"""From here on XLA's own product is faster."""

OUTPUTS = 8
"""Sums that a reduction takes at a time: as many as have room in a CPU's registers."""

COMPILER_OPTIONS = {"xla_cpu_enable_fast_math": True}
"""Sums in any order; by XLA's other defaults, infinities, NaNs, divisions and functions stay as they are."""


def product(
    x: Float[Array, "*batch rows in"], matrix: Float[Array, "*batch out in"]
) -> Float[Array, "*batch rows out"]:
    """float32 x @ matrixᵀ, where the matrix counts as of the dtype of x."""
    if x.shape[-2] > MAX_ROWS:
        return jnp.matmul(x, matrix.astype(x.dtype).swapaxes(-1, -2), preferred_element_type=jnp.float32)
    with set_xla_metadata(inlineable="false"):  # else what makes x would be computed again for each of the outputs
        return _reduced(x, matrix)


def linear(x: Float[Array, "*batch in"], matrix: Float[Array, "out in"]) -> Float[Array, "*batch out"]:
    """float32 x @ matrixᵀ of any number of rows in any shape, by the same matrix."""
    return product(x.reshape(-1, x.shape[-1]), matrix).reshape(*x.shape[:-1], -1)


@jax.jit
def _reduced(x: Float[Array, "*batch rows in"], matrix: Float[Array, "*batch out in"]) -> Array:
    x, matrix = x.astype(jnp.float32), matrix.astype(x.dtype).astype(jnp.float32)
    groups = jnp.array_split(x, -(-x.shape[-2] // OUTPUTS), axis=-2)
    return jnp.concatenate([_sums(group, matrix) for group in groups], axis=-2)


def _sums(x: Float[Array, "*batch rows in"], matrix: Float[Array, "*batch out in"]) -> Array:
    """One reduction: an output for each row and, where there are few, for each of several parts of the matrix."""
    rows, axis = x.shape[-2], matrix.ndim - 1
    parts = jnp.split(matrix, math.gcd(matrix.shape[-2], OUTPUTS // rows), axis=-2)
    terms = [x[..., row : row + 1, :] * part for row in range(rows) for part in parts]
    zeros = [jnp.zeros((), jnp.float32)] * len(terms)
    sums = jax.lax.reduce(terms, zeros, lambda a, b: [p + q for p, q in zip(a, b, strict=True)], (axis,))
    return jnp.concatenate(sums, axis=-1).reshape(*x.shape[:-1], -1)
