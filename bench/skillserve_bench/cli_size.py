"""The command `skillserve bench memory`: what a catalogue's size costs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from skillserve.flags import Json, with_settings
from skillserve.settings import Settings
from skillserve_bench.cli_reports import Note, Out, conclude, report_files
from skillserve_bench.environment import observe
from skillserve_bench.scenarios.memory import measure_memory

__all__ = ["memory"]


@with_settings("bench.rows", "bench.most_growth", "bench.seed")
def memory(
    repository: Annotated[Path, typer.Option(help="model repository with the embedder; computed in process, on CPUs")],
    scratch: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="folder for catalogues and vectors, removed in the end"),
    ] = None,
    out: Out = None,
    note: Note = None,
    *,
    settings: Settings,
    as_json: Json = False,
) -> None:
    """Embed catalogues of several sizes: does batch scoring need constant memory?"""
    files = report_files(out)
    environment = observe(("pyarrow",))
    findings = measure_memory(repository, scratch=scratch, settings=settings.bench)
    conclude(findings, environment, files, note, as_json=as_json)
