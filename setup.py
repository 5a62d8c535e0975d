"""Package metadata. Install with `pip install -e . -c constraints.txt`."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "llamo_jax" / "__init__.py").read_text()).group(1)

BEAM = ["apache-beam>=2.70"]
GGUF = ["gguf>=0.19"]
CONVERT = ["torch>=2.7", "peft>=0.18", *GGUF]
QUANT = ["qwix>=0.1.8"]
SELFIES = ["selfies>=2.2"]
BASELINES = ["scikit-learn>=1.7"]  # that benchmarks put beside the model
ANALYSIS = ["networkx>=3.4", *BASELINES]
INSTRUCT = ["openai>=2.8", "krippendorff>=0.8"]  # teachers that are servers, and agreement of raters
DEMO = ["gradio>=6.20"]
SERVE = ["fastapi>=0.120", "uvicorn>=0.38", "sse-starlette>=3.1", "prometheus_client>=0.23"]
OPSIN = ["py2opsin>=1.2"]  # runs a Java program, which it brings
# Tests exercise the extras that need no other hardware or service.
TEST = [
    *BEAM,
    *CONVERT,
    *SELFIES,
    *OPSIN,
    *INSTRUCT,
    *ANALYSIS,
    *QUANT,
    *SERVE,
    *DEMO,
    "playwright>=1.55",  # drives a Chromium that is there already
    "pytest>=8.4",
    "pytest-xdist>=3.8",
    "hypothesis>=6.150",
    "chex>=0.1.92",
    "beartype>=0.22",
    "psutil>=7",
    "setuptools>=77",  # a test builds the wheel with what is installed
]
DOCS = ["mkdocs-material>=9.7", "mkdocstrings[python]>=1"]

setup(
    name="llamo_jax",
    version=VERSION,
    description="LLaMo in JAX: a language model that looks at molecular graphs",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # configs and benchmarks are names that others have, too: they are used from a checkout, and not installed
    packages=find_packages(include=["llamo_jax*", "data_pipeline*"]),
    package_data={
        "llamo_jax": ["py.typed", "apps/demo/*.css", "apps/demo/*.js", "apps/demo/vendor/*"],
        "data_pipeline": ["py.typed"],
    },
    install_requires=[
        # jax 0.11 removed a class that flax 0.12 subclasses.
        "jax>=0.10.2,<0.11",
        "flax>=0.12.8,<0.13",
        "optax>=0.2.8",
        "jraph>=0.0.6.dev0",
        # Orbax renames functions of its v1 interface between minor versions.
        "orbax-checkpoint>=0.12.4,<0.13",
        "transformers>=5.20",
        "tokenizers>=0.22",
        "sentencepiece>=0.2.1",
        "jinja2>=3.1",
        "safetensors>=0.6",
        "rdkit>=2025.9.1",
        "tensorflow-datasets>=4.9.9",
        "tensorflow-cpu>=2.21; sys_platform == 'linux' and platform_machine == 'x86_64'",
        "tensorflow>=2.21; sys_platform != 'linux' or platform_machine != 'x86_64'",
        "array_record>=0.8.1",
        "etils[epath]>=1.13",
        "pyarrow>=22",
        # TFDS 4.9.10 imports it and does not declare it.
        "importlib_resources>=6",
        "ml-collections>=1.1.0",
        "absl-py>=2.3",
        "pydantic>=2.12",
        "filelock>=3.20",
        "jaxtyping>=0.3.3",
        "numpy>=2.1",
        "tqdm>=4.67",
        "tensorboardX>=2.6.4",
        "matplotlib>=3.10",
        "nltk>=3.9.2",
        "rouge_score>=0.1.2",
        "rapidfuzz>=3.14",
        "scipy>=1.15",
        "tenacity>=9",
        "aiolimiter>=1.2",
        "datasketch>=1.6",
        "py3langid>=0.4",
        "shtab>=1.7",
    ],
    entry_points={"console_scripts": ["llamo = llamo_jax.apps.command:main"]},
    extras_require={
        "tpu": ["jax[tpu]>=0.10.2,<0.11"],
        "cuda": ["jax[cuda13]>=0.10.2,<0.11"],
        "beam": BEAM,
        "convert": CONVERT,
        "gguf": GGUF,
        "quant": QUANT,
        "demo": DEMO,
        "serve": SERVE,
        "selfies": SELFIES,
        "opsin": OPSIN,
        "instruct": INSTRUCT,
        "baselines": BASELINES,
        "analysis": ANALYSIS,
        "wandb": ["wandb>=0.31"],
        "trackio": ["trackio>=0.43"],
        "test": TEST,
        "docs": DOCS,
        "dev": [*TEST, *DOCS, "ruff>=0.14", "mypy>=1.18"],
    },
)
