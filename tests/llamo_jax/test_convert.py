"""Weights in and out of other formats, with real torch, transformers and peft on the other side."""

import dataclasses
import json
import os
import shutil
import tarfile
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from safetensors.numpy import load_file, save_file

from configs import stage1
from data_pipeline.errors import DataError
from data_pipeline.tokenizer import load_tokenizer
from llamo_jax import parameters, runs, sharding, weights
from llamo_jax.apps.assistant import Assistant
from llamo_jax.config import ConfigError, DecodingConfig, MeshConfig, PromptConfig
from llamo_jax.convert import __main__ as convert
from llamo_jax.convert import huggingface, official
from llamo_jax.convert.names import below, prefixed
from llamo_jax.models import LlamaDecoder, LLaMo
from llamo_jax.models.definition import define_model
from llamo_jax.models.folder import ModelFolder, read_model, write_model
from llamo_jax.models.lora import add_adapters
from llamo_jax.parameters import WeightsError
from llamo_jax.training import checkpoints, workdir
from llamo_jax.weights import Layer, Stacked, read_file, read_folder, write_file
from tests import helpers

ROOT = Path(__file__).resolve().parents[2]
SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
FAMILIES = {
    "llama2": (transformers.LlamaConfig, {"num_key_value_heads": 4}),
    "llama3.1": (transformers.LlamaConfig, {"rope_theta": 5e5, "rope_scaling": LLAMA3_ROPE}),
    "tied": (transformers.LlamaConfig, {"tie_word_embeddings": True, "head_dim": 16}),
    "mistral": (transformers.MistralConfig, {"sliding_window": 64}),
    "qwen2": (transformers.Qwen2Config, {"rope_theta": 1e6, "rms_norm_eps": 1e-6}),
    "qwen3": (transformers.Qwen3Config, {"rope_theta": 1e6, "rms_norm_eps": 1e-6, "head_dim": 16}),
}


def torch_model(family="llama2", seed=0, **changes):
    """A tiny model of torch whose every weight, biases and norms included, is random."""
    kind, options = FAMILIES[family]
    torch.manual_seed(seed)
    config = kind(**{**SIZES, **options, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def ids():
    return np.random.default_rng(0).integers(3, 96, (2, 20))


def torch_logits(model, ids):
    with torch.no_grad():
        return model(torch.from_numpy(ids)).logits.numpy()


def our_logits(config, lora, arrays, ids):
    def make():
        decoder = LlamaDecoder(config, compute_dtype="float32", rngs=nnx.Rngs(0))
        add_adapters(nnx.Dict(language_model=decoder), lora, rngs=nnx.Rngs(1))  # under the path of a whole model
        return decoder

    decoder = helpers.load(sharding.without_values(make), {name: array[...] for name, array in arrays.items()})
    graphdef, state = nnx.split(decoder)

    @jax.jit
    def logits(state, ids):
        decoder = nnx.merge(graphdef, state)
        positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
        return decoder.logits(decoder(decoder.embed(ids), positions, jnp.ones_like(ids)))

    return logits(state, jnp.asarray(ids, jnp.int32))


def run(*arguments):
    convert.main([str(argument) for argument in arguments])


@pytest.mark.parametrize("family", FAMILIES)
def test_families_equal_transformers(tmp_path, ids, family):
    model = torch_model(family)
    model.save_pretrained(tmp_path, max_shard_size="20KB")  # in several files
    assert (tmp_path / "model.safetensors.index.json").exists()
    config, arrays, _ = huggingface.read_language_model(tmp_path)
    got = our_logits(config, huggingface.NO_LORA, arrays, ids)
    np.testing.assert_allclose(got, torch_logits(model, ids), atol=2e-5)


def test_a_shared_matrix_may_have_either_name(tmp_path, ids):
    """safetensors keeps the first of its names, transformers the embedding's."""
    model = torch_model("tied")
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    config, arrays, _ = huggingface.read_language_model(tmp_path)
    np.testing.assert_allclose(
        our_logits(config, huggingface.NO_LORA, arrays, ids), torch_logits(model, ids), atol=2e-5
    )


def test_the_dtype_of_an_export_is_its_own():
    config = huggingface.decoder_config({**SIZES, "model_type": "llama", "rms_norm_eps": 1e-5})
    source = {"model_type": "llama", "dtype": "bfloat16", "torch_dtype": "bfloat16", "hidden_act": "silu"}
    written = huggingface.write_config(config, source, np.dtype("float32"))
    assert written["torch_dtype"] == "float32"
    assert "dtype" not in written


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gemma"}, "model_type 'gemma' is not one of"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_type='yarn'"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "rope_type='longrope'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "rope_scaling lacks 'low_freq_factor'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"layer_types": ["linear_attention"]}, "layer_types"),
        ({"hidden_size": None}, "hidden_size"),
        ({"rms_norm_eps": None}, "config.json lacks rms_norm_eps"),
    ],
)
def test_options_that_are_not_implemented_are_refused_by_name(change, message):
    hf = {**SIZES, "model_type": "llama", "rms_norm_eps": 1e-5, **change}
    with pytest.raises(ConfigError, match=message):
        huggingface.decoder_config({name: value for name, value in hf.items() if value is not None})


def test_a_sliding_window_shorter_than_the_row_is_refused(tmp_path, ids):
    torch_model("mistral", sliding_window=8).save_pretrained(tmp_path)
    config, arrays, _ = huggingface.read_language_model(tmp_path)
    assert config.sliding_window == 8
    decoder = LlamaDecoder(config, compute_dtype="float32", rngs=nnx.Rngs(0))
    cache, one = decoder.empty_cache(2, 9), jnp.zeros((2, 1, config.width))
    with pytest.raises(ConfigError, match="sliding_window=8: sliding attention over 9 tokens"):  # answers grow into it
        decoder.extend(cache, jnp.array([3, 4]), one)
    with pytest.raises(ConfigError, match="sliding_window=8"):
        our_logits(config, huggingface.NO_LORA, arrays, ids)
    our_logits(config, huggingface.NO_LORA, arrays, ids[:, :8])


def test_huggingface_round_trip_is_exact(tmp_path):
    model = torch_model("llama3.1").to(torch.bfloat16)
    model.save_pretrained(tmp_path / "theirs")
    config = helpers.model_config(graph_width=24)
    first = tmp_path / "first"
    decoder, language_model, hf = huggingface.read_language_model(tmp_path / "theirs")
    config = dataclasses.replace(config, language_model=decoder, frozen_dtype="bfloat16")
    arrays = parameters.flatten(nnx.state(LLaMo(config, rngs=nnx.Rngs(3))))
    arrays |= {f"language_model/{name}": jnp.asarray(array[...]) for name, array in language_model.items()}
    write_model(first, ModelFolder(config, arrays, PromptConfig(style="plain", show_smiles=True), huggingface=hf))
    out = tmp_path / "out"
    run("to_huggingface", "--checkpoint", first, "--output", out)
    theirs, ours = read_folder(tmp_path / "theirs"), read_folder(out)
    assert set(theirs) == set(ours)
    for name, tensor in theirs.items():
        assert tensor.dtype == ours[name].dtype
        np.testing.assert_array_equal(tensor[...], ours[name][...], err_msg=name)
    assert json.loads((out / "config.json").read_text())["max_position_embeddings"] == 64

    run("from_huggingface", "--language_model", out, "--graph_encoder", out / "graph_encoder.safetensors",
        "--projector", out / "projector.safetensors", "--output", tmp_path / "second")  # fmt: skip
    before, after = read_model(first), read_model(tmp_path / "second")
    assert after.config.graph_encoder == before.config.graph_encoder
    assert after.config.projector == before.config.projector
    assert set(after.weights) == set(before.weights)
    for name, array in before.weights.items():
        np.testing.assert_array_equal(array[...], after.weights[name][...], err_msg=name)
    again = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16)
    for (name, a), b in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(
    ("name", "template", "style"),
    [
        ("Llama-2-7b-chat-hf", None, "llama2"),
        ("CodeLlama-7b-Instruct", "{{ '[INST] <<SYS>>' + messages[0]['content'] }}{{ eos_token }}", "llama2"),
        ("Llama-2-7b-hf", None, "plain"),
        ("TinyLlama-1.1B-Chat", "{{ messages[0]['content'] + eos_token }}", "chat_template"),
    ],
)
def test_the_prompt_style_follows_the_model(tmp_path, capsys, name, template, style):
    """And a style that is given goes before."""
    folder = tmp_path / name
    torch_model().save_pretrained(folder)
    shutil.copy(ROOT / "tests" / "golden" / "tokenizer_tiny" / "tokenizer.model", folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template} if template else {}))
    run("from_huggingface", "--language_model", folder, "--output", tmp_path / "ours")
    assert read_model(tmp_path / "ours").prompt.style == style
    assert f"note: prompt style: {style}" in capsys.readouterr().out
    run("from_huggingface", "--language_model", folder, "--prompt_style", "plain", "--output", tmp_path / "given")
    assert read_model(tmp_path / "given").prompt.style == "plain"


def test_what_is_downloaded(monkeypatch, tmp_path):
    """Weights once: not the makers' own format beside Hugging Face's, as Mistral's and Llama's repositories have it."""
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    asked = {}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda _, **wanted: asked.update(wanted) or str(tmp_path))
    huggingface.locate("mistralai/Mistral-7B-Instruct-v0.3")
    files = ["config.json", "consolidated.safetensors", "model-00001-of-00003.safetensors", "tokenizer.model",
             "model.safetensors.index.json", "original/model.safetensors", "tokenizer.model.v3", "README.md",
             "chat_template.jinja", "pytorch_model.bin"]  # fmt: skip
    assert list(filter_repo_objects(files, **asked)) == [
        "config.json", "model-00001-of-00003.safetensors", "tokenizer.model", "model.safetensors.index.json",
        "tokenizer.model.v3", "chat_template.jinja",
    ]  # fmt: skip


@pytest.mark.parametrize("family", ["gemma", "gemma2", "phi3"])
def test_families_that_are_not_built_are_named(family):
    with pytest.raises(ConfigError, match=f"model_type '{family}' is not one of llama, mistral, qwen2, qwen3"):
        huggingface.decoder_config({"model_type": family})


# The original's checkpoints


@pytest.fixture(scope="module")
def lightning(golden, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lightning")
    with tarfile.open(golden / "ckpts.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.mark.parametrize("stage", [1, 2])
def test_from_official_makes_a_whole_model(golden, lightning, tmp_path, stage, capsys):
    run("from_official", "--checkpoint", lightning / f"llamo_stage{stage}_like.ckpt",
        "--language_model", golden / "lm_mha", "--tokenizer", golden / "tokenizer_tiny",
        "--output", tmp_path / "model")  # fmt: skip
    assert "a zero row is added" in capsys.readouterr().out
    model = LLaMo.load(tmp_path / "model")
    assert model.config.projector.share_level_attention
    assert model.config.language_model.vocab_size == 513  # with the pad token
    assert model.config.lora.rank == (8 if stage == 2 else 0)
    assert read_model(tmp_path / "model").prompt == PromptConfig(style="llama2", show_smiles=True)
    assert load_tokenizer(tmp_path / "model" / "tokenizer").size <= 513
    with pytest.raises(SystemExit, match="exists already"):
        run("from_official", "--checkpoint", lightning / "llamo_stage1_like.ckpt",
            "--language_model", golden / "lm_mha", "--output", tmp_path / "model")  # fmt: skip


def damaged(name, change):
    """A change of the stage 1 checkpoint's state_dict."""

    def apply(content):
        change(content["state_dict"])
        return content

    return pytest.param(apply, name, id=name[:40])


KEY = "mllm.abstractor.cross_attention.3.in_proj_bias"
EMBED = "mllm.language_model.model.embed_tokens.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        damaged(r"unexpected: \['extra'\]", lambda s: s.update({"mllm.abstractor.extra": torch.zeros(1)})),
        damaged(r"unexpected tensors \['other.weight'\]", lambda s: s.update({"other.weight": torch.zeros(1)})),
        damaged(r"missing: \['net.4.bias'\]", lambda s: s.pop("mllm.abstractor.net.4.bias")),
        damaged("net.4.bias: expected shape", lambda s: s.update({"mllm.abstractor.net.4.bias": torch.zeros(3)})),
        damaged("cross_attention.3.in_proj_bias differs", lambda s: s.update({KEY: s[KEY] + 1})),
        damaged("cross_attention.5", lambda s: [s.pop(k) for k in list(s) if "cross_attention.5" in k]),
        damaged("embed_tokens.weight: holds NaN", lambda s: s[EMBED].__setitem__((5, 3), float("nan"))),
    ],
)
def test_damaged_official_checkpoints_are_refused(golden, lightning, tmp_path, change, message):
    content = torch.load(lightning / "llamo_stage1_like.ckpt", weights_only=True)
    torch.save(change(content), tmp_path / "bad.ckpt")
    with pytest.raises(SystemExit, match=message):
        run("from_official", "--checkpoint", tmp_path / "bad.ckpt", "--language_model", golden / "lm_mha",
            "--output", tmp_path / "model")  # fmt: skip
    assert not (tmp_path / "model").exists()


class Evil:
    def __reduce__(self):
        return os.system, ("true",)


def test_pickles_and_cut_torch_files_are_refused(golden, lightning, tmp_path):
    torch.save({"state_dict": {}, "evil": Evil()}, tmp_path / "evil.ckpt")
    whole = (lightning / "llamo_stage1_like.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    for name in ("evil.ckpt", "cut.ckpt", "absent.ckpt"):
        with pytest.raises(SystemExit, match=f"{name}: torch refuses to load it safely"):
            run("from_official", "--checkpoint", tmp_path / name, "--language_model", golden / "lm_mha",
                "--output", tmp_path / "model")  # fmt: skip


def test_molecule_stm_files(golden, tmp_path):
    """As distributed: a torch file with the prediction head in it."""
    tensors = {name: torch.from_numpy(array) for name, array in load_file(golden / "gin.safetensors").items()}
    torch.save({**tensors, "graph_pred_linear.weight": torch.zeros(1, 300)}, tmp_path / "molecule_model.pth")
    run("from_huggingface", "--language_model", golden / "lm_mha", "--output", tmp_path / "model",
        "--graph_encoder", tmp_path / "molecule_model.pth")  # fmt: skip
    stored = read_model(tmp_path / "model")
    assert set(stored.parts) == {"language_model", "graph_encoder"}
    table = below("graph_encoder/", stored.weights)["atom_embedding/table"][...]
    np.testing.assert_array_equal(table[123], 0)  # the fifth kind of chirality
    first = tensors["molecule_node_model.atom_encoder.atom_embedding_list.0.weight"].numpy()
    np.testing.assert_array_equal(table[:119], first)


# Damaged folders


@pytest.fixture
def folder(tmp_path):
    torch_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def resaved(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


NORM = "model.layers.1.input_layernorm.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(NORM), rf"missing: \['{NORM}'\]"),
        (lambda t: t.update(extra=np.zeros(1, np.float32)), r"unexpected: \['extra'\]"),
        (lambda t: t.update({NORM: np.ones(5, np.float32)}), rf"{NORM}: expected shape \(32,\), got \(5,\)"),
        (lambda t: t[NORM].__setitem__(3, np.nan), f"{NORM}: holds NaN"),
        (lambda t: t[NORM].__setitem__(3, np.inf), f"{NORM}: holds NaN or infinity"),
    ],
)
def test_damaged_tensors_are_named(folder, tmp_path, change, message):
    resaved(folder, change)
    with pytest.raises(SystemExit, match=message):
        run("from_huggingface", "--language_model", folder, "--output", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_truncated_and_foreign_files_are_named(folder, tmp_path):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(WeightsError, match=r"cut short in the tensors \['model.norm.weight'\]"):
        read_folder(folder)
    path.write_bytes(b"no weights")
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        read_folder(folder)
    path.rename(folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"pickled weights \(pytorch_model.bin\)"):
        read_folder(folder)


def test_the_index_is_checked(folder, tmp_path):
    index = folder / "model.safetensors.index.json"
    names = dict.fromkeys(load_file(folder / "model.safetensors"), "model.safetensors")
    index.write_text(json.dumps({"weight_map": names}))
    assert set(read_folder(folder)) == set(names)
    shutil.copy(folder / "model.safetensors", tmp_path / "outside.safetensors")
    for change, message in (
        ({NORM: "../outside.safetensors"}, "refused"),
        ({NORM: str(tmp_path / "outside.safetensors")}, "refused"),
        ({NORM: "absent.safetensors"}, "no such file"),
        ({"phantom": "model.safetensors"}, r"missing: \['phantom'\]"),
    ):
        index.write_text(json.dumps({"weight_map": {**names, **change}}))
        with pytest.raises(WeightsError, match=message):
            read_folder(folder)
    index.write_text("[]")
    with pytest.raises(WeightsError, match="no weight_map"):
        read_folder(folder)


def test_a_hub_id_without_network_says_what_to_do():
    with pytest.raises(WeightsError, match=r"hf download some-org/some-model --local-dir FOLDER"):
        huggingface.locate("some-org/some-model")
    with pytest.raises(WeightsError, match="no such folder"):
        huggingface.locate("/no/such/folder")


def test_layers_of_several_dtypes_become_float32(tmp_path):
    """As in models that somebody merged: the file's header knows one dtype for all layers."""
    layers = [np.full((2, 3), 1.5, ml_dtypes.bfloat16), np.full((2, 3), 1 / 3, np.float32)]
    write_file(tmp_path / "model.safetensors", {"kernel": Stacked([Layer(layer[None], 0) for layer in layers])})
    found = read_file(tmp_path / "model.safetensors")["kernel"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[...], np.stack([layer.astype(np.float32) for layer in layers]))


def test_a_torch_file_of_more_than_tensors_is_one_line(tmp_path):
    torch.save({"epoch": 3, "state_dict": {"a": torch.ones(2)}}, tmp_path / "model.pth")
    with pytest.raises(WeightsError, match=r"epoch is no tensor but int: .*from_official"):
        official.read_graph_encoder(tmp_path / "model.pth", official.GRAPH_ENCODER, [])


# Our own folders


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    config = helpers.model_config(lora_rank=4)
    definition, arrays = helpers.definition_and_arrays(config)
    model = definition.merge(arrays)
    folder = tmp_path_factory.mktemp("saved") / "model"
    model.save(folder, prompt=PromptConfig(style="plain", show_smiles=True))
    return folder, model


def test_saved_models_load_on_any_mesh(saved):
    folder, model = saved
    expected = parameters.flatten(nnx.state(model))
    for mesh in (None, sharding.make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))):
        loaded = LLaMo.load(folder, mesh)
        assert loaded.config == model.config  # adapters included
        arrays = parameters.flatten(nnx.state(loaded))
        jax.tree.map(np.testing.assert_array_equal, arrays, expected)
    kernel = arrays["language_model/layers/gate/kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(2, 8, 24)}
    with jax.set_mesh(mesh):
        within = parameters.flatten(nnx.state(LLaMo.load(folder, mesh)))
    jax.tree.map(np.testing.assert_array_equal, within, expected)
    batch = helpers.batch()
    np.testing.assert_array_equal(LLaMo.load(folder)(batch)[0], model(batch)[0])


def test_saved_folders_are_strict(saved, tmp_path):
    folder, model = saved
    with pytest.raises(DataError, match="exists already"):
        model.save(folder)
    with pytest.raises(WeightsError, match="not a model folder"):
        LLaMo.load(tmp_path)
    shutil.copytree(folder, tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "copy" / "config.json").write_text(json.dumps({**config, "schema_version": 99}))
    with pytest.raises(WeightsError, match="schema version 99"):
        LLaMo.load(tmp_path / "copy")
    del config["model"]["lora"]
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="lora"):
        LLaMo.load(tmp_path / "copy")
    shutil.copy(folder / "config.json", tmp_path / "copy")
    tensors = load_file(folder / "model.safetensors")
    name = "language_model/layers/query/lora_a"
    save_file({**tensors, name: tensors[name][:, :, :2].copy()}, tmp_path / "copy" / "model.safetensors")
    with pytest.raises(WeightsError, match=rf"{name}: expected shape"):
        LLaMo.load(tmp_path / "copy")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_digest_is_of_what_is_stored(tmp_path, dtype):
    """Training takes float32 masters of some weights, answering bfloat16 of all: the base is the same."""
    config = helpers.model_config()
    _, arrays = helpers.definition_and_arrays(config)
    weights = {n: x.astype(dtype) if n.startswith("language_model/") else x for n, x in arrays.items()}
    write_model(tmp_path / "model", ModelFolder(config, weights))
    mesh = sharding.single_device_mesh()
    digests = {}
    for kind in ("none", "int8"):
        variables = define_model(dataclasses.replace(config, quantize=kind)).variables
        for frozen in ("float32", "bfloat16"):
            wanted = parameters.abstract_arrays(variables, frozen, mesh, trained={})
            digests[kind, frozen] = checkpoints.load_weights(tmp_path / "model", wanted, kind).digest()
    assert len(set(digests.values())) == 1
    with pytest.raises(WeightsError, match="a quantised model is not stored"):
        LLaMo(dataclasses.replace(config, quantize="int8"), rngs=nnx.Rngs(0)).save(tmp_path / "small")


def test_writing_is_all_or_nothing(saved, tmp_path):
    _, model = saved
    broken = parameters.flatten(nnx.state(model))
    broken["projector/norm/bias"] = broken["projector/norm/bias"].at[0].set(jnp.nan)
    graphdef, state = nnx.split(model)
    with pytest.raises(WeightsError, match="projector/norm/bias: holds NaN"):
        nnx.merge(graphdef, parameters.unflatten(state, broken)).save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_language_model_alone_goes_out_again(folder, tmp_path):
    run("from_huggingface", "--language_model", folder, "--output", tmp_path / "ours")
    run("to_huggingface", "--checkpoint", tmp_path / "ours", "--output", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json", "graph_config.json", "model.safetensors"
    }  # fmt: skip
    theirs, ours = read_folder(folder), read_folder(tmp_path / "out")
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(tensor[...], ours[name][...], err_msg=name)


def test_lazy_arrays_are_read_in_parts(folder):
    """Every slice of every kind of lazy array is that of the whole."""
    _, arrays, _ = huggingface.read_language_model(folder)
    tensors = read_file(folder / "model.safetensors")
    kernel = arrays["layers/query/kernel"]
    whole = np.stack([tensors[f"model.layers.{i}.self_attn.q_proj.weight"][...].T for i in range(2)])
    np.testing.assert_array_equal(kernel[...], whole)
    for index in (1, np.s_[1:2], np.s_[:, 3:9], np.s_[0:1, 5:7, 30:], np.s_[:, :, 4:8]):
        np.testing.assert_array_equal(kernel[index], whole[index])
    embedding = arrays["embedding"]
    np.testing.assert_array_equal(embedding[10:20, 3:5], tensors["model.embed_tokens.weight"][...][10:20, 3:5])


@pytest.fixture
def base(tmp_path, few):
    """A language model from Hugging Face, in "lm", as a model folder and the configuration of a stage 1 on it."""
    torch_model(vocab_size=2048).save_pretrained(tmp_path / "lm")
    decoder, language_model, hf = huggingface.read_language_model(tmp_path / "lm")
    model = dataclasses.replace(helpers.model_config(), language_model=decoder)
    weights = prefixed("language_model/", language_model)
    stored = ModelFolder(model, weights, PromptConfig(style="plain", show_smiles=True), ("language_model",), hf)
    write_model(tmp_path / "base", stored, load_tokenizer(few / "description" / "tokenizer"))
    config = stage1.get_config(str(tmp_path / "base"))
    config.data.update({"source": str(few / "description"), "rows": 8, "tokens_per_row": 256})
    config.train.update({"steps": 2, "warmup_steps": 1, "log_every": 2, "eval_every": 2, "checkpoint_every": 2})
    return config


def test_what_a_model_folder_is_not_good_for_is_refused(base, trained, tmp_path):
    assert base.init_from == str(tmp_path / "base")
    base.model.language_model.rope_theta = 7.0
    with pytest.raises(ConfigError, match=r"rope_theta=7.0 \(there 10000.0\)"):
        runs.train(runs.read_config(base), tmp_path / "wrong")
    with pytest.raises(workdir.CheckpointError, match="not a whole model"):
        Assistant.load(tmp_path / "base")
    with pytest.raises(SystemExit, match="has no adapters"):
        run("to_peft", "--checkpoint", trained, "--output", tmp_path / "out")


def test_a_run_starts_from_a_model_folder_and_exports(base, tmp_path):
    """Stage 1 with a language model from Hugging Face, which comes out as it went in."""
    runs.train(runs.read_config(base), tmp_path / "run")
    run("to_huggingface", "--checkpoint", tmp_path / "run", "--output", tmp_path / "out")
    theirs, ours = read_folder(tmp_path / "lm"), read_folder(tmp_path / "out")
    for name, tensor in theirs.items():  # frozen all the while
        np.testing.assert_array_equal(tensor[...], ours[name][...], err_msg=name)
    assistant = Assistant.load(tmp_path / "run", decoding=DecodingConfig(max_new_tokens=4))
    assert assistant.ask("What is it?", smiles="CCO") is not None
    generation = transformers.GenerationConfig.from_pretrained(tmp_path / "out")
    ends = generation.eos_token_id
    assert tuple(ends if isinstance(ends, list) else [ends]) == assistant.generator.stop_ids
    assert generation.bos_token_id == assistant.generator.encoder.tokenizer.bos_id


def test_without_a_projector_it_is_the_papers():
    """An attention for each level; the original's code has one for all."""
    assert official.graph_configs(None, None)[1].share_level_attention is False


def test_parts_of_other_processes_are_joined_to_one_array(monkeypatch):
    """Not stacked, process by process."""
    monkeypatch.setattr(
        weights.multihost_utils, "process_allgather",
        lambda array, tiled=False: np.ones((8, 4) if tiled else (2, 4, 4)),
    )  # fmt: skip
    assert weights._on_host(mock.Mock(spec=jax.Array, is_fully_addressable=False)).shape == (8, 4)
