"""The command `skillserve bench sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from skillserve.console import talk
from skillserve.flags import Json, with_settings
from skillserve.recommendation import write_recommendation
from skillserve.settings import Settings
from skillserve_bench.cli_reports import Note, Out, conclude, report_files
from skillserve_bench.environment import observe
from skillserve_bench.report import require_place, unwritten
from skillserve_bench.scenarios.sweep import measure_sweep

__all__ = ["sweep"]

_RECOMMENDATION = {"what": "recommendation", "option": "--recommend-to"}


@with_settings(
    "sweep",
    "bench.num_clients",
    "bench.num_workers",
    "bench.seed",
    "index.token_embeddings",
    "client.timeout_s",
    "client.num_in_flight",
)
def sweep(
    repository: Annotated[
        list[Path],
        typer.Option(help="model repository; once for each precision. Each is served anew for every point"),
    ],
    data: Annotated[Path, typer.Option(help="folder in SkillRet's layout; its test split is indexed and searched")],
    recommend_to: Annotated[
        Path | None,
        typer.Option(
            help="write what `skillserve serve --profile` is to set into this JSON file; it looks for "
            "recommendation.json in its repository"
        ),
    ] = None,
    out: Out = None,
    note: Note = None,
    *,
    settings: Settings,
    as_json: Json = False,
) -> None:
    """Measure a grid of settings: quality against latency and throughput, Pareto fronts, a recommendation."""
    files = report_files(out)
    if recommend_to:
        require_place(recommend_to, **_RECOMMENDATION)
    environment = observe(("hdrhistogram", "grpcio"))
    found = measure_sweep(repository, data, settings=settings, environment=environment)
    failure = None
    if recommend_to and found.recommendation:
        try:
            write_recommendation(recommend_to, found.recommendation)
            talk(f"Recommendation written to {recommend_to}")
        except OSError as error:
            failure = unwritten(recommend_to, error, **_RECOMMENDATION)
    elif recommend_to:
        talk(f"Nothing can be recommended, see the report: {recommend_to} is not written.")
    conclude(found.findings, environment, files, note, as_json=as_json, failure=failure)
