"""Runs from a configuration: wires data, model and training together. What `launch.py` calls."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from data_pipeline.batch import BatchShape, RowSize
from data_pipeline.conversation import Conversation, Message
from data_pipeline.loader import PackedDataset
from data_pipeline.molecule import InvalidMoleculeError
from data_pipeline.prepare import prepare_embedded
from data_pipeline.prompt import PROMPT_STYLES, PromptEncoder
from data_pipeline.records import DataError, read_manifest, read_records
from data_pipeline.tokenizer import TextTokenizer
from llamo_jax import sharding
from llamo_jax.config import Config, ConfigError, from_dict
from llamo_jax.generation.generator import Generator
from llamo_jax.parameters import WeightsError
from llamo_jax.training import checkpoints, loop
from llamo_jax.training.step import Arrays, ModelDefinition, TrainState

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
    if config.train.checkpoint_every % config.train.log_every:
        # a logged loss is the mean since the last line; a run that continues in between could not repeat it
        raise ConfigError("config.train.checkpoint_every must be a multiple of config.train.log_every")
    return config


def train(config: Config, workdir: Path) -> TrainState:
    """Prepares what is missing and trains to the end; everything goes into `workdir`."""
    _use_compilation_cache()
    mesh = sharding.make_mesh(config.mesh)
    if config.init_from:
        checkpoints.read_config(config.init_from)  # before anything takes time
    _create_workdir(workdir, config)
    source, tokenizer = _data_folders(config)
    encoder = _encoder(config, TextTokenizer.load(tokenizer))
    shape = batch_shape(config, sharding.batch_shards(mesh))
    splits = read_manifest(source)["splits"]
    if "train" not in splits:
        raise DataError(f"{source} has no training split")
    datasets = {split: _dataset(source, split, encoder, shape) for split in ("train", "validation") if split in splits}
    encoder.tokenizer.save(workdir / "tokenizer")
    checkpoints.write_config(workdir, config)
    data = loop.Data(datasets["train"], datasets.get("validation"))
    return loop.train(config, workdir, data, mesh, _sampler(config, encoder))


def batch_shape(config: Config, shards: int) -> BatchShape:
    """The shape of all batches; raises ConfigError if the rows do not divide over the shards."""
    data = config.data
    if data.rows % shards:
        raise ConfigError(f"config.data.rows={data.rows} does not divide over {shards} batch shards")
    row = RowSize(
        data.tokens_per_row, data.molecules_per_row, data.atoms_per_row, data.edges_per_row, data.motifs_per_row
    )
    return BatchShape(data.rows, shards, row)


def _data_folders(config: Config) -> tuple[Path, Path]:
    """The prepared dataset and the tokenizer folder; prepares the embedded corpus if it is needed and missing."""
    data = config.data
    source, tokenizer = Path(data.source), Path(data.tokenizer)
    if data.source != EMBEDDED:
        read_manifest(source)
    if EMBEDDED in (data.source, data.tokenizer):
        folder = prepare_embedded(data.cache_dir)
        source = folder / data.task if data.source == EMBEDDED else source
        tokenizer = folder / "tokenizer" if data.tokenizer == EMBEDDED else tokenizer
        if not source.is_dir():
            raise ConfigError(f"config.data.task: the embedded corpus has no task {data.task!r}")
    return source, tokenizer


def _encoder(config: Config, tokenizer: TextTokenizer) -> PromptEncoder:
    if tokenizer.size > config.model.language_model.vocab_size:
        raise ConfigError(
            f"config.data.tokenizer: {tokenizer.size} tokens, but the language model has "
            f"{config.model.language_model.vocab_size}"
        )
    return PromptEncoder(
        tokenizer, config.model.num_graph_tokens, style=config.prompt.style, show_smiles=config.prompt.show_smiles
    )


def _dataset(source: Path, split: str, encoder: PromptEncoder, shape: BatchShape) -> PackedDataset:
    dataset = PackedDataset(read_records(source, split), encoder, shape)
    skipped = f"; skipped: {dict(dataset.skipped)}" if dataset.skipped else ""
    print(f"{split}: {len(dataset.conversations):,} conversations, {dataset.fill():.0%} of token slots filled{skipped}")
    return dataset


def _sampler(config: Config, encoder: PromptEncoder) -> loop.Sampler | None:
    """Answers the sample question for the configured molecules."""
    if not config.sample_smiles:
        return None
    conversations = [Conversation((smiles,), (Message("user", SAMPLE_QUESTION),)) for smiles in config.sample_smiles]

    def sample(definition: ModelDefinition, arrays: Arrays) -> list[dict[str, str]]:
        answers = Generator(definition, arrays, encoder, max_new_tokens=96).answer(conversations)
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
    if (workdir / "config.json").exists() and checkpoints.read_config(workdir).model != config.model:
        raise ConfigError(f"{workdir} holds a run with another config.model; choose another --workdir or remove it")


def _use_compilation_cache() -> None:
    """Compiled programs are kept between runs, unless the environment says where (or not at all)."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "llamo_jax"
        jax.config.update("jax_compilation_cache_dir", str(cache))
