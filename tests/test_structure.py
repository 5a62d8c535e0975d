"""Who imports whom: one direction, no cycles between files, and only a kind's own file knows the kind."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import networkx
import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("llamo_jax", "data_pipeline", "configs", "benchmarks", "launch")
FILES = [*(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")), ROOT / "launch.py"]


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def imports(path: Path) -> set[str]:
    """Our modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    # of `from a.b import c`, c may be a module or a name in b; then b itself is not needed
    kept = {name for name in found if name in MODULES}
    return {name for name in kept if not any(other.startswith(f"{name}.") for other in kept)}


@pytest.fixture(scope="module")
def graph():
    graph = networkx.DiGraph()
    for name, path in MODULES.items():
        graph.add_edges_from((name, other) for other in imports(path) if other != name)
    return graph


def test_files_form_no_cycle(graph):
    assert len(graph) > 90
    assert [sorted(part) for part in networkx.strongly_connected_components(graph) if len(part) > 1] == []


def package(name: str) -> str:
    """Where a module stands: a package of llamo_jax, one of its own modules, or another package."""
    first, *rest = name.split(".")
    return f"{first}.{rest[0]}" if first == "llamo_jax" and rest else first


ORDER = ["launch", "benchmarks", "configs", "llamo_jax.apps", "llamo_jax.convert", "llamo_jax.analysis",
         "llamo_jax.evaluation", "llamo_jax.runs", "llamo_jax.loading", "llamo_jax.generation", "llamo_jax.training",
         "llamo_jax.distributed", "llamo_jax.clusters", "llamo_jax.models", "llamo_jax.weights",
         "llamo_jax.checksums", "llamo_jax.parameters", "llamo_jax.sharding", "llamo_jax.config", "llamo_jax",
         "data_pipeline"]  # fmt: skip
"""A package imports only what stands behind it."""


def test_packages_import_in_one_direction(graph):
    wrong = [
        f"{a} imports {b}"
        for a, b in graph.edges
        if package(a) != package(b) and ORDER.index(package(a)) > ORDER.index(package(b))
    ]
    assert wrong == []


def test_models_know_little_of_the_data_pipeline(graph):
    known = {b for a, b in graph.edges if package(a) == "llamo_jax.models" and b.startswith("data_pipeline")}
    assert known == {"data_pipeline.batch", "data_pipeline.vocabulary", "data_pipeline.storage"}


def test_kinds_are_named_in_their_own_files_only():
    """Besides the list of public names, the original's formats, and what older folders held."""
    allowed = (
        "models/__init__",
        "models/migrations",
        "convert/official",
        "models/graph_encoders/",
        "models/projectors/",
    )
    wrong = [
        name
        for name, path in MODULES.items()
        if name.startswith("llamo_jax")
        and re.search(r"\bgin\b|multi_level|GINConfig|MultiLevelConfig", path.read_text())
        and not any(part in path.as_posix() for part in allowed)
    ]
    assert wrong == []


def test_every_planted_fault_has_its_place():
    from tests.mutants import _mutants

    assert [m.name for m in _mutants() if (ROOT / m.file).read_text().count(m.old) != 1] == []


def test_the_page_of_fields_is_the_present_one():
    # in a process of its own: tests register kinds that are not the project's
    code = "from docs.make_configuration import page; print(page(), end='')"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (ROOT / "docs" / "configuration.md").read_text() == result.stdout, "run `python docs/make_configuration.py`"


def test_the_readme_is_for_ten_minutes():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    for link in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (ROOT / link).exists(), link
