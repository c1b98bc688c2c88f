"""A whole measurement of latencies: server, levels and scenarios, one after another, into one report.

Beside peers, each scenario of the whole search is carried out on all contenders in turns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from skillserve.card import read_card
from skillserve.errors import ConfigError, ServerError, ServerUnreachable, SkillserveError
from skillserve.settings import BenchSettings, ClientSettings, IndexSettings, SearchSettings
from skillserve.skillfile import split_file
from skillserve.tensors import MODEL_NAMES
from skillserve_bench.beside import Beside
from skillserve_bench.lengths import LENGTHS
from skillserve_bench.levels import MULTI, IndexBuild, Level, Lines, open_lines
from skillserve_bench.load.generator import Generator, num_workers_for
from skillserve_bench.peers.field import Entrant, Field, Invited, named, opened_field
from skillserve_bench.peers.ranking import DEPTH, rank
from skillserve_bench.presentation import Material, findings_of
from skillserve_bench.report import Findings
from skillserve_bench.scenarios.latency import SCENARIOS, Results, Stand, run_in_turns
from skillserve_bench.server import Server
from skillserve_bench.supply import read_texts
from skillserve_client.quality import Judged, read_judged

__all__ = ["measure_latency", "sources_of"]


def measure_latency(
    server: Server,
    *,
    repository: Path,
    data: Path,
    settings: BenchSettings,
    client: ClientSettings,
    index: IndexSettings | None = None,
    invited: Invited | None = None,
) -> Findings:
    """Measure the levels and scenarios of the settings; `repository` is the server's, for cards and tokenizers.

    `index` says how the bundle of the level `search` is built; its folders and its alias are the measurement's own.

    Raises what keeps a measurement from beginning. What happens later ends it, and is told in the report of what was
    measured until then: a server that goes away, an error, Ctrl-C. Peers take part in the level `search`.
    """
    index = index or IndexSettings()
    _require_shared(index, settings.levels)
    results: list[Results] = []
    problems: list[str] = []
    built: IndexBuild | None = None
    beside: Beside | None = None
    search = SearchSettings()
    judged: Judged | None = None
    if invited:
        judged = read_judged(split_file(data, "queries", "test"), split_file(data, "qrels", "test"))
        reranks = (repository / MODEL_NAMES["reranker"]).is_dir()
        invited.require(read_card(repository / MODEL_NAMES["embedder"]), reranks=reranks)
        search = SearchSettings(rerank_depth=MULTI if reranks else 0, top_k=DEPTH)
    with (
        open_lines(
            server, repository=repository, data=data, client=client, search=search, seed=settings.seed, index=index
        ) as lines,
        Generator(num_workers=num_workers_for(settings.num_workers)) as generator,
    ):
        try:
            if "index" in settings.scenarios or "search" in settings.levels:
                built = lines.build_index()
            for level in settings.levels:
                if invited and judged is not None and level == "search":
                    with _field(invited, lines, server, repository, data, search, settings, client) as field:
                        beside = Beside(entered=field)
                        _measure_field(generator, beside, results, judged, settings)
                    continue
                stand = Stand(generator, lines.contender(level), settings)
                results.append(stand.results)
                stand.run([each for each in SCENARIOS if each in settings.scenarios])
                if generator.interrupted or stand.results.problem:
                    break
        except SkillserveError as error:
            if not results or (isinstance(error, ServerUnreachable) and built is None):
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
        index=built if "index" in settings.scenarios else None,
        sources=sources_of(lines),
        lens={role: supply.lens for role, supply in lines.supplies.items()},
        settings=settings,
        interrupted=interrupted,
        problems=problems,
        beside=beside,
    )
    return findings_of(material)


def _require_shared(index: IndexSettings, levels: Sequence[Level]) -> None:
    """Milvus Lite is in the process that opened it, and whole searches are sent by others."""
    if "search" in levels and index.kind == "milvus" and (index.uri or "").endswith(".db"):
        raise ConfigError(
            "setting index.uri",
            got=f"the local file `{index.uri}`, which one process holds",
            wanted="the address of a Milvus that load processes reach, too",
            fix="Name one: --uri http://host:19530, or leave the level out: --levels embedder,reranker",
        )


@contextmanager
def _field(
    invited: Invited,
    lines: Lines,
    server: Server,
    repository: Path,
    data: Path,
    search: SearchSettings,
    settings: BenchSettings,
    client: ClientSettings,
) -> Iterator[Field]:
    """Ours and the peers, running."""
    level: Level = "search"
    reranker = repository / MODEL_NAMES["reranker"]
    ours = Entrant(
        contender=lines.contender(level),
        about="skillserve: what `skillserve serve` serves, and its client",
        version=server.version,
        payload=str.encode,
        reranker=named(read_card(reranker) if search.rerank_depth else None),
        threads=None,
    )
    with opened_field(
        invited,
        ours,
        index=lines.index,
        texts=lambda: read_texts(data, seed=settings.seed),
        search=search,
        client=client,
    ) as field:
        yield field


def _measure_field(
    generator: Generator, beside: Beside, results: list[Results], judged: Judged, settings: BenchSettings
) -> None:
    """Every scenario on all contenders in turns, and how each ranks.

    Whoever fails is left out of further scenarios. Its ranking is asked for all the same: it may have been too slow for
    one of them, which says nothing of its quality.
    """
    length = LENGTHS[settings.length]
    scenarios = [each for each in SCENARIOS if each in settings.scenarios]
    stands = [Stand(generator, each.contender, settings) for each in beside.entered.entrants]
    results += [stand.results for stand in stands]
    run_in_turns(stands, scenarios)
    for entrant in beside.entered.entrants:
        if generator.interrupted:
            break
        with suppress(ServerError):  # it is gone; its results say so
            beside.rankings[entrant.name] = rank(
                generator,
                entrant.contender,
                entrant.payload,
                judged,
                most=length.num_judged,
                window_s=length.window_s,
                seed=settings.seed,
            )


def sources_of(lines: Lines) -> Sequence[str]:
    """What was searched and asked, in sentences of a report's method."""
    index = lines.index
    kept = index.token_embeddings
    return [
        f"Bundle: vectors in {index.kind}, lexical weight {index.lexical_weight:g}, part weight {index.part_weight:g}.",
        *(
            [f"It keeps up to {kept} token embeddings a skill: what reranking reads of skills was read in advance."]
            if kept
            else []
        ),
        *_requests(lines),
    ]


def _requests(lines: Lines) -> Sequence[str]:
    return [
        f"Requests for {level}: {texts.num_real:,} real ones, and {texts.num_composed:,} put together from the "
        "beginning of one and the end of another."
        for level, texts in lines.texts.items()
    ]
