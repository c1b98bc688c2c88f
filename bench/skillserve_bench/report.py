"""The one place that writes a report: dated Markdown for people, one JSON object for machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from skillserve.console import out, print_json, talk
from skillserve.publish import write_text
from skillserve_bench.environment import Environment
from skillserve_bench.processor import Usage

__all__ = ["Findings", "Report", "Table", "cores", "deliver", "markdown"]


_ESCAPED_BAR = "\\|"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One table; every row has as many cells as there are columns."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What a scenario found out, without a word about where."""

    name: str
    """The command: `quality`, `batching`, `overhead`, `score`."""
    title: str
    passed: bool
    """Whether the answers were right. A missed goal of speed is reported, not failed: it depends on the machine."""
    summary: Sequence[str]
    """Sentences, the outcome first."""
    tables: Sequence[Table]
    method: Sequence[str]
    """How it was measured, one fact a line."""
    server: str
    """Version of the server that was measured."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """The same as numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Findings with everything that somebody needs to repeat the measurement."""

    findings: Findings
    environment: Environment
    command: str
    notes: Sequence[str] = ()
    """Whatever the person who measured wants to add."""

    def to_dict(self) -> dict[str, Any]:
        """The report as `--json` prints it."""
        return {
            "benchmark": self.findings.name,
            "passed": self.findings.passed,
            "figures": dict(self.findings.figures),
            "server": self.findings.server,
            "environment": self.environment.to_dict(),
            "command": self.command,
            "notes": list(self.notes),
        }


def deliver(report: Report, *, file: Path | None, as_json: bool) -> None:
    """Write a report where `--out` says, and print it on stdout."""
    if file is not None:
        write_text(file, markdown(report))
        talk(f"Report written to {file}")
    if as_json:
        print_json(report.to_dict())
        return
    for sentence in report.findings.summary:
        out.print(sentence, markup=False, soft_wrap=True)
    for table in report.findings.tables:
        out.print(_for_terminal(table))


def markdown(report: Report) -> str:
    """The whole report as Markdown, ending in one newline."""
    findings, environment = report.findings, report.environment
    versions = ", ".join(f"{name} {version}" for name, version in environment.packages.items())
    machine = [
        environment.processor,
        f"{environment.num_cores} cores",
        f"{environment.memory_gib:.1f} GiB of memory",
        environment.system,
        *([f"everything at niceness {environment.niceness}"] if environment.niceness else []),
    ]
    circumstances = [
        f"Date: {environment.date}; commit {environment.commit}",
        f"Machine: {', '.join(machine)}",
        f"Versions: {findings.server}, Python {environment.python}, {versions}",
    ]
    parts = [
        f"# {findings.title}",
        "\n".join(findings.summary),
        *(f"## {table.title}\n\n{_table(table)}" for table in findings.tables),
        f"## How it was measured\n\n{_list([*findings.method, *report.notes])}",
        f"## Where\n\n{_list(circumstances)}",
        f"```\n{report.command}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def cores(usage: Usage) -> str:
    """A cell that says whose the cores were: `client / server / others`."""
    return " / ".join("?" if share is None else f"{share:.0%}" for share in (usage.client, usage.server, usage.others))


def _table(table: Table) -> str:
    rows = [table.columns, ["---", *("---:" for _ in table.columns[1:])], *table.rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', _ESCAPED_BAR) for cell in row)} |" for row in rows)


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _for_terminal(table: Table) -> RichTable:
    shown = RichTable(title=table.title, box=box.SIMPLE, title_justify="left")
    for i, column in enumerate(table.columns):
        shown.add_column(column, justify="right" if i else "left")
    for row in table.rows:
        shown.add_row(*(Text(cell) for cell in row))
    return shown
