"""`export.json`: how a model folder was made; a folder that is no longer what it says is not opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from onnx import checker
from pydantic import BaseModel, ConfigDict, ValidationError

from skillserve.card import ModelCard
from skillserve.errors import RepositoryError
from skillserve.graph_file import CONTRIBUTED, GraphFile, check_graph
from skillserve.publish import sha256_of
from skillserve.settings import ExportSettings
from skillserve.tensors import Layout, Precision
from skillserve_export.config import GRAPH_FILE
from skillserve_export.precision import require_runnable
from skillserve_export.scorers import GraphScorer
from skillserve_export.served import PackedGraph, PaddedGraph

__all__ = ["EXPORT_FILE", "GRAPHS", "ExportRecord", "check_servable", "digests", "read_record"]

EXPORT_FILE = "export.json"

GRAPHS: dict[Layout, type[PackedGraph | PaddedGraph]] = {"packed": PackedGraph, "padded": PaddedGraph}


class ExportRecord(BaseModel):
    """`export.json`: how a graph was made, what it passed, and the SHA-256 of every file beside it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    digest: str
    layout: Layout
    attention_core: str | None
    precision: Precision
    files: dict[str, str]
    checks: list[dict[str, Any]]
    versions: dict[str, str]

    def open(self, folder: Path, card: ModelCard, settings: ExportSettings) -> GraphScorer:
        """The graph of the folder that this record describes, on the device of the settings.

        Raises RepositoryError for one that is not sound, UsageError for one that the device cannot run.
        """
        require_runnable(self.precision, settings.device)
        path = folder / str(settings.version) / GRAPH_FILE
        checked = check_servable(path, self.precision, settings)
        return GraphScorer(
            graph=GRAPHS[self.layout](path, settings.device),
            card=card,
            layout=self.layout,
            precision=self.precision,
            graph_digest=checked.digest(),
        )


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


def check_servable(path: Path, precision: Precision, settings: ExportSettings) -> GraphFile:
    """Check a graph file as what may be served in this precision; raises RepositoryError."""
    allowed = CONTRIBUTED[precision]
    return check_graph(path, contributed=allowed, max_gib=settings.max_graph_gib, checker=checker.check_model)
