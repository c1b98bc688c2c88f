"""The one place that writes a report: dated Markdown or a page for people, one JSON object for machines."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from skillserve.console import out, print_json, talk
from skillserve.errors import ConfigError
from skillserve.publish import write_text
from skillserve_bench.environment import Environment
from skillserve_bench.page import html_page
from skillserve_bench.processor import Usage

__all__ = [
    "Chart",
    "Findings",
    "Report",
    "Table",
    "check_files",
    "cores",
    "deliver",
    "markdown",
    "require_place",
    "terminal_table",
    "unwritten",
]


_ESCAPED_BAR = "\\|"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One table; every row has as many cells as there are columns."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One picture of a page."""

    title: str
    svg: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What a scenario found out, without a word about where."""

    name: str
    """The command: `quality`, `batching`, `overhead`, `score`, `memory`, `latency`."""
    title: str
    passed: bool
    """Whether answers were right and figures are what they are called. A missed goal of speed is reported, not failed:
    it depends on the machine."""
    summary: Sequence[str]
    """Sentences, the outcome first."""
    tables: Sequence[Table]
    method: Sequence[str]
    """How it was measured, one fact a line."""
    server: str
    """Version of the server that was measured."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """The same as numbers."""
    draw: Callable[[], Sequence[Chart]] = tuple
    """Makes the charts of the page, which take longer than all the rest of a report."""


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


def deliver(report: Report, *, files: Sequence[Path], as_json: bool, failure: ConfigError | None = None) -> None:
    """Print a report on stdout, and write it where `--out` says, in the form that the file's ending names.

    If a file cannot be written, the other ones are, the whole report goes to stdout as JSON, so that no measurement
    is lost, and the first error is raised. So it is with a `failure` to write something that the report has, too.
    """
    for file in files:
        try:
            write_text(file, _FORMS[file.suffix](report))
        except OSError as error:
            failure = failure or unwritten(file, error)
        else:
            talk(f"Report written to {file}")
    if as_json and failure:
        failure.findings = report.to_dict()  # one document, the failure's
    elif as_json or failure:
        print_json(report.to_dict())
    else:
        for sentence in report.findings.summary:
            out.print(sentence, markup=False, soft_wrap=True)
        for table in report.findings.tables:
            out.print(terminal_table(table))
    if failure:
        raise failure


def check_files(files: Sequence[Path]) -> None:
    """Refuse files of unknown endings, or where nothing can be written, before anything is measured."""
    for file in files:
        if file.suffix not in _FORMS:
            raise ConfigError(
                f"report `{file}`",
                got=f"the ending `{file.suffix}`",
                wanted=f"one of {', '.join(_FORMS)}",
                fix="Name another file: the ending of --out says how the report is written.",
            )
        require_place(file)


def require_place(file: Path, *, what: str = "report", option: str = "--out") -> None:
    """Raise ConfigError, in the name of an option, where a file cannot be written."""
    try:
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=file.parent) as trial:
            trial.write(b"report")
    except OSError as error:
        raise unwritten(file, error, what=what, option=option) from error


def unwritten(file: Path, error: OSError, *, what: str = "report", option: str = "--out") -> ConfigError:
    """The error for a file that could not be written, in the name of the option that names it."""
    return ConfigError(
        f"{what} `{file}`",
        got=error.strerror or str(error),
        wanted="room and permission to write it",
        fix=f"Name another place with {option}, or make room.",
    )


def markdown(report: Report) -> str:
    """The whole report as Markdown, ending in one newline."""
    findings = report.findings
    parts = [
        f"# {findings.title}",
        "\n".join(findings.summary),
        *(f"## {table.title}\n\n{_table(table)}" for table in findings.tables),
        f"## How it was measured\n\n{_list([*findings.method, *report.notes])}",
        f"## Where\n\n{_list(_circumstances(report))}",
        f"```\n{report.command}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _circumstances(report: Report) -> list[str]:
    findings, environment = report.findings, report.environment
    versions = ", ".join(f"{name} {version}" for name, version in environment.packages.items())
    machine = [
        environment.processor,
        f"{environment.num_cores} cores",
        f"{environment.memory_gib:.1f} GiB of memory",
        environment.system,
        *environment.gpus,
        *([f"everything at niceness {environment.niceness}"] if environment.niceness else []),
    ]
    return [
        f"Date: {environment.date}; commit {environment.commit}",
        f"Machine: {', '.join(machine)}",
        f"Versions: {findings.server}, Python {environment.python}, {versions}",
    ]


def cores(usage: Usage) -> str:
    """A cell that says whose the cores were: `client / server / others`, for a whole search `search + server`."""
    client, server, others = (
        "?" if share is None else f"{share:.0%}" for share in (usage.client, usage.server, usage.others)
    )
    return f"{client} / {server if usage.search is None else f'{usage.search:.0%} + {server}'} / {others}"


def _table(table: Table) -> str:
    rows = [table.columns, ["---", *("---:" for _ in table.columns[1:])], *table.rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', _ESCAPED_BAR) for cell in row)} |" for row in rows)


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def terminal_table(table: Table) -> RichTable:
    """A table as people see it on stdout."""
    shown = RichTable(title=table.title, box=box.SIMPLE, title_justify="left")
    for i, column in enumerate(table.columns):
        shown.add_column(column, justify="right" if i else "left")
    for row in table.rows:
        shown.add_row(*(Text(cell) for cell in row))
    return shown


def _page(report: Report) -> str:
    return html_page(report, circumstances=_circumstances(report))


def _json(report: Report) -> str:
    return json.dumps(report.to_dict(), ensure_ascii=False, allow_nan=False) + "\n"


_FORMS: dict[str, Callable[[Report], str]] = {".md": markdown, ".html": _page, ".json": _json}
