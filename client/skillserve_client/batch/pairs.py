"""The job `pairs`: given requests with given skills of a catalogue, scored as a search would score them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from skillserve.errors import BundleError, QueryError
from skillserve.fusion import FirstStageWeights
from skillserve.records import Pair
from skillserve.settings import SearchSettings
from skillserve.skillfile import pair_of
from skillserve.tensors import Ids, Role
from skillserve_client.batch.engine import Engine, Inferred, Tokens
from skillserve_client.batch.inputs import Sources
from skillserve_client.batch.jobs import Outcome, Refused
from skillserve_client.bundle import Bundle
from skillserve_client.reranking import Reranking, rerank
from skillserve_client.wire import Floats

__all__ = ["PairsJob", "Prepared"]

_REQUESTS_AT_ONCE = 128
"""Requests whose token embeddings are in memory together: 40 MB of 200 tokens each, at D = 384."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Pairs as both models read them; a request that stands in many of them is read once."""

    pairs: Sequence[Pair]
    faults: dict[int, str]
    """Pair → why it cannot be scored."""
    sound: list[int]
    """The other pairs."""
    pieces: list[Sequence[str]]
    """Each request once, itself and its parts."""
    request_of: list[int]
    """Sound pair → its request."""
    rows: list[int]
    """Sound pair → row of its skill."""
    requests: list[list[Ids]]
    """Of each request what is embedded: itself and its parts."""
    rerankings: list[Reranking]
    """What the second stage is asked: of each sound pair, or, where the bundle keeps token embeddings, of each request
    with all of its skills."""
    compared: list[list[int]]
    """Reranking → its sound pairs."""


@dataclass(frozen=True, slots=True)
class PairsJob:
    """Scores of single pairs. Probabilities are of candidates of a search, so pairs have none."""

    sources: Sources[Pair]
    bundle: Bundle
    weights: FirstStageWeights
    row_of: Mapping[str, int]
    """Skill → row."""
    name: Literal["pairs"] = "pairs"
    dim: None = None
    shard_rows: int = 4_096

    @classmethod
    def of(cls, paths: Sequence[Path], bundle: Bundle, settings: SearchSettings) -> PairsJob:
        """The job for these files; BundleError without a reranker, ConfigError for a weight that it cannot serve."""
        if bundle.corpus.reranker is None:
            raise BundleError(
                f"bundle {bundle.version}",
                got="no reranker",
                wanted="one, for it is what scores pairs",
                fix="Export one and build the bundle again: skillserve export WEIGHTS, skillserve index CATALOGUE",
            )
        sources = Sources(paths=paths, parse=pair_of, needed=("query", "skill_id"))
        row_of = {skill_id: row for row, skill_id in enumerate(bundle.corpus.skills.ids())}
        return cls(sources, bundle, bundle.corpus.chosen(settings), row_of)

    @property
    def digests(self) -> Mapping[Role, str]:
        """Of both models."""
        return self.bundle.serving

    @property
    def options(self) -> Mapping[str, Any]:
        """The bundle and the first stage's weights."""
        weights = {"lexical_weight": self.weights.lexical, "part_weight": self.weights.parts}
        return {"bundle": self.bundle.version, "bundle_digest": self.bundle.digest, **weights}

    def prepare(self, records: Sequence[Pair]) -> Prepared:
        """Tokenise."""
        corpus, faults = self.bundle.corpus, {}
        texts: dict[str, int] = {}
        taken_apart: list[Sequence[str]] = []
        requests: list[list[Ids]] = []
        sides: list[Ids] = []
        unreadable: dict[str, str] = {}
        sound: list[int] = []
        for i, pair in enumerate(records):
            if pair.skill_id not in self.row_of:
                faults[i] = f"names the skill `{pair.skill_id}`, which is not in bundle {self.bundle.version}"
                continue
            if pair.text not in texts and pair.text not in unreadable:
                pieces = self.weights.pieces(pair.text)
                try:
                    (read,) = corpus.embedder.queries_in_pieces([pieces])
                except QueryError as error:
                    unreadable[pair.text] = f"{error.subject}: {error.got}"
                else:
                    texts[pair.text] = len(texts)
                    taken_apart.append(pieces)
                    requests.append([cut.ids for cut in read])
                    sides.append(self._side(pair.text))
            if pair.text in unreadable:
                faults[i] = unreadable[pair.text]
            else:
                sound.append(i)
        request_of = [texts[records[i].text] for i in sound]
        rows = [self.row_of[records[i].skill_id] for i in sound]
        # A refused pair must not refuse its request's others; where the request alone is read, it is all of them.
        if corpus.tokens is None:
            compared = [[place] for place in range(len(sound))]
        else:
            compared = [[] for _ in requests]
            for place, j in enumerate(request_of):
                compared[j].append(place)
        rerankings = [
            rerank(corpus, sides[request_of[places[0]]], [rows[place] for place in places]) for places in compared
        ]
        return Prepared(records, faults, sound, taken_apart, request_of, rows, requests, rerankings, compared)

    def score(self, prepared: Prepared, engine: Engine, advance: Tokens) -> list[Outcome]:
        """Embed each request once, rerank every pair, add up as the cards say."""
        flat = [sequence for of_one in prepared.requests for sequence in of_one]
        embedded = engine.infer("embedder", flat, digest=self.bundle.serving["embedder"], advance=advance)
        logits, unscored = self._reranked(prepared, engine, advance)
        similarities, first = self._first_stage(prepared, embedded)
        scores = self.bundle.corpus.final_scores(logits, first)
        why = _refused_requests(prepared, embedded)
        outcomes: dict[int, Outcome] = {i: Refused(reason) for i, reason in prepared.faults.items()}
        for place, i in enumerate(prepared.sound):
            pair = prepared.pairs[i]
            reason = why.get(prepared.request_of[place]) or unscored.get(place)
            outcomes[i] = (
                Refused(reason)
                if reason
                else {
                    "id": pair.id,
                    "skill_id": pair.skill_id,
                    "score": float(scores[place]),
                    "logit": float(logits[place]),
                    "first_stage": float(first[place]),
                    "similarity": float(similarities[place]),
                }
            )
        return [outcomes[i] for i in range(len(prepared.pairs))]

    def _reranked(self, prepared: Prepared, engine: Engine, advance: Tokens) -> tuple[Floats, dict[int, str]]:
        """Logit of every sound pair `[n]`, and why some have none."""
        corpus, found, unscored = self.bundle.corpus, np.zeros(len(prepared.sound), np.float32), dict[int, str]()
        # Logits of pairs are small; rows of tokens are not, and are compared before more are asked for.
        at_once = len(prepared.rerankings) if corpus.tokens is None else _REQUESTS_AT_ONCE
        for start in range(0, len(prepared.rerankings), max(at_once, 1)):
            part = slice(start, start + at_once)
            asked, compared = prepared.rerankings[part], prepared.compared[part]
            inferred = engine.infer(
                corpus.second_stage,
                [sequence for each in asked for sequence in each.sequences],  # one of each: a pair, or a request
                digest=self.bundle.serving[corpus.second_stage],
                score_kind=corpus.score_kind(corpus.second_stage),
                advance=advance,
            )
            last = 0
            for at, (reranking, places) in enumerate(zip(asked, compared, strict=True)):
                first, last = last, last + reranking.num_rows
                if at in inferred.refused:
                    unscored |= dict.fromkeys(places, inferred.refused[at])
                else:
                    found[places] = reranking.logits(inferred.rows[first:last])
        return found, unscored

    def _side(self, text: str) -> Ids:
        return self.bundle.corpus.require_reranker().query(text).ids

    def _first_stage(self, prepared: Prepared, embedded: Inferred) -> tuple[Any, Any]:
        """Similarity and first-stage score of every sound pair, `[n]` each; one request's pairs at a time."""
        similarities, first = np.zeros((2, len(prepared.sound)), np.float32)
        request_of, rows = np.array(prepared.request_of, np.int64), np.array(prepared.rows, np.int64)
        end = 0
        for j, (pieces, of_one) in enumerate(zip(prepared.pieces, prepared.requests, strict=True)):
            start, end = end, end + len(of_one)
            near, scored = self.bundle.corpus.first_stage(embedded.rows[start:end], pieces, self.weights)
            own = np.flatnonzero(request_of == j)
            similarities[own], first[own] = near[rows[own]], scored[rows[own]]
        return similarities, first


def _refused_requests(prepared: Prepared, embedded: Inferred) -> dict[int, str]:
    """Request → why its embedding, or that of a part, was refused."""
    owner = [j for j, of_one in enumerate(prepared.requests) for _ in of_one]
    return {owner[at]: f"embedder: {why}" for at, why in embedded.refused.items()}
