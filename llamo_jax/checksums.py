"""Checksums of arrays on devices: exact, and the same on every mesh."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

VERSION = 2
"""Of the checksums that are made today; 1 was nearly linear and missed sign flips."""


def checksums(arrays: Mapping[str, Array], version: int = VERSION) -> dict[str, int]:
    """A 32-bit checksum of each array, of at most 4 bytes an element."""
    # One after the other: programs with communication that are in flight together can wait for each other forever on
    # CPU. One program for all arrays would be compiled again for every set of them.
    return {name: int(_VERSIONS[version](array)) for name, array in arrays.items()}


def _bits_and_index(array: Array) -> tuple[Array, Array]:
    """The bits of every element and its index in the whole array, both uint32."""
    bits = jax.lax.bitcast_convert_type(array, {4: jnp.uint32, 2: jnp.uint16, 1: jnp.uint8}[array.dtype.itemsize])
    index = jnp.zeros(array.shape, jnp.uint32)
    for axis, size in enumerate(array.shape):
        index = index * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
    return bits.astype(jnp.uint32), index


def _mixed(h: Array) -> Array:
    """MurmurHash3's finaliser (Appleby): every input bit changes every output bit with a chance of one half."""
    h = (h ^ (h >> 16)) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * np.uint32(0xC2B2AE35)
    return h ^ (h >> 16)


@jax.jit
def _checksum(array: Array) -> Array:
    """The sum modulo 2^32, in any order, of a hash of every element's bits and index.

    The hash is not linear in the bits: of a linear one, changes cancel, such as the same bit in two elements. The index
    is hashed by itself first, so that no change of bits looks like a change of place.
    """
    bits, index = _bits_and_index(array)
    return jnp.sum(_mixed(bits ^ _mixed(index + np.uint32(0x9E3779B9))), dtype=jnp.uint32)


@jax.jit
def _linear_checksum(array: Array) -> Array:
    """Version 1, for checkpoints that hold it: one multiplication, which a sign bit passes without touching others."""
    bits, index = _bits_and_index(array)
    return jnp.sum((bits ^ (index * np.uint32(2654435761))) * np.uint32(2246822519), dtype=jnp.uint32)


_VERSIONS: dict[int, Callable[[Array], Array]] = {1: _linear_checksum, 2: _checksum}
