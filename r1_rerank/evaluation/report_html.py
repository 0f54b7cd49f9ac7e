"""A report as one HTML page that needs no other file and no network."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from .plots import Plot
from .report_text import Table, tables

if TYPE_CHECKING:
    from .report import Report

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem; padding: 0 1.2rem; color: #1c2430; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .3rem; }
p { color: #4a5563; margin: .2rem 0 .7rem; max-width: 62rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #e3e7ec; white-space: nowrap; }
th { background: #f4f6f8; position: sticky; top: 0; }
th:first-child, td:first-child { text-align: left; }
tr:hover td { background: #f8fafc; }
table.other td { color: #7a8391; font-style: italic; }
img { max-width: 100%; height: auto; }
nav a { margin-right: 1rem; }
"""


def html_page(report: Report, plots: Sequence[Plot] = ()) -> str:
    """The whole report.

    Args:
        report: What it says.
        plots: Pictures to put into the page, behind its overview.
    """
    first, *rest = tables(report)
    parts = [_section(first), *map(_picture, plots), *map(_section, rest)]
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    titles = [first.title, *(plot.title for plot in plots), *(table.title for table in rest)]
    links = "".join(f'<a href="#{_anchor(title)}">{escape(title)}</a> ' for title in titles)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Evaluation</title><style>{_STYLE}</style></head><body>\n<h1>Evaluation</h1>\n"
        f"<ul>{notes}</ul>\n<nav>{links}</nav>\n{''.join(parts)}</body></html>\n"
    )


def _section(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.head)
    body = "\n".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in table.body)
    kind = ' class="other"' if table.other_data else ""
    return (
        f'<h2 id="{_anchor(table.title)}">{escape(table.title)}</h2>\n<p>{escape(table.note)}</p>\n'
        f'<div class="scroll"><table{kind}><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>\n'
    )


def _picture(plot: Plot) -> str:
    content = base64.b64encode(plot.png).decode("ascii")
    return (
        f'<h2 id="{_anchor(plot.title)}">{escape(plot.title)}</h2>\n<p>{escape(plot.note)}</p>\n'
        f'<img alt="{escape(plot.title)}" src="data:image/png;base64,{content}">\n'
    )


def _anchor(title: str) -> str:
    return "".join(sign if sign.isalnum() else "-" for sign in title.lower())
