"""What a bundle's two stages say of requests whose outcome is known: the material of every calibration.

Each answerable request is scored once and gives two samples: as it is, and with its own skills left out, when the
candidates behind them move up and (as far as anybody has judged) nothing fits. The reranker is therefore asked
about as many more candidates as the request has skills. Requests that nothing fits give one sample.

Of a hybrid first stage, lexical scores stay shares of their maximum over the whole catalogue, skills that are left
out included, which makes the others' first-stage scores a little low.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from skillserve.errors import RequestRejected
from skillserve_client.bundle import Bundle
from skillserve_client.calibration import NUM_BACKGROUND, Doubles, Feature, StageName, describe
from skillserve_client.corpus import Candidates
from skillserve_client.embedding import Bars, embed_requests
from skillserve_client.leaning import leanings
from skillserve_client.reranking import rerank_all
from skillserve_client.wire import Floats, Inference

__all__ = ["Asked", "Outcome", "Samples", "Scored", "Weights", "sample", "score_requests"]

Bools = npt.NDArray[np.bool_]
Outcome = Literal["answerable", "none", "left out"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request and the skills of the catalogue that fit it, none of them if it is one that nothing fits."""

    text: str
    golds: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """The candidates of one request, in the order of the first stage: K of them, the first M also reranked."""

    candidates: Candidates
    fits: Bools
    """`[K]`: is this candidate one of the request's skills?"""
    nearest_fits: Bools
    """`[K]`: is this one of the nearest one of them?"""
    scores: Floats
    """`[M]`, final scores; empty without a reranker."""
    num_golds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """How much each kind of sample counts."""

    none_share: float
    """Share of the weight that lies on samples that nothing fits."""
    left_out_share: float
    """Share of that which lies on those whose skills were left out."""

    def of(self, outcomes: Sequence[Outcome]) -> Doubles:
        """Weights with mean 1. Where a kind of sample is absent, its share goes to the others of its label."""
        kinds = np.asarray(outcomes)
        left_out_share = self.left_out_share if (kinds == "left out").any() else 0.0
        shares = {
            "answerable": 1 - self.none_share,
            "none": self.none_share * (1 - left_out_share),
            "left out": self.none_share * left_out_share,
        }
        weights = np.zeros(len(kinds))
        for kind, share in shares.items():
            of_kind = kinds == kind
            weights[of_kind] = share / max(of_kind.sum(), 1)
        return np.asarray(weights * len(kinds) / weights.sum(), np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """One stage's samples: S of requests, H of hits; `groups` tie together what comes from one request."""

    features: dict[Feature, Doubles]
    """Each `[S]`; without the leaning, which depends on which outcomes are known."""
    embeddings: Floats
    """`[S, D]`, of whole requests."""
    outcomes: tuple[Outcome, ...]
    groups: npt.NDArray[np.int64]
    top_fits: Bools
    """`[S]`: is the first hit one of the request's skills?"""
    hit_scores: Doubles
    """`[H]`: of answerable requests, as they are, and of those that nothing fits."""
    hit_fits: Bools
    hit_owners: npt.NDArray[np.int64]
    """`[H]`: which of the S samples a hit belongs to."""

    @property
    def labels(self) -> Bools:
        """`[S]`: does some skill of the pool fit?"""
        return np.array([outcome == "answerable" for outcome in self.outcomes])

    def known_from(self, seen: Bools) -> dict[Feature, Doubles]:
        """All features `[S]`, for somebody who knows the outcomes of the samples in `seen` `[S]` alone."""
        return {**self.features, "leaning": leanings(self.embeddings, self.outcomes, seen)}

    def where(self, *outcomes: Outcome) -> Bools:
        """`[S]`: samples of these kinds."""
        return np.isin(np.asarray(self.outcomes), outcomes)


def sample(scored: Sequence[Scored], stage: StageName, depth: int) -> Samples:
    """The samples of one stage, whose features look at `depth` candidates."""
    rows: list[dict[Feature, float]] = []
    embeddings: list[Floats] = []
    outcomes: list[Outcome] = []
    groups: list[int] = []
    top_fits: list[bool] = []
    hits: list[tuple[Doubles, Bools]] = []
    owners: list[int] = []
    for group, request in enumerate(scored):
        outcome: Outcome = "answerable" if request.num_golds else "none"
        found_all = request.candidates
        pools = [(outcome, np.arange(len(request.fits)), found_all.nearest)]
        if request.num_golds:
            pools.append(("left out", np.flatnonzero(~request.fits), found_all.nearest[~request.nearest_fits]))
        scores = request.scores if stage == "rerank" else found_all.scores
        for kind, pool, nearest in pools:
            considered = pool[:depth]
            if not len(considered):
                continue  # the catalogue holds no other skill
            found = scores[considered]
            rows.append(describe(found, nearest))
            embeddings.append(found_all.request)
            top_fits.append(bool(request.fits[considered[np.argmax(found)]]))
            if kind != "left out":
                hits.append((found.astype(np.float64), request.fits[considered]))
                owners += [len(outcomes)] * len(considered)
            outcomes.append(kind)
            groups.append(group)
    return Samples(
        features={name: np.array([row[name] for row in rows]) for name in rows[0]},
        embeddings=np.stack(embeddings),
        outcomes=tuple(outcomes),
        groups=np.array(groups),
        top_fits=np.array(top_fits),
        hit_scores=np.concatenate([found for found, _ in hits]),
        hit_fits=np.concatenate([fits for _, fits in hits]),
        hit_owners=np.array(owners),
    )


def score_requests(
    bundle: Bundle, asked: Sequence[Asked], triton: Inference, depth: int, progress: Bars
) -> list[Scored]:
    """Ask both models about every request, against the bundle's whole catalogue; `depth` 0 leaves the reranker out.

    Raises QueryError for a blank request, ServerError, BundleError if the server changed to another model, and
    RequestRejected for scores that are no numbers.
    """
    corpus, texts = bundle.corpus, [request.text for request in asked]
    requests = [corpus.weights.pieces(text) for text in texts]
    vectors = embed_requests(corpus, requests, triton, progress, digest=bundle.digests["embedder"])
    _finite(np.concatenate(vectors), "embeddings")
    most = max(depth, NUM_BACKGROUND) + max(len(request.golds) for request in asked)
    candidates = corpus.candidates(vectors, requests, most, corpus.weights)
    scores: Iterable[Floats] = [np.empty(0, np.float32)] * len(asked)
    if depth:
        depths = [depth + len(request.golds) for request in asked]
        scores = _reranked(bundle, texts, candidates, depths, triton, progress)
    ids = np.array(corpus.skills.ids(), dtype=object)
    return [
        Scored(
            candidates=found,
            fits=np.array([skill in request.golds for skill in ids[found.rows]]),
            nearest_fits=np.array([skill in request.golds for skill in ids[found.nearest_rows]]),
            scores=final,
            num_golds=len(request.golds),
        )
        for request, found, final in zip(asked, candidates, scores, strict=True)
    ]


def _reranked(
    bundle: Bundle,
    texts: Sequence[str],
    candidates: Sequence[Candidates],
    depths: Sequence[int],
    triton: Inference,
    progress: Bars,
) -> list[Floats]:
    corpus = bundle.corpus
    reads = [cut.ids for cut in corpus.require_reranker().queries(texts)]
    tops = [found.rows[:depth].tolist() for found, depth in zip(candidates, depths, strict=True)]
    reranked = rerank_all(corpus, reads, tops, triton, progress, digest=bundle.digests["reranker"])
    return [
        corpus.final_scores(_finite(logits, "scores"), found.scores[: len(logits)])
        for logits, found in zip(reranked, candidates, strict=True)
    ]


def _finite(rows: Floats, what: str) -> Floats:
    bad = int((~np.isfinite(rows.reshape(len(rows), -1)).all(axis=1)).sum())
    if bad:
        raise RequestRejected(
            f"{what} from the server",
            got=f"no finite number in {bad} of {len(rows)}",
            wanted="finite numbers",
            fix="Nothing was published. Check the exported graph: skillserve verify",
        )
    return rows
