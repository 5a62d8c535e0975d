"""Molecules as vectors: equal to the model's own, in any batch and order, and in files."""

import jax
import numpy as np
import pytest
from pyarrow import parquet

from data_pipeline.batch import MoleculeGraphs
from llamo_jax.apps import embed
from llamo_jax.apps.assistant import Assistant
from llamo_jax.generation import embeddings
from llamo_jax.loading import load_model

SMILES = ["CC(=O)Oc1ccccc1C(=O)O", "C", "[Na+].[Cl-]", "CCCCCCCCCCCCCCCCCCCCCCCCCCCCCCO", "c1ccccc1"]


@pytest.fixture(scope="module")
def assistant(trained):
    return Assistant.load(trained)


@pytest.fixture(scope="module")
def expected(trained):
    """Of each molecule alone: graph tokens [n, Q, D], and means of the levels [n, L, F]."""
    model = load_model(trained)
    tokens, levels = [], []
    for smiles in SMILES:
        molecules = MoleculeGraphs.from_smiles([smiles])
        found, out = jax.jit(lambda model, molecules: model.encode_graphs(molecules))(model, molecules)
        atoms = int(molecules.atoms.n_node[0, 0])
        tokens.append(np.asarray(found[0, 0], np.float32))
        levels.append(np.asarray(out["levels"])[:, 0, :atoms].mean(axis=1))
    return np.stack(tokens), np.stack(levels)


def test_vectors_are_the_models(assistant, expected):
    tokens, levels = expected
    found = assistant.embed(SMILES, what="graph_tokens")
    assert found.shape == (5, 28, 128)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, tokens, atol=1e-5)
    np.testing.assert_allclose(assistant.embed(SMILES), tokens.mean(axis=1), atol=1e-5)
    np.testing.assert_allclose(assistant.embed(SMILES, what="levels"), levels, atol=1e-5)
    assert np.ptp(found, axis=0).max() > 0.01  # molecules differ


def test_company_and_order_do_not_matter(assistant, monkeypatch):
    monkeypatch.setattr(embeddings, "MOLECULES", 4)  # of each of eight shards: several batches, the last not full
    many = [smiles for smiles in SMILES for _ in range(30)]
    found = assistant.embed(many)
    np.testing.assert_allclose(found[::30], assistant.embed(SMILES), atol=1e-5)
    np.testing.assert_allclose(found[::-1], assistant.embed(many[::-1]), atol=1e-5)
    with pytest.raises(ValueError, match="nonsense"):
        assistant.embed(SMILES, what="nonsense")


@pytest.mark.parametrize("what", ["pooled", "levels"])
def test_files_keep_order_and_tell_what_is_left_out(assistant, trained, tmp_path, capsys, what):
    source = tmp_path / "molecules.csv"
    rows = [SMILES[0], "nonsense", SMILES[1], "", SMILES[2]]
    source.write_text("name,Smiles\n" + "".join(f"number {n},{smiles}\n" for n, smiles in enumerate(rows)))
    options = ["--checkpoint", str(trained), "--input", str(source), "--what", what]
    embed.main([*options, "--output", str(tmp_path / "vectors.npz")])
    printed = capsys.readouterr().out
    assert "vectors.npz: 3 molecules" in printed
    assert "left out        1  empty Smiles" in printed
    wanted = assistant.embed(SMILES[:3], what=what)
    stored = np.load(tmp_path / "vectors.npz")
    assert stored["row"].tolist() == [1, 3, 5]
    assert stored["smiles"].tolist() == SMILES[:3]
    np.testing.assert_array_equal(stored["embedding"], wanted)

    embed.main([*options, "--output", str(tmp_path / "vectors.parquet")])
    table = parquet.read_table(tmp_path / "vectors.parquet")
    assert table.schema.metadata[b"embedding_shape"].decode() == ",".join(map(str, wanted.shape[1:]))
    flat = np.array(table["embedding"].to_pylist(), np.float32)
    np.testing.assert_array_equal(flat.reshape(wanted.shape), wanted)
    with pytest.raises(SystemExit, match="exists already"):
        embed.main([*options, "--output", str(tmp_path / "vectors.npz")])


def test_what_cannot_work_is_one_line(tmp_path):
    source = tmp_path / "molecules.csv"
    source.write_text("name,colour\nwater,none\n")
    options = ["--checkpoint", str(tmp_path), "--input", str(source)]
    for output, said in {"x.txt": "ends in .npz or .parquet", "x.npz": "no column 'smiles'"}.items():
        with pytest.raises(SystemExit, match=said) as error:
            embed.main([*options, "--output", str(tmp_path / output)])
        assert "\n" not in str(error.value)


def test_a_few_large_molecules_go_at_a_time(assistant, monkeypatch):
    """A batch has the room of its largest molecule in every slot: 64 of ten thousand atoms would fill any memory."""
    shapes = []
    collated = embeddings._collated

    def counted(graphs, rows, *more):
        shapes.append((len(graphs), rows))
        return collated(graphs, rows, *more)

    monkeypatch.setattr(embeddings, "_collated", counted)
    many = ["C" * 300, *["CCO"] * 600, "C" * 301]
    expected = assistant.embed(many)
    monkeypatch.setattr(embeddings, "ATOMS", 1024)
    shapes.clear()
    found = assistant.embed(many)
    assert shapes[0] == (64 * 8, 64 * 8)
    assert shapes[-1][1] == 2 * 8
    assert sum(count for count, _ in shapes) == len(many)
    # of the largest: products of another length are rounded otherwise
    assert abs(found - expected).max() <= 1e-5 * abs(expected).max()


def test_texts_too_long_for_numpy_are_told_before_the_model_runs(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(embed, "MOST_CHARACTERS", 100)
    source = tmp_path / "molecules.smi"
    source.write_text("CCO\n" * 9 + "C" * 40 + "\n")
    options = ["--checkpoint", "nowhere", "--input", str(source), "--output", str(tmp_path / "vectors.npz")]
    with pytest.raises(SystemExit, match=r"the longest \(40 characters\), too much for 10; .*ends in \.parquet"):
        embed.main(options)
