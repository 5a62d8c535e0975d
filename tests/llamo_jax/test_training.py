"""The train step, what it trains, and runs that stop and continue."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import networkx
import numpy as np
import optax
import pytest
from flax import nnx

from configs import stage1, stage2
from configs.presets import PRESETS
from data_pipeline.conversation import Message
from data_pipeline.generic_graph import graph_record
from data_pipeline.jobs import Settings, prepare, prepare_records
from data_pipeline.loader import BatchLoader
from data_pipeline.records import read_manifest
from data_pipeline.vocabulary import GraphVocabulary
from llamo_jax import parameters, runs, sharding
from llamo_jax.apps.assistant import Assistant
from llamo_jax.checksums import checksums
from llamo_jax.config import ConfigError, DecodingConfig, MeshConfig, from_dict
from llamo_jax.convert import __main__ as convert
from llamo_jax.models import ModelConfig, layers
from llamo_jax.models.definition import define_model, initial_arrays, statistics_names
from llamo_jax.models.llama import RopeScaling
from llamo_jax.models.lora import LoRALinear, with_dropout
from llamo_jax.parameters import abstract_arrays
from llamo_jax.training import checkpoints, loss, workdir
from llamo_jax.training.loss import answer_likelihood, cross_entropy
from llamo_jax.training.program import make_program
from llamo_jax.training.step import TrainState, empty_log, make_train_step
from llamo_jax.training.trainable import learning_rate_schedule, make_optimizer, select_trainable
from tests import helpers

STAGE2_RULES = ((r".*/lora_.*", True), ("projector/.*", True), (".*", False))


def train_config(**changes):
    return dataclasses.replace(runs.read_config(stage1.get_config("tiny")).train, steps=10, warmup_steps=2, **changes)


def start(config, rules, **changes):
    """A definition, its step, the initial state and the frozen arrays."""
    definition, arrays = helpers.definition_and_arrays(config)
    statistics = statistics_names(definition)
    trained = select_trainable([name for name in arrays if name not in statistics], rules)
    optimizer = make_optimizer(train_config(**changes))
    chosen = {name: arrays[name] for name, on in trained.items() if on}
    running = {name: arrays[name] for name in statistics}
    state = TrainState(
        jnp.zeros((), jnp.int32), chosen, running, optimizer.init(chosen), jax.tree.map(jnp.asarray, empty_log())
    )
    frozen = {name: arrays[name] for name, on in trained.items() if not on}
    batch_statistics = any(name.startswith("graph_encoder/") for name in chosen)
    step = make_train_step(definition, optimizer, batch_statistics=batch_statistics, seed=0)
    return definition, step, state, frozen


def stacked(*batches):
    return jax.tree.map(lambda *x: jnp.stack(x), *batches)


def test_step_lowers_the_loss_and_compiles_once():
    _, step, state, frozen = start(helpers.model_config(), ((".*", True),))
    losses = []
    for _ in range(6):
        state, metrics = step(state, frozen, stacked(helpers.batch()))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 0.1
    assert step._cache_size() == 1
    assert int(state.step) == 6
    assert int(metrics["targets"]) == int(helpers.host_batch().target_mask.sum())
    assert int(state.log["tokens"]) == 6 * np.count_nonzero(helpers.host_batch().segments)  # graph tokens too


def test_every_batch_of_a_step_drops_anew():
    definition, _, state, frozen = start(helpers.model_config(), ((".*", True),))
    signs = helpers.batch()._replace(positions=jnp.ones((8, 96), jnp.int32))
    signs = stacked(signs, signs._replace(positions=-signs.positions))

    def drawn(model, batch, *, batch_statistics=False, dropout_key=None):
        total = jax.random.uniform(dropout_key) * batch.positions[0, 0]
        return total + 0 * jnp.sum(model.projector.norm.bias[...]), jnp.int32(1)

    optimizer = optax.sgd(0.0)
    state = state._replace(optimizer=optimizer.init(state.trained))
    step = make_train_step(definition, optimizer, batch_statistics=False, seed=0, objective=drawn)
    assert abs(float(step(state, frozen, signs)[1]["loss"])) > 1e-3  # the same draw twice would come to nothing


def test_frozen_arrays_stay_bit_identical():
    config = helpers.model_config(lora_rank=4)
    _, step, state, frozen = start(config, STAGE2_RULES)
    assert {name.split("/")[0] for name in frozen} == {"graph_encoder", "language_model"}
    assert all("lora" in name or name.startswith("projector/") for name in state.trained)
    before = jax.device_get((state.trained, state.statistics, frozen))
    for _ in range(3):
        state, _ = step(state, frozen, stacked(helpers.batch()))
    jax.tree.map(np.testing.assert_array_equal, before[1:], jax.device_get((state.statistics, frozen)))
    unchanged = [name for name, array in state.trained.items() if np.array_equal(array, before[0][name])]
    assert unchanged == []
    # no moments for what is frozen
    moments = {leaf.shape for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim}
    assert moments == {array.shape for array in state.trained.values()}


def test_accumulation_equals_one_large_batch():
    """Rows with different numbers of targets: the mean is over all targets, not over batches."""
    config = helpers.model_config(lora_rank=4)
    first = second = helpers.batch()
    second = second._replace(target_mask=second.target_mask & (jnp.arange(96) % 3 == 0))
    gradients = []
    # the same molecules on both, so that one graph set serves the large batch
    second = second._replace(molecules=first.molecules, molecule_slot=first.molecule_slot)
    for accumulate in (True, False):
        definition, _, state, frozen = start(config, STAGE2_RULES)
        optimizer = optax.sgd(1.0)
        step = make_train_step(definition, optimizer, batch_statistics=False, seed=0)
        before = jax.device_get(state.trained)
        state = state._replace(optimizer=optimizer.init(state.trained))
        if accumulate:
            state, metrics = step(state, frozen, stacked(first, second))
        else:
            rows = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)
            state, metrics = step(state, frozen, stacked(rows))
        gradients.append({name: before[name] - x for name, x in jax.device_get(state.trained).items()})
        gradients[-1]["loss"] = metrics["loss"]
    largest = max(np.abs(gradient).max() for gradient in gradients[1].values())
    for name, expected in gradients[1].items():  # the golden values' bound for full gradients
        if name.endswith("_attention/key/bias"):  # shifts all scores of a softmax alike: rounding noise alone
            assert max(np.abs(expected).max(), np.abs(gradients[0][name]).max()) < 1e-7 * largest
            continue
        np.testing.assert_allclose(
            gradients[0][name], expected, rtol=0, atol=2e-3 * np.abs(expected).max(), err_msg=name
        )


@pytest.mark.parametrize(("chunk", "tied"), [(10_000, False), (96, False), (96, True)])
def test_loss_and_its_gradients_equal_those_of_whole_logits(chunk, tied):
    """Against optax on [B, T, V] logits; the gradient by the head (or the tied embedding) as well as by the rest."""
    config = helpers.model_config(loss_chunk=chunk, tie_embeddings=tied)
    definition, arrays = helpers.definition_and_arrays(config)
    batch = helpers.batch(shards=4)

    def chunked(arrays):
        model = definition.merge(arrays)
        return cross_entropy(model, model.hidden_states(batch)[0], batch)

    def whole(arrays):
        losses = optax.softmax_cross_entropy_with_integer_labels(definition.merge(arrays)(batch)[0], batch.targets)
        return jnp.sum(jnp.where(batch.target_mask, losses, 0)), jnp.sum(batch.target_mask)

    (got, count), gradients = jax.jit(jax.value_and_grad(chunked, has_aux=True))(arrays)
    (expected, expected_count), expected_gradients = jax.jit(jax.value_and_grad(whole, has_aux=True))(arrays)
    assert int(count) == int(expected_count)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(chunked)(arrays)[0], expected, rtol=1e-6)
    for name, gradient in expected_gradients.items():
        np.testing.assert_allclose(
            gradients[name], gradient, rtol=0, atol=1e-5 * float(jnp.abs(gradient).max()) + 1e-6, err_msg=name
        )


@pytest.fixture(scope="module")
def step_of_one_device():
    _, step, state, frozen = start(helpers.model_config(), ((".*", True),))
    return jax.device_get(step(state, frozen, stacked(helpers.batch())))


@pytest.mark.parametrize(
    "mesh_config",
    [MeshConfig(data=8, fsdp=1, tensor=1), MeshConfig(data=2, fsdp=2, tensor=2), MeshConfig(data=1, fsdp=4, tensor=2)],
)
def test_sharded_step_equals_one_device(step_of_one_device, mesh_config):
    config, (expected, expected_metrics) = helpers.model_config(), step_of_one_device
    definition, step, state, frozen = start(config, ((".*", True),))
    mesh = sharding.make_mesh(mesh_config)
    abstract = abstract_arrays(definition.variables, config.frozen_dtype, mesh, {})

    def place(arrays):
        return {name: jax.device_put(x, abstract[name].sharding) for name, x in arrays.items()}

    state = state._replace(
        step=jax.device_put(state.step, sharding.replicated(mesh)),
        trained=place(state.trained),
        statistics=place(state.statistics),
        optimizer=jax.device_put(state.optimizer, sharding.replicated(mesh)),
    )
    shards = sharding.batch_shards(mesh)
    batches = jax.tree.map(lambda x: x[None], helpers.host_batch(shards))
    got, metrics = step(state, frozen, sharding.put_batch(batches, mesh, leading=1))
    np.testing.assert_allclose(metrics["loss"], expected_metrics["loss"], rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], expected_metrics["grad_norm"], rtol=1e-4)
    for name in expected.statistics:
        np.testing.assert_allclose(got.statistics[name], expected.statistics[name], atol=2e-5)
    kernel = got.trained["language_model/layers/gate/kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 32 // mesh.shape["fsdp"], 48 // mesh.shape["tensor"])


def test_initial_arrays_do_not_depend_on_the_mesh():
    config = helpers.model_config()
    definition = define_model(config)
    arrays = []
    for mesh_config in (MeshConfig(data=8, fsdp=1, tensor=1), MeshConfig(data=1, fsdp=4, tensor=2)):
        mesh = sharding.make_mesh(mesh_config)
        arrays.append(
            initial_arrays(config, abstract_arrays(definition.variables, config.frozen_dtype, mesh, {}), seed=0)
        )
    jax.tree.map(np.testing.assert_array_equal, *map(jax.device_get, arrays))
    assert checksums(arrays[0]) == checksums(arrays[1])
    others = initial_arrays(config, abstract_arrays(definition.variables, config.frozen_dtype, mesh, {}), seed=1)
    for name, array in others.items():  # another seed, other weights, but for those that begin as constants
        assert np.ptp(array) == 0 or np.abs(np.asarray(array) - arrays[0][name]).max() > 1e-3, name
    name = "projector/norm/bias"
    assert checksums({**arrays[0], name: arrays[0][name].at[3].set(1e-7)}) != checksums(arrays[0])


def test_mesh_errors_name_the_numbers():
    with pytest.raises(ConfigError, match="does not fit 8 devices"):
        sharding.make_mesh(MeshConfig(data=3, fsdp=1, tensor=1))
    definition = define_model(helpers.model_config(mlp_width=50))
    with pytest.raises(ConfigError, match="down/kernel: size 50 does not divide over 4 devices of 'tensor'"):
        sharding.parameter_shardings(definition.variables, sharding.make_mesh(MeshConfig(data=2, fsdp=1, tensor=4)))


def test_trainable_rules():
    names = ["a/kernel", "a/bias", "b/kernel"]
    assert select_trainable(names, ((r"a/.*", False), (".*", True))) == {
        "a/kernel": False,
        "a/bias": False,
        "b/kernel": True,
    }
    with pytest.raises(ConfigError, match=r"'c/.\*' matches no parameter"):
        select_trainable(names, (("c/.*", True), (".*", False)))
    with pytest.raises(ConfigError, match=r"no rule for \['b/kernel'\]"):
        select_trainable(names, (("a/.*", True),))


def test_schedule_and_decay():
    schedule = learning_rate_schedule(train_config(learning_rate=1.0, final_learning_rate=0.1))
    np.testing.assert_allclose(
        [schedule(0), schedule(2), schedule(6), schedule(10)], [1 / 3, 1.0, 0.55, 0.1], rtol=1e-5
    )
    optimizer = make_optimizer(train_config(learning_rate=1.0, weight_decay=0.5))
    decayed = {f"x/{name}" for name in ("kernel", "table", "embedding", "lora_a", "lora_b")}
    others = ("x/bias", "x/scale", "x/lora_magnitude", "motif_queries", "y/eps")
    arrays = {name: jnp.ones(()) for name in (*decayed, *others)}
    zero = jax.tree.map(jnp.zeros_like, arrays)
    updates, _ = optimizer.update(zero, optimizer.init(arrays), arrays)
    assert {name for name, update in updates.items() if update} == decayed


def test_gradients_are_clipped_as_a_whole():
    """After a first step of equal moments: of 300 and 400 is left what 0.6 and 0.8 are."""
    found = []
    for clip, large in ((1.0, (300.0, 400.0)), (None, (0.6, 0.8))):
        optimizer = make_optimizer(train_config(clip=clip, learning_rate=1.0))
        arrays = {"a/kernel": jnp.ones(2)}
        _, state = optimizer.update({"a/kernel": jnp.array([0.03, 0.04])}, optimizer.init(arrays), arrays)
        found.append(optimizer.update({"a/kernel": jnp.array(large)}, state, arrays)[0]["a/kernel"])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)


def test_training_drops_anew_in_every_step():
    config = helpers.model_config(lora_rank=4)
    config = dataclasses.replace(config, lora=dataclasses.replace(config.lora, dropout=0.25))
    definition, step, state, frozen = start(config, STAGE2_RULES)
    held = jax.device_get(state)

    def loss(at):
        again = jax.tree.map(jnp.asarray, held)._replace(step=jnp.int32(at))
        return float(step(again, frozen, stacked(helpers.batch()))[1]["loss"])

    model = definition.merge(*jax.tree.map(jnp.asarray, (held.trained, held.statistics)), frozen)
    total, count = jax.jit(answer_likelihood)(model, helpers.batch())
    first, second = loss(0), loss(1)
    assert loss(1) == second
    assert abs(first - second) > 1e-3
    assert abs(first - float(total / count)) > 1e-3


def test_statistics_go_through_all_batches_of_a_step():
    definition, _, state, frozen = start(helpers.model_config(), ((".*", True),))

    def graph_tokens(model, batch, *, batch_statistics, dropout_key):
        return jnp.sum(model.encode_graphs(batch.molecules, batch_statistics=batch_statistics)[0]), jnp.int32(1)

    step = make_train_step(definition, optax.sgd(0.0), batch_statistics=True, seed=0, objective=graph_tokens)
    first = helpers.batch()
    second = first._replace(molecules=jax.tree.map(lambda x: x[:, ::-1] if x.ndim == 3 else x, first.molecules))
    optimizer = optax.sgd(0.0)
    state = state._replace(optimizer=optimizer.init(state.trained))
    held = jax.device_get(state)

    def statistics(state, *batches):
        state = jax.tree.map(jnp.asarray, state)
        for batch in batches:
            state, _ = step(state, frozen, batch)
        return jax.device_get(state.statistics)

    together, one_by_one, last = (
        statistics(held, *batches)
        for batches in ([stacked(first, second)], [stacked(first), stacked(second)], [stacked(second)])
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), together, one_by_one)
    assert any(abs(together[name] - last[name]).max() > 1e-3 for name in last)


def test_logits_of_bfloat16_are_float32():
    """Losses and their gradients would have three digits."""
    hidden, head = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((1, 3, 8), (8, 16)))
    logits, normaliser = jax.eval_shape(loss._logits, hidden, head)
    assert logits.dtype == normaliser.dtype == jnp.float32


def test_gradients_by_the_head_are_summed_in_float32():
    """Of bfloat16 activations, over all positions: rounded to bfloat16, they would have three digits."""
    definition, arrays = helpers.definition_and_arrays(helpers.model_config())
    hidden = jax.random.normal(jax.random.key(0), (8, 96, 32), jnp.bfloat16)

    def total(head):
        model = definition.merge({**arrays, "language_model/lm_head/kernel": head})
        return cross_entropy(model, hidden, helpers.batch())[0]

    gradient = np.asarray(jax.jit(jax.grad(total))(arrays["language_model/lm_head/kernel"]))
    rounded = np.asarray(jnp.asarray(gradient).astype(jnp.bfloat16), np.float32)
    assert np.mean(gradient != rounded) > 0.9


def test_logits_of_a_whole_batch_never_exist():
    definition, arrays = helpers.definition_and_arrays(helpers.model_config(loss_chunk=96, vocab_size=101))
    batch = helpers.batch()

    def total(hidden):
        return cross_entropy(definition.merge(arrays), hidden, batch)[0]

    program = str(jax.make_jaxpr(jax.value_and_grad(total))(jnp.ones((8, 96, 32))))
    assert "f32[1,96,101]" in program  # of a chunk
    assert "768,101]" not in program
    assert "8,96,101]" not in program


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("stage", [stage1, stage2])
def test_presets_are_complete(preset, stage):
    """Every preset builds its abstract model, and its rules match."""
    config = runs.read_config(stage.get_config(preset))
    definition = define_model(config.model)
    variables = {parameters.path_name(path): v for path, v in nnx.to_flat_state(definition.variables)}
    names = [name for name in variables if name not in statistics_names(definition)]
    trained = select_trainable(names, config.train.trainable)
    sizes = {name: int(np.prod(variables[name].shape)) for name in names}
    language_model = sum(
        size for name, size in sizes.items() if name.startswith("language_model/") and "lora" not in name
    )
    known = {"llama2_7b": 6_738_415_616, "llama3_8b": 8_030_261_248, "qwen2_7b": 7_615_616_512}
    if preset in known:
        assert language_model == known[preset]
        assert not any(on for name, on in trained.items() if name.startswith("language_model/") and "lora" not in name)
    assert config.model.num_graph_tokens == 28
    assert ("lora" in " ".join(names)) == (stage is stage2)


def small_run(few, module=stage1, **changes):
    """The configuration of a run of seconds on a part of the embedded corpus."""
    config = module.get_config("tiny")
    config.data.source = str(few / config.data.task)
    config.data.rows = 8
    config.model.language_model.num_layers = 1
    config.train.update({"steps": 6, "log_every": 2, "eval_every": 100, "checkpoint_every": 4, "warmup_steps": 2})
    config.train.samples = 0
    with config.unlocked():
        for name, value in changes.items():
            config[name] = value
    return runs.read_config(config)


def test_a_row_holds_what_the_data_needs(tmp_path, capsys, monkeypatch):
    """Large molecules are not the ones that are left out; what is given, and what a run began with, stays."""
    table = tmp_path / "rows.csv"
    molecules = ["C" * 60, *("C" * length + "O" for length in range(1, 40))]
    table.write_text("smiles,description\n" + "".join(f"{smiles},An alcohol.\n" for smiles in molecules))
    source = tmp_path / "data"
    prepare({"train": [table]}, source, Settings(task="description"))
    config = stage1.get_config("tiny")
    config.update_from_flattened_dict({"data.source": str(source), "data.rows": 8, "train.samples": 0})
    config.train.update({"steps": 2, "log_every": 1, "eval_every": 2, "checkpoint_every": 2, "warmup_steps": 0})
    config.model.language_model.num_layers = 1
    read = runs.read_config(config)
    row = runs.read_data(read, sharding.make_mesh(read.mesh))[1].train.shape.row
    assert "skipped" not in capsys.readouterr().out
    shown = read_manifest(source)["lengths"]["train"]
    assert row.molecules == 256 // shown["tokens"]["0"]  # as many of the shortest as a row's tokens hold, or fewer
    assert row.atoms >= 60
    trained = []

    def train(config, folder, *_):  # how it is trained is the subject of others
        (folder / "checkpoints" / "2").mkdir(parents=True, exist_ok=True)
        trained.append(config.data)

    monkeypatch.setattr(runs.loop, "train", train)
    runs.train(dataclasses.replace(read, data=dataclasses.replace(read.data, atoms_per_row=70)), tmp_path / "run")
    runs.train(read, tmp_path / "run")
    began = workdir.read_config(tmp_path / "run").data
    assert trained == [began, began]
    assert (began.atoms_per_row, began.edges_per_row, began.motifs_per_row) == (70, row.edges, row.motifs)
    with pytest.raises(ConfigError, match=r"config.data.atoms_per_row=75 .there 70"):
        runs.train(dataclasses.replace(read, data=dataclasses.replace(read.data, atoms_per_row=75)), tmp_path / "run")


def interrupted_after(count, training_batches):
    """A `training_batches` whose user presses Ctrl-C while the next batch is fetched."""

    def batches(self, *arguments):
        yield from itertools.islice(training_batches(self, *arguments), count)
        raise KeyboardInterrupt

    return batches


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


def test_runs_repeat_continue_and_chain(tmp_path, few, monkeypatch):
    config = small_run(few)
    runs.train(config, tmp_path / "one")
    curve = losses(tmp_path / "one")
    assert [step for step, _ in curve] == [2, 4, 6]
    assert json.loads((tmp_path / "one" / "metrics.jsonl").read_text().splitlines()[-1])["validation_loss"] > 0
    assert list((tmp_path / "one").glob("events.out.tfevents.*"))

    # the same seed gives the same curve, digit for digit; also when the run is interrupted in between
    with monkeypatch.context() as patch:
        patch.setattr(BatchLoader, "training_batches", interrupted_after(5, BatchLoader.training_batches))
        with pytest.raises(KeyboardInterrupt):
            runs.train(config, tmp_path / "two")
    assert losses(tmp_path / "two") == curve[:2]
    runs.train(config, tmp_path / "two")
    assert losses(tmp_path / "two") == curve

    # stage 2 starts from stage 1, trains only its own, and names its base
    second = small_run(few, stage2, init_from=str(tmp_path / "one"))
    state = runs.train(second, tmp_path / "stage2")
    base = workdir.read_base(tmp_path / "stage2")
    assert base.folder == (tmp_path / "one").resolve()
    assert base.step == 6
    assert set(state.trained) == {name for name in state.trained if "lora" in name or name.startswith("projector/")}
    definition = define_model(second.model)
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=-1, tensor=1))
    abstract = abstract_arrays(definition.variables, second.model.frozen_dtype, mesh, {})
    arrays, _, step = checkpoints.load_weights(tmp_path / "stage2", abstract)
    assert step == 6
    assert set(arrays) == set(abstract)
    np.testing.assert_array_equal(arrays["projector/norm/scale"], state.trained["projector/norm/scale"])

    # the same on quantized frozen matrices: a little off, from the same base; what was whole comes out whole
    small = dataclasses.replace(second, model=dataclasses.replace(second.model, quantize="int8"))
    state = runs.train(small, tmp_path / "quantized")
    assert workdir.read_base(tmp_path / "quantized") == base
    for (step, theirs), (_, ours) in zip(losses(tmp_path / "stage2"), losses(tmp_path / "quantized"), strict=True):
        assert 0 < abs(ours - theirs) < 0.05 * theirs, step
    assert (
        Assistant.load(tmp_path / "quantized", decoding=DecodingConfig(max_new_tokens=4)).ask(
            "What is this?", smiles="CCO"
        )
        is not None
    )
    convert.main(["to_huggingface", "--checkpoint", str(tmp_path / "quantized"), "--output", str(tmp_path / "out")])
    with pytest.raises(ConfigError, match=r"kernel_\w+ is trained; only frozen matrices can be quantized"):
        runs.train(dataclasses.replace(config, model=small.model), tmp_path / "refused")

    # a base that changed is noticed
    runs.train(dataclasses.replace(config, train=dataclasses.replace(config.train, steps=8)), tmp_path / "one")
    with pytest.raises(workdir.CheckpointError, match="are not those of step 6"):
        checkpoints.load_weights(tmp_path / "stage2", abstract)


def test_dropout_drops_its_rate_and_keeps_the_mean():
    x = jnp.full((400, 500), 2.0)
    dropped = np.asarray(layers.dropout(x, 0.2, jax.random.key(0)))
    assert np.mean(dropped == 0) == pytest.approx(0.2, abs=0.005)
    np.testing.assert_allclose(dropped[dropped != 0], 2.0 / 0.8, rtol=1e-6)
    np.testing.assert_array_equal(layers.dropout(x, 0.2, None), x)


def test_adapters_drop_their_inputs_in_training_alone():
    """Each layer by a mask of its own; without a key, or after a pass with one, nothing is dropped."""
    config = helpers.model_config(lora_rank=4)
    config = dataclasses.replace(config, lora=dataclasses.replace(config.lora, dropout=0.25))
    definition, arrays = helpers.definition_and_arrays(config)
    model = definition.merge(arrays)
    batch = helpers.batch()
    run = jax.jit(lambda arrays, key: definition.merge(arrays).hidden_states(batch, dropout_key=key)[0])
    plain = model.hidden_states(batch)[0]
    one, other = (run(arrays, jax.random.key(seed)) for seed in (0, 1))
    assert float(jnp.abs(one - plain).max()) > 1e-3
    assert float(jnp.abs(one - other).max()) > 1e-3
    np.testing.assert_array_equal(one, run(arrays, jax.random.key(0)))
    model.hidden_states(batch, dropout_key=jax.random.key(0))
    np.testing.assert_array_equal(model.hidden_states(batch)[0], plain)
    keys = {
        path: np.asarray(jax.random.key_data(linear.dropout_key[...]))
        for path, linear in layers.linears(with_dropout(model, jax.random.key(0))).items()
        if isinstance(linear, LoRALinear)
    }
    assert len(np.unique(np.concatenate(list(keys.values())), axis=0)) == 2 * config.language_model.num_layers


@pytest.mark.parametrize(("stage", "moves"), [(stage1, True), (stage2, False)])
def test_statistics_move_only_with_a_trained_encoder(stage, moves):
    """Through the program that a run uses: stage 2 freezes the encoder, and its BatchNorm with it."""
    config = stage.get_config("tiny")
    config.data.rows = 8
    config.model.language_model.num_layers = 1
    config = helpers.with_row(runs.read_config(config))
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=-1, tensor=1))
    with jax.set_mesh(mesh):
        program = make_program(config, mesh)
        arrays = initial_arrays(config.model, program.arrays(), seed=0)
        frozen = {name: arrays[name] for name in program.frozen}
        state = program.initial_state(arrays)
        before = jax.device_get((state.statistics, frozen))
        assert len(before[0]) == 4
        batches = jax.tree.map(lambda x: x[None], helpers.host_batch(8))
        for _ in range(3):
            state, _ = program.train_step(state, frozen, sharding.put_batch(batches, mesh, leading=1))
        after = jax.device_get((state.statistics, frozen))
    changed = [name for name in before[0] if not np.array_equal(before[0][name], after[0][name])]
    assert sorted(changed) == (sorted(before[0]) if moves else [])
    jax.tree.map(np.testing.assert_array_equal, before[1], after[1])


def test_a_run_that_accumulates_continues_where_it_was(tmp_path, few, monkeypatch):
    """Two batches a step: after an interruption the next step reads the batches that come next, not those before."""
    config = small_run(few)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, accumulate=2))
    training_batches, first = BatchLoader.training_batches, []

    def noted(self, seed, first_step, shards):
        first.append(first_step)
        count = 10 if len(first) == 1 else 100
        yield from interrupted_after(count, training_batches)(self, seed, first_step, shards)

    monkeypatch.setattr(BatchLoader, "training_batches", noted)
    with pytest.raises(KeyboardInterrupt):
        runs.train(config, tmp_path / "run")
    assert [step for step, _ in losses(tmp_path / "run")] == [2, 4]
    assert int(runs.train(config, tmp_path / "run").step) == 6
    assert first == [0, 2 * 4]  # batches, not steps


def test_frozen_parameters_are_never_random(tmp_path, few):
    rules = (("language_model/.*", False), (".*", True))
    config = small_run(few)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, trainable=rules))
    with pytest.raises(ConfigError, match=r"would stay random, such as language_model/"):
        runs.train(config, tmp_path / "run")


def test_model_config_round_trips_as_json():
    scaling = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
    config = helpers.model_config(rope_scaling=scaling)
    as_json = json.loads(json.dumps(dataclasses.asdict(config)))
    assert from_dict(ModelConfig, as_json).language_model.rope_scaling.factor == 8.0
    as_json["projector"]["depht"] = as_json["projector"].pop("depth")
    with pytest.raises(ConfigError, match=r"depth is missing.*depht: unknown key"):
        from_dict(ModelConfig, as_json)


def test_graphs_that_are_not_molecules_and_mixtures(tmp_path, few):
    vocabulary = GraphVocabulary(nodes=(5,), edges=(2, 3))
    folders = []
    for name, size in (("rings", 5), ("stars", 4)):
        graph = networkx.cycle_graph(size) if name == "rings" else networkx.star_graph(size)
        networkx.set_node_attributes(graph, {node: (node % 5,) for node in graph}, "features")
        networkx.set_edge_attributes(graph, {edge: (1, 2) for edge in graph.edges}, "features")
        turn = (Message("user", "Which graph is it?"), Message("assistant", f"One of the {name}."))
        record = graph_record([graph], turn, vocabulary)
        prepare_records([("train", record)] * 20, tmp_path / name, vocabulary, Settings(task="instruction"))
        folders.append(tmp_path / name)
    config = small_run(few)
    graph_encoder = dataclasses.replace(config.model.graph_encoder, atom_cardinalities=(5,), bond_cardinalities=(2, 3))
    source = f"{folders[0]}=3,{folders[1]}=1"
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, graph_encoder=graph_encoder),
        data=dataclasses.replace(config.data, source=source),
        train=dataclasses.replace(config.train, steps=12, checkpoint_every=12),
    )
    runs.train(config, tmp_path / "run")
    curve = losses(tmp_path / "run")
    assert curve[-1][1] < 0.8 * curve[0][1]
    data = dataclasses.replace(config.data, source=str(few / "description"))
    with pytest.raises(ConfigError, match="feature cardinalities"):
        runs.train(dataclasses.replace(config, data=data), tmp_path / "molecules")
    data = dataclasses.replace(config.data, source=f"{folders[0]}=much")
    with pytest.raises(ConfigError, match="'much' is not a weight"):
        runs.train(dataclasses.replace(config, data=data), tmp_path / "weights")
