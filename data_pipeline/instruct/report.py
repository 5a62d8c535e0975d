"""What became of a job, for people: some lines, a page with figures and examples, and the sheet for raters."""

import functools
import html
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from etils import epath

from data_pipeline import drawing, storage
from data_pipeline.guard import tried
from data_pipeline.instruct.job import CONVERSATIONS, REJECTED
from data_pipeline.instruct.ratings import RUBRIC, as_csv, sample
from data_pipeline.molecule import InvalidMoleculeError

REPORT = "report.html"
SHOWN = 12
"""Conversations, and rejected ones, that the page shows."""

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222;
       background: #fff; }
table { border-collapse: collapse; margin: 1rem 0; } td, th { padding: .2rem .8rem .2rem 0; text-align: left;
       vertical-align: top; } td.number { text-align: right; font-variant-numeric: tabular-nums; }
.bar { background: #4477aa; height: .7rem; display: inline-block; } .bad { background: #cc6677; }
.talk { border-top: 1px solid #ccc; padding: 1rem 0; overflow: hidden; } .talk svg { float: right; max-width: 40%; }
.user { color: #555; } .assistant { margin-left: 1.5rem; } .id { font: 12px monospace; color: #777; }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #181818; } .user { color: #aaa; }
       .talk svg { background: #fff; } }
"""

_MACROS = """
{% macro talk(row) %}<div class="talk">{% for each in drawn(row) %}{{ each }}{% endfor %}
<div class="id">{{ row.id }} · {{ row.kind }}</div>
{% for message in row.messages %}<p class="{{ message.role }}">{{ message.content }}</p>{% endfor %}
{% for reason in row.reasons %}<p><b>{{ reason.check }}: {{ reason.reason }}</b> {{ reason.detail }}</p>{% endfor %}
</div>{% endmacro %}
{% macro bars(title, counts, total, css) %}<h2>{{ title }}</h2><table>{% for name, count in counts.items() %}
<tr><td>{{ name }}</td><td class="number">{{ "{:,}".format(count) }}</td>
<td><span class="bar {{ css }}" style="width: {{ (12 * count / (total or 1)) | round(2) }}rem"></span></td>
<td>{{ examples.get(name, "") }}</td></tr>{% endfor %}</table>{% endmacro %}
"""

_REPORT = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Conversations about molecules</title><style>{{ style }}</style><h1>Conversations about molecules</h1>
<p>{{ lines | join("; ") }}.</p>{% if undrawn %}<p>{{ undrawn }}</p>{% endif %}
<table><tr><th>kind</th><th>asked</th><th>got</th><th>conversations</th></tr>
{% for name, kind in quality.kinds.items() %}<tr><td>{{ name }}</td><td class="number">{{ percent(kind.asked) }}</td>
<td class="number">{{ percent(kind.share) }}</td><td class="number">{{ "{:,}".format(kind.conversations) }}</td></tr>
{% endfor %}</table>
{{ bars("Rejected, by check", quality.findings, quality.written, "bad") }}
{% if quality.rejected_rows %}
{{ bars("Rows not used", quality.rejected_rows, quality.rejected_rows.values() | sum, "bad") }}{% endif %}
{% if quality.faults %}{{ bars("Attempts that failed", quality.faults, quality.spent.requests, "bad") }}{% endif %}
<h2>Diversity</h2><table>
{% for size in (1, 2, 3) %}<tr><td>different {{ size }}-grams of all</td>
<td class="number">{{ percent(quality.diversity["distinct_%d" % size]) }}</td></tr>{% endfor %}
<tr><td>near-duplicates, of all that were written</td>
<td class="number">{{ percent(quality.diversity.near_duplicates) }}</td></tr>
<tr><td>molecules</td><td class="number">{{ "{:,}".format(quality.diversity.molecules) }}</td></tr>
<tr><td>functional groups named</td>
<td class="number">{{ quality.diversity.groups_named }} of {{ quality.diversity.groups_known }}</td></tr></table>
{{ bars("Heavy atoms of the molecules", quality.diversity.heavy_atoms, quality.conversations, "") }}
{{ bars("Functional groups, by conversations that name them", quality.diversity.groups, quality.conversations, "") }}
<h2>Some that are kept</h2>{% for row in kept %}{{ talk(row) }}{% endfor %}
<h2>Some that are not, or not whole</h2>{% for row in rejected %}{{ talk(row) }}{% endfor %}
</html>"""

_SHEET = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Conversations to rate</title><style>{{ style }}</style><h1>Conversations to rate</h1>
<p>For each conversation below, fill its line of your copy of <code>sheet.csv</code>: numbers from 1 to 5, and a comment
if you like.</p>
<table>{% for name, text in rubric.items() %}<tr><th>{{ name }}</th><td>{{ text }}</td></tr>{% endfor %}</table>
{% for row in rows %}{{ talk(row) }}{% endfor %}</html>"""


def summary(folder: epath.Path, quality: Mapping[str, Any]) -> str:
    """Some lines for the terminal."""
    lines = [f"{folder}: {'; '.join(_lines(quality))}"]
    lines += [
        f"  {name:<14} {kind['conversations']:>8,}  {kind['share']:.1%}" for name, kind in quality["kinds"].items()
    ]
    if quality["complete"] and quality["conversations"] < quality["asked_for"]:
        lines.append(f"  of {quality['asked_for']:,} that were asked for; more are tried with --rounds")
    lines += [f"  rejected {count:>13,}  {name}" for name, count in list(quality["findings"].items())[:10]]
    lines.append(f"{folder / REPORT} shows some; {folder / REJECTED} holds what is rejected, with reasons")
    return "\n".join(lines)


def _lines(quality: Mapping[str, Any]) -> list[str]:
    grounded = quality["grounded"]
    return [
        f"{quality['conversations']:,} conversations of {quality['written']:,} that were written",
        f"{quality['turns']:,} turns",
        f"{quality['claims']:,} claims, {'none' if grounded is None else f'{grounded:.1%}'} of them true",
        f"{quality['cut']:,} cut short, {quality['mended']:,} mended",
        f"{quality['spent']['requests']:,} requests",
    ]


def write(folder: epath.Path, quality: Mapping[str, Any]) -> None:
    """DIR/report.html, in one file, for any browser."""
    bad = [row for row in sample(folder / REJECTED, 20 * SHOWN, 0) if row.get("messages")]
    text = _page(
        _REPORT,
        quality=quality,
        lines=_lines(quality),
        kept=sample(folder / CONVERSATIONS, SHOWN, 0),
        rejected=bad[:SHOWN],
        examples=quality["examples"],
    )
    storage.write_text(folder / REPORT, text)


def sheet_html(rows: Sequence[Mapping[str, Any]], rubric: Mapping[str, str]) -> str:
    """The page that raters read."""
    return _page(_SHEET, rows=rows, rubric=rubric, examples={})


def write_sheet(folder: epath.Path, count: int, seed: int) -> str:
    """DIR/sheet.html, to read, and DIR/sheet.csv, to fill in; returns a line for people."""
    rows = sample(folder / CONVERSATIONS, count, seed)
    storage.write_text(folder / "sheet.html", sheet_html(rows, RUBRIC))
    storage.write_text(folder / "sheet.csv", as_csv([(row["id"], "", "", "", "") for row in rows]))
    html, sheet = folder / "sheet.html", folder / "sheet.csv"
    return f"{html} shows {len(rows):,} conversations; give raters copies of {sheet}, and the filled ones to --ratings"


def _page(template: str, **values: Any) -> str:
    # everything that teachers and files say is escaped; only drawings are markup
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.ChainableUndefined)
    environment.globals.update(drawn=_drawn, percent=lambda share: f"{share:.1%}")
    return environment.from_string(_MACROS + template).render(style=_STYLE, undrawn=drawing.why_not(), **values)


def _drawn(row: Mapping[str, Any]) -> list[Any]:
    import markupsafe

    smiles = [row["smiles"]] if isinstance(row["smiles"], str) else row["smiles"]
    return [markupsafe.Markup(_svg(each)) for each in smiles]


@functools.lru_cache(maxsize=1024)
def _svg(smiles: str) -> str:
    try:
        return tried(drawing.card, smiles)
    except InvalidMoleculeError:
        return f"<code>{html.escape(smiles)}</code>"
