"""What was hoped for, beside what was found. A missed goal is told and fails nothing: it depends on the machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from skillserve.tensors import Precision
from skillserve_bench.figures import Spread
from skillserve_bench.peers.sentence_transformers import BACKENDS
from skillserve_bench.speed.outcome import Line, Outcome
from skillserve_bench.speed.peers import PEER_NAMES

__all__ = ["LEAST_SERVED", "LEAST_SHARE", "LEAST_TIMES", "LEAST_TIMES_BACKENDS", "MOST_LOSS", "Goal", "goals"]

LEAST_SHARE: dict[Precision, float] = {"fp32": 0.75, "int8": 0.5}
"""Of the machine's GEMM rate."""
LEAST_TIMES: dict[Precision, float] = {"fp32": 3.0, "int8": 8.0}
"""As many sequences a second as sentence-transformers' PyTorch backend, from texts to rows."""
LEAST_TIMES_BACKENDS = 2.0
"""As many as each of its other backends, with rankings that are as good."""
MOST_LOSS = 0.2
"""Points of NDCG@10 that still count as the same quality."""
LEAST_SERVED = 0.9
"""Of the throughput of the graph in process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """One of them."""

    what: str
    wanted: str
    found: str
    met: bool | None
    """None if it could not be measured."""

    @property
    def verdict(self) -> str:
        """One word, or two."""
        return "not measured" if self.met is None else "met" if self.met else "MISSED"

    def to_dict(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {"goal": self.what, "wanted": self.wanted, "found": self.found, "met": self.met}


def goals(outcome: Outcome) -> list[Goal]:
    """All goals of a workload."""
    packed = outcome.of_kind("packed")
    return [
        *(_share(outcome, line) for line in packed if line.contender.precision in LEAST_SHARE),
        *(_beside_torch(outcome, line) for line in packed if line.contender.precision in LEAST_TIMES),
        *_beside_backends(outcome, packed),
        *(_served(outcome, line) for line in packed),
    ]


def _share(outcome: Outcome, line: Line) -> Goal:
    least = LEAST_SHARE[line.contender.precision]
    return _goal(
        f"{line.contender.name}: share of the machine's GEMM rate",
        least,
        outcome.share(line),
        as_share=True,
        instead="operations of this family are not counted, or no kernel was measured",
    )


def _beside_torch(outcome: Outcome, line: Line) -> Goal:
    name, least = PEER_NAMES["torch"], LEAST_TIMES[line.contender.precision]
    peer, loss = outcome.lines.get(name), outcome.ndcg_loss(line)
    goal = _goal(
        f"{line.contender.name}: speed beside {name}",
        least,
        line.times_faster(peer, "texts") if peer else None,
        instead=f"absent: {outcome.absent.get(name, 'not asked for')}",
    )
    if goal.met is None:
        return goal
    return Goal(
        what=goal.what,
        wanted=f"{goal.wanted}, NDCG@10 loss at most {MOST_LOSS:g}",
        found=f"{goal.found}, loss {loss:.2f}",
        met=goal.met and loss <= MOST_LOSS,
    )


def _beside_backends(outcome: Outcome, packed: list[Line]) -> Iterator[Goal]:
    """Each backend beside our fastest graph whose rankings are as good as the backend's."""
    for backend in BACKENDS:
        name = PEER_NAMES[backend]
        if backend == "torch":
            continue
        peer = outcome.lines.get(name)
        good = [line for line in packed if peer and peer.ndcg - line.ndcg <= MOST_LOSS]
        best = max(good, key=lambda line: _median(line.per_s("texts")), default=None)
        yield _goal(
            f"{best.contender.name if best else 'packed'}: speed beside {name} at equal quality",
            LEAST_TIMES_BACKENDS,
            best.times_faster(peer, "texts") if best and peer else None,
            instead=f"absent: {outcome.absent.get(name, 'not asked for')}" if peer is None else "none ranks as well",
        )


def _served(outcome: Outcome, line: Line) -> Goal:
    precision = line.contender.precision
    served = next((each for each in outcome.of_kind("served") if each.contender.precision == precision), None)
    name = served.contender.name if served else f"Triton {precision}"
    return _goal(
        f"{name}: throughput beside {line.contender.name} in process",
        LEAST_SERVED,
        served.times_faster(line, "ids") if served else None,
        as_share=True,
        instead=f"absent: {outcome.absent.get(f'Triton {precision}', 'not asked for')}",
    )


def _goal(what: str, least: float, found: Spread | None, *, instead: str, as_share: bool = False) -> Goal:
    wanted = f"at least {least:.0%}" if as_share else f"at least {least:g}x"
    if found is None:
        return Goal(what=what, wanted=wanted, found=instead, met=None)
    shown = f"{found.median:.0%}" if as_share else f"{found.median:.2f}x"
    return Goal(what=what, wanted=wanted, found=shown, met=found.median >= least)


def _median(spread: Spread | None) -> float:
    return spread.median if spread else 0.0
