"""Configurations and batches for measurements of speed and memory: sizes as in real runs, contents at random.

Needs neither RDKit nor TensorFlow, so that it runs where only JAX is installed.
"""

import argparse
import ast
from collections.abc import Sequence
from typing import Any

import numpy as np

from configs import stage1, stage2
from data_pipeline.batch import Batch, BatchShape, EncodedConversation, GraphArrays, collate
from data_pipeline.vocabulary import MOTIF_FEATURES
from llamo_jax.config import ConfigError, from_dict
from llamo_jax.training.config import Config

ATOMS, MOTIFS = 23, 7
"""A molecule of average size in ZINC."""
SEGMENT, TARGETS = 256, 100
"""Tokens of a conversation and how many of them are predicted, as where the original's speed was measured."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command-line options that `read_options` reads."""
    parser.add_argument("--preset", default="tiny", help="see configs/presets.py")
    parser.add_argument("--stage", type=int, choices=(1, 2), default=1)
    parser.add_argument("--rows", type=int, help="rows of a batch, over all devices")
    parser.add_argument("--tokens", type=int, help="tokens of a row")
    parser.add_argument("--remat", help="none, dots or full")
    parser.add_argument("--mesh", help="sizes of data, fsdp and tensor, such as 1,-1,1")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="any other field of the config")


BUDGETS = {"tiny": (5, 72, 32), "small": (8, 256, 96), "baseline": (1, 40, 16), "smollm2": (3, 54, 24)}
LARGE = (8, 608, 224)
"""Molecules, atoms and motifs of a row, by preset, and of all others: there is no data that would tell."""


def read_options(options: argparse.Namespace) -> Config:
    """The run's configuration; raises ConfigError if an option does not fit."""
    try:
        config = (stage1 if options.stage == 1 else stage2).get_config(options.preset)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    changes: dict[str, Any] = {}
    for item in options.set:
        key, _, value = item.partition("=")
        try:
            changes[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            changes[key] = value
    changes |= {
        key: value
        for key, value in (
            ("data.rows", options.rows),
            ("data.tokens_per_row", options.tokens),
            ("model.remat", options.remat),
        )
        if value is not None
    }
    if options.mesh:
        changes |= dict(zip(("mesh.data", "mesh.fsdp", "mesh.tensor"), map(int, options.mesh.split(",")), strict=True))
    try:
        config.update_from_flattened_dict(changes)
    except (KeyError, TypeError) as error:
        raise ConfigError(f"--set: {error.args[0]}") from None
    molecules, atoms, motifs = BUDGETS.get(options.preset, LARGE)
    budgets = {"molecules": molecules, "atoms": atoms, "edges": 2 * atoms + 16, "motifs": motifs}
    for name, value in budgets.items():
        if config.data[f"{name}_per_row"] is None:
            config.data[f"{name}_per_row"] = value
    return from_dict(Config, config.to_dict())


def random_batch(config: Config, shape: BatchShape, seed: int = 0) -> Batch:
    """Rows full of conversations of `SEGMENT` tokens about one molecule each; raises ConfigError if they do not fit."""
    rng = np.random.default_rng(seed)
    count = max(1, shape.row.tokens // SEGMENT)
    if count > shape.row.molecules or count * ATOMS > shape.row.atoms or count * MOTIFS > shape.row.motifs:
        raise ConfigError(f"{count} molecules of {ATOMS} atoms and {MOTIFS} motifs do not fit a row of {shape.row}")
    length = shape.row.tokens // count
    rows = [[_conversation(config, length, rng) for _ in range(count)] for _ in range(shape.rows)]
    return collate(rows, shape)


def random_prompts(config: Config, count: int, tokens: int, seed: int = 0) -> list[EncodedConversation]:
    """Prompts of so many tokens, about one molecule each."""
    rng = np.random.default_rng(seed)
    return [_conversation(config, tokens - 1, rng) for _ in range(count)]


def _conversation(config: Config, length: int, rng: np.random.Generator) -> EncodedConversation:
    graph_tokens, total = config.model.num_graph_tokens, length + 1
    molecule, query = np.full(total, -1, np.int32), np.zeros(total, np.int32)
    molecule[1 : 1 + graph_tokens], query[1 : 1 + graph_tokens] = 0, np.arange(graph_tokens)
    tokens = np.where(molecule < 0, rng.integers(3, config.model.language_model.vocab_size, total), 0).astype(np.int32)
    is_target = np.arange(total) >= total - TARGETS * length // SEGMENT
    vocabulary = config.model.graph_encoder.vocabulary
    atoms = _categories(vocabulary.nodes, ATOMS, rng)
    bonds = _categories(vocabulary.edges, 2 * (ATOMS - 1), rng)
    ends = np.arange(ATOMS - 1)  # a chain, each bond in both directions
    senders, receivers = np.concatenate([ends, ends + 1]), np.concatenate([ends + 1, ends])
    motifs = rng.integers(0, 2, (MOTIFS, MOTIF_FEATURES)).astype(np.uint8)
    return EncodedConversation(
        tokens, is_target, molecule, query,
        (GraphArrays(atoms, bonds, senders.astype(np.int32), receivers.astype(np.int32), motifs),),
    )  # fmt: skip


def _categories(cardinalities: Sequence[int], count: int, rng: np.random.Generator) -> np.ndarray:
    return np.stack([rng.integers(0, size, count) for size in cardinalities], axis=1).astype(np.uint8)
