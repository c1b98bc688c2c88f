"""`skillserve export` and `skillserve verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from skillserve.config import flag, load_settings
from skillserve.console import out, print_json, progress, talk
from skillserve_export.parity import require
from skillserve_export.repository import NUM_STEPS, Exported, export_model, verify_model

__all__ = ["export", "verify"]

Weights = Annotated[Path, typer.Argument(help="weights folder with model.safetensors, tokenizer.json and card.json")]
Data = Annotated[
    Path | None,
    typer.Option(help="folder in SkillRet's layout whose test split is the gate's sample; not set: random words"),
]
Config = Annotated[Path | None, typer.Option(help="configuration file; not set: skillserve.toml if it is there")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object")]


def export(
    weights: Weights,
    *,
    data: Data = None,
    layout: Annotated[
        Literal["packed", "padded"], typer.Option(help="`padded` is for TensorRT and for comparisons")
    ] = "packed",
    repository: Annotated[Path | None, flag("export.repository")] = None,
    attention_core: Annotated[Literal["loop", "gather"] | None, flag("export.attention_core")] = None,
    max_batch_size: Annotated[int | None, flag("export.max_batch_size")] = None,
    max_queue_delay_microseconds: Annotated[int | None, flag("export.max_queue_delay_microseconds")] = None,
    max_request_tokens: Annotated[int | None, flag("export.max_request_tokens")] = None,
    num_threads: Annotated[int | None, flag("export.num_threads")] = None,
    version: Annotated[int | None, flag("export.version")] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Turn weights into a packed graph, gate it, write the model repository."""
    settings = load_settings(
        config,
        flags={
            "export.repository": repository,
            "export.attention_core": attention_core,
            "export.max_batch_size": max_batch_size,
            "export.max_queue_delay_microseconds": max_queue_delay_microseconds,
            "export.max_request_tokens": max_request_tokens,
            "export.num_threads": num_threads,
            "export.version": version,
        },
    ).export
    with progress("export", NUM_STEPS) as bar:
        exported = export_model(
            weights, settings, data=data, layout=layout, advance=lambda note: bar.advance(note=note)
        )
    _show(exported, as_json=as_json)
    talk(f"Wrote {exported.folder}. Serve it: skillserve serve --repository {settings.repository}")


def verify(
    weights: Weights,
    *,
    data: Data = None,
    repository: Annotated[Path | None, flag("export.repository")] = None,
    version: Annotated[int | None, flag("export.version")] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Check the graph in the repository against its weights, and write nothing."""
    flags = {"export.repository": repository, "export.version": version}
    settings = load_settings(config, flags=flags).export
    with progress("verify", NUM_STEPS - 1) as bar:
        verified = verify_model(weights, settings, data=data, advance=lambda note: bar.advance(note=note))
    _show(verified, as_json=as_json)
    require(verified.checks, f"graph in `{verified.folder}`")


def _show(exported: Exported, *, as_json: bool) -> None:
    if as_json:
        checks = [check.to_dict() for check in exported.checks]
        print_json({"folder": str(exported.folder), "digest": exported.card.digest, "checks": checks})
        return
    table = Table("check", "passed", "detail", title=f"{exported.card.name} ({exported.card.short_digest})")
    for check in exported.checks:
        table.add_row(check.name, "yes" if check.passed else "NO", check.detail)
    out.print(table)
