"""How many matrix-multiplication FLOPs a train step needs at least; every module counts its own (models.flops)."""

from collections.abc import Collection

from data_pipeline.batch import BatchShape
from llamo_jax.models import ModelConfig
from llamo_jax.models.flops import Flops, LinearFlops


def minimal_flops(config: ModelConfig, shape: BatchShape, trained: Collection[str]) -> dict[str, Flops]:
    """By part: decoder_layers, head, graph_side. trained: paths of trained parameters."""
    decoder, linear = config.language_model, LinearFlops(trained, config.lora, "language_model")
    return {
        "decoder_layers": decoder.layer_flops(shape.rows, shape.row.tokens, linear),
        "head": decoder.head_flops(shape.rows * shape.row.tokens, linear),  # fewer targets need less
        "graph_side": _graph_side(config, shape, trained),
    }


def attention_scores(config: ModelConfig, shape: BatchShape) -> Flops:
    """The part of decoder_layers that does not come from a matrix of weights: queries · keys and weights · values."""
    return config.language_model.attention_flops(shape.rows * shape.row.tokens, shape.row.tokens)


def generation_flops(config: ModelConfig, shape: BatchShape, new_tokens: int) -> float:
    """Of prompts that fill `shape`, and `new_tokens` tokens for each row; attention looks at the whole cache."""
    prompt, cache = shape.row.tokens, shape.row.tokens + new_tokens
    steps = prompt + new_tokens - 1  # the last token goes nowhere
    decoder, linear = config.language_model, LinearFlops((), config.lora, "language_model")
    scores = decoder.attention_flops(shape.rows * prompt, cache).forward
    layers = decoder.layer_flops(shape.rows, prompt, linear).forward - attention_scores(config, shape).forward
    head = decoder.head_flops(shape.rows * new_tokens, linear).forward
    return (layers + scores) / prompt * steps + head + _graph_side(config, shape, ()).forward


def _graph_side(config: ModelConfig, shape: BatchShape, trained: Collection[str]) -> Flops:
    """Counted for every slot of the graph budgets, padding included."""
    encoder = LinearFlops(trained, config.lora, "graph_encoder")
    projector = LinearFlops(trained, config.lora, "projector")
    return config.graph_encoder.flops(shape, encoder) + config.projector.flops(
        shape,
        config.graph_encoder.width,
        config.num_levels,
        config.language_model.width,
        projector,
        to_levels=encoder.any_trained(),
    )
