"""Chat templates are programs from outside: what never ends, or fills the memory, is refused by name."""

import pytest

from data_pipeline import guard
from data_pipeline.errors import DataError
from data_pipeline.tokenizer import _rendered

MESSAGES = [{"role": "user", "content": "What is it?"}]


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "took more than 3 CPU s"),
        ("{{ 'a' * 100000000000 }}", "too much for the memory"),
    ],
)
def test_what_never_ends_is_refused(template, reason, monkeypatch):
    monkeypatch.setattr(guard, "CPU_SECONDS", 3)
    with pytest.raises(DataError, match=f"the tokenizer's chat template {reason}.*; refused"):
        _rendered(template, MESSAGES, add_generation_prompt=True, special={})
    # and an ordinary one is rendered afterwards
    text = "{% for m in messages %}{{ bos_token }}{{ m.role }}: {{ m.content }}{% endfor %}"
    assert _rendered(text, MESSAGES, add_generation_prompt=True, special={"bos_token": "<s>"}) == "<s>user: What is it?"
