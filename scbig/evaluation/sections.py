"""Sections of the report, one function each."""

from __future__ import annotations

import html
from collections.abc import Collection

import numpy as np

from scbig.data.conditions import genes_of
from scbig.errors import some
from scbig.evaluation import figures, page
from scbig.evaluation.judge import WITH_TARGETS, Scores
from scbig.evaluation.metrics import METRICS
from scbig.evaluation.reading import (
    HEADLINE,
    arrow,
    best,
    ceiling,
    condition_names,
    no_ceiling,
    ordered,
    positive,
    role,
    stratum_of_comparison,
    wide_ceiling,
    wide_table,
)
from scbig.evaluation.tables import (
    calibrated_table,
    controls_table,
    grouped,
    methods_without_answers,
    positives,
    raw_table,
    tests_table,
    unusable,
)

__all__ = [
    "calibrated_scores",
    "ceilings",
    "comparisons",
    "conditions",
    "effects",
    "excluded",
    "glossary",
    "metrics",
    "overview",
    "strata",
]

_METRIC = "pearson_delta"  # of figures by condition
_MOST_RUNGS = 45  # conditions that a figure with one line each can hold


def overview(scores: Scores, primary: str, stratum: str) -> str:
    """Means of the headline metrics with intervals, as figures."""
    items, weak = [], unusable(scores, stratum)
    s = scores.summary[scores.summary["stratum"] == stratum]
    for metric in HEADLINE:
        rows = s[(s["metric"] == metric) & s["mean"].notna()]
        if not len(rows):
            continue
        rows = rows.iloc[np.argsort(METRICS[metric].badness(rows["mean"].to_numpy(np.float64)), kind="stable")]
        drawn = [
            (r["method"], float(r["mean"]), float(r["low"]), float(r["high"]), _kind(r["method"], primary))
            for _, r in rows.iterrows()
        ]
        guide = {"pds_l2": float(scores.conditions["chance_pds"].mean()), "e_distance_share": 1.0}.get(metric, 0.0)
        top = positive(scores, metric, stratum)
        told = "; ".join(f"{r[0]} {page.number(r[1])}" for r in drawn)
        svg = figures.forest(drawn, guide, top, f"{metric}: {told}")
        items.append((f"{metric} {arrow(metric)}", "no range on these data" if metric in weak else "", svg))
    note = (
        "Means over conditions with bootstrap 95% intervals, best first. Discs: models, the method in question in blue; "
        "squares: baselines, hollow for negative controls. Arrows point to what is better; grey line: zero, chance "
        "(pds), control (share)"
    )
    note += "; dashed green: what real cells reach." if len(scores.calibrated) else "."
    return page.section("Methods", page.prose(note, "soft small"), page.figures(items))


def _kind(method: str, primary: str) -> str:
    return "primary" if method == primary else role(method)


def calibrated_scores(scores: Scores, primary: str, stratum: str) -> str:
    """Scores between the best naive answer and the ceiling."""
    body = calibrated_table(scores, HEADLINE, stratum, primary)
    if not body:
        return page.section("Calibrated scores", page.prose(f"Nothing is calibrated: {no_ceiling(scores)}."))
    note = (
        "0 is the best naive answer (control, mean or shuffled labels), 1 what real cells reach: "
        f"{positives(scores, stratum)}. Not clipped; more is better in every column. “Closes” is the share of the gap "
        "between the strongest baseline, named above, and real cells that a model closes, where it closes any. Metrics "
        "for which it is not known how a score grows with the number of cells are calibrated on half of the cells of "
        "methods, too."
    )
    rest = [name for name in METRICS if name not in HEADLINE]
    more = [(title, calibrated_table(scores, names, stratum, primary)) for title, names in grouped(rest).items()]
    folds = page.folded("Other metrics, calibrated", *(f"<h4>{html.escape(t)}</h4>{b}" for t, b in more if b))
    return page.section(
        "Calibrated scores",
        page.prose(note, "soft small"),
        body,
        _weak(scores, stratum, HEADLINE),
        folds if more else "",
    )


def _conditions(n: int) -> str:
    return f"{n} condition{'s' if n != 1 else ''}"


def _weak(scores: Scores, stratum: str, shown: Collection[str]) -> str:
    lines = [f"{name} is grey: {why}." for name, why in unusable(scores, stratum).items() if name in shown]
    return f'<div class="small soft">{page.bullets(lines)}</div>' if lines else ""


def metrics(scores: Scores, primary: str, stratum: str) -> str:
    """The headline metrics as they are, and every metric in groups."""
    present = set(scores.summary["metric"])
    targets = {name.removesuffix(WITH_TARGETS) for name in present if name.endswith(WITH_TARGETS)}
    n = int(scores.summary[scores.summary["stratum"] == stratum]["n"].max())
    note = (
        f"Means over {_conditions(n)} with bootstrap 95% intervals. Perturbed genes do not count. Best of each column "
        "in bold; arrows point to what is better."
    )
    note += " Real cells: the positive control of the calibrated scores." if len(scores.calibrated) else ""
    parts = [page.prose(note, "soft small"), raw_table(scores, HEADLINE, stratum, primary)]
    parts.append(_weak(scores, stratum, HEADLINE))
    for title, names in grouped(present).items():
        body = raw_table(scores, names, stratum, primary)
        weak = _weak(scores, stratum, names)
        parts.append(page.folded(f"All metrics: {title.lower()}", body, weak, paper=True) if body else "")
    with_targets = (
        f"<h4>{html.escape(title)}</h4>{raw_table(scores, names, stratum, primary, WITH_TARGETS)}"
        for title, names in grouped(targets).items()
    )
    parts.append(page.folded("All metrics with the perturbed genes counted", *with_targets))
    if stratum != "all":
        parts += ["<h3>Each method on all conditions that it answers</h3>", raw_table(scores, HEADLINE, "all", primary)]
    silent = methods_without_answers(scores)
    if silent:
        parts.append(page.prose(f"Without any answer, see what was left out: {some(silent)}.", "small soft"))
    title = "Scores as they are" if stratum == "all" else "Scores on the conditions that every method answers"
    return page.section(title, *parts)


def strata(scores: Scores, primary: str) -> str:
    """Headline metrics of every group of conditions; empty where there is one group."""
    names = [s for s in scores.summary["stratum"].unique() if s not in ("all", "common")]
    if not names:
        return ""
    parts = []
    for name in names:
        body = calibrated_table(scores, HEADLINE, name, primary)
        scaled = f"<h4>Calibrated</h4>{body}{_weak(scores, name, HEADLINE)}<h4>As they are</h4>" if body else ""
        parts.append(f"<h3>{html.escape(name)}</h3>{scaled}{raw_table(scores, HEADLINE, name, primary)}")
    return page.section("By stratum", *parts)


def conditions(scores: Scores, primary: str) -> str:
    """One point per condition: against the best rival, by size of the effect and by number of cells."""
    wide, names = wide_table(scores, _METRIC), condition_names(scores)
    ours, items = wide[primary].to_numpy(float), []
    several = len(names) > 1
    rivals = [name for name in scores.methods if name != primary and wide[name].notna().any()]
    if rivals and several:
        rival = best(scores, rivals, _METRIC, stratum_of_comparison(scores))
        text = f"{_METRIC}, {primary} against {rival}"
        svg = figures.against(wide[rival].to_numpy(float), ours, names, rival, primary, True, text)
        items.append((f"{primary} against {rival}", f"{_METRIC}; above the line, the first is better", svg))
    top = ceiling(scores, _METRIC)
    second = figures.Series("real cells", top) if np.isfinite(top).any() else None
    size = scores.conditions["effect_size"].to_numpy(float)
    by = [("size of the observed effect", "Score by effect size", size)]
    if scores.provenance["data"] == "cells":
        cells = scores.conditions["n_real"].to_numpy(float)
        by.append(("real cells of the condition", "Score by number of real cells", cells))
    for label, title, x in by if several else []:
        log = bool((x > 0).all() and x.max() > 20 * x.min())
        svg = figures.against(x, ours, names, label, primary, False, title, second, log)
        items.append((title, _METRIC, svg))
    return page.section("Condition by condition", page.figures(items), _every_condition(scores, primary, names))


def _every_condition(scores: Scores, primary: str, names: list[str]) -> str:
    wide, top = wide_table(scores, _METRIC), ceiling(scores, _METRIC)
    methods = ordered(scores, primary, stratum_of_comparison(scores))
    capped = bool(np.isfinite(top).any())
    header = ["condition", "stratum", "real cells", "used", "effect size", *map(page.name_of, methods)]
    header += ["real cells’ own"] if capped else []
    rows = []
    for i, (name, (_, c)) in enumerate(zip(names, scores.conditions.iterrows(), strict=True)):
        facts = [html.escape(c["stratum"]) or "–", str(c["n_real"]), str(c["n_used"]), page.number(c["effect_size"])]
        values = [page.number(v) for v in wide[methods].iloc[i]]
        rows.append([page.name_of(name), *facts, *values, *([page.number(top[i])] if capped else [])])
    at = 5 + methods.index(primary) if primary in methods else -1
    return page.folded(f"{_METRIC} of {_conditions(len(rows))}", page.table(header, rows, text=(1,), primary=at))


def effects(scores: Scores, primary: str) -> str:
    """Predicted against observed effect of the best, the median and the worst condition."""
    value = wide_table(scores, _METRIC)[primary].to_numpy(float)
    order = [i for i in np.argsort(-value, kind="stable") if np.isfinite(value[i])]
    if not order:
        return ""
    chosen = {"Best": order[0], "Median": order[len(order) // 2], "Worst": order[-1]}
    if len(order) < 3:
        chosen = dict(zip(("Best", "Worst") if len(order) == 2 else ("Only",), order, strict=True))
    names, items = condition_names(scores), []
    for title, i in chosen.items():
        targets = genes_of(scores.conditions["condition"].iloc[i])
        label = f"{names[i]}: predicted against observed effect, {_METRIC} {value[i]:.3f}"
        svg = figures.agreement(scores.observed[i], scores.predicted[primary][i], scores.genes, targets, label)
        items.append((f"{title}: {names[i]}", f"{_METRIC} {page.number(value[i])}", svg))
    note = (
        f"Effects predicted by {primary}, one point per gene; diamonds mark perturbed genes, which do not count. The "
        "axes differ: the line is where both are equal."
    )
    return page.section("Predicted and observed effects", page.prose(note, "soft small"), page.figures(items))


def ceilings(scores: Scores, primary: str, stratum: str) -> str:
    """What real cells reach, condition by condition, and which metrics have any range."""
    wide, names = wide_ceiling(scores, _METRIC), condition_names(scores)
    top = ceiling(scores, _METRIC)
    known = [i for i in np.argsort(-np.where(np.isfinite(top), top, -np.inf), kind="stable") if np.isfinite(top[i])]
    if not known:
        return page.section("Ceilings and controls", page.prose(f"No ceiling is known: {no_ceiling(scores)}."))
    ours = wide_table(scores, _METRIC)[primary].to_numpy(float)
    draws = int(scores.ceiling["draws"].max())
    note = (
        f"How well one random half of a condition’s cells predicts the other half, mean and standard deviation over "
        f"{draws} draw{'s' if draws != 1 else ''}; corrected to the full number of cells by Spearman-Brown, "
        "2r / (1 + r). Where it is low, low scores say little. A prediction that borrows from other conditions can go "
        "beyond it."
    )
    missing = len(names) - len(known)
    note += f" {missing} of {len(names)} conditions have too few cells for it." if missing else ""
    if len(known) <= _MOST_RUNGS:
        half, sd = wide["half"].to_numpy(float), wide["sd"].to_numpy(float)
        rungs = [(names[i], float(top[i]), float(sd[i]), float(half[i]), float(ours[i])) for i in known]
        svg = figures.ladder(rungs, primary, _METRIC, f"ceilings and scores of {primary}, {_METRIC}")
        items = [(f"{primary} and its ceiling", f"{_METRIC}, highest ceiling first", svg)]
    else:
        text = f"{_METRIC} of {primary} against the ceiling"
        svg = figures.against(top, ours, names, "real cells, corrected", primary, True, text)
        items = [(f"{primary} and its ceiling", f"{_METRIC}; on the line, nothing is left to gain", svg)]
    shown = {"half": "other half", "sd": "± sd", "half_corrected": "corrected", "interpolated": "interpolated"}
    shown = {kind: title for kind, title in shown.items() if wide[kind].notna().any()}
    rows = [
        [page.name_of(names[i]), *(page.number(v) for v in wide.iloc[i][list(shown)]), page.number(ours[i])]
        for i in known
    ]
    header = ["condition", *shown.values(), page.name_of(primary)]
    parts = [
        page.prose(note, "soft small"),
        page.figures(items, wide=len(known) <= _MOST_RUNGS),
        page.folded(f"Ceilings of {_conditions(len(rows))}", page.table(header, rows, primary=len(header) - 1)),
    ]
    if len(scores.calibrated):
        told = (
            "The scale of every metric. One that cannot tell real cells from naive answers on these data is not to be "
            "relied on here, whatever it says of a method."
        )
        weak = unusable(scores, stratum)
        open_ones = [name for name in METRICS if name in HEADLINE or name in ("e_distance", *weak)]
        others = controls_table(scores, [name for name in METRICS if name not in open_ones], stratum)
        parts += ["<h3>Range of the metrics</h3>", page.prose(told, "soft small")]
        parts += [controls_table(scores, open_ones, stratum)]
        parts += [page.folded("Range of the other metrics, all usable", others, paper=True)] if others else []
    return page.section("Ceilings and controls", *parts)


def comparisons(scores: Scores, primary: str, stratum: str) -> str:
    """The method in question against every other."""
    body = tests_table(scores, primary, stratum)
    if not body:
        why = f"No paired tests of {primary} against the other methods were made."
        return page.section("Pairwise comparisons", page.prose(why))
    note = (
        f"{primary} minus the other, paired over conditions: mean, bootstrap 95% interval, Wilcoxon signed-rank p, and p "
        "after Holm’s correction over the rivals. Better or worse: the corrected p is below "
        "0.05 and the interval excludes zero; “=”: no real difference. Below six conditions the test cannot reach 0.05 "
        "and the interval decides."
    )
    return page.section("Pairwise comparisons", page.prose(note, "soft small"), body)


def excluded(scores: Scores) -> str:
    """What was left out, rows that differ in the condition alone joined."""
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
    cells = [[page.name_of(row[0]), page.name_of(row[1]), *map(html.escape, row[2:])] for row in rows]
    header = ["method", "metric", "reason", "conditions", "number"]
    return page.section("Left out, and why", page.table(header, cells, text=(1, 2, 3)))


_TRAPS = {
    "pearson_delta": "A high pearson_delta can mean nothing: what all perturbations share raises it for every method, "
    "the mean of training effects included. Look at pearson_delta_ref_perturbed and at pds beside it.",
    "mse": "Small errors (l2, mse, mae) reward timid predictions: where effects are weak, “no effect” is hard to beat. "
    "Read them beside control.",
    "pearson_delta_with_targets": "Perturbed genes inflate scores, for everyone can guess that a knocked-down gene goes "
    "down: compare with the metrics that count them to see by how much.",
    "pds_l2": "With few conditions pds moves in coarse steps, and its intervals are wide.",
    "de_recall": "de_recall alone rewards calling every gene: read it beside de_precision and n_de.",
    "mse_cells": "mse_cells rewards populations without any spread: variance_ratio shows them.",
    "e_distance_share": "Averages of e_distance_share are ratios of means, for weak conditions have tiny denominators.",
}


def glossary(scores: Scores) -> str:
    """What the metrics present mean, and what they hide."""
    present = set(scores.summary["metric"])
    told = {}
    for name, m in METRICS.items():
        if name in present:
            rule = {"count": "", "target": f" Best: {m.best:g}; more and less are both worse."}.get(m.kind)
            told[f"{name} {arrow(name)}".strip()] = m.text + (f" Best: {m.best:g}." if rule is None else rule)
    rules = (
        "An effect (delta) is the mean log-expression of a condition minus that of the controls. Every method "
        "is compared with the same real cells, controls and genes; populations with as many cells as are real, and "
        "mean profiles from all cells that a method gives. A constant prediction has correlation 0. Genes without "
        "any observed effect have no direction. Ties in "
        "rankings are broken at random; they look only at genes that no condition perturbs. Where controls are held "
        "out too, predictions given as cells share the noise of the held-out controls with the observation, and "
        "predictions given as effects do not: compare like with like."
    )
    traps = [text for name, text in _TRAPS.items() if name in present]
    return page.section(
        "What the metrics mean",
        page.prose(rules, "small"),
        page.pairs(told),
        "<h3>Traps</h3>",
        f'<div class="small">{page.bullets(traps)}</div>',
    )
