"""Matrix-multiplication FLOPs that a module needs at least, from its sizes alone.

A product of [m, k] and [k, n] counts 2·m·k·n. Embedding lookups, norms and a graph's sums count nothing.
"""

from collections.abc import Collection
from typing import NamedTuple

from llamo_jax.models.lora import LoRAConfig


class Flops(NamedTuple):
    """FLOPs of one batch: the forward pass, gradients by activations, gradients by trained weights."""

    forward: int | float = 0.0
    activation_gradients: int | float = 0.0
    weight_gradients: int | float = 0.0

    def total(self) -> int | float:
        """All of them."""
        return sum(self)

    def __add__(self, other: "Flops") -> "Flops":  # type: ignore[override]
        return Flops(*(a + b for a, b in zip(self, other, strict=True)))


class LinearFlops:
    """Counts linear maps by their path: whether their weights are trained, and the adapters on them."""

    def __init__(self, trained: Collection[str], lora: LoRAConfig, prefix: str):
        """trained: paths of all trained parameters of the model; prefix: the path of the module that counts."""
        self.trained, self._lora, self.prefix = trained, lora, prefix

    def __call__(self, name: str, rows: int | float, inside: int, outside: int, *, to_input: bool = True) -> Flops:
        """The map at `prefix/name` on `rows` vectors. to_input: whether its input needs a gradient."""
        path = f"{self.prefix}/{name}"
        flops = self._product(rows, inside, outside, f"{path}/kernel", to_input)
        if self._lora.adapts(path):
            rank = self._lora.rank_of(path)
            flops += self._product(rows, inside, rank, f"{path}/lora_a", to_input)
            flops += self._product(rows, rank, outside, f"{path}/lora_b", True)
            if self._lora.dora:
                flops += Flops(2.0 * inside * rank * outside)  # the norm's: its gradient does not reach the matrices
        return flops

    def any_trained(self) -> bool:
        """Whether any parameter of the module is trained."""
        return any(name.startswith(f"{self.prefix}/") for name in self.trained)

    def _product(self, rows: int | float, inside: int, outside: int, path: str, to_input: bool) -> Flops:
        flops = 2.0 * rows * inside * outside
        return Flops(flops, flops * to_input, flops * (path in self.trained))
