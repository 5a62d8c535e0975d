"""Runs from a configuration: wires data, model and training together. What `launch.py` calls."""

import bisect
import contextlib
import dataclasses
import itertools
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from data_pipeline import storage
from data_pipeline.batch import BatchShape, RowSize
from data_pipeline.command_line import out_of_memory
from data_pipeline.conversation import Conversation, Message
from data_pipeline.embedded import prepare_embedded
from data_pipeline.errors import DataError
from data_pipeline.jobs import Runner
from data_pipeline.lengths import suggest_budgets
from data_pipeline.loader import BatchLoader, EncodedRecords, PackedDataset
from data_pipeline.molecule import InvalidMoleculeError, parse_smiles
from data_pipeline.prompt import PromptEncoder
from data_pipeline.records import (
    Record,
    RecordReader,
    data_fingerprint,
    featurized,
    read_manifest,
    without_last_message,
)
from data_pipeline.tokenizer import TextTokenizer, load_tokenizer
from llamo_jax import distributed, sharding
from llamo_jax.config import ConfigError, DecodingConfig, from_dict
from llamo_jax.generation.generator import Generator
from llamo_jax.models.definition import ModelDefinition
from llamo_jax.parameters import Arrays, WeightsError
from llamo_jax.training import loop
from llamo_jax.training import workdir as workdirs
from llamo_jax.training.config import Config
from llamo_jax.training.metrics import Validations, check_sinks
from llamo_jax.training.program import batch_shape, make_program
from llamo_jax.training.step import TrainState

UserError = (
    ConfigError,
    DataError,
    WeightsError,
    workdirs.CheckpointError,
    InvalidMoleculeError,
    FloatingPointError,
)
"""What a user can cause and mend: one clear line instead of a traceback."""

EMBEDDED = "embedded"
SAMPLE_QUESTION = "Describe this molecule."
SAMPLE_TOKENS = 96
"""Most new tokens of an answer in samples.jsonl: they are to be read, and training waits for them."""


def read_config(values: Mapping[str, Any]) -> Config:
    """The configuration of a run from its config file; raises ConfigError."""
    return from_dict(Config, values.to_dict() if hasattr(values, "to_dict") else values)


def train(config: Config, workdir: os.PathLike) -> TrainState:
    """Prepares what is missing and trains to the end; everything goes into `workdir`.

    Raises one of UserError: before the folder is changed, if it holds another run or another process works in it.
    """
    use_compilation_cache()
    mesh = sharding.make_mesh(config.mesh)
    config = workdirs.check(workdir, config)
    config = _changed(config, {"rows": config.data.rows or config.data.rows_per_device * sharding.batch_shards(mesh)})
    distributed.log(sharding.describe(mesh, config.data.rows))
    # before anything takes time: rules and patterns that match nothing, molecules that are none
    for smiles in config.sample_smiles:
        parse_smiles(smiles)
    check_sinks(config.train.sinks)
    with jax.set_mesh(mesh):
        program = make_program(config, mesh)
    encoder, data, fingerprints = read_data(config, mesh)
    config = _changed(config, _fields(data.train.shape.row))
    run_identity = workdirs.identity(config, fingerprints, encoder.fingerprint())
    folder = storage.make_folder(workdir) if distributed.is_main() else storage.as_path(workdir)
    with storage.locked(folder) if distributed.is_main() else contextlib.nullcontext():
        distributed.wait("workdir locked")
        run_id = workdirs.claim(folder, config, run_identity)
        if distributed.is_main() and not (folder / "tokenizer").exists():
            with storage.new_folder(folder / "tokenizer") as partial:
                encoder.tokenizer.save(os.fspath(partial))
        distributed.wait("tokenizer saved")
        return loop.train(config, folder, run_id, program, data, mesh, _sampler(config, encoder, data.samples, mesh))


def is_finished(config: Config, workdir: os.PathLike, state: TrainState) -> bool:
    """Whether a run has reached its last step, or the end that `config.train.early_stopping` sets; all must ask."""
    step = int(state.step)
    validations = Validations(storage.as_path(workdir), step)
    return step >= config.train.steps or validations.ended(config.train.early_stopping)


def _fields(row: RowSize) -> dict[str, int]:
    return dict(zip(workdirs.BUDGETS, row, strict=True))


def _changed(config: Config, data: Mapping[str, Any]) -> Config:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **data))


def read_data(config: Config, mesh: Mesh) -> tuple[PromptEncoder, loop.Data, list[tuple[str, float]]]:
    """The encoder of prompts and the batches of a run, and the data sets' fingerprints with their shares.

    Prepares the embedded corpus if it is asked for and missing, and measures lengths that nobody has measured yet: the
    first process does, the others wait for it and read what it has left.
    """
    if not distributed.is_main():
        distributed.wait("data prepared")
    sources = _data_folders(config)
    encoder = _encoder(config, load_tokenizer(_tokenizer_folder(config, sources)))
    splits = {split: _records(sources, split, encoder, config) for split in ("train", "validation")}
    if not splits["train"]:
        raise DataError(f"{config.data.source} has no training split")
    config = _changed(config, _budgets(config, [records for _, records in itertools.chain(*splits.values())]))
    shape = batch_shape(config, sharding.batch_shards(mesh))
    training, validation = (_loader(sources, split, splits[split], shape, config) for split in splits)
    assert training is not None
    if distributed.is_main():
        distributed.wait("data prepared")
    data = loop.Data(training, validation, _sample_records(sources, config.train.samples, encoder))
    return encoder, data, [(data_fingerprint(at), share) for at, share in sources.items()]


def _data_folders(config: Config) -> dict[epath.Path, float]:
    """Prepared folders and their weights in the mixture; prepares the embedded corpus if it is needed and missing.

    `config.data.source` is one folder or `folder=weight,folder=weight,…`; "embedded" stands for the embedded corpus.
    """
    data = config.data
    folders: dict[epath.Path, float] = {}
    for part in data.source.split(","):
        name, _, weight = part.partition("=")
        try:
            share = float(weight or 1)
        except ValueError:
            raise ConfigError(f"config.data.source: {weight!r} is not a weight (folder=weight,…)") from None
        folder = _embedded(config) if name == EMBEDDED else storage.as_path(name)
        if not 0 < share < math.inf:
            raise ConfigError(f"config.data.source: the weight of {name} is {weight}; it must be above 0")
        if folder in folders:
            raise ConfigError(f"config.data.source names {name} twice")
        folders[folder] = share
    for folder in folders:
        read_manifest(folder)
    return folders


def _embedded(config: Config) -> epath.Path:
    corpus = prepare_embedded(config.data.cache_dir, Runner(os.cpu_count() or 1))
    folder = storage.as_path(corpus) / config.data.task
    if not folder.is_dir():
        raise ConfigError(f"config.data.task: the embedded corpus has no task {config.data.task!r}")
    return folder


def _tokenizer_folder(config: Config, sources: Mapping[epath.Path, float]) -> epath.Path:
    """The configured tokenizer; else that of the run this one starts from; else the first data set's own."""
    if config.data.tokenizer:
        return storage.as_path(config.data.tokenizer)
    folder = workdirs.at(config.init_from)[0] if config.init_from else next(iter(sources))
    return folder / "tokenizer"


def _encoder(config: Config, tokenizer: TextTokenizer) -> PromptEncoder:
    if tokenizer.size > config.model.language_model.vocab_size:
        raise ConfigError(
            f"config.data.tokenizer: {tokenizer.size} tokens, but the language model has "
            f"{config.model.language_model.vocab_size}"
        )
    return PromptEncoder(
        tokenizer,
        config.model.num_graph_tokens,
        style=config.prompt.style,
        show_smiles=config.prompt.show_smiles,
        show_graph=config.prompt.show_graph,
    )


def _records(
    sources: Mapping[epath.Path, float], split: str, encoder: PromptEncoder, config: Config
) -> list[tuple[epath.Path, EncodedRecords]]:
    """The split of every source that has it."""
    found = []
    vocabulary = config.model.graph_encoder.vocabulary
    for folder in sources:
        if split not in read_manifest(folder)["splits"]:
            continue
        reader = RecordReader(folder, split)
        if reader.vocabulary != vocabulary:
            raise ConfigError(
                f"{folder} holds graphs with feature cardinalities {reader.vocabulary}, but config.model.graph_encoder "
                f"has {vocabulary}"
            )
        found.append((folder, EncodedRecords(reader, encoder)))
    return found


def _budgets(config: Config, records: Sequence[EncodedRecords]) -> dict[str, int]:
    """What a row holds: as configured, else what the rows of every one of these need (data_pipeline.lengths)."""
    tokens = config.data.tokens_per_row
    needed = [suggest_budgets(each.sizes, each.lengths, tokens) for each in records]
    configured = {name: getattr(config.data, name) for name in workdirs.BUDGETS}
    return {name: max(each[name] for each in needed) if value is None else value for name, value in configured.items()}


def _loader(
    sources: Mapping[epath.Path, float],
    split: str,
    records: Sequence[tuple[epath.Path, EncodedRecords]],
    shape: BatchShape,
    config: Config,
) -> BatchLoader | None:
    """Batches of one split of all sources; None if none has it."""
    datasets = []
    for folder, each in records:
        dataset = PackedDataset(each, shape.row)
        skipped = f"; skipped: {dict(dataset.skipped)}" if dataset.skipped else ""
        fill = dataset.fill(config.seed if split == "train" else None)
        distributed.log(f"{split}: {folder}: {len(dataset):,} conversations, {fill:.0%} of token slots filled{skipped}")
        datasets.append(dataset)
    return BatchLoader(datasets, [sources[folder] for folder, _ in records], shape) if datasets else None


def _sample_records(sources: Mapping[epath.Path, float], count: int, encoder: PromptEncoder) -> list[Record]:
    """`count` validation rows, spread evenly over the splits of all sources; those that are a prompt and an answer."""
    readers = [
        RecordReader(folder, "validation")
        for folder in sources
        if count and "validation" in read_manifest(folder)["splits"]
    ]
    ends = list(itertools.accumulate(map(len, readers)))
    total = ends[-1] if ends else 0
    shown = min(count, total)
    records = []
    for place in [number * total // shown for number in range(shown)]:
        which = bisect.bisect_right(ends, place)
        records += readers[which].fetch([place - (ends[which] - len(readers[which]))])
    answered = [record for record in records if record.conversation.messages[-1].role == "assistant"]
    prompts = encoder.encode_each(list(map(without_last_message, answered)))
    return [record for record, prompt in zip(answered, prompts, strict=True) if prompt is not None]


def _sampler(config: Config, encoder: PromptEncoder, samples: Sequence[Record], mesh: Mesh) -> loop.Sampler | None:
    """Answers the last question of validation rows, and describes the molecules that were given."""
    given = [Conversation((smiles,), (Message("user", SAMPLE_QUESTION),)) for smiles in config.sample_smiles]
    prompts = [*map(without_last_message, samples), *map(featurized, given)]
    if not prompts:
        return None

    def sample(definition: ModelDefinition, arrays: Arrays) -> list[dict[str, Any]]:
        decoding = DecodingConfig(max_new_tokens=SAMPLE_TOKENS)
        generator = Generator(definition, arrays, encoder, mesh, decoding, arrays_stay=True)
        try:
            answers = generator.answer_records(prompts)
        except (ConfigError, jax.errors.JaxRuntimeError) as error:
            if isinstance(error, jax.errors.JaxRuntimeError) and out_of_memory(error) is None:
                raise
            # no room beside the optimizer's state: training needs no samples
            logging.warning("no sample answers: %s", str(error).splitlines()[0])
            return []
        found: list[dict[str, Any]] = [
            {
                "smiles": list(prompt.conversation.smiles),
                "question": prompt.conversation.messages[-1].content,
                "answer": answer,
            }
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        for row, record in zip(found, samples, strict=False):
            row["target"] = record.conversation.messages[-1].content
        return found

    return sample


def use_compilation_cache() -> None:
    """Compiled programs are kept between runs, all of them, unless the environment says where (or not at all)."""
    # by default only those that took a second: a second start would compile hundreds of small ones again
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if jax.config.values["jax_compilation_cache_dir"] is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "llamo_jax"
        jax.config.update("jax_compilation_cache_dir", str(cache))
