"""Graphs of model folders, checked and opened."""

from __future__ import annotations

from pathlib import Path

from onnx import checker

from skillserve.card import ModelCard
from skillserve.graph_file import CONTRIBUTED, GraphFile, check_graph
from skillserve.max_sim import Interaction
from skillserve.settings import ExportSettings
from skillserve.tensors import Layout, Precision
from skillserve_export.device import Device
from skillserve_export.precision import require_runnable
from skillserve_export.record import GRAPH_FILE, ExportRecord
from skillserve_export.scorers import GraphScorer
from skillserve_export.served import PackedGraph, PaddedGraph, TokenGraph

__all__ = ["GRAPHS", "check_servable", "open_graph", "open_recorded"]

GRAPHS: dict[Layout, type[PackedGraph | PaddedGraph]] = {"packed": PackedGraph, "padded": PaddedGraph}


def open_graph(path: Path, layout: Layout, device: Device, how: Interaction | None = None) -> PackedGraph | PaddedGraph:
    """A graph of a layout; with `how` it is one of token embeddings."""
    return GRAPHS[layout](path, device) if how is None else TokenGraph(path, device, how)


def open_recorded(
    record: ExportRecord, folder: Path, card: ModelCard, settings: ExportSettings, how: Interaction | None = None
) -> GraphScorer:
    """The graph of the folder that the record describes, on the device of the settings; `how` as for `open_graph`.

    Raises RepositoryError for one that is not sound, UsageError for one that the device cannot run.
    """
    require_runnable(record.precision, settings.device)
    path = folder / str(settings.version) / GRAPH_FILE
    checked = check_servable(path, record.precision, settings)
    return GraphScorer(
        graph=open_graph(path, record.layout, settings.device, how),
        card=card,
        layout=record.layout,
        precision=record.precision,
        graph_digest=checked.digest(),
    )


def check_servable(path: Path, precision: Precision, settings: ExportSettings) -> GraphFile:
    """Check a graph file as what may be served in this precision; raises RepositoryError."""
    allowed = CONTRIBUTED[precision]
    return check_graph(path, contributed=allowed, max_gib=settings.max_graph_gib, checker=checker.check_model)
