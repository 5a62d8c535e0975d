"""Older model configurations, as stored in runs and model folders, brought to today's form.

A change of ModelConfig's fields raises SCHEMA_VERSION and adds an entry here; tests load folders of every version.
"""

from collections.abc import Callable
from typing import Any

from llamo_jax.models.lora import decoder_targets

SCHEMA_VERSION = 7
"""Of everything that is stored with a model's configuration: runs and model folders."""


class SchemaError(ValueError):
    """A folder of a newer version than this program reads."""


def migrated_model(model: Any, version: Any) -> dict[str, Any]:
    """The configuration of a model in today's form; raises SchemaError if it is of a newer version."""
    if not isinstance(version, int) or version < 1:
        raise SchemaError(f"schema version {version!r} is none")
    if version > SCHEMA_VERSION:
        raise SchemaError(f"schema version {version}, this program reads up to {SCHEMA_VERSION}; update llamo_jax")
    result = dict(model)
    for step in range(version, SCHEMA_VERSION):
        result = _MIGRATIONS[step](result)
    return result


def _kinds_and_patterns(model: dict[str, Any]) -> dict[str, Any]:
    """1 → 2: one kind of encoder and projector was there; adapters named projections of the decoder's layers."""
    lora = dict(model["lora"])
    lora["targets"] = decoder_targets(lora["targets"])
    return {
        **model,
        "graph_encoder": {"kind": "gin", **model["graph_encoder"]},
        "projector": {"kind": "multi_level", **model["projector"]},
        "lora": lora,
    }


def _without_qk_norm(model: dict[str, Any]) -> dict[str, Any]:
    """2 → 3: no decoder normalised its queries and keys."""
    return {**model, "language_model": {**model["language_model"], "qk_norm": False}}


def _plain_adapters(model: dict[str, Any]) -> dict[str, Any]:
    """3 → 4: adapters had one rank and one alpha, and neither rsLoRA's scale nor DoRA's norms."""
    new = {"rank_stabilized": False, "dora": False, "rank_pattern": [], "alpha_pattern": []}
    return {**model, "lora": {**model["lora"], **new}}


def _gin_of_the_paper(model: dict[str, Any]) -> dict[str, Any]:
    """6 → 7: no GIN had residuals, and every one normalised."""
    encoder = model["graph_encoder"]
    new = {"residual": False, "batch_norm": True} if encoder["kind"] == "gin" else {}
    return {**model, "graph_encoder": {**encoder, **new}}


_MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    1: _kinds_and_patterns,
    2: _without_qk_norm,
    3: _plain_adapters,
    4: dict,  # only fields of runs came with 5 and 6
    5: dict,
    6: _gin_of_the_paper,
}
