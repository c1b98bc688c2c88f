"""What all commands that measure have in common: where their report goes, and how they end."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from skillserve_bench.environment import Environment, portable_command
from skillserve_bench.report import Findings, Report, check_files, deliver

__all__ = ["Note", "Out", "conclude", "report_files"]

Out = Annotated[
    list[Path] | None,
    typer.Option(help="write the report to this .md, .html or .json file; may be given more than once"),
]
Note = Annotated[list[str] | None, typer.Option(help="add a line to the report; may be given more than once")]


def report_files(out: Sequence[Path] | None) -> tuple[Path, ...]:
    """Where the report goes, checked before anything is measured."""
    files = tuple(out or ())
    check_files(files)
    return files


def conclude(
    findings: Findings, environment: Environment, files: Sequence[Path], notes: Sequence[str] | None, *, as_json: bool
) -> None:
    """Deliver the report; exit 1 if the answers were wrong. The environment is that of the beginning."""
    report = Report(
        findings=findings,
        environment=environment,
        command=portable_command(sys.argv[1:]),
        notes=tuple(notes or ()),
    )
    deliver(report, files=files, as_json=as_json)
    if not findings.passed:
        raise typer.Exit(1)
