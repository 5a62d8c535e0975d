"""Building blocks with logical axis names: parameters, linear maps, normalisations, dropout.

A parameter's `out_sharding` names its logical axes; `llamo_jax.sharding` maps them to mesh axes. Modules that are
stacked for `lax.scan` are created with a leading axis of size `stack` on every parameter and are called on slices.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float

from llamo_jax.config import ConfigError
from llamo_jax.models.products import matmul

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
        # a key for each layer: initialised at once, [stack, in, out] would count the wrong fan-in
        keys = jax.random.split(rngs.params(), stack)
        value = jax.vmap(lambda key: init(key, shape, jnp.float32))(keys)
        axes = ("layers", *axes)
    # eager_sharding off: modules can be built without a mesh; sharded creation happens under jit (see sharding.py)
    return kind(value, out_sharding=axes, eager_sharding=False)


class Linear(nnx.Module):
    """`x @ kernel + bias`, in the dtype of x.

    Adapters, quantisation and the form that decodes fast on a CPU are other types with the same attributes, which
    take its place in a finished model: see `take_over`, lora, quantization and generation.cpu.
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
    ):
        self.kernel = parameter(lecun_normal, (in_width, out_width), axes, rngs=rngs, stack=stack)
        self.bias = parameter(zeros, (out_width,), axes[1:], rngs=rngs, stack=stack) if use_bias else None

    def kernel_spec(self) -> tuple[tuple[int, ...], tuple[str | None, ...]]:
        """Shape and logical axes of the matrix, [*stack, in, out], whatever it is stored as."""
        return tuple(self.kernel.shape), tuple(self.kernel.get_metadata("out_sharding"))

    def matrix(self, dtype: jnp.dtype) -> Float[Array, "*stack in_width out_width"]:
        """The matrix in `dtype`, whatever it is stored as."""
        return self.kernel[...].astype(dtype)

    def matmul(self, x: Float[Array, "*batch in_width"]) -> Float[Array, "*batch out_width"]:
        """`x @ kernel` without the bias."""
        return matmul(x, self.matrix(x.dtype))

    def __call__(self, x: Float[Array, "*batch in_width"]) -> Float[Array, "*batch out_width"]:
        y = self.matmul(x)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


def take_over(new: nnx.Module, old: nnx.Module) -> None:
    """Gives `new` all attributes of `old`: the same variables, under the same paths."""
    for name, value in vars(old).items():
        if not name.startswith("_pytree__"):
            setattr(new, name, value)


def linears(model: nnx.Module) -> dict[str, Linear]:
    """Every linear map of a model by its path, such as "language_model/layers/query"."""
    # nnx.iter_modules also walks through lists, whose entries are numbers in a path
    found = {"/".join(map(str, path)): module for path, module in nnx.iter_modules(model) if isinstance(module, Linear)}
    return dict(sorted(found.items()))


def replace_linears(
    model: nnx.Module, patterns: Sequence[str], make: Callable[[str, Linear], Linear], *, what: str
) -> dict[str, Linear]:
    """Puts `make(path, linear)` in the place of every linear map whose whole path matches one of `patterns`.

    Returns the new ones by path. Raises ConfigError, naming `what`, if a pattern matches none.
    """
    found = linears(model)
    chosen: set[str] = set()
    for pattern in patterns:
        matched = {path for path in found if re.fullmatch(pattern, path)}
        if not matched:
            raise ConfigError(f"{what}: {pattern!r} matches no linear map; there are {', '.join(found)}")
        chosen |= matched
    # sorted: fresh adapters draw their weights one after the other, in an order that does not depend on the patterns
    made = {path: make(path, found[path]) for path in sorted(chosen)}
    for path, linear in made.items():
        *parents, name = path.split("/")
        parent: Any = model
        for step in parents:
            parent = parent[int(step)] if step.isdigit() else getattr(parent, step)
        if name.isdigit():
            parent[int(name)] = linear
        else:
            setattr(parent, name, linear)
    return made


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation as in LLaMA: in float32, cast back before the scale is applied."""

    def __init__(self, width: int, eps: float, *, rngs: nnx.Rngs, stack: int | None = None, axis: str = "embed"):
        self.scale = parameter(ones, (width,), (axis,), rngs=rngs, stack=stack)
        self.eps = eps

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        x32 = x.astype(jnp.float32)
        # cast back before the scale, as Hugging Face does; in bfloat16 the order shows in the last bit
        normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        return normed.astype(x.dtype) * self.scale[...].astype(x.dtype)


class LayerNorm(nnx.Module):
    """Layer normalisation with scale and bias, over the last axis."""

    def __init__(self, width: int, eps: float, *, rngs: nnx.Rngs):
        self.scale = parameter(ones, (width,), ("graph",), rngs=rngs)
        self.bias = parameter(zeros, (width,), ("graph",), rngs=rngs)
        self.eps = eps

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        # the two-pass variance: E[x²] - E[x]² loses half the digits when the mean is large
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        scale, bias = (parameter[...].astype(x.dtype) for parameter in (self.scale, self.bias))
        return centred * jax.lax.rsqrt(variance + self.eps) * scale + bias


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
        mean, var, scale, bias = (
            parameter[...].astype(x.dtype) for parameter in (self.mean, self.var, self.scale, self.bias)
        )
        running = (mean, var)
        if batch_statistics:
            axes = tuple(range(x.ndim - 1))
            count = jnp.sum(mask, dtype=jnp.float32)
            # padding counts nothing: it is multiplied by zero, since shapes are static and cannot be cut
            weight = mask[..., None].astype(x.dtype)
            mean = jnp.sum(x * weight, axis=axes) / jnp.maximum(count, 1)
            var = jnp.sum(jnp.square(x - mean) * weight, axis=axes) / jnp.maximum(count, 1)
            unbiased = var * count / jnp.maximum(count - 1, 1)  # torch normalises by the biased one and stores this one
            # A batch without any molecule says nothing about the statistics.
            rate = jnp.where(count > 0, self.momentum, 0.0)
            running = jax.lax.stop_gradient(
                (running[0] + rate * (mean - running[0]), running[1] + rate * (unbiased - running[1]))
            )
        return (x - mean) * jax.lax.rsqrt(var + self.eps) * scale + bias, running


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Inverted dropout; no key or rate 0 returns x itself."""
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)  # True with the chance to be kept, not to be dropped
    return jnp.where(keep, x / (1 - rate), 0)


def fold_key(key: Array | None, index: int) -> Array | None:
    """A key of its own for one of several uses; None stays None (no dropout)."""
    return None if key is None else jax.random.fold_in(key, index)
