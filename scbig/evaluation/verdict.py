"""The first thing a report says: which method, by how much, and whether the difference is real."""

from __future__ import annotations

import numpy as np

from scbig.evaluation import page
from scbig.evaluation.judge import Scores
from scbig.evaluation.metrics import METRICS
from scbig.evaluation.reading import best, count, wide_table
from scbig.evaluation.statistics import Difference, compare

__all__ = ["verdict"]


def verdict(scores: Scores, primary: str, stratum: str) -> str:
    """Which method, by how much, and whether the difference is real."""
    rivals = [name for name in scores.methods if name != primary]
    lines = []
    for metric in ("pearson_delta", "e_distance_share", "pds_l2"):
        value = scores.value(primary, metric, stratum)
        able = [r for r in rivals if np.isfinite(scores.value(r, metric, stratum))]
        if not np.isfinite(value):
            continue
        kind = "lead" if not lines else ""
        if not able:
            lines.append(page.prose(f"{primary}: {metric} {page.number(value)}; nothing to compare with.", kind))
            continue
        rival = best(scores, able, metric, stratum)
        # Shares have no per-condition mean worth comparing: the distances they are made of do.
        base = "e_distance" if metric == "e_distance_share" else metric
        gap = compare(scores.per_condition, primary, rival, base, seed=scores.provenance["seed"])
        lines += _sentence(scores, primary, rival, metric, gap, kind)
    chance = scores.conditions["chance_pds"].mean()
    lines.append(page.prose(f"Chance level of pds: {page.number(chance)}.", "small soft"))
    answered = {name: count(scores, name, "all") for name in scores.methods}
    if len(set(answered.values())) > 1:
        told = ", ".join(f"{name} {n}" for name, n in answered.items())
        lines.append(
            page.prose(
                f"Not every method answers every condition ({told} of {len(scores.conditions)}); tables "
                f"compare methods on the {count(scores, primary, stratum)} conditions that all answer.",
                "small soft",
            )
        )
    return f'<div class="verdict">{"".join(lines)}</div>'


def _sentence(scores: Scores, primary: str, rival: str, metric: str, gap: Difference, kind: str) -> list[str]:
    """What is claimed, and below it the evidence."""
    ours, theirs = (page.number(v) for v in _pair(scores, primary, rival, metric))
    better = "better" if (gap.mean > 0) == METRICS[metric].higher else "worse"
    claim = f"{primary} is {better} than {rival} in {metric}: {ours} against {theirs}."
    if not gap.real:
        claim = f"No real difference between {primary} and {rival} in {metric}: {ours} against {theirs}."
    base = "e_distance" if metric == "e_distance_share" else "difference"
    sign = "+" if gap.mean > 0 else ""
    p = "" if not np.isfinite(gap.p) else f"; Wilcoxon p {'< 0.001' if gap.p < 0.001 else f'= {gap.p:.3f}'}"
    evidence = (
        f"{rival} is the best other method. Paired {base} {sign}{page.number(gap.mean)}, 95% interval "
        f"{page.number(gap.low)} to {page.number(gap.high)}{p}; {gap.n} conditions."
    )
    return [page.prose(claim, kind), page.prose(evidence, "small soft")]


def _pair(scores: Scores, first: str, second: str, metric: str) -> tuple[float, float]:
    """Means of two methods over the conditions that both answer."""
    name = "e_distance" if metric == "e_distance_share" else metric
    both = wide_table(scores, name)[[first, second]].dropna()
    mean = both.mean()
    if name != metric:
        mean = mean / wide_table(scores, "e_distance_control").loc[both.index, [first, second]].mean()
    return float(mean[first]), float(mean[second])
