"""How well any method could do: real cells predicted by other real cells of the same condition."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from scbig.baselines import group_means
from scbig.evaluation.metrics import METRICS
from scbig.evaluation.predictions import Prediction
from scbig.evaluation.profiles import profile_metrics
from scbig.evaluation.scoring import Bench, Values, score
from scbig.evaluation.truth import Exclusions, Truth, batch_aware
from scbig.rng import generator

__all__ = ["COLUMNS", "ceilings", "extended", "spearman_brown"]

COLUMNS = ("condition", "context", "stratum", "metric", "kind", "value", "sd", "draws")
"""Columns of the table that ``ceilings`` returns."""

_HALF, _INTERPOLATED = "half", "interpolated"


def spearman_brown(r: np.ndarray) -> np.ndarray:
    """The reliability of the whole from that of its halves, ``2r / (1 + r)``; what is not positive stays.

    Spearman 1910, Brown 1910.
    """
    return np.where(r > 0, 2.0 * r / (1.0 + np.maximum(r, 0.0)), r)


def extended(value: np.ndarray, how: str) -> np.ndarray:
    """What a score between two halves would be between two samples of the full size; see ``Metric.halves``."""
    if how == "correlation":
        return spearman_brown(value)
    return value * {"square": 0.5, "root": np.sqrt(0.5), "matched": 1.0}[how]


def ceilings(
    bench: Bench,
    given: Sequence[Prediction],
    shifted: Collection[str],
    min_cells: int,
    draws: int,
    excluded: Exclusions,
) -> tuple[pd.DataFrame, dict[str, Values]]:
    """Scores the positive controls.

    Each draw splits the cells of every test condition, and the controls, into two disjoint halves; one half is the
    prediction and the other the truth, each seen from its own controls, so that the two share no cell.

    - ``half``: the first half as it is. ``half_corrected``: where noise is known to fall with the number of cells, the
      mean over draws extended to the full number (``Metric.halves``).
    - ``interpolated``: the first half moved towards the mean of the training perturbations as far as its own noise
      asks (positive-part James-Stein with the standard errors of the half). A half of few cells can be worse than
      the mean; its interpolation is not. Errors of it are extended in the same way; it has no cells.

    Args:
        bench: what methods are scored on.
        given: the methods. Metrics that do not extend are compared with theirs on half of the cells.
        shifted: see ``score``.
        min_cells: fewest cells of a half.
        draws: how many random splits. Tests for differential expression, and the methods on half of the cells, are
            made in the first only.
        excluded: receives the conditions that have too few cells.

    Returns:
        Columns ``COLUMNS``: the mean over draws and their standard deviation, by condition, metric and kind (of a
        ratio whose target is 1, the factor by which it is off); and the methods' scores on half of the cells in
        the metrics that do not extend.
    """
    real = bench.real
    enough = (real.keys["n_real"] >= 2 * min_cells).to_numpy()
    for condition, context, n in real.keys.loc[~enough, ["condition", "context", "n_real"]].itertuples(index=False):
        reason = f"{n} real cells, at least {2 * min_cells} are needed for two halves: no ceiling"
        excluded.add("ceiling", reason, condition, context)
    if not enough.any() or not draws:
        return pd.DataFrame(columns=list(COLUMNS)), {}
    found: dict[tuple[str, str], list[np.ndarray]] = {}
    matched: dict[str, Values] = {}
    for i in range(draws):
        half, other, between = _halves(bench, i)
        # No more cells than the smaller half, so that both are alike.
        n = np.minimum(bench.n_used, [min(len(a), len(b)) for a, b in zip(other.rows, half.rows, strict=True)])
        halved = replace(bench, real=half, n_used=n)
        first = i == 0
        values, _ = score(halved, [other], responses=first, targets=False)
        values[_INTERPOLATED] = profile_metrics(between, half, bench.seed)
        if first:
            theirs, _ = score(halved, given, shifted, targets=False)
            for name, by_metric in theirs.items():
                matched[name] = {k: v for k, v in by_metric.items() if k in METRICS and METRICS[k].halves == "matched"}
        for kind, by_metric in values.items():
            for metric, value in by_metric.items():
                if metric in METRICS:
                    found.setdefault((kind, metric), []).append(np.where(enough, value, np.nan))
    return _table(found, real), matched


def _table(found: dict[tuple[str, str], list[np.ndarray]], real: Truth) -> pd.DataFrame:
    keys = real.keys[["condition", "context", "stratum"]]
    parts = []
    for (kind, metric), values in found.items():
        every = np.stack(values)
        if METRICS[metric].kind == "target":
            # A mean over draws on either side of the target would come closer to it than any of them.
            every = METRICS[metric].best * np.exp(METRICS[metric].badness(every))
        mean, sd = every.mean(axis=0), every.std(axis=0, ddof=1) if len(every) > 1 else np.full(every.shape[1], np.nan)
        how = METRICS[metric].halves
        kinds = {kind: mean if kind == _HALF else extended(mean, how)}
        if kind == _HALF and how != "matched":
            kinds["half_corrected"] = extended(mean, how)
        for name, value in kinds.items():
            parts.append(keys.assign(metric=metric, kind=name, value=value, sd=sd, draws=len(every)))
    return pd.concat(parts, ignore_index=True).dropna(subset=["value"])[list(COLUMNS)].reset_index(drop=True)


def _halves(bench: Bench, number: int) -> tuple[Truth, Prediction, np.ndarray]:
    """One half as the truth, the other as a prediction, and the profiles of its interpolation."""
    data, real = bench.data, bench.real
    first, second = [], []
    for rows, (condition, context) in zip(
        real.rows, real.keys[["condition", "context"]].itertuples(index=False), strict=True
    ):
        a, b = _cut(rows, bench.seed, f"half {number} of {condition}@{context}")
        first.append(a)
        second.append(b)
    sides = {k: _cut(rows, bench.seed, f"half {number} of control@{k}") for k, rows in real.controls.items()}
    context = real.keys["context"].to_numpy()
    profile = {k: [_profile(data, rows) for rows in pair] for k, pair in sides.items()}
    control = [np.stack([profile[k][s][0] for k in context]) for s in (0, 1)]
    mean_a, mean_b = _moments(data, first)[0], _moments(data, second)[0]
    controls = {k: b for k, (_, b) in sides.items()}
    half = replace(
        real,
        rows=tuple(second),
        mean=mean_b,
        control=control[1],
        controls=controls,
        train_controls=controls,
        ate=batch_aware(data, real.keys, tuple(second), controls, True),
        ate_global=batch_aware(data, real.keys, tuple(second), controls, False),
        # Seen from the controls of its own half, so that the reference does not tie the halves together.
        reference=real.reference - real.control + control[1],
    )
    effect = mean_a - control[0]
    noise = np.array([profile[k][0][1].sum() for k in context]) + _noise(data, first)
    between = control[1] + _towards(np.nan_to_num(real.reference - real.control), effect, noise)
    return half, Prediction(_HALF, True, data.X, tuple(first), None, control[1] - control[0]), between


def _cut(rows: np.ndarray, seed: int, purpose: str) -> tuple[np.ndarray, np.ndarray]:
    order = generator(seed, purpose).permutation(rows)
    middle = len(rows) // 2
    return np.sort(order[:middle]), np.sort(order[middle:])


def _profile(data: AnnData, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and squared standard error of the mean, by gene."""
    mean, square = _moments(data, [rows])
    return mean[0], np.maximum(square[0] - mean[0] ** 2, 0.0) / max(len(rows) - 1, 1)


def _moments(data: AnnData, rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Means of values and of their squares, ``[groups, genes]``."""
    cells = data.X[np.concatenate(rows)]
    group = np.repeat(np.arange(len(rows)), [len(r) for r in rows])
    square = cells.multiply(cells).tocsr() if sp.issparse(cells) else cells * cells
    return group_means(cells, group, len(rows))[0], group_means(square, group, len(rows))[0]


def _noise(data: AnnData, rows: list[np.ndarray]) -> np.ndarray:
    """Squared standard errors of the mean profiles, summed over genes."""
    mean, square = _moments(data, rows)
    size = np.array([len(r) for r in rows])
    return np.maximum(square - mean**2, 0.0).sum(axis=1) / np.maximum(size - 1, 1)


def _towards(average: np.ndarray, effect: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Effects moved towards the average, ``[n, G]``, by the share of their distance from it that noise accounts for."""
    away = effect - average
    size = (away**2).sum(axis=1)
    lost = np.minimum(np.divide(noise, size, out=np.ones_like(size), where=size > 0), 1.0)
    return effect - lost[:, None] * away
