"""The part of the analysis that is about interactions: tables, words and figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scbig.analysis import interaction_figures as draw
from scbig.analysis import interaction_model
from scbig.analysis.interactions import UNTOLD, pairs_of, predicted, score_cells
from scbig.analysis.moves import module_scores
from scbig.analysis.permutation import false_discovery
from scbig.analysis.section import Ask, Figure, Section
from scbig.data.conditions import CONTROL, genes_of, join
from scbig.errors import InputError
from scbig.rng import generator

if TYPE_CHECKING:
    from scbig.analysis.view import View

__all__ = ["module_departures", "section"]

TITLE = "Interactions of pairs"
_TOP = 12  # pairs in the heat map
_FIRST = (
    "condition", "context", "part", "kind", "p", "q", "departs", "relative", "relative_low", "relative_high", "could_tell",
    "nearest", "nearest_share", "cells_a", "cells_b", "cells_ab", "cells_control",
)  # fmt: skip


def section(view: View, ask: Ask) -> Section:
    """Observed interactions of all measured pairs, predicted ones of the test pairs (or those asked for) beside them."""
    able = pairs_of(view.obs["condition"].astype(str))
    asked = {join(genes_of(c)) for c in ask.conditions}
    if not able or (asked and asked.isdisjoint(able)):
        return Section(
            TITLE, "No pair here was measured together with both of its genes alone: there is nothing to score."
        )
    observed = score_cells(view.adata, able, draws=ask.draws, alpha=ask.alpha, seed=ask.seed)
    judged = observed[observed["p"].notna()] if "p" in observed else observed.iloc[:0]
    if not len(judged):
        return Section(
            TITLE, "Every pair has fewer than 10 cells in one of its groups: too few to score.", {"pairs": observed}
        )
    part = dict(zip(view.obs["condition"].astype(str), view.part, strict=True))
    observed = observed.assign(part=observed["condition"].map(part))
    observed = observed[[*(c for c in _FIRST if c in observed), *(c for c in observed if c not in _FIRST)]]
    observed = observed.sort_values(["q", "condition"], ignore_index=True)
    tables = {"pairs": observed}
    text = [_words(observed, ask)]
    wanted = observed[observed["condition"].isin(asked)] if asked else observed
    if asked:
        text.append(_told_of(wanted))
    figures = [
        Figure(
            "map",
            "Every measured pair: by how much it departs from the sum of its singles (relative to the sum, noise taken off, "
            "95% bootstrap interval) and the slope of the double on the sum (1: additive). Markers name kinds; hollow grey "
            "pairs could be additive.",
            lambda: draw.chart(observed),
        )
    ]
    beside, told = _predicted(view, observed, wanted)
    text.append(told)
    if beside is not None:
        tables["predicted"] = beside
        figures.append(
            Figure(
                "predicted",
                "Test pairs: relative departure from the sum as measured, noise and all (horizontal), and as predicted to be "
                "measured (vertical; the bars hold 90% of the errors made on left-out training pairs). On the dashed line "
                "both agree.",
                lambda: draw.beside(beside),
            )
        )
    residual, called = module_departures(view, wanted, ask)
    if len(residual):
        tables["modules"] = residual.stack().rename("departure").rename_axis(["module", "pair"]).reset_index()
        tables["modules"]["departs"] = called.stack().to_numpy()
        figures.append(
            Figure(
                "modules",
                "What pairs do beyond the sum of their singles, module by module: mean log-expression of a module's genes "
                f"less both singles'. Dots: departs at a false discovery rate of {ask.alpha:.0%} over all cells shown.",
                lambda: draw.modules(residual, called),
            )
        )
    return Section(TITLE, " ".join(text), tables, figures)


def _words(observed: pd.DataFrame, ask: Ask) -> str:
    judged = observed[observed["p"].notna()]
    called = judged[judged["departs"]]
    kinds = called["kind"].value_counts()
    told = ", ".join(f"{n} {kind}" for kind, n in kinds.items())
    text = (
        f"Of {len(judged)} pairs with both singles measured, {len(called)} depart from the sum of their singles at a false "
        f"discovery rate of {ask.alpha:.0%}{f': {told}' if told else ''}. "
    )
    if len(called):
        names = ", ".join(
            f"{c} ({r:.2f})" for c, r in zip(called["condition"].head(3), called["relative"].head(3), strict=True)
        )
        text += f"The surest are {names}, with the length of the departure relative to the sum's in brackets. "
    rest = judged[judged["kind"] == UNTOLD]
    if len(rest):
        text += (
            f"The other {len(rest)} could be additive or too weak to tell: departures below about "
            f"{float(rest['could_tell'].median()):.2f} of the sum could not have been told in half of them. "
        )
    return text + (
        "Effects are compared in mean log-expression, where saturation and cells that escape make real but uninteresting "
        "departures; look at their size, not at p alone."
    )


def _told_of(wanted: pd.DataFrame) -> str:
    """What was found of the pairs asked for, a clause each."""
    each = [
        f"{row['condition']}: {row['kind']}, departure {row['relative']:.2f} of the sum "
        f"({row['relative_low']:.2f} to {row['relative_high']:.2f})"
        for row in wanted[wanted["p"].notna()].head(_TOP).to_dict("records")
    ]
    return f"Asked for: {'; '.join(each)}." if each else "Those asked for have too few cells to score."


def _predicted(view: View, observed: pd.DataFrame, wanted: pd.DataFrame) -> tuple[pd.DataFrame | None, str]:
    rows = wanted[wanted["condition"].isin(view.conditions("test")) & wanted["p"].notna()]
    anchor = view.predictor.anchor
    if anchor is None:
        return None, "This run has no anchor, so nothing is predicted of pairs."
    if not len(rows):
        return None, "No pair with both singles is held out for testing, so predictions cannot be compared here."
    found = [predicted(view, g["condition"].tolist(), str(k)) for k, g in rows.groupby("context")]
    table = pd.concat(found, ignore_index=True)
    names = ["relative", "relative_raw", "relative_low", "relative_high", "slope", "magnitude", "dominance", "nearest"]
    table = table[["condition", "context", "rests_on", *names]].rename(columns={n: f"predicted_{n}" for n in names})
    seen = rows[["condition", "context", "relative", "relative_raw", "slope", "robust_magnitude", "q", "kind"]]
    table = table.merge(
        seen.rename(columns={n: f"observed_{n}" for n in seen.columns[2:]}), on=["condition", "context"]
    )
    table, told = _learned(view, observed, table)
    inside = table["observed_relative_raw"].between(table["predicted_relative_low"], table["predicted_relative_high"])
    text = f"Of {len(table)} test pairs "
    if table["predicted_relative_low"].notna().any():
        text += f"{int(inside.sum())} were measured inside their 90% interval of the departure. "
    else:
        text += "none has an interval: fewer than nine training pairs were left out. "
    return table, text + told


def _learned(view: View, observed: pd.DataFrame, table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Adds the calibrated probability of a strong departure, where enough pairs were measured to learn it."""
    label = dict(zip(map(str, view.modules.genes), map(int, view.modules.module), strict=True))
    out, words = [], []
    for context, rows in table.groupby("context"):
        here = observed[(observed["context"] == context) & (observed["part"] != "test")]
        departures = dict(zip(here["condition"], here["relative"].astype(float), strict=True))
        try:
            model = interaction_model.fit(
                departures, view.predictor.anchor.data, label, str(context), view.settings.seed
            )
        except InputError as problem:
            words.append(f"No probability of a departure is given: {problem}.")
            out.append(rows)
            continue
        told = model.probability(rows["condition"].tolist()).rename(
            columns={"low": "probability_low", "high": "probability_high"}
        )
        out.append(rows.merge(told, on="condition"))
        weak = " That is no better than chance: do not rank by it." if model.auroc_low <= 0.5 else ""
        words.append(
            f"Which pairs depart by more than {model.threshold:.2f} of the sum was learned from {model.n} measured pairs; "
            f"left out, they were told apart with AUROC {model.auroc:.2f} "
            f"({model.auroc_low:.2f} … {model.auroc_high:.2f}).{weak}"
        )
    return pd.concat(out, ignore_index=True), " ".join(words)


def module_departures(view: View, observed: pd.DataFrame, ask: Ask) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What pairs do beyond the sum of their singles, by module, and where that is told from noise.

    Tests are two-sided, normal, with bootstrap standard errors; corrected over all modules and pairs shown.

    Args:
        view: the run.
        observed: pairs as :func:`~scbig.analysis.interactions.score_cells` gives them, surest first.
        ask: with ``draws``, ``alpha`` and ``seed``.

    Returns:
        Departures and calls, modules by pairs.
    """
    from scipy.stats import norm

    from scbig.analysis.modules import labels

    top = observed[observed["p"].notna()].head(_TOP)
    condition = view.obs["condition"].astype(str).to_numpy()
    context = view.obs["context"].astype(str).to_numpy()
    several = len(set(top["context"])) > 1
    genes = np.asarray(view.modules.genes).astype(str)
    values: dict[str, Any] = {}
    errors: dict[str, Any] = {}
    for row in top.to_dict("records"):
        first, second = (join([g]) for g in sorted(genes_of(row["condition"])))
        own = np.isin(genes, genes_of(row["condition"]))
        total, error = 0.0, 0.0
        for name, sign in ((row["condition"], 1), (first, -1), (second, -1), (CONTROL, 1)):
            cells = view.adata.X[np.flatnonzero((condition == name) & (context == row["context"]))]
            cells = cells.toarray() if hasattr(cells, "toarray") else np.asarray(cells).copy()
            cells[:, own] = 0.0  # the perturbed genes count for nothing in their modules
            scores = module_scores(cells, view.modules)
            rng = generator(ask.seed, f"modules of interactions {name}@{row['context']}")
            weight = rng.multinomial(len(scores), np.full(len(scores), 1 / len(scores)), size=max(ask.draws, 50)) / len(
                scores
            )
            total = total + sign * scores.mean(axis=0)
            error = error + (weight @ scores).var(axis=0, ddof=1)
        title = f"{row['condition']} {row['context']}" if several else row["condition"]
        values[title], errors[title] = total, np.sqrt(error)
    names = list(labels(view))
    residual, error = pd.DataFrame(values, index=names), pd.DataFrame(errors, index=names)
    z = np.divide(residual, error.where(error > 0, np.inf))
    q = false_discovery(2 * norm.sf(np.abs(z.to_numpy(float))))
    return residual, pd.DataFrame(q <= ask.alpha, index=residual.index, columns=residual.columns)
