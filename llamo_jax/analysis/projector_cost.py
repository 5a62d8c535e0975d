"""What a projector costs: parameters, FLOPs, time and memory, and how they grow with the molecules.

    python -m llamo_jax.analysis.projector_cost --output DIR
    python -m llamo_jax.analysis.projector_cost --output DIR --of configs/stage1.py:smollm2 --atoms 10,50 --repeats 9

Every kind, as large as the configuration's own (llamo_jax.models.projectors.budget), compiled for molecules of the
same number of atoms and run forward, and forward and backward, on random levels: medians of several runs. FLOPs and
temporary memory are what XLA says of the compiled program. The exponents are those of a · atomsᵇ fitted through the
largest molecules at the most molecules, and of molecules likewise. The share of a whole train step is one of matrix
FLOPs that the step needs (llamo_jax.training.flops), of each configuration in --share. DIR gets projector_cost.json,
.md and .png.
"""

import argparse
import functools
import itertools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data_pipeline.batch import BatchShape, GraphArrays, MoleculeGraphs, RowSize
from data_pipeline.command_line import program, whole_numbers
from data_pipeline.logs import quiet_libraries
from data_pipeline.progress import watched
from data_pipeline.vocabulary import MOTIF_FEATURES
from llamo_jax import runs
from llamo_jax.analysis import experiments, pages
from llamo_jax.models.flops import LinearFlops
from llamo_jax.models.interfaces import ProjectorConfig
from llamo_jax.models.projectors import PROJECTORS
from llamo_jax.models.projectors.budget import count_parameters, matched
from llamo_jax.training.config import Config
from llamo_jax.training.flops import minimal_flops

ATOMS = (10, 25, 50, 100, 200, 500)
MOLECULES = (1, 4, 16, 64)
TYPICAL = RowSize(tokens=100, molecules=1, atoms=16, edges=34, motifs=6)
"""Of a conversation about one molecule: 15.3 atoms, 32.3 directed bonds, 5.1 motifs (embedded descriptions, test)."""

FITTED = 3
"""Largest sizes that an exponent is fitted through: small programs are all overhead."""


def molecules_of(atoms: int, count: int) -> MoleculeGraphs:
    """That many molecules of that many atoms: chains, whose bonds no projector looks at."""
    chain = np.arange(atoms - 1, dtype=np.int32)
    senders, receivers = np.concatenate([chain, chain + 1]), np.concatenate([chain + 1, chain])
    motifs = np.eye(MOTIF_FEATURES, dtype=np.uint8)[
        np.arange(max(1, atoms * TYPICAL.motifs // TYPICAL.atoms)) % MOTIF_FEATURES
    ]
    nodes, edges = np.zeros((atoms, 9), np.uint8), np.zeros((len(senders), 3), np.uint8)
    return MoleculeGraphs.from_graphs([GraphArrays(nodes, edges, senders, receivers, motifs)] * count)


def costs(config: ProjectorConfig, sizes: tuple[int, int, int], atoms: int, count: int, repeats: int) -> dict[str, Any]:
    """Seconds, FLOPs and temporary bytes of one size; sizes: F, L and D."""
    width, levels, out = sizes
    molecules = molecules_of(atoms, count)
    graphdef, state = nnx.split(config.build(width, levels, out, rngs=nnx.Rngs(0)))
    shape = (levels, 1, molecules.atoms.nodes.shape[1], width)
    x = jax.random.normal(jax.random.key(0), shape)

    def forward(state: nnx.State, x: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, state)(x, molecules)[0]

    # a sum of squares: the gradient of a plain sum is the same for all tokens, and XLA would see that
    both = jax.grad(lambda state, x: jnp.sum(forward(state, x) ** 2), argnums=(0, 1))
    found: dict[str, Any] = {"atoms": atoms, "molecules": count}
    for name, function in (("forward", forward), ("forward_and_backward", both)):
        compiled = jax.jit(function).lower(state, x).compile()
        analysis, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
        found[name] = {
            "seconds": median_seconds(functools.partial(compiled, state, x), repeats),
            "flops": float(analysis.get("flops", 0.0)),
            "temporary_bytes": int(memory.temp_size_in_bytes) if memory else 0,
        }
    return found


def median_seconds(run: Callable[[], Any], repeats: int) -> float:
    """Of several runs after one that does not count."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float | None:
    """The b of a · sizeᵇ, by least squares of the logarithms at the FITTED largest sizes; None if nothing is counted.

    >>> round(exponent([1, 10, 100, 1000], [7.0, 30.0, 3000.0, 300000.0]), 3)
    2.0
    """
    chosen = sorted(zip(sizes, values, strict=True))[-FITTED:]
    if len(chosen) < 2 or min(value for _, value in chosen) <= 0:
        return None
    x, y = np.log(np.array(chosen, float)).T
    return float(np.polyfit(x, y, 1)[0])


def growth(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Exponents of seconds and FLOPs, forward and backward, by atoms and by molecules."""
    most = {name: max(row[name] for row in rows) for name in ("atoms", "molecules")}
    found: dict[str, Any] = {}
    for by, fixed in (("atoms", "molecules"), ("molecules", "atoms")):
        line = [row for row in rows if row[fixed] == most[fixed]]
        found[by] = {
            what: exponent([row[by] for row in line], [row["forward_and_backward"][what] for row in line])
            for what in ("seconds", "flops")
        }
    return found


def share_of_step(config: Config, projector: ProjectorConfig) -> float:
    """Of the matrix FLOPs that a train step needs, the projector's, of rows of TYPICAL molecules."""
    data = config.data
    molecules = max(1, data.tokens_per_row // TYPICAL.tokens)
    row = RowSize(*(molecules * size for size in TYPICAL))._replace(tokens=data.tokens_per_row)
    rows = data.rows or data.rows_per_device
    shape = BatchShape(rows, 1, row)
    model = config.model
    names = trained_names(config)
    whole = sum(part.total() for part in minimal_flops(model, shape, names).values())
    linear = LinearFlops(names, model.lora, "projector")
    to_levels = LinearFlops(names, model.lora, "graph_encoder").any_trained()
    sizes = (model.graph_encoder.width, model.num_levels, model.language_model.width)
    own, others = (
        each.flops(shape, *sizes, linear, to_levels=to_levels).total() for each in (model.projector, projector)
    )
    return others / (whole - own + others)


def trained_names(config: Config) -> set[str]:
    """Paths of the parameters that the configuration trains; nothing is allocated."""
    from llamo_jax.models.definition import define_model, statistics_names
    from llamo_jax.training.trainable import rules_of, select_trainable

    definition = define_model(config.model)
    names = sorted(definition.names() - statistics_names(definition))
    return {name for name, trained in select_trainable(names, rules_of(config.train)).items() if trained}


def analyse(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that the report shows."""
    config = runs.read_config(experiments.read_config_file(options.of))
    shares = {each: runs.read_config(experiments.read_config_file(each)) for each in options.share}

    def of_kind(kind: str, config: Config) -> ProjectorConfig:
        model = config.model
        return matched(kind, model.projector, *sizes_of(config))

    def sizes_of(config: Config) -> tuple[int, int, int]:
        model = config.model
        return model.graph_encoder.width, model.num_levels, model.language_model.width

    cells = list(itertools.product(options.kinds, options.atoms, options.molecules))
    measured: dict[str, list[dict[str, Any]]] = {kind: [] for kind in options.kinds}
    for kind, atoms, count in watched(cells, desc="programs", unit="program"):
        measured[kind].append(costs(of_kind(kind, config), sizes_of(config), atoms, count, options.repeats))
    return {
        "of": options.of,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "repeats": options.repeats,
        "kinds": {
            kind: {
                "graph_tokens": of_kind(kind, config).num_tokens(config.model.num_levels),
                "parameters": count_parameters(of_kind(kind, config), *sizes_of(config)),
                "measured": rows,
                "exponents": growth(rows),
                "share_of_step": {name: share_of_step(each, of_kind(kind, each)) for name, each in shares.items()},
            }
            for kind, rows in measured.items()
        },
    }


def tables(result: Mapping[str, Any]) -> list[pages.Section]:
    """What stands in projector_cost.md."""
    kinds = result["kinds"]
    largest = {kind: max(found["measured"], key=lambda row: (row["molecules"], row["atoms"])) for kind, found in
               kinds.items()}  # fmt: skip
    at = next(iter(largest.values()))
    told = f"Sizes of {result['of']}; {result['device']}; medians of {result['repeats']} runs."
    header = ("projector", "graph tokens", "parameters", "forward, ms", "and backward, ms", "GFLOP", "temporary MB")
    cells = []
    for kind, found in kinds.items():
        forward, both = largest[kind]["forward"], largest[kind]["forward_and_backward"]
        numbers = (1e3 * forward["seconds"], 1e3 * both["seconds"], both["flops"] / 1e9, both["temporary_bytes"] / 1e6)
        counts = (str(found["graph_tokens"]), f"{found['parameters']:,}")
        cells.append([kind, *counts, *(f"{number:.2f}" for number in numbers)])
    sections = [
        pages.Section(f"{at['molecules']} molecules of {at['atoms']} atoms", [told, pages.Table(header, cells)])
    ]
    rows = [
        [
            kind,
            *(_number(found["exponents"][by][what]) for by in ("atoms", "molecules") for what in ("seconds", "flops")),
        ]
        for kind, found in kinds.items()
    ]
    growths = ("projector", "atoms: seconds", "atoms: FLOPs", "molecules: seconds", "molecules: FLOPs")
    sections.append(pages.Section("Exponents of growth, forward and backward", [pages.Table(growths, rows)]))
    names = list(next(iter(kinds.values()))["share_of_step"])
    if names:
        rows = [[kind, *(f"{found['share_of_step'][name]:.2%}" for name in names)] for kind, found in kinds.items()]
        sections.append(
            pages.Section("Share of a train step's matrix FLOPs", [pages.Table(("projector", *names), rows)])
        )
    return sections


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def picture(result: Mapping[str, Any]) -> bytes:
    """A PNG: time by atoms at the most molecules, and by molecules at the most atoms, on logarithmic axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    pairs = (("atoms", "molecules"), ("molecules", "atoms"))
    for axes, (by, fixed) in zip(figure.subplots(1, 2, sharey=True), pairs, strict=True):
        for kind, found in result["kinds"].items():
            most = max(row[fixed] for row in found["measured"])
            line = [row for row in found["measured"] if row[fixed] == most]
            seconds = [1e3 * row["forward_and_backward"]["seconds"] for row in line]
            axes.loglog([row[by] for row in line], seconds, "o-", label=kind)
        axes.set_xlabel(f"{by}, at {most} {fixed}")
        axes.set_ylabel("forward and backward, ms")
    axes.legend(fontsize="small")
    return pages.png(figure)


@program("projector_cost")
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="llamo_jax.analysis.projector_cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="report and picture")
    parser.add_argument("--kinds", nargs="+", default=list(PROJECTORS.names()), choices=PROJECTORS.names())
    parser.add_argument(
        "--of", default="configs/stage1.py:tiny", metavar="FILE:PRESET", help="whose sizes are measured"
    )
    parser.add_argument("--share", nargs="*", metavar="FILE:PRESET", help="of whose train steps the share is told",
                        default=[f"configs/stage1.py:{name}" for name in ("tiny", "smollm2", "llama2_7b")])  # fmt: skip
    parser.add_argument("--atoms", type=whole_numbers, default=ATOMS, metavar="10,25,…")
    parser.add_argument("--molecules", type=whole_numbers, default=MOLECULES, metavar="1,4,…")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)
    quiet_libraries()
    try:
        result = analyse(options)
        pages.write(options.output, "projector_cost", "Cost of projectors", result, tables(result), picture(result))
    except runs.UserError as error:
        sys.exit(f"llamo_jax.analysis.projector_cost: {error}")


if __name__ == "__main__":
    main()
