"""`export.json`: how a model folder was made; a folder that is no longer what it says is not opened.

Read where a plan is built, too, so it needs no package but pydantic.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from skillserve.errors import RepositoryError
from skillserve.publish import sha256_of
from skillserve.tensors import Layout, Precision, Runtime

__all__ = ["EXPORT_FILE", "GRAPH_FILE", "PLAN_FILE", "ExportRecord", "digests", "read_record"]

EXPORT_FILE = "export.json"
GRAPH_FILE = "model.onnx"
PLAN_FILE = "model.plan"


class ExportRecord(BaseModel):
    """`export.json`: how a graph was made, what it passed, and the SHA-256 of every file beside it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    digest: str
    layout: Layout
    attention_core: str | None
    precision: Precision
    runtime: Runtime = "onnxruntime"
    files: dict[str, str]
    checks: list[dict[str, Any]]
    versions: dict[str, str]


def read_record(folder: Path) -> ExportRecord:
    """Read the record and compare every file with it; raises RepositoryError for what changed, lacks or is new."""
    try:
        record = ExportRecord.model_validate_json((folder / EXPORT_FILE).read_bytes())
    except (OSError, ValidationError) as error:
        raise RepositoryError(
            f"model folder `{folder}`",
            got=f"no valid {EXPORT_FILE} ({type(error).__name__})",
            wanted="a model written by `skillserve export`",
            fix="Export the model: skillserve export WEIGHTS",
        ) from error
    found, wanted = digests(folder), record.files
    changed = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
    if changed:
        raise RepositoryError(
            f"model folder `{folder}`",
            got=f"changed, missing or new since its export (by SHA-256): {', '.join(changed)}",
            wanted="the files that passed the gate",
            fix="Export the model again: skillserve export WEIGHTS",
        )
    return record


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file but the record, by its path inside the folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / EXPORT_FILE)
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}
