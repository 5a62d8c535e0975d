r"""Evaluation: answers to a split, their scores, and a page that shows both.

    python launch.py --config configs/evaluate.py --config.checkpoint=runs/stage1-tiny          # embedded test split
    python launch.py --config configs/evaluate.py --config.checkpoint=DIR --config.task=forward_reaction \
        --config.data=FILE_OR_FOLDER --config.decoding.num_beams=4 --config.metric_tokenizer=vocab.txt

Run the same command again to continue an interrupted evaluation. Several processes are started as for training.

Run for `tiny` on the embedded test split (629 descriptions): see docs/results.md.
"""

from ml_collections import ConfigDict

from llamo_jax.config import DecodingConfig, to_dict


def get_config() -> ConfigDict:
    """The evaluation's configuration; see llamo_jax.evaluation.config for every field."""
    return ConfigDict(
        {
            "name": "evaluate",
            "checkpoint": "",
            "task": "description",
            "data": "embedded",
            "split": "",
            "smiles_column": "",
            "text_column": "",
            "target_columns": (),
            "delimiter": "",
            "quoting": "",
            "encoding": "",
            "limit": 0,
            "context": "full",
            "metric_tokenizer": "words",
            "graph_use": 200,
            "group_questions": 200,
            "cache_dir": "data",
            "tensor": 0,
            "decoding": to_dict(DecodingConfig()),
        }
    )
