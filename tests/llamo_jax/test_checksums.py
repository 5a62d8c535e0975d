"""Checksums notice every change that damage or a mistake makes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llamo_jax.checksums import checksums

SHAPE = (48, 64)
PAIRS = 10_000


def one(array) -> int:
    return checksums({"w": array})["w"]


@pytest.fixture(scope="module", params=["float32", "bfloat16", "int8"])
def array(request):
    values = np.random.default_rng(0).normal(size=SHAPE) * 40
    return jnp.asarray(values).astype(request.param)


def test_signs_orders_and_shapes(array):
    """All of these passed the nearly linear checksum: of a sign flip only the last bit of a product changed."""
    seen = {one(x) for x in (array, -array, array[::-1], array[:, ::-1], array.at[0].set(array[1]).at[1].set(array[0]))}
    assert len(seen) == 5
    assert one(jnp.zeros(SHAPE, array.dtype)) != one(jnp.zeros((*SHAPE[:1], SHAPE[1] - 1), array.dtype))
    permuted = np.random.default_rng(1).permutation(SHAPE[0])
    assert one(array[permuted]) != one(array)


def bits(array):
    return np.asarray(array).view({4: np.uint32, 2: np.uint16, 1: np.uint8}[array.dtype.itemsize]).copy()


@pytest.mark.parametrize("change", ["equal bits", "sign bits", "swap"])
def test_none_of_ten_thousand_random_pairs_is_missed(array, change):
    """Two elements at a time: the same bit flipped in both, both signs flipped, or the two swapped."""
    rng = np.random.default_rng(2)
    original = bits(array).reshape(-1)
    width = 8 * original.dtype.itemsize
    variants = []
    for _ in range(PAIRS):
        a, b = rng.choice(original.size, 2, replace=False)
        changed = original.copy()
        if change == "swap":
            changed[a], changed[b] = original[b], original[a]
        else:
            bit = width - 1 if change == "sign bits" else rng.integers(width)
            changed[[a, b]] ^= original.dtype.type(1 << bit)
        variants.append(changed if not np.array_equal(changed, original) else None)
    different = [variant for variant in variants if variant is not None]
    assert len(different) > 0.9 * PAIRS
    found = np.concatenate([np.asarray(_many(jnp.asarray(np.stack(part)))) for part in np.array_split(different, 10)])
    assert int(np.sum(found == np.uint32(one(jnp.asarray(original))))) == 0


@jax.jit
def _many(variants):
    """The checksum of each row, as one program."""
    from llamo_jax.checksums import _checksum

    return jax.lax.map(_checksum, variants)
