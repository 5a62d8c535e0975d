"""How many matrix-multiplication FLOPs a train step needs at least, from the sizes of the model alone.

A product of [m, k] and [k, n] counts 2·m·k·n. Attention counts all T·T scores of a row, as is usual (Chowdhery et al.,
2022, appendix B), though half of them are masked. Embedding lookups, norms and the graph's sums count nothing.
"""

import itertools
from collections.abc import Collection
from typing import NamedTuple

from data_pipeline.batch import BatchShape
from llamo_jax.config import ModelConfig


class Flops(NamedTuple):
    """FLOPs of one batch: the forward pass, gradients by activations, gradients by trained weights."""

    forward: float
    activation_gradients: float
    weight_gradients: float

    def total(self) -> float:
        """All of them."""
        return sum(self)

    def __add__(self, other: "Flops") -> "Flops":  # type: ignore[override]
        return Flops(*(a + b for a, b in zip(self, other, strict=True)))


def minimal_flops(config: ModelConfig, shape: BatchShape, trained: Collection[str]) -> dict[str, Flops]:
    """By part: decoder_layers, head, graph_side. trained: paths of trained parameters."""
    return {
        "decoder_layers": _decoder_layers(config, shape, trained),
        "head": _head(config, shape, trained),
        "graph_side": _graph_side(config, shape, trained),
    }


def attention_scores(config: ModelConfig, shape: BatchShape) -> Flops:
    """The part of decoder_layers that does not come from a matrix of weights: queries · keys and weights · values."""
    decoder = config.language_model
    tokens, heads = shape.rows * shape.row.tokens, decoder.num_heads * decoder.head_width
    scores = 2.0 * 2 * tokens * shape.row.tokens * heads * decoder.num_layers
    return Flops(scores, 2 * scores, 0)


def generation_flops(config: ModelConfig, shape: BatchShape, new_tokens: int) -> float:
    """Of prompts that fill `shape`, and `new_tokens` tokens for each row; attention looks at the whole cache."""
    prompt, cache = shape.row.tokens, shape.row.tokens + new_tokens
    steps = prompt + new_tokens - 1  # the last token goes nowhere
    decoder = config.language_model
    layers = _decoder_layers(config, shape, ()).forward - attention_scores(config, shape).forward
    scores = attention_scores(config, shape).forward / prompt * cache  # of the prompt's tokens
    head = 2.0 * shape.rows * new_tokens * decoder.width * decoder.vocab_size
    return (layers + scores) / prompt * steps + head + _graph_side(config, shape, ()).forward


def _linear(rows: float, inside: int, outside: int, *, trained: bool, to_input: bool = True) -> Flops:
    """One matrix applied to `rows` vectors."""
    flops = 2.0 * rows * inside * outside
    return Flops(flops, flops * to_input, flops * trained)


def _decoder_layers(config: ModelConfig, shape: BatchShape, trained: Collection[str]) -> Flops:
    decoder, lora = config.language_model, config.lora
    tokens = shape.rows * shape.row.tokens
    heads, kv = decoder.num_heads * decoder.head_width, decoder.num_kv_heads * decoder.head_width
    sizes = {
        "query": (decoder.width, heads),
        "key": (decoder.width, kv),
        "value": (decoder.width, kv),
        "output": (heads, decoder.width),
        "gate": (decoder.width, decoder.mlp_width),
        "up": (decoder.width, decoder.mlp_width),
        "down": (decoder.mlp_width, decoder.width),
    }
    layer = Flops(*(part / decoder.num_layers for part in attention_scores(config, shape)))
    for name, (inside, outside) in sizes.items():
        layer += _linear(tokens, inside, outside, trained=f"language_model/layers/{name}/kernel" in trained)
        if lora.rank and name in lora.targets:
            adapted = f"language_model/layers/{name}/lora_a" in trained
            layer += _linear(tokens, inside, lora.rank, trained=adapted)
            layer += _linear(tokens, lora.rank, outside, trained=adapted)
    return Flops(*(decoder.num_layers * part for part in layer))


def _head(config: ModelConfig, shape: BatchShape, trained: Collection[str]) -> Flops:
    """Logits of every position; a batch whose targets are fewer needs less."""
    decoder = config.language_model
    name = "language_model/embedding" if decoder.tie_embeddings else "language_model/lm_head/kernel"
    return _linear(shape.rows * shape.row.tokens, decoder.width, decoder.vocab_size, trained=name in trained)


def _graph_side(config: ModelConfig, shape: BatchShape, trained: Collection[str]) -> Flops:
    """Counted for every slot of the graph budgets, padding included."""
    slots, atoms, _, motifs = (shape.shards * size for size in shape.per_shard())
    width, projector = config.graph_encoder.width, config.projector
    encoder = any(name.startswith("graph_encoder/") for name in trained)
    attention = any(name.startswith("projector/") for name in trained)
    total = Flops(0, 0, 0)
    for _ in range(config.graph_encoder.num_layers):
        total += _linear(atoms, width, 2 * width, trained=encoder, to_input=encoder)
        total += _linear(atoms, 2 * width, width, trained=encoder, to_input=encoder)
    for items, kinds in ((atoms * config.num_levels, "levels"), (motifs, "motifs")):
        to_items = encoder if kinds == "levels" else attention  # motif vectors come from a trained embedding
        for _ in ("key", "value"):
            total += _linear(items, width, width, trained=attention, to_input=to_items)
    total += _linear(motifs, projector.motif_features, width, trained=attention, to_input=False)
    tokens = slots * config.num_graph_tokens
    total += _linear(tokens, width, width, trained=attention)  # after pooling
    widths = [width] + [config.language_model.width] * projector.depth
    for inside, outside in itertools.pairwise(widths):
        total += _linear(tokens, inside, outside, trained=attention)
    return total
