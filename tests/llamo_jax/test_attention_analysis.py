"""Where a model looks: against torch's attention of the exported model, and the pages that show it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from data_pipeline.batch import GraphArrays, MoleculeGraphs
from data_pipeline.conversation import Conversation, Message
from data_pipeline.mol_graph import read_mol
from data_pipeline.molecule import parse_smiles
from data_pipeline.motifs import find_motifs, motif_atoms
from data_pipeline.records import featurized
from llamo_jax.analysis import attention
from llamo_jax.convert import __main__ as convert
from llamo_jax.loading import load_generator, load_model

ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"


@pytest.fixture(scope="module")
def record():
    messages = (Message("user", "Describe this molecule."), Message("assistant", "It has an ester group."))
    return featurized(Conversation((ASPIRIN,), messages))


@pytest.fixture(scope="module")
def loaded(untrained):
    return load_model(untrained), load_generator(untrained)[0]


def test_motifs_stand_in_the_order_of_their_features():
    mol = parse_smiles(ASPIRIN)
    found = motif_atoms(read_mol(mol))
    assert sorted(map(tuple, found)) == sorted(tuple(sorted(atoms)) for atoms in find_motifs(read_mol(mol)))
    motifs = featurized(Conversation((ASPIRIN,), ())).graphs[0].motifs
    assert len(found) == len(motifs)
    (benzene,) = [row for row, atoms in zip(motifs, found, strict=True) if atoms == [4, 5, 6, 7, 8, 9]]
    assert benzene.sum() == max(row.sum() for row in motifs)


def test_attention_is_that_of_the_exported_model(loaded, record, untrained, tmp_path):
    """Averaged over heads and layers, at the positions in front of the answer's tokens."""
    model, generator = loaded
    found = attention.attend(model, generator.encoder, record)
    (encoded,) = generator.encoder.encode([record])
    batch = attention.single_batch(encoded)
    tokens, out = model.encode_graphs(jax.tree.map(jnp.asarray, batch.molecules))
    embeddings = np.asarray(model.splice(jax.tree.map(jnp.asarray, batch), tokens))
    convert.main(["to_huggingface", "--checkpoint", str(untrained), "--output", str(tmp_path / "hf")])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", attn_implementation="eager")
    length = int((batch.segments[0] > 0).sum())
    with torch.no_grad():
        result = theirs(inputs_embeds=torch.tensor(embeddings[:, :length]), output_attentions=True)
    expected = torch.stack(result.attentions).mean(dim=(0, 2))[0].numpy()
    targets = np.flatnonzero(batch.target_mask[0])
    graph = np.flatnonzero(encoded.molecule == 0)
    np.testing.assert_allclose(found.graph, expected[targets][:, graph], atol=1e-5)
    # each graph token's attention is shared out among the atoms, or among the motifs
    assert found.sources == ["motifs"] * 4 + [f"level {level}" for level in range(6) for _ in range(4)]
    np.testing.assert_allclose(found.atoms.sum(axis=1), [0] * 4 + [1] * 24, atol=1e-5)
    np.testing.assert_allclose(found.motifs.sum(axis=1), [1] * 4 + [0] * 24, atol=1e-5)
    motifs = motif_atoms(read_mol(parse_smiles(ASPIRIN)))
    whole = found.of_atoms(motifs)
    np.testing.assert_allclose(whole.sum(axis=1), found.graph.sum(axis=1), rtol=1e-4)
    parts = sum(found.of_atoms(motifs, source) for source in dict.fromkeys(found.sources))
    np.testing.assert_allclose(parts, whole, atol=1e-6)
    # which atoms a token of level 2 looks at, by the softmax itself
    projector = model.projector
    level = projector.level_attention
    q, k = (
        (np.asarray(x) @ np.asarray(linear.kernel[...])[2] + np.asarray(linear.bias[...])[2]).reshape(-1, 4, 16)
        for x, linear in ((projector.level_queries[...][2], level.query), (out["levels"][2, 0, :13], level.key))
    )
    scores = np.einsum("phf,nhf->phn", q, k) / 4
    shares = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(found.atoms[12:16], shares.mean(axis=1), atol=1e-5)


def test_likelihood_without_atoms(loaded, record):
    model, generator = loaded
    (encoded,) = generator.encoder.encode([record])
    batch = attention.single_batch(encoded)
    slots = batch.molecules.atoms.nodes.shape[1]
    whole = float(attention._log_likelihood(model, batch, jnp.ones(slots)))
    expected = float(generator.target_log_probabilities([record])[0].sum())
    assert whole == pytest.approx(expected, rel=1e-4)
    padding = float(attention._log_likelihood(model, batch, jnp.ones(slots).at[13:].set(0)))
    assert padding == whole
    assert float(attention._log_likelihood(model, batch, jnp.ones(slots).at[:13].set(0))) != whole


def test_hidden_atoms_are_as_if_they_were_not_there(loaded, record):
    """To the projector: its softmax has fewer items, and motifs of theirs are none."""
    model, generator = loaded
    (encoded,) = generator.encoder.encode([record])
    batch = jax.tree.map(jnp.asarray, attention.single_batch(encoded))
    (graph,), rest, motif = record.graphs, np.arange(2, 11), 1
    fewer = MoleculeGraphs.from_graphs(
        [GraphArrays(graph.atoms[rest], graph.bonds[:0], graph.senders[:0], graph.receivers[:0], graph.motifs[[motif]])]
    )
    levels = model.graph_encoder(batch.molecules.atoms)[:, :, rest]
    levels = jnp.pad(levels, ((0, 0), (0, 0), (0, fewer.atoms.nodes.shape[1] - len(rest)), (0, 0)))
    tokens, _ = model.projector(levels, fewer)
    hidden = model.language_model(model.splice(batch, tokens), batch.positions, batch.segments)
    likelihoods = jax.nn.log_softmax(model.language_model.logits(hidden))[0]
    targets = np.flatnonzero(batch.target_mask[0])
    expected = float(likelihoods[targets, batch.targets[0, targets]].sum())

    kept, kept_motifs = (np.zeros(graphs.nodes.shape[1], np.float32) for graphs in batch.molecules)
    kept[rest] = kept_motifs[motif] = 1
    assert float(attention._log_likelihood(model, batch, kept, kept_motifs)) == pytest.approx(expected, rel=1e-4)


def test_words():
    assert attention.words_of([" an", " est", "er", " ", "acid", " group", ".", "", "\n"]) == [
        ("an", [0]), ("ester", [1, 2]), ("acid", [4]), ("group.", [5, 6])]  # fmt: skip


def test_the_program(untrained, few, tmp_path, capsys):
    settings = f"--faithfulness 3 --data {few}/description --split validation"
    common = ["--checkpoint", str(untrained), "--output", str(tmp_path / "out"), *settings.split()]
    attention.main([*common, "--answer", "An <b>ester</b> & an acid.", "--question", "Why <script>?"])
    result = json.loads((tmp_path / "out" / "attention.json").read_text())
    assert [each["word"] for each in result["words"]] == ["An", "<b>ester</b>", "&", "an", "acid."]
    assert all(len(each["atoms"]) == 13 for each in result["words"])
    scores = result["faithfulness"]
    expected = scores["most_attended"]["mean"] - scores["random"]["mean"]
    assert scores["difference"]["mean"] == pytest.approx(expected, abs=1e-5)
    assert scores["molecules"] == 3
    page = (tmp_path / "out" / "attention.html").read_text()
    assert "Why &lt;script&gt;?" in page
    assert "<script" not in page
    assert page.count("<svg") == 5 + 7  # words, and what graph tokens are made of
    assert (tmp_path / "out" / "attention.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "Faithfulness" in printed
    assert "<b>" not in printed
    with pytest.raises(SystemExit, match="invalid SMILES"):
        attention.main([*common, "--smiles", "C1CC"])


def test_the_most_attended_atoms_are_hidden(loaded, record, monkeypatch):
    weights = np.arange(13, dtype=np.float32)[::-1] ** 2
    hidden = []

    class Looked:
        def of_atoms(self, members):
            return weights[None]

    def noted(model, batch, kept, kept_motifs):
        hidden.append(set(np.flatnonzero(kept[:13] == 0).tolist()))
        return 0.0

    monkeypatch.setattr(attention, "attend", lambda *_: Looked())
    monkeypatch.setattr(attention, "_log_likelihood", noted)
    attention.faithfulness(loaded[0], loaded[1].encoder, [record], share=0.2, seed=0)
    assert hidden[:2] == [set(), {0, 1, 2}]
