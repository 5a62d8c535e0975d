"""Names of the language model's weights in Hugging Face's and PEFT's files; kinds of modules bring their own."""

from collections.abc import Sequence
from typing import Any

from flax import nnx

from llamo_jax.models import DecoderConfig, LlamaDecoder, LoRAConfig, torch_names
from llamo_jax.models.torch_names import Rule
from llamo_jax.weights import Weights

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


def adapted_projections(lora: LoRAConfig) -> tuple[str, ...]:
    """Our names of the decoder's projections that have adapters."""
    return tuple(name for name in PROJECTIONS if lora.adapts(projection_path(name)))


def projection_path(name: str) -> str:
    """The path in a whole model of one of the decoder's projections."""
    return f"language_model/layers/{name}"


def decoder_shapes(config: DecoderConfig, lora: LoRAConfig | None = None) -> dict[str, tuple[int, ...]]:
    """Shape by path of every variable of the decoder, adapters included."""
    shapes = torch_names.variable_shapes(lambda: LlamaDecoder(config, compute_dtype="float32", rngs=nnx.Rngs(0)))
    if lora is None:
        return shapes
    for name in adapted_projections(lora):
        inside, outside = config.projections()[name]
        rank = lora.rank_of(projection_path(name))
        shapes[f"layers/{name}/lora_a"] = (config.num_layers, inside, rank)
        shapes[f"layers/{name}/lora_b"] = (config.num_layers, rank, outside)
        if lora.dora:
            shapes[f"layers/{name}/lora_magnitude"] = (config.num_layers, outside)
    return shapes


def language_model_rules(config: DecoderConfig, prefix: str = "", wrapped: Sequence[str] = ()) -> list[Rule]:
    """Hugging Face's LlamaForCausalLM (Mistral, Qwen2, Qwen3); `wrapped` projections stand inside PEFT's adapters."""
    root = f"{prefix}model"
    rules = [
        torch_names.same(f"{root}.embed_tokens.weight", "embedding"),
        torch_names.same(f"{root}.norm.weight", "norm/scale"),
    ]
    if not config.tie_embeddings:
        rules += torch_names.linear(f"{prefix}lm_head", "lm_head", bias=False)
    for layer in range(config.num_layers):
        name = f"{root}.layers.{layer}"
        found = [
            torch_names.same(f"{name}.input_layernorm.weight", "attention_norm/scale"),
            torch_names.same(f"{name}.post_attention_layernorm.weight", "mlp_norm/scale"),
        ]
        if config.qk_norm:
            found.append(torch_names.same(f"{name}.self_attn.q_norm.weight", "query_norm/scale"))
            found.append(torch_names.same(f"{name}.self_attn.k_norm.weight", "key_norm/scale"))
        for ours, theirs in PROJECTIONS.items():
            bias = config.qkv_bias and ours in ("query", "key", "value")
            inner = ".base_layer" if ours in wrapped else ""
            found += torch_names.linear(f"{name}.{theirs}{inner}", ours, bias)
        rules += torch_names.in_layer(layer, found)
    return rules


def lora_rules(config: DecoderConfig, lora: LoRAConfig, adapter: str = "") -> list[Rule]:
    """A PEFT adapter; `adapter` is its name where it is part of the tensors' names (".default")."""
    rules = []
    for layer in range(config.num_layers):
        found = []
        for ours in adapted_projections(lora):
            name = f"base_model.model.model.layers.{layer}.{PROJECTIONS[ours]}"
            found.append(torch_names.transposed(f"{name}.lora_A{adapter}.weight", f"{ours}/lora_a"))
            found.append(torch_names.transposed(f"{name}.lora_B{adapter}.weight", f"{ours}/lora_b"))
            if lora.dora:
                found.append(torch_names.same(f"{name}.lora_magnitude_vector{adapter}", f"{ours}/lora_magnitude"))
        rules += torch_names.in_layer(layer, found)
    return rules


def prefixed(prefix: str, weights: Weights) -> dict[str, Any]:
    """The same with longer names."""
    return {prefix + name: array for name, array in weights.items()}


def below(prefix: str, weights: Weights) -> dict[str, Any]:
    """Those whose names start with the prefix, without it."""
    return {name.removeprefix(prefix): array for name, array in weights.items() if name.startswith(prefix)}
