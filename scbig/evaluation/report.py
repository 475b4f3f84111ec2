"""The report: what the scores say, the verdict first, as one HTML page that needs nothing else."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from scbig.baselines import REGISTRY
from scbig.data.conditions import genes_of
from scbig.errors import InputError, some
from scbig.evaluation import figures, page, record
from scbig.evaluation.judge import WITH_TARGETS, Scores
from scbig.evaluation.metrics import METRICS
from scbig.evaluation.reading import (
    answering,
    best,
    condition_names,
    count,
    stratum_of_comparison,
    wide_table,
)
from scbig.evaluation.verdict import verdict
from scbig.files import atomic

__all__ = ["console_table", "render", "write"]

HEADLINE = (
    "pearson_delta",
    "pearson_delta_top20",
    "pearson_delta_ref_perturbed",
    "pds_l2",
    "e_distance_share",
)
"""Metrics of the verdict, the figures and the tables per stratum."""


def write(
    scores: Scores,
    out_dir: str | os.PathLike,
    *,
    primary: str | None = None,
    title: str = "scBIG: evaluation",
    extra: Mapping[str, object] | None = None,
) -> Path:
    """Writes ``per_condition.csv``, ``summary.json``, ``effects.npz`` and ``report.html``, each whole.

    Args:
        scores: from ``evaluate``.
        out_dir: the folder; made if it is not there.
        primary: see ``render``.
        title: of the page.
        extra: see ``render``.

    Returns:
        The path of the report.
    """
    out_dir = Path(out_dir)
    text = render(scores, primary=primary, title=title, extra=extra)
    record.save(scores, out_dir)
    with atomic(out_dir / "report.html") as path:
        path.write_text(text, encoding="utf-8")
    return out_dir / "report.html"


def render(
    scores: Scores,
    *,
    primary: str | None = None,
    title: str = "scBIG: evaluation",
    extra: Mapping[str, object] | None = None,
) -> str:
    """The page as text.

    Args:
        scores: from ``evaluate``.
        primary: the method in question; by default the first that is not one of the baselines, else the best
            of them.
        title: of the page.
        extra: further sections by title: a string, a table of values (mapping), a ``pandas.DataFrame``, a
            ``figures.Curves``, or a list of these.

    Raises:
        InputError: no method of the name ``primary``.
    """
    primary = _primary(scores, primary)
    stratum = stratum_of_comparison(scores)
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        page.prose(_subtitle(scores), "soft"),
        verdict(scores, primary, stratum),
        _overview(scores, primary, stratum),
        _all_metrics(scores, primary, stratum),
        _strata(scores, primary),
        _conditions(scores, primary),
        _effects(scores, primary),
        *(page.section(name, *_anything(name, content)) for name, content in (extra or {}).items()),
        _excluded(scores),
        _glossary(scores),
        page.section("Provenance", page.pairs(scores.provenance)),
    ]
    return page.document(title, *parts)


def console_table(scores: Scores, metrics: Sequence[str] = HEADLINE, stratum: str | None = None) -> list[list[str]]:
    """Methods by metrics as text, a header first; means over the conditions that all methods answered.

    Args:
        scores: from ``evaluate``.
        metrics: columns; those that the scores do not have are left out.
        stratum: another group of conditions.
    """
    stratum = stratum or stratum_of_comparison(scores)
    present = set(scores.summary["metric"])
    metrics = [name for name in metrics if name in present]
    rows = [["method", *metrics, "conditions"]]
    for method in scores.methods:
        cells = [page.number(scores.value(method, name, stratum)) for name in metrics]
        rows.append([method, *cells, str(count(scores, method, stratum))])
    return rows


def _primary(scores: Scores, primary: str | None) -> str:
    if primary is not None and primary not in scores.methods:
        raise InputError(f"no method '{primary}' among the scores; there are: {some(scores.methods)}")
    others = [name for name in scores.methods if name not in REGISTRY]
    return primary or (
        others[0] if others else best(scores, scores.methods, "pearson_delta", stratum_of_comparison(scores))
    )


def _subtitle(scores: Scores) -> str:
    p, n = scores.provenance, len(scores.conditions)
    cells = "" if p["data"] == "effects" else f", at most {p['n_cells']} cells per condition and method"
    return f"{n} test conditions of split {p['split']} ({p['split_rule']}), {len(scores.genes)} genes{cells}."


def _rows(scores: Scores, metric: str, stratum: str) -> list[tuple[str, float, float, float]]:
    s = scores.summary
    s = s[(s["metric"] == metric) & (s["stratum"] == stratum) & s["mean"].notna()]
    ordered = s.sort_values("mean", ascending=not METRICS[metric].higher, kind="stable")
    return [tuple(row) for row in ordered[["method", "mean", "low", "high"]].itertuples(index=False)]


def _overview(scores: Scores, primary: str, stratum: str) -> str:
    items = []
    for metric in HEADLINE:
        rows = _rows(scores, metric, stratum)
        if not rows:
            continue
        guide = {"pds_l2": float(scores.conditions["chance_pds"].mean()), "e_distance_share": 1.0}.get(metric, 0.0)
        told = "; ".join(f"{name} {page.number(mean)}" for name, mean, _, _ in rows)
        arrow = "↑" if METRICS[metric].higher else "↓"
        items.append((f"{metric} {arrow}", "", figures.forest(rows, primary, guide, f"{metric}: {told}")))
    note = (
        "Means over conditions with bootstrap 95% intervals. Arrows point to what is better; pale line: zero, "
        "chance (pds), control (share)."
    )
    return page.section("Methods", page.prose(note, "soft small"), page.figures(items))


def _table(scores: Scores, metrics: Sequence[str], stratum: str, primary: str, suffix: str = "") -> str:
    """Metrics by methods; the best of each row is bold."""
    s = scores.summary[scores.summary["stratum"] == stratum].set_index(["method", "metric"])
    # The method in question first: a narrow screen shows two columns.
    methods, rows = sorted(answering(scores), key=lambda name: name != primary), []
    for metric in metrics:
        cells, means = [], []
        for method in methods:
            key = (method, f"{metric}{suffix}")
            row = s.loc[key] if key in s.index else None
            means.append(np.nan if row is None else float(row["mean"]))
            cells.append("–" if row is None or not np.isfinite(row["mean"]) else _cell(row))
        if not np.isfinite(means).any():
            continue
        best = np.nanmax(means) if METRICS[metric].higher else np.nanmin(means)
        cells = [f"<b>{c}</b>" if m == best else c for c, m in zip(cells, means, strict=True)]
        arrow = "↑" if METRICS[metric].higher else "↓"
        # Names may break after an underscore, which narrow screens need.
        rows.append([f"{html.escape(metric)} {arrow}".replace("_", "_<wbr>").replace(" ", "&nbsp;"), *cells])
    counts = [str(count(scores, name, stratum)) for name in methods]
    rows.append(["conditions", *counts])
    header = ["metric", *map(html.escape, methods)]
    return page.table(header, rows, primary=_column(methods, primary, 1))


def _column(methods: list[str], primary: str, before: int) -> int:
    return before + methods.index(primary) if primary in methods else -1


def _cell(row: pd.Series) -> str:
    if not np.isfinite(row["low"]):
        return page.number(row["mean"])
    span = f"{page.number(row['low'])} … {page.number(row['high'])}"
    return f'{page.number(row["mean"])}<span class="range">{span}</span>'


def _all_metrics(scores: Scores, primary: str, stratum: str) -> str:
    parts = [
        page.prose(
            "Perturbed genes do not count. Best of each row in bold; arrows point to what is better.",
            "soft small",
        ),
        _table(scores, list(METRICS), stratum, primary),
        "<h3>The same with the perturbed genes counted</h3>",
        _table(scores, list(METRICS), stratum, primary, WITH_TARGETS),
    ]
    title = "All metrics" if stratum == "all" else "All metrics, on the conditions that every method answers"
    if stratum != "all":
        parts += [
            "<h3>Each method on all conditions that it answers</h3>",
            _table(scores, HEADLINE, "all", primary),
        ]
    return page.section(title, *parts)


def _strata(scores: Scores, primary: str) -> str:
    names = [s for s in scores.summary["stratum"].unique() if s not in ("all", "common")]
    if not names:
        return ""
    parts = [f"<h3>{html.escape(name)}</h3>{_table(scores, HEADLINE, name, primary)}" for name in names]
    return page.section("By stratum", *parts)


def _conditions(scores: Scores, primary: str) -> str:
    wide, names = wide_table(scores, "pearson_delta"), condition_names(scores)
    rivals = [name for name in scores.methods if name != primary and wide[name].notna().any()]
    items = []
    ours = wide[primary].to_numpy(float)
    if rivals:
        rival = best(scores, rivals, "pearson_delta", stratum_of_comparison(scores))
        svg = figures.against(
            wide[rival].to_numpy(float),
            ours,
            names,
            rival,
            primary,
            True,
            f"pearson_delta, {primary} against {rival}",
        )
        items.append((f"{primary} against {rival}", "pearson_delta; above the line, the first is better", svg))
    size = scores.conditions["effect_size"].to_numpy(float)
    svg = figures.against(size, ours, names, "size of the observed effect", primary, False, "score by effect size")
    items.append(("Score by effect size", "pearson_delta", svg))
    if scores.provenance["data"] == "cells":
        cells = scores.conditions["n_real"].to_numpy(float)
        svg = figures.against(cells, ours, names, "real cells of the condition", primary, False, "score by cells")
        items.append(("Score by number of real cells", "pearson_delta", svg))
    methods = answering(scores)
    header = ["condition", "stratum", "real cells", "used", "effect size", *map(html.escape, methods)]
    rows = [
        [
            html.escape(name),
            html.escape(c["stratum"]) or "–",
            str(c["n_real"]),
            str(c["n_used"]),
            page.number(c["effect_size"]),
            *(page.number(v) for v in wide[methods].iloc[i]),
        ]
        for i, (name, (_, c)) in enumerate(zip(names, scores.conditions.iterrows(), strict=True))
    ]
    body = page.table(header, rows, text=(1,), primary=_column(methods, primary, 5))
    summary = f"<summary>pearson_delta of all {len(rows)} conditions</summary>"
    details = f'<details class="screen">{summary}{body}</details>'
    return page.section("Condition by condition", page.figures(items), details)


def _effects(scores: Scores, primary: str) -> str:
    value = wide_table(scores, "pearson_delta")[primary].to_numpy(float)
    order = [i for i in np.argsort(-value, kind="stable") if np.isfinite(value[i])]
    if not order:
        return ""
    chosen = dict(zip(("Best", "Median", "Worst"), (order[0], order[len(order) // 2], order[-1]), strict=True))
    names, items = condition_names(scores), []
    for title, i in chosen.items():
        targets = genes_of(scores.conditions["condition"].iloc[i])
        label = f"{names[i]}: predicted against observed effect, pearson_delta {value[i]:.3f}"
        svg = figures.agreement(scores.observed[i], scores.predicted[primary][i], scores.genes, targets, label)
        items.append((f"{title}: {names[i]}", f"pearson_delta {page.number(value[i])}", svg))
    note = f"Effects predicted by {primary}, one point per gene; diamonds mark perturbed genes."
    return page.section("Predicted and observed effects", page.prose(note, "soft small"), page.figures(items))


def _excluded(scores: Scores) -> str:
    table = scores.excluded
    if not len(table):
        return page.section("Left out, and why", page.prose("Nothing: every method answers every test condition."))
    # What a reason names stands after a colon: conditions that differ in nothing else share a row.
    split = table["reason"].str.split(": ", n=1, expand=True).reindex(columns=[0, 1]).fillna("")
    table = table.assign(reason=split[0], named=split[1])
    rows = []
    for (method, metric, reason), part in table.groupby(["method", "metric", "reason"], sort=True):
        what = sorted({c or k for c, k in zip(part["condition"], part["context"], strict=True)} - {""})
        named = sorted({name for text in part["named"] for name in text.split(", ") if name})
        reason = f"{reason}: {some(named, 12)}" if named else reason
        rows.append([method or "all", metric or "all", reason, some(what, 12) or "all", str(len(part))])
    rows.sort(key=lambda row: (row[0], -int(row[4])))
    cells = [[html.escape(cell) for cell in row] for row in rows]
    header = ["method", "metric", "reason", "conditions", "number"]
    return page.section("Left out, and why", page.table(header, cells, text=(1, 2, 3)))


def _glossary(scores: Scores) -> str:
    present = set(scores.summary["metric"])
    told = {name: f"{m.text} Best: {m.best:g}." for name, m in METRICS.items() if name in present}
    rules = (
        "An effect (delta) is the mean log-expression of a condition minus that of the controls. Every method "
        "is compared with the same real cells, controls and genes and with the same number of its own cells. A "
        "constant prediction has correlation 0. Genes without any observed effect have no direction. Ties in "
        "rankings are broken at random; they look only at genes that no condition perturbs. "
        " Where controls are held out too, predictions given as cells share "
        "the noise of the held-out controls with the observation, and predictions given as effects do not: "
        "compare like with like."
    )
    return page.section("What the metrics mean", page.prose(rules, "small"), page.pairs(told))


def _anything(title: str, content: object) -> list[str]:
    """A further section's content as HTML."""
    if isinstance(content, str):
        return [page.prose(content)]
    if isinstance(content, figures.Curves):
        return [page.figures([(content.y_label or title, "", figures.curves(content, f"{title}: {content.y_label}"))])]
    if isinstance(content, pd.DataFrame):
        number = [pd.api.types.is_float_dtype(content[c]) for c in content]
        rows = [
            [page.number(v) if f else html.escape(str(v)) for v, f in zip(row, number, strict=True)]
            for row in content.itertuples(index=False)
        ]
        words = tuple(i for i, c in enumerate(content) if not pd.api.types.is_numeric_dtype(content[c]))
        return [page.table([html.escape(str(c)) for c in content], rows, text=words)]
    if isinstance(content, Mapping):
        return [page.pairs(content)]
    if isinstance(content, (list, tuple)):
        lines = [c for c in content if isinstance(c, figures.Curves)]
        drawn = [(c.y_label or title, "", figures.curves(c, f"{title}: {c.y_label}")) for c in lines]
        rest = [part for c in content if not isinstance(c, figures.Curves) for part in _anything(title, c)]
        return [*([page.figures(drawn)] if drawn else []), *rest]
    raise TypeError(f"section '{title}': a report cannot show {type(content).__name__}")
