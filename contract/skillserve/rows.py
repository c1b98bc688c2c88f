"""What is wrong with a file of rows, collected so that one run shows every fault."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from skillserve.errors import CatalogueError

__all__ = ["Faults"]

_MOST_FAULTS_SHOWN = 20


@dataclass
class Faults:
    """Collects what is wrong with a source."""

    source: Path
    found: list[str] = field(default_factory=list)

    def add(self, where: str, what: str) -> None:
        """Note a fault of one place."""
        self.found.append(f"{where}: {what}")

    def raise_if_any(self, wanted: str) -> None:
        """CatalogueError with the first faults and the number of all."""
        if not self.found:
            return
        shown = "; ".join(self.found[:_MOST_FAULTS_SHOWN])
        more = len(self.found) - _MOST_FAULTS_SHOWN
        raise CatalogueError(
            f"`{self.source}`",
            got=f"{len(self.found)} fault(s): {shown}" + (f"; and {more} more" if more > 0 else ""),
            wanted=wanted,
            fix="Mend these lines and run the command again; nothing was changed.",
        )
