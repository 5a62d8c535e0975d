"""Scores and answers as one page, HTML or Markdown.

What was evaluated and how it went, in words and one chart; then tables, histograms, best and worst answers with their
molecules.
"""

import base64
import html
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from rdkit import Chem

from data_pipeline import drawing, storage
from data_pipeline.guard import tried
from data_pipeline.molecule import InvalidMoleculeError, parse_smiles
from llamo_jax.evaluation import intervals, overview
from llamo_jax.evaluation.scores import MOLECULE, ROW_SCORES, kind_of

ROWS_OF_A_MEAN = 20
SHOWN = 20  # best answers, and as many worst ones
LONGEST = 600  # characters of a text on the page

_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0}td,th{border-bottom:1px solid #ddd;padding:.3rem .8rem;text-align:left;
vertical-align:top}td.number{text-align:right;font-variant-numeric:tabular-nums}img{max-width:100%}
.text{max-width:26rem;overflow-wrap:anywhere}"""


class Section(NamedTuple):
    """A heading, and paragraphs of text, tables or pictures under it."""

    title: str
    parts: list[Any]


class Table(NamedTuple):
    """Cells are text or Picture."""

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]


class Picture(NamedTuple):
    """An image file's content."""

    content: bytes
    kind: str  # png or svg+xml
    name: str  # what is on it


def write_report(path: Path, task: str, metrics: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes the page in one step; Markdown if the name ends in .md, else HTML. Both need no other file.

    Where molecules cannot be drawn, their SMILES stand in the page, and why it is so.
    """
    if reason := drawing.why_not():
        logging.warning("%s: %s", path, reason)
    sections = _sections(task, metrics, rows)
    title = f"{task}: {len(rows):,} answers"
    render = _markdown if path.suffix == ".md" else _html
    storage.write_text(path, render(title, sections))


def _sections(task: str, metrics: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[Section]:
    kind = kind_of(task)
    name, function = ROW_SCORES[kind]
    scores = np.array([_or_nan(function(row["prediction"], row["target"])) for row in rows], float)
    order = [int(index) for index in np.argsort(-scores, kind="stable") if np.isfinite(scores[index])]
    told = [*overview.sentences(kind, metrics, rows), *filter(None, [drawing.why_not()])]
    sections = [
        Section("Result", [*told, Picture(*overview.chart(kind, metrics, rows))]),
        Section("Scores", [_score_table(metrics)]),
        Section(f"{name} by length and size", [_histograms(name, scores, rows)]),
    ]
    unscored = len(rows) - len(order)
    note = f" ({unscored:,} answers without a score)" if unscored else ""
    sections.append(Section(f"Best answers by {name}{note}", [_answers(order[:SHOWN], scores, rows, kind)]))
    sections.append(Section(f"Worst answers by {name}", [_answers(order[::-1][:SHOWN], scores, rows, kind)]))
    return [*sections, *_nested(metrics)]


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


def _score_table(values: Mapping[str, Any], known: Mapping[str, Any] | None = None) -> Table:
    """The numbers and texts right there, with the intervals that are known."""
    known = values.get("intervals", known) or {}
    plain = {name: value for name, value in values.items() if not isinstance(value, dict | list)}
    header = ("score", "value", f"{intervals.CONFIDENCE:.0%} interval") if known else ("score", "value")
    return Table(
        header,
        [
            (name, _shown(value), *([" to ".join(map(_shown, known.get(name) or ()))] if known else []))
            for name, value in plain.items()
        ],
    )


def _nested(values: Mapping[str, Any], prefix: str = "") -> list[Section]:
    """A section for everything below the top: a dict is a table, and one of dicts or a list of them has columns."""
    sections = []
    known = values.get("intervals") or {}
    for name, value in values.items():
        if name == "intervals":
            continue
        inside = {key.removeprefix(f"{name}."): each for key, each in known.items() if key.startswith(f"{name}.")}
        title = prefix + name.replace("_", " ")
        if isinstance(value, dict) and value and all(isinstance(row, dict) for row in value.values()):
            sections.append(Section(title, [_columns([{"": key, **row} for key, row in value.items()])]))
        elif isinstance(value, dict) and value:
            sections += [Section(title, [_score_table(value, inside)]), *_nested(value, f"{title}: ")]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            sections.append(Section(title, [_columns(value)]))
    return sections


def _columns(rows: Sequence[Mapping[str, Any]]) -> Table:
    header = list(dict.fromkeys(key for row in rows for key in row))
    return Table(header, [[_shown(row[key]) if key in row else "" for key in header] for row in rows])


def _shown(value: Any) -> str:
    if value is None:
        return "not available"
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _histograms(name: str, scores: np.ndarray, rows: Sequence[Mapping[str, Any]]) -> Picture:
    """How many rows there are, and their mean score, by length of the target and by size of the molecule.

    Where there are too few rows for means, every row by itself.
    """
    from matplotlib.figure import Figure

    sizes = {"characters of the target": np.array([len(row["target"]) for row in rows], float)}
    atoms = np.array([_atoms(row.get("smiles") or [row["target"]]) for row in rows], float)
    if np.isfinite(atoms).any():
        sizes["heavy atoms of the molecule"] = atoms
    figure = Figure(figsize=(5 * len(sizes), 3.4), layout="constrained")
    for axes, (what, values) in zip(np.atleast_1d(figure.subplots(1, len(sizes))), sizes.items(), strict=True):
        known = np.isfinite(values) & np.isfinite(scores)
        if not known.any():
            continue
        axes.set_xlabel(what)
        edges = np.unique(np.quantile(values[known], np.linspace(0, 1, 1 + min(10, known.sum() // ROWS_OF_A_MEAN))))
        if len(edges) < 3:  # too few rows for means
            axes.plot(values[known], scores[known], "o", color="#c62828", alpha=0.5)
            axes.set_ylabel(name)
            continue
        place = np.clip(np.digitize(values[known], edges) - 1, 0, len(edges) - 2)
        means = [scores[known][place == index].mean() for index in range(len(edges) - 1)]
        axes.hist(values[known], bins=40, color="#cfd8dc")
        axes.set_ylabel("rows")
        twin = axes.twinx()
        twin.plot((edges[:-1] + edges[1:]) / 2, means, "o-", color="#c62828")
        twin.set_ylabel(f"mean {name}", color="#c62828")
    content = io.BytesIO()
    figure.savefig(content, dpi=110, format="png")
    return Picture(content.getvalue(), "png", f"{name} by length and size")


def _atoms(smiles: Sequence[str]) -> float:
    try:
        return float(sum(tried(parse_smiles, each).GetNumHeavyAtoms() for each in smiles))
    except InvalidMoleculeError:
        return float("nan")


def _answers(indices: Iterable[int], scores: np.ndarray, rows: Sequence[Mapping[str, Any]], kind: str) -> Table:
    table = []
    for index in indices:
        row = rows[index]
        cells: list[Any] = [_drawn(smiles) for smiles in list(row.get("smiles") or ())[:2]]
        texts: list[Any] = [row["prediction"][:LONGEST], row["target"][:LONGEST]]
        if kind == MOLECULE:
            texts = [[text, _drawn(text)] for text in texts]
        table.append([str(row.get("index", index)), f"{scores[index]:.3f}", cells, *texts])
    return Table(("row", "score", "molecule", "answer", "target"), table)


def _drawn(smiles: str) -> Picture | str:
    """The molecule's structure, or in words why there is no picture."""
    try:
        if tried(parse_smiles, smiles).GetNumHeavyAtoms() > drawing.LARGEST:
            return f"more than {drawing.LARGEST} atoms, not drawn"
    except InvalidMoleculeError:
        return "no valid molecule"
    try:
        return smiles[:LONGEST] if drawing.why_not() else tried(picture, smiles)
    except (InvalidMoleculeError, RuntimeError, ValueError, Chem.MolSanitizeException):
        return smiles[:LONGEST]


def picture(smiles: str) -> Picture:
    """The structure as SVG; raises what RDKit does."""
    return Picture(drawing.svg(parse_smiles(smiles), (220, 160)).encode(), "svg+xml", smiles)


def _html(title: str, sections: Sequence[Section]) -> str:
    body = [f"<h1>{html.escape(title)}</h1>"]
    for section in sections:
        body.append(f"<h2>{html.escape(section.title)}</h2>")
        body += [
            _html_table(part) if isinstance(part, Table) else f"<p>{_html_cell(part)}</p>" for part in section.parts
        ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.header)
    rows = ("".join(f'<td class="text">{_html_cell(cell)}</td>' for cell in row) for row in table.rows)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def _html_cell(cell: Any) -> str:
    if isinstance(cell, list):
        return "<br>".join(map(_html_cell, cell))
    if isinstance(cell, Picture):
        return f'<img src="{_data_uri(cell)}" alt="{html.escape(cell.name, quote=True)}">'
    return html.escape(cell)


def _markdown(title: str, sections: Sequence[Section]) -> str:
    lines = [f"# {title}", ""]
    for section in sections:
        lines += [f"## {section.title}", ""]
        for part in section.parts:
            if isinstance(part, Table):
                lines.append("| " + " | ".join(part.header) + " |")
                lines.append("|" + "---|" * len(part.header))
                lines += ["| " + " | ".join(map(_markdown_cell, row)) + " |" for row in part.rows]
            else:
                lines.append(_markdown_cell(part))
            lines.append("")
    return "\n".join(lines)


def _markdown_cell(cell: Any) -> str:
    if isinstance(cell, list):
        return "<br>".join(map(_markdown_cell, cell))
    if isinstance(cell, Picture):
        return f'<img src="{_data_uri(cell)}" alt="{html.escape(cell.name, quote=True)}">'
    # an answer is text: none of its characters may make a link, or an image that is fetched from elsewhere
    text = re.sub(r"([\\`*_{}\[\]()#!|~:@])", r"\\\1", html.escape(cell, quote=False))
    return text.replace("\r", "").replace("\n", "<br>")


def _data_uri(picture: Picture) -> str:
    return f"data:image/{picture.kind};base64,{base64.b64encode(picture.content).decode()}"
