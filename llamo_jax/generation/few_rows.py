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

CACHED = 6144
"""Numbers of x, 24 KiB, that stay in a core's first cache while the matrix passes through it."""

TILE = 16
"""Rows of the matrix that stay in a core's second cache, where x does not stay in the first."""

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
    rows, width = x.shape[-2:]
    if min(rows, OUTPUTS) * width > CACHED:
        return jnp.vectorize(_tiled, signature="(r,i),(o,i)->(r,o)")(x, matrix)
    groups = jnp.array_split(x, -(-rows // OUTPUTS), axis=-2)
    return jnp.concatenate([_passed(group, matrix) for group in groups], axis=-2)


def _passed(x: Float[Array, "*batch rows in"], matrix: Float[Array, "*batch out in"]) -> Array:
    """At most OUTPUTS rows: an output for each and, where they are fewer, for each of several parts of the matrix."""
    rows = x.shape[-2]
    parts = jnp.split(matrix, math.gcd(matrix.shape[-2], OUTPUTS // rows), axis=-2)
    sums = _sums([x[..., row : row + 1, :] * part for row in range(rows) for part in parts])
    return jnp.concatenate(sums, axis=-1).reshape(*x.shape[:-1], -1)


def _tiled(x: Float[Array, "rows in"], matrix: Float[Array, "out in"]) -> Float[Array, "rows out"]:
    """Two rows at a time with a tile of the matrix, and several of the tile's rows, so that x is read less often."""
    rows, width = x.shape
    tile = math.gcd(len(matrix), TILE)
    parts = math.gcd(tile, OUTPUTS // 2)
    pairs = jnp.pad(x, ((0, rows % 2), (0, 0))).reshape(1, -1, 2, 1, width)
    tiles = matrix.reshape(-1, 1, parts, tile // parts, width)
    sums = _sums([pairs[:, :, row] * tiles[:, :, part] for row in range(2) for part in range(parts)])
    by_pair = jnp.stack(sums).reshape(2, parts, -1, pairs.shape[1], tile // parts).transpose(3, 0, 2, 1, 4)
    return by_pair.reshape(-1, len(matrix))[:rows]


def _sums(terms: list[Float[Array, "*shape in"]]) -> list[Float[Array, "*shape"]]:
    """The sum of each along its last axis, by one reduction."""
    zeros = [jnp.zeros((), jnp.float32)] * len(terms)
    return jax.lax.reduce(terms, zeros, lambda a, b: [p + q for p, q in zip(a, b, strict=True)], (terms[0].ndim - 1,))
