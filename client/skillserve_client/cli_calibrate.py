"""The command `skillserve calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from skillserve.console import out, print_json
from skillserve.errors import UsageError
from skillserve.flags import Json, with_settings
from skillserve.publish import write_bytes, write_text
from skillserve.settings import Settings
from skillserve_client.calibrate import Calibrated, calibrate_bundle
from skillserve_client.calibration import Calibration
from skillserve_client.check import Check, check_bundle
from skillserve_client.curves import draw
from skillserve_client.report import markdown
from skillserve_client.triton import Triton

__all__ = ["calibrate"]

PLOT_FILE, JSON_FILE, SUMMARY_FILE = "calibration.png", "calibration.json", "calibration.md"

File = Path | None


@with_settings(
    "calibrate", "index.bundles", "index.keep", "index.uri", "index.milvus_timeout_s", "client", "search.rerank_depth"
)
def calibrate(
    requests: Annotated[File, typer.Option(help="requests with the skills that fit them, to fit on")] = None,
    none: Annotated[File, typer.Option(help="requests that no skill of the catalogue fits, to fit on")] = None,
    qrels: Annotated[File, typer.Option(help="judgements of --requests; without it, their own `skill_ids`")] = None,
    check: Annotated[File, typer.Option(help="other requests with skills, to measure the calibration on")] = None,
    check_none: Annotated[File, typer.Option(help="other requests that no skill fits, to measure it on")] = None,
    check_qrels: Annotated[File, typer.Option(help="judgements of --check; without it, their own `skill_ids`")] = None,
    report: Annotated[File, typer.Option(help="folder for plots, figures as JSON, and a summary")] = None,
    force: Annotated[bool, typer.Option("--force", help="fit even if the live bundle has this calibration")] = False,  # noqa: FBT002
    *,
    settings: Settings,
    as_json: Json = False,
) -> None:
    """Teach the live bundle when to abstain, or measure how well it does."""
    _require_pair("--requests", requests, "--none", none)
    _require_pair("--check", check, "--check-none", check_none)
    if requests is None and check is None:
        raise UsageError(
            "command `skillserve calibrate`",
            got="no requests",
            wanted="some to fit on, or some to measure on",
            fix="Add --requests FILE --none FILE, or --check FILE --check-none FILE.",
        )
    if report and not requests:
        raise UsageError(
            "option --report", got="nothing to fit", wanted="--requests and --none as well", fix="Add both files."
        )
    if report:
        _require_folder(report)
    done: Calibrated | None = None
    measured: Check | None = None
    with Triton(settings.client) as triton:
        if requests is not None and none is not None:
            done = calibrate_bundle(
                triton,
                requests,
                none,
                qrels=qrels,
                index=settings.index,
                search=settings.search,
                settings=settings.calibrate,
                force=force,
            )
        if check is not None and check_none is not None:
            measured = check_bundle(
                triton, check, check_none, qrels=check_qrels, index=settings.index, settings=settings.calibrate
            )
    if report and done:
        _write_report(report, done.calibration, measured)
    _show(done, measured, settings.index.bundles, as_json=as_json)


def _require_pair(one: str, first: Path | None, other: str, second: Path | None) -> None:
    if (first is None) != (second is None):
        given, absent = (one, other) if second is None else (other, one)
        raise UsageError(
            f"option {given}",
            got=f"no {absent}",
            wanted="both: requests that a skill fits, and requests that none does",
            fix=f"Add {absent} FILE.",
        )


def _require_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error


def _write_report(folder: Path, calibration: Calibration, measured: Check | None) -> None:
    try:
        write_bytes(folder / PLOT_FILE, draw(calibration))
        write_text(folder / JSON_FILE, calibration.model_dump_json(indent=2) + "\n")
        write_text(folder / SUMMARY_FILE, markdown(calibration, measured, PLOT_FILE))
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> UsageError:
    return UsageError(
        f"option --report `{folder}`",
        got=error.strerror or str(error),
        wanted="a folder that can be written to",
        fix="Name another folder: --report FOLDER",
    )


def _show(done: Calibrated | None, measured: Check | None, root: Path, *, as_json: bool) -> None:
    if as_json:
        result: dict[str, Any] = {
            "status": "measured" if done is None else "current" if done.current else "published",
            "bundle": str(root / (done.manifest.version if done else measured.bundle if measured else "")),
            "calibration": done.calibration.model_dump(mode="json") if done else None,
            "check": measured.model_dump(mode="json") if measured else None,
        }
        print_json(result)
        return
    if done:
        _show_calibration(done.calibration)
        verb = "current, nothing to do" if done.current else "published"
        out.print(f"{verb}: {root / done.manifest.version}", markup=False, soft_wrap=True)
    if measured:
        _show_check(measured)


def _show_calibration(calibration: Calibration) -> None:
    table = Table("cross-validated", *calibration.stages, box=None, title_justify="left")
    stages = calibration.stages.values()
    table.add_row("curve", *(f"{s.request.kind} of {'+'.join(s.request.features)}" for s in stages))
    table.add_row("threshold", *(f"{s.threshold:.3f}" for s in stages))
    table.add_row("no skill fits, yet answered", *(f"{s.at_threshold.injected:.1%}" for s in stages))
    table.add_row("some skill fits, yet abstained", *(f"{s.at_threshold.lost:.1%}" for s in stages))
    table.add_row("own skills left out, yet answered", *(f"{s.left_out_injected:.1%}" for s in stages))
    table.add_row("log loss", *(f"{s.request_fits[s.request.kind].log_loss:.4f}" for s in stages))
    table.add_row("ECE", *(f"{s.request_fits[s.request.kind].ece:.3f}" for s in stages))
    out.print(table)


def _show_check(measured: Check) -> None:
    table = Table("measured, with 95 % interval", *measured.stages, box=None, title_justify="left")
    rows = {
        "no skill fits: abstained": "none_abstained",
        "some skill fits, yet abstained": "answerable_lost",
        "own skills left out, yet answered": "left_out_injected",
        "ECE": "ece",
        "coverage": "coverage",
        "risk: first hit does not fit": "risk",
    }
    for title, name in rows.items():
        found = [getattr(stage, name) for stage in measured.stages.values()]
        table.add_row(title, *(f"{each.value:.3f} ({each.low:.3f} to {each.high:.3f})" for each in found))
    out.print(table)
    out.print(f"{measured.num_answerable} answerable requests, {measured.num_none} that no skill fits")
