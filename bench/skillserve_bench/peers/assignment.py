"""The folder that a peer's daemon works on: weights as sentence-transformers loads them, the catalogue, the limits.

Peers search the very vectors of the served bundle, so that they differ in how they compute and in nothing else. Texts
are formatted here, where `skillserve.text` is; a daemon only joins what it is given.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from skillserve.card import WEIGHT_FILES, ModelCard, read_card
from skillserve.errors import UsageError
from skillserve.framing import mend
from skillserve.publish import write_text
from skillserve.records import Skill
from skillserve.settings import SearchSettings
from skillserve.text import skill_text
from skillserve_client.wire import Floats

__all__ = ["PeerModels", "assign", "read_models"]

_MODULES = "sentence_transformers.models"
_POOLING = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "last": "pooling_mode_lasttoken"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerModels:
    """What peers run: weights folders with their cards."""

    embedder: Path
    embedder_card: ModelCard
    reranker: Path | None
    reranker_card: ModelCard | None


def read_models(embedder: Path, reranker: Path | None) -> PeerModels:
    """Read both cards. Raises CardError for damaged weights, UsageError for a reranker that no peer can load."""
    embedder_card = read_card(embedder, verify_weights=True)
    card = read_card(reranker, verify_weights=True) if reranker else None
    if card is not None and card.score_kind != "logit":
        raise UsageError(
            f"reranker `{reranker}` for peers",
            got=f"family {card.family} with scores `{card.score_kind}`",
            wanted="a classifier with one logit, which CrossEncoder and infinity can load",
            fix="Name the weights folder of one: --peer-reranker FOLDER; NDCG beside latency says what it is worth.",
        )
    return PeerModels(embedder=embedder, embedder_card=embedder_card, reranker=reranker, reranker_card=card)


def assign(
    folder: Path,
    models: PeerModels,
    skills: Sequence[Skill],
    vectors: Floats,
    search: SearchSettings,
    *,
    threads: int,
) -> None:
    """Write the folder; `vectors` `[N, D]` are the skills' embeddings."""
    folder.mkdir(parents=True, exist_ok=True)
    _embedder_folder(models.embedder, models.embedder_card, folder / "embedder")
    if models.reranker and models.reranker_card:
        _weights_folder(models.reranker, models.reranker_card, folder / "reranker")
    np.save(folder / "vectors.npy", vectors)
    lines = [json.dumps({"id": skill.id, "text": mend(skill_text(skill))}, ensure_ascii=False) for skill in skills]
    write_text(folder / "skills.jsonl", "\n".join(lines) + "\n")
    write_text(folder / "job.json", json.dumps(_job(models, search, threads)) + "\n")


def _job(models: PeerModels, search: SearchSettings, threads: int) -> dict[str, Any]:
    card, reranker = models.embedder_card, models.reranker_card
    return {
        "reranks": reranker is not None,
        "pooling": card.pooling,
        "normalised": card.normalised,
        "embedder_tokens": card.max_tokens,
        "query_tokens": card.max_query_tokens,
        "reranker_tokens": reranker.max_tokens if reranker else 0,
        "similarity_weight": reranker.similarity_weight if reranker else 0.0,
        "candidates": (search.rerank_depth or search.top_k) if reranker else search.top_k,
        "top_k": search.top_k,
        "threads": threads,
    }


def _weights_folder(weights: Path, card: ModelCard, folder: Path) -> None:
    """Links to the weights, and the tokenizer's limit, which stands in the card and nowhere else."""
    folder.mkdir()
    for name in WEIGHT_FILES:
        (folder / name).symlink_to((weights / name).resolve())
    write_text(folder / "tokenizer_config.json", json.dumps({"model_max_length": card.max_tokens}) + "\n")


def _embedder_folder(weights: Path, card: ModelCard, folder: Path) -> None:
    """The same with the modules that the card describes."""
    _weights_folder(weights, card, folder)
    if card.pooling is None:
        raise ValueError("the card of an embedder names its pooling")
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), *([("2_Normalize", "Normalize")] * card.normalised)]
    described = [
        {"idx": i, "name": str(i), "path": path, "type": f"{_MODULES}.{kind}"} for i, (path, kind) in enumerate(modules)
    ]
    pooling = {"word_embedding_dimension": card.dim} | {mode: kind == card.pooling for kind, mode in _POOLING.items()}
    for path, _ in modules[1:]:
        (folder / path).mkdir()
    write_text(folder / "modules.json", json.dumps(described) + "\n")
    write_text(folder / "sentence_bert_config.json", json.dumps({"max_seq_length": card.max_tokens}) + "\n")
    write_text(folder / "1_Pooling" / "config.json", json.dumps(pooling) + "\n")
