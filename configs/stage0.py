"""Stage 0: the graph side learns the words of descriptions, before the language model is asked.

    python launch.py --config configs/stage0.py:smollm2
    python launch.py --config configs/stage1.py:smollm2 --config.init_from=runs/stage0-smollm2

The paper begins with a pretrained graph encoder (MoleculeSTM); where there is none, this makes one in minutes, and the
projector with it. Only the language model's table of embeddings is used, and stays as it is; see
llamo_jax.training.words.
"""

from ml_collections import ConfigDict

from configs import stage1


def get_config(preset: str = "tiny") -> ConfigDict:
    """The run's configuration; see llamo_jax.training.config for every field."""
    config = stage1.get_config(preset)
    config.name = "stage0"
    # on two CPU cores, 16 rows of stage 0 take 0.8 s, and 2 of stage 1 around SmolLM2 6
    config.data.rows = 8 * config.data.rows if config.data.rows else None
    config.train.objective = "words"
    config.train.steps = 400
    config.train.learning_rate = 1e-3
    config.train.final_learning_rate = 1e-4
    config.train.eval_batches = 8
    config.train.samples = 0  # answers of a decoder that has not seen a graph token yet
    return config
