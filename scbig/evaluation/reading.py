"""Questions that every part of the report asks of the scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from scbig.baselines import REGISTRY
from scbig.evaluation.calibration import NEGATIVES
from scbig.evaluation.judge import Scores
from scbig.evaluation.metrics import METRICS
from scbig.evaluation.statistics import compare

__all__ = [
    "HEADLINE",
    "POSITIVE",
    "Compared",
    "answering",
    "arrow",
    "best",
    "calibrated",
    "calibrated_rows",
    "ceiling",
    "compared",
    "condition_names",
    "counts",
    "is_reference",
    "no_ceiling",
    "ordered",
    "pair",
    "positive",
    "role",
    "stratum_of_comparison",
    "wide_ceiling",
    "wide_table",
]

HEADLINE = (
    "pearson_delta",
    "pearson_delta_top20",
    "pearson_delta_ref_perturbed",
    "pds_l2",
    "des",
    "l2_ba_ate",
    "e_distance_share",
)
"""Metrics of the verdict, the figures and the tables per stratum."""

POSITIVE = {
    "half": "the other half of the cells",
    "half_corrected": "the other half of the cells, corrected to all of them",
    "interpolated": "the other half of the cells, moved towards the mean effect",
}
"""What the kinds of ceiling are called."""

_MADE_OF = {"e_distance_share": "e_distance"}
"""Shares have no mean over conditions worth comparing: the distances that they are made of do."""


def role(method: str) -> str:
    """``negative``, ``baseline`` or ``model``; baselines may carry a source, as in ``knn-string``."""
    if method in NEGATIVES:
        return "negative"
    return "baseline" if method.split("-")[0] in REGISTRY else "model"


def is_reference(method: str) -> bool:
    """Whether a method is there to be compared with."""
    return role(method) != "model"


def answering(scores: Scores) -> list[str]:
    """Methods with at least one answer; the others are told of under what was left out."""
    n = counts(scores, "all")
    return [name for name in scores.methods if n[name]]


def ordered(scores: Scores, primary: str, stratum: str) -> list[str]:
    """Methods with answers as tables list them: the one in question, other models, baselines, negative controls."""
    rank = {"model": 1, "baseline": 2, "negative": 3}
    s = scores.summary
    s = s[(s["stratum"] == stratum) & (s["metric"] == "pearson_delta") & s["mean"].notna()]
    value = dict(zip(s["method"], s["mean"], strict=True))

    def place(method: str) -> tuple[int, float]:
        return 0 if method == primary else rank[role(method)], -value.get(method, -np.inf)

    return sorted(answering(scores), key=place)


def stratum_of_comparison(scores: Scores) -> str:
    """Methods are compared on what all of them answered."""
    return "common" if (scores.summary["stratum"] == "common").any() else "all"


def arrow(metric: str) -> str:
    """Which way is better."""
    m = METRICS[metric]
    return {"higher": "↑", "lower": "↓", "target": f"→ {m.best:g}"}.get(m.kind, "")


def best(scores: Scores, methods: Sequence[str], metric: str, stratum: str) -> str:
    """The best of the methods, the first given where none has a value."""
    value = np.array([scores.value(name, metric, stratum) for name in methods])
    bad = np.where(np.isfinite(value), METRICS[metric].badness(value), np.inf)
    return methods[int(np.argmin(bad))]


def counts(scores: Scores, stratum: str) -> dict[str, int]:
    """How many conditions each method answers."""
    s = scores.summary
    s = s[(s["stratum"] == stratum) & (s["metric"] == "mse")]
    return dict.fromkeys(scores.methods, 0) | {m: int(n) for m, n in zip(s["method"], s["n"], strict=True)}


def wide_table(scores: Scores, metric: str) -> pd.DataFrame:
    """Conditions by methods, rows as in ``scores.conditions``."""
    rows = scores.per_condition[scores.per_condition["metric"] == metric]
    wide = rows.pivot(index=["condition", "context"], columns="method", values="value")
    return wide.reindex(index=_keys(scores), columns=scores.methods)


def wide_ceiling(scores: Scores, metric: str) -> pd.DataFrame:
    """Ceilings of every condition, rows as in ``scores.conditions``.

    Returns:
        Columns half, half_corrected, interpolated and sd (of ``half`` over draws); NaN where there is none.
    """
    c = scores.ceiling
    rows = c[c["metric"] == metric]
    out = pd.DataFrame(index=_keys(scores))
    for kind in ("half", "half_corrected", "interpolated"):
        part = rows[rows["kind"] == kind].set_index(["condition", "context"])
        out[kind] = part["value"].astype(np.float64).reindex(out.index)
        if kind == "half":
            out["sd"] = part["sd"].astype(np.float64).reindex(out.index)
    return out


def ceiling(scores: Scores, metric: str) -> np.ndarray:
    """The ceiling of every condition, corrected where that is possible; NaN where there is none."""
    wide = wide_ceiling(scores, metric)
    return wide["half_corrected"].fillna(wide["half"]).to_numpy(np.float64)


def no_ceiling(scores: Scores) -> str:
    """Why no ceiling is known."""
    if scores.provenance["data"] == "effects":
        return "a table of effects has no cells to split into halves"
    return "no condition has cells enough for two halves, or none was asked for"


def _keys(scores: Scores) -> pd.MultiIndex:
    return pd.MultiIndex.from_frame(scores.conditions[["condition", "context"]])


def condition_names(scores: Scores) -> list[str]:
    """Conditions as readers know them, with the context where there are several."""
    several = scores.conditions["context"].nunique() > 1
    keys = zip(scores.conditions["condition"], scores.conditions["context"], strict=True)
    return [f"{c} · {k}" if several else c for c, k in keys]


def calibrated_rows(scores: Scores, stratum: str) -> pd.DataFrame:
    """The calibrated scores of a group of conditions by method and metric."""
    c = scores.calibrated
    return c[c["stratum"] == stratum].set_index(["method", "metric"], drop=False)


def calibrated(rows: pd.DataFrame, method: str, metric: str) -> pd.Series | None:
    """A row of ``calibrated_rows``, or None; a share is calibrated as what it is a share of."""
    key = (method, _MADE_OF.get(metric, metric))
    return rows.loc[key] if key in rows.index else None


def positive(scores: Scores, metric: str, stratum: str) -> float | None:
    """What real cells reach on the scale of the scores, or None where that is not known at the full number of cells."""
    c = scores.calibrated
    hit = c[(c["metric"] == metric) & (c["stratum"] == stratum)]
    if not len(hit) or METRICS[metric].halves == "matched":
        return None
    return float(hit["positive"].iloc[0])


@dataclass(frozen=True)
class Compared:
    """A paired comparison of two methods, first minus second.

    Attributes:
        mean: mean difference.
        low: lower end of its 95% interval.
        high: upper end.
        p: Wilcoxon signed-rank test; NaN below six conditions.
        p_holm: corrected for the number of rivals; NaN where they were not corrected.
        n: conditions.
        real: whether there is a difference.
        better: whether the first is better, by the mean difference.
        of: the metric that was compared.
    """

    mean: float
    low: float
    high: float
    p: float
    p_holm: float
    n: int
    real: bool
    better: bool
    of: str

    @property
    def word(self) -> str:
        """``better``, ``worse`` or an empty string."""
        return ("better" if self.better else "worse") if self.real else ""


def compared(scores: Scores, first: str, second: str, metric: str, stratum: str) -> Compared:
    """The comparison of two methods, from the table of tests where it has one."""
    of = _MADE_OF.get(metric, metric)
    row, sign = _tested(scores, first, second, (metric, of), stratum)
    if row is None:
        table = scores.per_condition.merge(_members(scores, stratum), on=["condition", "context"])
        gap = compare(table, first, second, of, seed=scores.provenance["seed"])
        numbers = (gap.mean, gap.low, gap.high, gap.p, float("nan"), gap.n, gap.real)
    else:
        of = str(row["metric"])
        ends = sorted(sign * float(row[k]) for k in ("low", "high"))
        p = [float(row[k]) if row[k] is not None else float("nan") for k in ("p", "p_holm")]
        numbers = (sign * float(row["mean"]), *ends, *p, int(row["n"]), bool(row["real"]))
    kind = METRICS[of].kind if of in METRICS else METRICS[metric].kind
    if kind == "target":
        badness = METRICS[metric].badness(np.array(pair(scores, first, second, metric, stratum)))
        better = bool(badness[0] < badness[1])
    else:
        better = bool((numbers[0] > 0) == (kind == "higher"))
    return Compared(*numbers, better=better, of=of)


def _tested(
    scores: Scores, first: str, second: str, metrics: Sequence[str], stratum: str
) -> tuple[pd.Series | None, float]:
    """A row of the tests and 1, or −1 where it holds the pair the other way round."""
    t = scores.tests
    for metric in metrics:
        rows = t[(t["stratum"] == stratum) & (t["metric"] == metric)]
        for a, b, sign in ((first, second, 1.0), (second, first, -1.0)):
            hit = rows[(rows["first"] == a) & (rows["second"] == b)]
            if len(hit):
                return hit.iloc[0], sign
    return None, 1.0


def _members(scores: Scores, stratum: str) -> pd.DataFrame:
    """The conditions of a group of the summary."""
    c = scores.conditions[["condition", "context", "stratum"]]
    if stratum.startswith("context "):
        c = c[c["context"] == stratum.removeprefix("context ")]
    elif stratum not in ("all", "common"):  # pairs of methods are compared on what both answer
        c = c[c["stratum"] == ("" if stratum == "(none)" else stratum)]
    return c[["condition", "context"]]


def pair(scores: Scores, first: str, second: str, metric: str, stratum: str) -> tuple[float, float]:
    """Means of two methods over the conditions that both answer."""
    of = _MADE_OF.get(metric, metric)
    members = pd.MultiIndex.from_frame(_members(scores, stratum))
    both = wide_table(scores, of)[[first, second]].loc[members].dropna()
    mean = both.mean()
    if of != metric:
        mean = mean / wide_table(scores, f"{of}_control").loc[both.index, [first, second]].mean()
    return float(mean[first]), float(mean[second])
