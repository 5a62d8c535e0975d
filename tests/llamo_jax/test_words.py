"""Stage 0: graph tokens among words, without a decoder; and what another molecule's graph costs, in training."""

import dataclasses
import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import stage0, stage1
from data_pipeline.batch import with_other_graphs
from llamo_jax import parameters, runs, sharding
from llamo_jax.config import ConfigError
from llamo_jax.models.definition import define_model, initial_arrays
from llamo_jax.training import program, words
from llamo_jax.training.loss import answer_likelihood
from llamo_jax.training.words import (
    DISTANCE,
    SHARPNESS,
    answer_and_word_likelihood,
    idf_answer_and_word_likelihood,
    inverse_document_frequency,
    word_likelihood,
)
from tests import helpers


def answers_by_molecule(batch):
    """By hand: shard → slot → the words of its answer, for conversations about one molecule."""
    shards = batch.molecules.atoms.n_node.shape[0]
    found = [{} for _ in range(shards)]
    for row in range(batch.tokens.shape[0]):
        for segment in range(1, batch.segments[row].max() + 1):
            here = batch.segments[row] == segment
            slots = set(batch.molecule_slot[row][here].tolist()) - {-1}
            if len(slots) == 1:
                words = set(batch.targets[row][here & batch.target_mask[row]].tolist())
                found[row // (batch.tokens.shape[0] // shards)][slots.pop()] = words
    return found


def expected_loss(batch, graph_tokens, table):
    """Word by word and molecule by molecule, in float64."""
    middle = table.mean(axis=0)
    spread = np.mean(np.sum((table - middle) ** 2, axis=1))
    total, count = 0.0, 0
    for shard, answers in enumerate(answers_by_molecule(batch)):
        for slot, said in answers.items():
            places = graph_tokens[shard, slot].astype(np.float64) - middle
            for word in set().union(*answers.values()):
                away = table[word] - middle
                logit = math.log(sum(math.exp(SHARPNESS * place @ away / (away @ away)) for place in places))
                logit -= SHARPNESS / 2
                said_by = sum(word in others for others in answers.values())
                total += math.log(len(answers) / said_by) * math.log1p(math.exp(-logit if word in said else logit))
            total += DISTANCE * sum(max(0, place @ place / spread - 1) for place in places)
            count += len(said)
    return total, count


@pytest.mark.parametrize("shards", [1, 2])
def test_the_loss_is_that_of_yes_no_questions_about_words(shards):
    definition, arrays = helpers.definition_and_arrays(helpers.model_config())
    model = definition.merge(arrays, {}, {})
    host = helpers.host_batch(shards)

    @jax.jit  # one program for all
    def compute(model, batch):
        likelihoods = (word_likelihood, answer_likelihood, answer_and_word_likelihood)
        return [each(model, batch) for each in likelihoods], model.encode_graphs(batch.molecules)[0]

    found, tokens = compute(model, jax.tree.map(jnp.asarray, host))
    (loss, count), (answers, targets), (both, divisor) = found
    table = np.asarray(model.language_model.embedding[...], np.float64)
    expected, words = expected_loss(host, np.asarray(tokens), table)
    assert int(count) == words > 20
    np.testing.assert_allclose(float(loss), expected, rtol=1e-4)
    np.testing.assert_allclose(float(both), float(answers) + expected, rtol=1e-5)
    assert int(divisor) == int(targets) == host.target_mask.sum()


def test_what_few_answers_say_counts_more():
    """Token by token: minus the logarithm of the share of answers with the word, where one molecule is asked about."""
    definition, arrays = helpers.definition_and_arrays(helpers.model_config(loss_chunk=32))
    model = definition.merge(arrays, {}, {})
    host = helpers.host_batch(2)
    expected = np.zeros(host.targets.shape)
    for shard, answers in enumerate(answers_by_molecule(host)):
        for row in range(4 * shard, 4 * shard + 4):
            for segment in range(1, host.segments[row].max() + 1):
                here = host.segments[row] == segment
                if len(set(host.molecule_slot[row][here].tolist()) - {-1}) == 1:
                    for t in np.flatnonzero(here & host.target_mask[row]):
                        said_by = sum(host.targets[row, t] in said for said in answers.values())
                        expected[row, t] = math.log(len(answers) / said_by)
    assert len(np.unique(expected[expected > 0])) > 1

    @jax.jit
    def compute(model, batch):
        weighted, targets = idf_answer_and_word_likelihood(model, batch)
        found = inverse_document_frequency(batch, model.config.language_model.vocab_size)
        return weighted, targets, word_likelihood(model, batch)[0], model(batch)[0], found

    batch = jax.tree.map(jnp.asarray, host)
    weighted, targets, words, logits, found = compute(model, batch)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    logits = np.asarray(logits, np.float64)
    likelihood = np.log(np.exp(logits).sum(axis=-1)) - np.take_along_axis(logits, host.targets[..., None], -1)[..., 0]
    answers = np.sum(likelihood * (1 + expected) * host.target_mask)
    np.testing.assert_allclose(float(weighted), answers + float(words), rtol=1e-4)
    assert int(targets) == host.target_mask.sum()
    # a gradient that forgot the weights would be that of another sum
    direction = {name: np.sign(np.cos(np.arange(x.size))).reshape(x.shape) for name, x in arrays.items()}

    @jax.jit
    def along(distance):
        moved = {name: x + distance * direction[name] for name, x in arrays.items()}
        return idf_answer_and_word_likelihood(definition.merge(moved, {}, {}), batch)[0]

    slope = (along(1e-4) - along(-1e-4)) / 2e-4
    np.testing.assert_allclose(float(jax.grad(along)(0.0)), float(slope), rtol=0.02)


def test_words_beyond_the_most_are_no_other_words(monkeypatch):
    """Those with the highest ids are left out, and count for none of the others."""
    monkeypatch.setattr(words, "MOST_WORDS", 3)
    targets, owners = jnp.array([7, 2, 9, 5, 2, 11, 4]), jnp.array([0, 0, 0, 1, 1, 1, -1])
    found, used = words._used_words(targets, owners, 96, 2)
    assert found.tolist() == [2, 5, 7]
    assert used.tolist() == [[True, False, True], [True, True, False]]


def test_other_graphs_are_those_of_other_molecules():
    batch = helpers.host_batch(2)
    other = with_other_graphs(batch)
    for row, (before, after) in enumerate(zip(batch.molecule_slot, other.molecule_slot, strict=True)):
        np.testing.assert_array_equal(before < 0, after < 0)
        assert (before[before >= 0] != after[after >= 0]).all(), row
    for shard in np.split(np.arange(8), 2):
        # each molecule stands in for one other
        pairs = np.stack([batch.molecule_slot[shard], other.molecule_slot[shard]], axis=-1).reshape(-1, 2)
        moved = set(map(tuple, pairs.tolist()))
        assert len({a for a, _ in moved}) == len({b for _, b in moved}) == len(moved)
    assert all(np.array_equal(getattr(batch, name), getattr(other, name)) for name in batch._fields[:5])
    single = batch._replace(molecule_slot=np.minimum(batch.molecule_slot, 0))
    np.testing.assert_array_equal(with_other_graphs(single).molecule_slot, single.molecule_slot)


@pytest.fixture(scope="module")
def one_device():
    """Runs of this file: their meshes are others' subject, and a program of eight devices takes twice as long."""
    mesh = sharding.single_device_mesh()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", lambda *_: mesh)
        yield


@pytest.fixture(scope="module")
def graph_side(one_device, few, tmp_path_factory):
    """Stage 0 of the smallest preset, in earnest, on a few descriptions whose SMILES are hidden."""
    workdir = tmp_path_factory.mktemp("stage0") / "run"
    config = stage0.get_config("tiny")
    config.update_from_flattened_dict({"data.source": str(few / "description"), "prompt.show_smiles": False})
    config.train.update({"steps": 48, "warmup_steps": 5, "log_every": 8, "eval_every": 16, "graph_use_every": 32})
    config.train.update({"checkpoint_every": 48, "keep_best": False, "learning_rate": 4e-3})
    config.data.rows = 8  # at the preset's rate, 48 steps of eight rows are too few to tell graphs apart
    return runs.read_config(config), workdir, runs.train(runs.read_config(config), workdir)


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_stage_0_learns_to_tell_molecules_apart(graph_side):
    config, workdir, state = graph_side
    validated = [line for line in lines(workdir) if "validation_loss" in line]
    assert [line["step"] for line in validated] == [16, 32, 48]
    # the first at or after each multiple, and the last
    assert ["graph_use" in line for line in validated] == [False, True, True]
    mesh = sharding.make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        _, data, _ = runs.read_data(config, mesh)
        batch = next(iter(data.train.training_batches(0, 0, sharding.local_shards(mesh))))
        model = define_model(config.model).merge(state.trained, state.statistics, {})
        likelihood = jax.jit(word_likelihood)

        def both(batch):
            return [likelihood(model, sharding.put_batch(each, mesh)) for each in (batch, with_other_graphs(batch))]

        own, other = both(batch)
        held_out = [both(each) for each in data.validation.evaluation_batches(sharding.local_shards(mesh))]
    assert own[1] == other[1] > 200
    assert own[0] < 0.5 * other[0]
    # of stage 0's own objective: no decoder has been asked
    means = [sum(float(each[which][0]) for each in held_out) / sum(int(each[which][1]) for each in held_out)
             for which in (0, 1)]  # fmt: skip
    assert validated[-1]["validation_loss"] == pytest.approx(means[0], rel=1e-4)
    assert validated[-1]["graph_use"] == pytest.approx(means[1] - means[0], abs=1e-4)


def test_stage_1_starts_from_stage_0(graph_side, few, tmp_path):
    _, workdir, before = graph_side
    next_stage = stage1.get_config("tiny")
    next_stage.init_from = str(workdir)
    next_stage.data.source = str(few / "description")
    next_stage.train.update({"steps": 1, "log_every": 1, "eval_every": 1, "checkpoint_every": 1, "samples": 1})
    next_stage.train.update({"learning_rate": 1e-9, "warmup_steps": 0})
    after = runs.train(runs.read_config(next_stage), tmp_path / "run")
    names = [name for name in before.trained if name.startswith(("graph_encoder/", "projector/"))]
    assert len(names) > 20
    for name in names:
        np.testing.assert_allclose(after.trained[name], before.trained[name], atol=1e-7, err_msg=name)
    assert set(itertools.chain(*(line for line in lines(tmp_path / "run")))) >= {"validation_loss", "graph_use"}


def test_a_run_without_graphs_trains_the_language_model_alone(one_device, few, tmp_path):
    config = stage1.get_config("tiny")
    config.update_from_flattened_dict({"data.source": str(few / "description"), "prompt.show_graph": False})
    config.train.update({"steps": 1, "log_every": 1, "eval_every": 1, "checkpoint_every": 1, "warmup_steps": 0})
    runs.train(runs.read_config(config), tmp_path / "run")
    (line,) = lines(tmp_path / "run")
    assert line["graph_use"] == 0
    assert line["target_tokens"] > 200
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"]["molecules_per_row"] == 0
    samples = [json.loads(text) for text in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == config.train.samples


def test_words_without_graphs_are_refused(one_device, few, tmp_path):
    config = stage0.get_config("tiny")
    config.update_from_flattened_dict({"data.source": str(few / "description"), "prompt.show_graph": False})
    config.train.update({"steps": 1, "log_every": 1, "eval_every": 1, "checkpoint_every": 1, "warmup_steps": 0})
    config.train.graph_use_every = 0
    with pytest.raises(ConfigError, match=r"objective=words has nothing to learn in the validation batches"):
        runs.train(runs.read_config(config), tmp_path / "run")


def test_objectives_are_those_of_their_names():
    """What a step minimises, and what a validation measures: stage 0's words, and answers otherwise."""
    assert {
        "answers": (answer_likelihood, answer_likelihood),
        "words": (word_likelihood, word_likelihood),
        "answers+words": (answer_and_word_likelihood, answer_likelihood),
        "idf_answers+words": (idf_answer_and_word_likelihood, answer_likelihood),
    } == program.OBJECTIVES
    config = helpers.with_row(runs.read_config(stage0.get_config("tiny")))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, rows=8))
    mesh = sharding.single_device_mesh()
    with jax.set_mesh(mesh):
        made = program.make_program(config, mesh)
        arrays = initial_arrays(config.model, made.arrays(), seed=0)
        batch = sharding.put_batch(helpers.host_batch(), mesh)
        found = made.eval_step(made.initial_state(arrays), {name: arrays[name] for name in made.frozen}, batch)
        expected = jax.jit(word_likelihood)(made.definition.merge(arrays), batch)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("objective", [answer_and_word_likelihood, idf_answer_and_word_likelihood])
def test_objectives_with_words_move_the_statistics(objective):
    definition, arrays = helpers.definition_and_arrays(helpers.model_config())

    @jax.jit
    def statistics(arrays, batch):
        model = definition.merge(arrays)
        objective(model, batch, batch_statistics=True)
        return parameters.flatten(nnx.state(model, nnx.BatchStat))

    after = statistics(arrays, helpers.batch())
    assert len(after) == 4
    assert [name for name in after if np.array_equal(after[name], arrays[name])] == []


def test_the_table_is_not_drawn_to_graph_tokens():
    definition, arrays = helpers.definition_and_arrays(helpers.model_config())
    name = "language_model/embedding"

    def words(table):
        return word_likelihood(definition.merge(arrays | {name: table}), helpers.batch())[0]

    assert not np.any(jax.jit(jax.grad(words))(arrays[name]))
