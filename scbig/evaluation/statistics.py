"""Averages over conditions with bootstrap intervals, and paired comparisons of methods."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from scbig.rng import generator

__all__ = [
    "HEADLINE",
    "TESTS",
    "Difference",
    "bootstrap_weights",
    "compare",
    "holm",
    "interval",
    "paired_tests",
    "summarize",
]

HEADLINE = ("pearson_delta", "pearson_delta_ref_perturbed", "pds_l2", "l2", "e_distance")
"""Metrics on which methods are tested against each other."""

TESTS = ("stratum", "metric", "first", "second", "mean", "low", "high", "p", "p_holm", "n", "real")
"""Columns of the table that ``paired_tests`` returns."""

_EXACT_SIGNS = 13  # 8,192 ways to sign them
_SHARE = ("e_distance", "e_distance_control")  # what e_distance_share is the ratio of


@dataclass(frozen=True)
class Difference:
    """A paired comparison over the conditions that both methods answered.

    Attributes:
        mean: mean of first minus second.
        low: lower end of the bootstrap 95% interval.
        high: upper end.
        p: two-sided Wilcoxon signed-rank test; NaN below six conditions, where it cannot reach 0.05.
        n: conditions in common.
    """

    mean: float
    low: float
    high: float
    p: float
    n: int

    @property
    def real(self) -> bool:
        """Whether the interval excludes zero."""
        return self.n > 1 and (self.low > 0 or self.high < 0)


_NO_DIFFERENCE = Difference(mean=math.nan, low=math.nan, high=math.nan, p=math.nan, n=0)


def bootstrap_weights(n: int, draws: int = 1000, seed: int = 0) -> Float[np.ndarray, "draws n"]:
    """How often each of n conditions is drawn, with replacement, in every bootstrap sample."""
    rng = generator(seed, f"bootstrap {n}")
    return rng.multinomial(n, np.full(n, 1.0 / n), size=draws).astype(np.float64)


def interval(
    values: Float[np.ndarray, "n columns"],
    weights: Float[np.ndarray, "draws n"],
    over: Float[np.ndarray, "n columns"] | None = None,
) -> tuple[Float[np.ndarray, " columns"], Float[np.ndarray, " columns"], Float[np.ndarray, " columns"]]:
    """Means over conditions with percentile bootstrap 95% intervals; missing values do not count.

    Args:
        values: one row per condition, NaN where missing.
        weights: from ``bootstrap_weights``.
        over: denominators; then the mean of ``values`` over the mean of these is taken instead.

    Returns:
        Mean, lower and upper end, by column; the ends are NaN below two values.
    """
    valid = ~np.isnan(values) if over is None else ~(np.isnan(values) | np.isnan(over))
    top = np.where(valid, values, 0.0)
    bottom = np.where(valid, 1.0 if over is None else over, 0.0)
    count = valid.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):  # a draw without any valid condition gives NaN
        mean = np.where(count > 0, top.sum(axis=0) / bottom.sum(axis=0), np.nan)
        drawn = (weights @ top) / (weights @ bottom)
    drawn[~np.isfinite(drawn)] = np.nan
    low, high = np.full(len(mean), np.nan), np.full(len(mean), np.nan)
    several = (count > 1) & np.isfinite(drawn).any(axis=0)
    if several.any():
        low[several], high[several] = np.nanpercentile(drawn[:, several], [2.5, 97.5], axis=0)
    return mean, low, high


def summarize(
    per_condition: pd.DataFrame, groups: dict[str, pd.Index], draws: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Mean of every metric by method and group of conditions.

    The same bootstrap samples serve every method and metric. ``e_distance_share`` is the ratio of mean
    energy distances (prediction over control), for single ratios explode where the control is as good as the
    real cells.

    Args:
        per_condition: columns method, condition, context, stratum, metric, value.
        groups: conditions and contexts (a two-level index) by the name of the group.
        draws: bootstrap samples.
        seed: of the bootstrap.

    Returns:
        Columns method, stratum, metric, mean, low, high, n (conditions with a value).
    """
    wide = per_condition.pivot(
        index=["condition", "context"], columns=["method", "metric"], values="value"
    ).sort_index()
    parts = []
    for group, members in groups.items():
        block = wide.reindex(members.sort_values())
        values = block.to_numpy(np.float64)
        weights = bootstrap_weights(len(block), draws, seed)
        mean, low, high = interval(values, weights)
        table = block.columns.to_frame(index=False).assign(
            stratum=group, mean=mean, low=low, high=high, n=(~np.isnan(values)).sum(axis=0)
        )
        parts.append(_shares(table, block, weights))
    return pd.concat(parts, ignore_index=True)[["method", "stratum", "metric", "mean", "low", "high", "n"]]


def _shares(table: pd.DataFrame, block: pd.DataFrame, weights: np.ndarray) -> pd.DataFrame:
    for method in block.columns.get_level_values("method").unique():
        for suffix in ("", "_with_targets"):
            own, control = ((method, f"{name}{suffix}") for name in _SHARE)
            if own not in block or control not in block:
                continue
            values = block[[own]].to_numpy(np.float64), block[[control]].to_numpy(np.float64)
            mean, low, high = interval(values[0], weights, over=values[1])
            row = (table["method"] == method) & (table["metric"] == f"e_distance_share{suffix}")
            # A share of nothing means nothing.
            positive = np.nansum(values[1]) > 0
            stated = [mean[0], low[0], high[0]] if positive else [np.nan] * 3
            n = int((~np.isnan(values[0] + values[1])).sum())
            table.loc[row, ["mean", "low", "high"]] = stated
            table.loc[row, "n"] = n
    return table


def compare(
    per_condition: pd.DataFrame, first: str, second: str, metric: str, draws: int = 1000, seed: int = 0
) -> Difference:
    """First minus second, condition by condition, with a bootstrap interval and a Wilcoxon test.

    Args:
        per_condition: columns method, condition, context, stratum, metric, value.
        first: a method.
        second: another.
        metric: what is compared.
        draws: bootstrap samples.
        seed: of the bootstrap.
    """
    rows = per_condition[per_condition["metric"] == metric]
    wide = rows.pivot(index=["condition", "context"], columns="method", values="value").sort_index()
    return _difference(wide, first, second, draws, seed)


def holm(p: Float[np.ndarray, " tests"]) -> Float[np.ndarray, " tests"]:
    """P-values adjusted for their number by Holm's step-down method (Holm 1979); a missing one does not count."""
    out = np.full(len(p), np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    scaled = p[order] * np.arange(len(order), 0, -1)
    out[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return out


def paired_tests(
    per_condition: pd.DataFrame,
    groups: Mapping[str, pd.Index],
    first: Sequence[str],
    metrics: Sequence[str] = HEADLINE,
    draws: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Every method of ``first`` against every other method, paired over conditions.

    Args:
        per_condition: columns method, condition, context, metric, value.
        groups: conditions and contexts (a two-level index) by the name of the group.
        first: the methods in question.
        metrics: what is compared.
        draws: bootstrap samples.
        seed: of the bootstrap.

    Returns:
        Columns ``TESTS``. ``p_holm`` is corrected over the rivals of one method in one metric and stratum. ``real``
        says that the corrected p is below 0.05 and the bootstrap interval excludes zero; where there are so few
        conditions that the corrected test cannot reach 0.05, the interval decides.
    """
    methods = list(dict.fromkeys(per_condition["method"]))
    wide = {
        metric: part.pivot(index=["condition", "context"], columns="method", values="value")
        for metric, part in per_condition[per_condition["metric"].isin(metrics)].groupby("metric", sort=False)
    }
    rows: list[tuple] = []
    for group, members in groups.items():
        here = {metric: wide[metric].reindex(members.sort_values()) for metric in metrics if metric in wide}
        for one in first:
            for metric, table in here.items():
                gaps = {other: _difference(table, one, other, draws, seed) for other in methods if other != one}
                gaps = {other: gap for other, gap in gaps.items() if gap.n}
                corrected = holm(np.array([gap.p for gap in gaps.values()], np.float64))
                for (other, gap), p in zip(gaps.items(), corrected, strict=True):
                    # With few conditions no difference, however plain, can pass the corrected test.
                    reachable = len(gaps) * 0.5 ** (gap.n - 1) < 0.05
                    real = gap.real and (not p >= 0.05 or not reachable)
                    rows.append(
                        (group, metric, one, other, gap.mean, gap.low, gap.high, gap.p, float(p), gap.n, bool(real))
                    )
    return pd.DataFrame(rows, columns=list(TESTS))


def signed_rank(gap: Float[np.ndarray, " n"]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test; zeros are left out (Wilcoxon 1945).

    Exact up to 13 differences, ties or not: scipy goes over all signs there as well, but takes seconds for it.
    """
    from scipy.stats import rankdata, wilcoxon

    gap = gap[gap != 0]
    if not len(gap):
        return 1.0
    if len(gap) > _EXACT_SIGNS:
        return float(wilcoxon(gap, method="auto").pvalue)
    ranks = rankdata(np.abs(gap))
    signs = (np.arange(2 ** len(gap))[:, None] >> np.arange(len(gap))) & 1
    away = np.abs(signs @ ranks - ranks.sum() / 2)
    return float((away >= abs(ranks[gap > 0].sum() - ranks.sum() / 2) - 1e-9).mean())


def _difference(wide: pd.DataFrame, first: str, second: str, draws: int, seed: int) -> Difference:
    if first not in wide or second not in wide:
        return _NO_DIFFERENCE
    gap = (wide[first] - wide[second]).dropna().to_numpy(np.float64)
    if not len(gap):
        return _NO_DIFFERENCE
    mean, low, high = interval(gap[:, None], bootstrap_weights(len(gap), draws, seed))
    p = float("nan")
    if len(gap) > 5:
        p = signed_rank(gap)
    return Difference(float(mean[0]), float(low[0]), float(high[0]), p, len(gap))
