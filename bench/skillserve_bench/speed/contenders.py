"""Who is measured: our graphs in this process, in several ways of joining sequences, and other implementations.

A contender takes a part of a workload and says how long it took. Ours tell tokenising and computing apart; others
get texts and do both at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from skillserve.tensors import Ids, Precision
from skillserve_bench.inprocess import LocalModel
from skillserve_bench.processor import Usage
from skillserve_bench.speed.workload import Part
from skillserve_client.wire import Floats, ServedModel, cut

__all__ = ["Contender", "Kind", "Manner", "Pass", "graph_contender", "joined", "peer_contender", "whole"]

Kind = Literal["packed", "padded", "served", "peer"]

Manner = Literal["in arrival order", "sorted", "one by one"]
"""How sequences are joined: neighbours of the stream, those of similar length, or none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One part, once."""

    rows: Floats
    run_s: float
    """From token ids to rows; of a peer, from texts to rows."""
    tokenise_s: float | None
    """Beforehand, from texts to token ids; None where a contender was given ids."""
    usage: Usage | None = None
    """Whose the cores were; added by whoever measures."""

    @property
    def text_s(self) -> float | None:
        """From texts to rows."""
        return None if self.tokenise_s is None else self.tokenise_s + self.run_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One line of the report."""

    name: str
    kind: Kind
    precision: Precision
    measure: Callable[[Part], Pass]


def graph_contender(local: LocalModel, precision: Precision, manner: Manner, *, max_tokens: int) -> Contender:
    """A graph in this process, with at most `max_tokens` an execution, padding included where there is any."""
    layout = local.model.layout
    name = f"packed {precision}" if layout == "packed" else f"padded {precision}, {manner}"

    def measure(part: Part) -> Pass:
        begin = time.perf_counter()
        sequences = part.tokenised()
        tokenised = time.perf_counter()
        rows = run_joined(local, sequences, manner, max_tokens=max_tokens)
        return Pass(rows=rows, run_s=time.perf_counter() - tokenised, tokenise_s=tokenised - begin)

    return Contender(name=name, kind=layout, precision=precision, measure=measure)


def peer_contender(name: str, precision: Precision, compute: Callable[[Part], Floats]) -> Contender:
    """Another implementation, from texts to rows."""

    def measure(part: Part) -> Pass:
        begin = time.perf_counter()
        rows = compute(part)
        return Pass(rows=rows, run_s=time.perf_counter() - begin, tokenise_s=0.0)

    return Contender(name=name, kind="peer", precision=precision, measure=measure)


def run_joined(local: LocalModel, sequences: Sequence[Ids], manner: Manner, *, max_tokens: int) -> Floats:
    """Rows in the order of the sequences, whatever order they were computed in."""
    if manner == "one by one":
        return local.run_each(sequences)
    order = np.argsort([len(each) for each in sequences], kind="stable") if manner == "sorted" else None
    stream = sequences if order is None else [sequences[i] for i in order.tolist()]
    rows = np.concatenate([local.run(batch) for batch in joined(stream, local.model, max_tokens)])
    if order is None:
        return rows
    home = np.empty_like(rows)
    home[order] = rows
    return home


def joined(sequences: Sequence[Ids], model: ServedModel, max_tokens: int) -> list[Sequence[Ids]]:
    """Neighbours joined as the client would join them: tokens of a packed execution, the rectangle of a padded one."""
    return [sequences[chosen] for chosen in cut(sequences, model, max_tokens)]


def whole(passes: Sequence[Pass], parts: Sequence[Part]) -> Floats:
    """Rows of the workload, from those of all its parts."""
    rows = np.concatenate([each.rows for each in passes])
    places = np.concatenate([part.places for part in parts])
    home = np.empty_like(rows)
    home[places] = rows
    return home
