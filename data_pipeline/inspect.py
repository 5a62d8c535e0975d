"""What is in a prepared folder: its manifest in words, and histograms of its lengths as a picture.

python -m data_pipeline.inspect data/chebi20        # writes data/chebi20/lengths.png too
"""

import argparse
import sys
from typing import Any

import numpy as np
from etils import epath

from data_pipeline import storage
from data_pipeline.command_line import program
from data_pipeline.errors import DataError
from data_pipeline.lengths import SIZE_NAMES
from data_pipeline.records import read_manifest


def describe_manifest(manifest: dict[str, Any]) -> str:
    """The manifest as text for people."""
    lines = [f"task {manifest['task']}, {manifest['rows']:,} rows, in {manifest['file_format']} files"]
    lines += [f"  source    {source['name']}" for source in manifest.get("sources", ())]
    lines += [f"  {split:<9} {count:>10,} records" for split, count in manifest["splits"].items()]
    lines += [f"  rejected  {count:>10,} {reason}" for reason, count in manifest["rejected"].items()]
    lines += [f"  missing   {count:>10,} {column}" for column, count in manifest.get("missing", {}).items()]
    for split, quantities in manifest["lengths"].items():
        ranks = list(next(iter(quantities.values())))
        lines += ["", f"{split} percentiles".ljust(22) + "".join(f"{rank:>8}" for rank in ranks)]
        lines += [f"  {name:<20}" + "".join(f"{value:>8,}" for value in q.values()) for name, q in quantities.items()]
    if manifest["suggested"]:
        lines += ["", "budgets of a row that tokens alone fill, for 99.9 % of rows:"]
        lines += [f"  --config.data.{name}={value}" for name, value in manifest["suggested"].items()]
    return "\n".join(lines)


def plot_lengths(folder: epath.Path, picture: epath.Path) -> None:
    """Histograms of atoms, edges, motifs and, where measured, tokens of each split, as a PNG file."""
    from matplotlib.figure import Figure

    columns: dict[str, dict[str, np.ndarray]] = {}
    with (folder / "sizes.npz").open("rb") as file, np.load(file) as sizes:
        for split in sizes:
            for name, column in zip(SIZE_NAMES, sizes[split].T, strict=True):
                columns.setdefault(name, {})[split] = column
    for path in sorted((folder / "lengths").glob("*.npy")):
        with path.open("rb") as file:
            columns.setdefault("tokens", {})[path.name.rpartition("-")[0]] = np.load(file)[:, 0]
    figure = Figure(figsize=(4 * len(columns), 3.2), layout="constrained")
    for axes, (name, by_split) in zip(np.atleast_1d(figure.subplots(1, len(columns))), columns.items(), strict=True):
        edges = np.histogram_bin_edges(np.concatenate(list(by_split.values())), bins=40)
        for split, values in sorted(by_split.items()):
            axes.hist(values, bins=edges, density=True, histtype="step", label=f"{split} ({len(values):,})")
        axes.set_xlabel(f"{name} per record")
        axes.set_yticks([])
    axes.legend()
    with storage.writing(picture) as partial, partial.open("wb") as file:
        figure.savefig(file, dpi=120, format=picture.suffix.removeprefix(".") or "png")


@program("data_pipeline.inspect")
def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="data_pipeline.inspect", description=__doc__)
    parser.add_argument("folder", type=epath.Path, metavar="DIR")
    parser.add_argument("--picture", type=epath.Path, metavar="FILE.png", help="default: lengths.png in the folder")
    options = parser.parse_args(arguments)
    picture = options.picture or options.folder / "lengths.png"
    try:
        print(describe_manifest(read_manifest(options.folder)))
        plot_lengths(options.folder, picture)
    except (DataError, OSError) as error:
        sys.exit(f"data_pipeline.inspect: {error}")
    print(f"\n{picture}")


if __name__ == "__main__":
    main()
