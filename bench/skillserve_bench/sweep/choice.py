"""Which point is recommended, and the file that `serve --profile` reads.

For latency that is the least p90 of a lone search (the figure of MLPerf's SingleStream), for throughput the most
searches a second; among points whose NDCG@10 is near enough to the best one's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from skillserve.recommendation import Advice, Machine, Recommendation, Recommended
from skillserve.settings.serving import Profile
from skillserve_bench.environment import Environment
from skillserve_bench.sweep.front import Standing, dominators, told_apart
from skillserve_bench.sweep.trials import Trial

__all__ = ["LATENCY_SHARE", "PROFILES", "Choice", "Front", "choose", "front_of", "recommendation_of"]

PROFILES: tuple[Profile, ...] = get_args(Profile)
LATENCY_SHARE = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """All points that count, by one profile."""

    profile: Profile
    trials: Sequence[Trial]
    standings: Sequence[Standing]
    beaten_by: Sequence[int | None]
    """Place of a point of the front that beats it; None on the front."""

    @property
    def members(self) -> list[Trial]:
        """The points of the front, best quality first."""
        found = [trial for trial, by in zip(self.trials, self.beaten_by, strict=True) if by is None]
        return sorted(found, key=lambda trial: -_ndcg(trial))

    def remark(self, trial: Trial) -> str:
        """What the table says of a point: `on it`, or who beats it, with `?` where intervals meet."""
        place = next((i for i, each in enumerate(self.trials) if each is trial), None)
        if place is None:
            return "not valid"
        by = self.beaten_by[place]
        if by is None:
            return "on it"
        apart = told_apart(self.standings[place].speed, self.standings[by].speed)
        return f"by {self.trials[by].point.number}" + ("" if apart else "?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The recommended point of a profile."""

    profile: Profile
    trial: Trial
    best: Trial
    """The most accurate point that it was measured against; may be itself."""
    equals: Sequence[Trial]
    """Others that qualify and whose intervals meet this one's."""


def front_of(trials: Sequence[Trial], profile: Profile) -> Front:
    """The Pareto front among the points that count."""
    counted = [trial for trial in trials if trial.counts]
    standings = [_standing(trial, profile) for trial in counted]
    return Front(profile=profile, trials=counted, standings=standings, beaten_by=dominators(standings))


def choose(trials: Sequence[Trial], profile: Profile, *, quality_loss: float) -> Choice | None:
    """The fastest point whose NDCG@10 is at most `quality_loss` below the best; None if no point counts."""
    counted = [trial for trial in trials if trial.counts]
    if not counted:
        return None
    best = max(counted, key=_ndcg)
    near = [trial for trial in counted if _ndcg(trial) >= _ndcg(best) - quality_loss]
    sign = 1 if profile == "latency" else -1
    fastest = min(near, key=lambda trial: sign * _standing(trial, profile).speed.value)
    speed = _standing(fastest, profile).speed
    equals = [
        trial for trial in near if trial is not fastest and not told_apart(_standing(trial, profile).speed, speed)
    ]
    return Choice(profile=profile, trial=fastest, best=best, equals=equals)


def recommendation_of(
    trials: Sequence[Trial], environment: Environment, *, num_clients: int, quality_loss: float
) -> Recommendation | None:
    """The file: the choice of each repository among its own points; None if there is none at all."""
    found: list[Recommended] = []
    for repository in dict.fromkeys(trial.point.host.subject.repository for trial in trials):
        own = [trial for trial in trials if trial.point.host.subject.repository == repository]
        choices = {profile: choose(own, profile, quality_loss=quality_loss) for profile in PROFILES}
        profiles = {profile: _advice(choice.trial) for profile, choice in choices.items() if choice}
        if profiles:
            subject = own[0].point.host.subject
            found.append(Recommended(repository=subject.name, models=subject.models, profiles=profiles))
    if not found:
        return None
    return Recommendation(
        date=environment.date,
        skillserve=environment.packages["skillserve"],
        commit=environment.commit,
        server=next(trial.server for trial in trials if trial.counts),
        machine=Machine(processor=environment.processor, num_cores=environment.num_cores, gpus=environment.gpus),
        num_clients=num_clients,
        quality_loss=quality_loss,
        recommended=tuple(found),
    )


def _advice(trial: Trial) -> Advice:
    figures: Mapping[str, float] = {
        "p50_ms": trial.latency_ms(0.5).value,
        "p90_ms": trial.latency_ms(LATENCY_SHARE).value,
        "searches_per_s": trial.per_s.value,
        "ndcg@10": _ndcg(trial),
    }
    return Advice(
        serve=trial.point.host.tuning,
        asking=trial.point.asking,
        figures={name: round(value, 4) for name, value in figures.items()},
    )


def _standing(trial: Trial, profile: Profile) -> Standing:
    speed = trial.latency_ms(LATENCY_SHARE) if profile == "latency" else trial.per_s
    return Standing(quality=_ndcg(trial), speed=speed, less_is_better=profile == "latency")


def _ndcg(trial: Trial) -> float:
    return trial.ranking.ndcg if trial.ranking else 0.0
