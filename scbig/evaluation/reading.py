"""Questions that every part of the report asks of the scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from scbig.evaluation.judge import Scores
from scbig.evaluation.metrics import METRICS

__all__ = ["answering", "best", "condition_names", "count", "stratum_of_comparison", "wide_table"]


def answering(scores: Scores) -> list[str]:
    """Methods with at least one answer; the others are told of under what was left out."""
    return [name for name in scores.methods if count(scores, name, "all")]


def stratum_of_comparison(scores: Scores) -> str:
    """Methods are compared on what all of them answered."""
    return "common" if (scores.summary["stratum"] == "common").any() else "all"


def best(scores: Scores, methods: Sequence[str], metric: str, stratum: str) -> str:
    """The best of the methods, the first given where none has a value."""
    sign = 1.0 if METRICS[metric].higher else -1.0
    value = [sign * scores.value(name, metric, stratum) for name in methods]
    return methods[int(np.argmax([v if np.isfinite(v) else -np.inf for v in value]))]


def count(scores: Scores, method: str, stratum: str, metric: str = "mse") -> int:
    """How many conditions a method has a value for."""
    s = scores.summary
    hit = s[(s["method"] == method) & (s["stratum"] == stratum) & (s["metric"] == metric)]["n"]
    return int(hit.iloc[0]) if len(hit) else 0


def wide_table(scores: Scores, metric: str) -> pd.DataFrame:
    """Conditions by methods, rows as in ``scores.conditions``."""
    rows = scores.per_condition[scores.per_condition["metric"] == metric]
    wide = rows.pivot(index=["condition", "context"], columns="method", values="value")
    index = pd.MultiIndex.from_frame(scores.conditions[["condition", "context"]])
    return wide.reindex(index=index, columns=scores.methods)


def condition_names(scores: Scores) -> list[str]:
    """Conditions as readers know them, with the context where there are several."""
    several = scores.conditions["context"].nunique() > 1
    keys = zip(scores.conditions["condition"], scores.conditions["context"], strict=True)
    return [f"{c} · {k}" if several else c for c, k in keys]
