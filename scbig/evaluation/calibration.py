"""Scores on a scale that means the same everywhere: 0 for the best naive answer, 1 for what real cells reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from scbig.evaluation.metrics import METRICS, Metric
from scbig.evaluation.statistics import bootstrap_weights, interval

__all__ = ["COLUMNS", "NEGATIVES", "calibrate"]

NEGATIVES = ("control", "mean", "shuffled")
"""The naive answers: nothing happens, every perturbation does what the average one does, labels mean nothing."""

COLUMNS = (
    "method", "stratum", "metric", "score", "negative", "negative_name", "positive", "positive_name",
    "calibrated", "low", "high", "closed", "closed_over", "range", "usable", "reason",
)  # fmt: skip
"""Columns of the table that ``calibrate`` returns."""

_NOT_CALIBRATED = ("e_distance_share",)  # calibrates to what e_distance does
_LEAST_RANGE = 0.05  # of the way from the naive answer to perfection


def calibrate(
    per_condition: pd.DataFrame,
    ceiling: pd.DataFrame,
    groups: Mapping[str, pd.Index],
    baselines: Sequence[str],
    draws: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Calibrated scores ``(score − negative) / (positive − negative)``, unclipped.

    The negative is the best of the naive answers in a stratum, the positive the best of the positive controls (the
    other half of the cells, corrected to the full number where it is a correlation; the interpolated duplicate), each
    by its mean over the conditions that have all of them. The interpolation stands for the ceiling of errors and of
    rankings only: Spearman-Brown does not apply to it, and it has no cells. A metric whose target is a number
    (``variance_ratio``) is calibrated on its logarithmic distance to it. Scores of metrics that do not extend from half
    of the cells to all (``Metric.halves`` is ``matched``) are to be given as they are on half of the cells.

    A metric is not usable in a stratum where the 95% interval of positive − negative includes zero, or where its range
    is less than 5% of the way from the negative to perfection.

    Args:
        per_condition: method, condition, context, metric, value.
        ceiling: from ``ceilings``.
        groups: conditions and contexts (a two-level index) by the name of the group.
        baselines: methods of which the strongest is what ``closed`` starts from.
        draws: bootstrap samples.
        seed: of the bootstrap.

    Returns:
        Columns ``COLUMNS``. ``range`` is positive − negative, signed so that more is better. ``closed`` is the share
        of the gap between the strongest baseline and the positive control that a method closes; missing for that
        baseline itself.
    """
    rows = []
    wide = _wide(per_condition, "method")
    tops = _wide(ceiling, "kind") if len(ceiling) else {}
    for metric, meaning in METRICS.items():
        if metric not in tops or metric not in wide or meaning.kind == "count" or metric in _NOT_CALIBRATED:
            continue
        table, top = wide[metric], tops[metric]
        for group, members in groups.items():
            at = members.sort_values()
            weights = bootstrap_weights(len(at), draws, seed)
            rows += _group(metric, meaning, group, table.reindex(at), top.reindex(at), baselines, weights)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _wide(table: pd.DataFrame, columns: str) -> dict[str, pd.DataFrame]:
    return {
        metric: part.pivot(index=["condition", "context"], columns=columns, values="value")
        for metric, part in table.groupby("metric", sort=False)
    }


def _group(
    metric: str,
    meaning: Metric,
    group: str,
    table: pd.DataFrame,
    top: pd.DataFrame,
    baselines: Sequence[str],
    weights: np.ndarray,
) -> list[dict]:
    able = {"correlation": ("half_corrected",), "matched": ("half", "interpolated")}
    able = able.get(meaning.halves, ("half_corrected", "interpolated"))
    positives = [c for c in able if c in top and top[c].notna().any()]
    negatives = [name for name in NEGATIVES if name in table and table[name].notna().any()]
    if not positives or not negatives:
        return []
    bad = {name: meaning.badness(table[name].to_numpy(np.float64)) for name in table}
    good = {name: meaning.badness(top[name].to_numpy(np.float64)) for name in positives}
    known = np.isfinite(np.stack([*good.values(), *(bad[n] for n in negatives)])).all(axis=0)
    if not known.any():
        return []
    positive = min(positives, key=lambda name: good[name][known].mean())
    negative = min(negatives, key=lambda name: bad[name][known].mean())
    rivals = [b for b in baselines if b in bad and (np.isfinite(bad[b]) | ~known).all()]
    strongest = min(rivals, key=lambda name: bad[name][known].mean()) if rivals else ""
    reason = _unusable(meaning, bad[negative], good[positive], known, weights, negative)
    rows = []
    for name in table:
        here = known & np.isfinite(bad[name])
        if not here.any():
            continue
        gain = np.where(here, bad[negative] - bad[name], np.nan)[:, None]
        span = np.where(here, bad[negative] - good[positive], np.nan)[:, None]
        (mean,), (low,), (high,) = interval(gain, weights, over=span)
        closed = np.nan
        if strongest and name != strongest:
            gap = (bad[strongest] - good[positive])[here].mean()
            # Without a gap there is nothing to close.
            closed = float((bad[strongest] - bad[name])[here].mean() / gap) if gap > 0 else np.nan
        rows.append(
            {
                "method": name,
                "stratum": group,
                "metric": metric,
                "score": float(table[name].to_numpy(np.float64)[here].mean()),
                "negative": float(table[negative].to_numpy(np.float64)[here].mean()),
                "negative_name": negative,
                "positive": float(top[positive].to_numpy(np.float64)[here].mean()),
                "positive_name": positive,
                "calibrated": float(mean),
                "low": float(low),
                "high": float(high),
                "closed": closed,
                "closed_over": strongest,
                "range": float(span[here].mean()),
                "usable": not reason,
                "reason": reason,
            }
        )
    return rows


def _unusable(
    meaning: Metric, negative: np.ndarray, positive: np.ndarray, known: np.ndarray, weights: np.ndarray, name: str
) -> str:
    """Why a metric tells nothing here, or an empty string."""
    span = np.where(known, negative - positive, np.nan)
    (mean,), (low,), _ = interval(span[:, None], weights)
    if not mean > 0:
        return f"real cells do no better than '{name}'"
    if known.sum() > 1 and not low > 0:
        return f"real cells are not certain to do better than '{name}': the interval of the range includes zero"
    best = float(meaning.badness(np.array([meaning.best]))[0])
    whole = float((negative[known] - best).mean())
    if whole > 0 and mean < _LEAST_RANGE * whole:
        return f"'{name}' is as good as real cells but for {100 * mean / whole:.0f}% of the way to perfection"
    return ""
