"""The first screen of a report: what was evaluated, how it went, and one chart."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llamo_jax.evaluation.answers import by_property, number_in, yes_in
from llamo_jax.evaluation.claims import KINDS
from llamo_jax.evaluation.scores import MOLECULE, NUMBER, TEXT, YES_NO

PANELS = 6  # properties that are drawn
_COLOUR, _OTHER = "#1565c0", "#c62828"


def sentences(kind: str, metrics: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was evaluated, and the result in words; numbers in brackets are 95 % intervals."""
    return [_evaluated(metrics, len(rows)), _RESULTS[kind](metrics, rows), *_graph(metrics)]


def _evaluated(metrics: Mapping[str, Any], rows: int) -> str:
    """The model, the data and the rows that were left out, as far as they are known."""
    model, source = metrics.get("model", {}), metrics.get("source", {})
    parts = [f"{rows:,} answers"]
    if model:
        parts.append(f"of {model['checkpoint']} (weights {model['fingerprint']})")
    if source:
        split = f", split {source['split']}" if source.get("split") else ""
        parts.append(f"to {source['data']}{split}")
    left_out = {**metrics.get("rejected", {}), **metrics.get("broken_rows", {})}
    reasons = "; ".join(f"{count:,} {reason}" for reason, count in left_out.items())
    return f"{' '.join(parts)}. Left out: {reasons or 'nothing'}."


def _shown(values: Mapping[str, Any], name: str, style: str = "{:.2f}") -> str:
    """A score with its interval."""
    value = values.get(name)
    if value is None:
        return "not available"
    known = (values.get("intervals") or {}).get(name)
    between = f" ({' to '.join(style.format(each) for each in known)})" if known else ""
    return style.format(value) + between


def _text(metrics: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    found = metrics.get("hallucination")
    claims = ""
    if found and found["claims"]:
        claims = (
            f"Of {found['claims']:,} claims that the answers make of their molecules, "
            f"{_shown(found, 'precision', '{:.1%}')} are true; of the groups, rings and elements that are there, "
            f"{_shown(found, 'recall', '{:.1%}')} are named. "
        )
    return (
        f"{claims}Words in common with the targets: BLEU-2 {_shown(metrics, 'bleu2')}, ROUGE-L "
        f"{_shown(metrics, 'rougeL')}; word for word the target: {_shown(metrics, 'exact', '{:.1%}')}."
    )


def _molecule(metrics: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    return (
        f"{_shown(metrics, 'exact', '{:.1%}')} of the answers are the right molecule, "
        f"{_shown(metrics, 'validity', '{:.1%}')} are a molecule at all; those resemble the right one to "
        f"{_shown(metrics, 'morgan')} (Tanimoto, Morgan fingerprints)."
    )


def _number(metrics: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    properties = by_property(rows)
    unit = next(iter(properties))[1] if len(properties) == 1 else ""
    several = f" Over {len(properties)} properties together: see each in the chart." if len(properties) > 1 else ""
    return (
        f"Answers are off by {_shown(metrics, 'mae', '{:.3g}')}{f' {unit}' if unit else ''} on average, R² "
        f"{_shown(metrics, 'r2')}; {metrics['unparsable']:,} have no number.{several}"
    )


def _yes_no(metrics: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    truths = [truth for row in rows if (truth := yes_in(row["target"])) is not None]
    share = max(np.mean(truths), 1 - np.mean(truths)) if truths else float("nan")
    return (
        f"{_shown(metrics, 'accuracy', '{:.1%}')} of the answers are right; the more frequent answer, always given, "
        f"would be in {share:.1%}. ROC AUC {_shown(metrics, 'roc_auc')}; {metrics['unparsable']:,} are neither."
    )


_RESULTS = {TEXT: _text, MOLECULE: _molecule, NUMBER: _number, YES_NO: _yes_no}


def _graph(metrics: Mapping[str, Any]) -> list[str]:
    found = metrics.get("graph_use", {})
    if "change" not in found:
        return []
    flat = found["change"] | {
        "intervals": {name: (found.get("intervals") or {}).get(f"change.{name}") for name in found["change"]}
    }
    return [
        f"With the graph of another molecule, a token of the target costs {_shown(flat, 'other')} nats more, without "
        f"any graph {_shown(flat, 'blank')}; where the graph is not used, it is 0."
    ]


def chart(kind: str, metrics: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> tuple[bytes, str, str]:
    """A PNG file, "png", and what is on it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    if kind == NUMBER:
        name = _draw_numbers(figure, rows)
    elif kind == YES_NO and all(row.get("yes_probability") is not None for row in rows):
        name = _draw_probabilities(figure, rows)
    else:
        name = _draw_bars(figure, kind, metrics)
    content = io.BytesIO()
    figure.savefig(content, dpi=110, format="png")
    return content.getvalue(), "png", name


def _draw_numbers(figure: Any, rows: Sequence[Mapping[str, Any]]) -> str:
    """Predicted against true values, a panel for each property."""
    properties = [(asked, _known(chosen)) for asked, chosen in by_property(rows).items()][:PANELS]
    columns = min(3, len(properties))
    lines = -(-len(properties) // columns)
    figure.set_size_inches(3.6 * columns + 0.6, 3.4 * lines)
    for axes, ((name, unit), pairs) in zip(
        figure.subplots(lines, columns, squeeze=False).flat, properties, strict=False
    ):
        truth, answer = np.array(pairs or [(np.nan, np.nan)], float).T
        axes.plot(truth, answer, "o", color=_COLOUR, markersize=4, alpha=min(1.0, max(0.1, 60 / len(truth))))
        low, high = np.nanmin([truth, answer]) if pairs else 0, np.nanmax([truth, answer]) if pairs else 1
        axes.plot([low, high], [low, high], color="#999", linewidth=1)
        axes.set_title("\n".join(_wrapped(name)), fontsize=9)
        axes.set_xlabel(f"true{f' ({unit})' if unit else ''}")
        axes.set_ylabel(f"predicted{f' ({unit})' if unit else ''}")
    return "predicted against true values"


def _known(rows: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """(target, prediction) of the rows where both have a number."""
    pairs = [(number_in(row["target"]), number_in(row["prediction"])) for row in rows]
    return [(truth, answer) for truth, answer in pairs if truth is not None and answer is not None]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 40) or [text]


def _draw_probabilities(figure: Any, rows: Sequence[Mapping[str, Any]]) -> str:
    axes = figure.subplots()
    for truth, colour, label in ((True, _COLOUR, "yes"), (False, _OTHER, "no")):
        values = [row["yes_probability"] for row in rows if yes_in(row["target"]) is truth]
        axes.hist(
            values,
            bins=np.linspace(0, 1, 21),
            histtype="step",
            color=colour,
            label=f"{label} is right ({len(values):,})",
        )
    axes.set_xlabel("probability of yes")
    axes.set_ylabel("rows")
    axes.legend()
    return "probability of yes, by the right answer"


def _draw_bars(figure: Any, kind: str, metrics: Mapping[str, Any]) -> str:
    """Scores between 0 and 1, or claims by kind, with their intervals; beside them what other graphs cost."""
    found = metrics.get("hallucination")
    known = metrics.get("intervals") or {}
    if found and found["claims"]:
        of_claims = found.get("intervals") or {}
        bars = {
            f"{name} ({found['by_kind'][name]['claims']:,})": (
                found["by_kind"][name]["precision"], of_claims.get(f"by_kind.{name}.precision")
            )
            for name in KINDS
            if found["by_kind"][name]["precision"] is not None
        }  # fmt: skip
        title = "claims that are true, by kind"
    else:
        names = {
            TEXT: ("bleu2", "bleu4", "rouge1", "rouge2", "rougeL", "meteor", "exact"),
            MOLECULE: ("exact", "validity", "maccs", "rdk", "morgan"),
            YES_NO: ("accuracy", "f1", "roc_auc"),
        }[kind]
        bars = {name: (metrics[name], known.get(name)) for name in names if metrics.get(name) is not None}
        title = "scores"
    use = metrics.get("graph_use", {})
    left, *right = np.atleast_1d(
        figure.subplots(1, 2 if "change" in use else 1, width_ratios=[3, 1] if "change" in use else [1])
    )
    _bars(left, bars)
    left.set_xlim(0, 1)
    left.set_xlabel(title)
    for axes in right:
        costs = {f"{name} graph": (use["change"][name], (use.get("intervals") or {}).get(f"change.{name}"))
                 for name in ("other", "blank")}  # fmt: skip
        _bars(axes, costs)
        axes.set_xlabel("nats per token that it costs")
        title += ", and what another graph costs"
    return title


def _bars(axes: Any, bars: Mapping[str, tuple[float, Sequence[float] | None]]) -> None:
    """Horizontal bars, the first on top, with whiskers where an interval is known."""
    for place, (value, between) in enumerate(bars.values()):
        axes.barh(place, value, color=_COLOUR, height=0.6)
        if between:
            axes.plot(between, [place, place], color="#222", linewidth=1.5)
        axes.annotate(f" {value:.2f}", (max([value, *(between or ())]), place), va="center", fontsize=9)
    axes.set_yticks(range(len(bars)), list(bars))
    axes.invert_yaxis()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
