"""`skillserve plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from skillserve.console import out, print_json, talk
from skillserve.flags import Json, with_settings
from skillserve.settings import Settings
from skillserve_export.plan.build import build_plan
from skillserve_export.plan.door import TensorRT
from skillserve_export.plan.gpu import first_gpu

__all__ = ["plan"]

Folder = Annotated[
    Path, typer.Argument(help="model folder written by `skillserve export --layout padded --runtime tensorrt`")
]


@with_settings("plan", "export.version")
def plan(folder: Folder, *, settings: Settings, as_json: Json = False) -> None:
    """Build the TensorRT plan of a model folder, or take it from the cache."""
    library, gpu = TensorRT(), first_gpu()
    built = build_plan(folder, settings.plan, library, gpu, version=settings.export.version, tell=talk)
    if as_json:
        print_json({"folder": str(built.folder), "reused": built.reused} | built.record.model_dump(mode="json"))
        return
    out.print(f"{built.record.key}  {built.record.num_bytes:,} bytes")
    talk(
        f"Wrote the plan into {built.folder}. Serve it, then judge it: skillserve verify WEIGHTS --gate --url HOST:PORT"
    )
