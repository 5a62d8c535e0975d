"""The examples in docstrings and in the README run."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"
MODULES = ("data_pipeline.batch", "data_pipeline.molecule", "data_pipeline.functional_groups", "llamo_jax.config",
           "llamo_jax.models.graph_encoders.gin", "llamo_jax.models.projectors.multi_level", "llamo_jax.models.lora",
           "llamo_jax.evaluation.answers", "llamo_jax.evaluation.claims", "benchmarks.instruction_training",
           "data_pipeline.claims")  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0


def test_the_readmes_library_example():
    (_, example) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    found = {}
    exec(compile(example, str(README), "exec"), found)
    assert found["levels"].shape[0] == 6
    assert found["graph_tokens"].shape[::3] == (1, 4096)
    assert found["graph_tokens"].shape[2] == 28
