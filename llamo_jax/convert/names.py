"""Which torch tensors are which of our arrays: one table a component, read in both directions.

Torch's linear weights are [out, in], ours [in, out]; layers are separate tensors there and one stacked array here.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from llamo_jax.config import DecoderConfig, GraphEncoderConfig, LoRAConfig, ProjectorConfig
from llamo_jax.models import GINEncoder, LlamaDecoder, MultiLevelProjector
from llamo_jax.parameters import WeightsError, path_name
from llamo_jax.weights import Layer, Weights, stack

PROJECTIONS = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
"""Our names of a decoder layer's projections → Hugging Face's."""


class Rule(NamedTuple):
    """Some torch tensors that become some of our arrays, or of one layer of them."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    to_ours: Callable[[list], Sequence[Any]]
    to_theirs: Callable[[list], Sequence[Any]]
    layer: int | None = None


def from_torch(rules: Iterable[Rule], tensors: Weights, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Our arrays from torch tensors; `shapes` is what the model wants, by path.

    Raises WeightsError, naming the tensors, if some are missing, left over, or of another shape.
    """
    rules = list(rules)
    blank = {path: np.broadcast_to(np.float32(0), shape) for path, shape in shapes.items()}
    expected = {name: tuple(tensor.shape) for name, tensor in to_torch(rules, blank).items()}
    missing, unexpected = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    if missing or unexpected:
        raise WeightsError(f"tensors do not fit the model; missing: {missing}; unexpected: {unexpected}")
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            raise WeightsError(f"{name}: expected shape {shape}, got {tuple(tensors[name].shape)}")
    arrays: dict[str, Any] = {}
    layers: dict[str, list] = {}
    for rule in rules:
        for path, array in zip(rule.ours, rule.to_ours([tensors[name] for name in rule.theirs]), strict=True):
            if rule.layer is None:
                arrays[path] = array
            else:
                layers.setdefault(path, []).append(array)
    return arrays | {path: stack(found) for path, found in layers.items()}


def to_torch(rules: Iterable[Rule], arrays: Weights) -> dict[str, Any]:
    """Torch tensors from our arrays; the inverse of `from_torch`."""
    tensors: dict[str, Any] = {}
    for rule in rules:
        ours = [arrays[path] if rule.layer is None else Layer(arrays[path], rule.layer) for path in rule.ours]
        tensors |= dict(zip(rule.theirs, rule.to_theirs(ours), strict=True))
    return tensors


def encoder_shapes(config: GraphEncoderConfig) -> dict[str, tuple[int, ...]]:
    """Shape by path of every variable of the graph encoder."""
    return _shapes(lambda: GINEncoder(config, rngs=nnx.Rngs(0)))


def projector_shapes(
    config: ProjectorConfig, encoder: GraphEncoderConfig, out_width: int
) -> dict[str, tuple[int, ...]]:
    """Shape by path of every variable of the projector."""
    levels = encoder.num_layers + 1
    return _shapes(lambda: MultiLevelProjector(config, encoder.width, levels, out_width, rngs=nnx.Rngs(0)))


def decoder_shapes(config: DecoderConfig, lora: LoRAConfig) -> dict[str, tuple[int, ...]]:
    """Shape by path of every variable of the decoder, adapters included."""
    return _shapes(lambda: LlamaDecoder(config, lora, compute_dtype="float32", remat="none", rngs=nnx.Rngs(0)))


def _shapes(make: Callable[[], nnx.Module]) -> dict[str, tuple[int, ...]]:
    variables = nnx.to_flat_state(nnx.state(nnx.eval_shape(make)))
    return {path_name(path): variable.shape for path, variable in variables}


def graph_encoder_rules(config: GraphEncoderConfig) -> list[Rule]:
    """`GNN_graphpred` of MoleculeSTM and LLaMo, without the counters of its normalisations."""
    root = "molecule_node_model"
    atoms = [f"{root}.atom_encoder.atom_embedding_list.{i}.weight" for i in range(len(config.atom_cardinalities))]
    rules = [_tables(atoms, "atom_embedding/table", config.atom_cardinalities)]
    for layer in range(config.num_layers):
        conv = f"{root}.gnns.{layer}"
        bonds = [f"{conv}.bond_encoder.bond_embedding_list.{i}.weight" for i in range(len(config.bond_cardinalities))]
        scalar = Rule(
            (f"{conv}.eps",),
            ("eps",),
            lambda found: [np.asarray(found[0][...]).reshape(())],
            lambda found: [np.asarray(found[0][...]).reshape(1)],
        )
        rules += _in_layer(
            layer,
            [
                _tables(bonds, "bond_embedding/table", config.bond_cardinalities),
                scalar,
                *_linear(f"{conv}.mlp.0", "hidden"),
                *_batch_norm(f"{conv}.mlp.1", "inner_norm"),
                *_linear(f"{conv}.mlp.3", "out"),
                *_batch_norm(f"{root}.batch_norms.{layer}", "outer_norm"),
            ],
        )
    return rules


def batch_norm_counters(config: GraphEncoderConfig) -> list[str]:
    """Tensors of the graph encoder that count batches; torch needs them to exist, nothing reads them."""
    root = "molecule_node_model"
    norms = [name for i in range(config.num_layers) for name in (f"{root}.gnns.{i}.mlp.1", f"{root}.batch_norms.{i}")]
    return [f"{norm}.num_batches_tracked" for norm in norms]


def projector_rules(config: ProjectorConfig, num_levels: int) -> list[Rule]:
    """`MLPMultilevelProjector`; a shared level attention stands under `cross_attention.0`."""
    rules = [
        _same("motif_query_tokens", "motif_queries"),
        _same("query_tokens", "level_queries"),
        *_linear("motif_weight", "motif_embedding", bias=False),
        _same("layer_norm.weight", "norm/scale"),
        _same("layer_norm.bias", "norm/bias"),
        *_in_layer(0, _attention("motif_cross_attention"), "motif_attention/"),
    ]
    for level in range(1 if config.share_level_attention else num_levels):
        rules += _in_layer(level, _attention(f"cross_attention.{level}"), "level_attention/")
    for layer in range(config.depth):
        rules += _linear(f"net.{2 * layer}", f"mlp/{layer}")
    return rules


def language_model_rules(config: DecoderConfig, prefix: str = "", wrapped: Sequence[str] = ()) -> list[Rule]:
    """Hugging Face's LlamaForCausalLM (Mistral, Qwen2); `wrapped` projections stand inside PEFT's adapters."""
    root = f"{prefix}model"
    rules = [_same(f"{root}.embed_tokens.weight", "embedding"), _same(f"{root}.norm.weight", "norm/scale")]
    if not config.tie_embeddings:
        rules += _linear(f"{prefix}lm_head", "lm_head", bias=False)
    for layer in range(config.num_layers):
        name = f"{root}.layers.{layer}"
        found = [
            _same(f"{name}.input_layernorm.weight", "attention_norm/scale"),
            _same(f"{name}.post_attention_layernorm.weight", "mlp_norm/scale"),
        ]
        for ours, theirs in PROJECTIONS.items():
            bias = config.qkv_bias and ours in ("query", "key", "value")
            inner = ".base_layer" if ours in wrapped else ""
            found += _linear(f"{name}.{theirs}{inner}", ours, bias)
        rules += _in_layer(layer, found)
    return rules


def lora_rules(config: DecoderConfig, lora: LoRAConfig, adapter: str = "") -> list[Rule]:
    """A PEFT adapter; `adapter` is its name where it is part of the tensors' names (".default")."""
    rules = []
    for layer in range(config.num_layers):
        found = []
        for ours, theirs in PROJECTIONS.items():
            if ours in lora.targets:
                name = f"base_model.model.model.layers.{layer}.{theirs}"
                found.append(_transposed(f"{name}.lora_A{adapter}.weight", f"{ours}/lora_a"))
                found.append(_transposed(f"{name}.lora_B{adapter}.weight", f"{ours}/lora_b"))
        rules += _in_layer(layer, found)
    return rules


def prefixed(prefix: str, weights: Weights) -> dict[str, Any]:
    """The same with longer names."""
    return {prefix + name: array for name, array in weights.items()}


def below(prefix: str, weights: Weights) -> dict[str, Any]:
    """Those whose names start with the prefix, without it."""
    return {name.removeprefix(prefix): array for name, array in weights.items() if name.startswith(prefix)}


def _same(theirs: str, ours: str) -> Rule:
    return Rule((theirs,), (ours,), list, list)


def _transposed(theirs: str, ours: str) -> Rule:
    return Rule((theirs,), (ours,), lambda found: [found[0].T], lambda found: [found[0].T])


def _linear(theirs: str, ours: str, bias: bool = True) -> list[Rule]:
    kernel = _transposed(f"{theirs}.weight", f"{ours}/kernel")
    return [kernel, _same(f"{theirs}.bias", f"{ours}/bias")] if bias else [kernel]


def _batch_norm(theirs: str, ours: str) -> list[Rule]:
    names = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    return [_same(f"{theirs}.{theirs_}", f"{ours}/{ours_}") for theirs_, ours_ in names.items()]


def _tables(theirs: Sequence[str], ours: str, sizes: Sequence[int]) -> Rule:
    """Embedding tables, one a feature, that are one array here."""
    starts = np.cumsum(sizes)[:-1]

    def joined(found: list) -> Sequence[Any]:
        return [np.concatenate([np.asarray(table[...]) for table in found])]

    return Rule(tuple(theirs), (ours,), joined, lambda found: np.split(np.asarray(found[0][...]), starts))


def _attention(theirs: str) -> list[Rule]:
    """torch.nn.MultiheadAttention: the weights of query, key and value are one array, in this order."""
    parts = ("query", "key", "value")
    weights = Rule(
        (f"{theirs}.in_proj_weight",),
        tuple(f"{part}/kernel" for part in parts),
        lambda found: [part.T for part in np.split(np.asarray(found[0][...]), 3)],
        lambda found: [np.concatenate([np.asarray(part[...]).T for part in found])],
    )
    biases = Rule(
        (f"{theirs}.in_proj_bias",),
        tuple(f"{part}/bias" for part in parts),
        lambda found: np.split(np.asarray(found[0][...]), 3),
        lambda found: [np.concatenate([np.asarray(part[...]) for part in found])],
    )
    return [weights, biases, *_linear(f"{theirs}.out_proj", "out")]


def _in_layer(layer: int, rules: list[Rule], prefix: str = "layers/") -> list[Rule]:
    return [rule._replace(ours=tuple(prefix + path for path in rule.ours), layer=layer) for rule in rules]
