"""The command `skillserve evaluate`: systems rank the requests of a collection, and are measured side by side."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer

from skillserve.collection import Collection, Pool, Split, read_collection, read_split
from skillserve.console import print_json, talk
from skillserve.errors import CatalogueError, ConfigError, UsageError
from skillserve.figures import Figures, measure_runs
from skillserve.figures_view import show_all, show_headline
from skillserve.flags import Json, with_settings
from skillserve.records import Run
from skillserve.runs import require_writable, write_run
from skillserve.settings import EvaluateSettings, Settings
from skillserve.systems import SYSTEMS, System, open_system

__all__ = ["check_systems", "evaluate", "rank"]

_PACKAGES = ("skillserve", "numpy", "torch", "transformers", "tokenizers", "bm25s", "faiss-cpu", "tritonclient")
"""Whose versions are reported, where they are installed."""
_MOST_IDS_SHOWN = 20


@with_settings("evaluate", "client")
def evaluate(
    systems: Annotated[
        list[str],
        typer.Argument(
            metavar="SYSTEM...",
            help=f"{'; '.join(kind.help for kind in SYSTEMS.values())}. Others are compared with the first",
        ),
    ],
    data: Annotated[Path | None, typer.Option(help="folder in SkillRet's layout")] = None,
    split: Annotated[Split, typer.Option(help="with --data: whose requests are asked")] = "test",
    pool: Annotated[
        Pool, typer.Option(help="with --data: search the split's skills, or those of all splits")
    ] = "split",
    queries: Annotated[Path | None, typer.Option(help="instead of --data: file of requests")] = None,
    qrels: Annotated[
        Path | None, typer.Option(help="with --queries: judgements; without it, their `skill_ids`")
    ] = None,
    skills: Annotated[Path | None, typer.Option(help="with --queries: file or folder of skills")] = None,
    allow_missing: Annotated[  # noqa: FBT002
        bool, typer.Option("--allow-missing", help="count requests that a run lacks as 0; otherwise an error")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="show all cutoffs, and groups of requests")] = False,  # noqa: FBT002
    run_out: Annotated[Path | None, typer.Option(help="folder into which each system's run is written")] = None,
    *,
    settings: Settings,
    as_json: Json = False,
) -> None:
    """Measure systems on requests whose skills are known, with intervals and paired differences."""
    chosen = settings.evaluate
    check_systems(systems, chosen)
    collection = _collection(data, split, pool, queries, qrels, skills)
    if collection.num_dropped:
        talk(f"{collection.num_dropped} requests without a fitting skill are left out.")
    files = [None if run_out is None else run_out / name for name in _file_names(systems)]
    for file in files:
        if file is not None:
            require_writable(file)
    opened = [open_system(spec, settings) for spec in systems]
    runs: list[Run] = []
    for system, file in zip(opened, files, strict=True):
        talk(f"{system.name} ranks {len(collection.skills):,} skills for {len(collection.queries):,} requests.")
        runs.append(rank(system, collection, chosen, allow_missing=allow_missing))
        if file is not None:
            write_run(file, runs[-1])
    figures = measure_runs(runs, collection, chosen)
    if as_json:
        folder = {"data": str(data), "split": split, "pool": pool}
        named = {"queries": str(queries), "qrels": str(qrels or queries), "skills": str(skills)}
        print_json({"source": folder if data else named} | _report(opened, runs, figures, collection, chosen))
        return
    found = dict(zip(systems, figures, strict=True))
    show_headline(found, collection)
    if full:
        show_all(found)


def check_systems(specs: Sequence[str], settings: EvaluateSettings) -> None:
    """Refuse a system that is named twice, and rankings too short for the cutoffs."""
    if repeated := sorted({spec for spec in specs if specs.count(spec) > 1}):
        raise UsageError("systems", got=f"`{repeated[0]}` twice", wanted="each once", fix="Leave one out.")
    if settings.depth < max(settings.ks):
        raise ConfigError(
            "option --depth",
            got=f"{settings.depth}",
            wanted=f"at least the largest cutoff, {max(settings.ks)}",
            fix="Raise --depth, or lower --cutoffs.",
        )


def _collection(
    data: Path | None, split: Split, pool: Pool, queries: Path | None, qrels: Path | None, skills: Path | None
) -> Collection:
    if data is not None and queries is None and qrels is None and skills is None:
        return read_split(data, split, pool=pool)
    if data is None and queries is not None and skills is not None:
        return read_collection(queries, qrels, [skills])
    raise UsageError(
        "requests to measure with",
        got="--data and files" if data is not None else "no --data, and not both --queries and --skills",
        wanted="a folder in SkillRet's layout, or files",
        fix="Name one: --data FOLDER, or --queries FILE --qrels FILE --skills FILE",
    )


def rank(system: System, collection: Collection, settings: EvaluateSettings, *, allow_missing: bool = False) -> Run:
    """All requests ranked by one system; CatalogueError if it leaves some out, which `allow_missing` counts as 0."""
    run = system.rank(collection.queries, collection.skills, depth=settings.depth)
    missing = [query.id for query in collection.queries if query.id not in run]
    if missing and not allow_missing:
        more = len(missing) - _MOST_IDS_SHOWN
        raise CatalogueError(
            f"system `{system.name}`",
            got=f"no ranking for {len(missing)} of {len(collection.queries)} requests: "
            + ", ".join(missing[:_MOST_IDS_SHOWN])
            + (f" and {more} more" if more > 0 else ""),
            wanted="a ranking for every judged request",
            fix="Rank these too, or count them as 0: --allow-missing",
        )
    if missing:
        talk(f"{system.name} lacks {len(missing)} of {len(collection.queries)} requests; they count as 0.")
    return run


def _file_names(specs: Sequence[str]) -> list[str]:
    """Numbered, since two specs may differ in nothing that a file name can hold."""
    return [f"{place}-{re.sub(r'[^a-zA-Z0-9.+-]+', '_', spec).strip('_')}.run" for place, spec in enumerate(specs, 1)]


def _report(
    systems: Sequence[System],
    runs: Sequence[Run],
    figures: Sequence[Figures],
    collection: Collection,
    settings: EvaluateSettings,
) -> dict[str, Any]:
    """Everything that is known of a measurement."""
    return {
        "collection": {
            "num_queries": len(collection.queries),
            "num_dropped": collection.num_dropped,
            "num_skills": len(collection.skills),
            "num_golds": collection.num_golds,
            "digest": collection.digest(),
        },
        "settings": settings.model_dump(),
        "versions": _versions(),
        "baseline": systems[0].name,
        "systems": [
            {
                "name": system.name,
                "digests": dict(system.digests),
                "num_missing": sum(query.id not in run for query in collection.queries),
                **found.to_dict(),
            }
            for system, run, found in zip(systems, runs, figures, strict=True)
        ],
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
