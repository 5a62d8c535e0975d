"""Every kind of projector and graph encoder keeps the contract, and does what its name says."""

import dataclasses
import functools
import re
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from benchmarks import hlo
from configs import stage1, stage2
from data_pipeline.batch import BatchShape, MoleculeGraphs
from data_pipeline.vocabulary import ATOM_CARDINALITIES
from llamo_jax import parameters, runs, sharding
from llamo_jax.apps.assistant import Assistant
from llamo_jax.config import ConfigError, DecodingConfig, MeshConfig
from llamo_jax.models import GINConfig, LLaMo, MultiLevelConfig, torch_names
from llamo_jax.models.flops import LinearFlops
from llamo_jax.models.graph_encoders import GRAPH_ENCODERS
from llamo_jax.models.graph_encoders import parts as encoder_parts
from llamo_jax.models.graph_encoders.gatv2 import GATv2Config
from llamo_jax.models.lora import LoRAConfig
from llamo_jax.models.projectors import PROJECTORS, parts
from llamo_jax.models.projectors.budget import TOLERANCE, count_parameters, matched
from tests import helpers
from tests.llamo_jax.test_training import small_run

ROOT = Path(__file__).resolve().parents[2]
KINDS = [name for name in PROJECTORS.names() if PROJECTORS[name].__module__.startswith("llamo_jax.")]  # not tests' own
WITH_TOKENS = [kind for kind in KINDS if kind != "none"]
OWN_CODE = [kind for kind in KINDS if kind not in ("single_level", "skip", "weighted_mean")]
"""Those that share no module; the others differ from `concat` in what they attend to, which has a test of its own."""
WIDTH, LEVELS, OUT = 24, 6, 32
SMILES = ("CC(=O)Oc1ccccc1C(=O)O", "C", "[Na+].[Cl-]", "Cn1c(=O)c2c(ncn2C)n(C)c1=O")


def of_kind(kind, **changes):
    return dataclasses.replace(matched_kind(kind), **changes)


@functools.cache
def matched_kind(kind):
    return matched(kind, MultiLevelConfig.paper(depth=2), WIDTH, LEVELS, OUT)


def drawn(name, shape, rng):
    """Weights of the usual sizes."""
    if name == "level_logits":
        return np.zeros(shape)
    if name == "scale":
        return 1 + 0.1 * rng.standard_normal(shape)
    return rng.standard_normal(shape) * (shape[-2] ** -0.5 if name == "kernel" else 0.5)


def built(config):
    """The module with weights from numpy: nothing is compiled."""
    module = nnx.eval_shape(lambda: config.build(WIDTH, LEVELS, OUT, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(module)
    rng = np.random.default_rng(3)
    values = {path: variable.replace(jnp.asarray(drawn(path[-1], variable.shape, rng), jnp.float32))
              for path, variable in nnx.to_flat_state(state)}  # fmt: skip
    return nnx.merge(graphdef, nnx.from_flat_state(values))


def nodes_of(molecules, seed=0):
    """Random levels, zero at padding nodes as encoders leave them."""
    count = int(molecules.atoms.n_node[0, :-1].sum())
    shape = (LEVELS, 1, molecules.atoms.nodes.shape[1], WIDTH)
    levels = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    levels[:, :, count:] = 0
    return jnp.asarray(levels)


@pytest.mark.parametrize("sizes", [(64, 128, 2), (300, 4096, 6)], ids=["tiny", "7B"])
def test_kinds_are_equal_in_size(sizes):
    width, out, depth = sizes
    reference = MultiLevelConfig.paper(depth=depth)
    wanted = count_parameters(reference, width, LEVELS, out)
    for kind in WITH_TOKENS:
        config = matched(kind, reference, width, LEVELS, out)
        assert config.num_tokens(LEVELS) == 28
        assert count_parameters(config, width, LEVELS, out) == pytest.approx(wanted, rel=TOLERANCE), kind
    with pytest.raises(ConfigError, match="sizes are taken from kind=multi_level"):
        matched("concat", of_kind("skip"), width, LEVELS, out)
    with pytest.raises(ConfigError, match=r"no width of resampler has .* parameters within 5%"):
        matched("resampler", MultiLevelConfig.paper(depth=1), 8, LEVELS, 8)


def test_a_preset_of_another_kind():
    config = runs.read_config(stage2.get_config("tiny,projector=single_level,graph_encoder=gatv2"))
    assert (config.preset, config.init_from) == ("tiny-single_level-gatv2", "runs/stage1-tiny-single_level-gatv2")
    assert (config.model.projector.kind, config.model.projector.level) == ("single_level", -1)
    assert config.model.graph_encoder == GATv2Config.usual(width=64)
    for wrong in ("tiny,projectors=skip", "tiny,projector=", "tiny,projector=nothing"):
        with pytest.raises(ValueError, match=r"neither graph_encoder=KIND nor projector=KIND|kind: '.*' is not one of"):
            stage1.get_config(wrong)


@pytest.mark.parametrize("kind", OWN_CODE)
def test_a_molecule_s_tokens_are_its_own(kind):
    """Whatever else is in the batch, and however much padding."""
    module = built(of_kind(kind))
    run = jax.jit(lambda levels, molecules: module(levels, molecules)[0])
    together = MoleculeGraphs.from_smiles(SMILES)
    levels = nodes_of(together)
    tokens = np.asarray(run(levels, together))[0]
    assert tokens.shape[1:] == (of_kind(kind).num_tokens(LEVELS), OUT)
    start = 0
    for slot, smiles in enumerate(SMILES):
        alone = MoleculeGraphs.from_smiles([smiles])
        atoms = int(alone.atoms.n_node[0, 0])
        own = jnp.zeros((LEVELS, 1, alone.atoms.nodes.shape[1], WIDTH))
        own = own.at[:, :, :atoms].set(levels[:, :, start : start + atoms])
        np.testing.assert_allclose(np.asarray(run(own, alone))[0, 0], tokens[slot], atol=2e-5)
        start += atoms
    if kind != "none":
        assert np.ptp(tokens[: len(SMILES)], axis=0).max() > 0.1  # and not everybody's


@pytest.mark.parametrize("kind", [kind for kind in OWN_CODE if kind not in ("none", "mlp_nodes")])
def test_the_order_of_atoms_is_nothing(kind):
    module = built(of_kind(kind))
    molecules = MoleculeGraphs.from_smiles(SMILES[:1])
    levels = nodes_of(molecules)
    atoms = int(molecules.atoms.n_node[0, 0])
    order = np.arange(levels.shape[2])
    order[:atoms] = np.random.default_rng(1).permutation(atoms)
    run = jax.jit(lambda levels: module(levels, molecules)[0][0, 0])
    np.testing.assert_allclose(run(levels[:, :, order]), run(levels), atol=2e-5)


def read_levels(kind, **changes):
    """Levels that a projector's tokens depend on."""
    module = built(of_kind(kind, **changes))
    molecules = MoleculeGraphs.from_smiles(SMILES)

    run = jax.jit(lambda levels: module(levels, molecules)[0][0, : len(SMILES)])
    levels = nodes_of(molecules)
    before = run(levels)
    return [level for level in range(LEVELS) if jnp.abs(run(levels.at[level].mul(-2)) - before).max() > 1e-4]


def test_padding_is_in_no_slot():
    """What thousands of padding nodes have would be added up in one place, for nothing."""
    molecules = MoleculeGraphs.from_smiles(SMILES)
    for graphs in (molecules.atoms, molecules.motifs):
        counts = np.asarray(graphs.n_node[0])
        slots = [slot for slot in range(len(SMILES)) for _ in range(counts[slot])]
        padding = graphs.nodes.shape[1] - len(slots)
        assert padding > 0
        np.testing.assert_array_equal(parts.slot_ids(graphs)[0], slots + [len(counts)] * padding)


@pytest.mark.parametrize(("encoder", "kind"), [*(("gin", kind) for kind in WITH_TOKENS), ("gatv2", "multi_level")])
def test_the_graph_side_computes_in_float32(encoder, kind):
    """Frozen weights may be stored in bfloat16; sums over neighbours and molecules would lose their digits in it."""
    molecules = MoleculeGraphs.from_smiles(SMILES)

    @jax.jit
    def encode(weights):
        with jax.numpy_dtype_promotion("strict"):
            levels = nnx.merge(graphdefs[0], weights[0])(molecules.atoms)
            return levels, nnx.merge(graphdefs[1], weights[1])(levels, molecules)[0]

    config = GRAPH_ENCODERS[encoder].of_width(WIDTH)
    modules = config.build(rngs=nnx.Rngs(0)), of_kind(kind).build(WIDTH, LEVELS, OUT, rngs=nnx.Rngs(1))
    graphdefs, weights = zip(*map(nnx.split, modules), strict=True)
    stored = jax.tree.map(lambda x: x.astype(jnp.bfloat16), weights)
    found, expected = encode(stored), encode(jax.tree.map(lambda x: x.astype(jnp.float32), stored))
    for name, ours, theirs, tolerance in zip(("levels", "tokens"), found, expected, (1e-6, 0.02), strict=True):
        assert ours.dtype == jnp.float32, name
        np.testing.assert_allclose(ours, theirs, atol=tolerance, err_msg=name)


def test_kinds_read_the_levels_that_they_say():
    last, every = [LEVELS - 1], list(range(LEVELS))
    assert {kind: read_levels(kind) for kind in WITH_TOKENS} == {
        "concat": every,
        "mlp_nodes": last,
        "multi_level": every,
        "multi_level_without_motifs": every,
        "resampler": last,
        "single_level": last,
        "skip": every,
        "weighted_mean": every,
    }
    assert read_levels("single_level", level=2) == [2]
    with pytest.raises(ConfigError, match=r"level=6: the encoder has 6 levels"):
        built(of_kind("single_level", level=6))


def test_what_nodes_are_made_of():
    levels = jax.random.normal(jax.random.key(1), (LEVELS, 1, 5, WIDTH))
    items = {kind: built(of_kind(kind)).items(levels) for kind in ("concat", "skip", "weighted_mean")}
    np.testing.assert_array_equal(items["concat"][0, 3], np.asarray(levels)[:, 0, 3].reshape(-1))
    np.testing.assert_allclose(items["skip"], levels.sum(axis=0), rtol=1e-5)
    np.testing.assert_allclose(items["weighted_mean"], levels.mean(axis=0), atol=1e-6)
    np.testing.assert_array_equal(built(of_kind("skip", reduce="max")).items(levels), levels.max(axis=0))
    one_sided = built(of_kind("weighted_mean"))
    one_sided.level_logits[...] = one_sided.level_logits[...].at[4].set(50.0)
    np.testing.assert_allclose(one_sided.items(levels), levels[4], atol=1e-6)


@pytest.mark.parametrize("smiles", ["C", "CCO", "C" * 28, "C" * 41])
def test_nodes_are_pooled_as_torch_does(smiles):
    molecules = MoleculeGraphs.from_smiles([smiles, "CC"])
    levels = nodes_of(molecules)
    module = built(of_kind("mlp_nodes"))
    pooled = np.asarray(module(levels, molecules)[1]["pre_norm"][0, 0] - module.places[...])
    nodes = torch.tensor(np.asarray(levels)[-1, 0, : len(smiles)])
    expected = torch.nn.AdaptiveAvgPool1d(28)(nodes.T).T.numpy()
    np.testing.assert_allclose(pooled, expected, atol=1e-5)
    mean = built(of_kind("mlp_nodes", pool="mean"))
    pooled = np.asarray(mean(levels, molecules)[1]["pre_norm"][0, 0] - mean.places[...])
    np.testing.assert_allclose(pooled, np.tile(nodes.mean(axis=0), (28, 1)), atol=1e-5)


def test_queries_are_shared_out_among_levels():
    """28 tokens of 6 levels: five of each of the first four, four of each of the others."""
    module = built(of_kind("multi_level_without_motifs"))
    molecules = MoleculeGraphs.from_smiles(SMILES[:1])
    levels = nodes_of(molecules)
    run = jax.jit(lambda levels: module(levels, molecules)[0][0, 0])
    before = run(levels)
    changed = [np.flatnonzero(jnp.abs(run(levels.at[level].mul(-2)) - before).max(axis=1) > 1e-4).tolist()
               for level in range(LEVELS)]  # fmt: skip
    assert [len(each) for each in changed] == [5, 5, 5, 5, 4, 4]
    assert np.concatenate(changed).tolist() == list(range(28))


@pytest.mark.parametrize("kind", [kind for kind in OWN_CODE if kind != "none"])
def test_flops_are_those_of_the_compiled_program(kind):
    """Attention's own products are compiled as well, and only some kinds count them: a little more, never less."""
    config = dataclasses.replace(of_kind(kind))
    shape = BatchShape(2, 1, helpers.ROW)
    slots, atoms, _, motifs = shape.per_shard()
    molecules = MoleculeGraphs.from_smiles(SMILES)

    def resized(graphs, nodes):
        n_node = jnp.zeros((1, slots), jnp.int32).at[0, :2].set(jnp.array([nodes - 1, 1]))  # the last is padding
        return graphs._replace(nodes=jnp.zeros((1, nodes, graphs.nodes.shape[-1]), graphs.nodes.dtype), n_node=n_node)

    molecules = MoleculeGraphs(resized(molecules.atoms, atoms), resized(molecules.motifs, motifs))
    graphdef, state = nnx.split(built(config))
    names = [f"projector/{parameters.path_name(path)}" for path, _ in nnx.to_flat_state(state)]

    def loss(state, levels):
        return jnp.sum(nnx.merge(graphdef, state)(levels, molecules)[0] ** 2)

    lora = LoRAConfig(rank=0, alpha=1.0, dropout=0.0, targets=())
    for trained, argnums in ((names, (0, 1)), ([], 1)):
        text = jax.jit(jax.grad(loss, argnums)).lower(state, jnp.zeros((LEVELS, 1, atoms, WIDTH))).compile().as_text()
        linear = LinearFlops(trained, lora, "projector")
        counted = config.flops(shape, WIDTH, LEVELS, OUT, linear, to_levels=True).total()
        assert 0.97 < hlo.analyse(text).matmul_flops / counted < 1.6


@pytest.mark.parametrize("kind", [*KINDS, "gin", "gatv2"])
def test_a_model_is_stored_and_exchanged(kind, tmp_path):
    """As a folder, and as files of torch: all arrays are there again."""
    config = helpers.model_config(graph_width=WIDTH)
    if kind in KINDS:
        config = dataclasses.replace(config, projector=of_kind(kind))
    else:
        config = dataclasses.replace(config, graph_encoder=GRAPH_ENCODERS[kind].of_width(WIDTH))
    model = LLaMo(config, rngs=nnx.Rngs(0))
    model.save(tmp_path / "model")
    arrays, again = (parameters.flatten(nnx.state(each)) for each in (model, LLaMo.load(tmp_path / "model")))
    assert arrays.keys() == again.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(again[name], array, err_msg=name)
    for part, module_config, args in (
        ("projector", config.projector, (config.num_levels,)),
        ("graph_encoder", config.graph_encoder, ()),
    ):
        own = {
            name.removeprefix(f"{part}/"): np.asarray(x) for name, x in arrays.items() if name.startswith(f"{part}/")
        }
        shapes = {name: array.shape for name, array in own.items()}
        rules = torch_names.rules_of(module_config, shapes, *args)
        back = torch_names.from_torch(rules, torch_names.to_torch(rules, own), shapes)
        assert back.keys() == own.keys()
        for name, array in own.items():
            np.testing.assert_array_equal(back[name][...], array, err_msg=name)


@pytest.mark.parametrize("place", [f"projector={kind}" for kind in OWN_CODE] + ["graph_encoder=gatv2"])
def test_sharded_equals_single_device(place):
    part, _, kind = place.partition("=")
    config = helpers.model_config(graph_width=WIDTH)
    chosen = of_kind(kind) if part == "projector" else GATv2Config.usual(width=WIDTH)
    definition, arrays = helpers.definition_and_arrays(dataclasses.replace(config, **{part: chosen}))
    names = [name for name in arrays if not name.startswith("language_model/")]
    results = []
    for shards in (1, 8):
        mesh = (
            sharding.make_mesh(MeshConfig(data=2, fsdp=-1, tensor=1)) if shards > 1 else sharding.single_device_mesh()
        )
        with jax.set_mesh(mesh):
            batch = sharding.put_batch(helpers.host_batch(shards), mesh)

            @jax.jit
            def run(arrays, batch):
                model = definition.merge(arrays)
                tokens, _ = model.encode_graphs(batch.molecules, batch_statistics=True)
                return jnp.sum(model.splice(batch, tokens) ** 2)

            value, gradient = jax.value_and_grad(run)(arrays, batch)
            results.append((float(value), {name: np.asarray(gradient[name]) for name in names}))
    (value, gradient), (other_value, other_gradient) = results
    assert other_value == pytest.approx(value, rel=1e-5)
    # of all, as some gradients are nothing but rounding: a bias in front of a normalisation has none
    largest = max(abs(each).max() for each in gradient.values())
    for name in names:
        scale = abs(gradient[name]).max() + 1e-2 * largest
        np.testing.assert_allclose(other_gradient[name], gradient[name], atol=2e-4 * scale, err_msg=name)


@pytest.mark.parametrize("choice", ["tiny,projector=none", "tiny,graph_encoder=gatv2,projector=resampler"])
def test_it_trains_goes_on_to_stage_2_and_answers(choice, few, tmp_path):
    def config_of(stage):
        return types.SimpleNamespace(get_config=lambda preset: stage.get_config(choice))

    runs.train(small_run(few, config_of(stage1)), tmp_path / "one")
    runs.train(small_run(few, config_of(stage2), init_from=str(tmp_path / "one")), tmp_path / "two")
    assistant = Assistant.load(tmp_path / "two", decoding=DecodingConfig(max_new_tokens=5))
    answers = [assistant.ask("Describe this molecule.", smiles=smiles) for smiles in ("CCO", "CCO", "c1ccncc1")]
    assert answers[0] == answers[1]
    assert all(answers)


def test_the_example_of_contributing():
    """As it stands there: as large as the others, and reading the levels that it says."""
    (text,) = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.DOTALL)
    assert len(text.splitlines()) <= 30
    example = types.ModuleType("example")
    exec(compile(text, "CONTRIBUTING.md", "exec"), vars(example))
    try:
        assert read_levels("ends") == [0, LEVELS - 1]
        config = of_kind("ends")
        assert config.num_tokens(LEVELS) == 28
        wanted = count_parameters(MultiLevelConfig.paper(depth=2), WIDTH, LEVELS, OUT)
        assert count_parameters(config, WIDTH, LEVELS, OUT) == pytest.approx(wanted, rel=TOLERANCE)
        assert runs.read_config(stage1.get_config("tiny,projector=ends")).model.projector.kind == "ends"
    finally:
        del PROJECTORS._configs["ends"]


def test_attention_is_that_of_gatv2():
    """Each of two layers against its formula, atom by atom, in numpy; the last one has no ReLU."""
    encoder = GATv2Config.usual(width=8, num_layers=2, num_heads=2).build(rngs=nnx.Rngs(0))
    molecules = MoleculeGraphs.from_smiles(["CC(=O)N", "C"])
    levels = np.asarray(encoder(molecules.atoms))[:, 0]
    for number in range(2):
        layer = jax.tree.map(lambda x, n=number: np.asarray(x)[n], nnx.to_pure_dict(nnx.state(encoder.layers)))
        expected = by_formula(encoder, layer, levels[number][:5], molecules)
        update = expected if number == 1 else np.maximum(0, expected)
        np.testing.assert_allclose(levels[number + 1][:5], levels[number][:5] + update, atol=1e-5)
        assert expected.min() < -0.01


def by_formula(encoder, layer, x, molecules):
    """What GATv2's attention makes of the five atoms of the first molecule."""
    result = np.zeros((5, 8))
    sent, received = (x @ layer[name]["kernel"] + layer[name]["bias"] for name in ("sender", "receiver"))
    offsets = np.array(encoder.layers.bond_embedding.offsets)
    table = layer["bond_embedding"]["table"]
    arriving = {atom: [(atom, np.zeros(8))] for atom in range(5)}  # and each atom's own
    senders, receivers, bonds = (np.asarray(a)[0] for a in (molecules.atoms.senders, molecules.atoms.receivers,
                                                            molecules.atoms.edges))  # fmt: skip
    for sender, receiver, bond in zip(senders[:6], receivers[:6], bonds[:6], strict=True):
        arriving[int(receiver)].append((int(sender), table[bond + offsets].sum(axis=0)))
    for atom, found in arriving.items():
        hidden = np.stack([sent[s] + received[atom] + bond for s, bond in found]).reshape(-1, 2, 4)
        scores = (np.where(hidden > 0, hidden, 0.2 * hidden) * layer["attention"]).sum(axis=-1)
        weights = np.exp(scores) / np.exp(scores).sum(axis=0)
        values = np.stack([sent[s] for s, _ in found]).reshape(-1, 2, 4)
        attended = (weights[..., None] * values).sum(axis=0).reshape(8)
        result[atom] = attended / np.sqrt(1 + 1e-5)
    return result


def test_switches_of_the_encoder():
    molecules = MoleculeGraphs.from_smiles(SMILES)

    def levels(**changes):
        encoder = GINConfig.paper(width=8, num_layers=1, **changes).build(rngs=nnx.Rngs(0))
        return np.asarray(encoder(molecules.atoms))

    plain, residual, without = levels(), levels(residual=True), levels(batch_norm=False)
    np.testing.assert_allclose(residual[1], plain[0] + plain[1], atol=1e-5)
    # running statistics of an encoder that saw nothing are 0 and 1
    np.testing.assert_allclose(without[1], plain[1], rtol=1e-3, atol=1e-4)
    bare = GINConfig.paper(width=8, batch_norm=False).build(rngs=nnx.Rngs(0))
    assert not nnx.to_flat_state(nnx.state(bare, nnx.BatchStat))
    assert any("norm" in "/".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(
        GINConfig.paper(width=8).build(rngs=nnx.Rngs(0)))))  # fmt: skip


def test_encoders_drop_in_training_alone():
    molecules = MoleculeGraphs.from_smiles(SMILES)
    for config in (GINConfig.paper(width=8, num_layers=2, dropout=0.5), GATv2Config.usual(width=8, num_layers=2)):
        encoder, plain = (dataclasses.replace(config, dropout=rate).build(rngs=nnx.Rngs(0)) for rate in (0.5, 0.0))
        expected = np.asarray(plain(molecules.atoms))
        np.testing.assert_array_equal(encoder(molecules.atoms), expected)
        one, other = (encoder(molecules.atoms, dropout_key=jax.random.key(seed)) for seed in (0, 1))
        assert float(jnp.abs(one[1:] - expected[1:]).max()) > 0.1
        assert float(jnp.abs(one[1:] - other[1:]).max()) > 0.1


def test_every_layer_of_an_encoder_drops_anew():
    class Draws(nnx.Module):
        def __init__(self):
            self.scale = nnx.Param(jnp.ones(3))  # of three layers

        def norms(self):
            return ()

        def __call__(self, graphs, mask, is_last, batch_statistics, dropout_key):
            return 0 * graphs.nodes + self.scale[...] * jax.random.uniform(dropout_key), ()

    molecules = MoleculeGraphs.from_smiles(SMILES)
    embedding = encoder_parts.FeatureEmbedding(ATOM_CARDINALITIES, 4, rngs=nnx.Rngs(0))
    key = jax.random.key(0)
    levels = encoder_parts.run_layers(Draws(), 3, embedding, molecules.atoms, batch_statistics=False, dropout_key=key)
    assert len(set(levels[1:, 0, 0, 0].tolist())) == 3


def test_features_are_embedded_exactly_on_every_device():
    """Products on TPUs round to bfloat16 and on GPUs to TensorFloat-32, unless they are told not to."""
    embedding = encoder_parts.FeatureEmbedding(ATOM_CARDINALITIES, 4, rngs=nnx.Rngs(0))
    program = jax.make_jaxpr(embedding)(jnp.zeros((2, len(ATOM_CARDINALITIES)), jnp.int32))
    (product,) = (each for each in program.eqns if each.primitive.name == "dot_general")
    assert set(product.params["precision"]) == {jax.lax.Precision.HIGHEST}


def test_queries_of_a_resampler_look_at_nodes_by_scaled_products():
    """Of one molecule, that is attention as JAX has it."""
    module = built(of_kind("resampler"))
    attention = module.layers[0].cross_attention
    molecules = MoleculeGraphs.from_smiles(SMILES[:1])
    ids, slots = parts.slot_ids(molecules.atoms), molecules.atoms.n_node.shape[-1]
    nodes = 3 * nodes_of(molecules)[-1]  # scores that are not all alike
    width = module.config.width
    x = jax.random.normal(jax.random.key(0), (1, slots, module.config.num_queries, width))
    found, _ = attention.to_nodes(x, nodes, ids, slots)
    own = nodes[:, np.asarray(ids[0]) == 0]
    q, k, v = (parts.heads(linear(y), attention.num_heads) for linear, y in
               ((attention.query, x[:, 0]), (attention.key, own), (attention.value, own)))  # fmt: skip
    expected = attention.out(jax.nn.dot_product_attention(q, k, v).reshape(1, -1, width))
    np.testing.assert_allclose(found[0, 0], expected[0], atol=1e-5)
    alike = attention.out(jnp.mean(v, axis=1).reshape(1, 1, width))
    assert float(jnp.abs(found[0, 0] - alike[0]).max()) > 1e-3


def test_layers_of_a_resampler_add():
    """Where none of its three parts says anything, the queries stay as they were."""
    module = built(of_kind("resampler"))
    molecules = MoleculeGraphs.from_smiles(SMILES)
    layer, ids = module.layers[0], parts.slot_ids(molecules.atoms)
    slots = molecules.atoms.n_node.shape[-1]
    x = jax.random.normal(jax.random.key(0), (1, slots, module.config.num_queries, module.config.width))
    silent = (layer.self_attention.out, layer.cross_attention.out, layer.down)
    for linear in silent:
        linear.kernel[...], linear.bias[...] = 0 * linear.kernel[...], 0 * linear.bias[...]
    nodes = nodes_of(molecules)[-1]
    np.testing.assert_allclose(layer(x, nodes, ids, slots)[0], x, atol=1e-6)
    for linear in silent:  # and each adds its own
        linear.bias[...] = linear.bias[...] + 1
        np.testing.assert_allclose(layer(x, nodes, ids, slots)[0], x + 1, atol=1e-6)
        linear.bias[...] = linear.bias[...] - 1


@pytest.mark.parametrize("kind", ["concat", "single_level"])
def test_tokens_are_normalised_before_the_mlp(kind):
    module = built(of_kind(kind))
    molecules = MoleculeGraphs.from_smiles(SMILES)
    tokens, out = module(nodes_of(molecules), molecules)
    before = np.asarray(out["pre_norm"], np.float64)
    spread = np.sqrt(before.var(axis=-1, keepdims=True) + module.config.layer_norm_eps)
    normal = (before - before.mean(axis=-1, keepdims=True)) / spread
    normal = normal * np.asarray(module.norm.scale[...]) + np.asarray(module.norm.bias[...])
    np.testing.assert_allclose(parts.apply_mlp(module.mlp, jnp.asarray(normal, jnp.float32)), tokens, atol=1e-4)
