"""Points under measurement: every server once a round, in turns, and on it every way to ask.

One server runs at a time, because idle ones would hold memory, and a restart is part of what varies. Rounds go through
the servers forwards and backwards by turns, so that a machine that slows down favours nobody.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from skillserve.console import talk
from skillserve.errors import SkillserveError
from skillserve.settings import BenchSettings, ClientSettings, IndexSettings, SearchSettings, SweepSettings
from skillserve_bench.figures import times
from skillserve_bench.intervals import Estimate, mean_estimate, quantile_estimate
from skillserve_bench.lengths import FULL, Length
from skillserve_bench.levels import Level, open_lines
from skillserve_bench.load.generator import Generator, num_workers_for
from skillserve_bench.measurement import Contender, Measurement
from skillserve_bench.peers.ranking import DEPTH, Ranking, rank
from skillserve_bench.scenarios.latency import Stand
from skillserve_bench.server import Server, started_server
from skillserve_bench.sweep.grid import Host, Point
from skillserve_client.manifest import CURRENT
from skillserve_client.quality import Judged

__all__ = ["Course", "Trial"]

WINDOWS_OF_A_LOAD = 20
"""Enough for intervals, warm-up left out; each still holds several searches of a slow server."""
_LEVEL: Level = "search"


@dataclass(slots=True, kw_only=True)
class Trial:
    """One point, and what was measured at it so far."""

    point: Point
    lone: list[Measurement] = field(default_factory=list)
    """One search at a time (MLPerf's SingleStream), a measurement for each round."""
    many: list[Measurement] = field(default_factory=list)
    """A closed loop of many clients, likewise."""
    ranking: Ranking | None = None
    problem: str | None = None
    """Why it was not, or not wholly, measured."""
    server: str = ""
    """Version of what was measured."""

    def latency_ms(self, share: float) -> Estimate:
        """A quantile of lone searches, over all rounds."""
        return _latency(self.lone, share)

    @property
    def per_s(self) -> Estimate:
        """Searches a second of many clients, over all rounds."""
        rounds = [rates for each in self.many for rates in each.rates]
        return mean_estimate(rounds, seed=self.many[0].seed if self.many else 0)

    @property
    def objections(self) -> list[str]:
        """Why its figures are not what they are called; empty if they are."""
        found = [self.problem] if self.problem else []
        for each in (*self.lone, *self.many):
            found += [f"{each.scenario}: {text}" for text in each.objections]
            if each.failures:
                kinds = ", ".join(f"{num} {kind}" for kind, num in sorted(each.failures.items()))
                found.append(f"{each.scenario}: failed: {kinds}")
        if self.ranking and (missing := self.ranking.num_requests - self.ranking.num_answered):
            found.append(f"quality: {times(missing, 'request')} without an answer, which counts as a wrong one")
        return list(dict.fromkeys(found))

    @property
    def counts(self) -> bool:
        """Whether it may stand on a front and be recommended."""
        return bool(self.lone and self.many and self.ranking) and not self.objections


class Course:
    """All trials of a sweep."""

    def __init__(
        self,
        points: Iterable[Point],
        *,
        data: Path,
        judged: Judged,
        bundles: Path,
        sweep: SweepSettings,
        bench: BenchSettings,
        client: ClientSettings,
        index: IndexSettings,
    ) -> None:
        self.trials = [Trial(point=point) for point in points]
        self._data, self._judged = data, judged
        repositories = dict.fromkeys(trial.point.host.subject.repository for trial in self.trials)
        # Numbered: a name made fit for a folder may be another subject's, whose index would then be searched.
        self.bundles = {repository: bundles / str(number) for number, repository in enumerate(repositories, 1)}
        """Repository → folder of its bundles."""
        self._sweep, self._bench, self._client, self._index = sweep, bench, client, index
        self._length: Length = replace(
            FULL, window_s=sweep.seconds / WINDOWS_OF_A_LOAD, run_s=sweep.seconds, least_requests=0, rounds=1
        )
        self._rankings: dict[tuple[Path, int, int], Ranking] = {}

    def run(self) -> None:
        """All rounds. What fails is told by the trials; Ctrl-C is KeyboardInterrupt, and what was measured stands."""
        hosts = [(host, list(group)) for host, group in itertools.groupby(self.trials, lambda trial: trial.point.host)]
        talk(
            f"{times(len(self.trials), 'point')} on {times(len(hosts), 'server')}, "
            f"{times(self._sweep.rounds, 'round')}: "
            f"{2 * len(self.trials) * self._sweep.rounds * self._sweep.seconds / 60:.1f} minutes of load"
        )
        for number in range(self._sweep.rounds):
            step = 1 if number % 2 == 0 else -1
            for host, trials in hosts[::step]:
                self._serve(host, [trial for trial in trials[::step] if not trial.problem], number)

    def _serve(self, host: Host, trials: Sequence[Trial], number: int) -> None:
        if not trials:
            return
        talk(f"round {number + 1} of {self._sweep.rounds}: {host.name or host.subject.name}")
        try:
            with (
                started_server(host.subject.repository, tuning=host.tuning) as server,
                Generator(num_workers=num_workers_for(self._bench.num_workers)) as generator,
            ):
                for trial in trials:
                    self._measure(trial, server, generator, number)
                    if generator.interrupted:
                        raise KeyboardInterrupt
        except SkillserveError as error:
            # What the server itself cannot be is the same for all points on it.
            for trial in trials:
                trial.problem = trial.problem or f"server: {' '.join(error.got.split())}"
            talk(f"{host.name or host.subject.name} cannot be measured: {error}")

    def _measure(self, trial: Trial, server: Server, generator: Generator, number: int) -> None:
        asking, subject = trial.point.asking, trial.point.host.subject
        trial.server = server.version
        talk(f"point {trial.point.title}")
        bundles = self.bundles[subject.repository]
        with open_lines(
            server,
            repository=subject.repository,
            data=self._data,
            client=self._client.model_copy(update={"max_request_tokens": asking.max_request_tokens}),
            # A ranking is evaluated as a ranking: an abstained answer would have none.
            search=SearchSettings(
                candidates=asking.candidates, rerank_depth=asking.rerank_depth, top_k=DEPTH, abstain=False
            ),
            seed=self._bench.seed + number,
            index=self._index,
            bundles=bundles,
        ) as lines:
            if not (bundles / CURRENT).exists():
                lines.build_index()
            contender = lines.contender(_LEVEL)
            stand = Stand(generator, contender, self._bench, length=self._length)
            results = stand.run(["single", "offline"])
            trial.lone += [each for each in results.measurements if each.scenario == "single"]
            trial.many += [each for each in results.measurements if each.scenario == "offline"]
            trial.problem = results.problem
            if not (results.problem or generator.interrupted):
                trial.ranking = self._ranking(trial, contender, generator)

    def _ranking(self, trial: Trial, contender: Contender, generator: Generator) -> Ranking:
        """Quality is measured once where answers are the same: threads and instances change none."""
        asking = trial.point.asking
        key = (trial.point.host.subject.repository, asking.candidates, asking.rerank_depth)
        if key in self._rankings:
            return self._rankings[key]
        found = rank(
            generator,
            contender,
            str.encode,
            self._judged,
            most=self._sweep.num_judged,
            window_s=self._length.window_s,
            seed=self._bench.seed,
        )
        if found.num_answered == found.num_requests:  # what one server did not answer, another may
            self._rankings[key] = found
        return found


def _latency(found: Sequence[Measurement], share: float) -> Estimate:
    rounds = [windows for each in found for windows in each.latencies]
    return quantile_estimate(rounds, share, seed=found[0].seed if found else 0)
