"""Settings of every test run: eight CPU devices, checked shapes; and the reference data."""

import contextlib
import ctypes
import gc
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

# Tests mostly wait for the compiler: no expensive optimisation of tiny programs, nor their code in pieces for many
# cores. A train step of `tiny` on eight devices compiles in 3.5 s, and with the newer emitters of fusions in 7.8 s.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false "
    "--xla_cpu_parallel_codegen_split_count=1 " + os.environ.get("XLA_FLAGS", "")
)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["TF_USE_LEGACY_KERAS"] = "1"  # as data_pipeline.logs does for programs
os.environ["HF_HUB_OFFLINE"] = "1"
# Threads of torch and OpenBLAS wait for each other in busy loops: with more processes than cores, 20 answers of SmolLM2
# in torch took 161 s with two threads, 15 s with one.
os.environ["OMP_NUM_THREADS"] = "1"
# Every process of a test run, the programs that tests start too, finds what another has compiled.
if "PYTEST_XDIST_WORKER" not in os.environ:
    COMPILED = tempfile.TemporaryDirectory(prefix="compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import filelock
import jax
import psutil
import pytest
from jaxtyping import install_import_hook

# shapes and dtypes of every annotated function are checked, in tests alone
CHECKED = ["llamo_jax.models", "llamo_jax.generation.processing", "llamo_jax.training.loss", "data_pipeline.packing"]
install_import_hook(CHECKED, "beartype.beartype")

UNIT = {
    "test_batching", "test_checksums", "test_config", "test_docstrings", "test_files", "test_generic_graph",
    "test_golden", "test_migrations", "test_molecule", "test_prompt", "test_storage", "test_structure", "test_tables",
    "test_tasks",
}  # fmt: skip
"""Files whose tests take moments: `make check` runs these. All others are marked `slow`."""

SLOWEST = {
    "test_processes": ("",),  # all of its tests
    "test_wheel": ("",),
    "test_extending": ("",),  # the example of CONTRIBUTING is run by test_kinds
    "test_faults": (
        "test_twenty_kills",
        "test_sigterm",
        "test_stage_2_is_continued",
        "test_a_base_that_did_not_do",
        "test_a_run_whose_end_is_not_saved",
        "test_a_run_whose_loss_stays_infinite",
        "test_a_start_that_failed_before",
    ),
    "test_prepare": ("test_killed_ten_times", "test_tfrecord_files"),
    "test_kinds": ("test_it_trains", "test_sharded"),
    "test_ablation": ("test_every_cell", "test_it_goes_on"),
    "test_instruct_job": ("test_faults_and_kills_change_nothing",),
    "test_training": ("test_runs_repeat_continue_and_chain", "test_a_run_that_accumulates"),
    "test_validations": ("test_the_best_checkpoint", "test_samples_are_validation_rows"),
    "test_generation": ("test_a_second_start_compiles_nothing",),
    "test_tables": ("test_memory_is_bounded_by_bytes",),
    "test_record_files": ("test_an_object_store", "test_many_small_files"),
    "test_observability": ("test_a_run_asked_to_stop_while_it_validates",),
    "test_peft": ("test_a_run_that_trained",),
    "test_convert": ("test_a_run_starts_from_a_model_folder",),  # so do both stages of test_smollm2
    "test_evaluation": ("test_an_evaluation_continues",),
}
"""Beginnings of the names of tests that take minutes together, by file: for `make test-all`, by hand."""

FIRST = ("test_smollm2", "test_training", "test_decoding", "test_kinds", "test_evaluation", "test_words", "test_parity")
"""Files whose tests take minutes together, the longest first: begun last, one would keep one core busy alone."""

LARGE_PROCESS = 5 << 30
"""Bytes from which a test process drops what it compiled."""

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts every test into one of the three tiers. What takes minutes comes first, or it would run alone at the end."""
    for item in items:
        name = item.path.stem
        if name in SLOWEST and item.name.startswith(SLOWEST[name]):
            item.add_marker(pytest.mark.slowest)
        elif name not in UNIT:
            item.add_marker(pytest.mark.slow)
    order = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda i: (i.get_closest_marker("slowest") is None, order.get(i.path.stem, len(FIRST))))


@pytest.fixture(scope="module", autouse=True)
def _programs_are_dropped() -> Iterator[None]:
    """Compiled programs go with the file that needed them: three processes came to 6.8 GB each, and one was killed."""
    yield
    if psutil.Process().memory_info().rss > LARGE_PROCESS:
        jax.clear_caches()
        gc.collect()
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # glibc keeps what small pieces were freed: a third of what there was


@pytest.fixture(scope="session")
def golden() -> Path:
    """Inputs, weights and outputs of the original implementation."""
    folder = SHARED / "golden" / "public"
    if not folder.is_dir():
        pytest.skip("needs the reference values in ../shared/golden/public")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real molecules and texts."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("needs the real data in ../shared/data")
    return folder


def once_per_run(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A copy of the folder `name`, which the first process to come makes by `make(folder)`; the others wait."""
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    made = base / "made" / name
    made.parent.mkdir(exist_ok=True)
    with filelock.FileLock(made.with_name(f"{name}.lock")):
        if not made.exists():
            partial = made.with_name(f"{name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            make(partial)
            partial.rename(made)
    return Path(shutil.copytree(made, factory.mktemp("copies") / name))


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded corpus, prepared once per test run: the first process to come does it, the others wait."""
    from data_pipeline.embedded import prepare_embedded

    base = tmp_path_factory.getbasetemp()
    return prepare_embedded((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "data")


@pytest.fixture(scope="session")
def few(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first hundred conversations of each of its tasks, in the same layout, for runs of seconds."""
    from data_pipeline.jobs import Settings, prepare_records
    from data_pipeline.records import read_records
    from data_pipeline.vocabulary import MOLECULES

    def make(folder: Path) -> None:
        settings = Settings(task="instruction", tokenizer=str(embedded / "tokenizer"))
        for task in ("description", "instruction"):
            counts = {"train": 80, "validation": 20}
            pairs = [(s, r) for s, count in counts.items() for r in read_records(embedded / task, s)[:count]]
            prepare_records(pairs, folder / task, MOLECULES, settings)

    return once_per_run(tmp_path_factory, "few", make)


@pytest.fixture(scope="session")
def untrained(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with weights as drawn, for what does not depend on answers."""
    from flax import nnx

    from data_pipeline.tokenizer import load_tokenizer
    from llamo_jax.config import PromptConfig
    from llamo_jax.models import LLaMo
    from tests import helpers

    folder = tmp_path_factory.mktemp("untrained") / "model"
    prompt = PromptConfig(style="plain", show_smiles=True, show_graph=True)
    model = LLaMo(helpers.model_config(vocab_size=2048, graph_width=64), rngs=nnx.Rngs(0))
    model.save(folder, tokenizer=load_tokenizer(embedded / "tokenizer"), prompt=prompt)
    return folder


@pytest.fixture(scope="session")
def trained(few: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps: its answers are nonsense, but they are its answers."""
    from configs import stage1
    from llamo_jax import runs

    def make(workdir: Path) -> None:
        config = stage1.get_config("tiny")
        config.data.source = str(few / "description")
        config.data.rows = 8
        config.train.update({"steps": 2, "log_every": 2, "checkpoint_every": 2, "samples": 0})
        runs.train(runs.read_config(config), workdir)

    return once_per_run(tmp_path_factory, "stage1-tiny", make)
