"""Tables of the report: methods as rows, metrics as columns."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np
import pandas as pd

from scbig.evaluation import page
from scbig.evaluation.judge import Scores
from scbig.evaluation.metrics import METRICS
from scbig.evaluation.reading import (
    POSITIVE,
    answering,
    arrow,
    calibrated,
    calibrated_rows,
    compared,
    counts,
    is_reference,
    ordered,
    positive,
    role,
)

__all__ = [
    "GROUPS",
    "calibrated_table",
    "controls_table",
    "grouped",
    "methods_without_answers",
    "positives",
    "raw_table",
    "tests_table",
    "unusable",
]

GROUPS: dict[str, tuple[str, ...]] = {
    "Effects": (
        "pearson_delta", "pearson_delta_top20", "pearson_delta_ref_perturbed", "pearson_delta_recorded",
        "cosine_delta", "r2_delta", "direction_acc", "direction_acc_top20",
    ),
    "Which perturbation it is": ("pds_l1", "pds_l2", "pds_cosine", "centroid_acc"),
    "Genes that respond": ("des", "de_direction_match", "deg_macro_f1", "roc_auc", "pr_auc"),
    "Genes called to respond": ("de_overlap_n", "de_precision", "de_recall", "n_de", "n_de_observed"),
    "Errors of the mean profile": ("l2", "mse", "mae", "wmse", "l2_ba_ate", "l2_ba_ate_global"),
    "Populations": (
        "e_distance", "e_distance_share", "mmd", "wasserstein", "sinkhorn_divergence", "mse_cells",
    ),
    "Spread and coexpression": ("variance_ratio", "coexpression_error", "coexpression_error_modules"),
}  # fmt: skip
"""Metrics that are read together; any other stands under ``Others``."""

_HEADINGS = {"model": "models", "baseline": "baselines", "negative": "negative controls"}


def grouped(present: Sequence[str] | set[str]) -> dict[str, list[str]]:
    """Metrics among those present, by group, each once; groups without any are left out."""
    known = {name for names in GROUPS.values() for name in names}
    groups = {title: [m for m in names if m in present and m in METRICS] for title, names in GROUPS.items()}
    groups["Others"] = [m for m in METRICS if m in present and m not in known]
    return {title: names for title, names in groups.items() if names}


def unusable(scores: Scores, stratum: str) -> dict[str, str]:
    """Metrics without range on these data, and why."""
    c = scores.calibrated
    rows = c[(c["stratum"] == stratum) & ~c["usable"].astype(bool)]
    found = dict(zip(rows["metric"], rows["reason"], strict=True))
    if "e_distance" in found:
        found["e_distance_share"] = found["e_distance"]
    return found


def raw_table(scores: Scores, metrics: Sequence[str], stratum: str, primary: str, suffix: str = "") -> str:
    """Means with intervals; the best of each column is bold, and the ceiling stands below.

    Args:
        scores: from ``evaluate``.
        metrics: columns, by their names without the suffix; those without any value are left out.
        stratum: a group of conditions.
        primary: the method in question.
        suffix: of the metrics' names in the scores.
    """
    s = scores.summary[scores.summary["stratum"] == stratum].set_index(["method", "metric"])
    methods, columns, header = ordered(scores, primary, stratum), [], []
    for metric in metrics:
        keys = [(name, f"{metric}{suffix}") for name in methods]
        found = [s.loc[key] if key in s.index else None for key in keys]
        means = np.array([np.nan if row is None else float(row["mean"]) for row in found])
        if not np.isfinite(means).any():
            continue
        cells = ["–" if row is None or not np.isfinite(row["mean"]) else _cell(row) for row in found]
        if METRICS[metric].kind != "count":
            bad = METRICS[metric].badness(means)
            cells = [f"<b>{c}</b>" if b == np.nanmin(bad) else c for c, b in zip(cells, bad, strict=True)]
        columns.append([*cells, "–" if suffix else _top(scores, metric, stratum)])
        header.append(metric)
    if not header:
        return ""
    n = counts(scores, stratum)
    differ = len({n[name] for name in methods}) > 1
    if differ:
        columns.append([*(str(n[name]) for name in methods), "–"])
    rows, marked = _rows(methods, columns, primary, any(c[-1] != "–" for c in columns))
    weak = unusable(scores, stratum)
    faded = [i for i, name in enumerate(header, 1) if name in weak]
    titles = ["method", *(_heading(name, name in weak) for name in header), *(["conditions"] if differ else [])]
    return page.table(titles, rows, marked=marked, faded=faded)


def _heading(metric: str, weak: bool) -> str:
    flag = '<span class="range">no range</span>' if weak else ""
    return f"{_directed(metric)}{flag}"


def _directed(metric: str) -> str:
    """Name and arrow, which stay on one line."""
    return f"{page.name_of(metric)} {arrow(metric)}".strip().replace(" ", "&nbsp;")


def _rows(
    methods: list[str], columns: list[list[str]], primary: str, ceiling: bool
) -> tuple[list[list[str] | str], list[int]]:
    """Cells row by row under headings, and which row is that of the method in question."""
    rows: list[list[str] | str] = []
    marked, last = [], ""
    for i, name in enumerate(methods):
        kind = "model" if name == primary else role(name)
        if kind != last:
            rows.append(_HEADINGS[kind] if name != primary or not is_reference(name) else "in question")
            last = kind
        if name == primary:
            marked.append(len(rows))
        rows.append([page.name_of(name), *(column[i] for column in columns)])
    if ceiling:
        rows += ["positive control", ["real cells", *(column[-1] for column in columns)]]
    return rows, marked


def _top(scores: Scores, metric: str, stratum: str) -> str:
    value = positive(scores, metric, stratum)
    return "–" if value is None else page.number(value)


def _cell(row: pd.Series) -> str:
    text = page.number(row["mean"])
    if np.isfinite(row["low"]):
        text += _small(f"{page.number(row['low'])} … {page.number(row['high'])}")
    if int(row.get("n_seeds", 1)) > 1:
        text += _small(f"{int(row['n_seeds'])} seeds ± {page.number(row['seed_sd'])}")
    return text


def _small(text: str) -> str:
    return f'<span class="range">{text}</span>'


def calibrated_table(scores: Scores, metrics: Sequence[str], stratum: str, primary: str) -> str:
    """Calibrated scores with intervals, and the share of the gap that models close; empty where there is none."""
    methods, columns, header, over = ordered(scores, primary, stratum), [], [], []
    within = calibrated_rows(scores, stratum)
    for metric in metrics:
        found = [calibrated(within, name, metric) for name in methods]
        values = np.array([np.nan if row is None else float(row["calibrated"]) for row in found])
        of = {str(row["metric"]) for row in found if row is not None}
        if not np.isfinite(values).any() or of & set(header):
            continue
        cells = [_calibrated_cell(row, is_reference(name)) for row, name in zip(found, methods, strict=True)]
        cells = [f"<b>{c}</b>" if v == np.nanmax(values) else c for c, v in zip(cells, values, strict=True)]
        columns.append(cells)
        header += of
        over.append(next((str(row["closed_over"]) for row in found if row is not None), ""))
    if not header:
        return ""
    rows, marked = _rows(methods, columns, primary, False)
    weak = unusable(scores, stratum)
    faded = [i for i, name in enumerate(header, 1) if name in weak]
    titles = []
    for name, rival in zip(header, over, strict=True):
        flag = _small("no range") if name in weak else _small(f"gap from {html.escape(rival)}") if rival else ""
        titles.append(f"{page.name_of(name)}{flag}")
    return page.table(["method", *titles], rows, marked=marked, faded=faded)


def _calibrated_cell(row: pd.Series | None, reference: bool) -> str:
    if row is None or not np.isfinite(row["calibrated"]):
        return "–"
    text = f"{row['calibrated']:.2f}".replace("-", "−")
    if np.isfinite(row["low"]):
        text += _small(f"{row['low']:.2f} … {row['high']:.2f}".replace("-", "−"))
    if not reference and row["closed"] > 0:
        text += _small(f"closes {100 * row['closed']:.0f}%")
    return text


def controls_table(scores: Scores, metrics: Sequence[str], stratum: str) -> str:
    """The best naive answer and the best positive control of metrics, and whether they differ; empty without any."""
    c = scores.calibrated
    first = c[(c["stratum"] == stratum) & c["metric"].isin(list(metrics))].drop_duplicates("metric")
    rows = []
    for _, row in first.iterrows():
        rows.append(
            [
                _directed(row["metric"]),
                f"{_beside(row['negative_name'])}{page.number(row['negative'])}",
                f"{_beside(row['positive_name'].replace('_', ', '))}{page.number(row['positive'])}",
                page.number(row["range"]),
                "yes" if row["usable"] else html.escape(f"no: {row['reason']}"),
            ]
        )
    header = ["metric", "best naive answer", "real cells", "range", "usable"]
    return page.table(header, rows, text=(4,)) if rows else ""


def _beside(text: str) -> str:
    return f'<span class="soft">{html.escape(text).replace(" ", "&nbsp;")}</span>&nbsp;'


def tests_table(scores: Scores, primary: str, stratum: str) -> str:
    """The method in question against every other, on every metric that was tested; empty where none was."""
    t = scores.tests
    tested = set(t[(t["stratum"] == stratum) & ((t["first"] == primary) | (t["second"] == primary))]["metric"])
    metrics = [name for name in METRICS if name in tested]
    rivals = [name for name in ordered(scores, primary, stratum) if name != primary]
    columns = []
    for metric in metrics:
        cells = []
        for name in rivals:
            gap = compared(scores, primary, name, metric, stratum)
            if not gap.n:
                cells.append("–")
                continue
            text = f"{_signed(gap.mean)}"
            text = f"<b>{text}</b> {gap.word}" if gap.real else f"{text} ="
            if np.isfinite(gap.low):
                text += _small(f"{_signed(gap.low)} … {_signed(gap.high)}")
            cells.append(text + _small(_chance(gap.p, gap.p_holm, gap.n)))
        columns.append(cells)
    if not columns:
        return ""
    rows, _ = _rows(rivals, columns, primary, False)
    return page.table(["against", *(_heading(name, False) for name in metrics)], rows)


def _signed(value: float) -> str:
    return f"{'+' if value > 0 else ''}{page.number(value)}"


def _chance(p: float, holm: float, n: int) -> str:
    if not np.isfinite(p):
        return f"no test, {n} conditions"
    told = [
        f"{name} {'&lt; 0.001' if v < 0.001 else f'{v:.3f}'}"
        for name, v in (("p", p), ("Holm", holm))
        if np.isfinite(v)
    ]
    return " · ".join(told)


def positives(scores: Scores, stratum: str) -> str:
    """Which positive controls are the ceiling, in words."""
    c = scores.calibrated
    kinds = c[c["stratum"] == stratum]["positive_name"].unique()
    return "; ".join(POSITIVE.get(kind, kind) for kind in kinds)


def methods_without_answers(scores: Scores) -> list[str]:
    """Methods that tables leave out because they answer nothing."""
    return [name for name in scores.methods if name not in answering(scores)]
