"""A run's folder: what it is, what it may be continued with, and where its weights started from.

config.json     schema version, and the configuration of the latest start
run.json        the run's id, and its identity: everything that decides its result
base.json       only if the run started from another: its folder, step and a digest of the weights taken
tokenizer/      a Hugging Face tokenizer folder
checkpoints/    see llamo_jax.training.checkpoints
metrics.jsonl, samples.jsonl, TensorBoard's events
"""

import dataclasses
import os
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from etils import epath

from data_pipeline import storage
from data_pipeline.batch import RowSize
from data_pipeline.errors import DataError
from data_pipeline.packing import PACKING_VERSION
from llamo_jax import distributed
from llamo_jax.config import ConfigError, PromptConfig, differences, from_dict, to_dict
from llamo_jax.models import ModelConfig
from llamo_jax.models.config import ARCHITECTURE
from llamo_jax.models.definition import define_model
from llamo_jax.models.folder import PARTS, is_model_folder, read_model
from llamo_jax.models.lora import PARTS as LORA_PARTS
from llamo_jax.models.migrations import SCHEMA_VERSION, SchemaError, migrated_model
from llamo_jax.training.config import Config

T = TypeVar("T")

BEST = "best"
"""Stands for the step of the lowest validation loss: see `at`."""

MAY_CHANGE = (
    "name",
    "preset",
    "sample_smiles",
    "init_from",  # compared by the folder that it names: see claim
    "mesh",
    # how the model is computed, not what
    "model.attention",
    "model.remat",
    "model.loss_chunk",
    # compared by their content, whatever the folders are called
    "data.source",
    "data.task",
    "data.tokenizer",
    "data.cache_dir",
    "data.rows_per_device",  # compared by the number that it gives: rows
    # how long, and what is written when
    "train.steps",
    "train.log_every",
    "train.eval_every",
    "train.eval_batches",
    "train.graph_use_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.keep_best",
    "train.early_stopping",
    "train.samples",
    "train.on_save_failure",
    "train.max_nonfinite_steps",
    "train.stall_seconds",
    "train.profile_steps",
    "train.sinks",
)
"""Fields that may differ between two starts of one run; every other one is part of its identity."""

BUDGETS = tuple(f"{name}_per_row" for name in RowSize._fields)
"""Fields of config.data, in the order of RowSize."""


class CheckpointError(ValueError):
    """A folder that holds no usable run or checkpoint; the message says what is wrong and what to do."""


class Base(NamedTuple):
    """Where a run's initial weights came from: a run's or model's folder, its step, and `digest` of what was taken.

    checksum_version: of the checksums that the digest is made of.
    """

    folder: epath.Path
    step: int
    digest: str
    checksum_version: int


def at(folder: epath.PathLike) -> tuple[epath.Path, str]:
    """A run's or model's folder, and which checkpoint of it is meant: "" the newest, "best", or a step.

    RUN/checkpoints/STEP and RUN/checkpoints/best mean one of a run's checkpoints; "best" is no folder there.
    """
    path = storage.as_path(folder)
    if path.parent.name == "checkpoints" and (path.name == BEST or path.name.isdigit()):
        return path.parent.parent, path.name
    return path, ""


def read_config(folder: epath.PathLike) -> Config:
    """The configuration of the run in `folder`, of any schema version; raises CheckpointError if there is none."""
    path, content = _stored_config(folder)
    return _parsed(path, Config, content)


def read_model_config(folder: epath.PathLike) -> tuple[ModelConfig, PromptConfig | None]:
    """The model of a run or of a model folder, and how its prompts are written, if that is known.

    How a run was trained is not looked at: a model answers, whatever is a legal setting today.
    """
    if is_model_folder(folder):
        stored = read_model(folder)
        return stored.config, stored.prompt
    path, content = _stored_config(folder)
    return _parsed(path, ModelConfig, content["model"]), _parsed(path, PromptConfig, content.get("prompt", {}))


def _stored_config(folder: epath.PathLike) -> tuple[epath.Path, dict[str, Any]]:
    """config.json in today's form."""
    path = at(folder)[0] / "config.json"
    if not path.exists():
        raise CheckpointError(
            f"{folder} is neither a training run nor a model folder (no config.json); give the --workdir of one"
        )
    try:
        content = storage.read_json(path)
        with storage.understood(path):
            version = content.pop("schema_version", 1)
            content["model"] = migrated_model(content["model"], version)
            for step in range(version, SCHEMA_VERSION):
                content = _MIGRATIONS[step](content)
    except SchemaError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    except DataError as error:
        raise CheckpointError(str(error)) from None
    return path, content


def _with_rules_of_2(content: dict[str, Any]) -> dict[str, Any]:
    """1 → 2: validations stand in logged lines; the task is one of the embedded corpus, and was ignored elsewhere."""
    train, data = dict(content["train"]), dict(content["data"])
    every = train["log_every"]
    train["eval_every"] = -(-train["eval_every"] // every) * every
    if data["task"] not in ("description", "instruction"):
        data["task"] = "description"
    return content | {"train": train, "data": data}


def _with_fields_of_3(content: dict[str, Any]) -> dict[str, Any]:
    """2 → 3: validations saw all rows, nothing watched for stalls, and TensorBoard was the only sink."""
    new = {"eval_batches": 0, "stall_seconds": 0, "profile_steps": [], "sinks": ["tensorboard"]}
    return content | {"train": new | content["train"], "data": {"rows_per_device": 8} | content["data"]}


def _with_rules_of_4(content: dict[str, Any]) -> dict[str, Any]:
    """3 → 4: of adapters, two matrices were there to be trained."""
    rules = [[r".*/lora_.*" if pattern == r".*/lora_[ab]" else pattern, trained]
             for pattern, trained in content["train"]["trainable"]]  # fmt: skip
    return content | {"train": content["train"] | {"trainable": rules}}


def _with_fields_of_5(content: dict[str, Any]) -> dict[str, Any]:
    """4 → 5: the newest checkpoints alone were kept, and answers written only for molecules that were given."""
    return content | {"train": {"keep_best": False, "early_stopping": 0, "samples": 0} | content["train"]}


def _with_fields_of_6(content: dict[str, Any]) -> dict[str, Any]:
    """5 → 6: nothing told what another graph costs."""
    content = _with_identity_of_6(content)
    return content | {"train": {"graph_use_every": 0} | content["train"]}


def _with_identity_of_6(content: dict[str, Any]) -> dict[str, Any]:
    """Answers were the one objective, and every prompt showed graphs."""
    train, prompt = {"objective": "answers"} | content["train"], {"show_graph": True} | content["prompt"]
    return content | {"train": train, "prompt": prompt}


_MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    1: _with_rules_of_2,
    2: _with_fields_of_3,
    3: _with_rules_of_4,
    4: _with_fields_of_5,
    5: _with_fields_of_6,
    6: dict,  # only the model's fields changed
}
"""Of what stands beside the model in a run's configuration; the model's own are in llamo_jax.models.migrations."""


def _parsed(path: epath.Path, cls: type[T], values: Mapping[str, Any]) -> T:
    try:
        return from_dict(cls, values, f"{path}: config")
    except ConfigError as error:
        raise CheckpointError(f"{error}; a kind of your own must be imported before its runs are read") from None


def check(folder: epath.PathLike, config: Config) -> Config:
    """Raises what can be known before data are read: ConfigError for another run in `folder`, or another base model.

    Returns the configuration with the sizes of a batch that the run in `folder` began with, where none are asked for:
    neither other devices nor another version must change its result. CheckpointError: a folder that cannot be read;
    DataError: a file in its place.
    """
    if config.init_from:
        _check_base(config)
    folder = storage.as_path(folder)
    try:
        is_file = folder.exists() and not folder.is_dir()
        there = (folder / "config.json").exists()
        strangers = not there and folder.is_dir() and storage.contents(folder)
    except Exception:  # an address that nobody answers: who makes the folder says so
        return config
    if is_file:
        raise DataError(f"cannot create {folder}: File exists")
    if strangers and not (folder / "run.json").exists():
        raise ConfigError(f"{folder} is not empty and holds no run; choose another --workdir")
    if not there:
        return config
    begun = read_config(folder).data
    kept = {name: getattr(begun, name) for name in ("rows", *BUDGETS) if getattr(config.data, name) is None}
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, **kept))
    run = _stored_run(folder)
    if run is not None and _has_results(folder):
        _check_same(folder, config, run["identity"], run["identity"] | {"config": identity(config, (), "")["config"]})
    return config


def _check_base(config: Config) -> None:
    """Raises ConfigError if what the run starts from is another model: shapes alone would not tell."""
    base, _ = read_model_config(config.init_from)
    folder, _ = at(config.init_from)
    missing = set(PARTS) - set(read_model(folder).parts) if is_model_folder(folder) else set()
    for part in ARCHITECTURE:
        if part in missing or (part == "lora" and not base.lora.rank):
            continue
        theirs, ours = (_without_dropout(to_dict(getattr(model, part))) for model in (base, config.model))
        found = differences(theirs, ours, f"config.model.{part}")
        if found:
            raise ConfigError(f"config.model.{part} is not that of config.init_from: {', '.join(found)}")


def _without_dropout(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != "dropout"}


def identity(config: Config, data: Sequence[tuple[str, float]], prompt: str) -> dict[str, Any]:
    """Everything that decides a run's result: two starts with equal identities are the same run.

    data: fingerprint and share of every data set, in their order; prompt: the fingerprint of the prompt encoder.
    """
    kept = to_dict(config)
    for path in MAY_CHANGE:
        section: Any = kept
        *parents, name = path.split(".")
        for parent in parents:
            section = section[parent]
        del section[name]
    return {"config": kept, "data": [list(pair) for pair in data], "prompt": prompt, "packing": PACKING_VERSION}


def claim(folder: epath.Path, config: Config, here: Mapping[str, Any]) -> str:
    """Checks that `folder` is new or holds this run, and notes the latest configuration; returns the run's id.

    Compares before it writes; process 0 writes, all must call it. Raises ConfigError that lists what differs, or if
    `config.train.steps` is below the newest checkpoint.
    """
    there = _stored_run(folder)
    unused = there is not None and not _has_results(folder)
    if unused:
        there = None  # a start that failed before its first line: nothing would be mixed
    elif there is not None:
        _check_same(folder, config, there["identity"], here)
        if there["run_id"] is None:
            there = {"run_id": secrets.token_hex(8), "identity": here}
    elif storage.contents(folder):
        raise ConfigError(f"{folder} is not empty and holds no run; choose another --workdir")
    distributed.wait("workdir looked at")
    if distributed.is_main():
        run = there or {"run_id": secrets.token_hex(8), "identity": here}
        if unused:
            (folder / "base.json").unlink(missing_ok=True)
            storage.remove(folder / "tokenizer")
        storage.write_json(folder / "run.json", {"schema_version": SCHEMA_VERSION, **run})
        storage.write_json(folder / "config.json", {"schema_version": SCHEMA_VERSION, **to_dict(config)})
    distributed.wait("workdir claimed")
    with storage.understood(folder / "run.json"):
        return str(storage.read_json(folder / "run.json")["run_id"])


def _stored_run(folder: epath.Path) -> dict[str, Any] | None:
    """run.json; for a run from before there was one, what its configuration tells and no id; None: a new folder."""
    if (folder / "run.json").exists():
        path = folder / "run.json"
        there = storage.read_json(path)
        try:
            with storage.understood(path):
                stored, version = there["identity"]["config"], there.get("schema_version", 1)
                stored["model"] = migrated_model(stored["model"], version)
                if version < 4:
                    stored = _with_rules_of_4(stored)
                if version < 6:
                    stored = _with_identity_of_6(stored)
                there["identity"]["config"] = stored
                there["run_id"] = there["run_id"] and str(there["run_id"])
        except SchemaError as error:
            raise CheckpointError(f"{folder}: {error}") from None
        return there
    if not (folder / "config.json").exists():
        return None
    return {"run_id": None, "identity": {"config": identity(read_config(folder), (), "")["config"]}}


def _has_results(folder: epath.Path) -> bool:
    return bool(storage.read_json_lines(folder / "metrics.jsonl")) or any((folder / "checkpoints").glob("*"))


def _check_same(folder: epath.Path, config: Config, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    found = differences(there["config"], here["config"])
    if "data" in there and there["data"] != here["data"]:
        found.append(f"the records in {config.data.source}, or their shares")
    if "prompt" in there and there["prompt"] != here["prompt"]:
        found.append("the tokenizer or how prompts are written")
    if there.get("packing", 1) != here.get("packing", 1):  # another order of the same records: no reason to refuse
        distributed.log(f"{folder} began with another version's order of the data; it goes on in this version's")
    base = read_base(folder)
    origin, which = at(storage.absolute(config.init_from)) if config.init_from else (None, "")
    began, at_step = (None, "") if base is None else at(base.folder)
    if began != origin or (which != at_step and not (which == BEST and at_step)):
        found.append(
            f"config.init_from={config.init_from!r} (there {'' if base is None else os.fspath(base.folder)!r})"
        )
    if found:
        raise ConfigError(f"{folder} holds another run; what differs: {'; '.join(found)}. Choose another --workdir")
    steps = [int(path.name) for path in (folder / "checkpoints").glob("*") if path.name.isdigit()]
    if steps and max(steps) > config.train.steps:
        raise ConfigError(
            f"config.train.steps={config.train.steps} is below the checkpoint of step {max(steps)} in {folder}; "
            "give more steps or another --workdir"
        )


def read_base(folder: epath.PathLike) -> Base | None:
    """The run that this one started from; None if it started from scratch."""
    path = at(folder)[0] / "base.json"
    if not path.exists():
        return None
    content = storage.read_json(path)
    with storage.understood(path):
        found, step, digest = storage.as_path(content["folder"]), int(content["step"]), str(content["digest"])
        version = int(content.get("checksum_version", 1))
    if not storage.is_remote(found) and not found.is_absolute():
        found = storage.as_path(os.path.normpath(storage.absolute(path.parent) / found))
    return Base(found, step, digest, version)


def write_base(folder: epath.Path, base: Base) -> None:
    """Creates base.json, in process 0; a local base stands relative to the run: both can be moved together."""
    if not distributed.is_main():
        return
    place = os.fspath(base.folder)
    if not storage.is_remote(base.folder) and not storage.is_remote(folder):
        place = os.path.relpath(base.folder, storage.absolute(folder))
    content = {"folder": place, "step": base.step, "digest": base.digest, "checksum_version": base.checksum_version}
    storage.write_json(folder / "base.json", content)


def trained_language_model(folder: epath.PathLike) -> list[str]:
    """What a run trained of the language model itself, besides adapters on it: paths, [] if nothing."""
    # of its training, these rules alone: other settings may have been legal once
    path, content = _stored_config(folder)
    train = content.get("train") or {}
    rules = [("language_model/embedding", True)] if train.get("train_token_embedding") else []
    rules += train.get("trainable", ())
    names = sorted(define_model(_parsed(path, ModelConfig, content["model"])).names())
    with storage.understood(path):
        decided = {name: next((on for pattern, on in rules if re.fullmatch(pattern, name)), False) for name in names}
    adapters = tuple(f"/{part}" for part in LORA_PARTS)
    return [name for name in names if decided[name] and name.startswith("language_model/")
            and not name.endswith(adapters)]  # fmt: skip


def trainer_of_language_model(folder: epath.PathLike) -> epath.Path | None:
    """Of the runs that this one started from, the last that trained the language model itself; None if none has."""
    base = read_base(folder)
    if base is None or is_model_folder(base.folder):
        return None
    return base.folder if trained_language_model(base.folder) else trainer_of_language_model(base.folder)


def read_origin(folder: epath.PathLike) -> Mapping[str, Any] | None:
    """config.json of the Hugging Face model that a chain of runs began with; None if it was none."""
    if is_model_folder(folder):
        return read_model(folder).huggingface
    base = read_base(folder)
    return None if base is None else read_origin(base.folder)
