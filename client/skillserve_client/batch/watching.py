"""How far a run is: a bar for people, events for machines, and the figures at its end."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from skillserve.console import Bar, print_json
from skillserve_client.batch.receipts import Entry

__all__ = ["Summary", "Watch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Totals of a run; rows and rejects of earlier runs that it went on from included."""

    num_rows: int = 0
    num_scored: int = 0
    num_rejects: int = 0
    num_shards: int = 0
    num_resumed: int = 0
    """Shards that were finished before."""
    num_changed: int = 0
    """Shards whose input was another one before."""
    num_repeats: int = 0
    """Runs of sequences that were sent again, since the server shed them or was away."""
    num_tokens: int = 0
    """Computed by this run."""
    seconds: float = 0.0
    tokens_per_s: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return asdict(self)


class Watch:
    """Keeps count."""

    def __init__(self, total_rows: int, bar: Bar, *, as_json: bool) -> None:
        self._total_rows, self._bar, self._as_json = total_rows, bar, as_json
        self._started = time.monotonic()
        self._computed_rows = 0
        self.summary = Summary()

    def tokens(self, num: int) -> None:
        """So many were just computed."""
        self._count(num_tokens=num)
        self._bar.advance(0, note=self._note())

    def shard(self, entry: Entry, *, resumed: bool, changed: bool, num_repeats: int = 0) -> None:
        """A shard is finished, or was."""
        self._count(
            num_rows=entry.num_rows,
            num_scored=entry.num_rows - entry.num_rejects,
            num_rejects=entry.num_rejects,
            num_shards=1,
            num_resumed=int(resumed),
            num_changed=int(changed),
            num_repeats=num_repeats,
        )
        if not resumed:
            self._computed_rows += entry.num_rows
        self._bar.advance(entry.num_rows, note=self._note())
        self.event(
            "shard",
            shard=entry.name,
            resumed=resumed,
            changed=changed,
            rows=self.summary.num_rows,
            total_rows=self._total_rows,
            rejects=self.summary.num_rejects,
            tokens_per_s=round(self.summary.tokens_per_s, 1),
            eta_s=self._eta_s(),
        )

    def event(self, name: str, **facts: object) -> None:
        """One JSON object on stdout, if those are wanted."""
        if self._as_json:
            print_json({"event": name, **facts})

    def _count(self, **more: int) -> None:
        counted = {name: getattr(self.summary, name) + num for name, num in more.items()}
        seconds = time.monotonic() - self._started
        tokens = counted.get("num_tokens", self.summary.num_tokens)
        self.summary = replace(self.summary, **counted, seconds=seconds, tokens_per_s=tokens / max(seconds, 1e-9))

    def _note(self) -> str:
        rejects = f" · {self.summary.num_rejects} rejects" if self.summary.num_rejects else ""
        return f"{self.summary.tokens_per_s:,.0f} tokens/s{rejects}"

    def _eta_s(self) -> float | None:
        """Seconds to go at the pace of the rows that this run computed; None before the first."""
        if not self._computed_rows:
            return None
        left = max(self._total_rows - self.summary.num_rows, 0)
        return round(left * (time.monotonic() - self._started) / self._computed_rows, 1)
