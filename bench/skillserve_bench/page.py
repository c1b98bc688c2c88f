"""A report as one HTML page: no file, font or script beside it, and the outcome in its first lines."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from skillserve_bench.report import Chart, Report, Table

__all__ = ["html_page"]

_CODE = re.compile(r"`([^`]+)`")
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 76em; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; margin-bottom: .3em; } h2 { font-size: 1.1em; margin: 1.6em 0 .4em; }
.verdict { margin-bottom: 1.4em; padding: .6em 1em; border-left: 6px solid #2f8f4e; background: #f3f8f4; }
.verdict.bad { border-color: #c23b22; background: #fbf1ef; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(32em, 100%), 1fr)); gap: 1.6em; }
figure { margin: 0; } figcaption { font-weight: 600; } img { width: 100%; height: auto; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25em .7em; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th { border-bottom-color: #888; vertical-align: bottom; white-space: normal; }
li { margin: .2em 0; } code { font-size: .93em; overflow-wrap: anywhere; }
"""


def html_page(report: Report, *, circumstances: Sequence[str]) -> str:
    """The whole page."""
    findings = report.findings
    verdict = "verdict" if findings.passed else "verdict bad"
    charts = "".join(map(_figure, findings.draw()))
    parts = [
        f"<h1>{escape(findings.title)}</h1>",
        f'<div class="{verdict}">{"".join(f"<p>{_words(line)}</p>" for line in findings.summary)}</div>',
        f'<div class="charts">{charts}</div>' if charts else "",
        *map(_table, findings.tables),
        f"<h2>How it was measured</h2>{_list([*findings.method, *report.notes])}",
        f"<h2>Where</h2>{_list(circumstances)}<p><code>{escape(report.command)}</code></p>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(findings.title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body></html>\n"
    )


def _words(line: str) -> str:
    """A sentence; what stands between backticks, as in Markdown, is code."""
    return _CODE.sub(r"<code>\1</code>", escape(line))


def _figure(chart: Chart) -> str:
    # As an image and not inline, since charts use the same ids inside.
    data = base64.b64encode(chart.svg.encode()).decode()
    name = escape(chart.title, quote=True)
    return f'<figure><figcaption>{name}</figcaption><img alt="{name}" src="data:image/svg+xml;base64,{data}"></figure>'


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
    return f'<h2>{escape(table.title)}</h2><div class="wide"><table><tr>{head}</tr>{rows}</table></div>'


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{_words(line)}</li>' for line in lines)}</ul>"
