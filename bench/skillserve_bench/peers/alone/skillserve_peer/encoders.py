"""sentence-transformers and its CrossEncoder in process, in one of the library's backends, with its defaults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer

from .catalogue import Floats
from .job import Job

__all__ = ["Encoders"]


class Encoders:
    """One request at a time through `encode`, its candidates in one `predict`."""

    def __init__(self, job: Job, backend: str) -> None:
        torch.set_num_threads(job.threads)
        how: dict[str, Any] = {"device": "cpu", "backend": backend, "model_kwargs": _options(backend, job.threads)}
        self._embedder: Any = SentenceTransformer(str(job.embedder), **how)
        frame = self._embedder.tokenizer.num_special_tokens_to_add()
        self._embedder.max_seq_length = min(job.query_tokens + frame, job.embedder_tokens)
        self._reranker: Any = None
        if job.reranker:
            logits = {"activation_fn": torch.nn.Identity(), "max_length": job.reranker_tokens}
            self._reranker = CrossEncoder(str(job.reranker), **how, **logits)

    def embed(self, text: str) -> Floats:
        """Embedding `[D]` of a request."""
        return np.asarray(self._embedder.encode([text], show_progress_bar=False)[0], np.float32)

    def score(self, request: str, texts: Sequence[str]) -> Floats | None:
        """Logits `[n]`."""
        if self._reranker is None:
            return None
        pairs = [(request, text) for text in texts]
        return np.asarray(self._reranker.predict(pairs, show_progress_bar=False), np.float32).reshape(-1)


def _options(backend: str, threads: int) -> dict[str, Any]:
    """What the backend is told: export its graph by itself, and use so many threads."""
    if backend == "onnx":
        from onnxruntime import SessionOptions

        session = SessionOptions()
        session.intra_op_num_threads = threads
        return {"export": True, "provider": "CPUExecutionProvider", "session_options": session}
    if backend == "openvino":
        return {"export": True, "ov_config": {"INFERENCE_NUM_THREADS": threads}}
    return {}
