"""Model and batch sizes by preset; the stages in configs/stage1.py and configs/stage2.py build on them."""

import os
from pathlib import Path

from ml_collections import ConfigDict

from llamo_jax.clusters import accelerator_signs
from llamo_jax.config import to_dict
from llamo_jax.models import GINConfig, LoRAConfig, MultiLevelConfig
from llamo_jax.models.folder import is_model_folder, read_model
from llamo_jax.models.graph_encoders import GRAPH_ENCODERS
from llamo_jax.models.interfaces import GraphEncoderConfig, ProjectorConfig
from llamo_jax.models.projectors import PROJECTORS
from llamo_jax.models.projectors.budget import matched

LORA_TARGETS = ("language_model/layers/(query|value)",)
"""What the paper adapts: queries and values of the decoder's layers."""


def _model(
    *,
    graph_width: int,
    projector_depth: int,
    language_model: dict,
    compute_dtype: str,
    remat: str,
    loss_chunk: int = 512,
) -> dict:
    return {
        "graph_encoder": to_dict(GINConfig.paper(width=graph_width)),
        "projector": to_dict(MultiLevelConfig.paper(depth=projector_depth)),
        "language_model": language_model,
        "lora": to_dict(LoRAConfig(rank=0, alpha=32.0, dropout=0.0, targets=LORA_TARGETS)),
        "compute_dtype": compute_dtype,
        "frozen_dtype": "float32" if compute_dtype == "float32" else "bfloat16",
        "quantize": "none",
        "attention": "auto",
        "remat": remat,
        "loss_chunk": loss_chunk,
    }


def _fast_dtype() -> str:
    """bfloat16 where there are products of it: on accelerators, and on CPUs with AVX-512 or AMX for them."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return "bfloat16" if _accelerated() or "avx512_bf16" in flags or "amx_bf16" in flags else "float32"


def _accelerated() -> bool:
    return os.environ.get("JAX_PLATFORMS") != "cpu" and bool(accelerator_signs())


def _llama(vocab: int, width: int, layers: int, heads: int, kv_heads: int, mlp: int, **changes: object) -> dict:
    """A decoder's sizes; the constants are Llama-2's unless changed."""
    return {
        "vocab_size": vocab,
        "width": width,
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_width": width // heads,
        "mlp_width": mlp,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "rms_norm_eps": 1e-5,
        "qkv_bias": False,
        "qk_norm": False,
        "tie_embeddings": False,
        "sliding_window": None,
        **changes,
    }


def _rows(rows: int | None, tokens: int, per_device: int = 8) -> dict:
    """Rows of a batch (None: `per_device` on each), and their tokens; what else a row holds follows from the data."""
    budgets = dict.fromkeys(f"{name}_per_row" for name in ("molecules", "atoms", "edges", "motifs"))
    return {"rows": rows, "rows_per_device": per_device, "tokens_per_row": tokens, **budgets}


def _pretrained(language_model: dict, prompt_style: str) -> dict:
    """A preset around a pretrained language model and its prompts, with the paper's graph side."""
    return {
        "model": _model(
            graph_width=300,
            projector_depth=6,
            language_model=language_model,
            compute_dtype="bfloat16",
            remat="full",
        ),
        # 7.3 of 17.2 GB in stage 2 on 16 v5e chips, and ten times more seconds for products than for gathers.
        "data": _rows(rows=None, per_device=16, tokens=512),
        "prompt_style": prompt_style,
        "from_scratch": False,
        "stage1_steps": 40000,
        "stage2_steps": 40000,
        "warmup_steps": 1000,
    }


PRESETS = {
    # Any laptop: stage 1 trains in three minutes on two CPU cores.
    "tiny": {
        "model": _model(
            graph_width=64,
            projector_depth=2,
            language_model=_llama(2048, 128, 2, 2, 2, 344),
            compute_dtype="float32",
            remat="none",
        ),
        "data": _rows(rows=8, tokens=256),
        "prompt_style": "plain",
        "from_scratch": True,
        "stage1_steps": 620,
        "stage2_steps": 600,
        "warmup_steps": 40,
    },
    # About 100 million parameters, from scratch on one accelerator. Not run yet.
    "small": {
        "model": _model(
            graph_width=300,
            projector_depth=6,
            language_model=_llama(2048, 768, 12, 12, 12, 2048, tie_embeddings=True),
            compute_dtype="bfloat16",
            remat="none",
        ),
        "data": _rows(rows=64, tokens=512),
        "prompt_style": "plain",
        "from_scratch": True,
        "stage1_steps": 20000,
        "stage2_steps": 10000,
        "warmup_steps": 500,
    },
    # Where the speed of the original's code was measured (58 million parameters, float32, rows of 256 tokens). Its
    # weights are random: for benchmarks.train_step alone.
    "baseline": {
        "model": _model(
            graph_width=300,
            projector_depth=2,
            language_model=_llama(32000, 512, 8, 8, 8, 1376),
            compute_dtype="float32",
            remat="none",
        ),
        "data": _rows(rows=8, tokens=256),
        "prompt_style": "llama2",
        "from_scratch": False,
        "stage1_steps": 100,
        "stage2_steps": 100,
        "warmup_steps": 10,
    },
    # SmolLM2-135M-Instruct, which `make smollm2` puts into models/smollm2: a pretrained chat model for two CPU cores.
    "smollm2": {
        "model": _model(
            graph_width=300,
            projector_depth=2,
            language_model=_llama(49152, 576, 30, 9, 3, 1536, rope_theta=100000.0, tie_embeddings=True),
            compute_dtype=_fast_dtype(),
            # XLA on CPU writes a layer's bfloat16 residuals by converting those of all layers to float32 and back: to
            # compute them again takes 4.2 s a step instead of 6.0, on two Xeon cores with AMX.
            remat="full" if _fast_dtype() == "bfloat16" and not _accelerated() else "none",
            loss_chunk=128,  # 25 MB of logits, which a CPU's cache holds: a step in 5.9 s instead of 6.5 with 512
        ),
        # half of real descriptions with their SMILES have 190 tokens and more
        "data": _rows(rows=2, tokens=512),
        "prompt_style": "chat_template",
        "from_scratch": False,
        "init_from": "models/smollm2",
        "stage1_steps": 820,
        "stage2_steps": 320,
        "warmup_steps": 20,
        # a step takes 4.5 to 6.4 s on two CPU cores: figures after every 9 to 13 minutes
        "every_stage": {
            "train": {"eval_every": 120, "eval_batches": 8, "graph_use_every": 120, "checkpoint_every": 120},
        },
        # at 1e-3 and without the words, the language model hardly reads the graph: see docs/results.md
        "stage1": {
            "prompt": {"show_smiles": False},
            "train": {"objective": "answers+words", "learning_rate": 5e-4, "final_learning_rate": 5e-5},
        },
        "stage2": {"train": {"learning_rate": 3e-4, "final_learning_rate": 3e-5}},
    },
    # The paper: Llama-2-7b-chat, with LoRA in stage 2. Not run yet, like the next two.
    "llama2_7b": _pretrained(_llama(32000, 4096, 32, 32, 32, 11008), "llama2"),
    "llama3_8b": _pretrained(_llama(128256, 4096, 32, 32, 8, 14336, rope_theta=500000.0), "chat_template"),
    "qwen2_7b": _pretrained(
        _llama(152064, 3584, 28, 28, 4, 18944, rope_theta=1000000.0, rms_norm_eps=1e-6, qkv_bias=True),
        "chat_template",
    ),
}


_NO_CHANGES: dict[str, dict] = {"every_stage": {}, "stage1": {}, "stage2": {}}
"""What a preset changes in configurations of all stages, and of one."""


def preset(choice: str) -> ConfigDict:
    """The preset's model and data sizes; raises ValueError, naming the known ones, if there is none of that name.

    A model folder (see llamo_jax.models.folder) is one as well: its model, with the sizes of the large presets. Other
    kinds of graph encoder and projector may follow: "tiny,projector=single_level" has as many graph tokens and
    parameters as "tiny", see llamo_jax.models.projectors.budget.
    """
    name, *kinds = choice.split(",")
    found = _preset(name)
    for each in kinds:
        place, _, kind = each.partition("=")
        if place not in ("graph_encoder", "projector"):
            raise ValueError(f"{choice!r}: {each!r} is neither graph_encoder=KIND nor projector=KIND")
        with found.unlocked():
            found.model[place] = ConfigDict(to_dict(_of_kind(place, kind, found.model.to_dict())))
        found.name = f"{found.name}-{kind}"
    return found


def _of_kind(place: str, kind: str, model: dict) -> GraphEncoderConfig | ProjectorConfig:
    """A graph encoder as wide as the model's, or a projector as large as its own."""
    encoder = GRAPH_ENCODERS.read(model["graph_encoder"], "graph_encoder")
    if place == "graph_encoder":
        return GRAPH_ENCODERS[kind].of_width(encoder.width)
    reference = PROJECTORS.read(model["projector"], "projector")
    return matched(kind, reference, encoder.width, encoder.num_levels, model["language_model"]["width"])


def _preset(name: str) -> ConfigDict:
    if name in PRESETS:
        return ConfigDict({"init_from": "", **_NO_CHANGES, **PRESETS[name], "name": name})
    if not is_model_folder(name):
        raise ValueError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}, or a model folder")
    stored = read_model(name)
    style = stored.prompt.style if stored.prompt else "chat_template"
    sizes = _pretrained({}, style) | {"model": to_dict(stored.config)}
    return ConfigDict({**_NO_CHANGES, **sizes, "name": Path(name).resolve().name, "init_from": name})
