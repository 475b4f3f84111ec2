"""How perturbations move gene modules: measured, predicted, and whether the two agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scbig.analysis import style
from scbig.analysis.chosen import Chosen, choose, measured
from scbig.analysis.modules import labels
from scbig.analysis.moves import changes, module_scores, welch
from scbig.analysis.section import Ask, Figure, Section
from scbig.data.conditions import genes_of

if TYPE_CHECKING:
    from scbig.analysis.view import View

__all__ = ["agreement", "changes", "module_scores", "predicted", "report", "welch"]

_PREDICTED = 0.9  # of intervals of what is predicted
_MOST = 12  # conditions, where none are named
_DRAWN = 4  # conditions with a figure of their own


def agreement(table: pd.DataFrame, alpha: float = 0.05) -> pd.DataFrame:
    """Measured against predicted changes, per condition.

    Args:
        table: rows per condition, context and module with ``change``, ``q``, ``predicted`` and its ``predicted_low`` and
            ``predicted_high``.
        alpha: false discovery rate of the modules that are called.

    Returns:
        Per condition ``n_called`` modules, ``same_sign`` among them with its Wilson interval (95%), ``correlation`` over
        all modules, ``error`` (root mean square) beside ``size`` (of the measured changes), and ``covered``, the share of
        measured changes within the predicted interval, where it has one.
    """
    rows = []
    for (condition, context), part in table.groupby(["condition", "context"], sort=False):
        part = part[part["change"].notna() & part["predicted"].notna()]
        called = part[part["q"] < alpha]
        same = int((np.sign(called["change"]) == np.sign(called["predicted"])).sum())
        low, high = _wilson(same, len(called))
        ends = part[np.isfinite(part["predicted_low"].to_numpy(np.float64))]
        inside = (ends["change"] >= ends["predicted_low"]) & (ends["change"] <= ends["predicted_high"])
        varies = len(part) > 2 and part["change"].std() > 0 and part["predicted"].std() > 0
        rows.append({
            "condition": condition, "context": context, "n_modules": len(part), "n_called": len(called),
            "same_sign": same / len(called) if len(called) else np.nan, "same_sign_low": low, "same_sign_high": high,
            "correlation": float(np.corrcoef(part["change"], part["predicted"])[0, 1]) if varies else np.nan,
            "error": float(np.sqrt(((part["predicted"] - part["change"]) ** 2).mean())) if len(part) else np.nan,
            "size": float(np.sqrt((part["change"] ** 2).mean())) if len(part) else np.nan,
            "covered": float(inside.mean()) if len(ends) else np.nan,
        })  # fmt: skip
    return pd.DataFrame(rows)


def _wilson(hits: int, n: int) -> tuple[float, float]:
    """Wilson's interval of a share at 95%; NaN for none of none."""
    if not n:
        return float("nan"), float("nan")
    z, share = 1.959964, hits / n
    middle, half = share + z**2 / (2 * n), z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return float((middle - half) / (1 + z**2 / n)), float((middle + half) / (1 + z**2 / n))


def predicted(view: View, chosen: Sequence[Chosen], n_cells: int, seed: int) -> pd.DataFrame:
    """The predicted change of every module: sampled cells less the controls that they started from.

    Returns:
        Per condition, context and module ``predicted``, ``predicted_se`` (of the cells drawn), and ``predicted_low`` and
        ``predicted_high``: the anchor's 90% interval of module means around it, NaN for measured conditions or without one.
    """
    predictor, tables = view.predictor, []
    place = {name: i for i, name in enumerate(predictor.controls.index.astype(str))}
    half = _half_widths(view, chosen)
    cells = predictor.sample(
        [one.condition for one in chosen], n_cells, context=[one.context for one in chosen], seed=seed
    )
    modules = view.modules.reorder(list(cells.var_names))
    source = np.array([place[name] for name in cells.obs["source_cell"].astype(str)])
    for number, one in enumerate(chosen):
        rows, own = slice(number * n_cells, (number + 1) * n_cells), genes_of(one.condition)
        away = module_scores(cells.X[rows], modules, own) - module_scores(predictor.x0[source[rows]], modules, own)
        mean = away.mean(axis=0)
        tables.append(pd.DataFrame({
            "condition": one.condition, "context": one.context, "module": range(modules.n_modules),
            "predicted": mean, "predicted_se": away.std(axis=0, ddof=1) / np.sqrt(len(away)),
            "predicted_low": mean - half[number], "predicted_high": mean + half[number],
        }))  # fmt: skip
    return pd.concat(tables, ignore_index=True)


def _half_widths(view: View, chosen: Sequence[Chosen]) -> np.ndarray:
    """Half of the anchor's interval of each module's mean, NaN where there is none, ``[conditions, modules]``."""
    out = np.full((len(chosen), view.modules.n_modules), np.nan)
    anchor = view.predictor.anchor
    if anchor is None or anchor.intervals is None or anchor.intervals.calibration.by_module is None:
        return out
    keys = [one.condition for one in chosen], [one.context for one in chosen]
    low, high = anchor.interval(*keys, _PREDICTED, modules=True)
    # Modules are named by their number there, in the order of the text.
    columns = [int(name) for name in anchor.intervals.calibration.modules]
    out[:, columns] = (high - low) / 2
    return out


def report(view: View, ask: Ask) -> Section:
    """Measured and predicted changes of modules, beside each other."""
    chosen = choose(view, ask, _MOST)
    names = labels(view)
    rows = {(one.condition, one.context): measured(view, one) for one in chosen}
    real = changes(view.adata.X, view.obs, view.modules, {key: found for key, (found, _) in rows.items()}, names)
    told = predicted(view, chosen, ask.n_cells, ask.seed)
    told["name"] = [names[k] for k in told["module"]]
    table = told.merge(real.drop(columns="name"), on=["condition", "context", "module"], how="left")
    table["part"] = [rows[key][1] for key in zip(table["condition"], table["context"], strict=True)]
    table = table[_COLUMNS]
    agreed = agreement(table, ask.alpha)
    seen = agreed[agreed["n_modules"] > 0]
    drawn = sorted(chosen, key=lambda one: -_largest(table, one))[:_DRAWN] if not ask.conditions else chosen[:12]
    figures = [Figure(
        "agreement",
        "Measured against predicted change of module means, every module in every condition. Bars: 95% interval of the "
        f"measurement and {_PREDICTED:.0%} interval of the prediction, where it has one. Filled: q < {ask.alpha:g}. "
        "The dashed line is equality.",
        lambda: _scatter(table, ask.alpha),
    )] if len(seen) else []  # fmt: skip
    for one in drawn:
        figures.append(Figure(
            f"modules_{_file(one.name)}",
            f"{one.name}: change of mean log-expression of each module, in order of the measured change. Bars: 95% interval "
            f"of the measurement; {_PREDICTED:.0%} interval of the prediction, where it has one. Filled: measured change "
            f"called at q < {ask.alpha:g}.",
            lambda one=one: _forest(table, one, ask.alpha),
        ))  # fmt: skip
    tables = {"modules_by_condition": table, "agreement": agreed}
    return Section("Programs: which modules move", _told(agreed, chosen, ask), tables, figures)


_COLUMNS = [
    "condition", "context", "module", "name", "part", "n_cells", "n_control", "change", "se", "low", "high", "p", "q",
    "predicted", "predicted_se", "predicted_low", "predicted_high",
]  # fmt: skip


def _told(agreed: pd.DataFrame, chosen: Sequence[Chosen], ask: Ask) -> str:
    seen = agreed[agreed["n_modules"] > 0]
    n_called, n_same = int(seen["n_called"].sum()), int((seen["same_sign"].fillna(0) * seen["n_called"]).round().sum())
    text = (
        f"{len(chosen)} conditions ({'as asked' if ask.conditions else 'held out, chosen evenly over their names'}). "
        "Changes are differences of mean log-expression of a module's genes; perturbed genes do not count. "
    )
    if not len(seen):
        return text + "None of them was measured: there is only the prediction."
    low, high = _wilson(n_same, n_called)
    text += f"Of {int(seen['n_modules'].sum())} changes of modules, {n_called} are called at q < {ask.alpha:g}"
    if n_called:
        text += f"; the prediction has the sign of {n_same} of these ({low:.0%} to {high:.0%} with 95% confidence)"
    if seen["covered"].notna().any():
        text += f". Measured changes lie within the predicted {_PREDICTED:.0%} interval in {seen['covered'].mean():.0%}"
    return text + (
        ". Intervals of the measurement take cells as independent. A call says that a module's mean moved, not by which "
        "gene, nor that the perturbed gene acts on it directly."
    )


def _largest(table: pd.DataFrame, one: Chosen) -> float:
    part = table[(table["condition"] == one.condition) & (table["context"] == one.context)]
    values = part["change"].abs().fillna(part["predicted"].abs())
    return float(values.max()) if values.notna().any() else 0.0


def _file(name: str) -> str:
    return "".join(c if c.isalnum() or c in "+-." else "_" for c in name)


def _forest(table: pd.DataFrame, one: Chosen, alpha: float) -> Any:
    part = table[(table["condition"] == one.condition) & (table["context"] == one.context)]
    known = part["change"].notna().any()
    part = part.sort_values("change" if known else "predicted", ascending=False)
    figure, ax = style.new(4.6, 1.0 + 0.2 * len(part))
    series = {}
    if known:
        part_name = part["part"].iloc[0]
        series[f"measured ({int(part['n_cells'].iloc[0])} cells, {part_name})"] = (
            part["change"],
            part["low"],
            part["high"],
        )
    series["predicted"] = part["predicted"], part["predicted_low"], part["predicted_high"]
    filled = {name: (part["q"] < alpha).to_numpy() for name in series if name.startswith("measured")}
    style.forest(ax, list(part["name"]), series, "change of mean log-expression", filled=filled)
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def _scatter(table: pd.DataFrame, alpha: float) -> Any:
    part = table[table["change"].notna() & table["predicted"].notna()]
    figure, ax = style.new(3.8, 3.5)
    x, y = part["change"].to_numpy(), part["predicted"].to_numpy()
    both = np.concatenate([x, y, [0.0]])
    room = (both.max() - both.min()) * 0.12 or 1.0
    low_end, high_end = float(both.min() - room), float(both.max() + room)
    ax.axhline(0, color=style.PALE, linewidth=0.8, zorder=0)
    ax.axvline(0, color=style.PALE, linewidth=0.8, zorder=0)
    ax.plot([low_end, high_end], [low_end, high_end], color=style.GREY, linewidth=0.9, linestyle="--", zorder=0)
    ax.hlines(
        y,
        np.maximum(part["low"], low_end),
        np.minimum(part["high"], high_end),
        color=style.PALE,
        linewidth=0.7,
        zorder=1,
    )
    low, high = part["predicted_low"].clip(low_end, high_end), part["predicted_high"].clip(low_end, high_end)
    known = low.notna() & high.notna()
    ax.vlines(x[known], low[known], high[known], color=style.PALE, linewidth=0.7, zorder=1)
    called = (part["q"] < alpha).to_numpy()
    for mask, face, label in ((~called, "white", "not called"), (called, style.BLUE, f"called, q < {alpha:g}")):
        ax.scatter(x[mask], y[mask], s=14, facecolor=face, edgecolor=style.BLUE, linewidth=0.7, label=label, zorder=2)
    ax.set(xlim=(low_end, high_end), ylim=(low_end, high_end), xlabel="measured change of module mean (log)",
           ylabel="predicted change (log)")  # fmt: skip
    ax.legend(loc="upper left", handletextpad=0.2)
    return figure
