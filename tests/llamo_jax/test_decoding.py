"""How answers are chosen: against Hugging Face's generate, and whatever they are decoded beside."""

import dataclasses
import math
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import stage1
from data_pipeline.batch import EncodedConversation
from llamo_jax import loading, runs, sharding
from llamo_jax.config import ConfigError, DecodingConfig, MeshConfig
from llamo_jax.convert import huggingface
from llamo_jax.convert.names import prefixed
from llamo_jax.generation import decode, likelihood, memory
from llamo_jax.generation.beams import beam_search
from llamo_jax.generation.cpu import for_decoding
from llamo_jax.generation.decode import generate
from llamo_jax.generation.few_rows import COMPILER_OPTIONS
from llamo_jax.generation.generator import Generator
from llamo_jax.generation.processing import Choices, most_probable, next_token_of_each, warped
from llamo_jax.generation.prompts import GraphRoom, collate_prompts, prompt_bucket
from llamo_jax.models import quantization
from llamo_jax.models.definition import define_model
from llamo_jax.parameters import abstract_arrays
from tests import helpers

NEW = 12
LANGUAGE_MODEL = Path(__file__).resolve().parents[1] / "golden" / "lm_gqa"


@pytest.fixture(scope="module")
def model():
    """The original's test language model behind any graph side, and the same in transformers."""
    from transformers import LlamaForCausalLM

    decoder, weights, _ = huggingface.read_language_model(LANGUAGE_MODEL)
    config = dataclasses.replace(helpers.model_config(), language_model=decoder, lora=huggingface.NO_LORA)
    definition, arrays = helpers.definition_and_arrays(config)
    arrays |= {n: jnp.asarray(np.asarray(x[...], np.float32)) for n, x in prefixed("language_model/", weights).items()}
    return (
        *for_decoding(definition, arrays, sharding.single_device_mesh()),
        LlamaForCausalLM.from_pretrained(LANGUAGE_MODEL, dtype="float32").eval(),
    )


def prompts():
    """Four texts of unequal length; ids of the golden vocabulary."""
    rng = np.random.default_rng(5)
    return [text(rng.integers(3, 500, length)) for length in (5, 17, 9, 1)]


def text(ids):
    ids = np.asarray(ids, np.int32)
    return EncodedConversation(ids, np.zeros(len(ids), bool), np.full(len(ids), -1, np.int32), np.zeros_like(ids), ())


def ours(model, decoding, stop_ids, batch=None):
    definition, arrays, _ = model
    batch = collate_prompts(prompts()) if batch is None else batch
    keys = jax.random.split(jax.random.key(0), len(batch.tokens))
    found = generate(definition, arrays, batch, keys, decoding=decoding, stop_ids=stop_ids)
    return [np.asarray(row)[:length] for row, length in zip(found.tokens, found.lengths, strict=True)]


def theirs(model, stop_ids, **options):
    """New tokens of each prompt (and beam) by transformers, up to the stop token."""
    import torch

    result = []
    for prompt in prompts():
        ids = torch.tensor(prompt.tokens[None].astype(np.int64))
        out = model[2].generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW,
            eos_token_id=list(stop_ids), pad_token_id=0, return_dict_in_generate=True, output_scores=True, **options,
        )  # fmt: skip
        for row in out.sequences[:, ids.shape[1] :].numpy():
            stop = np.flatnonzero(np.isin(row, stop_ids))
            result.append(row[: stop[0] + 1] if len(stop) else row)
    return result


def early_stops(model):
    """Two tokens that come up in the middle of greedy answers."""
    free = theirs(model, (2,))
    return int(free[0][4]), int(free[1][6])


OPTIONS = {
    "plain": {},
    "penalty": {"repetition_penalty": 1.4},
    "long": {"min_new_tokens": 9},
    "all": {"repetition_penalty": 1.2, "min_new_tokens": 7},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_greedy_answers_are_those_of_transformers(model, options):
    stops = early_stops(model)
    got = ours(model, DecodingConfig(max_new_tokens=NEW, **options), stops)
    expected = theirs(model, stops, **options)
    assert min(map(len, expected)) > options.get("min_new_tokens", 0)
    assert min(map(len, expected)) < NEW or "min_new_tokens" in options
    for mine, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(mine, other)


BEAMS = {
    "short": {"length_penalty": -1.0},
    "long": {"length_penalty": 3.0},
    "all": {"length_penalty": 0.5, "repetition_penalty": 1.3, "min_new_tokens": 6},
}


@pytest.mark.parametrize("options", BEAMS.values(), ids=BEAMS)
def test_beams_are_those_of_transformers(model, options):
    definition, arrays, _ = model
    stops = early_stops(model)
    decoding = DecodingConfig(max_new_tokens=NEW, num_beams=3, num_samples=3, **options)
    found = beam_search(definition, arrays, collate_prompts(prompts()), decoding=decoding, stop_ids=stops)
    expected = theirs(model, stops, num_beams=3, num_return_sequences=3, **options)
    got = [
        np.asarray(ids)[:length]
        for rows, lengths in zip(found.tokens, found.lengths, strict=True)
        for ids, length in zip(rows, lengths, strict=True)
    ]
    for mine, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(mine, other)


def test_warped_logits_are_those_of_transformers():
    import torch
    from transformers.generation import logits_process as theirs

    logits = np.random.default_rng(0).normal(size=(3, 40)).astype(np.float32) * 3
    for temperature, top_k, top_p in ((0.7, 0, 1.0), (1.0, 5, 1.0), (1.3, 0, 0.6), (0.9, 7, 0.8), (1.0, 0, 1e-6)):
        decoding = DecodingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
        expected = torch.tensor(logits)
        processors = [theirs.TemperatureLogitsWarper(temperature)]
        processors += [theirs.TopKLogitsWarper(top_k)] if top_k else []
        processors += [theirs.TopPLogitsWarper(top_p)] if top_p < 1 else []
        for processor in processors:
            expected = processor(None, expected)
        expected = expected.numpy()
        got = np.asarray(warped(jnp.asarray(logits), decoding))
        np.testing.assert_array_equal(got < -1e30, np.isinf(expected))
        np.testing.assert_allclose(got[got > -1e30], expected[np.isfinite(expected)], rtol=1e-6)


def test_the_most_probable_token_is_the_first_of_the_highest():
    find = jax.jit(most_probable, compiler_options=COMPILER_OPTIONS)
    scores = np.random.default_rng(0).integers(0, 9, (5, 4, 300)).astype(np.float32)  # every score several times
    np.testing.assert_array_equal(find(scores), np.argmax(scores, axis=-1))
    np.testing.assert_array_equal(find(np.full((2, 7), np.finfo(np.float32).min)), [0, 0])
    assert 0 <= find(np.full((1, 7), np.nan))[0] < 7


def test_rows_that_do_not_draw_take_the_first_of_the_highest_beside_those_that_do():
    scores = jnp.zeros((8, 50))  # where all are the highest, a draw at any temperature would take another
    choices = Choices(jnp.arange(8) % 2.0, jnp.ones(8), jnp.full(8, 9, jnp.int32))
    found = next_token_of_each(scores, jax.random.split(jax.random.key(0), 8), jnp.zeros(8, jnp.int32), choices)
    assert found[::2].tolist() == [0] * 4
    assert len(set(found[1::2].tolist())) > 1


def test_padding_may_be_on_either_side(model):
    batch = collate_prompts(prompts())
    shift = batch.tokens.shape[1] - np.count_nonzero(batch.segments, axis=1)
    columns = (np.arange(batch.tokens.shape[1]) - shift[:, None]) % batch.tokens.shape[1]
    rows = {name: np.take_along_axis(x, columns, axis=1) for name, x in batch._asdict().items() if name != "molecules"}
    left = batch._replace(**rows)
    assert left.segments[3, -1] == 1
    assert left.segments[3, 0] == 0
    decoding = DecodingConfig(max_new_tokens=NEW)
    for mine, other in zip(ours(model, decoding, (2,), left), ours(model, decoding, (2,)), strict=True):
        np.testing.assert_array_equal(mine, other)


class Words:
    """A prompt encoder's place: records are prompts already; text is the ids."""

    stop_ids = (2,)
    tokenizer = types.SimpleNamespace(decode=lambda ids: " ".join(map(str, ids)), size=3, ids=lambda: set(range(2**16)))

    @staticmethod
    def encode(records):
        return list(records)


def generator(model, decoding, mesh=None, **options):
    config, arrays = model
    return Generator(config, arrays, Words(), mesh or sharding.single_device_mesh(), decoding, **options)


@pytest.fixture(scope="module")
def small():
    """A model of unequal prompts with molecules: eleven of them, of which some come twice."""
    config = dataclasses.replace(helpers.model_config(num_kv_heads=4))
    definition, arrays = helpers.definition_and_arrays(config)
    conversations = [one for row in helpers.rows() for one in row]
    # all in one bucket of prompts: two programs less in every test
    salt = next(place for place, one in enumerate(conversations) if len(one.tokens) > 64)
    conversations[salt] = helpers.conversation(helpers.SMILES[2:4], 8, 3)
    return (definition, arrays), [*conversations, *conversations[:2]]


def tokens_of(answers):
    return [[answer.tokens.tolist() for answer in answers[index]] for index in range(len(answers))]


@pytest.mark.parametrize("for_cpu", [True, False])
def test_rows_that_come_and_go_answer_as_alone(small, for_cpu, monkeypatch):
    """Continuous batching: four places for eleven prompts, answers of unequal length."""
    model, records = small
    if not for_cpu:
        monkeypatch.setattr("llamo_jax.generation.generator.for_decoding", lambda *arguments: arguments[:2])
    decoding = DecodingConfig(max_new_tokens=40, stop_ids=tuple(range(3, 12)))
    found = tokens_of(dict(generator(model, decoding, max_rows=4).generate(records)))
    alone = [tokens_of(dict(generator(model, decoding).generate([record])))[0] for record in records]
    assert found == alone
    lengths = {len(answer) for (answer,) in found}
    assert len(lengths) > 3
    assert max(lengths) == 40


@pytest.fixture(params=["cpu", "gpu"])
def platform(request, monkeypatch):
    """The form of models that decode on such devices."""
    monkeypatch.setattr(sharding, "platform", lambda: request.param)
    return request.param


@pytest.mark.parametrize(("decoder", "quantize"), [({"tie_embeddings": True}, "none"), ({}, "int8")])
def test_the_form_for_a_device_answers_as_the_usual_one(decoder, quantize, platform):
    config = helpers.model_config(**decoder)
    _, arrays = helpers.definition_and_arrays(config)
    definition = define_model(dataclasses.replace(config, quantize=quantize))
    arrays = quantization.quantize_arrays(arrays, definition.names(), quantize)
    batch = collate_prompts([one for row in helpers.rows() for one in row][:3])
    form, own = for_decoding(definition, arrays, sharding.single_device_mesh())
    assert all(f"language_model/layers/{layer}/attention_norm/scale" in own for layer in range(2))
    widths = own[f"language_model/layers/1/gate/kernel{'' if quantize == 'none' else '_values'}"].shape
    assert widths == ((48, 32) if platform == "cpu" and quantize == "none" else (32, 48))  # [out, in], or as stacked
    tokens = [
        np.asarray(decode.greedy(*model, batch, max_new_tokens=6, eos_id=2).tokens)
        for model in ((definition, arrays), (form, own))
    ]
    np.testing.assert_array_equal(*tokens)


@pytest.mark.parametrize(
    ("missing", "others", "arrays_stay", "stacked"),
    [(0, True, False, False), (1, True, False, True), (0, False, False, True), (0, True, True, True)],
)
def test_gpus_without_room_for_a_copy_of_the_layers_decode_from_the_stacked_ones(
    small, missing, others, arrays_stay, stacked, monkeypatch, caplog
):
    """Of several processes, all do, or their programs would differ. Training keeps the stacked ones beside the copy."""
    (definition, arrays), _ = small
    layers = sum(x.nbytes for name, x in arrays.items() if name.startswith("language_model/layers/"))
    monkeypatch.setattr(sharding, "platform", lambda: "gpu")
    monkeypatch.setattr("llamo_jax.generation.cpu.device_bytes", lambda: (10**9, 10**9 - layers + missing))
    monkeypatch.setattr("llamo_jax.distributed.all_agree", lambda holds: holds and others)
    _, own = for_decoding(definition, arrays, sharding.single_device_mesh(), arrays_stay=arrays_stay)
    assert ("language_model/layers/gate/kernel" in own) == stacked
    assert ("language_model/layers/1/gate/kernel" in own) != stacked
    assert ("no room for a second copy of the decoder's layers" in caplog.text) == stacked


def test_samples_depend_on_seed_and_number_alone(small):
    model, records = small
    decoding = DecodingConfig(max_new_tokens=8, temperature=1.0, num_samples=3, seed=4, stop_ids=tuple(range(3, 12)))
    found = tokens_of(dict(generator(model, decoding, max_rows=4).generate(records)))
    assert all(len({tuple(sample) for sample in samples}) > 1 for samples in found)
    keys = [tuple(generator(model, decoding)._key(number, sample)) for number in range(5) for sample in range(3)]
    assert len(set(keys)) == 15  # no record's draws are another's
    again = tokens_of(dict(generator(model, decoding).generate(records[5:7], numbers=[5, 6])))
    assert again == found[5:7]
    other = tokens_of(dict(generator(model, dataclasses.replace(decoding, seed=5), max_rows=4).generate(records)))
    assert other != found


@pytest.mark.parametrize(
    ("decoding", "platform"), [({}, "cpu"), ({"num_beams": 2}, "cpu"), ({}, "gpu")], indirect=["platform"]
)
def test_sharded_decoding_equals_one_device(small, decoding, platform):
    model, records = small
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    decoding = DecodingConfig(max_new_tokens=6, **decoding)
    expected = tokens_of(dict(generator(model, decoding).generate(records)))
    assert tokens_of(dict(generator(model, decoding, mesh).generate(records))) == expected


def test_the_cache_is_divided_over_rows_and_heads(small, platform):
    (definition, arrays), _ = small
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    options = {"rows": 8, "slots": 10, "decoding": DecodingConfig(), "stop_ids": (2,)}
    with jax.set_mesh(mesh):
        keys = decode.empty_rows(*for_decoding(definition, arrays, mesh), **options).cache.keys
    stacked = platform == "cpu"  # of several CPU devices
    keys, layers = (keys, (2,)) if stacked else (keys[1], ())
    assert keys.shape == (*layers, 8, 4, 10, 8)
    assert keys.sharding.shard_shape(keys.shape) == (*layers, 2, 2, 10, 8)


def test_layers_one_by_one_are_divided_as_the_stacked_ones(small, monkeypatch):
    (definition, arrays), _ = small
    monkeypatch.setattr(sharding, "platform", lambda: "gpu")
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    specs = abstract_arrays(definition.variables, "float32", mesh, trained={})
    placed = {name: jax.device_put(x, specs[name].sharding) for name, x in arrays.items()}
    _, own = for_decoding(definition, placed, mesh)
    for name in ("gate/kernel", "down/kernel", "mlp_norm/scale"):
        stack, layer = placed[f"language_model/layers/{name}"], own[f"language_model/layers/1/{name}"]
        assert layer.sharding.shard_shape(layer.shape) == stack.sharding.shard_shape(stack.shape)[1:]
        np.testing.assert_array_equal(layer, stack[1])


def test_programs_are_compiled_once_for_each_bucket(small):
    model, records = small
    decoding = DecodingConfig(max_new_tokens=5)
    engine = generator(model, decoding, max_rows=4)
    before = {name: getattr(decode, name)._cache_size() for name in ("admit", "advance", "empty_rows")}
    buckets = {prompt_bucket(len(record.tokens)) for record in records}
    for _ in range(2):
        dict(engine.generate(records))
        dict(engine.generate(records[::-1]))
    for name, bound in (("advance", 1), ("empty_rows", 1), ("admit", 3)):  # admit: 1, 2 or 4 prompts at a time
        assert 0 < getattr(decode, name)._cache_size() - before[name] <= bound * len(buckets)


@pytest.mark.parametrize("for_cpu", [True, False])
def test_log_probabilities_are_those_of_the_whole_pass(small, for_cpu, monkeypatch):
    (definition, arrays), records = small
    monkeypatch.setattr(likelihood, "ROWS", 4)  # several batches
    mesh = sharding.single_device_mesh()
    model = for_decoding(definition, arrays, mesh) if for_cpu else (definition, arrays)
    found = likelihood.target_log_probabilities(*model, mesh, records)
    for record, got in zip(records, found, strict=True):
        batch = collate_prompts([record], room=GraphRoom(4, 64))  # one program for each bucket of lengths
        logits = helpers.logits(definition, arrays, jax.tree.map(jnp.asarray, batch))
        every = jax.nn.log_softmax(logits[0])[: len(record.tokens) - 1]
        expected = every[np.arange(len(every)), record.tokens[1:]][record.is_target[1:]]
        np.testing.assert_allclose(got, expected, atol=2e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: input should be greater than or equal to 1"),
        ({"num_beams": 4, "temperature": 0.5}, "num_beams above 1 draws nothing"),
        ({"num_samples": 2}, "num_samples above 1 needs a temperature"),
        ({"top_p": 0.0}, "top_p: input should be greater than 0"),
        ({"seed": -1}, "seed: input should be greater than or equal to 0"),
    ],
)
def test_decoding_that_makes_no_sense_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        DecodingConfig(**options)


def test_rows_are_those_that_fit_beside_weights_and_cache(monkeypatch):
    """Llama-2-7B: 64 rows of 640 tokens are 21.5 GB of cache, more than its weights."""
    model = runs.read_config(stage1.get_config("llama2_7b")).model
    assert 64 * memory.row_bytes(model, 640, tensor=1) == 21_474_836_480
    assert memory.row_bytes(model, 640, tensor=8) == memory.row_bytes(model, 640, tensor=1) // 8
    shared = dataclasses.replace(model, language_model=dataclasses.replace(model.language_model, num_kv_heads=4))
    assert memory.row_bytes(shared, 640, tensor=8) == memory.row_bytes(shared, 640, tensor=1)  # whole on every device
    weights = 13.5e9
    assert memory.rows_per_shard(model, 640, 1, 40e9, weights) == 55  # (0.8 · 40 - 13.5) / 0.336
    assert memory.rows_per_shard(model, 640, 1, math.inf, 0) == math.inf
    definition = define_model(model)
    for gigabytes, tensor in ((24, 1), (20, 2), (12, 2), (10, 4)):
        monkeypatch.setattr(loading, "device_bytes", lambda limit=gigabytes: (limit * 1e9, 0))
        assert loading.decoding_mesh(definition, model, 0, 128).shape["tensor"] == tensor, gigabytes
    monkeypatch.setattr(loading, "device_bytes", lambda: (1e9, 0))
    with pytest.raises(ConfigError, match="cache of one answer do not fit 8 devices of 1 GB"):
        loading.decoding_mesh(definition, model, 0, 128)


def test_every_process_decodes_as_many_rows_as_fit_the_fullest(monkeypatch):
    definition, arrays = helpers.definition_and_arrays(helpers.model_config())
    tokenizer = types.SimpleNamespace(size=3, ids=lambda: {0, 1, 2})
    encoder = types.SimpleNamespace(stop_ids=(2,), tokenizer=tokenizer)
    decoding = DecodingConfig(max_new_tokens=36)
    generator = Generator(definition, arrays, encoder, sharding.single_device_mesh(), decoding)
    assert generator._rows(8, 64) == 8
    monkeypatch.setattr("llamo_jax.generation.generator.distributed.least", lambda number: min(number, 2.0))
    assert generator._rows(8, 64) == 2


def test_beams_of_many_prompts_are_those_of_each(small):
    """Several batches of them."""
    model, records = small
    decoding = DecodingConfig(max_new_tokens=4, num_beams=2)
    found = dict(generator(model, decoding, max_rows=8).generate(records))
    assert len(found) == len(records)
    for index in (0, 5, 9):
        ((_, alone),) = generator(model, decoding, max_rows=8).generate([records[index]])
        assert found[index][0].tokens.tolist() == alone[0].tokens.tolist()


def test_graph_tokens_are_no_words_that_were_said(small):
    """They stand in a prompt as token 0, which is a word like any other."""
    (definition, arrays), _ = small
    prompt = helpers.conversation((helpers.SMILES[0],), 12, 3)
    decoding = DecodingConfig(max_new_tokens=2, repetition_penalty=1.5)
    batch = jax.tree.map(jnp.asarray, collate_prompts([prompt]))

    @jax.jit
    def started(arrays):
        keys = jax.random.split(jax.random.key(0), len(batch.tokens))
        return decode._started(definition.merge(arrays), batch, keys, 64, decoding, (2,))

    rows = started(arrays)
    first = int(rows.generated.tokens[0, 0])
    assert set(np.flatnonzero(rows.seen[0])) - {first} == set(prompt.tokens[prompt.molecule < 0].tolist()) - {first}


def test_scores_are_the_models_own_whatever_is_processed(small):
    """Log-probabilities before a penalty; an answer's score is their sum."""
    model, records = small
    decoding = DecodingConfig(max_new_tokens=5, repetition_penalty=1.6, min_new_tokens=4)
    found = dict(generator(model, decoding).generate(records[:4]))
    answered = []
    for index, (answer,) in found.items():
        tokens = answer.tokens.astype(np.int32)
        prompt = records[index]
        answered.append(EncodedConversation(
            np.concatenate([prompt.tokens, tokens]),
            np.concatenate([np.zeros(len(prompt.tokens), bool), np.ones(len(tokens), bool)]),
            np.concatenate([prompt.molecule, np.full(len(tokens), -1, np.int32)]),
            np.concatenate([prompt.query, np.zeros(len(tokens), np.int32)]),
            prompt.graphs,
        ))  # fmt: skip
        assert len(tokens) > 1
        assert answer.score == pytest.approx(answer.log_probabilities.sum(), rel=1e-5)
    mesh = sharding.single_device_mesh()
    expected = likelihood.target_log_probabilities(*model, mesh, answered)
    for (answer,), values in zip(found.values(), expected, strict=True):
        np.testing.assert_allclose(answer.log_probabilities, values, atol=5e-5)


@pytest.mark.parametrize(("room", "beams", "rows"), [(3, 1, 2), (4, 1, 4), (100, 1, 8), (7, 4, 1), (16, 4, 4)])
def test_a_generator_decodes_no_more_rows_than_fit(monkeypatch, room, beams, rows):
    config = helpers.model_config()
    definition, arrays = helpers.definition_and_arrays(config)
    tokenizer = types.SimpleNamespace(size=3, ids=lambda: {0, 1, 2})
    encoder = types.SimpleNamespace(stop_ids=(2,), tokenizer=tokenizer)
    decoding = DecodingConfig(max_new_tokens=36, num_beams=beams)
    generator = Generator(definition, arrays, encoder, sharding.single_device_mesh(), decoding)
    limit = room * memory.row_bytes(config, 100, 1) / (1 - memory.WORKING_SHARE) + 1
    monkeypatch.setattr("llamo_jax.generation.generator.device_bytes", lambda: (limit, 0))
    assert generator._rows(8, 64, beams) == rows
    monkeypatch.setattr("llamo_jax.generation.generator.device_bytes", lambda: (limit, limit))
    with pytest.raises(ConfigError, match="no room for the cache"):
        generator._rows(8, 64, beams)


def chosen(model, decoding):
    """All ids in the answers to the prompts, greedy, drawn or of the beams."""
    definition, arrays, _ = model
    if decoding.num_beams > 1:
        found = beam_search(definition, arrays, collate_prompts(prompts()), decoding=decoding, stop_ids=(2,))
        return {int(i) for rows, n in zip(found.tokens, found.lengths, strict=True)
                for ids, length in zip(rows, n, strict=True) for i in ids[:length]}  # fmt: skip
    return {int(index) for row in ours(model, decoding, (2,)) for index in row}


@pytest.mark.parametrize("options", [{}, {"temperature": 2.0, "seed": 3}, {"num_beams": 3, "num_samples": 3}])
def test_ids_without_a_token_are_never_chosen(model, options):
    """Where the tokenizer has gaps just where the model would go, and ends before the vocabulary does."""
    definition, arrays, _ = model
    vocabulary = definition.config.language_model.vocab_size
    plain = DecodingConfig(max_new_tokens=NEW, **options)
    gaps = sorted(chosen(model, plain) - {2})[:3]
    tokenizer = types.SimpleNamespace(size=vocabulary - 40, ids=lambda: set(range(vocabulary - 40)) - set(gaps))
    encoder = types.SimpleNamespace(stop_ids=(2,), tokenizer=tokenizer)
    mesh = sharding.single_device_mesh()
    decoding = Generator(definition, arrays, encoder, mesh, plain).decoding
    assert decoding.suppressed_ids[-1] == (vocabulary - 40, vocabulary - 1)
    assert chosen(model, plain) & set(gaps)
    assert chosen(model, decoding) <= tokenizer.ids()
    with pytest.raises(ConfigError, match="stop_ids"):
        Generator(definition, arrays, encoder, mesh, DecodingConfig(stop_ids=(vocabulary,)))
    tokenizer.size = 9999
    with pytest.raises(ConfigError, match="the tokenizer has 9,999 tokens"):
        Generator(definition, arrays, encoder, mesh)
