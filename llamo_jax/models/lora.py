"""Low-rank adapters (LoRA, Hu et al., 2021) on a finished model: linear maps are chosen by path pattern."""

import functools
import re
from collections.abc import Sequence
from typing import TypeVar

import jax
from flax import nnx
from jax import Array
from jaxtyping import Float, Key

from llamo_jax.config import ConfigError, Int, Text, setting, settings
from llamo_jax.config import Float as Number
from llamo_jax.models import layers

M = TypeVar("M", bound=nnx.Module)

PARTS = ("lora_a", "lora_b")
"""Last path components of an adapter's matrices."""


@settings
class LoRAConfig:
    """Adapters: `+ alpha/rank · dropout(x) @ lora_a @ lora_b` on every linear map that a target matches."""

    rank: Int = setting("width of the bottleneck; 0: no adapters", ge=0)
    alpha: Number = setting("the update is scaled by alpha / rank", gt=0)
    dropout: Number = setting("share of the adapter's inputs that training drops", ge=0, lt=1)
    targets: tuple[Text, ...] = setting("regular expressions over the paths of linear maps, matched as a whole")

    def __post_init__(self) -> None:
        if self.rank and not self.targets:
            raise ConfigError(f"targets: none is given, but rank={self.rank}")
        for target in self.targets:
            try:
                re.compile(target)
            except re.error as error:
                raise ConfigError(f"targets: {target!r} is no regular expression ({error})") from None

    @property
    def scale(self) -> float:
        """What the update is multiplied by."""
        return self.alpha / self.rank


def decoder_targets(names: Sequence[str]) -> tuple[str, ...]:
    """The targets for projections of the decoder's layers, such as query, in the one form that is compared."""
    return (f"language_model/layers/({'|'.join(names)})",) if names else ()


class DropoutKey(nnx.Variable):
    """The key of one adapter's dropout, [*stack], for one pass; see `with_dropout`."""


class LoRALinear(layers.Linear):
    """A linear map of any type with an adapter; the map's own variables keep their paths.

    lora_b starts at zero, so a fresh adapter changes nothing.
    """

    def __init__(self, adapted: layers.Linear, config: LoRAConfig, *, rngs: nnx.Rngs):
        # Not a wrapper with the map inside: its parameters would get other paths, and a checkpoint with adapters could
        # not stand on one without. The type of the map says how to multiply.
        self.adapted_type = type(adapted)
        layers.take_over(self, adapted)
        shape, axes = adapted.kernel_spec()
        *stack_axes, in_axis, out_axis = axes
        stack = shape[0] if stack_axes else None
        a, b = (shape[-2], config.rank), (config.rank, shape[-1])
        make = functools.partial(layers.parameter, rngs=rngs, stack=stack, kind=nnx.LoRAParam)
        self.lora_a = make(layers.lecun_normal, a, (in_axis, None))
        self.lora_b = make(layers.zeros, b, (None, out_axis))
        self.lora_scale = config.scale
        self.lora_dropout = config.dropout
        self.dropout_key: DropoutKey | None = nnx.data(None)  # data: a variable while a pass drops inputs

    def kernel_spec(self) -> tuple[tuple[int, ...], tuple[str | None, ...]]:
        """Of the adapted map."""
        return self.adapted_type.kernel_spec(self)

    def matmul(self, x: Float[Array, "*batch in_width"]) -> Float[Array, "*batch out_width"]:
        """The adapted map's product and the adapter's."""
        key = None if self.dropout_key is None else self.dropout_key[...]
        update = layers.dropout(x, self.lora_dropout, key) @ self.lora_a[...].astype(x.dtype)
        return self.adapted_type.matmul(self, x) + self.lora_scale * (update @ self.lora_b[...].astype(x.dtype))


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
        lambda linear: LoRALinear(linear, config, rngs=rngs),
        what="config.model.lora.targets",
    )
    heads = [path for path in made if path.split("/")[-1] == "lm_head"]
    if heads:
        raise ConfigError(f"config.model.lora.targets: {heads[0]} cannot be adapted; train it instead")


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
