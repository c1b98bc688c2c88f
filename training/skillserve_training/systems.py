"""Weights folders as systems: an embedder alone, or with a reranker over the top of its ranking, in process.

Everything is computed in float32, as the server does. Candidates beyond the rerank depth follow in first-stage
order, as in the client, so that figures beyond the depth stay comparable; SkillRet's own runs end at the depth.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np

from skillserve.card import CARD_FILE, ModelCard, read_card
from skillserve.errors import CardError, UsageError
from skillserve.fusion import PLAIN, FirstStageWeights, blend, fuse, scored_texts
from skillserve.lexical import LexicalIndex, require_bm25s
from skillserve.metrics import ranked
from skillserve.records import Query, Run, Skill
from skillserve.runs import by_rank
from skillserve.settings import Settings
from skillserve.systems import require_query_prompt
from skillserve.tensors import Role
from skillserve.text import skill_text
from skillserve_training.evaluate import Embedder, Reranker
from skillserve_training.nearness import FirstStageScores, Floats, Likeness, Nearness
from skillserve_training.weights import embedder_tokens, open_embedder, open_reranker, reranker_tokens, score_tokens

__all__ = ["EmbedderSystem", "FirstStage", "TwoStageSystem", "open_weights"]

_AND = "+"


@dataclass(slots=True, weakref_slot=True)
class FirstStage:
    """An embedder that remembers its last ranking: alone and below rerankers, it is asked the same again."""

    embedder: Embedder
    weights: FirstStageWeights
    """As bundles have them: `skillserve.fusion.blend` over all skills that are ranked."""
    _asked: tuple[Sequence[Query], Sequence[Skill], int] | None = field(default=None, init=False)
    _run: Run = field(default_factory=dict, init=False)

    def rank(self, queries: Sequence[Query], skills: Sequence[Skill], *, depth: int) -> Run:
        """The best `depth` skills by first-stage score."""
        asked = (queries, skills, depth)
        if self._asked != asked:
            rank = self.embedder.rank if self.weights == PLAIN else self._blended
            self._run, self._asked = rank(queries, skills, depth=depth), asked
        return self._run

    def nearness(self, queries: Sequence[Query], skills: Sequence[Skill]) -> Nearness:
        """First-stage scores of all skills for all requests; without weights they are an embedder's cosines."""
        if self.weights == PLAIN:
            return Likeness(*(rows.numpy() for rows in self.embedder.embed(queries, skills)))
        scores_QS = np.empty((len(queries), len(skills)), np.float32)
        for row, scores in enumerate(self._scores(queries, skills)):
            scores_QS[row] = scores
        return FirstStageScores(scores_QS)

    def _blended(self, queries: Sequence[Query], skills: Sequence[Skill], *, depth: int) -> Run:
        run: dict[str, Mapping[str, float]] = {}
        for query, scores in zip(queries, self._scores(queries, skills), strict=True):
            best = np.argsort(-scores, kind="stable")[:depth].tolist()
            run[query.id] = {skills[place].id: float(scores[place]) for place in best}
        return run

    def _scores(self, queries: Sequence[Query], skills: Sequence[Skill]) -> Iterator[Floats]:
        """First-stage scores `[S]` of each request in turn."""
        weights = self.weights
        lexical = LexicalIndex.build([skill_text(skill) for skill in skills]) if weights.lexical else None
        requests = [weights.pieces(query.text) for query in queries]
        rows_of_queries, skill_rows = self.embedder.embed_in_pieces(requests, skills)
        for pieces, rows in zip(requests, rows_of_queries, strict=True):
            words = lexical.scores(scored_texts(pieces)) if lexical else None
            yield blend((rows @ skill_rows.T).numpy(), words, weights)


_OPEN: WeakValueDictionary[tuple[Path, str, FirstStageWeights], FirstStage] = WeakValueDictionary()
"""First stages that a system holds open, by folder, digest and weights."""


@dataclass(frozen=True, slots=True)
class EmbedderSystem:
    """A `skillserve.systems.System`: exact search by inner product, or by that, a request's parts and shared words."""

    name: str
    first: FirstStage

    @property
    def embedder(self) -> Embedder:
        """The first stage, for those who need its vectors."""
        return self.first.embedder

    @property
    def digests(self) -> Mapping[str, str]:
        """The embedder's."""
        return {"embedder": self.embedder.card.digest}

    def rank(self, queries: Sequence[Query], skills: Sequence[Skill], *, depth: int) -> Run:
        """The best `depth` skills by first-stage score."""
        return self.first.rank(queries, skills, depth=depth)


@dataclass(frozen=True, slots=True)
class TwoStageSystem:
    """A `skillserve.systems.System`: an embedder's ranking, its top in the order of a reranker."""

    name: str
    first: FirstStage
    reranker: Reranker
    rerank_depth: int

    @property
    def embedder(self) -> Embedder:
        """The first stage, for those who need its vectors."""
        return self.first.embedder

    @property
    def digests(self) -> Mapping[str, str]:
        """Of both models."""
        return {"embedder": self.embedder.card.digest, "reranker": self.reranker.tokens.card.digest}

    def rank(self, queries: Sequence[Query], skills: Sequence[Skill], *, depth: int) -> Run:
        """The first stage's best `depth`, reordered; scores only tell the rank, since the stages' scales differ."""
        first = self.first.rank(queries, skills, depth=max(depth, self.rerank_depth))
        logits = self.reranker.rerank(first, queries, skills, depth=self.rerank_depth)
        return {query.id: by_rank(self._reordered(first[query.id], logits[query.id])[:depth]) for query in queries}

    def _reordered(self, first_stage: Mapping[str, float], logits: Mapping[str, float]) -> list[str]:
        """Reranked skills by their final score (ties as they stood), then the others as they stood."""
        candidates = ranked(first_stage)
        top, rest = candidates[: len(logits)], candidates[len(logits) :]
        found, near = (np.array([of[skill] for skill in top], np.float32) for of in (logits, first_stage))
        scores = fuse(found, near, self.reranker.tokens.card.similarity_weight)
        return [top[place] for place in np.argsort(-scores, kind="stable").tolist()] + rest


def open_weights(spec: str, settings: Settings) -> EmbedderSystem | TwoStageSystem:
    """The `skillserve.systems.Opener` of `EMBEDDER` and `EMBEDDER+RERANKER`, folders both.

    Raises CardError for folders without card, for files changed since it was written, and for a card without the
    query prompt that its family needs; UsageError for a spec that names no folders; MissingExtraError for a lexical
    weight without bm25s.
    """
    folders = [Path(spec)] if Path(spec).is_dir() else [Path(part) for part in spec.split(_AND)]
    if len(folders) > 2 or not all(folder.is_dir() for folder in folders):
        absent = [str(folder) for folder in folders if not folder.is_dir()]
        raise UsageError(
            f"system `{spec}`",
            got=f"no folder `{absent[0]}`" if absent else f"{len(folders)} folders",
            wanted="bm25, FOLDER, FOLDER+FOLDER, server:BUNDLES or run:FILE",
            fix="Check the path; a folder called like a word is named with its path: ./bm25",
        )
    weights = FirstStageWeights.of(settings.evaluate)
    if weights.lexical:
        require_bm25s(extra="training")
    first = _open_first(folders[0], weights)
    if len(folders) == 1:
        return EmbedderSystem(spec, first)
    return TwoStageSystem(spec, first, _open_reranker(folders[1]), settings.evaluate.rerank_depth)


def _open_first(folder: Path, weights: FirstStageWeights) -> FirstStage:
    card = _read_card(folder, "embedder")
    require_query_prompt(card, subject=f"weights folder `{folder}`")
    key = (folder.resolve(), card.digest, weights)
    first = _OPEN.get(key)
    if first is None:
        embedder = Embedder(open_embedder(folder), card, embedder_tokens(folder, card), "float32")
        _OPEN[key] = first = FirstStage(embedder, weights)
    return first


def _open_reranker(folder: Path) -> Reranker:
    card = _read_card(folder, "reranker")
    return Reranker(open_reranker(folder), reranker_tokens(folder, card), score_tokens(folder), "float32")


def _read_card(folder: Path, role: Role) -> ModelCard:
    if not (folder / CARD_FILE).is_file():
        raise CardError(
            f"weights folder `{folder}`",
            got=f"no {CARD_FILE}, so nothing says how its texts are to be read",
            wanted="weights with their card: a wrong or missing prompt costs 2.3 to 8.8 NDCG points, SkillRet",
            fix=f"Write one: skillserve card --base {folder} --role {role} --out FOLDER",
        )
    card = read_card(folder, verify_weights=True)
    if card.role != role:
        raise CardError(
            f"weights folder `{folder}`",
            got=f"an {card.role}" if card.role == "embedder" else f"a {card.role}",
            wanted="an embedder first, and behind a `+` a reranker",
            fix="Name the folders as EMBEDDER or EMBEDDER+RERANKER",
        )
    return card
