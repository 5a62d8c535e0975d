"""Do the nodes of a molecule become alike with depth? Over-smoothing of encoders, random and trained.

    python -m llamo_jax.analysis.oversmoothing --output DIR                     # random encoders, embedded molecules
    python -m llamo_jax.analysis.oversmoothing --checkpoint runs/stage1-tiny …  # and trained ones, level by level

Random encoders of every depth, with and without what their kind can switch on and off (residuals, normalisation), and
the levels and graph tokens of trained models, by the measures of llamo_jax.analysis.smoothing. Beside them, the linear
case: what repeated averaging over the same molecules' bonds leaves outside of the space that it converges to, and the
bound that the second eigenvalue sets. DIR gets oversmoothing.json, .md and .png.
"""

import argparse
import dataclasses
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from data_pipeline.batch import GraphArrays, MoleculeGraphs
from data_pipeline.command_line import program, whole_numbers
from data_pipeline.embedded import prepare_embedded
from data_pipeline.errors import DataError
from data_pipeline.logs import quiet_libraries
from data_pipeline.progress import watched
from data_pipeline.records import read_records
from llamo_jax import runs
from llamo_jax.analysis import pages, smoothing
from llamo_jax.config import ConfigError
from llamo_jax.evaluation import intervals
from llamo_jax.loading import load_model
from llamo_jax.models.graph_encoders import GRAPH_ENCODERS
from llamo_jax.models.interfaces import GraphEncoderConfig

SWITCHES = ("residual", "batch_norm")
"""Fields of an encoder's configuration that are tried both ways, where the kind has them."""

BINS = (10, 20, 30, 50)
"""Upper edges of the bins of heavy atoms: the rank of a small molecule's nodes cannot be large."""

TOKENS = "graph tokens"

OUTSIDE = "outside"
"""Share of the nodes' norm outside of the space that averaging over bonds converges to."""


class Network(NamedTuple):
    """What is measured: node vectors of all levels, float[L, N, F], of all molecules one after the other."""

    name: str
    about: dict[str, Any]
    levels: np.ndarray
    tokens: np.ndarray | None  # float[G, Q, D]


def random_networks(
    graphs: Sequence[GraphArrays], kinds: Sequence[str], depths: Sequence[int], width: int, seeds: int
) -> Iterator[Network]:
    """Encoders with fresh weights, of each depth and seed; with the batch's own statistics where they normalise."""
    molecules = MoleculeGraphs.from_graphs(graphs)
    nodes = sum(len(graph.atoms) for graph in graphs)
    for kind in kinds:
        usual = GRAPH_ENCODERS[kind].of_width(width)
        if not hasattr(usual, "num_layers"):
            raise ConfigError(f"--encoders: {kind} has no depth to choose")
        for given, depth in itertools.product(_variants(usual), depths):
            variant = dataclasses.replace(given, num_layers=depth)  # type: ignore[type-var]
            about = {"encoder": kind, "depth": depth, **{s: getattr(variant, s, None) for s in SWITCHES}}

            @jax.jit
            def run(seed: jax.Array, config: GraphEncoderConfig = variant) -> jax.Array:
                encoder = config.build(rngs=nnx.Rngs(jax.random.key(seed)))
                return encoder(molecules.atoms, batch_statistics=True)[:, 0, :nodes]

            for seed in range(seeds):
                yield Network(_name(about), about, np.asarray(run(np.uint32(seed))), None)


def _variants(config: GraphEncoderConfig) -> list[GraphEncoderConfig]:
    """The configuration with its switches in all positions."""
    names = [name for name in SWITCHES if hasattr(config, name)]
    return [
        dataclasses.replace(config, **dict(zip(names, values, strict=True)))  # type: ignore[type-var]
        for values in itertools.product((False, True), repeat=len(names))
    ]


def _name(about: dict[str, Any]) -> str:
    switches = [f"{'with' if about[name] else 'no'} {name.replace('_', ' ')}" for name in SWITCHES
                if about.get(name) is not None]  # fmt: skip
    return ", ".join([about["encoder"], *switches])


def trained_network(graphs: Sequence[GraphArrays], folder: Path) -> Network:
    """The levels of a run or a model folder, and its graph tokens; running statistics, as in its answers."""
    model = load_model(folder)
    molecules = MoleculeGraphs.from_graphs(graphs)
    nodes = sum(len(graph.atoms) for graph in graphs)
    tokens, out = jax.jit(lambda molecules: model.encode_graphs(molecules))(molecules)
    levels = np.asarray(out["levels"])[:, 0, :nodes]
    return Network(str(folder), {}, levels, np.asarray(tokens, np.float32)[0, : len(graphs)])


def measured(network: Network, graphs: Sequence[GraphArrays]) -> list[dict[str, np.ndarray]]:
    """Of each level, and of the graph tokens at the end: measure → a value for each molecule, NaN where it has none."""
    starts = np.cumsum([0, *(len(graph.atoms) for graph in graphs)])
    edges = [undirected(graph) for graph in graphs]
    spaces = [smoothing.convergence(len(graph.atoms), e)[1] for graph, e in zip(graphs, edges, strict=True)]
    found = []
    for level in network.levels:
        nodes = [level[a:b] for a, b in itertools.pairwise(starts)]
        values = {
            name: np.array([measure(x, e) for x, e in zip(nodes, edges, strict=True)])
            for name, measure in smoothing.MEASURES.items()
        }
        values[OUTSIDE] = np.array([smoothing.outside(x, space) for x, space in zip(nodes, spaces, strict=True)])
        found.append(values)
    if network.tokens is not None and network.tokens.shape[1]:
        no_edges = np.zeros((0, 2), int)
        found.append(
            {n: np.array([smoothing.MEASURES[n](x, no_edges) for x in network.tokens]) for n in smoothing.OF_VECTORS}
        )
    return found


def linear_case(embedding: np.ndarray, graphs: Sequence[GraphArrays], depths: Sequence[int]) -> list[dict[str, Any]]:
    """What averaging over bonds leaves outside of the space it converges to: computed, and at most.

    embedding: float[N, F], of all atoms, where both begin. With t = rateˡ · outside₀ / inside₀,
    the share is at most t / √(1 + t²), since the part inside stays.
    """
    starts = np.cumsum([0, *(len(graph.atoms) for graph in graphs)])
    rows = []
    for depth in depths:
        shares, bounds = [], []
        for graph, (a, b) in zip(graphs, itertools.pairwise(starts), strict=True):
            rate, space, averaging = smoothing.convergence(len(graph.atoms), undirected(graph))
            x = embedding[a:b].astype(np.float64)
            before = smoothing.outside(x, space)
            ratio = rate**depth * before / np.sqrt(max(1 - before**2, np.finfo(float).tiny))
            shares.append(smoothing.outside(np.linalg.matrix_power(averaging, depth) @ x, space))
            bounds.append(ratio / np.sqrt(1 + ratio**2))
        rows.append({"depth": depth, OUTSIDE: float(np.mean(shares)), "bound": float(np.mean(bounds))})
    return rows


def undirected(graph: GraphArrays) -> np.ndarray:
    """int[m, 2]: each bond once."""
    pairs = np.stack([graph.senders, graph.receivers], axis=1)
    return pairs[pairs[:, 0] < pairs[:, 1]]


def summary(values: np.ndarray) -> dict[str, Any]:
    """Mean over molecules, its 95 % bootstrap interval, and how many molecules have the measure."""
    known = values[np.isfinite(values)]
    interval = intervals.intervals(len(known), {"mean": intervals.mean(known)})["mean"]
    return {"mean": float(known.mean()) if len(known) else None, "interval": interval, "molecules": len(known)}


def by_size(values: np.ndarray, atoms: np.ndarray) -> dict[str, Any]:
    """The same in each bin of heavy atoms that has molecules."""
    places = np.digitize(atoms, BINS, right=True)
    names = [f"{low + 1}-{high}" for low, high in itertools.pairwise((0, *BINS))] + [f"more than {BINS[-1]}"]
    return {name: summary(values[places == i]) for i, name in enumerate(names) if np.any(places == i)}


def analyse(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that the report shows; see the module's docstring."""
    start = time.perf_counter()
    records = read_records(options.data or prepare_embedded(options.cache_dir) / "description", options.split)
    # spread over the split: the first of a file may be alike
    chosen = records[:: max(1, len(records) // options.molecules)][: options.molecules]
    graphs = [graph for record in chosen for graph in record.graphs]
    if not graphs:
        raise DataError(f"the split {options.split!r} has no molecules")
    atoms = np.array([len(graph.atoms) for graph in graphs])

    def rows_of(about: dict[str, Any], name: str, values: dict[str, np.ndarray]) -> dict[str, Any]:
        scores = {measure: summary(each) | {"by_atoms": by_size(each, atoms)} for measure, each in values.items()}
        return about | {"name": name} | scores

    random, random_levels, embeddings = [], [], []
    networks = random_networks(graphs, options.encoders, options.depths, options.width, options.seeds)
    of_seeds = itertools.groupby(networks, key=lambda network: (network.name, network.about))
    for (name, about), seeds in watched(of_seeds, desc="random encoders", unit="encoder"):
        found = []
        for network in seeds:
            embeddings.append(network.levels[0])
            # the output alone, except for one depth: what stands below it is another row's, of a shallower encoder
            levels = network.levels if about["depth"] == options.levels_of else network.levels[-1:]
            found.append(measured(network._replace(levels=levels), graphs))
        means = [{key: np.mean([each[key] for each in of_level], axis=0) for key in of_level[0]}
                 for of_level in zip(*found, strict=True)]  # fmt: skip
        random.append(rows_of(about, name, means[-1]))
        if about["depth"] == options.levels_of:
            random_levels += [rows_of(about | {"level": level}, name, each) for level, each in enumerate(means)]
    trained = []
    for folder in options.checkpoint:
        network = trained_network(graphs, folder)
        embeddings.append(network.levels[0])
        for level, values in enumerate(measured(network, graphs)):
            place = level if level < len(network.levels) else TOKENS
            trained.append(rows_of({"level": place}, network.name, values))
    return {
        "molecules": len(graphs),
        "heavy_atoms": {"mean": float(atoms.mean()), "smallest": int(atoms.min()), "largest": int(atoms.max())},
        "seeds": options.seeds,
        "width": options.width,
        "random": random,
        "random_levels": random_levels,
        "trained": trained,
        "linear": linear_case(embeddings[0], graphs, [0, *options.depths]) if embeddings else [],
        "seconds": round(time.perf_counter() - start, 1),
    }


def tables(result: dict[str, Any]) -> list[pages.Section]:
    """What stands in oversmoothing.md."""
    names = (*smoothing.MEASURES, OUTSIDE)

    def table(rows: Sequence[dict[str, Any]], keys: Sequence[str]) -> pages.Table:
        cells = [[str(row[key]) for key in keys] + [pages.with_interval(row.get(name)) for name in names]
                 for row in rows]  # fmt: skip
        return pages.Table((*keys, *(name.replace("_", " ") for name in names)), cells)

    atoms = result["heavy_atoms"]
    about = (
        f"{result['molecules']} molecules of {atoms['smallest']} to {atoms['largest']} heavy atoms, "
        f"{atoms['mean']:.1f} on average; means over molecules with 95 % bootstrap intervals."
    )
    sections = [pages.Section("Molecules", [about])]
    if result["random"]:
        told = f"The output of encoders with fresh weights, width {result['width']}, means of {result['seeds']} seeds."
        sections.append(pages.Section("Random encoders", [told, table(result["random"], ("name", "depth"))]))
    if result["random_levels"]:
        depth = result["random_levels"][0]["depth"]
        told = f"The same encoders of {depth} layers. Every layer but the last has a ReLU behind its normalisation."
        sections.append(pages.Section("… level by level", [told, table(result["random_levels"], ("name", "level"))]))
    if result["trained"]:
        sections.append(pages.Section("Trained encoders", [table(result["trained"], ("name", "level"))]))
    if result["linear"]:
        told = "Share outside of the space that averaging over bonds converges to, of the atoms' embedding."
        cells = [[str(row["depth"]), f"{row[OUTSIDE]:.4f}", f"{row['bound']:.4f}"] for row in result["linear"]]
        linear = pages.Table(("averagings", "computed", "at most"), cells)
        sections.append(pages.Section("The linear case", [told, linear]))
    return sections


def picture(result: dict[str, Any]) -> bytes:
    """A PNG: each measure by depth or level; the linear case beside what lies outside."""
    from matplotlib.figure import Figure

    names = (*smoothing.MEASURES, OUTSIDE)
    figure = Figure(figsize=(13, 7), layout="constrained")
    for axes, name in zip(figure.subplots(2, 3).flat, names, strict=True):
        for rows, key, style in ((result["random"], "depth", "o-"), (result["trained"], "level", "s--")):
            for network in dict.fromkeys(row["name"] for row in rows):
                points = [row for row in rows if row["name"] == network and name in row and row[key] != TOKENS]
                known = [row for row in points if row[name]["mean"] is not None]
                axes.plot([row[key] for row in known], [row[name]["mean"] for row in known], style, label=network)
        if name == OUTSIDE and result["linear"]:
            depths = [row["depth"] for row in result["linear"]]
            axes.plot(depths, [row[OUTSIDE] for row in result["linear"]], "k-", label="linear")
            axes.plot(depths, [row["bound"] for row in result["linear"]], "k:", label="linear, at most")
        axes.set_title(name.replace("_", " "))
        axes.set_xlabel("layers")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
    return pages.png(figure)


@program("oversmoothing")
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="llamo_jax.analysis.oversmoothing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="report and picture")
    parser.add_argument("--checkpoint", type=Path, nargs="+", default=[], metavar="DIR", help="trained models")
    parser.add_argument("--encoders", nargs="*", default=list(GRAPH_ENCODERS.names()), choices=GRAPH_ENCODERS.names())
    parser.add_argument("--depths", type=whole_numbers, default=(1, 2, 3, 5, 8, 12, 16), metavar="1,2,…")
    parser.add_argument("--levels_of", type=int, default=5, help="the depth of random encoders whose levels are shown")
    parser.add_argument("--width", type=int, default=300, help="of random encoders")
    parser.add_argument("--seeds", type=int, default=3, help="of random encoders")
    parser.add_argument("--data", type=Path, metavar="DIR", help="prepared; default: the embedded descriptions")
    parser.add_argument("--split", default="test", help="of the data")
    parser.add_argument("--molecules", type=int, default=200)
    parser.add_argument("--cache_dir", default="data", help="of the embedded corpus")
    options = parser.parse_args(arguments)
    quiet_libraries()
    try:
        result = analyse(options)
        pages.write(options.output, "oversmoothing", "Over-smoothing", result, tables(result), picture(result))
    except runs.UserError as error:
        sys.exit(f"llamo_jax.analysis.oversmoothing: {error}")


if __name__ == "__main__":
    main()
