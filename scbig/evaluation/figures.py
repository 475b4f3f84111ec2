"""Figures of the report as inline SVG."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from scbig.evaluation import plot
from scbig.evaluation.plot import BLUE, GREEN, GREY, INK, ORANGE, PALE

__all__ = ["Curves", "Series", "against", "agreement", "curves", "forest", "ladder"]

WIDTH = 340.0
"""Of a figure; the page shows it at about this many pixels."""


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


@dataclass(frozen=True)
class Series:
    """A second set of points of ``against``, hollow and in another colour.

    Attributes:
        name: for the legend.
        y: one value per condition, NaN where there is none.
    """

    name: str
    y: np.ndarray


def _told(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")


def forest(
    rows: Sequence[tuple[str, float, float, float, str]],
    guide: float | None,
    ceiling: float | None,
    text: str,
) -> str:
    """Means with intervals, one line per method.

    Args:
        rows: method, mean, lower and upper end, kind (``primary``, ``model``, ``baseline`` or ``negative``), best
            first.
        guide: a value to mark by a pale line, such as chance.
        ceiling: a value to mark by a dashed green line.
        text: what the figure shows, for readers who cannot see it.
    """
    left = 12 + min(max((plot.width_of(r[0]) for r in rows), default=40.0), 132.0)
    step, top = 17.0, 8.0
    bottom = top + step * len(rows) + 2
    marks = [v for v in (guide, ceiling) if v is not None]
    x = plot.scale([v for r in rows for v in r[1:4]] + marks, left, WIDTH - 10)
    parts, ticks = [], x.ticks(4)
    for value, tick in zip(ticks, plot.tick_text(ticks), strict=True):
        parts.append(plot.line(x(value), top, x(value), bottom, "#e8ebee", 0.8))
        parts.append(plot.label(x(value), bottom + 14, tick, "middle", GREY, 10.5))
    if guide is not None:
        parts.append(plot.line(x(guide), top, x(guide), bottom, "#9aa3ab", 1.4))
    if ceiling is not None:
        parts.append(plot.line(x(ceiling), top, x(ceiling), bottom, GREEN, 1.6, "5 3"))
    for i, (name, mean, low, high, kind) in enumerate(rows):
        y = top + step * (i + 0.5)
        colour = {"primary": BLUE, "model": INK, "baseline": GREY, "negative": "#8f98a0"}[kind]
        weight = "600" if kind == "primary" else ""
        shown = plot.shortened(name, left - 12)
        mark = [plot.label(left - 8, y + 4, shown, "end", BLUE if kind == "primary" else INK, 11.5, weight)]
        if np.isfinite(low) and np.isfinite(high):
            mark.append(plot.line(x(low), y, x(high), y, colour, 2.4))
        mark.append(_mark(x(mean), y, kind, colour))
        span = f" ({_told(low)} to {_told(high)})" if np.isfinite(low) else ""
        parts.append(f"<g><title>{html.escape(name)}: {_told(mean)}{span}</title>{''.join(mark)}</g>")
    return plot.svg(parts, WIDTH, bottom + 20, text)


def _mark(x: float, y: float, kind: str, colour: str) -> str:
    if kind in ("primary", "model"):
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{4.4 if kind == "primary" else 3.8}" fill="{colour}"/>'
    hollow = "#fff" if kind == "negative" else colour
    return f'<rect x="{x - 3.2:.1f}" y="{y - 3.2:.1f}" width="6.4" height="6.4" fill="{hollow}" stroke="{colour}"/>'


def against(
    x: np.ndarray,
    y: np.ndarray,
    names: Sequence[str],
    x_label: str,
    y_label: str,
    diagonal: bool,
    text: str,
    second: Series | None = None,
    log_x: bool = False,
) -> str:
    """One point per condition; the points that stand out are named, every point tells its name when pointed at.

    Args:
        x: values of one axis.
        y: values of the other; rows with a missing value are left out.
        names: conditions.
        x_label: name of the x axis.
        y_label: name of the y axis, and of the points where there is a second set.
        diagonal: whether equal values are marked by a line; then both axes share their limits.
        text: what the figure shows.
        second: further points of the same conditions.
        log_x: whether x is on a logarithmic scale; it must be positive.
    """
    good = np.isfinite(x) & np.isfinite(y)
    also = np.isfinite(x) & np.isfinite(second.y) if second is not None else np.zeros(len(x), bool)
    right, top, bottom = WIDTH - 12, 24.0 if second is not None else 10.0, 250.0
    shown_y = np.concatenate([y[good], second.y[also]]) if second is not None else y[good]
    if diagonal:
        both = np.concatenate([x[good], y[good]])
        sy = plot.scale(both, bottom, top, pad=0.06)
        left = plot.margin(sy)
        sx = plot.scale(both, left, right, pad=0.06)
    else:
        sy = plot.scale(shown_y, bottom, top, pad=0.08)
        left = plot.margin(sy)
        sx = plot.scale(x[good | also], left, right, log_x, 0.07)
    frame = plot.Frame(sx, sy)
    parts = [frame.axes(x_label, y_label)]
    if diagonal:
        parts.append(plot.line(sx(sx.low), sy(sy.low), sx(sx.high), sy(sy.high), PALE, 1.3))
    if second is not None:
        parts.append(_legend(left, y_label, second.name))
        ring = "".join(
            _point(sx(x[i]), sy(second.y[i]), int(i), names[i], x[i], second.y[i]) for i in np.flatnonzero(also)
        )
        width = 0.7 if also.sum() > 250 else 1.3
        parts.append(f'<g fill="#fff" fill-opacity="0.6" stroke="{GREEN}" stroke-width="{width}">{ring}</g>')
    at = np.flatnonzero(good)
    # Hundreds of discs would hide one another.
    many = len(at) > 250
    disc = "".join(_point(sx(x[i]), sy(y[i]), int(i), names[i], x[i], y[i]) for i in at)
    disc = disc.replace('r="3.6"', 'r="2.6"') if many else disc
    parts.append(f'<g fill="{BLUE}" fill-opacity="{0.35 if many else 0.6}">{disc}</g>')
    px, py = (np.array([s(v) for v in values[at]]) for s, values in ((sx, x), (sy, y)))
    far = np.abs(y - x)[at] if diagonal else -y[at]
    first = np.argsort(-far, kind="stable")[:4]
    parts.append(plot.names(px, py, [names[i] for i in at], first.tolist(), frame))
    return plot.svg(parts, WIDTH, bottom + 40, text, "pick")


def _point(px: float, py: float, key: int, name: str, x: float, y: float) -> str:
    title = html.escape(f"{name}: {_told(x)} → {_told(y)}")
    return f'<circle data-k="{key}" cx="{px:.1f}" cy="{py:.1f}" r="3.6"><title>{title}</title></circle>'


def _legend(left: float, first: str, second: str) -> str:
    right = left + 16 + plot.width_of(first)
    return (
        f'<circle cx="{left + 4:.1f}" cy="9" r="3.6" fill="{BLUE}"/>{plot.label(left + 12, 13, first)}'
        f'<circle cx="{right + 12:.1f}" cy="9" r="3.6" fill="#fff" stroke="{GREEN}" stroke-width="1.3"/>'
        f"{plot.label(right + 20, 13, second)}"
    )


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
    observed, predicted = observed.astype(np.float64), predicted.astype(np.float64)
    right, top, bottom = WIDTH - 12, 10.0, 236.0
    sy = plot.scale(predicted, bottom, top, pad=0.1)
    left = plot.margin(sy)
    sx = plot.scale(observed, left, right, pad=0.1)
    frame = plot.Frame(sx, sy)
    parts = [frame.axes("observed effect", "predicted effect")]
    for at, along in ((sx, True), (sy, False)):
        if at.low < 0 < at.high:
            ends = (at(0), bottom, at(0), top) if along else (left, at(0), right, at(0))
            parts.append(plot.line(*ends, "#e1e5e8", 0.9))
    low, high = max(sx.low, sy.low), min(sx.high, sy.high)
    if low < high:  # where both axes show the same values
        parts.append(plot.line(sx(low), sy(low), sx(high), sy(high), PALE, 1.3))
    px, py = (np.array([s(float(v)) for v in values]) for s, values in ((sx, observed), (sy, predicted)))
    is_target = np.isin(np.asarray(genes, dtype=object), list(targets))
    order = np.argsort(-np.where(is_target, np.inf, np.abs(observed)), kind="stable")
    # The largest can be pointed at; all the others are one stroke.
    large = [int(i) for i in order[:40] if not is_target[i]]
    rest = np.setdiff1d(np.flatnonzero(~is_target), large)
    parts.append(plot.dots(px[rest], py[rest], BLUE))
    disc = "".join(_point(px[i], py[i], i, genes[i], observed[i], predicted[i]) for i in large)
    parts.append(f'<g fill="{BLUE}" fill-opacity="0.55">{disc}</g>'.replace('r="3.6"', 'r="2.3"'))
    for i in np.flatnonzero(is_target):
        x, y, title = px[i], py[i], html.escape(f"{genes[i]} (perturbed): {_told(observed[i])} → {_told(predicted[i])}")
        diamond = f'd="M{x:.1f} {y - 5.5:.1f}l5.5 5.5l-5.5 5.5l-5.5 -5.5z"'
        parts.append(
            f'<path data-k="{i}" {diamond} fill="#fff" fill-opacity="0.5" stroke="{ORANGE}" stroke-width="1.7">'
            f"<title>{title}</title></path>"
        )
    parts.append(plot.names(px, py, list(genes), order[:6].tolist(), frame))
    return plot.svg(parts, WIDTH, bottom + 40, text, "pick own")


def ladder(rows: Sequence[tuple[str, float, float, float, float]], method: str, metric: str, text: str) -> str:
    """The ceiling of every condition beside the score of a method, one line per condition.

    Args:
        rows: condition, ceiling, its spread (standard deviation), uncorrected ceiling, score; in the order shown.
        method: whose score.
        metric: of all the numbers.
        text: what the figure shows.
    """
    width, step, top = 420.0, 17.0, 42.0
    left = 12 + min(max((plot.width_of(r[0]) for r in rows), default=40.0), 140.0)
    bottom = top + step * len(rows) + 2
    values = [v for r in rows for v in (r[1] - r[2], r[1] + r[2], r[1], r[3], r[4])]
    x = plot.scale(values, left, width - 12, pad=0.04)
    parts, ticks = [], x.ticks(6)
    for value, tick in zip(ticks, plot.tick_text(ticks), strict=True):
        parts.append(plot.line(x(value), top, x(value), bottom, "#e8ebee", 0.8))
        parts.append(plot.label(x(value), bottom + 15, tick, "middle", GREY))
    parts.append(plot.label((left + width) / 2, bottom + 31, metric, "middle"))
    legend = (
        ("ours", method, 8.0, 10.0),
        ("high", "other half, corrected ± sd", 8.0, 28.0),
        ("raw", "other half", 200.0, 28.0),
    )
    for kind, name, at, y in legend:
        parts += [_rung(at, y, kind), plot.label(at + 9, y + 4, name)]
    for i, (name, high, sd, raw, ours) in enumerate(rows):
        y = top + step * (i + 0.5)
        mark = [plot.label(left - 8, y + 4, plot.shortened(name, left - 12), "end")]
        if np.isfinite(ours) and np.isfinite(high):
            mark.append(plot.line(x(ours), y, x(high), y, PALE, 1.4))
        if np.isfinite(high) and np.isfinite(sd):
            mark.append(plot.line(x(high - sd), y, x(high + sd), y, GREEN, 2.0))
        mark += [_rung(x(v), y, k) for v, k in ((raw, "raw"), (high, "high"), (ours, "ours")) if np.isfinite(v)]
        told = f"{name}: {method} {_told(ours)}, ceiling {_told(high)} ± {_told(sd)}, uncorrected {_told(raw)}"
        parts.append(f"<g><title>{html.escape(told)}</title>{''.join(mark)}</g>")
    return plot.svg(parts, width, bottom + 38, text)


def _rung(x: float, y: float, kind: str) -> str:
    if kind == "ours":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.2" fill="{BLUE}"/>'
    fill = GREEN if kind == "high" else "#fff"
    return f'<path d="M{x:.1f} {y - 4.6:.1f}l4.6 4.6l-4.6 4.6l-4.6 -4.6z" fill="{fill}" stroke="{GREEN}"/>'


def curves(data: Curves, text: str) -> str:
    """Lines, e.g. of a training run.

    Args:
        data: the lines.
        text: what the figure shows.
    """
    right, bottom = WIDTH - 12, 190.0
    top = 26.0 if len(data.series) > 1 else 12.0
    lines = {k: (np.asarray(x, float), np.asarray(y, float)) for k, (x, y) in data.series.items()}
    every_x = np.concatenate([x for x, _ in lines.values()]) if lines else np.zeros(0)
    every_y = np.concatenate([y for _, y in lines.values()]) if lines else np.zeros(0)
    if data.log_y:
        every_y = every_y[every_y > 0]
    marked = [] if data.mark is None else [float(data.mark)]
    sy = plot.scale(every_y, bottom, top, data.log_y and len(every_y) > 0)
    left = plot.margin(sy)
    frame = plot.Frame(plot.scale([*every_x, *marked], left, right, pad=0.03), sy)
    parts = [frame.axes(data.x_label, data.y_label, "y")]
    if data.mark is not None:
        at = frame.x(float(data.mark))
        turned = at > right - 40
        parts.append(plot.line(at, bottom, at, top, GREY, 1, "2 3"))
        parts.append(plot.label(at + (-4 if turned else 4), top + 8, "kept", "end" if turned else "start", GREY, 10.5))
    legend = left
    for (name, (x, y)), colour in zip(lines.items(), plot.LINES * (len(lines) or 1), strict=False):
        good = np.isfinite(x) & np.isfinite(y) & ((y > 0) | (not data.log_y))
        points = "L".join(f"{frame.x(a):.1f} {frame.y(b):.1f}" for a, b in zip(x[good], y[good], strict=True))
        if points:
            parts.append(f'<path d="M{points}" fill="none" stroke="{colour}" stroke-width="1.7"/>')
        if len(lines) > 1:
            parts += [plot.line(legend, 10, legend + 14, 10, colour, 2.2), plot.label(legend + 18, 14, name)]
            legend += 32 + plot.width_of(name)
    return plot.svg(parts, WIDTH, bottom + 40, text)
