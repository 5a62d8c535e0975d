"""How alike the nodes of one graph have become: measures of over-smoothing, each of one matrix of node vectors.

All take X, one row a node (float[n, d]), and give a float; NaN where a measure says nothing (one node, all zeros).
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

Nodes = Float[np.ndarray, "n d"]
Edges = Int[np.ndarray, "m 2"]


def effective_rank(x: Nodes) -> float:
    """Exp of the entropy of the singular values, as shares of their sum (Roy & Vetterli, 2007).

    Of the measures here the one that goes with performance (arXiv 2502.04591). From 1 to min(n, d).

    >>> effective_rank(np.eye(3)), effective_rank(np.ones((3, 2)))
    (3.0..., 1.0...)
    """
    values = _singular_values(x)
    if not values.any():
        return float("nan")
    shares = values / values.sum()
    shares = shares[shares > 0]
    return float(np.exp(-np.sum(shares * np.log(shares))))


def numerical_rank(x: Nodes) -> float:
    """Squared Frobenius norm over squared spectral norm (Rudelson & Vershynin, 2007), from 1 to min(n, d)."""
    values = _singular_values(x)
    return float(np.sum(values**2) / values[0] ** 2) if values.any() else float("nan")


def dirichlet_energy(x: Nodes, edges: Edges) -> float:
    """Sum over edges of |x_i - x_j|², over the squared norm of X: tr(Xᵀ L X) / |X|² with L = D - A (arXiv 2303.10993).

    edges: each undirected edge once. 0 where neighbours are equal; at most twice the largest degree.
    """
    norm = np.sum(np.square(x, dtype=np.float64))
    if norm == 0:
        return float("nan")
    return float(np.sum(np.square(x[edges[:, 0]] - x[edges[:, 1]], dtype=np.float64)) / norm)


def mean_average_distance(x: Nodes) -> float:
    """MAD (Chen et al., 2020, arXiv 1909.03211): cosine distances of pairs, averaged over each node's, then all.

    As there, distances that are zero do not count, and nodes without any other neither.
    """
    distance = 1 - _cosines(x)
    np.fill_diagonal(distance, 0)
    distance[distance < 1e-6] = 0  # what rounding leaves of zero in float32
    others = np.count_nonzero(distance, axis=1)
    if len(x) < 2 or not np.any(x):
        return float("nan")
    return float(np.mean((distance.sum(axis=1) / np.maximum(others, 1))[others > 0])) if others.any() else 0.0


def mean_cosine(x: Nodes) -> float:
    """The cosine of pairs of different nodes, averaged over pairs: 1 where all point the same way."""
    if len(x) < 2 or not np.any(x):
        return float("nan")
    return float(np.mean(_cosines(x)[np.triu_indices(len(x), 1)]))


def outside(x: Nodes, basis: Float[np.ndarray, "n k"]) -> float:
    """Share of X's norm outside of the space that the orthonormal columns of `basis` span: from 0 to 1."""
    norm = np.linalg.norm(x)
    return float(np.linalg.norm(x - basis @ (basis.T @ x)) / norm) if norm else float("nan")


def adjacency(nodes: int, edges: Edges) -> Float[np.ndarray, "n n"]:
    """A, symmetric, of undirected edges that are listed once."""
    found = np.zeros((nodes, nodes))
    found[edges[:, 0], edges[:, 1]] = found[edges[:, 1], edges[:, 0]] = 1
    return found


def convergence(nodes: int, edges: Edges) -> tuple[float, Float[np.ndarray, "n k"], Float[np.ndarray, "n n"]]:
    """(rate, space, P): where repeated averaging over neighbours goes, and how fast (Oono & Suzuki, arXiv 1905.10947).

    P = D̃^-1/2 (A + I) D̃^-1/2. Its largest eigenvalue, 1, belongs to one vector a connected component: the columns of
    `space`, orthonormal. rate is the largest absolute value of the other eigenvalues: after l linear layers P^l X,
    what lies outside of `space` is at most rate^l times what lay there before. 0 where there is nothing else.
    """
    with_self = adjacency(nodes, edges) + np.eye(nodes)
    scale = with_self.sum(axis=1) ** -0.5
    averaging = scale[:, None] * with_self * scale
    values, vectors = np.linalg.eigh(averaging)
    stays = values > 1 - 1e-9
    rest = np.abs(values[~stays])
    return float(rest.max()) if rest.size else 0.0, vectors[:, stays], averaging


MEASURES: dict[str, Callable[[Nodes, Edges], float]] = {
    "effective_rank": lambda x, edges: effective_rank(x),
    "numerical_rank": lambda x, edges: numerical_rank(x),
    "dirichlet_energy": dirichlet_energy,
    "mean_average_distance": lambda x, edges: mean_average_distance(x),
    "mean_cosine": lambda x, edges: mean_cosine(x),
}
"""Name → measure of node vectors and edges; those of vectors alone ignore the edges."""

OF_VECTORS = ("effective_rank", "numerical_rank", "mean_average_distance", "mean_cosine")
"""Those that say something about graph tokens, which have no edges."""


def _singular_values(x: Nodes) -> np.ndarray:
    return np.linalg.svd(np.asarray(x, np.float64), compute_uv=False)


def _cosines(x: Nodes) -> np.ndarray:
    """Of all pairs of rows; a row of zeros has cosine 0 with the others."""
    x = np.asarray(x, np.float64)
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    unit = x / np.where(norms > 0, norms, 1)
    return unit @ unit.T
