"""Pieces of a self-contained HTML page: style, tables, sections. Nothing here knows about metrics."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

__all__ = ["document", "figures", "number", "pairs", "prose", "section", "table"]

_STYLE = """
:root{--ink:#22282e;--soft:#5a646e;--line:#dde2e6;--paper:#fff;--wash:#f5f7f8;--blue:#0072B2}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);
  font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1060px;margin:0 auto;padding:40px 28px 80px}
h1{font-size:1.65rem;line-height:1.2;margin:0 0 .2rem;letter-spacing:-.01em}
h2{font-size:1.15rem;margin:2.6rem 0 .5rem;padding-top:1rem;border-top:1px solid var(--line)}
h3{font-size:.98rem;margin:1.5rem 0 .3rem}
p{margin:.45rem 0;max-width:80ch}
.soft{color:var(--soft)} .small{font-size:.86rem}
.verdict{background:var(--wash);border-left:4px solid var(--blue);padding:16px 22px;margin:22px 0}
.verdict p{margin:.7rem 0 0;font-size:1.06rem} .verdict p:first-child{margin-top:0}
.verdict .lead{font-size:1.28rem;line-height:1.35;font-weight:600}
.verdict .small{font-size:.86rem;margin:.1rem 0 0}
.scroll{overflow-x:auto;margin:.7rem 0;-webkit-overflow-scrolling:touch}
table{border-collapse:separate;border-spacing:0;font-size:.86rem;font-variant-numeric:tabular-nums;width:100%}
th,td{padding:6px 10px;text-align:right;vertical-align:top;border-bottom:1px solid var(--line)}
th{font-weight:600;color:var(--soft);white-space:nowrap}
thead th{border-bottom:1.5px solid var(--soft);vertical-align:bottom}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:var(--paper);padding-left:0}
td.text,th.text{text-align:left;white-space:normal}
td b{font-weight:700}
td .range{display:block;color:var(--soft);font-size:.78rem;white-space:nowrap;font-weight:400}
th.primary,td.primary{color:var(--blue)}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(290px,1fr));gap:22px 28px;margin:.8rem 0}
figure{margin:0;min-width:0} figure svg{width:100%;height:auto;max-width:460px;display:block}
figcaption{font-size:.88rem;font-weight:600;margin-bottom:4px}
figcaption span{font-weight:400;color:var(--soft)}
dl{display:grid;grid-template-columns:minmax(120px,max-content) 1fr;gap:3px 22px;margin:.6rem 0}
dl{font-size:.88rem}
dt{color:var(--soft)} dd{margin:0;overflow-wrap:anywhere}
details{margin:.7rem 0} summary{cursor:pointer;color:var(--blue)}
@media(max-width:600px){
  main{padding:22px 16px 50px} h1{font-size:1.35rem} .verdict{padding:13px 15px}
  .verdict .lead{font-size:1.1rem} .verdict p{font-size:1rem}
  table{font-size:.8rem} th,td{padding:5px 6px} td .range{font-size:.72rem}
  td:first-child{min-width:104px;max-width:150px} td.text{min-width:130px}
  dl{grid-template-columns:1fr;gap:0} dd{margin-bottom:7px}
}
@media print{
  body{font-size:10.5pt} main{max-width:none;padding:0} h2,h3{break-after:avoid}
  figure,tr,.verdict{break-inside:avoid} .scroll{overflow:visible}
  table{font-size:7.4pt} th,td{padding:2px 4px} th:first-child,td:first-child{position:static}
  th{white-space:normal} td .range{font-size:6.2pt} details.screen{display:none}
  .figures{grid-template-columns:repeat(3,1fr);gap:12px}
}
"""


def number(value: float) -> str:
    """A number in three digits or so; an en dash where it is missing."""
    if value is None or not math.isfinite(value):
        return "–"
    size = abs(value)
    if size >= 1e5 or 0 < size < 5e-4:
        text = f"{value:.1e}"
    else:
        text = f"{value:.{4 if 0 < size < 0.01 else 3 if size < 10 else 1 if size < 1000 else 0}f}"
    return text.replace("-", "−") if float(text) != 0 else text.lstrip("-")


def prose(text: str, kind: str = "") -> str:
    """A paragraph of plain text."""
    return f'<p class="{kind}">{html.escape(text)}</p>' if kind else f"<p>{html.escape(text)}</p>"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], text: Sequence[int] = (), primary: int = -1) -> str:
    """A table; cells are HTML, already escaped.

    Args:
        header: names of columns, HTML.
        rows: cells.
        text: columns of running text, to the left.
        primary: a column in colour.
    """

    def kind(column: int) -> str:
        names = [*(["text"] if column in text else []), *(["primary"] if column == primary else [])]
        return f' class="{" ".join(names)}"' if names else ""

    head = "".join(f'<th scope="col"{kind(i)}>{cell}</th>' for i, cell in enumerate(header))
    body = "".join(
        "<tr>" + "".join(f"<td{kind(i)}>{cell}</td>" for i, cell in enumerate(row)) + "</tr>\n" for row in rows
    )
    head, body = f"<thead><tr>{head}</tr></thead>\n", f"<tbody>{body}</tbody>"
    return f'<div class="scroll" tabindex="0"><table>{head}{body}</table></div>'


def pairs(items: Mapping[str, object]) -> str:
    """Names and values, as plain text."""
    rows = "".join(f"<dt>{html.escape(str(k))}</dt><dd>{html.escape(_flat(v))}</dd>" for k, v in items.items())
    return f"<dl>{rows}</dl>"


def _flat(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {_flat(v)}" for k, v in value.items()) or "none"
    if isinstance(value, (list, tuple, set)):
        return ", ".join(map(_flat, value)) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def figures(items: Sequence[tuple[str, str, str]]) -> str:
    """Figures side by side: title, remark and SVG of each."""
    parts = []
    for title, remark, svg in items:
        remark = f" <span>{html.escape(remark)}</span>" if remark else ""
        parts.append(f"<figure><figcaption>{html.escape(title)}{remark}</figcaption>{svg}</figure>")
    return f'<div class="figures">{"".join(parts)}</div>'


def section(title: str, *parts: str) -> str:
    """A section with a heading; its parts are HTML."""
    return f"<section><h2>{html.escape(title)}</h2>\n{''.join(parts)}</section>\n"


def document(title: str, *parts: str) -> str:
    """A whole page that loads nothing from anywhere."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style></head>\n"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )
