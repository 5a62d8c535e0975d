"""Options that several programs have: how answers are chosen."""

import argparse

from llamo_jax.config import DecodingConfig

NAMES = ("max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "num_beams", "seed")


def add_decoding(parser: argparse.ArgumentParser) -> None:
    """An option for each of NAMES, with DecodingConfig's default."""
    for name in NAMES:
        default = getattr(DecodingConfig, name)
        parser.add_argument(f"--{name}", type=type(default), default=default)


def decoding_of(options: argparse.Namespace) -> DecodingConfig:
    """What the options say; raises ConfigError."""
    return DecodingConfig(**{name: getattr(options, name) for name in NAMES})
