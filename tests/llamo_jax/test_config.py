"""The configuration is strict, and nothing in it is ignored."""

import dataclasses
import re
from pathlib import Path

from llamo_jax import config

ROOT = Path(__file__).resolve().parents[2]


def test_every_field_is_read():
    files = [ROOT / "launch.py", *(ROOT / "llamo_jax").rglob("*.py")]
    source = "\n".join(path.read_text() for path in files if path.name != "config.py")
    sections = [value for value in vars(config).values() if isinstance(value, type) and dataclasses.is_dataclass(value)]
    fields = [f"{section.__name__}.{field.name}" for section in sections for field in dataclasses.fields(section)]
    assert len(fields) > 60
    unread = [name for name in fields if not re.search(rf"\.{name.split('.')[1]}\b", source)]
    assert unread == []


def test_architecture_constants_have_no_defaults():
    for section in (config.GraphEncoderConfig, config.ProjectorConfig, config.DecoderConfig, config.LoRAConfig):
        assert all(field.default is dataclasses.MISSING for field in dataclasses.fields(section)), section
