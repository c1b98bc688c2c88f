"""What the rank gate found: its checks, figures and whom they are about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from skillserve.card import ModelCard
from skillserve.errors import ParityError
from skillserve.gate import Gate
from skillserve.scoring import Scorer
from skillserve_export.gate_requests import GateRequests
from skillserve_export.parity import Check
from skillserve_export.ranks import RankFigures

__all__ = ["Verdict"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One candidate beside its reference."""

    card: ModelCard
    candidate: Scorer
    reference: Scorer
    requests: GateRequests
    gate: Gate
    """The limits that held."""
    checks: Sequence[Check]
    figures: RankFigures | None
    """None if there were scores that are not finite."""
    folder: Path | None = None
    """Where the report is; None while there is none."""

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    def reported(self, folder: Path) -> Verdict:
        """The same with its report."""
        return replace(self, folder=folder)

    def require(self, *, fix: str) -> None:
        """Raise ParityError with the figures that failed, where the report is, and the caller's advice."""
        if self.passed:
            return
        where = "" if self.folder is None else f" (report: {self.folder})"
        raise ParityError(
            self.candidate.name,
            got="; ".join(f"{check.name}: {check.detail}" for check in self.checks if not check.passed) + where,
            wanted=f"every check of the rank gate to pass on {self.requests.source}",
            fix=fix,
        )
