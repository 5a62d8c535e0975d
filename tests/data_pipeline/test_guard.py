"""Texts that bring RDKit down, or keep it busy for hours, in place of molecules."""

import os
import signal
import time

import pytest

from data_pipeline import guard
from data_pipeline.guard import tried
from data_pipeline.molecule import InvalidMoleculeError, featurize


def crashes(smiles):
    os.kill(os.getpid(), signal.SIGSEGV)


def never_ends(smiles):
    while True:
        pass


def fails(smiles):
    raise ValueError(smiles)


def fills_the_memory(smiles):
    return bytearray(2**36)


@pytest.fixture
def quick(monkeypatch):
    """Deaths of this file's functions are not remembered."""
    guard._fate.cache_clear()
    yield
    guard._fate.cache_clear()


def test_molecules_pass(quick):
    assert tried(featurize, "OCC").smiles == "CCO"
    with pytest.raises(InvalidMoleculeError, match="unclosed ring"):
        tried(featurize, "C1CC")
    with pytest.raises(ValueError, match=r"^x$"):
        tried(fails, "x")


@pytest.mark.parametrize(
    ("smiles", "reason"),
    [
        ("C" * 50_000, "longer than 10,000 characters"),
        ("C" + "(C" * 3000 + ")" * 3000, "more than 1,000 nested branches"),
        ("C" + "(C" * 20_000 + ")" * 20_000, "longer than 10,000 characters"),
    ],
)
def test_sizes_are_looked_at_first(smiles, reason):
    with pytest.raises(InvalidMoleculeError, match=reason):
        tried(crashes, smiles)


def test_a_death_is_a_refusal_and_the_next_one_is_tried(quick):
    """The process that dies is not this one; the next text has a new process."""
    with pytest.raises(InvalidMoleculeError, match=r"crashed RDKit \(signal 11\)"):
        tried(crashes, "C")
    assert tried(featurize, "C").smiles == "C"
    with pytest.raises(InvalidMoleculeError, match="too much for the memory"):
        tried(fills_the_memory, "C")
    assert tried(featurize, "O").smiles == "O"


def test_what_takes_too_long_is_refused(quick, monkeypatch):
    monkeypatch.setattr(guard, "CPU_SECONDS", 0.5)
    start = time.monotonic()
    with pytest.raises(InvalidMoleculeError, match=r"took more than 0.5 CPU seconds"):
        tried(never_ends, "C")
    assert time.monotonic() - start < 600


def test_a_chain_that_takes_seconds_is_a_molecule(quick):
    assert len(tried(featurize, "C" * 4000).atoms) == 4000
