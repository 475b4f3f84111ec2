"""Drawings of interactions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scbig.analysis import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["beside", "chart", "modules"]

_MARKS = {
    "synergy": ("^", style.ORANGE),
    "suppression": ("v", style.BLUE),
    "epistasis": ("s", style.GREEN),
    "neomorphic": ("D", style.PURPLE),
}
_NAMED = 6


def chart(observed: pd.DataFrame) -> Figure:
    """Departure and slope of all pairs, kinds by marker."""
    figure, axis = style.new(5.4, 3.6)
    judged = observed[observed["p"].notna()]
    for kind in (None, *_MARKS):
        rows = judged[judged["kind"] == kind] if kind else judged[~judged["departs"]]
        if not len(rows):
            continue
        x, y = rows["relative"].to_numpy(float), rows["slope"].to_numpy(float)
        ends = np.abs([x - rows["relative_low"].to_numpy(float), rows["relative_high"].to_numpy(float) - x])
        marker, colour = _MARKS[kind] if kind else ("o", style.GREY)
        label = f"{kind} ({len(rows)})" if kind else f"additive or too weak to tell ({len(rows)})"
        axis.errorbar(
            x, y, xerr=ends, fmt=marker, color=colour, ms=5, mfc=colour if kind else "white", elinewidth=0.6, alpha=0.9,
            label=label, ecolor=style.PALE, zorder=3 if kind else 2,
        )  # fmt: skip
    axis.axhline(1.0, color=style.INK, lw=0.8, ls="--", zorder=1)
    axis.set_xlim(left=0)
    axis.set_xlabel("departure from the sum / size of the sum")
    axis.set_ylabel("slope of the double on the sum")
    _name(axis, judged[judged["departs"]].nlargest(_NAMED, "relative"), "relative", "slope")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _name(axis, rows: pd.DataFrame, x: str, y: str) -> None:
    """Names of a few points, above or below in turn, so that neighbours do not collide."""
    for i, row in enumerate(rows.sort_values(x).to_dict("records")):
        up = i % 2 == 0
        axis.annotate(
            row["condition"], (row[x], row[y]), xytext=(0, 6 if up else -6), textcoords="offset points", fontsize=7,
            ha="center", va="bottom" if up else "top", color=style.INK, zorder=4,
        )  # fmt: skip


def beside(table: pd.DataFrame) -> Figure:
    """Departure of the test pairs, measured and predicted."""
    figure, axis = style.new(3.6, 3.4)
    x, y = table["observed_relative_raw"].to_numpy(float), table["predicted_relative_raw"].to_numpy(float)
    bare = np.isnan(y)
    y = np.where(bare, table["predicted_relative"].to_numpy(float), y)
    called = (table["observed_kind"] != "additive or too weak to tell").to_numpy()
    low, high = (table[f"predicted_relative_{end}"].to_numpy(float) for end in ("low", "high"))
    ends = np.nan_to_num(np.abs([y - low, high - y]))
    for use, marker, label in ((called, "s", "departs, measured"), (~called, "o", "not told from additive")):
        if use.any():
            colour = style.ORANGE if marker == "s" else style.BLUE
            axis.errorbar(
                x[use], y[use], yerr=ends[:, use], fmt=marker, ms=5, color=colour, ecolor=style.PALE, elinewidth=1.0,
                mfc=colour if marker == "s" else "white", label=label,
            )  # fmt: skip
    top = float(np.nanmax(np.r_[x, y + ends[1]])) * 1.05
    axis.plot([0, top], [0, top], color=style.INK, lw=0.8, ls="--")
    axis.set_xlim(0, top)
    axis.set_ylim(0, top)
    axis.set_xlabel("measured departure / size of the sum")
    axis.set_ylabel("predicted departure / size of the sum")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def modules(residual: pd.DataFrame, called: pd.DataFrame) -> Figure:
    """Modules by pairs: what pairs do beyond the sum."""
    most = 24
    kept = residual.abs().max(axis=1).nlargest(most).index
    shown, dots = residual.loc[residual.index.isin(kept)], called.loc[residual.index.isin(kept)]
    figure, axis = style.new(min(7.2, 2.6 + 0.36 * shown.shape[1]), 1.5 + 0.17 * len(shown))
    size = float(np.abs(shown.to_numpy()).max()) or 1.0
    image = axis.imshow(shown.to_numpy(float), cmap=style.CHANGE, vmin=-size, vmax=size, aspect="auto")
    rows, columns = np.nonzero(dots.to_numpy(bool))
    axis.plot(columns, rows, "o", ms=3, color=style.INK, mec="white", mew=0.5)
    axis.set_xticks(range(shown.shape[1]), shown.columns, rotation=60, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(shown)), shown.index)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    bar = figure.colorbar(image, ax=axis, shrink=0.7, pad=0.02)
    bar.set_label("departure, log-expression")
    return figure
