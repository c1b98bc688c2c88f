"""What one workload's measurements come to: speeds, shares of the machine's limit, rankings, goals.

Every figure is formed within a round first, and then summarised over rounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from skillserve.tensors import Precision, Role
from skillserve_bench.figures import Spread, paired_ratios
from skillserve_bench.processor import Usage
from skillserve_bench.speed.check import Agreement
from skillserve_bench.speed.contenders import Contender, Pass
from skillserve_bench.speed.flops import Flops

__all__ = ["Limit", "Line", "Outcome", "Rates"]

Clock = Literal["ids", "texts"]
"""From token ids to rows, or from texts to rows."""

Rates = Mapping[str, Sequence[float]]
"""GEMM rates by `runtime precision`, operations a second, one a round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """What the machine multiplies in one precision, round by round, and whose kernels did."""

    kernels: str
    rates: Sequence[float]

    @classmethod
    def of(cls, rates: Rates, precision: Precision) -> Limit | None:
        """The runtime that is faster in the median; None if none has been measured."""
        found = {name: each for name, each in rates.items() if name.endswith(f" {precision}")}
        if not found:
            return None
        best = max(found, key=lambda name: Spread.of(found[name]).median)
        return cls(kernels=best, rates=found[best])


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One contender's measurements."""

    contender: Contender
    passes: Sequence[Pass]
    """One a round."""
    agreement: Agreement
    """Of all rows."""
    ndcg: float
    """NDCG@10 of its rankings, points."""

    @property
    def passed(self) -> bool:
        """Whether its rows are right."""
        return self.agreement.passes(self.contender)

    def seconds(self, clock: Clock) -> list[float] | None:
        """Round by round; None for the clock that a contender has not."""
        if clock == "ids":
            return None if self.contender.kind == "peer" else [each.run_s for each in self.passes]
        found = [each.text_s for each in self.passes]
        return [each for each in found if each is not None] if None not in found else None

    def per_s(self, clock: Clock) -> Spread | None:
        """Sequences a second."""
        seconds = self.seconds(clock)
        nums = [len(each.rows) for each in self.passes]
        return None if seconds is None else Spread.of(paired_ratios(nums, seconds))

    def times_faster(self, other: Line, clock: Clock) -> Spread | None:
        """How many times its speed is the other's; None where they have no clock in common."""
        here, there = self.seconds(clock), other.seconds(clock)
        return None if here is None or there is None else Spread.of(paired_ratios(there, here))

    @property
    def usage(self) -> Usage:
        """Whose the cores were."""
        return Usage.mean([each.usage for each in self.passes if each.usage is not None])


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """All of one workload."""

    role: Role
    lines: Mapping[str, Line]
    absent: Mapping[str, str]
    """Contenders that did not take part, with their reasons."""
    flops: Sequence[Flops] | None
    """Of the real tokens, a part each; None for a family that is not counted."""
    rates: Rates
    num_sequences: int
    at_once: int
    """Most tokens of an execution of ours."""
    mean_tokens: float
    reference_ndcg: float
    """Of the fp32 graph that ran each sequence alone, points."""

    @property
    def passed(self) -> bool:
        """Whether everybody's rows are right."""
        return all(line.passed for line in self.lines.values())

    def of_kind(self, kind: str) -> list[Line]:
        """Lines of the contenders of a kind."""
        return [line for line in self.lines.values() if line.contender.kind == kind]

    def limit(self, precision: Precision) -> Limit | None:
        """The machine's rate in a precision."""
        return Limit.of(self.rates, precision)

    def ndcg_loss(self, line: Line) -> float:
        """Points that a contender's rankings lose beside the reference's."""
        return self.reference_ndcg - line.ndcg

    def share(self, line: Line, *, attention_in_fp32: bool = False) -> Spread | None:
        """The part of the limit that a contender reaches.

        All products count at the rate of its precision, as if attention could be computed in it, too;
        `attention_in_fp32` counts attention at the rate of fp32, in which an int8 graph computes it.
        """
        seconds, limit, plain = line.seconds("ids"), self.limit(line.contender.precision), self.limit("fp32")
        if self.flops is None or seconds is None or limit is None or plain is None:
            return None
        attention_rates = plain.rates if attention_in_fp32 else limit.rates
        least = [
            flops.linear / rate + flops.attention / attention_rate
            for flops, rate, attention_rate in zip(self.flops, limit.rates, attention_rates, strict=True)
        ]
        return Spread.of(paired_ratios(least, seconds))
