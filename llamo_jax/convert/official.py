"""Names and layouts of the original LLaMo (PyTorch) and of Hugging Face's LLaMA, mapped to this model's paths.

Each function takes tensors by their torch names and returns flat parameters by path (see llamo_jax.parameters).
Torch's linear weights are [out, in] and are transposed; per-layer tensors are stacked along a leading axis.
"""

import re
from collections.abc import Mapping

import numpy as np

from llamo_jax.config import ModelConfig
from llamo_jax.parameters import WeightsError

_LLAMA_LINEARS = {
    "self_attn.q_proj": "query",
    "self_attn.k_proj": "key",
    "self_attn.v_proj": "value",
    "self_attn.o_proj": "output",
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "up",
    "mlp.down_proj": "down",
}
_LLAMA_NORMS = {"input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm"}


class Tensors:
    """Tensors by name, each of which must be used exactly once."""

    def __init__(self, tensors: Mapping[str, np.ndarray]):
        self._tensors = dict(tensors)

    def take(self, name: str) -> np.ndarray:
        """The tensor of that name; raises WeightsError if there is none, or it was taken before."""
        if name not in self._tensors:
            raise WeightsError(f"missing tensor {name!r}")
        return self._tensors.pop(name)

    def linear(self, name: str, path: str, bias: bool = True) -> dict[str, np.ndarray]:
        """Weight and bias of a torch Linear as kernel and bias."""
        found = {f"{path}/kernel": self.take(f"{name}.weight").T}
        if bias:
            found[f"{path}/bias"] = self.take(f"{name}.bias")
        return found

    def drop(self, pattern: str) -> None:
        """Forgets the tensors whose whole name matches: known to be unused."""
        self._tensors = {name: t for name, t in self._tensors.items() if not re.fullmatch(pattern, name)}

    def finish(self) -> None:
        """Raises WeightsError if a tensor was not used."""
        if self._tensors:
            raise WeightsError(f"unexpected tensors {sorted(self._tensors)}")


def graph_encoder(tensors: Mapping[str, np.ndarray], config: ModelConfig) -> dict[str, np.ndarray]:
    """`GNN_graphpred.state_dict()` (names "molecule_node_model.…") as parameters of `GINEncoder`.

    Encoders from OGB before 1.3.6 have four chirality rows; the fifth (non-tetrahedral, unknown there) becomes zeros.
    """
    source = Tensors(tensors)
    gin = config.graph_encoder
    root = "molecule_node_model"
    tables = []
    for index, rows in enumerate(gin.atom_cardinalities):
        table = source.take(f"{root}.atom_encoder.atom_embedding_list.{index}.weight")
        if index == 1 and len(table) == rows - 1:
            table = np.pad(table, ((0, 1), (0, 0)))
        tables.append(table)
    per_layer = []
    for layer in range(gin.num_layers):
        conv, bonds = f"{root}.gnns.{layer}", f"{root}.gnns.{layer}.bond_encoder.bond_embedding_list"
        bond_tables = [source.take(f"{bonds}.{i}.weight") for i in range(len(gin.bond_cardinalities))]
        per_layer.append(
            {
                "bond_embedding/table": np.concatenate(bond_tables),
                "eps": source.take(f"{conv}.eps").reshape(()),
                **source.linear(f"{conv}.mlp.0", "hidden"),
                **_batch_norm(source, f"{conv}.mlp.1", "inner_norm"),
                **source.linear(f"{conv}.mlp.3", "out"),
                **_batch_norm(source, f"{root}.batch_norms.{layer}", "outer_norm"),
            }
        )
    source.drop(r".*\.num_batches_tracked")
    source.finish()
    return {"atom_embedding/table": np.concatenate(tables), **_prefixed("layers/", _stacked(per_layer))}


def projector(tensors: Mapping[str, np.ndarray], config: ModelConfig) -> dict[str, np.ndarray]:
    """`MLPMultilevelProjector.state_dict()` with the level attentions under `cross_attention.0` only."""
    source = Tensors(tensors)
    result = {
        "motif_queries": source.take("motif_query_tokens"),
        "level_queries": source.take("query_tokens"),
        "motif_embedding/kernel": source.take("motif_weight.weight").T,
        "norm/scale": source.take("layer_norm.weight"),
        "norm/bias": source.take("layer_norm.bias"),
        **_prefixed("motif_attention/", _stacked([_attention(source, "motif_cross_attention")])),
        **_prefixed("level_attention/", _stacked([_attention(source, "cross_attention.0")])),
    }
    for layer in range(config.projector.depth):
        result |= source.linear(f"net.{2 * layer}", f"mlp/{layer}")
    source.finish()
    return result


def language_model(tensors: Mapping[str, np.ndarray], config: ModelConfig) -> dict[str, np.ndarray]:
    """A Hugging Face `LlamaForCausalLM` (or Mistral, Qwen2) as parameters of `LlamaDecoder`, without adapters."""
    source = Tensors(tensors)
    llm = config.language_model
    result = {"embedding": source.take("model.embed_tokens.weight"), "norm/scale": source.take("model.norm.weight")}
    if not llm.tie_embeddings:
        result |= source.linear("lm_head", "lm_head", bias=False)
    per_layer = []
    for layer in range(llm.num_layers):
        root = f"model.layers.{layer}"
        found = {f"{ours}/scale": source.take(f"{root}.{theirs}.weight") for theirs, ours in _LLAMA_NORMS.items()}
        for theirs, ours in _LLAMA_LINEARS.items():
            bias = llm.qkv_bias and ours in ("query", "key", "value")
            found |= source.linear(f"{root}.{theirs}", ours, bias)
        per_layer.append(found)
    source.finish()
    return {**result, **_prefixed("layers/", _stacked(per_layer))}


def whole_model(
    graph: Mapping[str, np.ndarray],
    projection: Mapping[str, np.ndarray],
    language: Mapping[str, np.ndarray],
    config: ModelConfig,
) -> dict[str, np.ndarray]:
    """Parameters of `LLaMo` from the tensors of its three parts."""
    return {
        **_prefixed("graph_encoder/", graph_encoder(graph, config)),
        **_prefixed("projector/", projector(projection, config)),
        **_prefixed("language_model/", language_model(language, config)),
    }


def lora(tensors: Mapping[str, np.ndarray], config: ModelConfig) -> dict[str, np.ndarray]:
    """A PEFT adapter's tensors as the `lora_a` and `lora_b` parameters of `LlamaDecoder`."""
    source = Tensors(tensors)
    per_layer = []
    for layer in range(config.language_model.num_layers):
        found = {}
        for theirs, ours in _LLAMA_LINEARS.items():
            if ours in config.lora.targets:
                name = f"base_model.model.model.layers.{layer}.{theirs}"
                found[f"{ours}/lora_a"] = source.take(f"{name}.lora_A.weight").T
                found[f"{ours}/lora_b"] = source.take(f"{name}.lora_B.weight").T
        per_layer.append(found)
    source.finish()
    return _prefixed("layers/", _stacked(per_layer))


def _attention(source: Tensors, name: str) -> dict[str, np.ndarray]:
    """torch.nn.MultiheadAttention: query, key and value weights are one array, in this order."""
    parts = ("query", "key", "value")
    kernels = np.split(source.take(f"{name}.in_proj_weight"), 3)
    biases = np.split(source.take(f"{name}.in_proj_bias"), 3)
    found = {f"{part}/kernel": kernel.T for part, kernel in zip(parts, kernels, strict=True)}
    found |= {f"{part}/bias": bias for part, bias in zip(parts, biases, strict=True)}
    return found | source.linear(f"{name}.out_proj", "out")


def _batch_norm(source: Tensors, name: str, path: str) -> dict[str, np.ndarray]:
    names = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    return {f"{path}/{ours}": source.take(f"{name}.{theirs}") for theirs, ours in names.items()}


def _stacked(per_layer: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {path: np.stack([layer[path] for layer in per_layer]) for path in per_layer[0]}


def _prefixed(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {prefix + path: array for path, array in arrays.items()}
