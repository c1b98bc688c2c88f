"""What all commands that measure have in common: which server they ask, where their report goes, how they end."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from skillserve.errors import ConfigError
from skillserve.settings import Settings
from skillserve.settings.client import TLS_FIELDS
from skillserve_bench.environment import Environment, portable_command
from skillserve_bench.report import Findings, Report, check_files, deliver
from skillserve_bench.server import Server, given_server, started_server

__all__ = ["SERVER", "Note", "Out", "Repository", "conclude", "report_files", "served_or_given"]

SERVER = ("client.url", *(f"client.{name}" for name in TLS_FIELDS))
"""How a server that is not started here is reached."""

Repository = Annotated[
    Path, typer.Option(help="model repository with the packed embedder; served for the occasion unless there is a url")
]

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
    findings: Findings,
    environment: Environment,
    files: Sequence[Path],
    notes: Sequence[str] | None,
    *,
    as_json: bool,
    failure: ConfigError | None = None,
) -> None:
    """Deliver the report; exit 1 if the answers were wrong. The environment is that of the beginning.

    A `failure` to write something else is raised when the report is delivered.
    """
    report = Report(
        findings=findings,
        environment=environment,
        command=portable_command(sys.argv[1:]),
        notes=tuple(notes or ()),
    )
    deliver(report, files=files, as_json=as_json, failure=failure)
    if not findings.passed:
        raise typer.Exit(1)


@contextmanager
def served_or_given(repository: Path, settings: Settings) -> Iterator[Server]:
    """The server whose address was given, in whichever way, else one that is started for the occasion."""
    if "url" in settings.client.model_fields_set:
        yield given_server(settings.client)
    else:
        with started_server(repository) as server:
            yield server
