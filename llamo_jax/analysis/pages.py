"""What every analysis leaves: NAME.json with all numbers, NAME.md with tables for people, NAME.png with the picture."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from data_pipeline import storage

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Table(NamedTuple):
    """Cells of text."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class Section(NamedTuple):
    """A heading, and paragraphs and tables under it."""

    title: str
    parts: Sequence[str | Table]


def write(
    folder: Path, name: str, title: str, result: Mapping[str, Any], sections: Sequence[Section], picture: bytes
) -> None:
    """Writes the three files, each whole or not at all, and prints the tables."""
    storage.make_folder(folder)
    storage.write_json(folder / f"{name}.json", result)
    storage.write_bytes(folder / f"{name}.png", picture)
    text = markdown(title, sections, f"{name}.png")
    storage.write_text(folder / f"{name}.md", text)
    print(text)


def markdown(title: str, sections: Sequence[Section], picture: str = "") -> str:
    """The page as GitHub shows it; picture: the name of a file beside it."""
    lines = [f"# {title}", "", *([f"![{title}]({picture})", ""] if picture else [])]
    for section in sections:
        lines += [f"## {section.title}", ""]
        for part in section.parts:
            if isinstance(part, Table):
                lines.append("| " + " | ".join(part.header) + " |")
                lines.append("|" + "---|" * len(part.header))
                lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in part.rows]
            else:
                lines.append(part)
            lines.append("")
    return "\n".join(lines)


def png(figure: "Figure") -> bytes:
    """The figure as an image's content."""
    content = io.BytesIO()
    figure.savefig(content, dpi=110, format="png")
    return content.getvalue()


def with_interval(score: Mapping[str, Any] | None) -> str:
    """A mean and its interval in a cell; empty where there is none.

    >>> with_interval({"mean": 1.5, "interval": [1.25, 1.75]})
    '1.500 (1.250 to 1.750)'
    """
    if not score or score["mean"] is None:
        return ""
    if not score["interval"]:
        return f"{score['mean']:.3f}"
    low, high = score["interval"]
    return f"{score['mean']:.3f} ({low:.3f} to {high:.3f})"
