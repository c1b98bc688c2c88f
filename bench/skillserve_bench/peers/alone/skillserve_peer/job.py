"""The folder that a peer works on."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path

__all__ = ["Job", "Request"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request, as both models read it."""

    embed: str
    """With the embedder's prompt in front."""
    rerank: str


@dataclass(frozen=True, kw_only=True)
class Job:
    """`job.json`. Beside it lie `vectors.npy` `[N, D]` and `skills.jsonl`, one `{"id", "text"}` a row of it."""

    folder: Path
    embedder: Path
    """Weights as sentence-transformers loads them: modules, tokenizer and limits beside them."""
    reranker: Path | None
    """Weights as its CrossEncoder loads them; None: the first stage's order is the answer."""
    pooling: str
    """`mean`, `cls` or `last`."""
    normalised: bool
    embedder_tokens: int
    """Longest sequence that the embedder reads."""
    query_tokens: int
    """Longest request that the embedder reads, its special tokens not counted."""
    reranker_tokens: int
    """Longest pair that the reranker reads."""
    candidates: int
    """Skills that are taken from the index, and all of them reranked."""
    top_k: int
    """Skills of an answer."""
    similarity_weight: float
    """Final score = logit + this · similarity, as the reranker's card says."""
    threads: int
    """Cores that the peer may use."""

    @classmethod
    def read(cls, folder: Path) -> Job:
        """The job of a folder."""
        found = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        known = {field.name for field in fields(cls)} - {"folder", "embedder", "reranker"}
        return cls(
            folder=folder,
            embedder=folder / "embedder",
            reranker=folder / "reranker" if found["reranks"] else None,
            **{name: value for name, value in found.items() if name in known},
        )
