"""The configuration of models and runs, as frozen dataclasses; architecture constants have no defaults.

Config files build `ml_collections.ConfigDict`s of the same shape; `from_dict` is strict in both directions, so every
key of a config file is a field here, and every field is given by the config file.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration that cannot be run; the message says which key and what to do."""


@dataclasses.dataclass(frozen=True)
class GraphEncoderConfig:
    """GIN over categorical node and edge features (paper, section 3.1)."""

    atom_cardinalities: tuple[int, ...]
    bond_cardinalities: tuple[int, ...]
    width: int  # F
    num_layers: int  # L - 1
    dropout: float


@dataclasses.dataclass(frozen=True)
class ProjectorConfig:
    """Multi-level graph projector (paper, section 3.2); Q = num_motif_queries + levels · num_level_queries."""

    motif_features: int
    num_motif_queries: int
    num_level_queries: int
    num_heads: int
    depth: int  # linear layers of the MLP
    layer_norm_eps: float
    share_level_attention: bool  # True: one attention module for all levels, as in the original's code


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Frequency scaling of Llama 3.1 and later; field names as in Hugging Face's `rope_scaling`."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adapters; rank 0 builds none. `targets` names projections: query, key, value, output, gate, up, down."""

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """A decoder of the LLaMA family; see Hugging Face's LlamaConfig for the constants."""

    vocab_size: int  # V
    width: int  # D
    num_layers: int
    num_heads: int  # K · R
    num_kv_heads: int  # K
    head_width: int  # H
    mlp_width: int
    rope_theta: float
    rope_scaling: RopeScaling | None
    rms_norm_eps: float
    qkv_bias: bool
    tie_embeddings: bool
    sliding_window: int | None  # positions that a token may look back; longer rows are refused


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The whole model; graph encoder, projector and decoder, joined in llamo_jax.models.llamo."""

    graph_encoder: GraphEncoderConfig
    projector: ProjectorConfig
    language_model: DecoderConfig
    lora: LoRAConfig
    compute_dtype: str  # of the decoder's activations; the graph side computes in float32
    frozen_dtype: str  # of language-model weights that are not trained; trained weights are float32
    quantize: str  # of frozen projections of the decoder: none, int8 or nf4
    attention: str  # auto, xla, cudnn (GPU) or splash (TPU): see llamo_jax.models.attention
    remat: str  # none, dots or full: what the backward pass computes again, per decoder layer
    loss_chunk: int  # tokens of a batch shard whose logits exist at a time

    @property
    def num_levels(self) -> int:
        """L: the atom embedding and the output of every GIN layer."""
        return self.graph_encoder.num_layers + 1

    @property
    def num_graph_tokens(self) -> int:
        """Q: graph tokens per molecule."""
        return self.projector.num_motif_queries + self.num_levels * self.projector.num_level_queries


ARCHITECTURE = ("graph_encoder", "projector", "language_model", "lora")
"""The parts of a ModelConfig that decide about its arrays; the rest says how to compute, and may change."""


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """How a conversation becomes tokens; see data_pipeline.prompt."""

    style: str
    show_smiles: bool


@dataclasses.dataclass(frozen=True)
class DecodingConfig:
    """How answers are chosen, token by token; greedy unless said otherwise. Terms as in Hugging Face's transformers.

    Raises ConfigError if values do not fit together.
    """

    max_new_tokens: int = 128
    min_new_tokens: int = 0  # no stop token before so many others
    temperature: float = 0.0  # 0: the most probable token; above: drawn from softmax(logits / temperature)
    top_k: int = 0  # draw among the k most probable; 0: all
    top_p: float = 1.0  # draw among the most probable that together reach this probability
    repetition_penalty: float = 1.0  # above 1: tokens of the prompt's text and of the answer become less probable
    num_beams: int = 1  # above 1: beam search
    length_penalty: float = 1.0  # beams are compared by log-probability / length ** length_penalty
    num_samples: int = 1  # answers to each prompt
    stop_ids: tuple[int, ...] = ()  # tokens that end an answer, besides those of the prompt style
    seed: int = 0

    def __post_init__(self) -> None:
        rules = {
            "max_new_tokens must be at least 1": self.max_new_tokens >= 1,
            "min_new_tokens must be between 0 and max_new_tokens": 0 <= self.min_new_tokens <= self.max_new_tokens,
            "temperature must not be negative": self.temperature >= 0,
            "top_k must not be negative": self.top_k >= 0,
            "top_p must be above 0 and at most 1": 0 < self.top_p <= 1,
            "repetition_penalty must be above 0": self.repetition_penalty > 0,
            "seed must be between 0 and 2**32 - 1": 0 <= self.seed < 2**32,
            "num_beams and num_samples must be at least 1": min(self.num_beams, self.num_samples) >= 1,
            "beam search draws nothing: set temperature=0": self.num_beams == 1 or self.temperature == 0,
            "beam search gives num_samples of its num_beams": self.num_beams == 1 or self.num_samples <= self.num_beams,
            "several samples need a temperature above 0 or as many beams": self.num_samples == 1
            or self.temperature > 0
            or self.num_beams > 1,
        }
        for rule, holds in rules.items():
            if not holds:
                raise ConfigError(f"decoding: {rule}")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where records come from, and the capacity of a row; see data_pipeline.batch."""

    source: str  # "embedded", a folder written by data_pipeline.prepare, or a mixture: folder=weight,folder=weight
    task: str  # of the embedded corpus
    tokenizer: str  # Hugging Face folder; "": that of init_from, else the one in the (first) source
    cache_dir: str  # where the embedded corpus is prepared
    rows: int  # B, over all devices
    tokens_per_row: int  # T
    molecules_per_row: int
    atoms_per_row: int
    edges_per_row: int
    motifs_per_row: int


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Optimisation and logging of a run."""

    steps: int
    accumulate: int  # batches per optimizer step
    schedule: str  # warmup_cosine, or per_epoch_cosine as in the original: see trainable.learning_rate_schedule
    learning_rate: float  # peak
    final_learning_rate: float
    warmup_steps: int
    initial_learning_rate: float  # of per_epoch_cosine's warm-up
    steps_per_epoch: int  # of per_epoch_cosine
    weight_decay: float
    decay: str  # what weight decay applies to: kernels (and embeddings), or all as in the original
    adam_b1: float
    adam_b2: float
    clip: float | None  # global gradient norm; None: no clipping
    log_every: int
    eval_every: int
    checkpoint_every: int
    keep_checkpoints: int
    on_save_failure: str  # stop, or continue without the checkpoint that could not be written
    max_nonfinite_steps: int  # steps in a row that are skipped for a loss that is not finite, before the run stops
    trainable: tuple[tuple[str, bool], ...]  # ordered (pattern, trained) rules over parameter paths
    train_token_embedding: bool  # whatever the rules say; the original does in stage 1


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """One evaluation: `python launch.py --config configs/evaluate.py`."""

    name: str
    checkpoint: str  # a run's workdir or a model folder
    task: str  # see llamo_jax.evaluation.scores
    data: str  # a folder written by data_pipeline.prepare, a file of rows, or "embedded"
    split: str  # of a folder; "": test, or validation where there is no test
    limit: int  # evaluate the first so many examples; 0: all
    context: str  # full: earlier answers stay in the prompt; questions_only: they are left out, as in the original
    metric_tokenizer: str  # what BLEU and METEOR count; see llamo_jax.evaluation.metric_tokenizer
    graph_use: int  # so many examples are looked at with other graphs; 0: none
    group_questions: int  # so many molecules are asked about; 0: none
    cache_dir: str  # where the embedded corpus is prepared
    tensor: int  # devices that share each weight; 0: as few as hold them
    decoding: DecodingConfig


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; one of them may be -1: all devices that are left."""

    data: int
    fsdp: int
    tensor: int


@dataclasses.dataclass(frozen=True)
class Config:
    """One run: `python launch.py --config configs/NAME.py[:preset]`."""

    name: str
    preset: str
    seed: int
    init_from: str  # workdir of the run whose weights this one starts from; "" starts from scratch
    sample_smiles: tuple[str, ...]  # molecules whose descriptions go to samples.jsonl
    model: ModelConfig
    prompt: PromptConfig
    data: DataConfig
    train: TrainConfig
    mesh: MeshConfig


def from_dict(cls: type[T], values: Mapping[str, Any], path: str = "config") -> T:
    """An instance of the dataclass `cls` from nested mappings; raises ConfigError on missing or unknown keys."""
    hints = typing.get_type_hints(cls)
    unknown, missing = sorted(set(values) - set(hints)), sorted(set(hints) - set(values))
    if unknown or missing:
        raise ConfigError(f"{path}: unknown keys {unknown}, missing keys {missing}")
    return cls(**{key: _convert(hint, values[key], f"{path}.{key}") for key, hint in hints.items()})


def to_dict(config: Any) -> dict[str, Any]:
    """Plain nested dictionaries, ready for JSON; `from_dict` reads them back."""
    return dataclasses.asdict(config)


def _convert(hint: Any, value: Any, path: str) -> Any:
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        (hint,) = (option for option in typing.get_args(hint) if option is not type(None))
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path}: expected a mapping, got {value!r}")
        return from_dict(typing.cast(type, hint), value, path)
    if typing.get_origin(hint) is tuple:
        item, *rest = typing.get_args(hint)
        items = [item] * len(value) if rest == [Ellipsis] else [item, *rest]
        return tuple(
            _convert(each, entry, f"{path}[{i}]") for i, (each, entry) in enumerate(zip(items, value, strict=True))
        )
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint):
        raise ConfigError(f"{path}: expected {hint.__name__}, got {value!r}")
    return value
