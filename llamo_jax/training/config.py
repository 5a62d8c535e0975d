"""The configuration of a run: what is trained, on what, and how."""

import re
from typing import Literal

from llamo_jax.config import Bool, ConfigError, Float, Int, MeshConfig, PromptConfig, Text, setting, settings
from llamo_jax.models.config import ModelConfig


@settings
class DataConfig:
    """Where records come from, and the capacity of a row; see data_pipeline.batch."""

    source: Text = setting('"embedded", a folder written by data_pipeline.prepare, or folder=weight,folder=weight')
    task: Literal["description", "instruction"] = setting("of the embedded corpus")
    tokenizer: Text = setting('Hugging Face folder; "": that of init_from, else the one in the (first) source')
    cache_dir: Text = setting("where the embedded corpus is prepared")
    rows: Int | None = setting("B, rows of a batch over all devices; None: rows_per_device on each", ge=1)
    rows_per_device: Int = setting("rows of each batch shard, where rows is None", ge=1)
    tokens_per_row: Int = setting("T", ge=2)
    molecules_per_row: Int | None = setting(
        "molecules that a row shows, on average over a shard's rows; None: what 99.9 % of the data's rows need", ge=0
    )
    atoms_per_row: Int | None = setting("their atoms, likewise", ge=0)
    edges_per_row: Int | None = setting("their directed edges, two for each bond, likewise", ge=0)
    motifs_per_row: Int | None = setting("their functional groups and rings, likewise", ge=0)

    def __post_init__(self) -> None:
        if not self.source:
            raise ConfigError('source: give "embedded" or a folder')


@settings
class TrainConfig:
    """Optimisation and logging of a run."""

    steps: Int = setting("optimizer steps", ge=1)
    objective: Literal["answers", "words", "answers+words", "idf_answers+words"] = setting(
        "likelihood of answers, token by token; of their words given graph tokens alone, without the decoder; both; or "
        "both, where tokens that few answers use count more"
    )
    accumulate: Int = setting("batches per optimizer step", ge=1)
    schedule: Literal["warmup_cosine", "per_epoch_cosine"] = setting("of the learning rate; the latter as the original")
    learning_rate: Float = setting("at its peak", gt=0)
    final_learning_rate: Float = setting("at the last step", ge=0)
    warmup_steps: Int = setting("steps of linear warm-up", ge=0)
    initial_learning_rate: Float = setting("where per_epoch_cosine's warm-up starts", ge=0)
    steps_per_epoch: Int = setting("of per_epoch_cosine", ge=1)
    weight_decay: Float = setting("AdamW's", ge=0)
    decay: Literal["kernels", "all"] = setting("what decays: matrices and embeddings, or all as in the original")
    adam_b1: Float = setting("decay of the first moment", ge=0, lt=1)
    adam_b2: Float = setting("decay of the second moment", ge=0, lt=1)
    clip: Float | None = setting("largest global gradient norm; None: no clipping", gt=0)
    log_every: Int = setting("steps between lines of metrics.jsonl", ge=1)
    eval_every: Int = setting("steps between validations, a multiple of log_every", ge=1)
    eval_batches: Int = setting("most batches of a validation, spread evenly over its rows; 0: all", ge=0)
    graph_use_every: Int = setting(
        "steps after which the next validation also tells what another molecule's graph costs; 0: never", ge=0
    )
    checkpoint_every: Int = setting("steps between checkpoints, a multiple of log_every", ge=1)
    keep_checkpoints: Int = setting("newest checkpoints that are kept", ge=1)
    keep_best: Bool = setting("the checkpoint of the lowest validation loss too: RUN/checkpoints/best names it")
    early_stopping: Int = setting("validations in a row without a lower loss, then the run ends; 0: never", ge=0)
    samples: Int = setting("validation rows whose answers go to samples.jsonl at every validation", ge=0)
    on_save_failure: Literal["stop", "continue"] = setting("when a checkpoint cannot be written")
    max_nonfinite_steps: Int = setting("steps in a row skipped for a loss that is not finite, then the run stops", ge=1)
    stall_seconds: Int = setting("without any progress, then the run stops and names who is behind; 0: never", ge=0)
    profile_steps: tuple[Int, ...] = setting("(first, last) whose profile goes to the workdir; (): none")
    sinks: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = setting("where numbers go besides metrics.jsonl")
    trainable: tuple[tuple[Text, Bool], ...] = setting("ordered (pattern, trained) rules over parameter paths")
    train_token_embedding: Bool = setting("whatever the rules say; the original does in stage 1")

    def __post_init__(self) -> None:
        for pattern, _ in self.trainable:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"trainable: {pattern!r} is no regular expression ({error})") from None
        traced = self.profile_steps
        if traced and (len(traced) != 2 or not 1 <= traced[0] <= traced[1]):
            raise ConfigError(f"profile_steps: give (first, last) from 1 on, or (), not {traced}")
        for name in ("checkpoint_every", "eval_every"):
            # a logged loss is the mean since the last line: a run that continues in between could not repeat it, and
            # a validation loss stands in a logged line
            if getattr(self, name) % self.log_every:
                raise ConfigError(f"{name}={getattr(self, name)} is not a multiple of log_every={self.log_every}")


@settings
class Config:
    """One run: `python launch.py --config configs/NAME.py[:preset]`."""

    name: Text = setting("of the stage, for the run's folder")
    preset: Text = setting("whose sizes these are")
    seed: Int = setting("of initial weights, data order and dropout", ge=0, lt=2**32)
    init_from: Text = setting('a run or model folder whose weights this one starts from; "": from scratch')
    sample_smiles: tuple[Text, ...] = setting("further molecules for samples.jsonl, to be described")
    model: ModelConfig = setting("the whole model")
    prompt: PromptConfig = setting("how conversations become tokens")
    data: DataConfig = setting("records and row sizes")
    train: TrainConfig = setting("optimisation and logging")
    mesh: MeshConfig = setting("how devices share the work")
