"""Pieces of a self-contained HTML page: style, tables, sections. Nothing here knows about metrics."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Collection, Mapping, Sequence

__all__ = [
    "bullets",
    "contents",
    "document",
    "figures",
    "folded",
    "name_of",
    "number",
    "pairs",
    "prose",
    "section",
    "table",
]

_STYLE = """
:root{--ink:#22282e;--soft:#5a646e;--line:#dde2e6;--paper:#fff;--wash:#f5f7f8;--blue:#0072B2}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);
  font:16px/1.55 -apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1240px;margin:0 auto;padding:40px 28px 80px}
h1{font-size:1.65rem;line-height:1.2;margin:0 0 .2rem;letter-spacing:-.01em}
h2{font-size:1.15rem;margin:2.6rem 0 .5rem;padding-top:1rem;border-top:1px solid var(--line)}
h3{font-size:.98rem;margin:1.7rem 0 .3rem} h4{font-size:.86rem;margin:1rem 0 .1rem;color:var(--soft)}
p{margin:.45rem 0;max-width:80ch} ul{margin:.45rem 0;padding-left:1.2rem;max-width:80ch}
a{color:var(--blue)}
.soft{color:var(--soft)} .small{font-size:.86rem}
nav{font-size:.86rem;line-height:1.9;margin:0 0 1rem} nav a{margin-right:1.1em;white-space:nowrap}
.verdict{background:var(--wash);border-left:4px solid var(--blue);padding:16px 22px;margin:22px 0}
.verdict p{margin:.7rem 0 0;font-size:1.06rem} .verdict p:first-child{margin-top:0}
.verdict .lead{font-size:1.28rem;line-height:1.35;font-weight:600}
.verdict .small{font-size:.86rem;margin:.1rem 0 0}
.scroll{overflow-x:auto;margin:.7rem 0;-webkit-overflow-scrolling:touch}
table{border-collapse:separate;border-spacing:0;font-size:.86rem;font-variant-numeric:tabular-nums;width:100%}
th,td{padding:5px 9px;text-align:right;vertical-align:top;border-bottom:1px solid var(--line)}
th{font-weight:600;color:var(--soft)}
thead th{border-bottom:1.5px solid var(--soft);vertical-align:bottom}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:var(--paper);padding-left:0}
td.text,th.text{text-align:left;white-space:normal}
td b{font-weight:700}
td .range,th .range{display:block;color:var(--soft);font-size:.9em;white-space:nowrap;font-weight:400}
th.primary,td.primary,tr.primary td:first-child{color:var(--blue)} tr.primary td:first-child{font-weight:600}
tr.group td{color:var(--soft);font-size:.9em;white-space:nowrap;padding-top:12px;padding-bottom:3px}
th.faded,td.faded,td.faded .range{color:#868f98;font-style:italic} td.faded b{font-weight:400}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(290px,1fr));gap:22px 28px;margin:.8rem 0}
.figures.wide{grid-template-columns:1fr} .figures.wide svg{max-width:540px}
figure{margin:0;min-width:0} figure svg{width:100%;height:auto;max-width:400px;display:block;overflow:visible}
svg text{font-family:inherit} svg.pick{cursor:crosshair;touch-action:manipulation}
svg [data-k].on{stroke:#22282e;stroke-width:2.2;fill-opacity:1}
figcaption{font-size:.88rem;font-weight:600;margin-bottom:4px}
figcaption span{font-weight:400;color:var(--soft)}
.told{font-size:.82rem;color:var(--soft);margin:2px 0 0;min-height:1.5em;overflow-wrap:anywhere}
dl{display:grid;grid-template-columns:minmax(120px,max-content) 1fr;gap:3px 22px;margin:.6rem 0}
dl{font-size:.88rem}
dt{color:var(--soft)} dd{margin:0;overflow-wrap:anywhere}
details{margin:.7rem 0} summary{cursor:pointer;color:var(--blue)}
@media(max-width:600px){
  main{padding:22px 16px 50px} h1{font-size:1.35rem} .verdict{padding:13px 15px}
  .verdict .lead{font-size:1.1rem} .verdict p{font-size:1rem}
  table{font-size:.8rem} th,td{padding:5px 6px}
  th{min-width:74px} td:first-child{min-width:104px;max-width:128px;overflow-wrap:anywhere} td.text{min-width:130px}
  dl{grid-template-columns:1fr;gap:0} dd{margin-bottom:7px}
}
@media print{
  body{font-size:10.5pt} main{max-width:none;padding:0} h2,h3,h4{break-after:avoid}
  figure,tr,p,li,dd,.verdict{break-inside:avoid} tr.group{break-after:avoid} .scroll{overflow:visible}
  table{font-size:8pt} th,td{padding:2px 4px} th:first-child,td:first-child{position:static}
  section>p.soft,summary{break-after:avoid} details.screen,.told,nav{display:none}
  .figures{grid-template-columns:repeat(2,1fr);gap:12px 20px} .figures.wide svg{max-width:420px}
}
"""

# Names the point nearest to a click, a tap or the pointer, and marks the same condition in every such figure. What is
# folded but belongs on paper is opened for printing.
_SCRIPT = """
(function(){
  var marked=[];
  document.querySelectorAll('svg.pick').forEach(function(svg){
    var points=Array.prototype.slice.call(svg.querySelectorAll('[data-k]'));
    var told=svg.parentNode.querySelector('.told'),own=svg.classList.contains('own');
    function nearest(e){
      var found=null,least=22*22;
      points.forEach(function(p){
        var b=p.getBoundingClientRect(),x=b.left+b.width/2-e.clientX,y=b.top+b.height/2-e.clientY,d=x*x+y*y;
        if(d<least){least=d;found=p;}
      });
      return found;
    }
    function show(e){
      var p=nearest(e);
      if(!p||!told)return;
      marked.forEach(function(m){m.classList.remove('on');});
      var key='[data-k="'+p.getAttribute('data-k')+'"]';
      marked=own?[p]:Array.prototype.slice.call(document.querySelectorAll('svg.pick:not(.own) '+key));
      marked.forEach(function(m){m.classList.add('on');});
      told.textContent=p.querySelector('title').textContent;
    }
    svg.addEventListener('click',show);
    svg.addEventListener('pointermove',show);
  });
  var opened=[];
  window.addEventListener('beforeprint',function(){
    opened=Array.prototype.slice.call(document.querySelectorAll('details.paper:not([open])'));
    opened.forEach(function(d){d.open=true;});
  });
  window.addEventListener('afterprint',function(){opened.forEach(function(d){d.open=false;});});
})();
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


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str] | str],
    text: Collection[int] = (),
    primary: int = -1,
    marked: Collection[int] = (),
    faded: Collection[int] = (),
) -> str:
    """A table; cells are HTML, already escaped.

    Args:
        header: names of columns, HTML.
        rows: cells; a string is the heading of the rows below it.
        text: columns of running text, to the left.
        primary: a column in colour.
        marked: rows in colour.
        faded: columns not to be relied on, grey.
    """
    kinds = []
    for i in range(len(header)):
        each = [name for name, of in (("text", text), ("primary", (primary,)), ("faded", faded)) if i in of]
        kinds.append(f' class="{" ".join(each)}"' if each else "")
    body = []
    for number_of, row in enumerate(rows):
        if isinstance(row, str):
            rest = "<td></td>" * (len(header) - 1)
            body.append(f'<tr class="group"><td>{row}</td>{rest}</tr>\n')
            continue
        cells = "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True))
        body.append(f"<tr{' class=primary' if number_of in marked else ''}>{cells}</tr>\n")
    head = "".join(f'<th scope="col"{kind}>{cell}</th>' for kind, cell in zip(kinds, header, strict=True))
    head, rest = f"<thead><tr>{head}</tr></thead>\n", f"<tbody>{''.join(body)}</tbody>"
    return f'<div class="scroll" tabindex="0"><table>{head}{rest}</table></div>'


def name_of(text: str) -> str:
    """A name, escaped, that may break after underscores and hyphens, which narrow columns need."""
    return html.escape(text).replace("_", "_<wbr>").replace("-", "-<wbr>")


def folded(summary: str, *parts: str, paper: bool = False) -> str:
    """Parts that open at a click; ``paper`` tells whether they are printed."""
    kind = "paper" if paper else "screen"
    return f'<details class="{kind}"><summary>{html.escape(summary)}</summary>{"".join(parts)}</details>'


def bullets(lines: Sequence[str]) -> str:
    """A list of plain texts."""
    return f"<ul>{''.join(f'<li>{html.escape(text)}</li>' for text in lines)}</ul>" if lines else ""


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


def figures(items: Sequence[tuple[str, str, str]], wide: bool = False) -> str:
    """Figures side by side, or each as wide as the page: title, remark and SVG of each.

    A figure whose points can be picked gets a line that names the point.
    """
    parts = []
    for title, remark, svg in items:
        remark = f" <span>{html.escape(remark)}</span>" if remark else ""
        told = '<p class="told" aria-live="polite">Point at or tap a dot.</p>' if 'class="pick' in svg else ""
        parts.append(f"<figure><figcaption>{html.escape(title)}{remark}</figcaption>{svg}{told}</figure>")
    return f'<div class="figures{" wide" if wide else ""}">{"".join(parts)}</div>'


def section(title: str, *parts: str) -> str:
    """A section with a heading; its parts are HTML."""
    anchor = _anchor(title)
    return f'<section id="{anchor}"><h2>{html.escape(title)}</h2>\n{"".join(parts)}</section>\n'


def contents(sections: Sequence[str]) -> str:
    """Links to sections of the page, from ``section``; empty ones have none."""
    found = [re.match(r'<section id="([^"]*)"><h2>(.*?)</h2>', text) for text in sections]
    links = " ".join(f'<a href="#{m[1]}">{m[2]}</a>' for m in found if m)
    return f'<nav aria-label="Sections">{links}</nav>'


def _anchor(title: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in title.lower())


def document(title: str, *parts: str) -> str:
    """A whole page that loads nothing from anywhere."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style></head>\n"
        f"<body><main>{''.join(parts)}</main>\n<script>{_SCRIPT}</script></body></html>\n"
    )
