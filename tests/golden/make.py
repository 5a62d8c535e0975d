"""Makes the small set of the original's numbers that lies beside this file, from the whole set.

    python -m tests.golden.make --golden ../shared/golden/public

Kept are the features of all molecules, the prompts of one tokenizer, one layer of the graph encoder and the end of the
projector with their inputs and outputs, and a whole language model with its adapter: logits, losses, gradients, greedy
answers and beams. Weights are stored without loss: the language model's are exact in bfloat16, the graph side's have
12 explicit mantissa bits. The graph tokens of the three prompts that answers are generated for are this project's
own, from the original's weights (its own are not in the whole set): they differ from it by less than 2e-4, which
changes none of its answers.
"""

import argparse
import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

from benchmarks.parity import Golden, batch_of, build, graphs_of
from llamo_jax.convert.names import below

HERE = Path(__file__).parent
LAYER = 1  # of the encoder; not the first or last, so that its input is a level and it ends in ReLU
SHOWN = 2  # molecules whose projector tokens are kept
COLUMNS = slice(None, None, 4)  # of the vocabulary, whose logits are kept


def exact(array: np.ndarray, dtype: type) -> np.ndarray:
    """The array in a smaller type; raises ValueError if that loses anything."""
    small = array.astype(dtype)
    if not np.array_equal(small.astype(array.dtype), array):
        raise ValueError("weights do not fit the smaller type")
    return small


def planes(array: np.ndarray) -> np.ndarray:
    """uint8[3, ...]: a float32 array of at most 12 mantissa bits, byte by byte, which compresses well."""
    bits = array.astype(np.float32).view(np.uint32)
    if np.any(bits & 0x7FF):
        raise ValueError("more than 12 mantissa bits")
    return np.stack([(bits >> 11 >> shift & 0xFF).astype(np.uint8) for shift in (0, 8, 16)])


def from_planes(stored: np.ndarray) -> np.ndarray:
    """What `planes` was given."""
    low, middle, high = stored.astype(np.uint32)
    return ((low | middle << 8 | high << 16) << 11).astype(np.uint32).view(np.float32)


def main() -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--golden", type=Path, required=True, metavar="DIR")
    golden = Golden(parser.parse_args().golden)
    _features_and_prompts(golden)
    _graph_side(golden)
    _language_model(golden)
    print(f"{sum(path.stat().st_size for path in HERE.rglob('*') if path.is_file()):,} bytes in {HERE}")


def _features_and_prompts(golden: Golden) -> None:
    for name in ("features.npz", "features.json"):
        shutil.copyfile(golden.folder / name, HERE / name)
    shutil.copytree(golden.folder / "tokenizer_tiny", HERE / "tokenizer_tiny", dirs_exist_ok=True)
    kept = ("tag", "smiles", "instruction", "output", "canonical", "max_length", "tiny")
    cases = [{key: case[key] for key in kept if key in case} for case in golden.json("prompt")["cases"]]
    for case in cases:
        for answer in (case["tiny"], case["tiny"].get("prompt_only", {})):
            answer.pop("tokens", None)
    (HERE / "prompt.json").write_text(json.dumps({"cases": cases}, separators=(",", ":")) + "\n")


def _graph_side(golden: Golden) -> None:
    gin, projector = golden.npz("gin"), golden.npz("projector")
    weights = load_file(golden.folder / "gin.safetensors")
    root = "molecule_node_model"
    prefixes = (f"{root}.gnns.{LAYER}.", f"{root}.batch_norms.{LAYER}.")
    layer = {name: array for name, array in weights.items() if name.startswith(prefixes)}
    arrays = {name: gin[name] for name in ("x", "edge_index", "edge_attr", "batch", "motif", "motif_ptr", "mask")}
    arrays |= {f"h_{level}": gin[f"h_{level}"][gin["mask"]] for level in (LAYER, LAYER + 1)}
    for name, array in layer.items():
        arrays[f"layer/{name}"] = planes(array) if array.dtype == np.float32 and array.ndim == 2 else array
    for name, array in load_file(golden.folder / "projector.safetensors").items():
        if name.startswith(("net.", "layer_norm.")):
            arrays[f"projector/{name}"] = array
    arrays |= {name: projector[name][:SHOWN] for name in ("pre_layer_norm", "output")}
    np.savez_compressed(HERE / "graph_side.npz", **arrays)


def _language_model(golden: Golden) -> None:
    full, about, inputs = golden.npz("full_gqa"), golden.json("full")["gqa"], golden.npz("full_inputs")
    (HERE / "lm_gqa").mkdir(exist_ok=True)
    weights = load_file(golden.folder / "lm_gqa" / "model.safetensors")
    small = {name: exact(array, ml_dtypes.bfloat16) for name, array in weights.items()}
    save_file(small, HERE / "lm_gqa" / "model.safetensors", metadata={"format": "pt"})
    for name in ("config.json", "generation_config.json"):
        shutil.copyfile(golden.folder / "lm_gqa" / name, HERE / "lm_gqa" / name)
    shutil.copytree(golden.folder / "lora_gqa", HERE / "lora_gqa", dirs_exist_ok=True)
    arrays = {name: inputs[name] for name in inputs if not name.startswith(("g_", "gg_"))}
    arrays["query_features"] = full["query_features"]
    arrays["gen_query_features"] = _graph_tokens(golden)
    for name in ("logits", "lora_logits", "merged_logits"):
        arrays[name] = full[name][..., COLUMNS]
    for name in full:
        if "greedy" in name or "beam4" in name:
            arrays[name] = full[name]
    for name, array in golden.npz("grads_gqa").items():
        if name.startswith("stage2/") and ".lora_" in name:
            arrays[f"gradient/{name.partition('/')[2]}"] = array
    np.savez_compressed(HERE / "language_model.npz", **arrays)
    kept = ("loss", "lora_loss", "eos_variant_token", "eos_variant_token_beam")
    lora = {n: v for n, v in about["grad_stage2_lora"]["per_parameter"].items() if ".lora_" in n}
    content = {name: about[name] for name in kept} | {"lora_gradient_norms": lora}
    (HERE / "language_model.json").write_text(json.dumps(content, indent=1) + "\n")


def _graph_tokens(golden: Golden) -> np.ndarray:
    """float32[3, 28, 64]: of the molecules that answers are generated for."""
    from flax import nnx

    config, arrays = golden.model("gqa")
    inputs = golden.npz("full_inputs")
    graphs = graphs_of(inputs, "gg_")
    ids, mask = inputs["gen_input_ids"], inputs["gen_attention_mask"]
    molecules = batch_of(ids, mask, np.full_like(ids, -100), graphs, np.ones(len(ids), int)).molecules
    levels = build(config.graph_encoder.build(rngs=nnx.Rngs(0)), below("graph_encoder/", arrays))(molecules.atoms)
    width = (config.graph_encoder.width, config.num_levels, config.language_model.width)
    module = build(config.projector.build(*width, rngs=nnx.Rngs(0)), below("projector/", arrays))
    return np.asarray(module(levels, molecules)[0][0, : len(graphs)])


if __name__ == "__main__":
    main()
