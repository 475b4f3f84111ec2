"""The page of an analysis: what each part found, its figures, and the first rows of its tables."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from scbig.analysis.section import Section
from scbig.evaluation import page

__all__ = ["picture", "preview", "render"]

_HEAVIEST = 250_000  # bytes of an SVG in the page; what is heavier stands there as PNG
_ROWS = 12  # of a table in the page
_STYLE = "width:100%;max-width:{}px;height:auto;display:block"


def render(title: str, lead: str, facts: Mapping[str, object], parts: Mapping[str, Section | str], folder: Path) -> str:
    """The whole page as HTML that loads nothing; links lead to tables and figures beside it.

    Args:
        title: of the page.
        lead: what it is about, in a sentence or two.
        facts: what the analysis rests on, shown at the end.
        parts: by part its section, or the reason why it does not apply.
        folder: where ``PART/NAME.svg`` and ``PART/NAME.png`` of the figures are.
    """
    sections = [
        _absent(part, found) if isinstance(found, str) else _section(part, found, Path(folder, part))
        for part, found in parts.items()
    ]
    about = page.section("What this rests on", page.pairs(facts))
    return page.document(
        title,
        f"<h1>{html.escape(title)}</h1>",
        page.prose(lead, "soft"),
        page.contents([*sections, about]),
        *sections,
        about,
    )


def _absent(part: str, reason: str) -> str:
    return page.section(part.capitalize(), page.prose(f"Not in this run: {reason.rstrip('.')}.", "soft"))


def _section(part: str, found: Section, folder: Path) -> str:
    drawn = [picture(folder / f"{figure.name}.svg", figure.caption) for figure in found.figures]
    figures = "".join(f"<figure>{image}<p class='small soft'>{html.escape(text)}</p></figure>" for image, text in
                      zip(drawn, (figure.caption for figure in found.figures), strict=True))  # fmt: skip
    grid = f'<div style="display:grid;gap:26px;margin:1rem 0">{figures}</div>' if figures else ""
    tables = "".join(preview(part, name, table) for name, table in found.tables.items())
    return page.section(found.title, page.prose(found.text), grid, tables)


def picture(svg: Path, told: str) -> str:
    """A drawing as an image within the page: the SVG, or the PNG beside it where the SVG is heavy.

    Args:
        svg: the file; the PNG has the same name.
        told: for those who cannot see it.
    """
    file = svg if svg.stat().st_size <= _HEAVIEST else svg.with_suffix(".png")
    kind = "image/svg+xml" if file.suffix == ".svg" else "image/png"
    data = base64.b64encode(file.read_bytes()).decode("ascii")
    style = _STYLE.format(_width(svg))
    return f'<img alt="{html.escape(told, quote=True)}" style="{style}" src="data:{kind};base64,{data}">'


def _width(svg: Path) -> int:
    """Width of a drawing on the page: letters of 7 points are then a little larger than those of captions."""
    head = svg.read_text(encoding="utf-8")[:2000]
    points = float(head.split("<svg", 1)[1].split('width="', 1)[1].split("pt", 1)[0])
    return round(points * 1.75)


def preview(part: str, name: str, table: pd.DataFrame) -> str:
    """The first rows of a table, folded, with a link to the file."""
    shown = table.head(_ROWS)
    numeric = [i for i, kind in enumerate(table.dtypes) if pd.api.types.is_numeric_dtype(kind)]
    cells = [[_cell(value) for value in row] for row in shown.itertuples(index=False)]
    text = [i for i in range(table.shape[1]) if i not in numeric]
    link = f'<p class="small"><a href="{part}/{name}.csv">{part}/{name}.csv</a>: {len(table):,} rows</p>'
    body = page.table([html.escape(str(c)) for c in table.columns], cells, text=text) if len(table) else ""
    return page.folded(f"Table: {name.replace('_', ' ')}", link, body)


def _cell(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return html.escape("" if value is None else str(value))
    return f"{value:,}" if isinstance(value, int) else page.number(value)
