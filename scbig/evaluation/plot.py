"""Axes, marks and names as SVG text: what the figures of the report are made of.

Written by hand rather than by a plotting library: letters stay letters at every size, a point can carry its name, and a
page with thirty figures is made in a moment.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "INK",
    "LINES",
    "ORANGE",
    "PALE",
    "Frame",
    "Scale",
    "dots",
    "label",
    "line",
    "margin",
    "names",
    "scale",
    "shortened",
    "svg",
    "tick_text",
    "width_of",
]

# Okabe and Ito's palette, told apart under the common colour deficiencies.
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
INK, GREY, PALE = "#22282e", "#69737d", "#c9d0d6"
LINES = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#E69F00")
SIZE = 11.5
"""Size of letters in units of the drawing."""

Number = float | int


@dataclass(frozen=True)
class Scale:
    """From values to places on the drawing.

    Attributes:
        low: value at ``start``.
        high: value at ``end``.
        start: place of the lowest value.
        end: place of the highest.
        log: whether equal ratios are equal lengths.
    """

    low: Number
    high: Number
    start: Number
    end: Number
    log: bool = False

    def __call__(self, value: Number) -> float:
        """The place of a value."""
        low, high = self.low, self.high
        if self.log:
            value, low, high = (math.log10(v) for v in (value, low, high))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, most: int = 5) -> list[float]:
        """Round values within the limits."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            for steps in ((1, 2, 5), (1, 3), (1,)):
                found = [s * 10.0**e for e in range(first, last + 1) for s in steps]
                found = [v for v in found if self.low <= v <= self.high]
                if len(found) <= most + 1:
                    break
            return found
        rough = (self.high - self.low) / most
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(s * unit for s in (1, 2, 2.5, 5, 10) if s * unit >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step + 0.0 for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def scale(
    values: Sequence[float] | np.ndarray, start: Number, end: Number, log: bool = False, pad: Number = 0.05
) -> Scale:
    """A scale that shows all finite values with room at both ends.

    Args:
        values: what must be seen; any without a finite value gives 0 to 1.
        start: place of the lowest.
        end: place of the highest.
        log: equal ratios at equal lengths; values must be positive.
        pad: share of the span left free at each end.
    """
    v = np.asarray(values, dtype=np.float64)
    v = v[np.isfinite(v)]
    if not len(v):
        return Scale(0.0, 1.0, start, end)
    if log:
        v = np.log10(v)
    low, high = float(v.min()), float(v.max())
    room = (high - low) * pad or max(abs(high) * 0.1, 1e-3)
    low, high = low - room, high + room
    return Scale(10.0**low, 10.0**high, start, end, True) if log else Scale(low, high, start, end)


def tick_text(values: Sequence[float]) -> list[str]:
    """Ticks as text, all with the same number of decimals."""
    if not values:
        return []
    if max(abs(v) for v in values) >= 1e5 or all(0 < abs(v) < 1e-3 for v in values if v):
        digits = next((d for d in range(4) if all(abs(float(f"{v:.{d}e}") - v) <= 1e-9 * abs(v) for v in values)), 4)
        return [f"{v:.{digits}e}".replace("-", "−") if v else "0" for v in values]
    decimals = next((d for d in range(5) if all(abs(v - round(v, d)) < 1e-9 for v in values)), 5)
    return [f"{v:.{decimals}f}".replace("-", "−") for v in values]


def margin(y: Scale) -> float:
    """How much room the ticks and the name of a vertical axis need."""
    return 32.0 + max((width_of(text) for text in tick_text(y.ticks(5))), default=0.0)


def width_of(text: str, size: Number = SIZE) -> float:
    """About how wide a text is in a plain sans-serif."""
    return size * sum(0.31 if c in "iljtfI.,·:;|!' " else 0.7 if c.isupper() or c in "mw_+" else 0.57 for c in text)


def shortened(text: str, room: Number, size: Number = SIZE) -> str:
    """The text, its middle left out where it is wider than the room."""
    if width_of(text, size) <= room:
        return text
    keep = len(text)
    while keep > 4 and width_of(text[:keep], size) > room - size * 0.6:
        keep -= 1
    tail = keep // 3
    return f"{text[: keep - tail]}…{text[len(text) - tail :]}"


def label(
    x: Number, y: Number, text: str, anchor: str = "start", colour: str = INK, size: Number = SIZE, weight: str = ""
) -> str:
    """A text; ``y`` is its base line."""
    weight = f' font-weight="{weight}"' if weight else ""
    anchor = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" fill="{colour}"{anchor}{weight}>{html.escape(text)}</text>'
    )


def line(
    x1: Number, y1: Number, x2: Number, y2: Number, colour: str = GREY, width: Number = 1.0, style: str = ""
) -> str:
    """A straight line; ``style`` is a pattern of dashes."""
    dash = f' stroke-dasharray="{style}"' if style else ""
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="{colour}" stroke-width="{width:g}"{dash}/>'


def dots(x: np.ndarray, y: np.ndarray, colour: str, size: Number = 3.2, layers: int = 6, opacity: Number = 0.35) -> str:
    """Thousands of points in little text: strokes of no length, equal ones drawn once per layer.

    Layers lie over one another, so that crowded places are darker.
    """
    at = np.round(np.stack([x, y], axis=1) * 2).astype(int)
    parts = []
    for k in range(layers):
        rows = np.unique(at[k::layers], axis=0)
        if len(rows):
            path = "".join(f"M{a / 2:g} {b / 2:g}h0" for a, b in rows)
            parts.append(f'<path d="{path}"/>')
    style = f'stroke="{colour}" stroke-width="{size:g}" stroke-linecap="round" stroke-opacity="{opacity:g}"'
    return f'<g {style} fill="none">{"".join(parts)}</g>'


def svg(parts: Sequence[str], width: Number, height: Number, text: str, kind: str = "") -> str:
    """A whole drawing; ``text`` says what it shows to readers who cannot see it."""
    told = html.escape(text, quote=True)
    kind = f' class="{kind}"' if kind else ""
    return (
        f'<svg{kind} role="img" aria-label="{told}" viewBox="0 0 {width:g} {height:g}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


@dataclass(frozen=True)
class Frame:
    """A pair of axes.

    Attributes:
        x: the horizontal scale.
        y: the vertical scale; it starts at the bottom.
    """

    x: Scale
    y: Scale

    def axes(self, x_label: str, y_label: str, grid: str = "") -> str:
        """Lines, ticks and names of both axes; ``grid`` holds ``x``, ``y`` or both."""
        left, right, bottom, top = self.x.start, self.x.end, self.y.start, self.y.end
        parts = []
        ticks = self.x.ticks(5)
        for value, text in zip(ticks, tick_text(ticks), strict=True):
            at = self.x(value)
            far = top if "x" in grid else bottom
            parts.append(line(at, bottom + 4, at, far, PALE if "x" in grid else GREY, 0.8))
            parts.append(label(at, bottom + 16, text, "middle", GREY))
        ticks = self.y.ticks(5)
        for value, text in zip(ticks, tick_text(ticks), strict=True):
            at = self.y(value)
            far = right if "y" in grid else left
            parts.append(line(left - 4, at, far, at, PALE if "y" in grid else GREY, 0.8))
            parts.append(label(left - 7, at + 4, text, "end", GREY))
        parts += [line(left, bottom, right, bottom, GREY, 0.9), line(left, bottom, left, top, GREY, 0.9)]
        parts.append(label((left + right) / 2, bottom + 33, shortened(x_label, right - left + 40), "middle"))
        if y_label:
            y_label = shortened(y_label, bottom - top + 20)
            turned = label(0, 0, y_label, "middle")
            parts.append(f'<g transform="translate(13 {(bottom + top) / 2:.1f}) rotate(-90)">{turned}</g>')
        return "".join(parts)

    def inside(self, x: Number, y: Number) -> bool:
        """Whether a place is within the axes."""
        return self.x.start <= x <= self.x.end and self.y.end <= y <= self.y.start


def names(x: np.ndarray, y: np.ndarray, texts: Sequence[str], chosen: Sequence[int], frame: Frame) -> str:
    """Names beside points, where there is room for them.

    No two overlap, none leaves the axes or hides a named point, and other points are spared where possible.

    Args:
        x: places of all points.
        y: places of all points.
        texts: names of all points.
        chosen: which are named, the most important first.
        frame: the axes.
    """
    taken: list[tuple[float, float, float, float]] = []
    marks = [(float(x[i]) - 4, float(y[i]) - 4, float(x[i]) + 4, float(y[i]) + 4) for i in chosen]
    parts = []
    for i, own in zip(chosen, marks, strict=True):
        px, py, width = float(x[i]), float(y[i]), width_of(texts[i], 10.5)
        best: tuple[float, tuple] | None = None
        for rank, (at, base, anchor) in enumerate(_beside(px, py, px > (frame.x.start + frame.x.end) / 2)):
            left = at - width * {"start": 0, "middle": 0.5, "end": 1}[anchor]
            box = (left, base - 9, left + width, base + 2)
            blocked = any(_cross(box, other) for other in taken) or any(_cross(box, m) for m in marks if m != own)
            if blocked or not (frame.inside(box[0], box[1]) and frame.inside(box[2], box[3])):
                continue
            hidden = ((x > box[0] - 3) & (x < box[2] + 3) & (y > box[1] - 3) & (y < box[3] + 3)).sum()
            if best is None or hidden + 0.01 * rank < best[0]:
                best = (hidden + 0.01 * rank, (box, at, base, anchor))
        if best is not None:
            box, at, base, anchor = best[1]
            taken.append(box)
            parts.append(label(at, base, texts[i], anchor, INK, 10.5))
    # A pale edge keeps letters readable where they lie over points.
    halo = 'stroke="#fff" stroke-width="3" stroke-opacity="0.8" stroke-linejoin="round" paint-order="stroke"'
    return f'<g class="names" {halo}>{"".join(parts)}</g>'


def _beside(x: Number, y: Number, turned: bool) -> list[tuple[float, float, str]]:
    """Places for a name beside a point, the most natural first: place, base line and anchor."""
    sides = [(x + 6, "start"), (x - 6, "end")]
    places = [(at, y + dy, anchor) for dy in (3.5, -6, 12) for at, anchor in (sides[::-1] if turned else sides)]
    return [*places, (x, y - 8, "middle"), (x, y + 16, "middle")]


def _cross(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
