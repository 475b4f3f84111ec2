"""The first thing a report says: which method, by how much, whether that is real, and how far from the ceiling."""

from __future__ import annotations

import numpy as np
import pandas as pd

from scbig.evaluation import page
from scbig.evaluation.judge import Scores
from scbig.evaluation.reading import (
    POSITIVE,
    Compared,
    best,
    calibrated,
    calibrated_rows,
    compared,
    counts,
    is_reference,
    no_ceiling,
    pair,
)
from scbig.evaluation.tables import unusable

__all__ = ["verdict"]

LEAD = "pearson_delta"
_ALSO = ("pearson_delta_ref_perturbed", "pds_l2", "l2", "e_distance_share")
_WAY = ("l2_ba_ate", "l2")  # errors: from naive to experimental; the first there is
_FEW = 6  # conditions, below which a signed-rank test cannot reach 0.05


def verdict(scores: Scores, primary: str, stratum: str) -> str:
    """The verdict as HTML: a few sentences, each with its evidence in small print."""
    lines = [*_against_baselines(scores, primary, stratum), *_against_models(scores, primary, stratum)]
    if not lines:
        value = scores.value(primary, LEAD, stratum)
        lines = [page.prose(f"{primary}: {LEAD} {page.number(value)}; nothing to compare with.", "lead")]
    lines += [
        page.prose(text) for text in (_elsewhere(scores, primary, stratum), _way(scores, primary, stratum)) if text
    ]
    lines += [page.prose(text, "small soft") for text in _remarks(scores, primary, stratum)]
    return f'<div class="verdict">{"".join(lines)}</div>'


def _able(scores: Scores, primary: str, metric: str, stratum: str, references: bool) -> list[str]:
    """Other methods, references or models, with a value."""
    others = [name for name in scores.methods if name != primary and is_reference(name) == references]
    return [name for name in others if np.isfinite(scores.value(name, metric, stratum))]


def _against_baselines(scores: Scores, primary: str, stratum: str) -> list[str]:
    able = _able(scores, primary, LEAD, stratum, True)
    if not able or not np.isfinite(scores.value(primary, LEAD, stratum)):
        return []
    rival = best(scores, able, LEAD, stratum)
    title = "the best other baseline" if is_reference(primary) else "the best baseline"
    gap = compared(scores, primary, rival, LEAD, stratum)
    return [
        page.prose(_claim(scores, primary, rival, title, gap, stratum), "lead"),
        page.prose(_evidence(gap), "small soft"),
    ]


def _against_models(scores: Scores, primary: str, stratum: str) -> list[str]:
    able = _able(scores, primary, LEAD, stratum, False)
    if not able or not np.isfinite(scores.value(primary, LEAD, stratum)):
        return []
    rival = best(scores, able, LEAD, stratum)
    title = "the best other model" if len(able) > 1 else "the other model"
    title = title.replace("other ", "") if is_reference(primary) else title
    gap = compared(scores, primary, rival, LEAD, stratum)
    lead = "" if _able(scores, primary, LEAD, stratum, True) else "lead"
    return [
        page.prose(_claim(scores, primary, rival, title, gap, stratum), lead),
        page.prose(_evidence(gap), "small soft"),
    ]


def _claim(scores: Scores, first: str, second: str, title: str, gap: Compared, stratum: str) -> str:
    ours, theirs = pair(scores, first, second, LEAD, stratum)
    numbers = f"{LEAD} {page.number(ours)} against {page.number(theirs)}"
    if gap.n < 2:
        return f"One condition cannot tell {first} from {second}, {title}: {numbers}."
    if not gap.real:
        return f"No real difference between {first} and {second}, {title}: {numbers}."
    return f"{first} is {gap.word} than {second}, {title}: {numbers}."


def _evidence(gap: Compared) -> str:
    sign = "+" if gap.mean > 0 else ""
    if gap.n < 2:
        return f"Difference {sign}{page.number(gap.mean)}."
    text = (
        f"Paired difference {sign}{page.number(gap.mean)}, 95% interval {page.number(gap.low)} to "
        f"{page.number(gap.high)}, {gap.n} conditions"
    )
    if np.isfinite(gap.p_holm):
        return f"{text}; Wilcoxon signed-rank p\u00a0{_p(gap.p_holm)} after Holm's correction over the rivals."
    if np.isfinite(gap.p):
        return f"{text}; Wilcoxon signed-rank p\u00a0{_p(gap.p)}, not corrected: the interval decides."
    return f"{text}. Below {_FEW} conditions a signed-rank test cannot reach 0.05: the interval decides."


def _p(p: float) -> str:
    return "<\u00a00.001" if p < 0.001 else f"=\u00a0{p:.3f}"


def _elsewhere(scores: Scores, primary: str, stratum: str) -> str:
    """The other metrics, each against the baseline that is best in it."""
    weak, told = unusable(scores, stratum), {"better": [], "worse": [], "": []}
    for metric in _ALSO:
        able = _able(scores, primary, metric, stratum, True)
        if metric in weak or not able or not np.isfinite(scores.value(primary, metric, stratum)):
            continue
        rival = best(scores, able, metric, stratum)
        gap = compared(scores, primary, rival, metric, stratum)
        if gap.n > 1:
            ours, theirs = pair(scores, primary, rival, metric, stratum)
            told[gap.word].append(f"{metric} ({page.number(ours)} against {page.number(theirs)}, {rival})")
    starts = {"better": "better in", "": "no real difference in", "worse": "worse in"}
    parts = [f"{start} {_listed(told[word])}" for word, start in starts.items() if told[word]]
    return f"Against the baseline that is best in each: {'; '.join(parts)}." if parts else ""


def _listed(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _way(scores: Scores, primary: str, stratum: str) -> str:
    """How far from the ceiling."""
    if not len(scores.calibrated):
        return f"How far this is from the ceiling cannot be told: {no_ceiling(scores)}."
    weak, parts = unusable(scores, stratum), []
    within = calibrated_rows(scores, stratum)
    row = calibrated(within, primary, LEAD)
    if row is not None and LEAD not in weak:
        naive = f"the best naive answer ({row['negative_name']}, {page.number(row['negative'])})"
        top = f"{page.number(row['positive'])}: {POSITIVE.get(row['positive_name'], row['positive_name'])}"
        if row["calibrated"] > 0:
            way = f"goes {_percent(row['calibrated'])} of the way from {naive} to what real cells reach ({top})"
            parts.append(f"In {LEAD}, {primary} {way}{_closed(row)}.")
        else:
            parts.append(f"In {LEAD}, {primary} does not get past {naive}; real cells reach more ({top}).")
    for metric in _WAY:
        row = calibrated(within, primary, metric)
        if row is not None and metric not in weak:
            ends = (
                f"from naive to experimental error ({page.number(row['negative'])} to {page.number(row['positive'])})"
            )
            share = _percent(row["calibrated"]) if row["calibrated"] > 0 else "nothing"
            parts.append(f"In {metric}, it bridges {share} of the way {ends}{_closed(row)}.")
            break
    return " ".join(parts)


def _closed(row: pd.Series) -> str:
    """The share of the gap that the strongest baseline leaves."""
    if not np.isfinite(row["closed"]) or row["calibrated"] <= 0:
        return ""
    if row["closed"] <= 0:
        return f" and closes nothing of the gap that {row['closed_over']} leaves"
    return f" and closes {_percent(row['closed'])} of the gap that {row['closed_over']} leaves"


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%".replace("-", "−")


def _remarks(scores: Scores, primary: str, stratum: str) -> list[str]:
    out = []
    weak = unusable(scores, stratum)
    if weak:
        lead = f"{LEAD} itself has no range on these data: {weak[LEAD]}. " if LEAD in weak else ""
        out.append(f"{lead}Not to be relied on here, for want of range: {', '.join(weak)}.")
    seeds = scores.seeds[(scores.seeds["metric"] == LEAD) & (scores.seeds["stratum"] == stratum)]
    for method, part in seeds.groupby("method", sort=False):
        values = part["mean"].to_numpy(np.float64)
        if len(values) > 1:
            spread = f"{page.number(values.min())} to {page.number(values.max())}"
            out.append(f"{method} is the average of {len(values)} seeds; {LEAD} by seed: {spread}.")
    out.append(f"Chance level of pds: {page.number(scores.conditions['chance_pds'].mean())}.")
    answered = counts(scores, "all")
    if len(set(answered.values())) > 1:
        told = ", ".join(f"{name} {n}" for name, n in answered.items())
        out.append(
            f"Not every method answers every condition ({told} of {len(scores.conditions)}); tables "
            f"compare methods on the {counts(scores, stratum)[primary]} conditions that all answer."
        )
    return out
