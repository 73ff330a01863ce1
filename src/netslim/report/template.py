"""The frame of a report page: style sheet, document, and the parts that pages have in common."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light dark; --ink: #22262b; --soft: #5d6570; --paper: #ffffff;
  --line: #dfe3e8; --fill: #f5f6f8; --blue: #0072b2; --orange: #d55e00; --pale: #c3c9d1;
  --amber: #b35c00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7eb; --soft: #a0a8b3; --paper: #15181c;
  --line: #333a42; --fill: #1e2329; --blue: #56b4e9; --orange: #f0883e; --pale: #4b545f;
  --amber: #f0a040; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial,
  sans-serif; }
main { max-width: 66rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .6rem; }
h3 { font-size: 1rem; margin: 1.6rem 0 .5rem; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .7rem; padding-bottom: .3rem;
  border-bottom: 1px solid var(--line); }
.lead { font-size: 1.1rem; max-width: 46rem; margin: 0 0 1.2rem; }
.small { font-size: .85rem; color: var(--soft); max-width: 52rem; }
.remark { margin: .6rem 0; padding: .55rem .9rem; background: var(--fill);
  border-left: 4px solid var(--blue); }
.remark.warning { border-color: var(--amber); }
.remark.warning strong { color: var(--amber); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .5rem .7rem; text-align: right; border-bottom: 1px solid var(--line);
  vertical-align: top; white-space: nowrap; }
thead th { font-size: .85rem; font-weight: 600; color: var(--soft); }
th:first-child { text-align: left; padding-left: 0; white-space: normal; }
tbody th { font-weight: 600; }
td b { font-weight: 400; }
td span { display: block; font-size: .85rem; color: var(--soft); }
td small { color: var(--soft); }
tr.last td b { font-weight: 700; }
tr.group th { padding-top: 1rem; font-size: .85rem; color: var(--soft); }
.bar { display: block; height: 3px; max-width: 100%; margin: .25rem 0 0 auto;
  background: var(--blue); border-radius: 2px; }
.cards td small { display: block; font-size: .8rem; }
.scroll { overflow-x: auto; }
.scroll th { white-space: nowrap !important; }
th:last-child, td:last-child { padding-right: 0; }
.single { max-width: 44rem; }
.figures { columns: 2; column-gap: 2rem; }
figure { margin: 0 0 1.6rem; break-inside: avoid; }
figure svg { display: block; width: 100%; height: auto; }
figure image { image-rendering: pixelated; }
.graph { overflow: auto; max-height: 36rem; border: 1px solid var(--line); border-radius: 4px; }
.graph svg { width: auto; max-width: none; }
ol { padding-left: 1.4rem; } li { margin: .2rem 0; }
details { margin: .6rem 0; }
figcaption { font-size: .85rem; color: var(--soft); margin-top: .4rem; }
pre { background: var(--fill); padding: .8rem 1rem; overflow-x: auto; font-size: .85rem;
  border-radius: 4px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.2rem; font-size: .9rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
summary { cursor: pointer; }
@media screen and (max-width: 46rem) {
  main { padding: 1.2rem 1rem 3rem; }
  .figures { columns: 1; }
  .cards thead { display: none; }
  .cards, .cards tbody, .cards tr, .cards th, .cards td { display: block; padding: 0; border: 0; }
  .cards tr { padding: .7rem 0; border-bottom: 1px solid var(--line); }
  .cards td { display: grid; grid-template-columns: 8.5rem minmax(0, 1fr); padding: .12rem 0;
    text-align: left; white-space: normal; }
  .cards td::before { content: attr(data-label); color: var(--soft); font-size: .9rem; }
  .cards td span, .cards td small { display: inline-block; margin-left: .5rem; }
  .cards .bar { grid-column: 2; margin: 0 0 .2rem; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .4rem; }
}
@media print {
  :root { color-scheme: light; --ink: #22262b; --soft: #5d6570; --paper: #ffffff; --line: #dfe3e8;
    --fill: #f5f6f8; --blue: #0072b2; --orange: #d55e00; --pale: #c3c9d1; --amber: #b35c00; }
  body { font-size: 11px; }
  th, td { padding: .35rem .4rem; }
  main { max-width: none; padding: 0; }
  .remark, pre { border: 1px solid var(--line); }
  .graph { overflow: visible; max-height: none; border: 0; }
  .graph svg { max-width: 100%; max-height: 22cm; }
  pre { white-space: pre-wrap; }
  h2, h3, thead { break-after: avoid; }
  details::details-content { content-visibility: visible; display: block; }
}
"""

PAGE = """<!DOCTYPE html>
<html lang="en-GB">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def document(title: str, parts: Iterable[str]) -> str:
    """A whole page of these parts, of which empty ones are left out."""
    body = "\n".join(filter(None, parts))
    return PAGE.format(title=escape(title), style=STYLE, body=body)


def header(title: str, lead: str) -> str:
    """The title and, in larger letters, what the page says in a sentence or two (as HTML)."""
    return f"<header><h1>{escape(title)}</h1><p class=lead>{lead}</p></header>"


def unbroken(text: str) -> str:
    """Text as HTML in which no line ends before a percent sign."""
    return escape(text).replace(" %", "&nbsp;%")


def remarks(kind: str, word: str, texts: Iterable[Any]) -> str:
    """Texts that stand out, each behind a word in bold; `kind` is `note` or `warning`."""
    lines = []
    for text in texts:
        bold = f"<strong>{word}.</strong>"
        lines.append(f'<p class="remark {kind}" role=note>{bold} {escape(str(text))}</p>')
    return "\n".join(lines)


def section(heading: str, content: str) -> str:
    """A part of the page under a heading; nothing where there is no content."""
    if not content:
        return ""
    return f"<section><h2>{heading}</h2>\n{content}\n</section>"


def figure(name: str, drawing: bytes, caption: str, kind: str = "") -> str:
    """An SVG drawing in the page; its ids are prefixed, as several drawings share one document.

    Args:
        name: of the drawing, within the page.
        drawing: as it is drawn.
        caption: what it shows, for those who do not see it, too.
        kind: `graph` for one that is as large as it is, in a box of its own that scrolls.
    """
    text = drawing.decode()
    svg = text[text.index("<svg") :]
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{escape(caption)}"', 1)
    if kind:
        svg = f'<div class="{kind}" tabindex="0">{svg}</div>'
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>\n"


def facts(named: Mapping[str, str]) -> str:
    """Facts by name, in two columns."""
    rows = (f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in named.items())
    return f"<dl>{''.join(rows)}</dl>"


def folded(summary: str, content: str) -> str:
    """What few ask for, under a line that opens it."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def settings(config: str) -> str:
    """The settings of a run, folded up."""
    return folded("Every setting (config.yaml)", f"<pre><code>{escape(config)}</code></pre>")
