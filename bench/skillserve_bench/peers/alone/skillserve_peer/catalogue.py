"""The catalogue of a peer: FAISS over its vectors, and the answer from what was reranked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from .job import Job

__all__ = ["Catalogue", "Floats"]

Floats = npt.NDArray[np.float32]


class Catalogue:
    """Skills by row, searched exhaustively by inner product."""

    def __init__(self, job: Job) -> None:
        faiss.omp_set_num_threads(job.threads)
        vectors: Floats = np.load(job.folder / "vectors.npy")
        self._index: Any = faiss.IndexFlatIP(vectors.shape[1])
        self._index.add(np.ascontiguousarray(vectors, np.float32))
        with (job.folder / "skills.jsonl").open(encoding="utf-8") as file:
            skills = [json.loads(line) for line in file]
        self._ids = [skill["id"] for skill in skills]
        self._texts = [skill["text"] for skill in skills]
        self._job = job

    def candidates(self, vector: Floats) -> tuple[Floats, list[int]]:
        """Similarities `[K]` and rows of the nearest skills to `[D]`, nearest first."""
        similarities, rows = self._index.search(np.asarray(vector, np.float32)[None], self._job.candidates)
        found = [row for row in rows[0].tolist() if row >= 0]  # of a catalogue with fewer than K skills
        return similarities[0][: len(found)], found

    def texts(self, rows: Sequence[int]) -> list[str]:
        """What the reranker reads of these skills."""
        return [self._texts[row] for row in rows]

    def answer(self, rows: Sequence[int], similarities: Floats, scores: Floats | None) -> list[str]:
        """Ids, best first; without scores of a reranker in the order of the similarities."""
        if scores is None:
            order = range(len(rows))
        else:
            final = np.asarray(scores, np.float64) + self._job.similarity_weight * similarities
            order = np.argsort(-final, kind="stable").tolist()
        return [self._ids[rows[place]] for place in order][: self._job.top_k]
