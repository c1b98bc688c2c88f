"""The commands about batch scoring: `skillserve bench score` and `skillserve bench memory`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from skillserve.flags import Json, with_settings
from skillserve.settings import Settings
from skillserve_bench.cli_reports import SERVER, Note, Out, Repository, conclude, report_files, served_or_given
from skillserve_bench.environment import observe
from skillserve_bench.peers.sentence_transformers import PACKAGES
from skillserve_bench.scenarios.memory import measure_memory
from skillserve_bench.scenarios.score import measure_score

__all__ = ["memory", "score"]


@with_settings("bench.rounds", "bench.seed", *SERVER)
def score(
    repository: Repository,
    catalogue: Annotated[Path, typer.Option(help="JSONL(.gz) or Parquet file of skills, or a folder of SKILL.md")],
    kills: Annotated[
        int, typer.Option(min=0, help="kills of runs that go on, spread over the kinds of job; 0 for none")
    ] = 50,
    data: Annotated[
        Path | None,
        typer.Option(help="folder in SkillRet's layout; its test requests are ranked and paired, and that is killed"),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(help="weights folder that the repository was exported from, for sentence-transformers"),
    ] = None,
    out: Out = None,
    note: Note = None,
    *,
    settings: Settings,
    as_json: Json = False,
) -> None:
    """Compare batch scoring with the bare graph and with other ways to embed a catalogue, and kill it."""
    files = report_files(out)
    environment = observe((*PACKAGES, "ray"))
    with served_or_given(repository, settings) as server:
        findings = measure_score(
            server,
            repository=repository,
            catalogue=catalogue,
            data=data,
            weights=weights,
            num_kills=kills,
            settings=settings,
        )
    conclude(findings, environment, files, note, as_json=as_json)


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
