"""What the rank gate asks: judged requests with the catalogue, or random words, as token sequences.

An embedder ranks the whole catalogue by exact search. A reranker orders the first candidates of a run, or those of
the embedder that stands in the same repository; what is compared is then the final score, as the client computes it.

Shape legend: Q requests, N skills, K skills in the pool of one request, D embedding dimension.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from skillserve.card import ModelCard, read_card
from skillserve.collection import Collection, read_split
from skillserve.errors import CatalogueError, UsageError
from skillserve.framing import EmbedderTokens, RerankerTokens
from skillserve.fusion import fuse
from skillserve.records import Qrels, Run
from skillserve.runs import open_run
from skillserve.scoring import Rows
from skillserve.settings import ExportSettings, Settings
from skillserve.tensors import MODEL_NAMES, Ids
from skillserve_export.opened import open_recorded
from skillserve_export.record import EXPORT_FILE, read_record
from skillserve_export.sample import load_sample, spread

__all__ = ["GateRequests", "Pool", "Pools", "embedder_folder", "load_requests"]

Ints = npt.NDArray[np.int64]


class Pool(NamedTuple):
    """What one request is ranked among, `[K]` each. Ids descend: then a stable sort breaks ties as trec_eval does."""

    skills: Ints
    """Rows of `skill_ids`."""
    scores: Rows
    """The model's own: similarities or logits."""
    final: Rows
    """What skills are ordered by."""


@dataclass(frozen=True, slots=True)
class Pools:
    """The candidates of each request, for a reranker."""

    source: str
    skills: Sequence[Ints]
    first_stage: Sequence[Rows]
    similarity_weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRequests:
    """Requests, what they are ranked among, and the sequences that have to be scored for it."""

    source: str
    digest: str | None
    """Of the collection; None for random words."""
    query_ids: Sequence[str]
    skill_ids: Sequence[str]
    """Descending."""
    sequences: Sequence[Ids]
    """Embedder: requests, then skills. Reranker: the pairs of the first request, of the second, …"""
    qrels: Qrels = field(default_factory=dict)
    """Empty if nobody judged."""
    pools: Pools | None = None
    """For a reranker."""

    def ranked_pools(self, rows: Rows) -> Iterator[Pool]:
        """The pool of each request, from the rows of all sequences."""
        if self.pools is None:
            everything = np.arange(len(self.skill_ids))
            # float64, so that equal rows have equal scores wherever they stand in the product.
            skills_ND = rows[len(self.query_ids) :].astype(np.float64)
            for row_D in rows[: len(self.query_ids)]:
                scores = (skills_ND @ row_D.astype(np.float64)).astype(np.float32)
                yield Pool(everything, scores, scores)
            return
        at = 0
        for skills, near in zip(self.pools.skills, self.pools.first_stage, strict=True):
            logits = rows[at : at + len(skills)]
            at += len(skills)
            yield Pool(skills, logits, fuse(logits, near, self.pools.similarity_weight))


def load_requests(
    card: ModelCard, weights: Path, settings: ExportSettings, *, data: Path | None, run: Path | None
) -> GateRequests:
    """The test requests of `data` with its catalogue, or, without it, the random words of the parity sample.

    Raises CatalogueError for faulty data or a run that lacks requests, UsageError for a reranker without candidates.
    """
    if data is None:
        if run is not None:
            raise UsageError(
                f"option --run `{run}`",
                got="no --data",
                wanted="the requests and skills that it ranks",
                fix="Name them: --data FOLDER",
            )
        return _random_words(card, weights)
    collection = _limited(read_split(data, "test"), settings.gate_requests)
    tokenizer = Tokenizer.from_file(str(weights / "tokenizer.json"))
    if card.role == "embedder":
        return _searches(card, tokenizer, collection, f"{data}, test")
    first, source = _first_stage(collection, settings, run)
    return _rerankings(card, tokenizer, collection, f"{data}, test", first, source)


def embedder_folder(settings: ExportSettings) -> Path:
    """The embedder of the repository, which nominates what a reranker orders where no run does; UsageError if none."""
    folder = settings.repository / MODEL_NAMES["embedder"]
    if not (folder / EXPORT_FILE).is_file():
        raise UsageError(
            "rank gate of a reranker",
            got=f"no --run, and no embedder in `{settings.repository}`",
            wanted="candidates to order",
            fix=f"Export the embedder first: skillserve export EMBEDDER --repository {settings.repository}; "
            "or name a run: --run FILE",
        )
    return folder


def _limited(collection: Collection, count: int) -> Collection:
    queries = sorted(collection.queries, key=lambda query: query.id)
    kept = spread(queries, count) if 0 < count < len(queries) else queries
    skills = sorted(collection.skills, key=lambda skill: skill.id, reverse=True)
    return replace(
        collection, queries=kept, skills=skills, qrels={query.id: collection.qrels[query.id] for query in kept}
    )


def _searches(card: ModelCard, tokenizer: Tokenizer, collection: Collection, source: str) -> GateRequests:
    tokens = EmbedderTokens(card, tokenizer)
    asked = [cut.ids for cut in tokens.queries([query.text for query in collection.queries])]
    return GateRequests(
        source=source,
        digest=collection.digest(),
        query_ids=[query.id for query in collection.queries],
        skill_ids=[skill.id for skill in collection.skills],
        sequences=[*asked, *tokens.skills(collection.skills)],
        qrels=collection.qrels,
    )


def _rerankings(
    card: ModelCard, tokenizer: Tokenizer, collection: Collection, source: str, first: Run, first_source: str
) -> GateRequests:
    tokens = RerankerTokens(card, tokenizer)
    sides = tokens.skills(collection.skills)
    place = {skill.id: row for row, skill in enumerate(collection.skills)}
    sequences: list[Ids] = []
    skills: list[Ints] = []
    near: list[Rows] = []
    asked = tokens.queries([query.text for query in collection.queries])
    for query, cut in zip(collection.queries, asked, strict=True):
        pool = sorted(first[query.id], reverse=True)
        skills.append(np.array([place[skill] for skill in pool]))
        near.append(np.array([first[query.id][skill] for skill in pool], np.float32))
        sequences += [tokens.pair(cut.ids, sides[place[skill]]) for skill in pool]
    return GateRequests(
        source=source,
        digest=collection.digest(),
        query_ids=[query.id for query in collection.queries],
        skill_ids=[skill.id for skill in collection.skills],
        sequences=sequences,
        qrels=collection.qrels,
        pools=Pools(first_source, skills, near, card.similarity_weight),
    )


def _first_stage(collection: Collection, settings: ExportSettings, run: Path | None) -> tuple[Run, str]:
    """Candidates of every request with their first-stage scores, and where they come from."""
    depth = settings.gate_depth
    if run is not None:
        found = open_run(str(run), Settings()).rank(collection.queries, collection.skills, depth=depth)
        if missing := [query.id for query in collection.queries if not found.get(query.id)]:
            raise CatalogueError(
                f"run `{run}`",
                got=f"no ranking for {len(missing)} of {len(collection.queries)} requests, such as {missing[0]}",
                wanted="candidates for every judged request",
                fix="Make a run of all of them: skillserve evaluate SYSTEM --data FOLDER --run-out FOLDER",
            )
        return found, f"the first {depth} of `{run}`"
    folder = embedder_folder(settings)
    card, record = read_card(folder), read_record(folder)
    requests = _searches(card, Tokenizer.from_file(str(folder / "tokenizer.json")), collection, "")
    rows = open_recorded(record, folder, card, settings).score(requests.sequences)
    return _best(requests, rows, depth), f"the first {depth} of {card.name} ({card.short_digest})"


def _best(requests: GateRequests, rows: Rows, depth: int) -> Run:
    run: dict[str, Mapping[str, float]] = {}
    for query, pool in zip(requests.query_ids, requests.ranked_pools(rows), strict=True):
        order = np.argsort(-pool.final, kind="stable")[:depth]
        run[query] = {requests.skill_ids[row]: float(pool.final[row]) for row in order}
    return run


def _random_words(card: ModelCard, weights: Path) -> GateRequests:
    sample = load_sample(card, weights, None)
    pool = np.arange(sample.num_skills)
    alike = np.zeros(sample.num_skills, np.float32)
    pools = Pools("all skills", [pool] * sample.num_queries, [alike] * sample.num_queries, 0.0)
    return GateRequests(
        source="random words",
        digest=None,
        query_ids=[f"{i:03}" for i in range(sample.num_queries)],
        skill_ids=[f"{i:03}" for i in reversed(range(sample.num_skills))],
        sequences=sample.sequences,
        pools=pools if card.role == "reranker" else None,
    )
