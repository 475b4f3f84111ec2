"""Drawings of co-activation and of shifts of attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scbig.analysis import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["agreement", "attention_condition", "attention_map", "forest", "maps", "telling"]

_MAPS = 4  # conditions with a map
_PAIRS = 16  # in the forest
_COLUMNS = 24  # conditions in a heat map
_ROWS = 32  # modules with a name of their own


def _short(name: str, most: int = 26) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _where(row: Any, several: bool) -> str:
    """The condition, and its context where there are several."""
    return f"{row.condition} ({row.context})" if several else str(row.condition)


def _several(table: pd.DataFrame) -> bool:
    return table["context"].nunique() > 1


def _cap(values: np.ndarray) -> float:
    """Where a symmetric colour scale ends."""
    known = np.abs(values[np.isfinite(values)])
    return float(max(np.percentile(known, 99), 1e-6)) if known.size else 1.0


def maps(table: pd.DataFrame, names: tuple[str, ...]) -> Figure:
    """Change of the correlation of every pair of modules in the conditions with most called pairs.

    Args:
        table: from :func:`scbig.analysis.coactivation.coactivation`, with ``called``.
        names: of the modules.
    """
    from matplotlib.patches import Rectangle

    keys = ["condition", "context"]
    count = table.groupby(keys)["called"].sum().sort_values(ascending=False, kind="stable")
    order = (count[count > 0] if (count > 0).any() else count).index[:_MAPS]
    columns = min(2, len(order))
    rows = -(-len(order) // columns)
    n = len(names)
    figure, axes = style.new(7.2, 0.3 + 2.8 * rows, rows, columns, squeeze=False)
    cap, image = _cap(table["change"].to_numpy()), None
    for place, key in enumerate(order):
        ax = axes.flat[place]
        own = table[(table["condition"] == key[0]) & (table["context"] == key[1])]
        grid = np.full((n, n), np.nan)
        grid[own["module_b"], own["module_a"]] = own["change"]
        image = ax.imshow(grid, cmap=style.CHANGE, vmin=-cap, vmax=cap, interpolation="nearest")
        called = own[own["called"]]
        for row in called.itertuples():
            ax.add_patch(Rectangle((row.module_a - 0.5, row.module_b - 0.5), 1, 1, fill=False, ec=style.INK, lw=1.1))
        # An outline is lost in the darkest colours and a dot among the small squares of many modules: both.
        ax.plot(called["module_a"], called["module_b"], "o", ms=2.4, mfc="white", mec=style.INK, mew=0.5)
        step = max(1, n // 16)
        ticks = np.arange(0, n, step)
        # Numbers along the bottom, names where there is room for them: at the left of a row of maps.
        ax.set_xticks(ticks, [f"M{k}" for k in ticks], rotation=90)
        ax.set_yticks(ticks, [_short(names[k], 22) if place % columns == 0 else f"M{k}" for k in ticks])
        ax.tick_params(length=2, labelsize=6.5 if n > 12 else 7)
        ax.set_title(
            f"{' in '.join(key) if _several(table) else key[0]}: {int(own['called'].sum())} of {len(own)} pairs"
        )
    for ax in axes.flat[len(order) :]:
        ax.set_axis_off()
    bar = figure.colorbar(image, ax=axes, shrink=0.5, aspect=30, extend="both")
    bar.set_label("change of correlation (Fisher z)")
    return figure


def forest(table: pd.DataFrame) -> Figure:
    """The pairs with the least p, with intervals of their change.

    Args:
        table: from :func:`scbig.analysis.coactivation.coactivation`, with ``called``, ``label_a`` and ``label_b``.
    """
    order = table.assign(size=table["z"].abs()).sort_values(["p", "size"], ascending=[True, False], kind="stable")
    order, several = order.head(_PAIRS), _several(table)
    figure, ax = style.new(7.2, 0.7 + 0.2 * len(order))
    y = np.arange(len(order))[::-1]
    for row, at in zip(order.itertuples(), y, strict=True):
        colour = style.BLUE if row.called else style.GREY
        ax.plot([row.low, row.high], [at, at], color=colour, lw=1.2)
        ax.plot(row.change, at, "o", ms=5, mfc=colour if row.called else "white", mec=colour)
        ax.annotate(f"{row.rate:.0%}", (1.01, at), xycoords=("axes fraction", "data"), fontsize=7, va="center")
    ax.annotate("rate", (1.01, len(order)), xycoords=("axes fraction", "data"), fontsize=7, va="center")
    ax.axvline(0, color=style.INK, lw=0.8)
    ax.set_yticks(y, [f"{_where(row, several)}:  {_pair(row)}" for row in order.itertuples()])
    ax.set_ylim(-0.7, len(order) + 0.4)
    ax.set_xlabel("change of correlation, perturbed less control (Fisher z; 95% interval)")
    return figure


def _pair(row: Any) -> str:
    return f"{_short(row.label_a, 22)} – {_short(row.label_b, 22)}"


def telling(table: pd.DataFrame) -> tuple[str, str, str]:
    """Condition, context and part with the most real shifts that are called; of predicted ones where none is real.

    Args:
        table: the table ``attention_shift`` of the analysis.
    """
    real = table[table["cells"] == "real"]
    own = real if len(real) else table
    score = own.groupby(["condition", "context", "part"], sort=True).agg(
        n=("called", "sum"), z=("z", lambda z: (z**2).sum())
    )
    condition, context, part = score.sort_values(["n", "z"], ascending=False, kind="stable").index[0]
    return str(condition), str(context), str(part)


def attention_map(table: pd.DataFrame, names: tuple[str, ...]) -> Figure:
    """Shifts of attention of all modules in all conditions, real beside predicted; grey where chance would do.

    Args:
        table: the table ``attention_shift`` of the analysis.
        names: of the modules.
    """
    from matplotlib import colormaps
    from matplotlib.patches import Patch

    several = _several(table)
    table = table.assign(where=[_where(row, several) for row in table.itertuples()])
    kinds = [kind for kind in ("real", "predicted") if (table["cells"] == kind).any()]
    count = table[table["called"]].groupby("where").size().reindex(sorted(set(table["where"])), fill_value=0)
    shown = sorted(count.sort_values(ascending=False, kind="stable").index[:_COLUMNS])
    n = len(names)
    figure, axes = style.new(
        7.2, 1.6 + 0.15 * min(n, 64) + 0.05 * max(map(len, shown)), 1, len(kinds), squeeze=False, sharey=True
    )
    cap = _cap(table.loc[table["called"], "effect"].to_numpy())
    colours = colormaps[style.CHANGE].with_extremes(bad=style.PALE)
    image = None
    for ax, kind in zip(axes.flat, kinds, strict=True):
        own = table[(table["cells"] == kind) & table["where"].isin(shown)]
        grid = np.full((n, len(shown)), np.nan)
        called = own[own["called"]]
        grid[called["module"], [shown.index(name) for name in called["where"]]] = called["effect"]
        image = ax.imshow(grid, cmap=colours, vmin=-cap, vmax=cap, aspect="auto", interpolation="nearest")
        for place in set(range(len(shown))) - {shown.index(name) for name in own["where"]}:
            ax.axvspan(place - 0.5, place + 0.5, fc="white", ec=style.GREY, hatch="////", lw=0)
        ax.set_xticks(np.arange(len(shown)), shown, rotation=90)
        step = -(-n // _ROWS)
        ax.set_yticks(np.arange(0, n, step), [names[k] for k in range(0, n, step)])
        ax.tick_params(length=2)
        ax.set_title(f"{kind} cells: {int(own['called'].sum())} of {len(own)}")
    bar = figure.colorbar(image, ax=axes, shrink=0.6, aspect=30, extend="both")
    bar.set_label("shift of attention (control SD)")
    figure.legend(
        handles=[Patch(fc=style.PALE, label="not to be told from chance")], loc="outside lower right", handlelength=1.2
    )
    return figure


def attention_condition(
    table: pd.DataFrame, names: tuple[str, ...], where: tuple[str, str, str] | None = None
) -> Figure:
    """One condition: attention in control and perturbed cells, and its shift in real and predicted cells.

    Args:
        table: the table ``attention_shift`` of the analysis.
        names: of the modules.
        where: condition, context and part; that of :func:`telling` where None.
    """
    condition, context, _ = where or telling(table)
    own = table[(table["condition"] == condition) & (table["context"] == context)]
    own = own.drop_duplicates(["cells", "module"])
    kinds = [kind for kind in ("real", "predicted") if (own["cells"] == kind).any()]
    first = own[own["cells"] == kinds[0]].sort_values("shift")
    # The ends of the order are what a figure of many modules is looked at for.
    kept = first if len(first) <= _ROWS else pd.concat([first.head(_ROWS // 2), first.tail(_ROWS // 2)])
    place = {int(k): at for at, k in enumerate(kept["module"])}
    figure, (left, right) = style.new(7.2, 1.4 + 0.17 * len(place), 1, 2, sharey=True)
    y = np.arange(len(place))
    left.hlines(y, 100 * kept["control"], 100 * kept["perturbed"], color=style.PALE, lw=2, zorder=1)
    left.plot(100 * kept["control"], y, "s", ms=4, color=style.GREY, label=f"control ({kinds[0]})")
    left.plot(100 * kept["perturbed"], y, "o", ms=4.5, color=style.BLUE, label=f"perturbed ({kinds[0]})")
    left.set_yticks(y, [names[k] for k in place])
    left.set_xlabel("attention received (%)")
    marks = {"real": ("o", style.BLUE, 0.14), "predicted": ("D", style.ORANGE, -0.14)}
    for kind in kinds:
        mark, colour, off = marks[kind]
        for row in own[(own["cells"] == kind) & own["module"].isin(list(place))].itertuples():
            at, tone = place[row.module] + off, colour if row.called else style.GREY
            right.plot([100 * row.low, 100 * row.high], [at, at], color=tone, lw=1.1)
            right.plot(100 * row.shift, at, mark, ms=4, mfc=tone if row.called else "white", mec=tone)
        right.plot([], [], mark, ms=4, color=colour, label=kind)
    right.plot([], [], "o", ms=4, mfc="white", mec=style.GREY, label="not to be told from chance")
    right.axvline(0, color=style.INK, lw=0.8)
    right.set_xlabel("shift of attention (percentage points)")
    for ax in (left, right):
        ax.set_ylim(-0.7, len(place) - 0.3)
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, columnspacing=1.0, handletextpad=0.3)
    return figure


def agreement(table: pd.DataFrame) -> Figure:
    """Correlation of predicted with real shifts by condition, with intervals and what noise leaves possible.

    Args:
        table: from :func:`scbig.analysis.shift.agreement`, with ``part``.
    """
    order, several = table.sort_values("r", kind="stable").tail(40), _several(table)
    figure, ax = style.new(5.0, 1.0 + 0.2 * len(order))
    y = np.arange(len(order))
    ax.hlines(y, order["low"], order["high"], color=style.BLUE, lw=1.2)
    ax.plot(order["r"], y, "o", ms=4.5, color=style.BLUE, label="predicted with real")
    ax.plot(order["ceiling"], y, "|", ms=9, mew=1.6, color=style.ORANGE, label="left possible by noise")
    ax.axvline(0, color=style.INK, lw=0.8)
    ax.set_yticks(y, [f"{_where(row, several)} ({row.part})" for row in order.itertuples()])
    ax.set_xlim(min(-0.25, float(order["low"].min()) - 0.05), 1.05)
    ax.set_ylim(-0.7, len(order) - 0.3)
    ax.set_xlabel("correlation over modules of the shift of attention (95% interval)")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return figure
