"""The report: what the scores say, the verdict first, as one HTML page that needs nothing else."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from scbig.errors import InputError, some
from scbig.evaluation import figures, page, record, sections
from scbig.evaluation.judge import Scores
from scbig.evaluation.reading import (
    HEADLINE,
    best,
    calibrated,
    calibrated_rows,
    counts,
    is_reference,
    stratum_of_comparison,
)
from scbig.evaluation.verdict import LEAD, verdict
from scbig.files import atomic

__all__ = ["HEADLINE", "console_table", "render", "write"]

_CONSOLE = ("pearson_delta", "pearson_delta_top20", "pearson_delta_ref_perturbed", "pds_l2", "e_distance_share")


def write(
    scores: Scores,
    out_dir: str | os.PathLike,
    *,
    primary: str | None = None,
    title: str = "scBIG: evaluation",
    extra: Mapping[str, object] | None = None,
) -> Path:
    """Writes ``per_condition.csv``, ``summary.json``, ``effects.npz`` and ``report.html``, each whole.

    Args:
        scores: from ``evaluate``.
        out_dir: the folder; made if it is not there.
        primary: see ``render``.
        title: of the page.
        extra: see ``render``.

    Returns:
        The path of the report.
    """
    out_dir = Path(out_dir)
    text = render(scores, primary=primary, title=title, extra=extra)
    record.save(scores, out_dir)
    with atomic(out_dir / "report.html") as path:
        path.write_text(text, encoding="utf-8")
    return out_dir / "report.html"


def render(
    scores: Scores,
    *,
    primary: str | None = None,
    title: str = "scBIG: evaluation",
    extra: Mapping[str, object] | None = None,
) -> str:
    """The page as text.

    Args:
        scores: from ``evaluate``.
        primary: the method in question; by default the first that is not one of the baselines, else the best
            of them.
        title: of the page.
        extra: further sections by title: a string, a table of values (mapping), a ``pandas.DataFrame``, a
            ``figures.Curves``, or a list of these.

    Raises:
        InputError: no method of the name ``primary``.
    """
    primary = _primary(scores, primary)
    stratum = stratum_of_comparison(scores)
    further = {name: page.section(name, *_anything(name, content)) for name, content in (extra or {}).items()}
    parts = [
        sections.overview(scores, primary, stratum),
        sections.calibrated_scores(scores, primary, stratum),
        sections.metrics(scores, primary, stratum),
        sections.strata(scores, primary),
        sections.conditions(scores, primary),
        sections.effects(scores, primary),
        sections.ceilings(scores, primary, stratum),
        sections.comparisons(scores, primary, stratum),
        *further.values(),
        sections.excluded(scores),
        sections.glossary(scores),
        page.section("Provenance", page.pairs(scores.provenance)),
    ]
    return page.document(
        title,
        f"<h1>{html.escape(title)}</h1>",
        page.prose(_subtitle(scores), "soft"),
        verdict(scores, primary, stratum),
        page.contents(parts),
        *parts,
    )


def console_table(scores: Scores, metrics: Sequence[str] = _CONSOLE, stratum: str | None = None) -> list[list[str]]:
    """Methods by metrics as text, a header first; means over the conditions that all methods answered.

    Where scores are calibrated, ``pearson_delta`` is followed by its calibrated value: 0 for the best naive answer, 1 for
    what real cells reach.

    Args:
        scores: from ``evaluate``.
        metrics: columns; those that the scores do not have are left out.
        stratum: another group of conditions.
    """
    stratum = stratum or stratum_of_comparison(scores)
    present = set(scores.summary["metric"])
    columns: list[tuple[str, list[str]]] = []
    for name in metrics:
        if name in present:
            columns.append((name, [page.number(scores.value(method, name, stratum)) for method in scores.methods]))
        if name == LEAD and len(scores.calibrated):
            rows = [calibrated(calibrated_rows(scores, stratum), method, LEAD) for method in scores.methods]
            told = [page.number(float("nan") if row is None else float(row["calibrated"])) for row in rows]
            if set(told) != {"–"}:
                columns.append(("calibrated", told))
    columns.append(("conditions", [str(n) for n in counts(scores, stratum).values()]))
    header = ["method", *(name for name, _ in columns)]
    return [header, *([method, *(told[i] for _, told in columns)] for i, method in enumerate(scores.methods))]


def _primary(scores: Scores, primary: str | None) -> str:
    if primary is not None and primary not in scores.methods:
        raise InputError(f"no method '{primary}' among the scores; there are: {some(scores.methods)}")
    others = [name for name in scores.methods if not is_reference(name)]
    return primary or (others[0] if others else best(scores, scores.methods, LEAD, stratum_of_comparison(scores)))


def _subtitle(scores: Scores) -> str:
    p, n = scores.provenance, len(scores.conditions)
    cells = "" if p["data"] == "effects" else f", at most {p['n_cells']} cells per condition and method"
    tested = f"{n} test condition{'s' if n != 1 else ''} of split {p['split']} ({p['split_rule']})"
    return f"{tested}, {len(scores.genes)} genes{cells}."


def _anything(title: str, content: object) -> list[str]:
    """A further section's content as HTML."""
    if isinstance(content, str):
        return [page.prose(content)]
    if isinstance(content, figures.Curves):
        return [page.figures([(content.y_label or title, "", figures.curves(content, f"{title}: {content.y_label}"))])]
    if isinstance(content, pd.DataFrame):
        number = [pd.api.types.is_float_dtype(content[c]) for c in content]
        rows = [
            [page.number(v) if f else html.escape(str(v)) for v, f in zip(row, number, strict=True)]
            for row in content.itertuples(index=False)
        ]
        words = tuple(i for i, c in enumerate(content) if not pd.api.types.is_numeric_dtype(content[c]))
        return [page.table([html.escape(str(c)) for c in content], rows, text=words)]
    if isinstance(content, Mapping):
        return [page.pairs(content)]
    if isinstance(content, (list, tuple)):
        lines = [c for c in content if isinstance(c, figures.Curves)]
        drawn = [(c.y_label or title, "", figures.curves(c, f"{title}: {c.y_label}")) for c in lines]
        rest = [part for c in content if not isinstance(c, figures.Curves) for part in _anything(title, c)]
        return [*([page.figures(drawn)] if drawn else []), *rest]
    raise TypeError(f"section '{title}': a report cannot show {type(content).__name__}")
