"""Runs from a configuration: wires data, model and training together. What `launch.py` calls."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from data_pipeline.batch import BatchShape
from data_pipeline.conversation import Conversation, Message
from data_pipeline.embedded import prepare_embedded
from data_pipeline.errors import DataError
from data_pipeline.jobs import Runner
from data_pipeline.loader import BatchLoader, EncodedRecords, PackedDataset
from data_pipeline.molecule import InvalidMoleculeError
from data_pipeline.prompt import PROMPT_STYLES, PromptEncoder
from data_pipeline.records import RecordReader, read_manifest
from data_pipeline.tokenizer import TextTokenizer, load_tokenizer
from data_pipeline.vocabulary import GraphVocabulary
from llamo_jax import distributed, sharding
from llamo_jax.config import ARCHITECTURE, Config, ConfigError, DecodingConfig, from_dict, to_dict
from llamo_jax.generation.generator import Generator
from llamo_jax.models.definition import ModelDefinition
from llamo_jax.parameters import Arrays, WeightsError
from llamo_jax.training import checkpoints, loop
from llamo_jax.training.program import batch_shape
from llamo_jax.training.step import TrainState

UserError = (
    ConfigError,
    DataError,
    WeightsError,
    checkpoints.CheckpointError,
    InvalidMoleculeError,
    FloatingPointError,
)
"""What a user can cause and mend: one clear line instead of a traceback."""

EMBEDDED = "embedded"
SAMPLE_QUESTION = "Describe this molecule."


def read_config(values: Mapping[str, Any]) -> Config:
    """The configuration of a run from its config file; raises ConfigError."""
    config = from_dict(Config, values.to_dict() if hasattr(values, "to_dict") else values)
    if config.prompt.style not in PROMPT_STYLES:
        raise ConfigError(f"config.prompt.style: {config.prompt.style!r} is not one of {', '.join(PROMPT_STYLES)}")
    if config.train.steps < 1 or config.train.accumulate < 1:
        raise ConfigError("config.train.steps and config.train.accumulate must be at least 1")
    if config.train.on_save_failure not in ("stop", "continue"):
        raise ConfigError(f"config.train.on_save_failure: {config.train.on_save_failure!r} is not stop or continue")
    if config.train.checkpoint_every % config.train.log_every:
        # a logged loss is the mean since the last line; a run that continues in between could not repeat it
        raise ConfigError("config.train.checkpoint_every must be a multiple of config.train.log_every")
    return config


def train(config: Config, workdir: Path) -> TrainState:
    """Prepares what is missing and trains to the end; everything goes into `workdir`."""
    use_compilation_cache()
    mesh = sharding.make_mesh(config.mesh)
    if config.init_from:
        _check_base(config)  # before anything takes time
    _create_workdir(workdir, config)
    encoder, data = read_data(config, mesh)
    if distributed.is_main():
        encoder.tokenizer.save(workdir / "tokenizer")
    checkpoints.write_config(workdir, config)
    distributed.wait("data read")
    return loop.train(config, workdir, data, mesh, _sampler(config, encoder, mesh))


def read_data(config: Config, mesh: Mesh) -> tuple[PromptEncoder, loop.Data]:
    """The encoder of prompts and the batches of a run; prepares the embedded corpus if it is asked for and missing."""
    sources = _data_folders(config)
    encoder = _encoder(config, load_tokenizer(_tokenizer_folder(config, sources)))
    shape = batch_shape(config, sharding.batch_shards(mesh))
    training = _loader(sources, "train", encoder, shape, config)
    validation = _loader(sources, "validation", encoder, shape, config)
    if training is None:
        raise DataError(f"{config.data.source} has no training split")
    return encoder, loop.Data(training, validation)


def _data_folders(config: Config) -> dict[Path, float]:
    """Prepared folders and their weights in the mixture; prepares the embedded corpus if it is needed and missing.

    `config.data.source` is one folder or `folder=weight,folder=weight,…`; "embedded" stands for the embedded corpus.
    """
    data = config.data
    folders: dict[Path, float] = {}
    for part in data.source.split(","):
        name, _, weight = part.partition("=")
        try:
            share = float(weight or 1)
        except ValueError:
            raise ConfigError(f"config.data.source: {weight!r} is not a weight (folder=weight,…)") from None
        folders[_embedded(config) if name == EMBEDDED else Path(name)] = share
    for folder in folders:
        read_manifest(folder)
    return folders


def _embedded(config: Config) -> Path:
    folder = prepare_embedded(config.data.cache_dir, Runner(os.cpu_count() or 1)) / config.data.task
    if not folder.is_dir():
        raise ConfigError(f"config.data.task: the embedded corpus has no task {config.data.task!r}")
    return folder


def _tokenizer_folder(config: Config, sources: Mapping[Path, float]) -> Path:
    """The configured tokenizer; else that of the run this one starts from; else the first data set's own."""
    if config.data.tokenizer:
        return Path(config.data.tokenizer)
    folder = Path(config.init_from) if config.init_from else next(iter(sources))
    return folder / "tokenizer"


def _encoder(config: Config, tokenizer: TextTokenizer) -> PromptEncoder:
    if tokenizer.size > config.model.language_model.vocab_size:
        raise ConfigError(
            f"config.data.tokenizer: {tokenizer.size} tokens, but the language model has "
            f"{config.model.language_model.vocab_size}"
        )
    return PromptEncoder(
        tokenizer, config.model.num_graph_tokens, style=config.prompt.style, show_smiles=config.prompt.show_smiles
    )


def _loader(
    sources: Mapping[Path, float], split: str, encoder: PromptEncoder, shape: BatchShape, config: Config
) -> BatchLoader | None:
    """The split of every source that has it; None if none has."""
    datasets, weights = [], []
    graph = config.model.graph_encoder
    vocabulary = GraphVocabulary(graph.atom_cardinalities, graph.bond_cardinalities)
    for folder, weight in sources.items():
        if split not in read_manifest(folder)["splits"]:
            continue
        reader = RecordReader(folder, split)
        if reader.vocabulary != vocabulary:
            raise ConfigError(
                f"{folder} holds graphs with feature cardinalities {reader.vocabulary}, but config.model.graph_encoder "
                f"has {vocabulary}"
            )
        dataset = PackedDataset(EncodedRecords(reader, encoder), shape.row)
        skipped = f"; skipped: {dict(dataset.skipped)}" if dataset.skipped else ""
        distributed.say(
            f"{split}: {folder}: {len(dataset):,} conversations, {dataset.fill():.0%} of token slots filled{skipped}"
        )
        datasets.append(dataset)
        weights.append(weight)
    return BatchLoader(datasets, weights, shape) if datasets else None


def _sampler(config: Config, encoder: PromptEncoder, mesh: Mesh) -> loop.Sampler | None:
    """Answers the sample question for the configured molecules."""
    if not config.sample_smiles:
        return None
    conversations = [Conversation((smiles,), (Message("user", SAMPLE_QUESTION),)) for smiles in config.sample_smiles]

    def sample(definition: ModelDefinition, arrays: Arrays) -> list[dict[str, str]]:
        answers = Generator(definition, arrays, encoder, mesh, DecodingConfig(max_new_tokens=96)).answer(conversations)
        return [
            {"smiles": smiles, "question": SAMPLE_QUESTION, "answer": answer}
            for smiles, answer in zip(config.sample_smiles, answers, strict=True)
        ]

    return sample


def _create_workdir(workdir: Path, config: Config) -> None:
    """Makes the folder; raises DataError if that is impossible or another model lives there."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot create the workdir {workdir}: {error.strerror}") from None
    if not os.access(workdir, os.W_OK):
        raise DataError(f"the workdir {workdir} is not writable")
    if (workdir / "config.json").exists():
        there = checkpoints.read_config(workdir).model
        for part in ARCHITECTURE:
            if getattr(there, part) != getattr(config.model, part):
                raise ConfigError(
                    f"{workdir} holds a run with another config.model.{part}; choose another --workdir or remove it"
                )


def _check_base(config: Config) -> None:
    """Raises ConfigError if what the run starts from is another model: shapes alone would not tell."""
    base, _ = checkpoints.read_model_config(config.init_from)
    for part in ARCHITECTURE:
        if part == "lora" and not base.lora.rank:
            continue
        theirs, ours = to_dict(getattr(base, part)), to_dict(getattr(config.model, part))
        differ = [
            f"{name}={ours[name]!r} (there {theirs[name]!r})"
            for name in ours
            if name != "dropout" and ours[name] != theirs[name]
        ]
        if differ:
            raise ConfigError(f"config.model.{part} is not that of config.init_from: {', '.join(differ)}")


def use_compilation_cache() -> None:
    """Compiled programs are kept between runs, unless the environment says where (or not at all)."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "llamo_jax"
        jax.config.update("jax_compilation_cache_dir", str(cache))
