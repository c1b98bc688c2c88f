"""`skillserve export` and `skillserve verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from skillserve.console import out, print_json, progress, talk
from skillserve.flags import Json, with_settings
from skillserve.settings import Settings
from skillserve_export.parity import require
from skillserve_export.repository import NUM_STEPS, Exported, export_model, verify_model

__all__ = ["export", "verify"]

Weights = Annotated[Path, typer.Argument(help="weights folder with model.safetensors, tokenizer.json and card.json")]
Data = Annotated[
    Path | None,
    typer.Option(help="folder in SkillRet's layout whose test split is the gate's sample; not set: random words"),
]
LayoutFlag = Annotated[
    Literal["packed", "padded"], typer.Option("--layout", help="`padded` is for TensorRT and for comparisons")
]


@with_settings("export")
def export(
    weights: Weights, *, data: Data = None, layout: LayoutFlag = "packed", settings: Settings, as_json: Json = False
) -> None:
    """Turn weights into a packed graph, gate it, write the model repository."""
    with progress("export", NUM_STEPS) as bar:
        exported = export_model(
            weights, settings.export, data=data, layout=layout, advance=lambda note: bar.advance(note=note)
        )
    _show(exported, as_json=as_json)
    talk(f"Wrote {exported.folder}. Serve it: skillserve serve --repository {settings.export.repository}")


@with_settings("export.repository", "export.version")
def verify(weights: Weights, *, data: Data = None, settings: Settings, as_json: Json = False) -> None:
    """Check the graph in the repository against its weights, and write nothing."""
    with progress("verify", NUM_STEPS - 1) as bar:
        verified = verify_model(weights, settings.export, data=data, advance=lambda note: bar.advance(note=note))
    _show(verified, as_json=as_json)
    require(
        verified.checks,
        f"graph in `{verified.folder}`",
        fix=f"Do not serve it. Export it again: skillserve export {weights}",
    )


def _show(exported: Exported, *, as_json: bool) -> None:
    if as_json:
        checks = [check.to_dict() for check in exported.checks]
        print_json({"folder": str(exported.folder), "digest": exported.card.digest, "checks": checks})
        return
    table = Table("check", "passed", "detail", title=f"{exported.card.name} ({exported.card.short_digest})")
    for check in exported.checks:
        table.add_row(check.name, "yes" if check.passed else "NO", check.detail)
    out.print(table)
