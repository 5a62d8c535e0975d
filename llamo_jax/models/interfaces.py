"""The two seams of the model: what a graph encoder and a projector are, to everything else.

A kind is one file: its configuration (a `settings` class with a `kind`, registered here), its module, its FLOPs and,
if there are pretrained weights, their names. Nothing else in the project names a kind; docs/extending.md has an
example of each.
"""

import abc
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jraph
from flax import nnx
from jax import Array
from jaxtyping import Float, Key

from data_pipeline.batch import BatchShape, MoleculeGraphs
from data_pipeline.vocabulary import GraphVocabulary
from llamo_jax.config import ConfigError, Kinds
from llamo_jax.models.flops import Flops, LinearFlops
from llamo_jax.models.torch_names import Rule


@runtime_checkable
class GraphEncoder(Protocol):
    """Node representations of several levels from graphs; an `nnx.Module`.

    `atoms` as in `data_pipeline.batch.MoleculeGraphs`: arrays with a leading axis S, padded. Padding nodes are zero in
    all levels and change nothing else. batch_statistics: normalise with this batch's statistics, of all shards, and
    update running ones (`nnx.BatchStat`); a module without any ignores it. dropout_key: None means no dropout.
    """

    def __call__(
        self, atoms: jraph.GraphsTuple, *, batch_statistics: bool = False, dropout_key: Key[Array, ""] | None = None
    ) -> Float[Array, "L S N F"]:
        """Node representations of all levels."""


@runtime_checkable
class Projector(Protocol):
    """A fixed number of graph tokens, Q, for every molecule slot; an `nnx.Module`.

    Padding nodes and motifs belong to the last used slot of their shard, whose tokens nobody reads.
    """

    def __call__(
        self, levels: Float[Array, "L S N F"], molecules: MoleculeGraphs
    ) -> tuple[Float[Array, "S G Q D"], dict[str, Any]]:
        """Graph tokens, and named intermediates.

        Those that attend tell how, for people to look at: `atom_attention` (S N Q), the share of each graph token's
        attention that each atom of its molecule has, and `motif_attention` (S M Q) likewise.
        """


class GraphEncoderConfig(abc.ABC):
    """What the rest of the project asks of an encoder's configuration."""

    kind: str
    width: int  # F

    @classmethod
    def of_width(cls, width: int) -> "GraphEncoderConfig":
        """The kind with its usual sizes, of this width; raises ConfigError if it has none."""
        raise ConfigError(f"config.model.graph_encoder.kind={cls.kind!r} has no usual sizes: give its fields")

    @property
    @abc.abstractmethod
    def num_levels(self) -> int:
        """L: how many levels the module returns."""

    @property
    @abc.abstractmethod
    def vocabulary(self) -> GraphVocabulary:
        """The categorical node and edge features that it reads; records must have the same."""

    @abc.abstractmethod
    def build(self, *, rngs: nnx.Rngs) -> GraphEncoder:
        """The module, with fresh parameters."""

    @abc.abstractmethod
    def flops(self, shape: BatchShape, linear: LinearFlops) -> Flops:
        """Of one batch, every slot of the graph budgets counted."""

    def torch_names(self) -> list[Rule] | None:
        """Names of pretrained weights in torch; None: files hold our own paths."""
        return None

    def adapted(self, tensors: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Pretrained tensors that fit `torch_names`, and notes for people about what had to be changed."""
        return dict(tensors), []

    def torch_extras(self) -> Mapping[str, Any]:
        """Tensors that torch needs to load what we write, and that nothing here depends on."""
        return {}


class ProjectorSizes(NamedTuple):
    """What projectors of different kinds have in common when they are compared."""

    tokens: int  # Q
    num_heads: int
    depth: int  # linear layers of the MLP
    layer_norm_eps: float


class ProjectorConfig(abc.ABC):
    """What the rest of the project asks of a projector's configuration."""

    kind: str

    @abc.abstractmethod
    def num_tokens(self, levels: int) -> int:
        """Q: graph tokens for each molecule, from so many levels."""

    @abc.abstractmethod
    def build(self, graph_width: int, levels: int, out_width: int, *, rngs: nnx.Rngs) -> Projector:
        """The module, with fresh parameters; out_width is D."""

    @abc.abstractmethod
    def flops(
        self, shape: BatchShape, graph_width: int, levels: int, out_width: int, linear: LinearFlops, *, to_levels: bool
    ) -> Flops:
        """Of one batch, every slot of the graph budgets counted; to_levels: whether the levels need a gradient."""

    def token_sources(self, levels: int) -> list[str]:
        """What each of the Q graph tokens is made of, in a word or two for people, such as "level 3"."""
        return ["graph"] * self.num_tokens(levels)

    @classmethod
    def of_width(cls, width: int, sizes: ProjectorSizes) -> "ProjectorConfig":
        """The kind with these sizes, and with `width` for the one number that decides about its parameters.

        `projectors.budget` looks for the width that gives as many parameters as another kind has. Raises ConfigError
        if the kind has no such number.
        """
        raise ConfigError(f"config.model.projector.kind={cls.kind!r} has no width to choose: give its fields")

    def torch_names(self, levels: int) -> list[Rule] | None:
        """Names of pretrained weights in torch; None: files hold our own paths."""
        return None


GRAPH_ENCODERS: Kinds[GraphEncoderConfig] = Kinds("config.model.graph_encoder")
PROJECTORS: Kinds[ProjectorConfig] = Kinds("config.model.projector")
