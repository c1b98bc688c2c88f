"""A whole measurement of latencies: server, levels and scenarios, one after another, into one report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from skillserve.errors import ServerUnreachable, SkillserveError
from skillserve.settings import BenchSettings, ClientSettings
from skillserve_bench.levels import IndexBuild, Lines, open_lines
from skillserve_bench.load.generator import Generator, num_workers_for
from skillserve_bench.presentation import Material, findings_of
from skillserve_bench.report import Findings
from skillserve_bench.scenarios.latency import SCENARIOS, Results, Stand
from skillserve_bench.server import Server

__all__ = ["measure_latency"]


def measure_latency(
    server: Server, *, repository: Path, data: Path, settings: BenchSettings, client: ClientSettings
) -> Findings:
    """Measure the levels and scenarios of the settings; `repository` is the server's, for cards and tokenizers.

    Raises what keeps a measurement from beginning. What happens later ends it, and is told in the report of what was
    measured until then: a server that goes away, an error, Ctrl-C.
    """
    results: list[Results] = []
    problems: list[str] = []
    index: IndexBuild | None = None
    with (
        open_lines(server, repository=repository, data=data, client=client, seed=settings.seed) as lines,
        Generator(num_workers=num_workers_for(settings.num_workers)) as generator,
    ):
        try:
            if "index" in settings.scenarios or "search" in settings.levels:
                index = lines.build_index()
            for level in settings.levels:
                stand = Stand(generator, lines.contender(level), settings)
                results.append(stand.results)
                stand.run([each for each in SCENARIOS if each in settings.scenarios])
                if generator.interrupted or stand.results.problem:
                    break
        except SkillserveError as error:
            if not results or (isinstance(error, ServerUnreachable) and index is None):
                raise
            problems.append(str(error))
        except KeyboardInterrupt:
            if not results:
                raise
            generator.interrupted = True
        interrupted = generator.interrupted
    material = Material(
        server=server.version,
        results=results,
        index=index if "index" in settings.scenarios else None,
        sources=_sources(lines),
        lens={role: supply.lens for role, supply in lines.supplies.items()},
        settings=settings,
        interrupted=interrupted,
        problems=problems,
    )
    return findings_of(material)


def _sources(lines: Lines) -> Sequence[str]:
    return [
        f"Requests for {level}: {texts.num_real:,} real ones, and {texts.num_composed:,} put together from the "
        "beginning of one and the end of another."
        for level, texts in lines.texts.items()
    ]
