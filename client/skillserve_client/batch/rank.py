"""The job `rank`: the two-stage search, for a file of requests.

Every request runs the plan that a search runs (`skillserve_client.plan`); only the waiting differs. All plans of a
shard stop at their next inference, and what they ask for is computed together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from skillserve.errors import QueryError
from skillserve.records import Answer, Query
from skillserve.settings import SearchSettings
from skillserve.skillfile import query_of
from skillserve.tensors import Role
from skillserve_client.batch.engine import Engine, Tokens
from skillserve_client.batch.inputs import Sources
from skillserve_client.batch.jobs import Outcome, Refused
from skillserve_client.bundle import Bundle
from skillserve_client.plan import Plan, Step, choose_depth, plan_search, proceed

__all__ = ["Begun", "RankJob"]


@dataclass(frozen=True, slots=True)
class Begun:
    """A request's plan, and where it stopped."""

    query: Query
    plan: Plan
    step: Step | Answer


@dataclass(frozen=True, slots=True)
class RankJob:
    """Answers as `skillserve search` gives them, without deadline and times."""

    sources: Sources[Query]
    bundle: Bundle
    settings: SearchSettings
    name: Literal["rank"] = "rank"
    dim: None = None
    shard_rows: int = 256

    @classmethod
    def of(cls, paths: Sequence[Path], bundle: Bundle, settings: SearchSettings) -> RankJob:
        """The job for these files, with a bundle; ConfigError for a weight that it cannot serve."""
        bundle.corpus.chosen(settings)
        sources = Sources(paths=paths, parse=query_of, needed=("id", "query"))
        return cls(sources, bundle, settings.model_copy(update={"deadline_ms": None}))

    @property
    def digests(self) -> Mapping[Role, str]:
        """Of the models that take part."""
        depth, _ = choose_depth(self.bundle, self.settings.rerank_depth)
        return {role: digest for role, digest in self.bundle.serving.items() if depth or role == "embedder"}

    @property
    def options(self) -> Mapping[str, Any]:
        """The bundle and how it is searched."""
        return {
            "bundle": self.bundle.version,
            "bundle_digest": self.bundle.digest,
            "search": self.settings.model_dump(exclude={"deadline_ms"}),
        }

    def prepare(self, records: Sequence[Query]) -> list[Begun | Refused]:
        """Begin every plan: it tokenises, and asks for embeddings."""
        return [self._begin(query) for query in records]

    def score(self, prepared: list[Begun | Refused], engine: Engine, advance: Tokens) -> list[Outcome]:
        """Carry all plans out, side by side."""
        states = list(prepared)
        while waiting := _waiting(states):
            self._infer(waiting, states, engine, advance)
        return [state if isinstance(state, Refused) else _columns(state) for state in states]

    def _begin(self, query: Query) -> Begun | Refused:
        plan = plan_search(self.bundle, query.text, self.settings)
        try:
            return Begun(query, plan, proceed(plan, None))
        except QueryError as error:
            return Refused(f"{error.subject}: {error.got}")

    def _infer(
        self, waiting: list[tuple[int, Begun, Step]], states: list[Begun | Refused], engine: Engine, advance: Tokens
    ) -> None:
        """What all plans that wait for the first one's model ask for, in one call; each goes on with its own rows."""
        role = waiting[0][2].role
        asked = [(i, begun, step) for i, begun, step in waiting if step.role == role]
        sequences = [sequence for _, _, step in asked for sequence in step.sequences]
        inferred = engine.infer(
            role,
            sequences,
            digest=self.bundle.serving[role],
            score_kind=self.bundle.corpus.score_kind(role),
            advance=advance,
        )
        model, end, last_row = engine.served(role), 0, 0
        for i, begun, step in asked:
            start, end = end, end + len(step.sequences)
            first_row, last_row = last_row, last_row + model.num_rows(step.sequences)
            reasons = [inferred.refused[at] for at in range(start, end) if at in inferred.refused]
            if reasons:
                states[i] = Refused(f"{role}: {reasons[0]}")
            else:
                states[i] = Begun(begun.query, begun.plan, proceed(begun.plan, inferred.rows[first_row:last_row]))


def _waiting(states: Sequence[Begun | Refused]) -> list[tuple[int, Begun, Step]]:
    """Those that stopped at an inference."""
    return [
        (i, state, state.step)
        for i, state in enumerate(states)
        if isinstance(state, Begun) and isinstance(state.step, Step)
    ]


def _columns(ended: Begun) -> Outcome:
    """What of an answer depends on the request; bundle and digests are those of the whole run."""
    if isinstance(ended.step, Step):
        raise TypeError("this plan still waits for an inference")
    row = ended.step.to_dict()
    names = ("status", "probability", "reranked", "hits", "near_misses", "notes")
    return {"id": ended.query.id, **{name: row[name] for name in names}}
