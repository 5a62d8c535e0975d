"""Low-rank adapters (LoRA, Hu et al., 2021) on a finished model: linear maps are chosen by path pattern."""

import functools
import math
import re
from collections.abc import Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Key

from llamo_jax.config import Bool, ConfigError, Int, Text, setting, settings
from llamo_jax.config import Float as Number
from llamo_jax.models import layers
from llamo_jax.models.products import matmul

M = TypeVar("M", bound=nnx.Module)

PARTS = ("lora_a", "lora_b", "lora_magnitude")
"""Last path components of an adapter's variables; the last one only with DoRA."""


@settings
class LoRAConfig:
    """Adapters: `+ alpha/rank · dropout(x) @ lora_a @ lora_b` on every linear map that a target matches."""

    rank: Int = setting("width of the bottleneck; 0: no adapters", ge=0)
    alpha: Number = setting("the update is scaled by alpha / rank", gt=0)
    dropout: Number = setting("share of the adapter's inputs that training drops", ge=0, lt=1)
    targets: tuple[Text, ...] = setting("regular expressions over the paths of linear maps, matched as a whole")
    rank_stabilized: Bool = setting("scale by alpha / √rank instead (rsLoRA, arXiv 2312.03732)", default=False)
    dora: Bool = setting("also train the norm of each output's weights (DoRA, arXiv 2402.09353)", default=False)
    rank_pattern: tuple[tuple[Text, Int], ...] = setting("(path pattern, rank): ranks that differ", default=())
    alpha_pattern: tuple[tuple[Text, Number], ...] = setting("(path pattern, alpha): alphas that differ", default=())

    def __post_init__(self) -> None:
        if self.rank and not self.targets:
            raise ConfigError(f"targets: none is given, but rank={self.rank}")
        patterns = [("targets", target) for target in self.targets]
        for name in ("rank_pattern", "alpha_pattern"):
            for pattern, value in getattr(self, name):
                if value <= 0:
                    raise ConfigError(f"{name}: {value!r} of {pattern!r} must be above 0")
                patterns.append((name, pattern))
        for name, pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"{name}: {pattern!r} is no regular expression ({error})") from None

    def adapts(self, path: str) -> bool:
        """Whether the linear map at `path` has an adapter."""
        return bool(self.rank) and any(re.fullmatch(target, path) for target in self.targets)

    def rank_of(self, path: str) -> int:
        """The width of the bottleneck of the adapter at `path`: that of the first pattern that matches, or `rank`."""
        return next((rank for pattern, rank in self.rank_pattern if re.fullmatch(pattern, path)), self.rank)

    def alpha_of(self, path: str) -> float:
        """As `rank_of`, for alpha."""
        return next((alpha for pattern, alpha in self.alpha_pattern if re.fullmatch(pattern, path)), self.alpha)

    def scale_of(self, path: str) -> float:
        """What the update of the adapter at `path` is multiplied by."""
        rank = self.rank_of(path)
        return self.alpha_of(path) / (math.sqrt(rank) if self.rank_stabilized else rank)


def decoder_targets(names: Sequence[str]) -> tuple[str, ...]:
    """The targets for projections of the decoder's layers, such as query, in the one form that is compared."""
    return (f"language_model/layers/({'|'.join(names)})",) if names else ()


class DropoutKey(nnx.Variable):
    """The key of one adapter's dropout, [*stack], for one pass; see `with_dropout`."""


class Gain(nnx.Variable):
    """What DoRA multiplies each output by, float32[*stack, out], where nothing is trained any more."""


class LoRALinear(layers.Linear):
    """A linear map of any type with an adapter; the map's own variables keep their paths.

    lora_b starts at zero, so a fresh adapter changes nothing. With DoRA, `lora_magnitude`, float32[*stack, out], is
    how far the norm of each output's weights is from what it was: trained like the norm itself, and zero at first,
    whatever the frozen matrix is.
    """

    def __init__(self, adapted: layers.Linear, config: LoRAConfig, path: str, *, rngs: nnx.Rngs):
        # Not a wrapper with the map inside: its parameters would get other paths, and a checkpoint with adapters could
        # not stand on one without. The type of the map says how to multiply.
        self.adapted_type = type(adapted)
        layers.take_over(self, adapted)
        shape, axes = adapted.kernel_spec()
        *stack_axes, in_axis, out_axis = axes
        stack = shape[0] if stack_axes else None
        rank = config.rank_of(path)
        a, b = (shape[-2], rank), (rank, shape[-1])
        make = functools.partial(layers.parameter, rngs=rngs, stack=stack, kind=nnx.LoRAParam)
        self.lora_a = make(layers.lecun_normal, a, (in_axis, None))
        self.lora_b = make(layers.zeros, b, (None, out_axis))
        self.lora_magnitude = make(layers.zeros, (shape[-1],), (out_axis,)) if config.dora else None
        self.lora_gain: Gain | None = nnx.data(None)  # known only where nothing is trained: see `fix_gains`
        self.lora_scale = config.scale_of(path)
        self.lora_dropout = config.dropout
        self.dropout_key: DropoutKey | None = nnx.data(None)  # data: a variable while a pass drops inputs

    def kernel_spec(self) -> tuple[tuple[int, ...], tuple[str | None, ...]]:
        """Of the adapted map."""
        return self.adapted_type.kernel_spec(self)

    def matrix(self, dtype: jnp.dtype) -> Float[Array, "*stack in_width out_width"]:
        """Of the adapted map, without the adapter."""
        return self.adapted_type.matrix(self, dtype)

    def matmul(self, x: Float[Array, "*batch in_width"]) -> Float[Array, "*batch out_width"]:
        """The adapted map's product and the adapter's."""
        key = None if self.dropout_key is None else self.dropout_key[...]
        dropped = layers.dropout(x, self.lora_dropout, key)
        plain = self.adapted_type.matmul(self, x)
        inner = matmul(dropped, self.lora_a[...].astype(x.dtype))
        update = matmul(inner, self.lora_b[...].astype(x.dtype))
        update = self.lora_scale * update
        if self.lora_magnitude is None:
            return plain + update
        gain = (self.gain() if self.lora_gain is None else self.lora_gain[...]).astype(x.dtype)
        if dropped is x:
            return gain * (plain + update)
        # what DoRA adds to the map sees the dropped inputs, the map itself does not (peft's DoraLinearLayer)
        return plain + (gain - 1) * self.adapted_type.matmul(self, dropped) + gain * update

    def gain(self) -> Float[Array, " out_width"]:
        """DoRA's factor of each output, float32, of one layer: its norm to that of its weights with the adapter.

        The gradient passes through the former alone (section 4.3 of the paper).
        """
        assert self.lora_magnitude is not None
        matrix = self.matrix(jnp.dtype("float32"))
        update = self.lora_a[...].astype(jnp.float32) @ self.lora_b[...].astype(jnp.float32)
        norms = [jnp.linalg.norm(m, axis=-2) for m in (matrix, matrix + self.lora_scale * update)]
        before, after = map(jax.lax.stop_gradient, norms)
        return (before + self.lora_magnitude[...]) / after


def add_adapters(model: nnx.Module, config: LoRAConfig, *, rngs: nnx.Rngs) -> None:
    """Puts adapters on the linear maps of `model` that a target matches; rank 0 changes nothing.

    Raises ConfigError if a target matches none, or the matrix before the logits: losses and scores read that one as
    it is, in chunks, and would not see its adapter.

    >>> model = nnx.Dict(out=layers.Linear(8, 4, (None, None), rngs=nnx.Rngs(0)))
    >>> config = LoRAConfig(rank=2, alpha=4.0, dropout=0.0, targets=("out",))
    >>> add_adapters(model, config, rngs=nnx.Rngs(1))
    >>> model["out"].lora_a.shape, model["out"].lora_b.shape, model["out"].lora_scale
    ((8, 2), (2, 4), 2.0)
    """
    if not config.rank:
        return
    made = layers.replace_linears(
        model,
        config.targets,
        lambda path, linear: LoRALinear(linear, config, path, rngs=rngs),
        what="config.model.lora.targets",
    )
    for name in ("rank_pattern", "alpha_pattern"):
        for pattern, _ in getattr(config, name):
            if not any(re.fullmatch(pattern, path) for path in made):
                raise ConfigError(
                    f"config.model.lora.{name}: {pattern!r} matches no adapter; there are {', '.join(made)}"
                )
    heads = [path for path in made if path.split("/")[-1] == "lm_head"]
    if heads:
        raise ConfigError(f"config.model.lora.targets: {heads[0]} cannot be adapted; train it instead")


def fix_gains(model: nnx.Module) -> None:
    """Keeps DoRA's factors, which are otherwise computed from the whole matrices at each call: to generate."""
    for linear in layers.linears(model).values():
        if isinstance(linear, LoRALinear) and linear.lora_magnitude is not None:
            graphdef, state = nnx.split(linear)
            if linear.lora_magnitude.ndim > 1:  # layer by layer: a whole stack of matrices in float32 is large
                gain = jax.lax.map(functools.partial(_gain, graphdef), state)
            else:
                gain = linear.gain()
            axes = linear.lora_magnitude.get_metadata("out_sharding")
            linear.lora_gain = Gain(gain, out_sharding=axes, eager_sharding=False)


def _gain(graphdef: nnx.GraphDef, layer: nnx.State) -> Float[Array, " out_width"]:
    return nnx.merge(graphdef, layer).gain()


def with_dropout(model: M, key: Key[Array, ""] | None) -> M:
    """The same variables in a model whose adapters drop inputs, each by a key of its own; without a key, `model`.

    A copy, since keys are for one pass. Those of a stack of layers lie along its leading axis, so that `lax.scan`
    gives one to each layer, as it gives it its slice of the matrices.
    """
    if key is None:
        return model
    copy = nnx.merge(
        *nnx.split(model)
    )  # new modules around the same variables: nothing is copied, statistics are shared
    for number, linear in enumerate(layers.linears(copy).values()):
        if isinstance(linear, LoRALinear) and linear.lora_dropout:
            own = jax.random.fold_in(key, number)
            stack = linear.lora_a.shape[:-2]
            linear.dropout_key = DropoutKey(jax.random.split(own, stack[0]) if stack else own)
    return copy
