"""The command `skillserve bench crosscheck`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from skillserve.flags import Json, with_settings
from skillserve.settings import Settings
from skillserve_bench.cli_reports import SERVER, Note, Out, Repository, conclude, report_files, served_or_given
from skillserve_bench.environment import observe
from skillserve_bench.scenarios.crosscheck import run_crosscheck

__all__ = ["crosscheck"]


@with_settings(*(f"bench.{name}" for name in ("rounds", "num_clients", "num_workers", "seed")), *SERVER)
def crosscheck(
    repository: Repository,
    perf_analyzer: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="NVIDIA's perf_analyzer")],
    tokens: Annotated[int, typer.Option(min=2, help="length of every sequence")] = 128,
    seconds: Annotated[float, typer.Option(min=1, help="how long our own generator sends, each round")] = 15.0,
    out: Out = None,
    note: Note = None,
    *,
    settings: Settings,
    as_json: Json = False,
) -> None:
    """Measure one load with our generator and with NVIDIA's, and compare what they see."""
    files = report_files(out)
    environment = observe(("hdrhistogram", "grpcio"))
    with served_or_given(repository, settings) as server:
        findings = run_crosscheck(
            server,
            repository=repository,
            perf_analyzer=perf_analyzer,
            tokens=tokens,
            seconds=seconds,
            settings=settings.bench,
        )
    conclude(findings, environment, files, note, as_json=as_json)
