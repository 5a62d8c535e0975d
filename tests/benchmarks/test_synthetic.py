"""What the benchmarks of the train step measure: their options and their batches."""

import argparse

import numpy as np
import pytest

from benchmarks import synthetic
from llamo_jax.config import ConfigError
from llamo_jax.training.program import batch_shape


def options(*arguments):
    parser = argparse.ArgumentParser()
    synthetic.add_options(parser)
    return synthetic.read_options(parser.parse_args(arguments))


def test_batches_are_as_where_the_original_was_timed():
    """8 rows of 256 tokens, one molecule each with 28 graph tokens, 100 targets, nothing padded."""
    config = options("--preset", "baseline")
    batch = synthetic.random_batch(config, batch_shape(config, 2))
    assert batch.tokens.shape == (8, 256)
    assert np.all(batch.segments == 1)
    assert np.all(batch.target_mask.sum(axis=1) == 100)
    assert np.all((batch.molecule_slot >= 0).sum(axis=1) == 28)
    assert batch.molecules.atoms.n_node[:, :4].tolist() == [[synthetic.ATOMS] * 4] * 2


def test_longer_rows_hold_several_conversations():
    config = options("--preset", "llama2_7b", "--tokens", "2048", "--rows", "1")
    batch = synthetic.random_batch(config, batch_shape(config, 1))
    assert batch.segments.max() == 8
    assert np.all(batch.segments > 0)
    with pytest.raises(ConfigError, match="16 molecules of 23 atoms and 7 motifs do not fit a row"):
        synthetic.random_batch(config, batch_shape(options("--preset", "llama2_7b", "--tokens", "4096"), 1))


def test_options_change_the_configuration_and_wrong_ones_are_named():
    config = options(
        "--stage", "2", "--remat", "dots", "--mesh", "2,-1,1", "--set", "model.quantize=int8", "data.rows=16"
    )
    assert (config.name, config.model.remat, config.model.quantize) == ("stage2", "dots", "int8")
    assert (config.mesh.data, config.mesh.fsdp, config.data.rows) == (2, -1, 16)
    with pytest.raises(ConfigError, match="rmat"):
        options("--set", "model.rmat=dots")
    with pytest.raises(ConfigError, match="unknown preset 'nine'"):
        options("--preset", "nine")
