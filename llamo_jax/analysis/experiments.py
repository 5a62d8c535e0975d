"""What analyses that train models share: configuration files read by name, and means of seeds with what they tell."""

import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from scipy import stats

from llamo_jax.config import ConfigError

CONFIDENCE = 0.95


def read_config_file(choice: str) -> ConfigDict:
    """What `launch.py --config CHOICE` reads: FILE or FILE:ARGUMENT; raises ConfigError if there is no such file."""
    file, _, argument = choice.partition(":")
    if not Path(file).is_file():
        raise ConfigError(f"there is no configuration file {file!r}; run this where configs/ is, or give its path")
    found: ConfigDict = runpy.run_path(file)["get_config"](*([argument] if argument else []))
    return found


def over_seeds(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and standard deviation (of a sample; None for a single seed)."""
    return {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)) if len(values) > 1 else None}


def paired_difference(values: Sequence[float], reference: Sequence[float]) -> dict[str, Any]:
    """Mean of values minus the reference's of the same seeds, and its 95 % interval by Student's t; None for one seed.

    >>> paired_difference([3.0, 4.0], [1.0, 2.0])
    {'mean': 2.0, 'interval': [2.0, 2.0]}
    """
    differences = np.subtract(values, reference)
    count = len(differences)
    if count < 2:
        return {"mean": float(differences.mean()), "interval": None}
    half = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * differences.std(ddof=1) / np.sqrt(count)
    mean = float(differences.mean())
    return {"mean": mean, "interval": [float(mean - half), float(mean + half)]}
