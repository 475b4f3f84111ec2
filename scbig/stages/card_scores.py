"""The results of a model card, and its tables."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence

import numpy as np

from scbig import evaluation
from scbig.evaluation.metrics import METRICS
from scbig.evaluation.page import number
from scbig.evaluation.reading import best, counts, is_reference, ordered, positive, stratum_of_comparison
from scbig.evaluation.verdict import verdict

__all__ = ["pairs", "results", "sentences", "table"]

_SHOWN = ("pearson_delta", "pearson_delta_top20", "pearson_delta_ref_perturbed", "pds_l2", "e_distance_share")
_FEW = 10  # test conditions below which a mean says little


def results(scores: evaluation.Scores | None) -> str:
    """The verdict, methods by metrics, and kinds of conditions; says so where nothing was evaluated."""
    if scores is None:
        return "## Results\n\n**Not evaluated.** Run `scbig evaluate` before you rely on it or share it."
    stratum = stratum_of_comparison(scores)
    n, drawn = len(scores.conditions), scores.provenance.get("bootstrap_draws", 0)
    said = "\n".join(f"- {text}" for text in sentences(scores))
    weak = f" Only {n} test conditions: means and intervals say little." if n < _FEW else ""
    return "\n\n".join(
        [
            "## Results",
            f"Of {n} test conditions that nothing was trained on.{weak}",
            said,
            _scores(scores, stratum),
            f"Means over the conditions that all methods answered, with 95% bootstrap intervals over conditions ({drawn:,} "
            "draws). *Real cells*: what one half of the real cells reaches when it predicts the other half. Genes that a "
            "condition perturbs do not count.",
            *_by_stratum(scores),
        ]
    )


def _scores(scores: evaluation.Scores, stratum: str) -> str:
    """Methods by metrics."""
    metrics = [m for m in _SHOWN if m in set(scores.summary["metric"])]
    rows = []
    for method in ordered(scores, "scBIG", stratum):
        name = method if method == "scBIG" or not is_reference(method) else f"{method} (baseline)"
        rows.append([name, *(_interval(scores, method, m, stratum) for m in metrics)])
    top = [positive(scores, m, stratum) for m in metrics]
    if any(value is not None for value in top):
        rows.append(["real cells", *("–" if value is None else number(value) for value in top)])
    arrows = {"higher": "↑", "lower": "↓"}
    return table(["method", *(f"{m} {arrows.get(METRICS[m].kind, '')}".strip() for m in metrics)], rows)


def _interval(scores: evaluation.Scores, method: str, metric: str, stratum: str) -> str:
    s = scores.summary
    hit = s[(s["method"] == method) & (s["metric"] == metric) & (s["stratum"] == stratum)]
    if not len(hit) or not np.isfinite(hit["mean"].iloc[0]):
        return "–"
    row = hit.iloc[0]
    span = f" ({number(row['low'])} to {number(row['high'])})" if np.isfinite(row["low"]) else ""
    return f"{number(row['mean'])}{span}"


def _by_stratum(scores: evaluation.Scores) -> list[str]:
    """The first metric in every group of conditions beside the best baseline there; nothing where there is one group."""
    metric, rows = _SHOWN[0], []
    for stratum in dict.fromkeys(scores.summary["stratum"]):
        rivals = [m for m in scores.methods if is_reference(m) and np.isfinite(scores.value(m, metric, stratum))]
        if not rivals or stratum == "common":
            continue
        rival = best(scores, rivals, metric, stratum)
        top = positive(scores, metric, stratum)
        rows.append(
            [
                stratum, str(counts(scores, stratum)["scBIG"]), _interval(scores, "scBIG", metric, stratum),
                f"{_interval(scores, rival, metric, stratum)} {rival}", "–" if top is None else number(top),
            ]
        )  # fmt: skip
    if len(rows) < 2:
        return []
    header = ["conditions", "number", "scBIG", "best baseline", "real cells"]
    return [f"By kind of condition, {metric}:", table(header, rows)]


def sentences(scores: evaluation.Scores) -> list[str]:
    """The verdict of the report, without its markup."""
    text = verdict(scores, "scBIG", stratum_of_comparison(scores))
    return [html.unescape(re.sub(r"<[^>]+>", "", each)) for each in re.findall(r"<p\b.*?</p>", text, re.DOTALL)]


def _plain(text: object) -> str:
    """Text that cannot break a table."""
    return str(text).replace("|", "\\|").replace("\n", " ")


def pairs(rows: Mapping[str, object]) -> str:
    """A table of names and values."""
    return table(["", ""], [[name, str(value)] for name, value in rows.items()])


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(_plain(cell) for cell in line)} |" for line in lines)
