"""Building blocks with logical axis names: parameters, linear maps with LoRA, normalisations, dropout.

A parameter's `out_sharding` names its logical axes; `llamo_jax.sharding` maps them to mesh axes. Modules that are
stacked for `lax.scan` are created with a leading axis of size `stack` on every parameter and are called on slices.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Key

from llamo_jax import quantization
from llamo_jax.config import LoRAConfig
from llamo_jax.models import few_rows

Initializer = jax.nn.initializers.Initializer

lecun_normal = jax.nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
normal = jax.nn.initializers.normal
zeros = jax.nn.initializers.zeros
ones = jax.nn.initializers.ones


def parameter(
    init: Initializer,
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    *,
    rngs: nnx.Rngs,
    stack: int | None = None,
    kind: type[nnx.Variable] = nnx.Param,
) -> nnx.Variable:
    """A variable with logical axes; with `stack`, that many independent ones along a leading axis "layers"."""
    if stack is None:
        value = init(rngs.params(), shape, jnp.float32)
    else:
        keys = jax.random.split(rngs.params(), stack)
        value = jax.vmap(lambda key: init(key, shape, jnp.float32))(keys)
        axes = ("layers", *axes)
    # eager_sharding off: modules can be built without a mesh; sharded creation happens under jit (see sharding.py)
    return kind(value, out_sharding=axes, eager_sharding=False)


class Linear(nnx.Module):
    """`x @ kernel + bias`, with an optional low-rank adapter: `+ alpha/rank · dropout(x) @ lora_a @ lora_b`.

    lora_b starts at zero, so a fresh adapter changes nothing (Hu et al., 2021). Computes in the dtype of x. With
    `quantize` other than "none" the kernel is held as `kernel_values` and `kernel_scale`; see quantization.
    """

    def __init__(
        self,
        in_width: int,
        out_width: int,
        axes: tuple[str | None, str | None],
        *,
        rngs: nnx.Rngs,
        use_bias: bool = True,
        stack: int | None = None,
        lora: LoRAConfig | None = None,
        quantize: str = "none",
    ):
        kernel = parameter(lecun_normal, (in_width, out_width), axes, rngs=rngs, stack=stack)
        self.transposed = False
        self.quantize = quantize
        if quantize == "none":
            self.kernel = kernel
        else:
            values, scale = quantization.quantize(kernel[...], quantize)
            stacked = () if stack is None else ("layers",)
            self.kernel_values = nnx.Param(values, out_sharding=(*stacked, *axes), eager_sharding=False)
            self.kernel_scale = nnx.Param(scale, out_sharding=(*stacked, None, axes[1]), eager_sharding=False)
        self.bias = parameter(zeros, (out_width,), axes[1:], rngs=rngs, stack=stack) if use_bias else None
        if lora is None or lora.rank == 0:
            self.lora_a = self.lora_b = None
            return
        self.lora_a = parameter(
            lecun_normal, (in_width, lora.rank), (axes[0], None), rngs=rngs, stack=stack, kind=nnx.LoRAParam
        )
        self.lora_b = parameter(
            zeros, (lora.rank, out_width), (None, axes[1]), rngs=rngs, stack=stack, kind=nnx.LoRAParam
        )
        self.lora_scale = lora.alpha / lora.rank
        self.lora_dropout = lora.dropout

    def __call__(
        self, x: Float[Array, "*batch in_width"], dropout_key: Key[Array, ""] | None = None
    ) -> Float[Array, "*batch out_width"]:
        y = self._product(x)
        if self.lora_a is not None and self.lora_b is not None:
            update = dropout(x, self.lora_dropout, dropout_key) @ self.lora_a[...].astype(x.dtype)
            y += self.lora_scale * (update @ self.lora_b[...].astype(x.dtype))
        if self.bias is not None:
            y += self.bias[...].astype(x.dtype)
        return y

    def transpose(self) -> None:
        """Holds the kernel as [out, in] from now on, as `few_rows` reads it; a quantized one stays as it is."""
        if self.quantize == "none":
            *stacked, in_axis, out_axis = self.kernel.get_metadata("out_sharding")
            kernel = self.kernel[...].swapaxes(-1, -2)
            self.kernel = nnx.Param(kernel, out_sharding=(*stacked, out_axis, in_axis), eager_sharding=False)
            self.transposed = True

    def _product(self, x: Float[Array, "*batch in_width"]) -> Float[Array, "*batch out_width"]:
        if self.transposed:
            return few_rows.linear(x, self.kernel[...]).astype(x.dtype)
        if self.quantize == "none":
            return x @ self.kernel[...].astype(x.dtype)
        return x @ quantization.dequantize(self.kernel_values[...], self.kernel_scale[...], self.quantize, x.dtype)


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation as in LLaMA: in float32, cast back before the scale is applied."""

    def __init__(self, width: int, eps: float, *, rngs: nnx.Rngs, stack: int | None = None):
        self.scale = parameter(ones, (width,), ("embed",), rngs=rngs, stack=stack)
        self.eps = eps

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        return normed.astype(x.dtype) * self.scale[...].astype(x.dtype)


class LayerNorm(nnx.Module):
    """Layer normalisation with scale and bias, over the last axis."""

    def __init__(self, width: int, eps: float, *, rngs: nnx.Rngs):
        self.scale = parameter(ones, (width,), ("graph",), rngs=rngs)
        self.bias = parameter(zeros, (width,), ("graph",), rngs=rngs)
        self.eps = eps

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        return centred * jax.lax.rsqrt(variance + self.eps) * self.scale[...] + self.bias[...]


class BatchNorm(nnx.Module):
    """Batch normalisation after torch: running statistics with momentum 0.1 and the unbiased variance.

    It holds the statistics but does not change them: with `batch_statistics` it returns those of the real rows
    (mask True), and the caller stores `self.updated(...)`. So it may run inside `lax.scan`.
    """

    eps = 1e-5  # torch.nn.BatchNorm1d's default, which the original uses throughout
    momentum = 0.1

    def __init__(self, width: int, *, rngs: nnx.Rngs, stack: int | None = None):
        self.scale = parameter(ones, (width,), ("graph",), rngs=rngs, stack=stack)
        self.bias = parameter(zeros, (width,), ("graph",), rngs=rngs, stack=stack)
        self.mean = parameter(zeros, (width,), ("graph",), rngs=rngs, stack=stack, kind=nnx.BatchStat)
        self.var = parameter(ones, (width,), ("graph",), rngs=rngs, stack=stack, kind=nnx.BatchStat)

    def __call__(
        self, x: Float[Array, "*batch width"], mask: Bool[Array, "*batch"], batch_statistics: bool
    ) -> tuple[Float[Array, "*batch width"], tuple[Float[Array, " width"], Float[Array, " width"]]]:
        """The normalised x and the running (mean, variance) after this batch."""
        mean, var = self.mean[...], self.var[...]
        running = (mean, var)
        if batch_statistics:
            axes = tuple(range(x.ndim - 1))
            count = jnp.sum(mask, dtype=jnp.float32)
            weight = mask[..., None].astype(x.dtype)
            mean = jnp.sum(x * weight, axis=axes) / jnp.maximum(count, 1)
            var = jnp.sum(jnp.square(x - mean) * weight, axis=axes) / jnp.maximum(count, 1)
            unbiased = var * count / jnp.maximum(count - 1, 1)
            # A batch without any molecule says nothing about the statistics.
            rate = jnp.where(count > 0, self.momentum, 0.0)
            running = jax.lax.stop_gradient(
                (running[0] + rate * (mean - running[0]), running[1] + rate * (unbiased - running[1]))
            )
        y = (x - mean) * jax.lax.rsqrt(var + self.eps) * self.scale[...] + self.bias[...]
        return y, running


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Inverted dropout; no key or rate 0 returns x itself."""
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0)


def fold_key(key: Array | None, index: int) -> Array | None:
    """A key of its own for one of several uses; None stays None (no dropout)."""
    return None if key is None else jax.random.fold_in(key, index)
