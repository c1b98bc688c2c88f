"""The command `skillserve bench capacity`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from skillserve.flags import Json, with_settings
from skillserve.settings import Settings
from skillserve_bench.cli_reports import Note, Out, conclude, report_files
from skillserve_bench.environment import observe
from skillserve_bench.scenarios.capacity import measure_capacity

__all__ = ["capacity"]


@with_settings("capacity", "index.uri")
def capacity(
    repository: Annotated[
        Path | None,
        typer.Option(help="model repository whose embedder is measured, in process, on skills of --data"),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="folder in SkillRet's layout; skills of its test split are embedded")
    ] = None,
    bundles: Annotated[
        Path | None, typer.Option(help="folder of bundles whose vectors are measured with; not set: drawn clusters")
    ] = None,
    scratch: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="folder for vectors and indexes, removed in the end"),
    ] = None,
    out: Out = None,
    note: Note = None,
    *,
    settings: Settings,
    as_json: Json = False,
) -> None:
    """Compute machines, hours and memory for many skills, by kind of index, from rates that are measured here."""
    files = report_files(out)
    environment = observe(("faiss-cpu", "pymilvus", "milvus-lite", "pyarrow"))
    findings = measure_capacity(repository=repository, data=data, bundles=bundles, scratch=scratch, settings=settings)
    conclude(findings, environment, files, note, as_json=as_json)
