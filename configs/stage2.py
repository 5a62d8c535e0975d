"""Stage 2, instruction tuning: multi-turn conversations, from the weights of stage 1.

    python launch.py --config configs/stage2.py                 # preset tiny, from runs/stage1-tiny
    python launch.py --config configs/stage2.py:PRESET --config.init_from=DIR --config.data.source=DIR

Trains the projector and LoRA adapters; graph encoder and language model are frozen (paper, section 3.3).
"""

from ml_collections import ConfigDict

from configs import stage1
from configs.presets import LORA_TARGETS
from configs.presets import preset as get_preset
from llamo_jax.config import to_dict
from llamo_jax.models import LoRAConfig


def get_config(preset: str = "tiny") -> ConfigDict:
    """The run's configuration; see llamo_jax.training.config for every field."""
    sizes = get_preset(preset)
    config = stage1.common(preset)
    config.name = "stage2"
    config.init_from = f"runs/stage1-{config.preset}"
    config.data.task = "instruction"
    config.model.lora = to_dict(LoRAConfig(rank=8, alpha=32.0, dropout=0.05, targets=LORA_TARGETS))
    config.train.steps = sizes.stage2_steps
    config.train.learning_rate = 1e-3 if sizes.from_scratch else 1e-4
    projector = () if config.model.projector.kind == "none" else (("projector/.*", True),)
    config.train.trainable = ((r".*/lora_.*", True), *projector, (".*", False))
    config.update(sizes.stage2)
    return config
