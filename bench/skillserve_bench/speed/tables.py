"""How a workload's outcome is shown: tables for people, the same as numbers for machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from skillserve_bench.figures import Spread, paired_ratios
from skillserve_bench.report import Table, cores
from skillserve_bench.speed.goals import goals
from skillserve_bench.speed.operators import OUTSIDE, Operators
from skillserve_bench.speed.outcome import Line, Outcome

__all__ = ["TITLES", "outcome_figures", "outcome_tables"]

TITLES = {"embedder": "Embedding", "reranker": "Reranking"}

_RUNTIMES = {"onnxruntime": "ONNX Runtime", "torch": "PyTorch"}
"""As people call them; figures keep the names of the packages."""

_MOST_KINDS = 7
"""Operators that have a column of their own; a page is not wider."""


def outcome_tables(outcome: Outcome, profiles: Mapping[str, Operators]) -> list[Table]:
    """All tables of a workload; profiles by contender."""
    title = TITLES[outcome.role]
    return [
        _contenders(title, outcome),
        _goals(title, outcome),
        _kernels(title, outcome),
        *([_absent(title, outcome)] if outcome.absent else []),
        *(_operators(f"{title}: where the time of {name} goes", found) for name, found in profiles.items()),
    ]


def outcome_figures(outcome: Outcome, profiles: Mapping[str, Operators]) -> dict[str, Any]:
    """The same as numbers."""
    return {
        "num_sequences": outcome.num_sequences,
        "mean_tokens": outcome.mean_tokens,
        "reference_ndcg": outcome.reference_ndcg,
        "contenders": {name: _line_figures(outcome, line) for name, line in outcome.lines.items()},
        "gemm_gflop_per_s": {name: asdict(_giga(rates)) for name, rates in outcome.rates.items()},
        "gflop": None if outcome.flops is None else sum(each.total for each in outcome.flops) / 1e9,
        "goals": [goal.to_dict() for goal in goals(outcome)],
        "absent": dict(outcome.absent),
        "profiles": {name: _profile_figures(found) for name, found in profiles.items()},
    }


def _contenders(title: str, outcome: Outcome) -> Table:
    return Table(
        title=title,
        columns=[
            "",
            "sequences/s, median (min to max)",
            "with tokenising",
            "GFLOP/s",
            "share of the limit",
            "attention at fp32's rate",
            "cosine, least / mean" if outcome.role == "embedder" else "correlation",
            "NDCG@10 (loss)",
            "cores: client / server / others",
        ],
        rows=[
            [
                name,
                _text(line.per_s("ids"), 1),
                _text(line.per_s("texts"), 1),
                _text(_achieved(outcome, line), 0),
                _percent(outcome.share(line)),
                _percent(outcome.share(line, attention_in_fp32=True)),
                f"{line.agreement.least:.5f} / {line.agreement.mean:.5f}{'' if line.passed else ' WRONG'}",
                f"{line.ndcg:.2f} ({outcome.ndcg_loss(line):+.2f})",
                cores(line.usage),
            ]
            for name, line in outcome.lines.items()
        ],
    )


def _goals(title: str, outcome: Outcome) -> Table:
    return Table(
        title=f"{title}: goals",
        columns=["", "wanted", "found", "verdict"],
        rows=[[goal.what, goal.wanted, goal.found, goal.verdict] for goal in goals(outcome)],
    )


def _kernels(title: str, outcome: Outcome) -> Table:
    used = {limit.kernels for name in outcome.rates if (limit := outcome.limit(_precision(name)))}
    return Table(
        title=f"{title}: what this machine multiplies, at the model's shapes",
        columns=["kernels", "GFLOP/s, median (min to max)", ""],
        rows=[
            [_shown(name), _giga(rates).text(0), "the limit" if name in used else ""]
            for name, rates in outcome.rates.items()
        ],
    )


def _absent(title: str, outcome: Outcome) -> Table:
    return Table(
        title=f"{title}: not measured",
        columns=["", "reason"],
        rows=[[_shown(name), reason] for name, reason in outcome.absent.items()],
    )


def _operators(title: str, found: Operators) -> Table:
    """Shares of the wall time: a row a layer, a column an operator."""
    kinds = found.kinds[:_MOST_KINDS]
    layers: list[tuple[str, int | None]] = [
        *((f"layer {layer}", layer) for layer in range(found.num_layers)),
        ("before and behind", OUTSIDE),
        ("all", None),
    ]
    rows = []
    for name, layer in layers:
        shares = [found.share(layer, kind) for kind in kinds]
        whole = found.share(layer, None)
        rows.append([name, *(f"{share:.1%}" for share in (*shares, max(whole - sum(shares), 0.0), whole))])
    rows.append(["between operators", *("" for _ in kinds), "", f"{max(1 - found.share(None, None), 0.0):.1%}"])
    return Table(title=title, columns=["", *kinds, "other", "all"], rows=rows)


def _line_figures(outcome: Outcome, line: Line) -> dict[str, Any]:
    return {
        "precision": line.contender.precision,
        "sequences_per_s": _numbers(line.per_s("ids")),
        "sequences_per_s_with_tokenising": _numbers(line.per_s("texts")),
        "gflop_per_s": _numbers(_achieved(outcome, line)),
        "share_of_limit": _numbers(outcome.share(line)),
        "share_with_attention_in_fp32": _numbers(outcome.share(line, attention_in_fp32=True)),
        "agreement": asdict(line.agreement),
        "passed": line.passed,
        "ndcg": line.ndcg,
        "cores": asdict(line.usage),
    }


def _profile_figures(found: Operators) -> dict[str, Any]:
    layers = [*range(found.num_layers), OUTSIDE]
    return {
        "by_operator": {kind: found.share(None, kind) for kind in found.kinds},
        "by_layer": {"outside" if layer == OUTSIDE else str(layer): found.share(layer, None) for layer in layers},
    }


def _achieved(outcome: Outcome, line: Line) -> Spread | None:
    """Operations of real tokens a second, in billions."""
    seconds = line.seconds("ids") or line.seconds("texts")
    if outcome.flops is None or seconds is None:
        return None
    return Spread.of(paired_ratios([each.total / 1e9 for each in outcome.flops], seconds))


def _giga(rates: Any) -> Spread:  # noqa: ANN401 -- a sequence of rates
    return Spread.of([rate / 1e9 for rate in rates])


def _precision(name: str) -> Any:  # noqa: ANN401 -- one of Precision, the last word of a kernel's name
    return name.rpartition(" ")[2]


def _shown(name: str) -> str:
    """Kernels by their runtime's own name; whatever else there is, as it is called."""
    runtime, _, precision = name.rpartition(" ")
    return f"{_RUNTIMES[runtime]}, {precision}" if runtime in _RUNTIMES else name


def _text(spread: Spread | None, digits: int) -> str:
    return "-" if spread is None else spread.text(digits)


def _percent(spread: Spread | None) -> str:
    return "-" if spread is None else f"{spread.median:.0%} ({spread.least:.0%} to {spread.greatest:.0%})"


def _numbers(spread: Spread | None) -> dict[str, float] | None:
    return None if spread is None else asdict(spread)
