"""When requests start. A schedule is drawn from a seed before the first request is sent, and no answer moves it.

Offsets `[n]` are seconds after the start of a run, rising.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import numpy.typing as npt

__all__ = ["Arrivals", "ClosedLoop", "Load", "OpenLoop", "Phase"]

Arrivals = Literal["poisson", "constant"]
Offsets = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of one rate."""

    per_s: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OpenLoop:
    """Requests that start when their time has come, whether or not earlier ones were answered."""

    offsets: Offsets
    seconds: float
    per_s: float
    """Mean rate that the schedule was drawn for."""
    arrivals: Arrivals

    @classmethod
    def draw(cls, phases: Sequence[Phase], *, arrivals: Arrivals, seed: int) -> Self:
        """A schedule of one phase after another; the same for the same seed.

        Poisson: independent exponential gaps, so the number of arrivals of a phase is random as well. Constant:
        equal gaps, the first request half a gap after the beginning.
        """
        rng = np.random.default_rng(seed)
        begin, parts = 0.0, []
        for phase in phases:
            if arrivals == "constant":
                parts.append(begin + (np.arange(round(phase.per_s * phase.seconds)) + 0.5) / phase.per_s)
            else:
                # Given their number, the arrivals of a Poisson process are independent and uniform.
                num = rng.poisson(phase.per_s * phase.seconds)
                parts.append(begin + np.sort(rng.uniform(0, phase.seconds, num)))
            begin += phase.seconds
        offsets = np.concatenate(parts)
        expected = sum(phase.per_s * phase.seconds for phase in phases)
        return cls(offsets=offsets, seconds=begin, per_s=expected / begin, arrivals=arrivals)

    def share(self, worker: int, num_workers: int) -> OpenLoop:
        """Every `num_workers`-th request; together the workers keep to the schedule."""
        return OpenLoop(
            offsets=self.offsets[worker::num_workers],
            seconds=self.seconds,
            per_s=self.per_s / num_workers,
            arrivals=self.arrivals,
        )

    def __str__(self) -> str:
        kind = "Poisson" if self.arrivals == "poisson" else "constant"
        return f"open loop, {kind} arrivals, {self.per_s:.4g}/s"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedLoop:
    """So many clients, each sending its next request when its last one is answered."""

    num_clients: int
    seconds: float | None
    """Nothing is sent after that; None: until the requests are used up."""

    def share(self, worker: int, num_workers: int) -> ClosedLoop:
        """A worker's part of the clients; may be none."""
        clients = len(range(worker, self.num_clients, num_workers))
        return ClosedLoop(num_clients=clients, seconds=self.seconds)

    def __str__(self) -> str:
        return f"closed loop, {self.num_clients} client{'s' if self.num_clients > 1 else ''}"


Load = OpenLoop | ClosedLoop
