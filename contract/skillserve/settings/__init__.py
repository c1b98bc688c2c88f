"""Settings: one section a command or a role, one field a flag; `skillserve.config` fills them in.

This is the one door: sections are imported from here, wherever they stand.
"""

from __future__ import annotations

from skillserve.settings.client import (
    AuditSettings,
    CalibrateSettings,
    ClientSettings,
    IndexSettings,
    ScoreSettings,
    SearchSettings,
)
from skillserve.settings.export import ExportSettings, PlanSettings
from skillserve.settings.measuring import BenchSettings, CapacitySettings, EvaluateSettings, SweepSettings
from skillserve.settings.mining import MineSettings
from skillserve.settings.ranks import RankWindow, window
from skillserve.settings.section import Section
from skillserve.settings.serving import ServeSettings
from skillserve.settings.training import TrainSettings

__all__ = [
    "AuditSettings",
    "BenchSettings",
    "CalibrateSettings",
    "CapacitySettings",
    "ClientSettings",
    "EvaluateSettings",
    "ExportSettings",
    "IndexSettings",
    "MineSettings",
    "PlanSettings",
    "RankWindow",
    "ScoreSettings",
    "SearchSettings",
    "Section",
    "ServeSettings",
    "Settings",
    "SweepSettings",
    "TrainSettings",
    "window",
]


class Settings(Section):
    """All sections; `Settings()` is every default."""

    client: ClientSettings = ClientSettings()
    search: SearchSettings = SearchSettings()
    index: IndexSettings = IndexSettings()
    score: ScoreSettings = ScoreSettings()
    audit: AuditSettings = AuditSettings()
    calibrate: CalibrateSettings = CalibrateSettings()
    export: ExportSettings = ExportSettings()
    plan: PlanSettings = PlanSettings()
    serve: ServeSettings = ServeSettings()
    train: TrainSettings = TrainSettings()
    mine: MineSettings = MineSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    bench: BenchSettings = BenchSettings()
    sweep: SweepSettings = SweepSettings()
    capacity: CapacitySettings = CapacitySettings()
