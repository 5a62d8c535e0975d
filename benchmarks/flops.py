"""FLOPs that measurements need besides those of a train step (llamo_jax.training.flops): attention, generation."""

from data_pipeline.batch import BatchShape
from llamo_jax.models import ModelConfig
from llamo_jax.models.flops import Flops, LinearFlops
from llamo_jax.training.flops import graph_side_flops


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
    return (layers + scores) / prompt * steps + head + graph_side_flops(config, shape, ()).forward
