"""What several tests need: small models, asymmetric batches, golden files as our types."""

import dataclasses
import functools
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data_pipeline.batch import Batch, BatchShape, EncodedConversation, GraphArrays, RowSize, collate
from data_pipeline.molecule import featurize
from llamo_jax import parameters
from llamo_jax.models import DecoderConfig, GINConfig, LLaMo, LoRAConfig, ModelConfig, MultiLevelConfig
from llamo_jax.training.config import Config

LORA_TARGETS = ("language_model/layers/(query|value)",)

# Unequal sizes; no motif (methane), a salt, a single atom, rings, charges.
SMILES = ("CC(=O)Oc1ccccc1C(=O)O", "C", "[Na+].[Cl-]", "O", "Cn1c(=O)c2c(ncn2C)n(C)c1=O", "C[N+](C)(C)CC(=O)[O-]")


def model_config(
    *,
    vocab_size: int = 96,
    num_kv_heads: int = 2,
    lora_rank: int = 0,
    graph_width: int = 24,
    loss_chunk: int = 10_000,
    **language_model: object,
) -> ModelConfig:
    """A model that compiles in seconds."""
    sizes = {
        "vocab_size": vocab_size,
        "width": 32,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": num_kv_heads,
        "head_width": 8,
        "mlp_width": 48,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "rms_norm_eps": 1e-5,
        "qkv_bias": False,
        "qk_norm": False,
        "tie_embeddings": False,
        "sliding_window": None,
    }
    return ModelConfig(
        graph_encoder=GINConfig.paper(width=graph_width),
        projector=MultiLevelConfig.paper(depth=2),
        language_model=DecoderConfig(**(sizes | language_model)),
        lora=LoRAConfig(rank=lora_rank, alpha=32.0, dropout=0.0, targets=LORA_TARGETS),
        compute_dtype="float32",
        frozen_dtype="float32",
        quantize="none",
        attention="auto",
        remat="none",
        loss_chunk=loss_chunk,
    )


def graph_arrays(smiles: str) -> GraphArrays:
    """A molecule's arrays as they enter a batch."""
    return GraphArrays(*featurize(smiles)[1:])


def conversation(smiles: tuple[str, ...], length: int, seed: int, num_graph_tokens: int = 28) -> EncodedConversation:
    """Random text around the graph tokens of the molecules; the last third is to be predicted."""
    rng = np.random.default_rng(seed)
    total = length + num_graph_tokens * len(smiles)
    molecule = np.full(total, -1, np.int32)
    query = np.zeros(total, np.int32)
    for index in range(len(smiles)):
        start = 2 + index * num_graph_tokens
        molecule[start : start + num_graph_tokens] = index
        query[start : start + num_graph_tokens] = np.arange(num_graph_tokens)
    tokens = np.where(molecule < 0, rng.integers(3, 90, total), 0).astype(np.int32)
    is_target = (np.arange(total) >= total - length // 3) & (molecule < 0)
    return EncodedConversation(tokens, is_target, molecule, query, tuple(map(graph_arrays, smiles)))


class EncodedSource:
    """Conversations that are encoded already, as data_pipeline.loader.Source."""

    def __init__(self, conversations: list[EncodedConversation]):
        self._conversations = conversations
        self.sizes = np.array([conversation.size()[1:] for conversation in conversations])
        self.lengths = np.array(
            [
                (len(c.tokens), np.flatnonzero(c.molecule >= 0)[-1] + 1, np.flatnonzero(c.is_target[1:])[0] + 1)
                for c in conversations
            ]
        )

    def load(self, indices: np.ndarray) -> list[EncodedConversation]:
        """See Source."""
        return [self._conversations[index] for index in indices]


def rows() -> list[list[EncodedConversation]]:
    """Eight packed rows of unequal content: one or two molecules, text only, and an empty row."""
    s = SMILES
    return [
        [conversation((s[0],), 21, 0), conversation((), 9, 1)],
        [conversation((s[1],), 12, 2)],
        [conversation((s[2], s[3]), 15, 3)],
        [conversation((s[4],), 30, 4)],
        [],
        [conversation((s[5],), 18, 5), conversation((s[1],), 11, 6)],
        [conversation((), 25, 7)],
        [conversation((s[3],), 20, 8)],
    ]


ROW = RowSize(tokens=96, molecules=2, atoms=20, edges=40, motifs=10)


def with_row(config: Config, row: RowSize = ROW) -> Config:
    """A run's configuration with these budgets, where there is no data that would tell."""
    budgets = {f"{name}_per_row": budget for name, budget in row._asdict().items()}
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **budgets))


def host_batch(shards: int = 1, row: RowSize = ROW) -> Batch:
    """The rows above as one batch of numpy arrays."""
    return collate(rows(), BatchShape(8, shards, row))


def batch(shards: int = 1, row: RowSize = ROW) -> Batch:
    """The same on the default device."""
    return jax.tree.map(jnp.asarray, host_batch(shards, row))


def definition_and_arrays(config: ModelConfig, seed: int = 0) -> tuple:
    """A model's definition and randomised arrays: also biases, norms, statistics and adapters are not trivial."""
    from llamo_jax.models.definition import define_model

    # copies, since train steps take the memory of what they are given
    return define_model(config), {name: jnp.array(array) for name, array in _noisy_arrays(config, seed).items()}


@functools.lru_cache(maxsize=32)
def _noisy_arrays(config: ModelConfig, seed: int) -> dict[str, np.ndarray]:
    arrays = jax.jit(lambda: parameters.flatten(nnx.state(LLaMo(config, rngs=nnx.Rngs(seed)))))()
    rng = np.random.default_rng(seed + 1)
    noise = {name: 0.05 * rng.standard_normal(array.shape, np.float32) for name, array in arrays.items()}
    return {
        name: np.asarray(array) + (abs(noise[name]) if name.endswith("/var") else noise[name])
        for name, array in arrays.items()
    }


@functools.partial(jax.jit, static_argnums=0)
def logits(definition, arrays, batch: Batch) -> jax.Array:
    """One compiled program for each shape; operations one by one would be compiled one by one."""
    return definition.merge(arrays)(batch)[0]


def load(module: nnx.Module, arrays: dict[str, np.ndarray]) -> nnx.Module:
    """The module with these arrays, strictly."""
    graphdef, state = nnx.split(module)
    return nnx.merge(graphdef, parameters.unflatten(state, {name: jnp.asarray(x) for name, x in arrays.items()}))


def xla_flags(devices: int = 1) -> str:
    """XLA_FLAGS of the tests, for a program of its own on so many devices."""
    kept = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
    return " ".join([f"--xla_force_host_platform_device_count={devices}", *kept])


def json_lines(path: Path) -> list[dict]:
    """Answers may hold every end of line but the one that JSON lines have."""
    with path.open(encoding="utf-8", newline="\n") as file:
        return [json.loads(line) for line in file]
