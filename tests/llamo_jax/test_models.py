"""Graph encoder, projector and decoder: what must hold for any weights (parity: test_parity.py)."""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from data_pipeline.batch import BatchShape, RowSize, collate
from llamo_jax import parameters, sharding
from llamo_jax.config import ConfigError, MeshConfig
from llamo_jax.convert.names import below
from llamo_jax.generation import few_rows
from llamo_jax.models import GINConfig, LlamaDecoder, quantization
from llamo_jax.models.attention import attention, causal_mask, choose_kernel, segment_attention, splash_attention
from llamo_jax.models.definition import define_model
from llamo_jax.models.llama import RopeScaling, rope_tables
from llamo_jax.models.lora import add_adapters
from llamo_jax.models.projectors.multi_level import SegmentAttention
from tests import helpers


@pytest.fixture(autouse=True)
def strict_dtypes():
    """No silent promotion anywhere in the model."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(scope="module")
def definition_and_arrays():
    return helpers.definition_and_arrays(helpers.model_config())


@pytest.fixture
def model(definition_and_arrays):
    definition, arrays = definition_and_arrays
    return definition.merge(arrays)


@pytest.mark.parametrize("batch_statistics", [False, True])
def test_more_padding_changes_nothing(definition_and_arrays, batch_statistics):
    definition, arrays = definition_and_arrays

    @jax.jit
    def run(arrays, batch):
        model = definition.merge(arrays)
        levels = model.graph_encoder(batch.molecules.atoms, batch_statistics=batch_statistics)
        return model(batch, batch_statistics=batch_statistics)[0], levels

    small, large = helpers.batch(), helpers.batch(row=RowSize(tokens=130, molecules=5, atoms=90, edges=400, motifs=60))
    (expected, expected_levels), (found, found_levels) = run(arrays, small), run(arrays, large)
    for shard, n_node in enumerate(np.asarray(small.molecules.atoms.n_node)):
        count = n_node[n_node > 0][:-1].sum()  # the last one is padding
        assert count > 5
        levels, ours = np.asarray(expected_levels)[:, shard, :count], np.asarray(found_levels)[:, shard, :count]
        assert abs(ours - levels).max() <= 1e-5 * abs(levels).max()
    real = np.asarray(small.segments) > 0
    found, expected = np.asarray(found)[:, :96][real], np.asarray(expected)[real]
    # of the largest logit: products of another length are rounded otherwise, and a batch's own statistics enlarge that
    # five times over; with AVX2 alone logits up to 4 differ by 1.4e-5
    assert abs(found - expected).max() <= 1e-5 * abs(expected).max()


def test_packed_conversations_do_not_see_each_other(definition_and_arrays):
    logits = helpers.logits(*definition_and_arrays, helpers.batch())
    alone = [[conversation] for row in helpers.rows() for conversation in row]
    batch = jax.tree.map(jnp.asarray, collate(alone, BatchShape(len(alone), 1, helpers.ROW)))
    expected = helpers.logits(*definition_and_arrays, batch)
    number = 0
    for index, conversations in enumerate(helpers.rows()):
        start = 0
        for conversation in conversations:
            length = len(conversation.tokens) - 1
            np.testing.assert_allclose(logits[index, start : start + length], expected[number, :length], atol=2e-5)
            start += length
            number += 1


def test_molecules_on_other_shards_give_the_same(definition_and_arrays):
    expected = helpers.logits(*definition_and_arrays, helpers.batch(1))
    got = helpers.logits(*definition_and_arrays, helpers.batch(4))
    real = np.asarray(helpers.batch().segments) > 0
    np.testing.assert_allclose(got[real], expected[real], atol=2e-5)


def test_graph_of_large_batches_stays_finite(model):
    """Thousands of padding edges meet in one padding atom."""
    row = RowSize(tokens=96, molecules=4, atoms=900, edges=4000, motifs=400)
    batch = helpers.batch(row=row)
    levels = model.graph_encoder(batch.molecules.atoms, batch_statistics=True)
    assert np.all(np.isfinite(levels))
    assert float(jnp.abs(levels).max()) < 1e3


def test_fresh_adapter_changes_nothing_and_merging_equals_it():
    config = helpers.model_config(lora_rank=4)
    adapters = dataclasses.replace(config.lora, targets=("layers/(query|value)",))
    plain, decoder = (LlamaDecoder(config.language_model, compute_dtype="float32", rngs=nnx.Rngs(i)) for i in range(2))
    base = parameters.flatten(nnx.state(decoder))
    add_adapters(decoder, adapters, rngs=nnx.Rngs(2))
    batch = helpers.batch()
    embeddings = decoder.embed(jnp.asarray(batch.tokens))
    run = nnx.jit(lambda decoder: decoder(embeddings, batch.positions, batch.segments))
    fresh = run(decoder)
    expected = run(helpers.load(plain, base))
    np.testing.assert_array_equal(fresh, expected)

    for linear in (decoder.layers.query, decoder.layers.value):
        linear.lora_b[...] = jax.random.normal(jax.random.key(3), linear.lora_b.shape) * 0.3
    adapted = run(decoder)
    assert float(jnp.abs(adapted - fresh).max()) > 0.1
    for name, linear in (("query", decoder.layers.query), ("value", decoder.layers.value)):
        update = jnp.einsum("lir,lro->lio", linear.lora_a[...], linear.lora_b[...])
        base[f"layers/{name}/kernel"] += config.lora.alpha / config.lora.rank * update
    merged = run(helpers.load(plain, base))
    np.testing.assert_allclose(merged, adapted, atol=2e-5)


def test_one_item_alone_gives_its_scores_no_gradient():
    """A softmax over one item is constant, in a molecule of one atom or one motif too."""
    attention = SegmentAttention(8, 2, rngs=nnx.Rngs(0), stack=1)
    queries, items = (jax.random.normal(jax.random.key(i), shape) for i, shape in ((1, (1, 3, 8)), (2, (1, 1, 3, 8))))
    owner = jnp.array([[0, 1, 1]])  # one item in the first segment, two in the second, none in the third

    def total(queries, segment):
        return jnp.sum(attention(queries, items, owner, 3)[0, 0, segment] ** 2)

    gradient = jax.jit(jax.grad(total))
    np.testing.assert_allclose(gradient(queries, 0), 0, atol=1e-6)
    assert float(jnp.abs(gradient(queries, 1)).max()) > 1e-3
    np.testing.assert_array_equal(gradient(queries, 2), 0)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_equals_jax(kv_heads):
    keys = jax.random.split(jax.random.key(0), 4)
    q = jax.random.normal(keys[0], (3, 7, 4, 8))
    k, v = (jax.random.normal(key, (3, 9, kv_heads, 8)) for key in keys[1:3])
    mask = jax.random.bernoulli(keys[3], 0.6, (3, 7, 9)).at[:, :, 0].set(True)
    expected = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None])
    np.testing.assert_allclose(jax.jit(attention)(q, k, v, mask), expected, atol=2e-6)


@pytest.mark.parametrize("shape", [(1, 6), (1, 7), (2, 16), (9, 5), (32, 24), (33, 8)])
@pytest.mark.parametrize("batch", [(), (2, 3)])
@pytest.mark.parametrize(("width", "tolerance"), [(40, 3e-6), (few_rows.CACHED + 1, 2e-5)])
def test_few_rows_are_multiplied_as_many(shape, batch, width, tolerance):
    rows, out = shape
    rng = np.random.default_rng(out)
    x = jnp.asarray(rng.standard_normal((*batch, rows, width), np.float32))
    matrix = jnp.asarray(rng.standard_normal((*batch, out, width), np.float32) * width**-0.5, jnp.float32)
    expected = np.asarray(x, np.float64) @ np.asarray(matrix, np.float64).swapaxes(-1, -2)
    product = jax.jit(few_rows.product, compiler_options=few_rows.COMPILER_OPTIONS)
    got = product(x, matrix)
    assert got.shape == (*batch, rows, out)
    np.testing.assert_allclose(got, expected, atol=tolerance)
    half = product(x.astype(jnp.bfloat16), matrix.astype(jnp.bfloat16))
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, expected, atol=0.05)


def test_cached_decoding_equals_the_full_pass(model):
    decoder = model.language_model
    tokens = jax.random.randint(jax.random.key(0), (2, 12), 3, 90)
    positions = jnp.broadcast_to(jnp.arange(12), (2, 12))
    segments = jnp.ones((2, 12), jnp.int32)
    expected = decoder(decoder.embed(tokens), positions, segments)
    hidden, cache = decoder.prefill(decoder.embed(tokens[:, :5]), segments[:, :5], 12)
    parts = [hidden[:, None]]
    for start, end in ((5, 6), (6, 12)):
        part = np.s_[:, start:end]
        embeddings = decoder.embed(tokens[part])
        hidden, cache = decoder.extend(cache, jnp.full(2, start), embeddings)
        parts.append(hidden)
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), expected[:, 4:], atol=2e-5)


def test_llama3_rope_scaling():
    """Long wavelengths are divided by the factor, short ones kept (values from the definition in Llama 3.1)."""
    scaling = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
    config = helpers.model_config(rope_theta=500000.0, head_width=128, rope_scaling=scaling).language_model
    plain = helpers.model_config(rope_theta=500000.0, head_width=128).language_model
    angle, angle_plain = (jnp.arctan2(*rope_tables(jnp.ones((), jnp.int32), c)[::-1]) for c in (config, plain))
    ratio = np.asarray(angle / angle_plain)
    np.testing.assert_allclose(ratio[:25], 1.0, rtol=1e-4)
    np.testing.assert_allclose(ratio[-20:], 1 / 8, rtol=1e-4)
    assert np.all(np.diff(ratio) <= 1e-4)


def test_remat_changes_nothing():
    batch = helpers.batch()
    _, arrays = helpers.definition_and_arrays(helpers.model_config())
    decoder = below("language_model/", arrays)
    config = helpers.model_config().language_model
    losses = []
    for remat in ("none", "dots", "full"):
        module = sharding.without_values(lambda r=remat: LlamaDecoder(
            config, compute_dtype="float32", remat=r, rngs=nnx.Rngs(0)))  # fmt: skip

        @jax.jit
        @functools.partial(jax.value_and_grad, argnums=(0, 1))
        def loss(arrays, embeddings, module=module):
            module = helpers.load(module, arrays)
            return jnp.sum(module(embeddings, batch.positions, batch.segments) ** 2)

        losses.append(loss(decoder, decoder["embedding"][batch.tokens]))
    for other in losses[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-3), losses[0], other)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_splash_attention_equals_plain_attention_on_packed_segments(dtype, tolerance):
    """JAX's TPU kernel, interpreted; 4 query heads on 2 kv heads, three segments and padding."""
    keys = jax.random.split(jax.random.key(0), 4)
    q = jax.random.normal(keys[0], (2, 256, 4, 64), dtype)
    k, v = (jax.random.normal(key, (2, 256, 2, 64), dtype) for key in keys[1:3])
    segments = jnp.stack([jnp.repeat(jnp.arange(1, 5) % 4, 64), jnp.full(256, 1)])
    real = (segments > 0)[..., None, None]

    def weighed(attend, q, k, v):
        out = jnp.where(real, attend(q, k, v), 0)
        return jnp.sum(out.astype(jnp.float32) * jax.random.normal(keys[3], out.shape)), out

    plain = functools.partial(attention, mask=causal_mask(segments))
    splash = functools.partial(splash_attention, segments=segments, interpret=True)
    for mesh in (None, sharding.make_mesh(MeshConfig(data=1, fsdp=2, tensor=2), jax.devices()[:4])):
        with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
            results = [
                jax.jit(jax.grad(functools.partial(weighed, attend), argnums=(0, 1, 2), has_aux=True))(q, k, v)
                for attend in (plain, splash)
            ]
        for name, ours, theirs in zip("qkvo", *map(jax.tree.leaves, results), strict=True):
            scale = float(jnp.abs(ours).max())
            np.testing.assert_allclose(
                theirs.astype(jnp.float32) / scale, ours.astype(jnp.float32) / scale, atol=tolerance, err_msg=name
            )


def on_a(platform: str):
    """A context in which programs are compiled for such devices."""
    device = jax.sharding.AbstractDevice("some kind", None, {"gpu": "cuda"}.get(platform, platform))
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device))


def test_cudnn_is_told_that_attention_is_causal(monkeypatch):
    """So that it leaves out what lies above the diagonal; XLA with the same arguments gives what `attention` does."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    keys = jax.random.split(jax.random.key(0), 3)
    q = jax.random.normal(keys[0], (2, 32, 4, 16), "bfloat16")
    k, v = (jax.random.normal(key, (2, 32, 2, 16), "bfloat16") for key in keys[1:])
    segments = jnp.stack([jnp.repeat(jnp.array([1, 2, 3, 0]), 8), jnp.full(32, 1)])
    with on_a("gpu"):
        attend = segment_attention("auto", segments, 16, q.dtype)
    (kernel,) = [
        equation
        for equation in jax.make_jaxpr(attend)(q, k, v).jaxpr.eqns[-1].params["call_jaxpr"].eqns
        if "attention_fwd" in str(equation.primitive)
    ]
    assert kernel.params["mask_type"] == cudnn.MaskType.CAUSAL
    ours = attention(q, k, v, causal_mask(segments)).astype(jnp.float32)
    with jax.numpy_dtype_promotion("standard"):  # JAX's own code
        theirs = attend.func(q, k, v, **attend.keywords | {"implementation": "xla"}).astype(jnp.float32)
    assert np.all(np.isfinite(theirs))
    real = segments > 0
    np.testing.assert_allclose(theirs[real], ours[real], atol=2e-2)


def test_attention_kernels_are_chosen_by_device_and_size():
    bfloat16, float32 = jnp.dtype("bfloat16"), jnp.dtype("float32")
    assert choose_kernel("auto", 512, 128, bfloat16) == "xla"
    for platform, sizes, expected in (
        ("tpu", (512, 128, bfloat16), "splash"),
        ("tpu", (500, 128, bfloat16), "xla"),
        ("gpu", (500, 128, bfloat16), "cudnn"),
        ("gpu", (501, 128, bfloat16), "xla"),
        ("gpu", (512, 128, float32), "xla"),
        ("gpu", (512, 256, bfloat16), "xla"),
        ("tpu", (512, 96, bfloat16), "xla"),
        ("tpu", (512, 64, bfloat16), "splash"),
    ):
        with on_a(platform):
            assert choose_kernel("auto", *sizes) == expected
    # a kernel has whole heads on every device; XLA divides them
    device = jax.sharding.AbstractDevice("some kind", None, "tpu")
    mesh = jax.sharding.AbstractMesh((1, 1, 8), sharding.AXES, abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        found = {heads: choose_kernel("auto", 512, 128, bfloat16, heads) for heads in ((28, 4), (32, 4), (32, 8))}
    assert found == {(28, 4): "xla", (32, 4): "xla", (32, 8): "splash"}
    for kernel, length in (("splash", 500), ("cudnn", 512)):
        with pytest.raises(ConfigError, match=r"config\.model\.attention"):
            choose_kernel(kernel, length, 128, bfloat16)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("spec", [None, (None, "fsdp", "tensor"), (None, "tensor", "fsdp")])
def test_stacks_are_quantized_in_pieces_as_at_once(kind, spec):
    """On every mesh, and each part stays where the matrix' part was."""
    kernel = jax.random.normal(jax.random.key(0), (2, 256, 96), jnp.bfloat16)
    values, scale = quantization.quantize(kernel, kind)
    if spec is not None:
        mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
        kernel = jax.device_put(kernel, NamedSharding(mesh, PartitionSpec(*spec)))
    names = {"layers/query/kernel_values", "layers/query/kernel_scale"}
    found = quantization.quantize_arrays({"layers/query/kernel": kernel}, names, kind)
    assert set(found) == names
    ours = found["layers/query/kernel_values"]
    np.testing.assert_array_equal(np.asarray(ours).astype(int), np.asarray(values).astype(int))
    np.testing.assert_array_equal(found["layers/query/kernel_scale"], scale)
    assert ours.dtype == values.dtype
    if spec is not None:
        assert ours.sharding.is_equivalent_to(kernel.sharding, 3)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_quantizing_takes_less_memory_than_two_layers(kind):
    """Of the largest stack of Llama-2-7B, compiled and not run; at once it would be 9 to 141 bytes an element."""
    shape = (32, 4096, 1, 16, 688)
    dtype = jnp.int8 if kind == "int8" else jnp.uint4
    values = jax.ShapeDtypeStruct(shape, dtype)
    scale = jax.ShapeDtypeStruct((32, 1 if kind == "int8" else 64, 1, 16, 688), jnp.float32)
    kernel = jax.ShapeDtypeStruct((32, 4096, 11008), jnp.bfloat16)
    number = jax.ShapeDtypeStruct((), jnp.int32)
    compiled = quantization._quantize_piece.lower(values, scale, kernel, number, number, kind).compile()
    memory = compiled.memory_analysis()
    layer = 4096 * 11008 * 2
    assert memory.temp_size_in_bytes < 2 * layer
    assert memory.alias_size_in_bytes >= 0.99 * memory.output_size_in_bytes  # the result is filled in place


@pytest.mark.parametrize(("kind", "error"), [("int8", 0.02), ("nf4", 0.25)])
def test_quantized_decoder_is_near_the_whole_one(kind, error):
    """Relative error of hidden states; LoRA learns on top, and the quantized matrices are small integers."""
    config = helpers.model_config(lora_rank=4, width=64, head_width=16, mlp_width=128)
    whole, arrays = helpers.definition_and_arrays(config)
    small = define_model(dataclasses.replace(config, quantize=kind))
    converted = quantization.quantize_arrays(arrays, small.names(), kind)
    assert set(converted) == small.names()
    values = converted["language_model/layers/gate/kernel_values"]
    assert values.dtype == (jnp.int8 if kind == "int8" else jnp.uint4)
    batch = helpers.batch()
    hidden = jax.jit(lambda definition, arrays: definition.merge(arrays).hidden_states(batch)[0], static_argnums=0)
    expected, got = hidden(whole, arrays), hidden(small, converted)
    real = (batch.segments > 0)[..., None].astype(jnp.float32)
    difference = float(jnp.linalg.norm((got - expected) * real) / jnp.linalg.norm(expected * real))
    assert 1e-4 < difference < error


def test_a_batch_without_molecules_says_nothing_about_them():
    encoder = GINConfig.paper(width=8, num_layers=2).build(rngs=nnx.Rngs(0))
    before = jax.device_get(nnx.to_pure_dict(nnx.state(encoder, nnx.BatchStat)))
    empty = collate([], BatchShape(2, 1, helpers.ROW)).molecules.atoms
    encoder(jax.tree.map(jnp.asarray, empty), batch_statistics=True)
    jax.tree.map(np.testing.assert_array_equal, before, nnx.to_pure_dict(nnx.state(encoder, nnx.BatchStat)))
    encoder(helpers.batch().molecules.atoms, batch_statistics=True)
    after = nnx.to_pure_dict(nnx.state(encoder, nnx.BatchStat))
    assert not np.array_equal(jax.tree.leaves(after)[0], jax.tree.leaves(before)[0])


def test_tied_embeddings_start_as_small_as_an_output_matrix():
    for tied, expected in ((True, 128**-0.5), (False, 1.0)):
        config = helpers.model_config(width=128, head_width=32, tie_embeddings=tied).language_model
        table = LlamaDecoder(config, compute_dtype="float32", rngs=nnx.Rngs(0)).embedding[...]
        assert float(jnp.std(table)) == pytest.approx(expected, rel=0.05)
