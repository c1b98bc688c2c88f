"""What a report says of peers: their figures beside ours, ratios within the run, and who did not take part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from skillserve.settings import BenchSettings
from skillserve_bench.intervals import Estimate, quantile_ratio
from skillserve_bench.measurement import Measurement
from skillserve_bench.peers.field import Entrant, Field
from skillserve_bench.peers.ranking import DEPTH, Ranking
from skillserve_bench.report import Table
from skillserve_bench.scenarios.latency import Results

__all__ = ["Beside", "beside_figures", "beside_method", "beside_summary", "beside_tables"]

_MEDIAN = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """Who took part, ours first, and how each ranks."""

    entered: Field
    rankings: dict[str, Ranking] = field(default_factory=dict)


def beside_summary(beside: Beside, results: Sequence[Results], settings: BenchSettings) -> list[str]:
    """One sentence a peer, and one for each that did not take part."""
    ours, *others = beside.entered.entrants
    by_name = {each.contender: each for each in results}
    lines = []
    for each in others:
        longer, rate = _longer(by_name, each.name, ours.name, settings), _more(by_name, each.name, ours.name)
        parts = []
        if longer is not None:
            parts.append(f"a lone search takes {longer.text()} times ours at the median")
        if rate is not None:
            parts.append(f"ours carries {rate.text()} times its rate, p99 within {settings.bound}")
        if each.name in beside.rankings and ours.name in beside.rankings:
            parts.append(f"NDCG@{DEPTH} {_points(beside, each.name)}, ours {_points(beside, ours.name)}")
        if parts:
            lines.append(f"{each.name}: {'; '.join(parts)}.")
    return lines + [f"{name} did NOT take part: {reason}" for name, reason in beside.entered.absent.items()]


def beside_tables(beside: Beside, results: Sequence[Results], settings: BenchSettings) -> list[Table]:
    """Figures with ratios, what was measured, and who was not."""
    ours = beside.entered.entrants[0].name
    by_name = {each.contender: each for each in results}
    found = [each for each in beside.entered.entrants if each.name in by_name]
    return [
        Table(
            title="The whole search beside peers",
            columns=[
                "",
                "lone request, p50, ms",
                "times ours",
                f"requests/s with p99 within {settings.bound}",
                "ours carries",
                "saturation, requests/s",
                f"NDCG@{DEPTH}",
            ],
            rows=[
                [
                    each.name,
                    _median(by_name[each.name]),
                    "1" if each.name == ours else _text(_longer(by_name, each.name, ours, settings)),
                    _rate(by_name[each.name], settings),
                    "" if each.name == ours else _text(_more(by_name, each.name, ours), " times its rate"),
                    _number(by_name[each.name].saturation_per_s),
                    _points(beside, each.name),
                ]
                for each in found
            ],
        ),
        Table(
            title="Who was measured",
            columns=["", "what", "version", "reranker", "threads", "memory, MiB"],
            rows=[
                [
                    each.name,
                    each.about,
                    each.version,
                    each.reranker,
                    "as configured" if each.threads is None else str(each.threads),
                    _memory(by_name[each.name]),
                ]
                for each in found
            ],
        ),
        Table(
            title="Who did not take part",
            columns=["peer", "reason"],
            rows=[list(each) for each in beside.entered.absent.items()],
        ),
    ]


def beside_method(beside: Beside) -> list[str]:
    """How peers were measured."""
    lines = [
        (
            "Peers: each part of a scenario is carried out on all contenders in turns, ours first and every other time "
            "last, on the same cores, by the same load processes, with the same requests in the same order. All are "
            "started before the first, and idle while another is measured."
        ),
        (
            "Daemons of peers get texts and give ids, one line each over TCP on loopback, in an environment of their "
            "own. They search the vectors of our bundle with FAISS's flat index, and rerank as many candidates as "
            "ours. What is past its deadline before its turn is dropped."
        ),
    ]
    if beside.rankings:
        num = next(iter(beside.rankings.values())).num_requests
        lines.append(f"NDCG@{DEPTH}: {num} judged requests drawn from the seed, through the target that was timed.")
    rerankers = {each.reranker for each in beside.entered.entrants}
    if len(rerankers) > 1:
        lines.append(
            f"Contenders rerank with different models: {', '.join(sorted(rerankers))}. Latencies compare systems, and "
            f"NDCG@{DEPTH} says what each gives for its time."
        )
    return lines


def beside_figures(beside: Beside, results: Sequence[Results], settings: BenchSettings) -> dict[str, Any]:
    """The same as numbers; ratios are `p50` of the peer over ours, and `rate` of ours over the peer's."""
    ours = beside.entered.entrants[0].name
    by_name = {each.contender: each for each in results}
    return {
        "ours": ours,
        "absent": dict(beside.entered.absent),
        "contenders": {
            each.name: _figures(each, beside.rankings.get(each.name))
            | {
                "p50_ratio": _dict(_longer(by_name, each.name, ours, settings)),
                "rate_ratio": _dict(_more(by_name, each.name, ours)),
            }
            for each in beside.entered.entrants
        },
    }


def _figures(entrant: Entrant, ranking: Ranking | None) -> dict[str, Any]:
    return {
        "about": entrant.about,
        "version": entrant.version,
        "reranker": entrant.reranker,
        "threads": entrant.threads,
        "quality": None if ranking is None else ranking.to_dict(),
    }


def _single(results: Results | None) -> Measurement | None:
    """The measurement of lone requests, if it has answers."""
    found = [each for each in results.measurements if each.scenario == "single"] if results else []
    return found[0] if found and found[0].num_answered else None


def _longer(by_name: Mapping[str, Results], name: str, ours: str, settings: BenchSettings) -> Estimate | None:
    one, other = _single(by_name.get(name)), _single(by_name.get(ours))
    if one is None or other is None:
        return None
    return quantile_ratio(one.latencies, other.latencies, _MEDIAN, seed=settings.seed)


def _more(by_name: Mapping[str, Results], name: str, ours: str) -> Estimate | None:
    one, other = (by_name[each].highest if each in by_name else None for each in (ours, name))
    return None if one is None or other is None else one.relative_to(other)


def _median(results: Results) -> str:
    found = _single(results)
    return "?" if found is None else found.latency_ms(_MEDIAN).text(1)


def _memory(results: Results) -> str:
    known = [each.memory_mib for each in results.measurements if each.memory_mib is not None]
    return f"{max(known):.0f}" if known else "?"


def _rate(results: Results, settings: BenchSettings) -> str:
    """With its bound where each contender has its own."""
    if results.highest is not None:
        own = "" if settings.bound_factor is None else f" ({results.bound})"
        return f"{results.highest.text}{own}"
    return "none confirmed" if results.probes else "?"


def _points(beside: Beside, name: str) -> str:
    ranking = beside.rankings.get(name)
    if ranking is None:
        return "?"
    unanswered = ranking.num_requests - ranking.num_answered
    return f"{ranking.ndcg * 100:.2f}" + (f" ({unanswered} without an answer)" if unanswered else "")


def _text(ratio: Estimate | None, of: str = "") -> str:
    return "?" if ratio is None else f"{ratio.text()}{of}"


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:.4g}"


def _dict(ratio: Estimate | None) -> dict[str, float | None] | None:
    return None if ratio is None else asdict(ratio)
