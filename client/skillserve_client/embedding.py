"""Requests to vectors in bulk, each with those of its parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np

from skillserve.console import Bar
from skillserve_client.corpus import Corpus
from skillserve_client.wire import Floats, Inference

__all__ = ["Bars", "embed_requests"]

Bars = Callable[[str, int], AbstractContextManager[Bar]]
"""Makes a progress bar from its title and its length; `skillserve.console.progress` does."""


def embed_requests(
    corpus: Corpus, requests: Sequence[Sequence[str]], triton: Inference, progress: Bars, *, digest: str | None = None
) -> list[Floats]:
    """Of each request, in pieces, `[1 + P, D]`: its own vector, and those of its P parts behind it.

    Raises QueryError for a blank request, ServerError, and BundleError for a server with another model than `digest`.
    """
    read = corpus.embedder.queries_in_pieces(requests)
    sequences = [cut.ids for cuts in read for cut in cuts]
    with progress("embedding requests", len(sequences)) as bar:
        vectors = triton.infer("embedder", sequences, progress=bar.advance, digest=digest)
    return np.split(vectors, np.cumsum([len(cuts) for cuts in read])[:-1])
