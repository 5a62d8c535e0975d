"""Products of bfloat16 matrices on CPUs: values and gradients, and what the compiled program multiplies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llamo_jax.models.products import matmul


@pytest.fixture(scope="module")
def arrays():
    """x [2, 5, 300] and a matrix [300, 40], bfloat16."""
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.standard_normal(shape), jnp.bfloat16) for shape in ((2, 5, 300), (300, 40)))


def exact(x, matrix):
    """In float64, of the same bfloat16 numbers."""
    return np.einsum("...i,io->...o", np.asarray(x, np.float64), np.asarray(matrix, np.float64))


def test_sums_are_float32(arrays):
    got = jax.jit(matmul)(*arrays)
    assert got.dtype == jnp.bfloat16
    # one rounding, at the end: half a unit of bfloat16's 8 bits
    np.testing.assert_allclose(np.asarray(got, np.float64), exact(*arrays), rtol=2**-8, atol=1e-4)


def test_gradients_are_products_too(arrays):
    x, matrix = arrays
    cotangent = jnp.asarray(np.random.default_rng(1).standard_normal((2, 5, 40)), jnp.bfloat16)
    to_x, to_matrix = jax.jit(lambda *a: jax.vjp(matmul, *a)[1](cotangent))(x, matrix)
    assert (to_x.dtype, to_matrix.dtype) == (jnp.bfloat16, jnp.bfloat16)
    np.testing.assert_allclose(np.asarray(to_x, np.float64), exact(cotangent, matrix.T), rtol=2**-8, atol=1e-4)
    rows, outputs = x.reshape(10, 300), cotangent.reshape(10, 40)
    np.testing.assert_allclose(np.asarray(to_matrix, np.float64), exact(rows.T, outputs), rtol=2**-8, atol=1e-4)


def test_every_product_has_bfloat16_factors_and_a_float32_result(arrays):
    """In the program that XLA is given: what it computes by AMX; three products, and two where the matrix is frozen."""

    def products(by):
        step = jax.grad(lambda *a: matmul(*a).astype(jnp.float32).sum(), by)
        lines = jax.jit(step).lower(*arrays).as_text().splitlines()
        return [line for line in lines if "dot_general" in line]

    for by, count in ((0, 1), (1, 1), ((0, 1), 2)):
        found = products(by)
        assert len(found) == count  # the sum's gradient needs no product of the forward pass
        for line in found:
            signature = line.rpartition(" : ")[2]
            assert signature.count("xbf16>") == 2
            assert signature.endswith("xf32>")


def test_a_frozen_matrix_keeps_no_input(arrays):
    """Of the forward pass, the backward one needs the matrix alone: nothing of the size of x."""
    x, matrix = arrays
    _, pullback = jax.vjp(lambda x: matmul(x, matrix), x)
    assert {leaf.shape for leaf in jax.tree.leaves(pullback)} == {matrix.shape}


def test_float32_is_multiplied_as_it_is(arrays):
    x, matrix = (array.astype(jnp.float32) for array in arrays)
    np.testing.assert_array_equal(jax.jit(matmul)(x, matrix), jax.jit(jnp.matmul)(x, matrix))
