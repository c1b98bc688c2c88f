"""A verdict as files: `gate.json` for machines, `gate.md` for people, and two plots.

<repository>/../reports/skill_embedder-fp32-3f2a…/
├── gate.json      everything, request by request
├── gate.md        the verdict, why, and the requests that moved most
├── scores.png     the candidate's scores over the reference's
└── overlap.png    how many requests share how much of their first ten
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from skillserve.publish import write_bytes, write_text
from skillserve_export.ranks import RankFigures, RequestRanks
from skillserve_export.verdict import Verdict

__all__ = ["REPORT_FILE", "report_of", "write_report"]

REPORT_FILE = "gate.json"
_PAGE = "gate.md"
_SCORES = "scores.png"
_OVERLAP = "overlap.png"
_MOST_SHOWN = 10
"""Requests that the page lists."""


def write_report(folder: Path, verdict: Verdict) -> None:
    """Write the four files, or two where nothing could be compared; the verdict itself last."""
    title = f"{verdict.card.name}, {verdict.candidate.precision}"
    if verdict.figures is not None:
        from skillserve_export.plots import draw_overlaps, draw_scores  # only a run that draws waits for Matplotlib

        write_bytes(folder / _SCORES, draw_scores(verdict.figures.points, title))
        write_bytes(folder / _OVERLAP, draw_overlaps([each.overlap for each in verdict.figures.requests], title))
    report = report_of(verdict)
    write_text(folder / _PAGE, _page(verdict, report))
    write_text(folder / REPORT_FILE, json.dumps(report, indent=1) + "\n")


def report_of(verdict: Verdict) -> dict[str, Any]:
    """Everything that is known, as `gate.json` keeps it; shares are in [0, 1], NDCG differences too."""
    card, figures, requests = verdict.card, verdict.figures, verdict.requests
    return {
        "schema_version": 1,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "passed": verdict.passed,
        "model": {"name": card.name, "role": card.role, "digest": card.digest},
        "precision": verdict.candidate.precision,
        "candidate": {"name": verdict.candidate.name, **verdict.candidate.facts},
        "reference": {"name": verdict.reference.name, **verdict.reference.facts},
        "requests": {
            "source": requests.source,
            "digest": requests.digest,
            "num_requests": len(requests.query_ids),
            "num_skills": len(requests.skill_ids),
            "num_sequences": len(requests.sequences),
            "candidates": None if requests.pools is None else requests.pools.source,
        },
        "limits": verdict.gate.model_dump(),
        "checks": [check.to_dict() for check in verdict.checks],
        "figures": None if figures is None else _figures(figures),
        "per_request": [] if figures is None else [asdict(each) for each in figures.requests],
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("skillserve", "onnxruntime", "optimum", "torch", "numpy")},
        },
    }


def _figures(figures: RankFigures) -> dict[str, Any]:
    return {
        "top1": figures.top1,
        "overlap": figures.overlap,
        "ndcg": None if figures.ndcg is None else asdict(figures.ndcg),
        "drift_max": figures.drift_max,
        "drift_mean": figures.drift_mean,
    }


def _page(verdict: Verdict, report: Mapping[str, Any]) -> str:
    asked = report["requests"]
    pool = asked["candidates"] or "the whole catalogue, exact search"
    model = f"`{verdict.card.name}` ({verdict.card.role}, digest {verdict.card.short_digest})"
    lines = [
        f"# Rank gate: {'passed' if verdict.passed else 'FAILED'}",
        "",
        f"{model} in {verdict.candidate.precision}, {report['created']}.",
        "",
        "| check | passed | found |",
        "|---|---|---|",
        *(f"| {check.name} | {'yes' if check.passed else '**NO**'} | {check.detail} |" for check in verdict.checks),
        "",
    ]
    figures = verdict.figures
    if figures is not None:
        if figures.ndcg is None:
            lines += ["NDCG is not judged: nobody says which skills fit these requests.", ""]
        lines += [
            f"Scores drift by {figures.drift_max:.2e} at most and {figures.drift_mean:.2e} on average.",
            "",
            f"![scores of candidate and reference]({_SCORES})",
            f"![overlap of the first ten]({_OVERLAP})",
            "",
        ]
    lines += [
        "| | |",
        "|---|---|",
        *(
            f"| {who}: {name.replace('_', ' ')} | {value} |"
            for who in ("candidate", "reference")
            for name, value in report[who].items()
        ),
        f"| requests | {asked['num_requests']:,} of {asked['source']}, digest {(asked['digest'] or 'none')[:12]} |",
        f"| ranked among | {asked['num_skills']:,} skills; {pool} |",
        "",
    ]
    if figures is not None:
        lines += _moved(figures.requests)
    return "\n".join(lines)


def _moved(requests: Sequence[RequestRanks]) -> list[str]:
    """The requests that moved most, those that lost NDCG first."""
    moved = [each for each in requests if not each.top1 or each.overlap < 1 or _lost(each)]
    if not moved:
        return ["No request has other first ten skills than in the reference.", ""]
    moved.sort(key=lambda each: (-_lost(each), each.top1, each.overlap, each.query))
    rows = [
        f"| {each.query.replace('|', ' ')} | {'yes' if each.top1 else 'no'} | {each.overlap:.0%} | {_ndcg(each)} |"
        for each in moved[:_MOST_SHOWN]
    ]
    return [
        f"{len(moved):,} of {len(requests):,} requests moved; those that moved most:",
        "",
        "| request | first skill | first ten | NDCG@10, reference → candidate |",
        "|---|---|---:|---|",
        *rows,
        "",
    ]


def _lost(each: RequestRanks) -> float:
    return (each.ndcg_reference or 0.0) - (each.ndcg_candidate or 0.0)


def _ndcg(each: RequestRanks) -> str:
    if each.ndcg_reference is None or each.ndcg_candidate is None:
        return ""
    return f"{each.ndcg_reference:.3f} → {each.ndcg_candidate:.3f}"
