"""Where a graph's time goes, by operator and layer, from ONNX Runtime's own profile.

The profile is a list of events with beginning and duration in µs. An operator with a body, such as a loop, lasts as
long as everything in it, so what runs inside is taken off it: every microsecond counts once.

Names of nodes differ between exporters, and rewriting loses them. What tells layers apart in any graph is attention,
once a layer: the products of query, key and value stand before it, so a layer begins behind whatever follows the
product before those, up to its norm.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["OUTSIDE", "Operators", "read_profile"]

OUTSIDE = -1
"""Not in any layer: embeddings and guard before, pooling and head behind."""

_PRODUCTS = {
    "MatMul",
    "Gemm",
    "FusedGemm",
    "FusedMatMul",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
}
_NORMS = {"LayerNormalization", "SkipLayerNormalization", "SimplifiedLayerNormalization"}
_ATTENTION = {"Softmax", "MultiHeadAttention", "Attention"}
_SUFFIX = "_kernel_time"


@dataclass(frozen=True, slots=True)
class Operators:
    """Time of one graph, µs of all profiled runs together."""

    spent_us: dict[tuple[int, str], float]
    """By layer, from 0 or OUTSIDE, and operator; one that runs inside of a loop is called `MatMul in a loop`."""
    num_layers: int
    wall_us: float
    """From beginning to end of the runs; what is no operator's is the runtime's own."""

    @property
    def kinds(self) -> list[str]:
        """Operators, the dearest first."""
        total: dict[str, float] = {}
        for (_, kind), spent in self.spent_us.items():
            total[kind] = total.get(kind, 0.0) + spent
        return sorted(total, key=lambda kind: -total[kind])

    def share(self, layer: int | None, kind: str | None) -> float:
        """Part of the wall time, in [0, 1]; None: all layers, or all operators."""
        chosen = (
            spent for (each, name), spent in self.spent_us.items() if layer in (None, each) and kind in (None, name)
        )
        return sum(chosen) / self.wall_us


@dataclass(slots=True)
class _Event:
    """One execution of a node, with what ran inside of it."""

    kind: str
    begin: float
    us: float
    inner: list[_Event] = field(default_factory=list)

    @property
    def is_attention(self) -> bool:
        return self.kind in _ATTENTION or any(each.is_attention for each in self.inner)

    def own(self, *, inside: bool = False) -> Iterator[tuple[str, float]]:
        """Kind and own time of this node and of all inside."""
        yield (f"{self.kind} in a loop" if inside else self.kind), self.us - sum(each.us for each in self.inner)
        for each in self.inner:
            yield from each.own(inside=True)


def read_profile(path: Path, *, skip_runs: int = 0) -> Operators:
    """Sum up a profile that `end_profiling` wrote, without its first runs. Raises ValueError if nothing is left."""
    events = json.loads(path.read_bytes())
    runs = sorted((each for each in events if each["cat"] == "Session" and each["name"] == "model_run"), key=_ts)
    if len(runs) <= skip_runs:
        raise ValueError(f"{path} holds {len(runs)} runs, of which {skip_runs} are to be skipped")
    nodes = [each for each in events if each["cat"] == "Node" and each["name"].endswith(_SUFFIX)]
    spent: dict[tuple[int, str], float] = {}
    num_layers, wall = 0, 0.0
    for run in runs[skip_runs:]:
        begin, end = run["ts"], run["ts"] + run["dur"]
        tree = _tree([node for node in nodes if begin <= node["ts"] <= end])
        layers = _layers(tree)
        num_layers = max(num_layers, max(layers, default=OUTSIDE) + 1)
        wall += run["dur"]
        for event, layer in zip(tree, layers, strict=True):
            for kind, us in event.own():
                spent[layer, kind] = spent.get((layer, kind), 0.0) + us
    return Operators(spent, num_layers, wall)


def _ts(event: dict[str, Any]) -> float:
    return float(event["ts"])


def _tree(nodes: Sequence[dict[str, Any]]) -> list[_Event]:
    """Events of the graph itself in their order, those of bodies inside of them."""
    top: list[_Event] = []
    open_: list[_Event] = []
    for node in sorted(nodes, key=lambda each: (each["ts"], -each["dur"])):
        event = _Event(node["args"]["op_name"], float(node["ts"]), float(node["dur"]))
        # An event that begins where another one ends, to the microsecond, is no part of it.
        while open_ and event.begin + event.us > open_[-1].begin + open_[-1].us:
            open_.pop()
        while open_ and open_[-1].kind not in {"Loop", "If", "Scan"}:
            open_.pop()
        (open_[-1].inner if open_ else top).append(event)
        open_.append(event)
    return top


def _layers(events: Sequence[_Event]) -> list[int]:
    """The layer of each event."""
    attentions = [i for i, event in enumerate(events) if event.is_attention]
    products = [i for i, event in enumerate(events) if event.kind in _PRODUCTS]
    if not attentions:
        return [OUTSIDE] * len(events)
    before = [sum(product < attention for product in products) for attention in attentions]
    # Embeddings multiply nothing, so whatever stands before the first attention stands before each one.
    num_before = before[0]
    starts = [_behind_norm(events, products, num - num_before) for num in before]
    num_behind = before[1] - before[0] - num_before if len(before) > 1 else len(products) - num_before
    end = _behind_norm(events, products, before[-1] + num_behind)
    return [sum(start <= i for start in starts) - 1 if i < end else OUTSIDE for i in range(len(events))]


def _behind_norm(events: Sequence[_Event], products: Sequence[int], num: int) -> int:
    """Where a layer begins that has so many products before it: behind the norm that follows the last of those."""
    first = products[num - 1] + 1 if num else 0
    last = products[num] if num < len(products) else len(events)
    norms = [i for i in range(first, last) if events[i].kind in _NORMS]
    return norms[-1] + 1 if norms else first
