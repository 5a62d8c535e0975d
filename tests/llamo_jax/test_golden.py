"""The same numbers as the original, by the small set of them that every clone has (tests/golden/make.py).

test_parity.py compares every component by the whole set, where it is at hand.
"""

import dataclasses
import json
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks import parity
from benchmarks.parity import Comparison, Golden, batch_of, graphs_of, prompts_of
from data_pipeline.vocabulary import MOTIF_FEATURES
from llamo_jax import parameters
from llamo_jax.config import DecodingConfig, Int, setting, settings
from llamo_jax.convert import huggingface, peft
from llamo_jax.convert.names import language_model_rules, lora_rules, prefixed
from llamo_jax.generation.beams import beam_search
from llamo_jax.generation.decode import greedy
from llamo_jax.generation.prompts import collate_prompts
from llamo_jax.models import GINConfig, MultiLevelConfig
from llamo_jax.models.graph_encoders.gin import GINLayer
from llamo_jax.models.interfaces import PROJECTORS, ProjectorConfig
from llamo_jax.models.torch_names import from_torch, to_torch
from llamo_jax.training.loss import cross_entropy
from tests import helpers
from tests.golden.make import COLUMNS, LAYER, SHOWN, from_planes

HERE = Path(__file__).resolve().parents[1] / "golden"
Q = 28


@pytest.fixture(scope="module")
def small():
    return Golden(HERE)


def checked(result: Comparison, at_least: int) -> None:
    assert result.failures == []
    assert result.count >= at_least


def test_features(small):
    checked(parity.compare(small, "features"), 250)


def test_prompts(small):
    checked(parity.compare(small, "prompt", tokenizers=("tiny",)), 40)


def test_a_layer_of_the_graph_encoder(small):
    """From one golden level to the next: messages over bonds, MLP, both normalisations, ReLU."""
    arrays = small.npz("graph_side")
    config = GINConfig.paper(num_layers=LAYER + 1)
    tensors = {name.partition("/")[2]: array for name, array in arrays.items() if name.startswith("layer/")}
    tensors = {name: from_planes(array) if array.ndim == 3 else array for name, array in tensors.items()}
    rules = [rule._replace(layer=None) for rule in config.torch_names() if rule.layer == LAYER]
    tensors, _ = config.adapted(tensors)
    layer = GINLayer(config, rngs=nnx.Rngs(0), stack=1)
    shapes = {f"layers/{n}": tuple(x.shape[1:]) for n, x in parameters.flatten(nnx.state(layer)).items()}
    found = from_torch(rules, tensors, shapes)
    ours = {name.removeprefix("layers/"): jnp.asarray(np.asarray(array[...])) for name, array in found.items()}
    graphdef, state = nnx.split(layer)
    layer = nnx.merge(graphdef, parameters.unflatten(jax.tree.map(lambda x: x[0], state), ours))

    graphs = graphs_of(arrays)
    (molecules,) = [parity._collated([[parity.conversation_of(np.zeros(2, np.int64), None, graphs)]], 2).molecules]
    count = len(arrays[f"h_{LAYER}"])
    nodes = jnp.zeros((1, molecules.atoms.nodes.shape[1], 300)).at[0, :count].set(arrays[f"h_{LAYER}"])
    mask = jnp.arange(nodes.shape[1])[None] < count
    found, _ = layer(molecules.atoms._replace(nodes=nodes), mask, jnp.array(False), False, None)
    np.testing.assert_allclose(found[0, :count], arrays[f"h_{LAYER + 1}"], atol=2e-4)


def test_the_end_of_the_projector(small):
    """LayerNorm and MLP from 300 to the language model's width."""
    arrays = small.npz("graph_side")
    config = MultiLevelConfig.paper(share_level_attention=True)
    module = config.build(300, 6, 64, rngs=nnx.Rngs(0))
    names = ("net.", "layer_norm.")
    rules = [rule for rule in config.torch_names(6) if rule.theirs[0].startswith(names)]
    tensors = {name.partition("/")[2]: array for name, array in arrays.items() if name.startswith("projector/")}
    own = parameters.flatten(nnx.state(module))
    shapes = {name: tuple(x.shape) for name, x in own.items() if name.startswith(("mlp/", "norm/"))}
    ours = from_torch(rules, tensors, shapes)
    module = helpers.load(module, own | {name: np.asarray(array[...]) for name, array in ours.items()})
    tokens = module.norm(jnp.asarray(arrays["pre_layer_norm"]))
    for i, linear in enumerate(module.mlp):
        tokens = linear(jax.nn.silu(tokens) if i else tokens)
    assert tokens.shape == (SHOWN, Q, 64)
    np.testing.assert_allclose(tokens, arrays["output"], atol=2e-4)


@PROJECTORS.register
@settings
class GivenConfig(ProjectorConfig):
    """Graph tokens that are parameters: the original's, so that its language model can be compared by itself."""

    kind: Literal["given"] = setting("graph tokens as parameters", default="given")
    molecules: Int = setting("how many are given", ge=1)

    def num_tokens(self, levels):
        return Q

    def build(self, graph_width, levels, out_width, *, rngs):
        return Given(self.molecules, out_width)

    def flops(self, shape, graph_width, levels, out_width, linear, *, to_levels):
        raise AssertionError("not counted")


class Given(nnx.Module):
    def __init__(self, molecules, out_width):
        tokens = jnp.zeros((molecules, Q, out_width))
        self.tokens = nnx.Param(tokens, out_sharding=(None, None, None), eager_sharding=False)

    def __call__(self, levels, molecules):
        slots = molecules.atoms.n_node.shape[1]
        return jnp.pad(self.tokens[...], ((0, slots - len(self.tokens)), (0, 0), (0, 0)))[None], {}


def language_model(small, tokens, *, adapter=False):
    """Definition and arrays of the golden language model behind given graph tokens."""
    decoder, weights, _ = huggingface.read_language_model(HERE / "lm_gqa")
    lora = huggingface.NO_LORA
    if adapter:
        lora, found = peft.read_adapter(HERE / "lora_gqa", decoder)
        weights |= found
    config = dataclasses.replace(
        helpers.model_config(graph_width=8),
        projector=GivenConfig(molecules=len(tokens)),
        language_model=decoder,
        lora=dataclasses.replace(lora, dropout=0.0),
    )
    definition, arrays = helpers.definition_and_arrays(config)
    arrays = {name: x for name, x in arrays.items() if name.startswith("graph_encoder/")}
    arrays |= {n: jnp.asarray(np.asarray(x[...], np.float32)) for n, x in prefixed("language_model/", weights).items()}
    return definition, arrays | {"projector/tokens": jnp.asarray(tokens)}


def carbon(count):
    """Molecules whose graphs nobody reads."""
    atoms = {"x": np.zeros((count, 9), int), "edge_index": np.zeros((2, 0), int), "edge_attr": np.zeros((0, 3), int)}
    empty = {"motif": np.zeros((0, MOTIF_FEATURES), np.uint8), "motif_ptr": np.zeros(count + 1, int)}
    return graphs_of({**atoms, **empty, "batch": np.arange(count)})


def training_batch(arrays):
    ids, mask = arrays["input_ids"], arrays["attention_mask"].astype(bool)
    return batch_of(ids, mask, arrays["labels"], carbon(len(ids)), arrays["num_graphs"]), mask


@pytest.mark.parametrize("adapter", [False, True])
def test_logits_and_loss(small, adapter):
    arrays, about = small.npz("language_model"), small.json("language_model")
    definition, weights = language_model(small, arrays["query_features"], adapter=adapter)
    batch, mask = training_batch(arrays)
    logits = np.asarray(helpers.logits(definition, weights, batch))
    name = "lora_logits" if adapter else "logits"
    np.testing.assert_allclose(logits[mask][:, COLUMNS], arrays[name][mask], atol=1e-3)
    model = definition.merge(weights)
    total, count = cross_entropy(model, model.hidden_states(batch)[0], batch)
    assert float(total / count) == pytest.approx(about["lora_loss" if adapter else "loss"], abs=1e-4)


def test_merged_adapter(small):
    arrays = small.npz("language_model")
    definition, weights = language_model(small, arrays["query_features"])
    adapted, with_adapter = language_model(small, arrays["query_features"], adapter=True)
    lora, _ = peft.read_adapter(HERE / "lora_gqa", huggingface.read_language_model(HERE / "lm_gqa")[0])
    merged = huggingface.merged(with_adapter, lora)
    batch, mask = training_batch(arrays)
    weights |= {name: jnp.asarray(np.asarray(array[...])) for name, array in merged.items()}
    logits = np.asarray(helpers.logits(definition, weights, batch))
    np.testing.assert_allclose(logits[mask][:, COLUMNS], arrays["merged_logits"][mask], atol=1e-3)
    np.testing.assert_allclose(logits[mask], helpers.logits(adapted, with_adapter, batch)[mask], atol=1e-4)


def test_gradients_of_the_adapter(small):
    arrays, about = small.npz("language_model"), small.json("language_model")
    definition, weights = language_model(small, arrays["query_features"], adapter=True)
    batch, _ = training_batch(arrays)
    trained = {name: x for name, x in weights.items() if name.rpartition("/")[2] in ("lora_a", "lora_b")}
    rest = {name: x for name, x in weights.items() if name not in trained}

    def mean_loss(trained):
        model = definition.merge(trained, rest)
        total, count = cross_entropy(model, model.hidden_states(batch)[0], batch)
        return total / count

    found = {n.removeprefix("language_model/"): x for n, x in jax.jit(jax.grad(mean_loss))(trained).items()}
    decoder = huggingface.read_language_model(HERE / "lm_gqa")[0]
    lora, _ = peft.read_adapter(HERE / "lora_gqa", decoder)
    theirs = to_torch(lora_rules(decoder, lora, ".default"), found)
    theirs = {f"language_model.{name}": np.asarray(x[...], np.float64) for name, x in theirs.items()}
    assert len(about["lora_gradient_norms"]) == 16
    for name, norm in about["lora_gradient_norms"].items():
        assert np.linalg.norm(theirs[name]) == pytest.approx(norm, rel=2e-3), name
    whole = {name.partition("/")[2]: x for name, x in arrays.items() if name.startswith("gradient/")}
    assert len(whole) == 4
    for name, expected in whole.items():
        np.testing.assert_allclose(theirs[name], expected, rtol=0, atol=2e-3 * np.abs(expected).max(), err_msg=name)


RUNS = [("", False, "eos_token_id"), ("_eos", False, "eos_variant_token"), ("", True, "eos_token_id")]


def answers(small, adapter):
    arrays = small.npz("language_model")
    definition, weights = language_model(small, arrays["gen_query_features"], adapter=adapter)
    prompts = prompts_of(arrays["gen_input_ids"], arrays["gen_attention_mask"], carbon(3))
    return definition, weights, collate_prompts(prompts)


@pytest.mark.parametrize(("suffix", "adapter", "eos"), RUNS)
def test_greedy_answers(small, suffix, adapter, eos):
    arrays, about = small.npz("language_model"), small.json("language_model")
    name = f"{'lora_' * adapter}greedy{suffix}"
    stop = about.get(eos) or json.loads((HERE / "lm_gqa" / "config.json").read_text())[eos]
    definition, weights, batch = answers(small, adapter)
    expected = arrays[f"{name}_sequences"]
    found = greedy(definition, weights, batch, max_new_tokens=expected.shape[1], eos_id=stop)
    result = Comparison()
    parity._tokens_equal(result, name, np.asarray(found.tokens)[:3], expected, stop)
    real = np.cumsum(expected == stop, axis=1) - (expected == stop) == 0
    chosen = arrays[f"{name}_chosen_logprob"].T
    result.close("log-probabilities", np.asarray(found.log_probabilities)[:3][real], chosen[real], atol=2e-4)
    checked(result, 4)


@pytest.mark.parametrize(("suffix", "adapter", "eos"), [(s, a, e + "_beam" * bool(s)) for s, a, e in RUNS])
def test_beams(small, suffix, adapter, eos):
    arrays, about = small.npz("language_model"), small.json("language_model")
    name = f"{'lora_' * adapter}beam4{suffix}"
    stop = about.get(eos) or json.loads((HERE / "lm_gqa" / "config.json").read_text())[eos]
    definition, weights, batch = answers(small, adapter)
    expected = arrays[f"{name}_sequences"]
    decoding = DecodingConfig(max_new_tokens=expected.shape[1], num_beams=4)
    found = beam_search(definition, weights, batch, decoding=decoding, stop_ids=(stop,))
    result = Comparison()
    parity._tokens_equal(result, name, np.asarray(found.tokens)[:3, 0], expected, stop)
    result.close("scores", np.asarray(found.scores)[:3, 0], arrays[f"{name}_sequences_scores"], atol=2e-4)
    if f"{name}_all_sequences" in arrays:
        every = arrays[f"{name}_all_sequences"]
        parity._tokens_equal(result, "all", np.asarray(found.tokens)[:3].reshape(12, -1), every, stop)
    checked(result, 4)


def test_the_language_model_table_reads_in_both_directions(small):
    decoder, weights, _ = huggingface.read_language_model(HERE / "lm_gqa")
    theirs = to_torch(language_model_rules(decoder), weights)
    stored = huggingface.read_folder(HERE / "lm_gqa")
    assert set(theirs) == set(stored)
    for name, tensor in stored.items():
        np.testing.assert_array_equal(np.asarray(theirs[name][...]), tensor[...])
