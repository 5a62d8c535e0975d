"""The same numbers as the original implementation, component by component; tolerances stand in benchmarks.parity."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import bfloat16, parity
from benchmarks.parity import Comparison, Golden
from data_pipeline.batch import EncodedConversation
from llamo_jax.convert.huggingface import NO_LORA
from llamo_jax.convert.names import prefixed
from llamo_jax.generation.decode import greedy
from llamo_jax.generation.prompts import collate_prompts
from llamo_jax.models.definition import define_model
from tests import helpers


@pytest.fixture(scope="module")
def reference(golden):
    return Golden(golden)


COMPARED = {
    "features": 250, "gin_eval": 6, "gin_train": 26, "projector": 2, "logits": 4, "loss": 4, "gradients": 400,
    "adamw": 2, "greedy": 24, "beam": 38, "lora": 4, "lora_merged": 4, "prompt": 80, "checkpoint": 10,
}  # fmt: skip
"""How many arrays of a component are compared, at least."""


@pytest.mark.parametrize("component", parity.COMPONENTS)
def test_equals_the_original(reference, component):
    # every case of AdamW is in the benchmark; here one of each stage and rate
    options = {"only": "mha stage1_default|gqa stage2_fast"} if component == "adamw" else {}
    result = parity.compare(reference, component, **options)
    assert result.failures == []
    assert result.error.ok
    assert result.count >= COMPARED[component]


def test_a_difference_is_found():
    result = Comparison()
    result.close("near", [1.0, 2.0], [1.0, 2.0 + 1e-7], atol=1e-6)
    result.equal("same", [1, 2], [1, 2])
    assert result.error.ok
    result.close("far", [1.0, 2.0], [1.0, 2.1], atol=1e-2)
    result.close("shape", [1.0], [1.0, 2.1], atol=1e9)
    result.close("not a number", [math.nan], [1.0], atol=1e9)
    result.equal("other", [1, 2], [1, 3])
    assert [failure.split(":")[0] for failure in result.failures] == ["far", "shape", "not a number", "other"]
    assert not result.error.ok


def read_llama2c(path):
    """Decoder and weights of llama2.c's legacy file: seven int32, then float32 in its order; rotary pairs adjacent."""
    dim, hidden, layers, heads, kv_heads, vocab, length = np.fromfile(path, np.int32, 7)
    values = np.fromfile(path, np.float32, offset=28)
    head = dim // heads
    taken = 0

    def take(*shape):
        nonlocal taken
        taken += math.prod(shape)
        return values[taken - math.prod(shape) : taken].reshape(shape)

    def halves(weight, count):
        """Rows (out) of each head: pairs (0, 1), (2, 3), … become (0, H/2), (1, H/2 + 1), …"""
        return weight.reshape(layers, count, head // 2, 2, dim).swapaxes(2, 3).reshape(layers, count * head, dim)

    kv = kv_heads * head
    arrays = {"embedding": take(vocab, dim), "layers/attention_norm/scale": take(layers, dim)}
    arrays["layers/query/kernel"] = halves(take(layers, dim, dim), heads)
    arrays["layers/key/kernel"] = halves(take(layers, kv, dim), kv_heads)
    arrays["layers/value/kernel"] = take(layers, kv, dim)
    arrays["layers/output/kernel"] = take(layers, dim, dim)
    arrays["layers/mlp_norm/scale"] = take(layers, dim)
    arrays["layers/gate/kernel"] = take(layers, hidden, dim)
    arrays["layers/down/kernel"] = take(layers, dim, hidden)
    arrays["layers/up/kernel"] = take(layers, hidden, dim)
    arrays["norm/scale"] = take(dim)
    assert len(values) - taken == length * head  # tables of cosines and sines, which follow from theta
    arrays = {name: x.swapaxes(1, 2) if "/kernel" in name else x for name, x in arrays.items()}
    names = ("vocab_size", "width", "num_layers", "num_heads", "num_kv_heads", "head_width", "mlp_width")
    sizes = dict(zip(names, map(int, (vocab, dim, layers, heads, kv_heads, head, hidden)), strict=True))
    return dataclasses.replace(
        helpers.model_config(tie_embeddings=True).language_model, **sizes, rope_theta=10000.0, rms_norm_eps=1e-5
    ), arrays


@pytest.fixture(scope="module")
def storyteller(shared_data):
    """stories260K with an arbitrary graph side: what llama2.c expects of it, configuration, weights."""
    folder = shared_data / "tiny_llama"
    decoder, arrays = read_llama2c(folder / "stories260K.bin")
    config = dataclasses.replace(helpers.model_config(), language_model=decoder, lora=NO_LORA)
    _, around = helpers.definition_and_arrays(config)
    around = {name: array for name, array in around.items() if not name.startswith("language_model/")}
    weights = around | prefixed("language_model/", jax.tree.map(jnp.asarray, arrays))
    return json.loads((folder / "expected.json").read_text()), config, weights


def text(ids):
    """Plain text as a prompt."""
    ids = np.array(ids, np.int32)
    return EncodedConversation(ids, np.zeros(len(ids), bool), np.full(len(ids), -1, np.int32), np.zeros_like(ids), ())


def test_a_pretrained_llama_tells_its_story(storyteller):
    """Greedily from BOS: ids and log-probabilities as llama2.c gives them."""
    expected, config, weights = storyteller
    found = greedy(
        define_model(config),
        weights,
        collate_prompts([text([expected["bos"]])]),
        max_new_tokens=len(expected["greedy_ids"]) - 1,
        eos_id=2,
    )
    np.testing.assert_array_equal(found.tokens[0], expected["greedy_ids"][1:])
    # the file gives five digits
    np.testing.assert_allclose(found.log_probabilities[0], expected["greedy_logprobs"], atol=1e-5 + 5e-6)


def test_bfloat16_says_nearly_the_same(storyteller):
    expected, config, weights = storyteller
    batch = jax.tree.map(jnp.asarray, collate_prompts([text(expected["greedy_ids"])]))
    divergence, same = bfloat16.compare(config, weights, batch)
    assert len(divergence) == len(expected["greedy_ids"])
    assert 0 < divergence.mean() <= 1e-3
    assert same.mean() >= 0.99
