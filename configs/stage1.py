"""Stage 1, alignment: molecules and their descriptions.

    python launch.py --config configs/stage1.py                 # preset tiny, on the embedded corpus
    python launch.py --config configs/stage1.py:PRESET --config.data.source=DIR
    python launch.py --config configs/stage1.py:MODEL_FOLDER --config.data.source=DIR   # of llamo_jax.convert

In `tiny` and `small` there is no pretrained language model, so everything is trained. With a pretrained one,
stage 1 trains the graph encoder and the projector, as in the paper.

Run for `tiny`: 1.5 to 4 min on two shared CPU cores; validation loss 0.53 to 0.57.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs.presets import preset as get_preset

_EVERYTHING = ((".*", True),)
_GRAPH_SIDE = (("language_model/.*", False), (".*", True))


def get_config(preset: str = "tiny") -> ConfigDict:
    """The run's configuration; see llamo_jax.training.config for every field."""
    config = common(preset)
    config.update(get_preset(preset).stage1)
    return config


def common(preset: str) -> ConfigDict:
    """What the configurations of all stages begin with."""
    sizes = get_preset(preset)
    from_scratch = sizes.from_scratch
    config = ConfigDict(
        {
            "name": "stage1",
            "preset": sizes.name,
            "seed": 0,
            "init_from": sizes.init_from,
            "sample_smiles": (),
            "model": sizes.model,
            "prompt": {"style": sizes.prompt_style, "show_smiles": True, "show_graph": True},
            "data": {
                "source": "embedded",
                "task": "description",
                "tokenizer": "",
                "cache_dir": "data",
                # a plain None could not be set on the command line
                **{name: placeholder(int) if value is None else value for name, value in sizes.data.items()},
            },
            "train": {
                "steps": sizes.stage1_steps,
                "objective": "answers",
                "accumulate": 1,
                "schedule": "warmup_cosine",
                "learning_rate": 1.5e-3 if from_scratch else 1e-4,
                "final_learning_rate": 1e-4 if from_scratch else 1e-5,
                "warmup_steps": sizes.warmup_steps,
                "initial_learning_rate": 5e-7,
                "steps_per_epoch": 1000,
                "weight_decay": 0.05,
                "decay": "kernels",
                "adam_b1": 0.9,
                "adam_b2": 0.98 if from_scratch else 0.999,
                "clip": 1.0,
                "log_every": 20,
                "eval_every": 200,
                "eval_batches": 64,
                "graph_use_every": 200,
                "checkpoint_every": 200,
                "keep_checkpoints": 2,
                "keep_best": True,
                "early_stopping": 0,
                "samples": 3,
                "on_save_failure": "stop",
                "max_nonfinite_steps": 10,
                "stall_seconds": 1800,
                "profile_steps": (),
                "sinks": ("tensorboard",),
                "trainable": _EVERYTHING if from_scratch else _GRAPH_SIDE,
                "train_token_embedding": False,
            },
            "mesh": {"data": 1, "fsdp": -1, "tensor": 1},
        }
    )
    config.update(sizes.every_stage)
    return config
