"""`skillserve export` and `skillserve verify`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from skillserve.card import read_card
from skillserve.console import Bar, out, print_json, progress, talk
from skillserve.errors import ParityError, UsageError
from skillserve.flags import Json, with_settings
from skillserve.settings import Settings
from skillserve_export.gate import RankGate, Tell, judge_server
from skillserve_export.gate_report import report_of
from skillserve_export.parity import require
from skillserve_export.profiles import Profiles
from skillserve_export.repository import Exported, export_model, num_steps, verify_model
from skillserve_export.roles import roles_of, roles_to_verify, stale_folder

__all__ = ["export", "verify"]

Weights = Annotated[Path, typer.Argument(help="weights folder with model.safetensors, tokenizer.json and card.json")]
Data = Annotated[
    Path | None,
    typer.Option(
        help="folder in SkillRet's layout whose test split is asked; not set: random words, and for "
        "rankings below fp32 the sample of a clone"
    ),
]
LayoutFlag = Annotated[
    Literal["packed", "padded"], typer.Option("--layout", help="`padded` is for TensorRT and for comparisons")
]
GateFlag = Annotated[
    bool,
    typer.Option(
        "--gate",
        help="also judge rankings: top-1, top-10 overlap and NDCG@10 beside the fp32 reference; below fp32 always",
    ),
]
RunFile = Annotated[
    Path | None,
    typer.Option(
        "--run", help="with --gate, for a reranker: TREC run with its candidates; not set: the repository's embedder"
    ),
]
Report = Annotated[
    Path | None,
    typer.Option(help="with --gate: folder of its report; not set: one of its own in `reports`, beside the repository"),
]
Url = Annotated[
    str | None,
    typer.Option(
        help="with --gate: judge what the server at this gRPC address, host:port, answers, not the repository"
    ),
]


@with_settings("export")
def export(
    weights: Weights,
    *,
    data: Data = None,
    layout: LayoutFlag = "packed",
    gate: GateFlag = False,
    run: RunFile = None,
    report: Report = None,
    settings: Settings,
    as_json: Json = False,
) -> None:
    """Turn weights into a packed graph, gate it, write the model repository."""
    gate = gate or settings.export.precision != "fp32"
    _refuse_alone({"--run": run, "--report": report}, gate=gate)
    with progress("export", num_steps(roles_of(read_card(weights), layout))) as bar:
        ranks = (
            RankGate(settings=settings.export, data=data, run=run, report=report, tell=_teller(bar)) if gate else None
        )
        exported = export_model(
            weights, settings.export, data=data, layout=layout, gate=ranks, advance=lambda note: bar.advance(note=note)
        )
    done = (exported, *exported.also)
    _show(done, as_json=as_json)
    wrote = " and ".join(str(one.folder) for one in done)
    if stale := stale_folder(exported.card, settings.export):
        talk(f"WARNING: {stale} is of other weights, and goes on being served: remove it.")
    if settings.export.runtime == "tensorrt":
        talk(f"Wrote {wrote}. Build its plan, in NVIDIA's container: skillserve plan {wrote}")
    else:
        talk(f"Wrote {wrote}. Serve it: skillserve serve --repository {settings.export.repository}")


@with_settings(
    "export.repository",
    "export.device",
    "export.version",
    "export.max_graph_gib",
    "export.gate_requests",
    "export.gate_depth",
)
def verify(
    weights: Weights,
    *,
    data: Data = None,
    gate: GateFlag = False,
    run: RunFile = None,
    url: Url = None,
    report: Report = None,
    settings: Settings,
    as_json: Json = False,
) -> None:
    """Check the graph in the repository, or what a server answers, against the weights; writes a gate's report only."""
    _refuse_alone({"--run": run, "--report": report, "--url": url}, gate=gate)
    if url is not None:
        client = settings.client.model_copy(update={"url": url})
        with progress("verify", 2) as bar:
            ranks = RankGate(settings=settings.export, data=data, run=run, report=report, tell=_teller(bar))
            verdict = judge_server(weights, client, ranks, advance=lambda note: bar.advance(note=note))
        with _judged([Exported(verdict.card, None, [], verdict)], as_json=as_json):
            verdict.require(fix="Do not search with it: go back to the server, runtime or driver that passed.")
        return
    roles = roles_to_verify(read_card(weights), settings.export)
    with progress("verify", num_steps(roles, verified=True)) as bar:
        gated = (
            RankGate(settings=settings.export, data=data, run=run, report=report, tell=_teller(bar)) if gate else None
        )
        verified = verify_model(
            weights, settings.export, data=data, gate=gated, advance=lambda note: bar.advance(note=note)
        )
    advice = f"Do not serve it. Export it again: skillserve export {weights}"
    found = (verified, *verified.also)
    with _judged(found, as_json=as_json):
        for one in found:
            require(one.checks, f"graph in `{one.folder}`", fix=advice)
            if one.verdict is not None:
                one.verdict.require(fix=advice)


def _refuse_alone(options: Mapping[str, object], *, gate: bool) -> None:
    """Options of the gate mean nothing without it, and whoever gave them meant something."""
    given = [f"{option} {value}" for option, value in options.items() if value is not None]
    if given and not gate:
        raise UsageError(
            f"option {given[0]}",
            got="no --gate",
            wanted="the gate that it belongs to",
            fix="Add --gate, or leave it out.",
        )


def _teller(bar: Bar) -> Tell:
    return lambda note: bar.advance(0, note=note)


@contextmanager
def _judged(found: Sequence[Exported], *, as_json: bool) -> Iterator[None]:
    """Show what was found, and have the block judge it; as JSON findings and failure are one document."""
    if not as_json:
        _show(found, as_json=False)
        yield
        return
    try:
        yield
    except ParityError as error:
        error.findings = _findings(found)
        raise
    _show(found, as_json=True)


def _show(found: Sequence[Exported], *, as_json: bool) -> None:
    if as_json:
        print_json(_findings(found))
        return
    for one in found:
        what = "server" if one.folder is None else one.folder.name
        table = Table("check", "passed", "detail", title=f"{one.card.name} ({one.card.short_digest}), {what}")
        for check in (*one.checks, *(() if one.verdict is None else one.verdict.checks)):
            table.add_row(check.name, "yes" if check.passed else "NO", check.detail)
        out.print(table)
        if one.profiles is not None:
            out.print(_buckets(one.profiles))
        if one.verdict is not None:
            talk(f"Report: {one.verdict.folder}")


def _findings(found: Sequence[Exported]) -> dict[str, Any]:
    """Of the model of the weights' own role; what else they are served as stands in it under its folder's name."""
    first, *others = found
    checks = (*first.checks, *(() if first.verdict is None else first.verdict.checks))
    result: dict[str, Any] = {
        "folder": None if first.folder is None else str(first.folder),
        "digest": first.card.digest,
        "checks": [check.to_dict() for check in checks],
    }
    if first.profiles is not None:
        result["profiles"] = first.profiles.model_dump(mode="json")
    if first.verdict is not None:
        result["gate"] = {"report": str(first.verdict.folder)} | report_of(first.verdict)
    return result | {str(one.folder and one.folder.name): _findings([one]) for one in others}


def _buckets(profiles: Profiles) -> Table:
    """What each number of buckets costs, so that it is seen why this one was taken."""
    table = Table("buckets", "chosen", "padding waste", "ends", title=f"{profiles.source}: length buckets")
    for choice in profiles.choices:
        ends = ", ".join(map(str, choice.ends))
        chosen = "yes" if choice.ends == profiles.ends else ""
        table.add_row(str(len(choice.ends)), chosen, f"{100 * choice.padding_waste:.1f} %", ends)
    return table
