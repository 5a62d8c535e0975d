"""Greedy decoding and what is built on it."""

import dataclasses
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import networkx
import numpy as np
import pytest
from flax import nnx

from data_pipeline.batch import BatchShape, MoleculeGraphs, RowSize, collate
from data_pipeline.conversation import Conversation, Message
from data_pipeline.generic_graph import graph_record
from data_pipeline.molecule import InvalidMoleculeError
from data_pipeline.prompt import PromptEncoder
from data_pipeline.records import featurized, without_last_message
from data_pipeline.tokenizer import load_tokenizer
from data_pipeline.vocabulary import GraphVocabulary
from llamo_jax import parameters, sharding
from llamo_jax.apps import chat
from llamo_jax.apps.assistant import Assistant
from llamo_jax.config import ConfigError, DecodingConfig, PromptConfig
from llamo_jax.evaluation.functional_groups import score_groups
from llamo_jax.generation.decode import greedy
from llamo_jax.generation.embeddings import embed_graphs
from llamo_jax.generation.generator import Generator
from llamo_jax.generation.likelihood import target_log_probabilities
from llamo_jax.generation.prompts import collate_prompts
from llamo_jax.loading import load_generator
from llamo_jax.models import LLaMo
from llamo_jax.models.definition import define_model
from tests import helpers

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def encoder(embedded):
    return PromptEncoder(load_tokenizer(embedded / "tokenizer"), 28, style="plain", show_smiles=True)


def ask(*smiles, question="Describe this molecule.", history=()):
    turns = [Message(role, text) for turn in history for role, text in zip(("user", "assistant"), turn, strict=True)]
    return Conversation(smiles, (*turns, Message("user", question)))


def test_prompts_show_molecules_and_mark_answers(encoder):
    conversation = Conversation(
        ("CCO", "O"), (Message("user", "Compare </s> them."), Message("assistant", " Both have oxygen. "))
    )
    (encoded,) = encoder.encode([featurized(conversation)])
    tokenizer = encoder.tokenizer
    assert encoded.tokens[0] == tokenizer.bos_id
    assert list(encoded.molecule[encoded.molecule >= 0]) == [0] * 28 + [1] * 28
    assert list(encoded.query[encoded.molecule == 1]) == list(range(28))
    text = encoded.tokens[encoded.molecule < 0]
    assert tokenizer.decode(text) == "User: CCO O Compare </s> them.\nAssistant: Both have oxygen."
    # what looks like a control token in a message is plain text; the only real one ends the answer
    assert list(np.flatnonzero(encoded.tokens == tokenizer.eos_id)) == [len(encoded.tokens) - 1]
    answer = encoded.tokens[encoded.is_target]
    assert tokenizer.decode(answer) == " Both have oxygen."
    assert answer[-1] == tokenizer.eos_id


def test_hidden_smiles_leave_no_trace(encoder):
    hidden = PromptEncoder(encoder.tokenizer, 28, style="plain", show_smiles=False)
    one, other = hidden.encode([featurized(ask("CCO")), featurized(ask("c1ccccc1"))])
    np.testing.assert_array_equal(one.tokens, other.tokens)
    assert (one.molecule >= 0).sum() == 28


@pytest.mark.parametrize("style", ["plain", "llama2"])
def test_hidden_graphs_leave_no_trace(encoder, style):
    """The text stays token for token, but where graph tokens parted it."""
    shown, hidden = (
        PromptEncoder(encoder.tokenizer, 28, style=style, show_smiles=True, show_graph=graph) for graph in (True, False)
    )
    records = [featurized(ask("CCO")), featurized(ask("c1ccccc1"))]
    assert shown.fingerprint() != hidden.fingerprint()
    for with_graph, without in zip(shown.encode(records), hidden.encode(records), strict=True):
        assert without.graphs == ()
        assert without.size().atoms == 0
        np.testing.assert_array_equal(without.tokens, with_graph.tokens[with_graph.molecule < 0])
        np.testing.assert_array_equal(without.is_target, with_graph.is_target[with_graph.molecule < 0])
        assert (without.molecule == -1).all()


@pytest.fixture(scope="module")
def small_model(encoder):
    config = helpers.model_config(vocab_size=2048)
    return define_model(config), parameters.flatten(nnx.state(LLaMo(config, rngs=nnx.Rngs(1))))


def test_greedy_equals_step_by_step_argmax(encoder, small_model):
    """Prompts of unequal length in one batch, against the full forward pass on each alone."""
    definition, arrays = small_model
    conversations = [ask("CC(=O)Oc1ccccc1C(=O)O"), ask("C", question="Is it aromatic?"), ask(question="Hello?")]
    prompts = encoder.encode([featurized(conversation) for conversation in conversations])
    eos = encoder.tokenizer.eos_id
    got = np.asarray(greedy(definition, arrays, collate_prompts(prompts), max_new_tokens=6, eos_id=eos).tokens)
    assert got.shape == (4, 6)
    assert np.all(got[3] == eos)  # the padding row
    for prompt, answer in zip(prompts, got, strict=False):
        for count in range(6):
            extended = prompt._replace(
                tokens=np.append(prompt.tokens, answer[:count]).astype(np.int32),
                is_target=np.append(prompt.is_target, np.zeros(count, bool)),
                molecule=np.append(prompt.molecule, np.full(count, -1)).astype(np.int32),
                query=np.append(prompt.query, np.zeros(count)).astype(np.int32),
            )
            batch = jax.tree.map(jnp.asarray, collate_prompts([extended]))
            expected = int(jnp.argmax(helpers.logits(definition, arrays, batch)[0, len(extended.tokens) - 1]))
            assert answer[count] == expected
            if expected == eos:
                break


def test_finished_rows_stay_finished(encoder, small_model):
    definition, arrays = small_model
    prompts = encoder.encode([featurized(ask("CCO")), featurized(ask("O"))])
    eos = encoder.tokenizer.eos_id
    free = np.asarray(greedy(definition, arrays, collate_prompts(prompts), max_new_tokens=12, eos_id=eos).tokens)
    row = int(np.argmax([len(set(answer)) for answer in free]))
    end = int(np.flatnonzero(free[row] != free[row, 0])[0])  # the first token that was not seen before
    stop = int(free[row, end])
    stopped = np.asarray(greedy(definition, arrays, collate_prompts(prompts), max_new_tokens=12, eos_id=stop).tokens)
    np.testing.assert_array_equal(stopped[row], [*free[row, :end], *[stop] * (12 - end)])


@pytest.mark.parametrize("kernel", ["splash", "cudnn"])
def test_a_model_trained_with_a_kernel_is_measured_on_any_device(encoder, small_model, kernel):
    """And on conversations of any length: the kernel is training's."""
    config = dataclasses.replace(small_model[0].config, attention=kernel)
    mesh = sharding.single_device_mesh()
    turns = (Message("user", "Is it aromatic?"), Message("assistant", "It is not."))
    prompts = encoder.encode([featurized(Conversation(("CCO",), turns))])
    (expected,) = target_log_probabilities(*small_model, mesh, prompts)
    definition = define_model(config)
    (found,) = target_log_probabilities(definition, small_model[1], mesh, prompts)
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(ConfigError, match=rf"config\.model\.attention={kernel} needs a"):
        helpers.logits(definition, small_model[1], jax.tree.map(jnp.asarray, collate_prompts(prompts)))


@pytest.mark.parametrize("vocabulary", [GraphVocabulary((80,), (1,)), GraphVocabulary((80, 4), (3,))])
def test_other_graphs_are_seen_as_in_training(encoder, vocabulary):
    """Answers, likelihoods and vectors: of one feature numpy would make nine, and two it could not take."""
    config = helpers.model_config(vocab_size=2048)
    cardinalities = {"atom_cardinalities": vocabulary.nodes, "bond_cardinalities": vocabulary.edges}
    config = dataclasses.replace(config, graph_encoder=dataclasses.replace(config.graph_encoder, **cardinalities))
    definition, arrays = helpers.definition_and_arrays(config)
    turns = (Message("user", "Is there a cycle?"), Message("assistant", "There is none."))
    records = []
    for graph in (networkx.path_graph(9), networkx.star_graph(5)):
        node_features = {node: (70 - 7 * node, 3)[: len(vocabulary.nodes)] for node in graph}
        networkx.set_node_attributes(graph, node_features, "features")
        networkx.set_edge_attributes(graph, dict.fromkeys(graph.edges, (0,)), "features")
        graph.name = "a graph"
        records.append(graph_record([graph], turns, vocabulary))
    mesh = sharding.single_device_mesh()
    encoded = encoder.encode(records)
    row = RowSize(128, 1, 16, 32, 8)
    batch = jax.tree.map(jnp.asarray, collate([[each] for each in encoded], BatchShape(2, 1, row, *vocabulary.widths)))
    expected = jax.nn.log_softmax(helpers.logits(definition, arrays, batch), axis=-1)

    for found, each, target in zip(
        target_log_probabilities(definition, arrays, mesh, encoded), expected, encoded, strict=True
    ):
        places = np.flatnonzero(target.is_target[1:])
        np.testing.assert_allclose(found, each[places, target.tokens[places + 1]], atol=1e-4)

    text = featurized(ask(question="Hello?"))
    generator = Generator(definition, arrays, encoder, mesh, DecodingConfig(max_new_tokens=1))
    answers = dict(generator.generate([*map(without_last_message, records), text]))
    for index, target in enumerate(encoded):
        best = expected[index, np.flatnonzero(target.is_target)[0] - 1].max()
        np.testing.assert_allclose(answers[index][0].log_probabilities, [best], atol=1e-4)

    graphs = [record.graphs[0] for record in records]
    vectors = dict(embed_graphs(definition, arrays, mesh, graphs))
    tokens, _ = definition.merge(arrays).encode_graphs(MoleculeGraphs.from_graphs(graphs))
    for index in range(2):
        np.testing.assert_allclose(vectors[index].graph_tokens, tokens[0, index], atol=1e-4)
    with pytest.raises(ValueError, match=r"a graph has \(\d, \d\) features of nodes and edges, where the batch has"):
        collate_prompts(encoded)


def test_assistant_answers_alone_and_in_batches(trained):
    assistant = Assistant.load(trained, decoding=DecodingConfig(max_new_tokens=12))
    history = [("Is it aromatic?", "It is aromatic.")]
    requests = [
        {"question": "Describe this molecule.", "smiles": "CC(=O)Oc1ccccc1C(=O)O"},
        {"question": "And the formula?", "smiles": "c1ccccc1", "history": history},
        {"question": "Compare these.", "smiles": ["CCO", "C"]},
        {"question": "What is a molecule?"},
    ]
    together = assistant.answer_batch(requests)
    assert together == [assistant.ask(**request) for request in requests]
    assert all(isinstance(answer, str) for answer in together)
    pieces = list(assistant.stream(**requests[0]))
    assert len(pieces) > 2
    assert "".join(pieces).strip() == together[0]
    with pytest.raises(InvalidMoleculeError, match="C1CC"):
        assistant.ask("What is it?", smiles="C1CC")


def test_chat_prints_the_answer(trained, capsys):
    chat.main(["--checkpoint", str(trained), "--smiles", "CCO", "--question", "What is it?", "--max_new_tokens", "12"])
    expected = Assistant.load(trained, decoding=DecodingConfig(max_new_tokens=12)).ask("What is it?", smiles=["CCO"])
    assert capsys.readouterr().out.splitlines()[-1:] == [expected.splitlines()[-1]]


def test_a_second_start_compiles_nothing(trained, tmp_path):
    """The same command twice, each in a process of its own: the second finds every program in the cache."""
    code = """
        import sys
        import jax

        missed = []
        def listen(name, **_):
            if "cache_misses" in name:
                missed.append(name)

        jax.monitoring.register_event_listener(listen)
        from llamo_jax.apps import chat

        chat.main(sys.argv[1:])
        print("compiled", len(missed))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), "--checkpoint", str(trained), "--smiles", "CCO"]
    command += ["--question", "What is it?", "--max_new_tokens", "4"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment |= {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(tmp_path)}
    counts = []
    for _ in range(2):
        result = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=True
        )
        counts.append(int(result.stdout.split()[-1]))
    assert counts[0] > 5
    assert counts[1] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "RUN", "--smiles", "C1CC", "--question", "?"], "invalid SMILES 'C1CC'"),
        (["--checkpoint", "/nowhere", "--question", "?"], "is neither a training run nor a model folder"),
    ],
)
def test_chat_says_what_is_wrong(trained, arguments, message):
    with pytest.raises(SystemExit, match=message):
        chat.main([str(trained) if argument == "RUN" else argument for argument in arguments])


def test_group_scores():
    descriptions = ["It has carboxylic acid and ketone groups.", "It has no functional groups.", "An alcohol group."]
    score = score_groups(descriptions, ["CC(=O)Oc1ccccc1C(=O)O", "CCC", "CCO"])
    assert score.molecules == 3
    assert (score.precision, score.recall) == (pytest.approx(2 / 3), pytest.approx(2 / 3))


def test_a_model_is_asked_as_it_was_trained(embedded, tmp_path):
    """With or without SMILES, with or without graphs, as its folder says."""
    tokenizer = load_tokenizer(embedded / "tokenizer")
    config = helpers.model_config(vocab_size=tokenizer.size, num_layers=1)
    model = LLaMo(config, rngs=nnx.Rngs(0))
    for smiles, graph in ((True, True), (False, True), (True, False)):
        prompt = PromptConfig(style="plain", show_smiles=smiles, show_graph=graph)
        model.save(tmp_path / f"{smiles}-{graph}", tokenizer=tokenizer, prompt=prompt)
        encoder = load_generator(tmp_path / f"{smiles}-{graph}")[0].encoder
        expected = PromptEncoder(
            tokenizer, config.num_graph_tokens, style="plain", show_smiles=smiles, show_graph=graph
        )
        assert encoder.fingerprint() == expected.fingerprint()
        (prompt,) = encoder.encode([featurized(Conversation(("CCO",), (Message("user", "What is it?"),)))])
        assert (prompt.molecule >= 0).any() == graph
        assert ("CCO" in tokenizer.decode(prompt.tokens.tolist())) == smiles
