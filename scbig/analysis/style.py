"""How figures of the analysis look: sizes for print, colours that colour-blind readers tell apart."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

    from scbig.analysis.section import Figure

__all__ = ["BLUE", "CHANGE", "DENSITY", "GREEN", "GREY", "INK", "MARKERS", "ORANGE", "PALE", "PURPLE", "SERIES"]
__all__ += ["SKY", "YELLOW", "forest", "heat", "new", "note", "save", "settings"]

# Okabe and Ito's palette.
BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
INK, GREY, PALE = "#22282e", "#69737d", "#c9d0d6"
SERIES = (BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW)
MARKERS = ("o", "D", "s", "^", "v", "P")
"""A marker for each of ``SERIES``, so that colour is never alone."""
CHANGE = "RdBu_r"
"""Colour map of what rises and falls; centre it on zero."""
DENSITY = "cividis"
"""Colour map of what is never negative."""

_SETTINGS: dict[str, Any] = {
    "font.size": 8, "axes.titlesize": 9, "axes.labelsize": 8, "xtick.labelsize": 7, "ytick.labelsize": 7,
    "legend.fontsize": 7, "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False,
    "axes.linewidth": 0.8, "axes.edgecolor": GREY, "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK,
    "ytick.color": INK, "figure.dpi": 100, "savefig.dpi": 200, "svg.fonttype": "none", "svg.hashsalt": "scbig",
    "lines.linewidth": 1.4, "image.cmap": DENSITY, "axes.unicode_minus": True, "figure.titlesize": 9,
    "xtick.major.size": 3, "ytick.major.size": 3, "xtick.major.width": 0.8, "ytick.major.width": 0.8,
}  # fmt: skip


def new(
    width: float | int = 3.5, height: float | int = 2.6, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Drawing, Any]:
    """A drawing and its axes; no window, no global state.

    Args:
        width: of the whole in inches; a column of print is 3.5, a page 7.2.
        height: of the whole in inches.
        rows: of axes.
        columns: of axes.
        options: further arguments of :meth:`matplotlib.figure.Figure.subplots`.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Drawing

    with rc_context(_SETTINGS):
        figure = Drawing(figsize=(width, height), layout="constrained")
        axes = figure.subplots(rows, columns, **options)
    # Ticks are made when they are first drawn, long after these settings are gone, from what is kept with the axes.
    for ax in figure.axes:
        ax.tick_params(labelsize=_SETTINGS["xtick.labelsize"], labelcolor=INK, color=GREY, length=3, width=0.8)
    return figure, axes


def settings() -> dict[str, Any]:
    """What to draw and to save figures under, with :func:`matplotlib.rc_context`."""
    return dict(_SETTINGS)


def save(figure: Figure, folder: str | os.PathLike) -> tuple[Path, Path]:
    """Draws a figure and writes it as ``NAME.svg`` and ``NAME.png``; the same figure gives the same files.

    Args:
        figure: with its name.
        folder: must exist.
    """
    from matplotlib import rc_context

    vector, picture = (Path(folder, f"{figure.name}.{kind}") for kind in ("svg", "png"))
    with rc_context(_SETTINGS):
        drawing = figure.draw()
        drawing.savefig(vector, metadata={"Date": None, "Creator": None})
        drawing.savefig(picture, metadata={"Software": None})
    return vector, picture


def heat(
    ax: Any,
    table: pd.DataFrame,
    label: str,
    *,
    called: pd.DataFrame | np.ndarray | None = None,
    limit: float | int | None = None,
    change: bool = True,
    borders: Sequence[int] = (),
    names: bool = True,
    bar: bool = True,
) -> Any:
    """A heat map with the names of rows and columns, a colour bar, and outlines around what is called.

    Args:
        ax: where to draw.
        table: values; those that are missing stay grey.
        label: of the colour bar, with the unit.
        called: cells to outline, true or false, in the shape of ``table``.
        limit: value at the end of the colours; the 99th percentile of sizes without it.
        change: colours centred on zero; else from zero up.
        borders: rows and columns before which a line is drawn, for square tables in blocks.
        names: whether rows and columns are named.
        bar: whether there is a colour bar.

    Returns:
        The image.
    """
    values = table.to_numpy(np.float64)
    known = np.abs(values[np.isfinite(values)])
    top = float(np.percentile(known, 99)) if limit is None and known.size else float(limit or 1.0)
    top = top if top > 0 else 1.0
    ax.set_facecolor("#e9ecef")
    image = ax.imshow(
        np.ma.masked_invalid(values), cmap=CHANGE if change else DENSITY, vmin=-top if change else 0.0, vmax=top,
        aspect="auto", interpolation="nearest", rasterized=True,
    )  # fmt: skip
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.tick_params(length=0)
    if names:
        ax.set_xticks(
            range(table.shape[1]), [str(c) for c in table.columns], rotation=90, fontsize=_size(table.shape[1])
        )
        ax.set_yticks(range(table.shape[0]), [str(r) for r in table.index], fontsize=_size(table.shape[0]))
    else:
        ax.set_xticks([]), ax.set_yticks([])
    for place in borders:
        ax.axhline(place - 0.5, color=INK, linewidth=0.35)
        ax.axvline(place - 0.5, color=INK, linewidth=0.35)
    if called is not None:
        from matplotlib.patches import Rectangle

        for row, column in zip(*np.nonzero(np.asarray(called, bool)), strict=True):
            ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=INK, linewidth=0.6))
    if not bar:
        return image
    beyond = known.size and known.max() > top * (1 + 1e-9)
    extend = "neither" if not beyond else ("both" if change else "max")
    scale = ax.figure.colorbar(image, ax=ax, extend=extend, fraction=0.04, pad=0.02, aspect=30, shrink=0.8)
    scale.set_label(label, fontsize=7.5, color=INK)
    scale.ax.tick_params(labelsize=7, length=2, color=GREY)
    scale.outline.set_visible(False)
    return image


def _size(n: int) -> float:
    return 7.0 if n <= 60 else 5.5


def forest(
    ax: Any,
    names: Sequence[str],
    series: Mapping[str, Sequence[Any]],
    label: str,
    *,
    zero: float | int | None = 0.0,
    filled: Mapping[str, Any] | None = None,
) -> None:
    """Estimates with their intervals, a line for each name, the first at the top; a marker and a colour for each series.

    Args:
        ax: where to draw.
        names: of the lines.
        series: by its name the estimates, the lower and the upper ends, one for each line; missing ends draw no interval,
            infinite ones reach to the edge.
        label: of the axis, with the unit.
        zero: where a guide stands; None draws none.
        filled: which marks of a series are filled; all without it.
    """
    y = np.arange(len(names), dtype=np.float64)
    every = [np.asarray(v, np.float64) for three in series.values() for v in three]
    finite = np.concatenate([v[np.isfinite(v)] for v in every] + [np.array([] if zero is None else [zero])])
    low_end, high_end = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    room = (high_end - low_end) * 0.06 or 0.1
    low_end, high_end = low_end - room, high_end + room
    if zero is not None:
        ax.axvline(zero, color=GREY, linewidth=0.8, zorder=0)
    step = 0.7 / max(len(series), 2)
    for number, (name, three) in enumerate(series.items()):
        middle, low, high = (np.asarray(v, np.float64) for v in three)
        at = y + (number - (len(series) - 1) / 2) * step
        colour, marker = SERIES[number % len(SERIES)], MARKERS[number % len(MARKERS)]
        known = ~np.isnan(low) & ~np.isnan(high)
        ax.hlines(
            at[known], np.clip(low[known], low_end, high_end), np.clip(high[known], low_end, high_end), color=colour,
            linewidth=1.2,
        )  # fmt: skip
        full = np.ones(len(y), bool) if filled is None or name not in filled else np.asarray(filled[name], bool)
        ax.scatter(middle, at, s=18, marker=marker, facecolor=np.where(full, colour, "white"), edgecolor=colour,
                   linewidth=0.9, zorder=3)  # fmt: skip
        ax.plot([], [], color=colour, marker=marker, markersize=4, linewidth=1.2, label=name)
    ax.set_xlim(low_end, high_end)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_yticks(y, list(names))
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", color="#eef0f2", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.set_xlabel(label)


def note(ax: Any, text: str) -> None:
    """A remark in grey in the upper left corner of the axes."""
    ax.text(0.02, 0.98, text, transform=ax.transAxes, ha="left", va="top", fontsize=7, color=GREY)
