"""One text at a time through int8 graphs in ONNX Runtime, as small daemons beside an agent do it.

The graphs are those that sentence-transformers' ONNX backend exports, with ONNX Runtime's dynamic quantisation as it
comes. They are made in a process of its own, so that the daemon holds neither PyTorch nor what exporting left.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from .catalogue import Floats
from .job import Job

__all__ = ["Int8"]


class Int8:
    """Batches of one, whatever is asked for."""

    def __init__(self, job: Job) -> None:
        subprocess.run([sys.executable, "-m", f"{__package__}.quantise", str(job.folder)], check=True)
        self._job = job
        self._embedder = _Graph(job.embedder, job.folder / "int8" / "embedder.onnx", job.threads)
        frame = self._embedder.tokenizer.num_special_tokens_to_add(is_pair=False)
        self._embedder.tokenizer.enable_truncation(min(job.query_tokens + frame, job.embedder_tokens))
        self._reranker = None
        if job.reranker:
            self._reranker = _Graph(job.reranker, job.folder / "int8" / "reranker.onnx", job.threads)
            self._reranker.tokenizer.enable_truncation(job.reranker_tokens)

    def embed(self, text: str) -> Floats:
        """Embedding `[D]` of a request."""
        hidden_LD = self._embedder.run(text)[0]
        vector: Floats = {"mean": hidden_LD.mean(axis=0), "cls": hidden_LD[0], "last": hidden_LD[-1]}[self._job.pooling]
        return vector / np.linalg.norm(vector) if self._job.normalised else vector

    def score(self, request: str, texts: Sequence[str]) -> Floats | None:
        """Logits `[n]`, one pair after another."""
        if self._reranker is None:
            return None
        return np.array([self._reranker.run(request, text).reshape(-1)[0] for text in texts], np.float32)


class _Graph:
    """A graph and its tokenizer."""

    def __init__(self, weights: Path, graph: Path, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session: Any = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self._inputs = {each.name for each in self._session.get_inputs()}
        self.tokenizer: Any = Tokenizer.from_file(str(weights / "tokenizer.json"))
        self.tokenizer.no_padding()

    def run(self, *texts: str) -> Floats:
        """First output for one text, or one pair."""
        read = self.tokenizer.encode(*texts)
        given = {"input_ids": read.ids, "attention_mask": read.attention_mask, "token_type_ids": read.type_ids}
        feeds = {name: np.array([ids], np.int64) for name, ids in given.items() if name in self._inputs}
        output: Floats = self._session.run(None, feeds)[0]
        return output
