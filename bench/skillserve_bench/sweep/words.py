"""A sweep in words, tables and charts; what is recorded of it besides stands in `record`."""

from __future__ import annotations

from collections.abc import Sequence

from skillserve.bootstrap import Estimate as Mean
from skillserve.settings.serving import Profile
from skillserve_bench.figures import times
from skillserve_bench.intervals import CONFIDENCE
from skillserve_bench.plots import Spot, draw_front
from skillserve_bench.processor import Usage
from skillserve_bench.report import Chart, Findings, Table, cores
from skillserve_bench.sweep.choice import LATENCY_SHARE, PROFILES, Choice, Front, choose, front_of
from skillserve_bench.sweep.record import Swept, figures_of, mean_ndcg, method_of
from skillserve_bench.sweep.trials import Trial

__all__ = ["findings_of"]

_UNITS: dict[Profile, str] = {"latency": "ms at p90", "throughput": "searches/s"}
_AXES: dict[Profile, str] = {"latency": "p90 of a lone search, ms", "throughput": "searches a second, many clients"}


def findings_of(swept: Swept) -> Findings:
    """The report; not passed where a point could not be measured, or its figures are not what they are called."""
    fronts = [front_of(swept.trials, profile) for profile in PROFILES]
    choices = [
        choice
        for profile in PROFILES
        if (choice := choose(swept.trials, profile, quality_loss=swept.sweep.quality_loss))
    ]
    return Findings(
        name="sweep",
        title="Settings against each other: quality, latency, throughput",
        passed=not swept.problems and not swept.interrupted and bool(choices),
        summary=[
            *(["PARTIAL: interrupted; what was measured until then stands."] if swept.interrupted else []),
            *(_recommended(choice) for choice in choices),
            *([] if choices else ["No point could be measured whole, so nothing is recommended."]),
            *(f"NOT VALID: {problem}" for problem in swept.problems),
        ],
        tables=[table for table in _tables(swept, fronts) if table.rows],
        draw=lambda: [_chart(front) for front in fronts if front.trials],
        method=method_of(swept),
        server=next((trial.server for trial in swept.trials if trial.server), "none that started"),
        figures=figures_of(swept, fronts, choices),
    )


def _recommended(choice: Choice) -> str:
    """A recommendation as somebody says it who is asked."""
    point, figures = choice.trial.point, _speed(choice.trial, choice.profile)
    tuning = f" {point.host.tuning.flags}".rstrip()
    sentence = (
        f"For {choice.profile} take point {point.title}: {figures}, NDCG@10 {_quality(choice.trial)}. "
        f"`skillserve serve --repository {point.host.subject.name}{tuning}`; "
        f"searches with `{point.asking.flags}`."
    )
    if choice.best is not choice.trial:
        lost = 100 * ((choice.best.ranking or choice.trial.ranking).ndcg - choice.trial.ranking.ndcg)  # type: ignore[union-attr]
        sentence += (
            f" The most accurate, point {choice.best.point.number}, has {lost:.1f} points of NDCG@10 more and "
            f"{_speed(choice.best, choice.profile)}."
        )
    if choice.equals:
        others = ", ".join(str(trial.point.number) for trial in choice.equals)
        sentence += f" Not told apart from it in speed: {others}."
    return sentence


def _speed(trial: Trial, profile: Profile) -> str:
    figure = trial.latency_ms(LATENCY_SHARE) if profile == "latency" else trial.per_s
    return f"{figure.text(1)} {_UNITS[profile]}"


def _quality(trial: Trial) -> str:
    return _with_interval(mean_ndcg(trial))


def _with_interval(found: Mean | None, *, signed: bool = False) -> str:
    if found is None:
        return "?"
    sign = "+" if signed else ""
    mean, low, high = (f"{round(value, 1) + 0.0:{sign}.1f}" for value in (found.mean, found.low, found.high))
    return f"{mean} [{low}, {high}]"


def _tables(swept: Swept, fronts: Sequence[Front]) -> list[Table]:
    measured = [trial for trial in swept.trials if trial.lone or trial.many]
    counted = [trial for trial in swept.trials if trial.counts]
    best = max(counted, key=lambda trial: trial.ranking.ndcg if trial.ranking else 0.0, default=None)
    return [
        Table(
            title=f"Points, with {CONFIDENCE:.0%} intervals",
            columns=[
                "point",
                "lone search p50, ms",
                "p90, ms",
                f"searches/s, {times(swept.bench.num_clients, 'client')}",
                "NDCG@10",
                "to the best, paired",
                *(f"{front.profile} front" for front in fronts),
            ],
            rows=[
                [
                    trial.point.title,
                    *(trial.latency_ms(share).text(1) if trial.lone else "?" for share in (0.5, LATENCY_SHARE)),
                    trial.per_s.text(1) if trial.many else "?",
                    _quality(trial),
                    "the best"
                    if trial is best
                    else _with_interval(mean_ndcg(trial, best) if best else None, signed=True),
                    *(front.remark(trial) for front in fronts),
                ]
                for trial in measured
            ],
        ),
        *(
            Table(
                title=f"Pareto front of NDCG@10 against {front.profile}",
                columns=["point", "NDCG@10", _UNITS[front.profile], "serve", "search"],
                rows=[
                    [
                        trial.point.title,
                        _quality(trial),
                        _speed(trial, front.profile).removesuffix(f" {_UNITS[front.profile]}"),
                        f"{trial.point.host.subject.name} {trial.point.host.tuning.flags or 'as exported'}",
                        trial.point.asking.flags,
                    ]
                    for trial in front.members
                ],
            )
            for front in fronts
        ),
        Table(
            title="Under load: the server's own view",
            columns=["point", "cores: client / search + server / others", "memory, MiB", "mean batch", "queue, ms"],
            rows=[
                [
                    trial.point.title,
                    cores(Usage.mean([each.usage for each in trial.many])),
                    _memory(trial),
                    *(_of_models(trial, part, digits) for part, digits in (("mean_batch", 1), ("queue_ms", 2))),
                ]
                for trial in measured
                if trial.many
            ],
        ),
        Table(
            title="Not measured, or not valid",
            columns=["point", "why"],
            rows=[[trial.point.title, text] for trial in swept.trials for text in trial.objections],
        ),
    ]


def _memory(trial: Trial) -> str:
    found = [each.memory_mib for each in trial.many if each.memory_mib is not None]
    return f"{max(found):.0f}" if found else "?"


def _of_models(trial: Trial, part: str, digits: int) -> str:
    """`embedder 2.1, reranker 1.4`, over all rounds."""
    found: dict[str, list[float]] = {}
    for each in trial.many:
        for role, split in each.split.items():
            if split["num_requests"]:
                found.setdefault(role, []).append(split[part])
    return ", ".join(f"{role} {sum(values) / len(values):.{digits}f}" for role, values in found.items()) or "?"


def _chart(front: Front) -> Chart:
    spots = [
        Spot(
            label=str(trial.point.number),
            x=standing.speed,
            y=100 * standing.quality,
            on_front=by is None,
        )
        for trial, standing, by in zip(front.trials, front.standings, front.beaten_by, strict=True)
    ]
    svg = draw_front(
        spots, xlabel=_AXES[front.profile], ylabel="NDCG@10, points", less_is_better=front.profile == "latency"
    )
    return Chart(title=f"NDCG@10 against {front.profile}", svg=svg)
