"""The served line as a system: what a running server and the live bundle answer, in the order that users see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from skillserve.console import progress, talk
from skillserve.errors import BundleError, ServerError
from skillserve.fusion import FirstStageWeights
from skillserve.records import Answer, Query, Run, Skill
from skillserve.runs import by_rank
from skillserve.settings import ClientSettings, SearchSettings, Settings
from skillserve.systems import require_query_prompt
from skillserve_client.bundle import Bundle, open_bundle
from skillserve_client.plan import choose_depth
from skillserve_client.search import Searcher
from skillserve_client.triton import Triton

__all__ = ["ServedSystem", "open_served"]


@dataclass(frozen=True, slots=True)
class ServedSystem:
    """A `skillserve.systems.System`: the searcher's own plan, many searches at once."""

    name: str
    bundle: Bundle
    client: ClientSettings
    rerank_depth: int

    @property
    def digests(self) -> Mapping[str, str]:
        """Of the models that take part, the reranker's only if something is reranked."""
        depth, _ = choose_depth(self.bundle, self.rerank_depth)
        return {role: digest for role, digest in self.bundle.digests.items() if depth or role == "embedder"}

    def rank(self, queries: Sequence[Query], skills: Sequence[Skill], *, depth: int) -> Run:
        """The first `depth` hits of each query; scores only tell the rank, since the stages' scales differ.

        Raises BundleError if the bundle holds other skills, ServerError if the server fails or an answer is not whole.
        """
        self._require_same(skills)
        settings = SearchSettings(
            candidates=max(depth, self.rerank_depth),
            rerank_depth=self.rerank_depth,
            top_k=depth,
            deadline_ms=None,
            abstain=False,
        )
        with Triton(self.client) as triton:
            answers = self._answers(Searcher(self.bundle, triton, settings), queries)
        # Whatever is not a ranking of the whole line, in its own order, would pass for one.
        amiss = [answer for answer in answers if answer.status != "ok"]
        if amiss:
            told = "; ".join([amiss[0].status, *amiss[0].notes])
            raise ServerError(
                f"system `{self.name}`",
                got=f"{len(amiss)} of {len(queries)} answers that are not ok: {told}",
                wanted="every answer whole",
                fix="Run it again when the server is well, with a larger --timeout-s or a smaller --num-in-flight.",
            )
        return {
            query.id: by_rank([hit.skill_id for hit in answer.hits])
            for query, answer in zip(queries, answers, strict=True)
        }

    def _answers(self, searcher: Searcher, queries: Sequence[Query]) -> list[Answer]:
        """As many searches at once as the client may have requests in flight; the server joins what it is sent."""
        answers = []
        with ThreadPoolExecutor(self.client.num_in_flight) as pool, progress("search", len(queries)) as bar:
            for answer in pool.map(searcher.search, [query.text for query in queries]):
                answers.append(answer)
                bar.advance()
        return answers

    def _require_same(self, skills: Sequence[Skill]) -> None:
        served, evaluated = set(self.bundle.corpus.skills.ids()), {skill.id for skill in skills}
        if served != evaluated:
            raise BundleError(
                f"bundle {self.bundle.version}",
                got=f"{len(served)} skills, {len(served - evaluated)} of which are not evaluated; "
                f"{len(evaluated - served)} evaluated ones are not in it",
                wanted=f"just the {len(evaluated)} evaluated skills, for figures of another catalogue do not compare",
                fix="Build a bundle of these skills: skillserve index SKILLS --bundles FOLDER",
            )


def open_served(bundles: str, settings: Settings) -> ServedSystem:
    """The `skillserve.systems.Opener` of `server:BUNDLES`.

    Raises BundleError, or CardError for an embedder that lacks its query prompt, and ServerError if the server does
    not run the bundle's models; all before anything is ranked.
    """
    bundle = open_bundle(Path(bundles), index=settings.index)
    require_query_prompt(bundle.corpus.embedder.card, subject=f"bundle {bundle.version}")
    system = ServedSystem(f"server:{bundles}", bundle, settings.client, settings.evaluate.rerank_depth)
    with Triton(settings.client) as triton:
        Searcher(bundle, triton, SearchSettings(rerank_depth=system.rerank_depth))
    served, in_process = bundle.manifest.weights, FirstStageWeights.of(settings.evaluate)
    if served != in_process:
        talk(f"{system.name} ranks with its bundle's weights ({served}), systems in process with ({in_process}).")
    _, reason = choose_depth(bundle, system.rerank_depth)
    if reason is not None:
        talk(f"{system.name} is {reason}.")
    return system
