"""Figures of the report as inline SVG, drawn by matplotlib without a display."""

from __future__ import annotations

import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Curves", "against", "agreement", "curves", "forest"]

# Okabe and Ito's palette, told apart under the common colour deficiencies.
BLUE, ORANGE, INK, GREY, PALE = "#0072B2", "#D55E00", "#22282e", "#69737d", "#c9d0d6"
_LINES = (BLUE, ORANGE, "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_STYLE = {
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "text.color": INK,
    "svg.fonttype": "path",
    "svg.hashsalt": "scbig",
    "figure.constrained_layout.use": True,
}


@dataclass(frozen=True)
class Curves:
    """Lines for a section of the report.

    Attributes:
        series: x and y values by name.
        x_label: what x is.
        y_label: what y is.
        log_y: whether y is on a logarithmic scale.
        mark: an x value to mark, e.g. the step that was kept.
    """

    series: Mapping[str, tuple[Sequence | np.ndarray, Sequence | np.ndarray]]
    x_label: str = "step"
    y_label: str = ""
    log_y: bool = False
    mark: float | int | None = None


def _figure(width: float, height: float):
    # The object interface leaves the global state of pyplot, and with it the user's back end, alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _drawn(paint, width: float, height: float, text: str) -> str:
    from matplotlib import rc_context

    with rc_context(_STYLE):
        figure, axes = _figure(width, height)
        paint(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(text, quote=True)}" ', 1)


def forest(rows: Sequence[tuple[str, float, float, float]], primary: str, guide: float | None, text: str) -> str:
    """Means with intervals, one line per method.

    Args:
        rows: method, mean, lower and upper end, best first.
        primary: the method in colour.
        guide: a value to mark by a line, such as chance.
        text: what the figure shows, for readers who cannot see it.
    """

    def paint(axes) -> None:
        for y, (name, mean, low, high) in enumerate(rows):
            colour = BLUE if name == primary else GREY
            axes.plot([low, high], [y, y], color=colour, lw=2.2, solid_capstyle="round", alpha=0.55)
            axes.plot([mean], [y], "o" if name == primary else "s", color=colour, ms=6.5)
        if guide is not None:
            axes.axvline(guide, color=PALE, lw=1.2, zorder=0)
        axes.set_yticks(range(len(rows)), [r[0] for r in rows])
        for label in axes.get_yticklabels():
            label.set_color(BLUE if label.get_text() == primary else INK)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color=PALE, lw=0.5)
        axes.set_axisbelow(True)

    return _drawn(paint, 4.2, 0.7 + 0.3 * len(rows), text)


def against(
    x: np.ndarray,
    y: np.ndarray,
    names: Sequence[str],
    x_label: str,
    y_label: str,
    diagonal: bool,
    text: str,
) -> str:
    """One point per condition; the points that stand out are named.

    Args:
        x: values of one axis.
        y: values of the other; rows with a missing value are left out.
        names: conditions.
        x_label: name of the x axis.
        y_label: name of the y axis.
        diagonal: whether equal values are marked by a line; then both axes share their limits.
        text: what the figure shows.
    """
    good = np.isfinite(x) & np.isfinite(y)
    x, y, names = x[good], y[good], [n for n, g in zip(names, good, strict=True) if g]

    def paint(axes) -> None:
        axes.scatter(x, y, s=22, color=BLUE, alpha=0.6, linewidths=0)
        if diagonal and len(x):
            low, high = min(x.min(), y.min()), max(x.max(), y.max())
            pad = 0.06 * max(high - low, 1e-6)
            axes.plot([low - pad, high + pad], [low - pad, high + pad], color=PALE, lw=1.2, zorder=0)
            axes.set_xlim(low - pad, high + pad)
            axes.set_ylim(low - pad, high + pad)
        far = np.abs(y - x) if diagonal else -y
        left = y > x if diagonal else None
        _name(axes, x, y, names, np.argsort(-far, kind="stable")[:4], left)
        axes.margins(0.1)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)

    return _drawn(paint, 4.2, 3.7, text)


def agreement(
    observed: np.ndarray, predicted: np.ndarray, genes: Sequence[str], targets: Sequence[str], text: str
) -> str:
    """Predicted against observed effect over genes, the perturbed genes marked, the largest named.

    Args:
        observed: observed effect, one value per gene.
        predicted: predicted effect.
        genes: symbols.
        targets: perturbed genes.
        text: what the figure shows.
    """
    is_target = np.isin(np.asarray(genes, dtype=object), list(targets))

    def paint(axes) -> None:
        axes.axhline(0, color=PALE, lw=0.7, zorder=0)
        axes.axvline(0, color=PALE, lw=0.7, zorder=0)
        low, high = float(observed.min()), float(observed.max())
        axes.plot([low, high], [low, high], color=PALE, lw=1.2, zorder=0)
        # Thousands of points are one bitmap in the vector file.
        axes.scatter(
            observed[~is_target],
            predicted[~is_target],
            s=12,
            color=BLUE,
            alpha=0.5,
            linewidths=0,
            rasterized=True,
        )
        if is_target.any():
            axes.scatter(
                observed[is_target],
                predicted[is_target],
                s=34,
                marker="D",
                facecolors="none",
                edgecolors=ORANGE,
            )
        size = np.where(is_target, np.inf, np.abs(observed))
        _name(axes, observed, predicted, list(genes), np.argsort(-size, kind="stable")[:5])
        axes.margins(0.12)
        axes.set_xlabel("observed effect")
        axes.set_ylabel("predicted effect")

    return _drawn(paint, 4.2, 3.5, text)


def _name(
    axes,
    x: np.ndarray,
    y: np.ndarray,
    names: Sequence[str],
    chosen: np.ndarray,
    left: np.ndarray | None = None,
) -> None:
    """Writes names beside points, to the left where told, else towards the middle; none covers another."""
    placed: list[tuple[float, float]] = []
    span_x, span_y = (max(float(np.ptp(v)), 1e-9) if len(v) else 1.0 for v in (x, y))
    for i in chosen:
        at = (float(x[i]) / span_x, float(y[i]) / span_y)
        if any(abs(at[0] - a) < 0.3 and abs(at[1] - b) < 0.06 for a, b in placed):
            continue
        placed.append(at)
        turned = bool(left[i]) if left is not None else float(x[i]) > (float(x.min()) + float(x.max())) / 2
        axes.annotate(
            names[i],
            (x[i], y[i]),
            xytext=(-5 if turned else 5, 4),
            textcoords="offset points",
            ha="right" if turned else "left",
            fontsize=8,
            color=INK,
        )


def curves(data: Curves, text: str) -> str:
    """Lines, e.g. of a training run.

    Args:
        data: the lines.
        text: what the figure shows.
    """

    def paint(axes) -> None:
        for (name, (x, y)), colour in zip(data.series.items(), _LINES * len(data.series), strict=False):
            axes.plot(np.asarray(x, float), np.asarray(y, float), color=colour, lw=1.6, label=name)
        if data.mark is not None:
            axes.axvline(data.mark, color=GREY, lw=1, ls=":")
            at = {"xycoords": ("data", "axes fraction"), "xytext": (4, -9), "textcoords": "offset points"}
            axes.annotate("kept", (data.mark, 1), fontsize=8, color=GREY, **at)
        if data.log_y:
            axes.set_yscale("log")
        axes.set_xlabel(data.x_label)
        axes.set_ylabel(data.y_label)
        axes.grid(axis="y", color=PALE, lw=0.5)
        if len(data.series) > 1:
            axes.legend(frameon=False, fontsize=8.5)

    return _drawn(paint, 4.2, 3.0, text)
