"""What is in a prepared folder: its manifest in words, examples with their tokens, and its lengths as a picture.

python -m data_pipeline.inspect data/chebi20        # writes data/chebi20/lengths.png too
python -m data_pipeline.inspect data/chebi20 --examples 5
"""

import argparse
import itertools
import sys
from typing import Any

import numpy as np
from etils import epath

from data_pipeline import storage
from data_pipeline.batch import EncodedConversation
from data_pipeline.command_line import program
from data_pipeline.errors import DataError
from data_pipeline.lengths import SIZE_NAMES
from data_pipeline.prompt import PromptEncoder
from data_pipeline.records import Record, RecordReader, read_manifest
from data_pipeline.tokenizer import load_tokenizer

GRAPH_TOKENS = 28
"""Of a molecule, as in the paper; prepared folders do not depend on it."""

SHOWN = 300
"""Characters of a message, and half of those of its tokens."""


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


def describe_examples(folder: epath.Path, manifest: dict[str, Any], count: int) -> str:
    """Records spread over a split as a model sees them, with their tokens: those that are learned in brackets."""
    if not (folder / "tokenizer").is_dir():  # TFRecord files are not read by index
        return ""
    prompt = manifest["prompt"]
    tokenizer = load_tokenizer(folder / "tokenizer")
    encoder = PromptEncoder(tokenizer, GRAPH_TOKENS, style=prompt["style"], show_smiles=prompt["show_smiles"])
    split = "train" if "train" in manifest["splits"] else next(iter(manifest["splits"]))
    reader = RecordReader(folder, split)
    chosen = sorted({index * len(reader) // count for index in range(count)})
    return "\n".join(_example(split, number, reader.fetch([number])[0], encoder) for number in chosen)


def _example(split: str, number: int, record: Record, encoder: PromptEncoder) -> str:
    (encoded,) = encoder.encode_each([record])
    if encoded is None:
        return f"{split} {number}: refused by the prompt style"
    pieces: list[str] = []
    for kind, group in itertools.groupby(range(len(encoded.tokens)), key=lambda at: _kind(encoded, at)):
        places = list(group)
        if kind == "graph":
            pieces.append(f"<{len(places)} graph tokens>")
        else:
            words = "|".join(encoder.tokenizer.decode([int(encoded.tokens[at])]) for at in places)
            pieces.append(f"[{words}]" if kind == "learned" else words)
    shown = " ".join(pieces).replace("\n", "\\n")
    learned = int(encoded.is_target.sum())
    smiles = ", ".join(record.conversation.smiles) or "no molecule"
    turns = [f"  {message.role}: {message.content}" for message in record.conversation.messages]
    text = "\n".join(turn if len(turn) <= SHOWN else f"{turn[:SHOWN]} …" for turn in turns)
    tokens = shown if len(shown) <= 2 * SHOWN else f"{shown[: 2 * SHOWN]} …"
    return f"{split} {number}: {smiles}\n{text}\n  {len(encoded.tokens)} tokens, {learned} learned: {tokens}"


def _kind(encoded: EncodedConversation, at: int) -> str:
    return "graph" if encoded.molecule[at] >= 0 else "learned" if encoded.is_target[at] else "read"


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
    budgets = read_manifest(folder)["suggested"] or {}
    figure = Figure(figsize=(10, 3 * -(-len(columns) // 2)), layout="constrained")
    panels = list(figure.subplots(-(-len(columns) // 2), 2, squeeze=False).flat)
    for axes, (name, by_split) in zip(panels, columns.items(), strict=False):
        values = np.concatenate(list(by_split.values()))
        edges = np.histogram_bin_edges(values, bins=min(40, int(np.ptp(values)) + 1))
        for split, counted in sorted(by_split.items()):
            weights = np.full(len(counted), 100 / len(counted))
            axes.hist(counted, edges, weights=weights, histtype="step", label=f"{split} ({len(counted):,})")
        budget = budgets.get(f"{name}_per_row")
        if budget:
            axes.axvline(budget, color="#999", linestyle="--", label=f"a row holds {budget:,}")
        axes.set_xlabel(f"{name} of a record")
        axes.set_ylabel("% of the split's records")
        axes.set_xlim(left=0)
        axes.legend(fontsize=8)
    for axes in panels[len(columns) :]:  # an odd number of quantities leaves one empty
        axes.set_axis_off()
    with storage.writing(picture) as partial, partial.open("wb") as file:
        figure.savefig(file, dpi=120, format=picture.suffix.removeprefix(".") or "png")


@program("data_pipeline.inspect")
def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="data_pipeline.inspect", description=__doc__)
    parser.add_argument("folder", type=epath.Path, metavar="DIR")
    parser.add_argument("--examples", type=int, default=0, metavar="N", help="show so many records with their tokens")
    parser.add_argument("--picture", type=epath.Path, metavar="FILE.png", help="default: lengths.png in the folder")
    options = parser.parse_args(arguments)
    picture = options.picture or options.folder / "lengths.png"
    try:
        manifest = read_manifest(options.folder)
        print(describe_manifest(manifest))
        if options.examples > 0:
            print(f"\n{describe_examples(options.folder, manifest, options.examples)}")
        plot_lengths(options.folder, picture)
    except (DataError, OSError) as error:
        sys.exit(f"data_pipeline.inspect: {error}")
    print(f"\n{picture}")


if __name__ == "__main__":
    main()
