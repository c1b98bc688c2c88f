"""Opening the other implementations; one that cannot take part is told with its reason.

`encode` of sentence-transformers with its defaults, in each of its backends, and `predict` of its CrossEncoder for
rerankers. Backends export their graphs by themselves when they are opened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from skillserve.card import ModelCard
from skillserve.console import talk
from skillserve.errors import MissingExtraError
from skillserve.tensors import Precision, Role
from skillserve_bench.peers.sentence_transformers import (
    BACKENDS,
    Backend,
    CrossEncoderPeer,
    SentenceTransformersPeer,
)
from skillserve_bench.speed.contenders import Contender, peer_contender
from skillserve_bench.speed.workload import Part
from skillserve_client.wire import Floats

__all__ = ["PEER_NAMES", "Opener", "open_peers", "openers"]

PEER_NAMES: dict[Backend, str] = {
    "torch": "sentence-transformers, PyTorch",
    "onnx": "sentence-transformers, ONNX",
    "onnx-int8": "sentence-transformers, ONNX int8",
    "openvino": "sentence-transformers, OpenVINO",
}

_PRECISIONS: dict[Backend, Precision] = {"torch": "fp32", "onnx": "fp32", "onnx-int8": "int8", "openvino": "fp32"}

Opener = Callable[[], Callable[[Part], Floats]]
"""Gives what computes rows from texts, or raises what keeps it from taking part."""


def openers(role: Role, weights: Path, card: ModelCard) -> dict[Backend, Opener]:
    """How each backend is opened for a model of this role."""

    def opener(backend: Backend) -> Opener:
        if role == "embedder":
            return lambda: _embedding(SentenceTransformersPeer(weights, backend))
        return lambda: _scoring(weights, card, backend)

    return {backend: opener(backend) for backend in BACKENDS}


def _embedding(peer: SentenceTransformersPeer) -> Callable[[Part], Floats]:
    """Skills in one call, requests in another: their limits and prompts differ."""

    def compute(part: Part) -> Floats:
        texts = part.texts()
        rows = [peer.embed_skills(texts.skills)] if texts.skills else []
        rows += [peer.embed_queries(texts.requests)] if texts.requests else []
        in_order: Floats = np.concatenate(rows)[texts.stream]
        return in_order

    return compute


def _scoring(weights: Path, card: ModelCard, backend: Backend) -> Callable[[Part], Floats]:
    if card.score_kind != "logit":
        raise MissingExtraError(
            PEER_NAMES[backend],
            got=f"a reranker of family {card.family} with scores `{card.score_kind}`",
            wanted="a classifier with one logit, which is what its CrossEncoder runs",
            fix="Nothing can be installed for that.",
        )
    peer = CrossEncoderPeer(weights, backend)
    return lambda part: peer.score(part.texts().pairs)


def open_peers(found: Mapping[Backend, Opener], trial: Part) -> tuple[list[Contender], dict[str, str]]:
    """Those that answer a trial, and of the others why not, by name."""
    contenders: list[Contender] = []
    absent: dict[str, str] = {}
    for backend, opener in found.items():
        name = PEER_NAMES[backend]
        talk(f"opening {name}")
        try:
            contender = peer_contender(name, _PRECISIONS[backend], opener())
            contender.measure(trial)
        except Exception as error:  # noqa: BLE001 -- libraries raise whatever they like, and the report tells it
            absent[name] = " ".join(f"{type(error).__name__}: {error}".split())
        else:
            contenders.append(contender)
    return contenders, absent
