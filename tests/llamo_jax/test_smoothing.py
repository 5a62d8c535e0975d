"""Measures of over-smoothing on graphs whose values are known, and the program that reports them."""

import json

import networkx
import numpy as np
import pytest

from data_pipeline.records import read_records
from llamo_jax.analysis import oversmoothing, smoothing

RANK_ONE = np.outer(np.arange(1, 6), [1.0, -2.0, 3.0])


def edges_of(graph):
    return np.array(graph.edges, int).reshape(-1, 2)


@pytest.mark.parametrize("measure", [smoothing.effective_rank, smoothing.numerical_rank])
def test_ranks(measure):
    assert measure(np.eye(5)) == pytest.approx(5)
    assert measure(RANK_ONE) == pytest.approx(1)
    assert measure(np.ones((4, 7))) == pytest.approx(1)
    assert np.isnan(measure(np.zeros((3, 2))))
    assert 1 < measure(np.diag([3.0, 1.0])) < 2
    # neither a rotation nor a factor changes how many directions there are
    rng = np.random.default_rng(0)
    x, rotation = rng.standard_normal((6, 4)), np.linalg.qr(rng.standard_normal((4, 4)))[0]
    assert measure(-3 * x @ rotation) == pytest.approx(measure(x))


def test_ranks_of_unequal_singular_values():
    x = np.diag([3.0, 1.0])
    assert smoothing.numerical_rank(x) == pytest.approx(10 / 9)
    assert smoothing.effective_rank(x) == pytest.approx(np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25))))


def test_dirichlet_energy():
    complete, path = networkx.complete_graph(5), networkx.path_graph(4)
    assert smoothing.dirichlet_energy(np.ones((5, 3)), edges_of(complete)) == 0
    # of identity features: each edge gives 2, and the squared norm is the number of nodes
    assert smoothing.dirichlet_energy(np.eye(5), edges_of(complete)) == pytest.approx(2 * 10 / 5)
    assert smoothing.dirichlet_energy(np.eye(4), edges_of(path)) == pytest.approx(2 * 3 / 4)
    # the trace form, with the unnormalised Laplacian
    x = np.random.default_rng(1).standard_normal((4, 3))
    laplacian = networkx.laplacian_matrix(path).toarray()
    expected = np.trace(x.T @ laplacian @ x) / np.sum(x**2)
    assert smoothing.dirichlet_energy(x, edges_of(path)) == pytest.approx(expected)
    pairs = networkx.Graph([(0, 1), (2, 3)])
    apart = np.array([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    assert smoothing.dirichlet_energy(apart, edges_of(pairs)) == 0  # equal within each pair, though not between them


def test_distances_and_cosines():
    assert smoothing.mean_average_distance(RANK_ONE) == pytest.approx(0, abs=1e-9)
    assert smoothing.mean_cosine(RANK_ONE) == pytest.approx(1)
    assert smoothing.mean_average_distance(np.eye(4)) == pytest.approx(1)
    assert smoothing.mean_cosine(np.eye(4)) == pytest.approx(0)
    opposite = np.array([[1.0, 0], [-1, 0]])
    assert (smoothing.mean_average_distance(opposite), smoothing.mean_cosine(opposite)) == (2, -1)
    # two of three alike: their distance is zero and does not count
    alike = np.array([[1.0, 0], [1, 0], [0, 1]])
    assert smoothing.mean_average_distance(alike) == pytest.approx(1)
    assert smoothing.mean_cosine(alike) == pytest.approx(1 / 3)
    assert np.isnan(smoothing.mean_cosine(np.ones((1, 3))))


@pytest.mark.parametrize(
    ("graph", "rate"),
    [(networkx.complete_graph(6), 0.0), (networkx.path_graph(2), 0.0), (networkx.cycle_graph(4), 1 / 3)],
    ids=["complete", "pair", "cycle"],
)
def test_convergence(graph, rate):
    """Regular graphs converge to equal nodes; a complete one in a single averaging."""
    nodes = len(graph)
    found, space, averaging = smoothing.convergence(nodes, edges_of(graph))
    assert found == pytest.approx(rate, abs=1e-9)
    np.testing.assert_allclose(abs(space), np.full((nodes, 1), nodes**-0.5))
    x = np.random.default_rng(2).standard_normal((nodes, 3))
    before = np.linalg.norm(x - space @ space.T @ x)
    for depth in (1, 3):
        y = np.linalg.matrix_power(averaging, depth) @ x
        assert np.linalg.norm(y - space @ space.T @ y) <= rate**depth * before + 1e-9
        np.testing.assert_allclose(space.T @ y, space.T @ x)


def test_convergence_of_disconnected_pairs():
    """A vector for each component: what tells them apart is never averaged away."""
    pairs = networkx.Graph([(0, 1), (2, 3)])
    rate, space, _ = smoothing.convergence(4, edges_of(pairs))
    assert (rate, space.shape) == (pytest.approx(0), (4, 2))
    assert smoothing.outside(np.array([[1.0], [1], [-5], [-5]]), space) == pytest.approx(0, abs=1e-9)
    assert smoothing.outside(np.array([[1.0], [-1], [0], [0]]), space) == pytest.approx(1)


def test_every_seed_is_another_encoder(few):
    graphs = [record.graphs[0] for record in read_records(few / "description", "validation")[:2]]
    first, second = oversmoothing.random_networks(graphs, ("gatv2",), (1,), 8, 2)
    assert first.name == second.name
    np.testing.assert_array_equal(first.levels.shape, second.levels.shape)
    assert np.abs(first.levels - second.levels).max() > 0.1


def test_the_program(untrained, few, tmp_path, capsys):
    """Random encoders and a trained model; deep ones without residuals become alike."""
    command = f"--output {tmp_path}/out --data {few}/description --split validation --checkpoint {untrained}"
    settings = "--depths 8,1 --levels_of 8 --width 32 --seeds 2 --molecules 12"
    oversmoothing.main([*command.split(), *settings.split()])
    result = json.loads((tmp_path / "out" / "oversmoothing.json").read_text())
    assert (tmp_path / "out" / "oversmoothing.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out" / "oversmoothing.md").read_text() in capsys.readouterr().out
    assert result["molecules"] == 12
    rank = {(row["encoder"], row["residual"], row["batch_norm"], row["depth"]): row["effective_rank"]["mean"]
            for row in result["random"]}  # fmt: skip
    assert len(rank) == 10
    assert rank["gin", False, False, 8] < 1.5 < rank["gin", False, True, 1]
    assert rank["gin", False, False, 8] < min(rank["gin", False, False, 1], rank["gin", False, True, 8])
    output = {row["name"]: row["effective_rank"]["mean"] for row in result["random"] if row["depth"] == 8}
    levels = {(row["name"], row["level"]): row["effective_rank"]["mean"] for row in result["random_levels"]}
    assert len(output) == 5
    assert len(levels) == 5 * 9
    assert {name: levels[name, 8] for name in output} == output
    # one network, from its embedding on: all the same before its layers, and not behind them
    assert levels["gin, no residual, no batch norm", 8] < levels["gin, no residual, no batch norm", 1]
    assert [row["level"] for row in result["trained"]] == [0, 1, 2, 3, 4, 5, "graph tokens"]
    assert "dirichlet_energy" not in result["trained"][-1]
    sizes = result["trained"][0]["effective_rank"]["by_atoms"]
    assert sum(each["molecules"] for each in sizes.values()) == result["trained"][0]["effective_rank"]["molecules"]
    linear = {row["depth"]: row for row in result["linear"]}
    assert linear[0]["outside"] == pytest.approx(linear[0]["bound"])
    assert linear[8]["outside"] < linear[8]["bound"] < linear[1]["bound"]
