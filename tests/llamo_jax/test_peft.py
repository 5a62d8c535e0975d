"""LoRA adapters in and out of PEFT's files, with real torch and peft on the other side."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from etils import epath
from flax import nnx
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file

from configs import stage2
from llamo_jax import parameters, runs, sharding
from llamo_jax.config import MeshConfig
from llamo_jax.convert import __main__ as convert
from llamo_jax.convert.names import below
from llamo_jax.generation.cpu import for_decoding
from llamo_jax.models import LLaMo, layers
from llamo_jax.models.folder import read_model
from llamo_jax.models.lora import LoRAConfig, add_adapters, with_dropout
from llamo_jax.parameters import WeightsError
from llamo_jax.training import workdir
from tests import helpers
from tests.llamo_jax.test_convert import our_logits, run, torch_logits, torch_model
from tests.llamo_jax.test_training import small_run


@pytest.fixture(scope="module")
def ids():
    return np.random.default_rng(0).integers(3, 96, (2, 20))


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """A folder with a tiny bfloat16 model, and an adapter on four of its projections, as PEFT saves them."""
    folder = tmp_path_factory.mktemp("adapted")
    base = torch_model("qwen2").to(torch.bfloat16)
    base.save_pretrained(folder / "base")
    targets = ["q_proj", "v_proj", "o_proj", "down_proj"]
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=12, lora_dropout=0.1, target_modules=targets)).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder / "adapter")
    return folder


def with_graph_side(stored):
    """A model folder's language model in a whole model, as after training."""
    config = dataclasses.replace(stored.config, frozen_dtype="float32", compute_dtype="float32")
    graphdef, state = nnx.split(LLaMo(config, rngs=nnx.Rngs(0)))
    arrays = parameters.flatten(state) | {name: jnp.asarray(array[...]) for name, array in stored.weights.items()}
    return nnx.merge(graphdef, parameters.unflatten(state, arrays))


def loaded(folder, adapter=None):
    """A saved model in torch, in float32."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return (PeftModel.from_pretrained(model, adapter) if adapter else model).eval()


def test_from_peft_and_back(tmp_path, adapted, ids):
    folder = adapted
    expected = torch_logits(loaded(folder / "base", folder / "adapter"), ids)
    run("from_huggingface", "--language_model", folder / "base", "--adapter", folder / "adapter",
        "--output", tmp_path / "ours")  # fmt: skip
    stored = read_model(tmp_path / "ours")
    assert (stored.config.lora.rank, stored.config.lora.alpha, stored.config.lora.dropout) == (4, 12.0, 0.1)
    assert stored.config.lora.targets == ("language_model/layers/(query|value|output|down)",)
    assert stored.parts == ("language_model",)
    with pytest.raises(WeightsError, match="holds only"):
        LLaMo.load(tmp_path / "ours")

    with_graph_side(stored).save(tmp_path / "whole")
    run("to_peft", "--checkpoint", tmp_path / "whole", "--base_model", folder / "base", "--output", tmp_path / "peft")
    run("to_peft", "--checkpoint", tmp_path / "whole", "--output", tmp_path / "unnamed")
    assert json.loads((tmp_path / "unnamed" / "adapter_config.json").read_text())["base_model_name_or_path"] == ""
    options = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert [options[name] for name in ("r", "lora_alpha", "lora_dropout")] == [4, 12, 0.1]
    again = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    original = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert set(again) == set(original)
    for name, tensor in original.items():
        np.testing.assert_array_equal(again[name], tensor)
    np.testing.assert_array_equal(torch_logits(loaded(folder / "base", tmp_path / "peft"), ids), expected)
    decoder, language_model = stored.config.language_model, below("language_model/", stored.weights)
    np.testing.assert_allclose(our_logits(decoder, stored.config.lora, language_model, ids), expected, atol=2e-5)

    run("to_huggingface", "--checkpoint", tmp_path / "whole", "--output", tmp_path / "merged")
    merged = loaded(tmp_path / "merged")
    assert merged.config.model_type == "qwen2"
    # the base's weights are bfloat16, and so are the merged ones
    assert np.abs(torch_logits(merged, ids) - expected).max() < 0.05 * np.abs(expected).max()


FIRST, SECOND = (f"model.layers.{layer}.self_attn" for layer in (0, 1))
TARGETS = ["q_proj", "v_proj", "down_proj"]
KINDS: dict[str, dict] = {
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "both": {"use_dora": True, "use_rslora": True},
    "of projections": {"rank_pattern": {"v_proj": 2, r"mlp\.down_proj": 6}, "alpha_pattern": {"v_proj": 5}},
    "of projections, dora": {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"q_proj": 9}, "use_dora": True},
    "of layers": {"rank_pattern": {r"layers\.1\.self_attn\.q_proj": 2, "layers.0.mlp.down_proj": 5},
                  "alpha_pattern": {f"{SECOND}.v_proj": 3}},
    "of layers, rslora, dora": {"rank_pattern": {f"{FIRST}.q_proj": 6}, "use_rslora": True, "use_dora": True},
    "all-linear": {"target_modules": "all-linear"},
    "expression": {"target_modules": r".*\.(q|up)_proj"},
    "full paths": {"target_modules": [f"{FIRST}.q_proj", f"{SECOND}.q_proj", f"{SECOND}.o_proj"]},
    "some layers": {"target_modules": ["q_proj", "k_proj"], "layers_to_transform": [1]},
    "a layer by pattern": {"layers_to_transform": 0, "layers_pattern": "layers"},
    "excluded": {"exclude_modules": ["v_proj", f"{FIRST}.q_proj"]},
    "an expression excluded": {"exclude_modules": r".*layers\.0\..*down_proj"},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_what_peft_offers_and_back(tmp_path, ids, kind):
    """Logits of real peft: from its files, again in its files, and merged."""
    torch_model("qwen2").save_pretrained(tmp_path / "base")
    options = {"target_modules": TARGETS, "r": 4, "lora_alpha": 12, **KINDS[kind]}
    model = get_peft_model(loaded(tmp_path / "base"), LoraConfig(**options))
    randomised(model)
    expected = torch_logits(model.eval(), ids)
    model.save_pretrained(tmp_path / "adapter")
    assert np.abs(expected - torch_logits(loaded(tmp_path / "base"), ids)).max() > 0.1
    run("from_huggingface", "--language_model", tmp_path / "base", "--adapter", tmp_path / "adapter",
        "--output", tmp_path / "ours")  # fmt: skip
    stored = read_model(tmp_path / "ours")
    lora, arrays = stored.config.lora, below("language_model/", stored.weights)
    np.testing.assert_allclose(our_logits(stored.config.language_model, lora, arrays, ids), expected, atol=2e-5)

    with_graph_side(stored).save(tmp_path / "whole")
    run("to_peft", "--checkpoint", tmp_path / "whole", "--base_model", tmp_path / "base", "--output", tmp_path / "peft")
    again = loaded(tmp_path / "base", tmp_path / "peft")
    np.testing.assert_allclose(torch_logits(again, ids), expected, atol=1e-5)
    run("to_huggingface", "--checkpoint", tmp_path / "whole", "--output", tmp_path / "merged")
    np.testing.assert_allclose(torch_logits(loaded(tmp_path / "merged"), ids), expected, atol=1e-5)


def randomised(model):
    """Gives the adapters of a model of peft random weights; DoRA's norms become up to a third larger."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1 + torch.rand_like(parameter) / 3)
            elif "lora_" in name:
                parameter.copy_(0.3 * torch.randn_like(parameter))


@pytest.mark.parametrize("kind", ["dora", "both", "of layers, rslora, dora"])
def test_gradients_of_dora_are_those_of_peft(tmp_path, ids, kind):
    """Of every adapter's variable; the norm below is a constant to both."""
    torch_model("qwen2").save_pretrained(tmp_path / "base")
    options = {"target_modules": TARGETS, "r": 4, "lora_alpha": 12, "lora_dropout": 0.0, **KINDS[kind]}
    model = get_peft_model(loaded(tmp_path / "base"), LoraConfig(**options))
    randomised(model)
    model.save_pretrained(tmp_path / "adapter")
    weight = torch.from_numpy(np.random.default_rng(2).normal(size=(*ids.shape, 96)).astype(np.float32))
    (model(torch.from_numpy(ids)).logits * weight).mean().backward()
    theirs = {name.replace(".default", ""): p.grad.numpy() for name, p in model.named_parameters() if "lora_" in name}
    run("from_huggingface", "--language_model", tmp_path / "base", "--adapter", tmp_path / "adapter",
        "--output", tmp_path / "ours")  # fmt: skip
    stored = read_model(tmp_path / "ours")
    arrays = {name: jnp.asarray(x[...]) for name, x in below("language_model/", stored.weights).items()}
    adapters = {name: x for name, x in arrays.items() if "/lora_" in name}

    def loss(adapters):
        logits = our_logits(stored.config.language_model, stored.config.lora, arrays | adapters, ids)
        return (logits * weight.numpy()).mean()

    ours = jax.grad(loss)(adapters)
    for layer in (0, 1):
        for name, module in (("query", "self_attn.q_proj"), ("value", "self_attn.v_proj"), ("down", "mlp.down_proj")):
            stem = f"base_model.model.model.layers.{layer}.{module}"
            a, b = theirs[f"{stem}.lora_A.weight"].T, theirs[f"{stem}.lora_B.weight"].T
            rank = a.shape[1]
            got = {part: np.asarray(ours[f"layers/{name}/lora_{part}"][layer]) for part in ("a", "b", "magnitude")}
            lora, path = stored.config.lora, f"language_model/layers/{name}"
            own = lora.alpha / np.sqrt(rank) if lora.rank_stabilized else lora.alpha / rank
            np.testing.assert_allclose(got["a"][:, :rank], a, atol=2e-6)
            np.testing.assert_allclose(got["b"][:rank] * own / lora.scale_of(path), b, atol=2e-6)
            np.testing.assert_allclose(got["magnitude"], theirs[f"{stem}.lora_magnitude_vector.weight"], atol=2e-6)
            assert not got["a"][:, rank:].any()  # what was filled up stays zero in training
            assert not got["b"][rank:].any()


def dora_model():
    """A whole model with DoRA on two projections and its graph side, whose adapters do something."""
    config = helpers.model_config(lora_rank=4)
    config = dataclasses.replace(config, lora=dataclasses.replace(config.lora, dora=True, dropout=0.2))
    definition, arrays = helpers.definition_and_arrays(config)
    keys = dict(zip(arrays, jax.random.split(jax.random.key(5), len(arrays)), strict=True))
    changed = {name: 0.2 * jax.random.normal(keys[name], x.shape) for name, x in arrays.items() if "/lora_" in name}
    return definition, {**arrays, **changed}


@pytest.mark.parametrize("mesh", [None, MeshConfig(data=1, fsdp=4, tensor=2)])
def test_dora_generates_from_kept_factors(mesh):
    """Where nothing is trained its factors are computed once; on one CPU device, in that device's own form."""
    definition, arrays = dora_model()
    mesh = sharding.single_device_mesh() if mesh is None else sharding.make_mesh(mesh)
    batch = helpers.batch()
    expected = helpers.logits(definition, arrays, batch)
    specs = parameters.abstract_arrays(definition.variables, "float32", mesh, trained={})
    placed = {name: jax.device_put(x, specs[name].sharding) for name, x in arrays.items()}
    converted, kept = for_decoding(definition, placed, mesh)
    gains = {name: x for name, x in kept.items() if name.endswith("lora_gain")}
    assert len(gains) == 2 * (1 if mesh.size > 1 else 2)  # two projections; layers apart on one device
    assert all(float(jnp.abs(x - 1).max()) > 0.01 for x in gains.values())
    real = np.asarray(batch.segments) > 0
    with jax.set_mesh(mesh):
        got = helpers.logits(converted, kept, batch)
    np.testing.assert_allclose(got[real], expected[real], atol=3e-5)


def test_dropout_of_dora_leaves_the_map_itself_alone():
    """Where everything is dropped, what is left is the plain map; peft computes it so."""
    config = LoRAConfig(rank=2, alpha=4.0, dropout=0.999999, targets=("out",), dora=True)
    model = nnx.Dict(out=layers.Linear(8, 4, (None, None), rngs=nnx.Rngs(0), use_bias=False))
    x = jax.random.normal(jax.random.key(0), (3, 8))
    plain = model["out"](x)
    add_adapters(model, config, rngs=nnx.Rngs(1))
    model["out"].lora_magnitude[...] += 0.5
    np.testing.assert_allclose(with_dropout(model, jax.random.key(1))["out"](x), plain, atol=1e-6)
    assert float(jnp.abs(model["out"](x) - plain).max()) > 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, r"missing: \['base_model.model.model.layers.0.mlp.down_proj.lora_magnitude_vector'"),
        ({"use_dora": True, "layers_to_transform": [0]}, "use_dora=True is not implemented for some of the layers"),
        ({"use_rslora": "yes"}, "use_rslora must be true or false, not 'yes'"),
        ({"rank_pattern": {"q_proj": 3}}, r"lora_A.weight: expected shape \(3, 32\), got \(4, 32\)"),
        ({"rank_pattern": {"layers.1.*q_proj": 3}}, r"lora_A.weight: expected shape \(3, 32\), got \(4, 32\)"),
        ({"rank_pattern": {"q_proj": "3"}}, r"rank_pattern\['q_proj'\] must be a whole number above 0, not '3'"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern must be an object"),
        ({"alpha_pattern": {"(q_proj": 3}}, r"alpha_pattern: '\(q_proj' is no regular expression"),
        ({"target_modules": "all-linear"}, "missing: .*gate_proj.lora_A"),
        ({"target_modules": ".*(q_proj|lm_head)|lm_head"}, "covers lm_head"),
        ({"target_modules": r".*\.c_attn"}, "matches no projection"),
        ({"target_modules": None}, "matches no projection"),
        ({"target_modules": {"q_proj": 1}}, "target_modules must be a text or a list of names"),
        ({"layers_to_transform": [0]}, "unexpected: .*layers.1.mlp.down_proj"),
        ({"layers_to_transform": ["0"]}, "layers_to_transform must be numbers of layers"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\] is not implemented"),
        ({"init_lora_weights": {"a": 1}}, "init_lora_weights={'a': 1} changed the base"),
        ({"lora_alpha": float("nan")}, "lora_alpha must be a number, not nan"),
        ({"target_modules": ["embed_tokens"]}, "'embed_tokens' is not a projection"),
        ({"peft_type": "IA3"}, "'IA3' is not LORA"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa_niter_4' changed the base"),
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora' changed the base"),
        ({"alora_invocation_tokens": [5, 7]}, r"alora_invocation_tokens=\[5, 7\] is not implemented"),
        ({"an_option_of_tomorrow": 1}, "an_option_of_tomorrow=1 is not implemented"),
        ({"r": None}, "adapter_config.json: r must be a whole number above 0, not None"),
        ({"r": "4"}, "r must be a whole number above 0, not '4'"),
        ({"r": 0}, "r must be a whole number above 0, not 0"),
        ({"lora_alpha": "12"}, "lora_alpha must be a number, not '12'"),
        ({"lora_dropout": None}, "lora_dropout must be a number, not None"),
        ({"lora_dropout": 1.5}, "adapter_config.json: .*dropout"),
        ({"r": 5}, r"lora_A.weight: expected shape \(5, 32\), got \(4, 32\)"),
    ],
)
def test_adapters_that_are_not_implemented_are_refused(adapted, tmp_path, change, message):
    folder = adapted
    shutil.copytree(folder / "adapter", tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(SystemExit, match=message):
        run("from_huggingface", "--language_model", folder / "base", "--adapter", tmp_path / "adapter",
            "--output", tmp_path / "ours")  # fmt: skip


def test_adapters_are_not_written_for_another_base(adapted, tmp_path):
    """Another model, the same one with other weights; the right one passes, in whatever dtype it is kept."""
    run("from_huggingface", "--language_model", adapted / "base", "--adapter", adapted / "adapter",
        "--output", tmp_path / "ours")  # fmt: skip
    with_graph_side(read_model(tmp_path / "ours")).save(tmp_path / "whole")
    torch_model("qwen2", seed=1).to(torch.bfloat16).save_pretrained(tmp_path / "other")
    torch_model("qwen2", num_hidden_layers=3).to(torch.bfloat16).save_pretrained(tmp_path / "deeper")
    for base, message in (
        ("other", r"has other weights than the adapters stand on: \d+ of \d+ arrays differ, such as "),
        ("deeper", r"is another model: num_layers=2 \(there 3\)"),
    ):
        with pytest.raises(SystemExit, match=message):
            run("to_peft", "--checkpoint", tmp_path / "whole", "--base_model", tmp_path / base,
                "--output", tmp_path / "peft")  # fmt: skip
        assert not (tmp_path / "peft").exists()


def test_a_run_that_trained_its_language_model_has_no_adapters_to_give(few, tmp_path):
    """Adapters alone would lack what was trained beside them."""

    def config(**changes):
        found = small_run(few, **changes)
        return dataclasses.replace(found, train=dataclasses.replace(found.train, steps=2, checkpoint_every=2))

    runs.train(config(), tmp_path / "first")
    second = config(module=stage2, init_from=str(tmp_path / "first"))
    rules = ((".*/lora_.*", True), ("language_model/norm/.*", True), (".*", False))
    for name, train in (("only", second.train), ("both", dataclasses.replace(second.train, trainable=rules))):
        runs.train(dataclasses.replace(second, train=train), tmp_path / name)
    with pytest.raises(
        SystemExit, match=r"its language model was trained, such as language_model/norm/scale; .*use to_hug"
    ):
        run("to_peft", "--checkpoint", tmp_path / "both", "--output", tmp_path / "peft")
    rules = ((".*/lora_.*", True), ("language_model/layers/mlp_norm/.*", True), (".*", False))
    assert workdir.trained_language_model(tmp_path / "only") == []
    changed = json.loads((tmp_path / "only" / "config.json").read_text())
    changed["train"]["trainable"] = rules
    (tmp_path / "norms").mkdir()
    (tmp_path / "norms" / "config.json").write_text(json.dumps(changed))
    assert workdir.trained_language_model(tmp_path / "norms") == ["language_model/layers/mlp_norm/scale"]
    # on a language model that an earlier run has trained: that one is the base
    with pytest.raises(SystemExit, match=r"stand on a language model that .*first has trained; .*give --base_model"):
        run("to_peft", "--checkpoint", tmp_path / "only", "--output", tmp_path / "peft")
    run("to_huggingface", "--checkpoint", tmp_path / "first", "--output", tmp_path / "base")
    # what was trained is exported as it was, also where the frozen weights are kept in fewer bits
    shutil.copytree(tmp_path / "only", tmp_path / "short")
    content = json.loads((tmp_path / "short" / "config.json").read_text())
    content["model"]["frozen_dtype"] = "bfloat16"
    (tmp_path / "short" / "config.json").write_text(json.dumps(content))
    exact, short = (convert._read(epath.Path(tmp_path / name)).weights for name in ("only", "short"))
    for path, array in exact.items():  # the first run has trained all of it
        assert short[path].dtype == np.float32, path
        np.testing.assert_array_equal(short[path], array, err_msg=path)
    run("to_peft", "--checkpoint", tmp_path / "only", "--base_model", tmp_path / "base", "--output", tmp_path / "peft")
