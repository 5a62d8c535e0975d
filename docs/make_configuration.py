"""Writes docs/configuration.md from the configuration classes: `python docs/make_configuration.py`."""

from pathlib import Path

from llamo_jax.config import field_table
from llamo_jax.evaluation.config import EvaluationConfig
from llamo_jax.training.config import Config

PAGE = Path(__file__).with_name("configuration.md")


def page() -> str:
    """The page as Markdown."""
    lines = [
        "# Configuration",
        "",
        "Every field of `configs/`, set with `--config.FIELD=VALUE`. Made from the classes that check the values",
        "(`python docs/make_configuration.py`). Tuples are written as in Python, in quotation marks, as in",
        "`\"--config.train.sinks=('tensorboard','wandb')\"`. None can be set in a file of `configs/` alone where the",
        "preset has a value. What a preset has is in `configs/stage1.py` and `configs/presets.py`, and in a run's",
        "`config.json`.",
    ]
    for title, cls in (
        ("Training: stage0.py, stage1.py and stage2.py", Config),
        ("Evaluation: evaluate.py", EvaluationConfig),
    ):
        lines += ["", f"## {title}", "", "| field | legal | meaning |", "|---|---|---|"]
        for row in field_table(cls):
            default = f" (default {row.default})" if row.default else ""
            lines.append(f"| `{row.path}` | {row.legal}{default} | {row.description} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
