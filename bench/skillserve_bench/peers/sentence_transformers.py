"""The same weights in sentence-transformers: another tokeniser call, another graph, padding, no server, no index.

Its backends are PyTorch, ONNX Runtime and OpenVINO; `onnx-int8` is the ONNX one with its own dynamic quantisation.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from skillserve.card import ModelCard, read_card
from skillserve.errors import MissingExtraError
from skillserve.framing import mend
from skillserve.records import Skill
from skillserve.text import document_text, query_text, skill_text
from skillserve_client.wire import Floats

__all__ = ["BACKENDS", "PACKAGES", "Backend", "CrossEncoderPeer", "SentenceTransformersPeer"]

Backend = Literal["torch", "onnx", "onnx-int8", "openvino"]
BACKENDS: tuple[Backend, ...] = ("torch", "onnx", "onnx-int8", "openvino")

PACKAGES = ("sentence-transformers", "transformers", "torch")
"""Distributions whose versions belong into a report."""

_BATCH_SIZE = 32
"""The default of `encode` and `predict`."""

_RECIPE = "avx512_vnni"
"""Of sentence-transformers' quantisations the one for servers of today; per channel, a scale of activations a batch."""


class SentenceTransformersPeer:
    """A weights folder as a SentenceTransformer, put together from what its card says.

    Raises MissingExtraError without the library, and whatever the library does where a backend is not installed.
    """

    def __init__(self, weights: Path, backend: Backend = "torch") -> None:
        try:
            from sentence_transformers import SentenceTransformer
            from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
        except ImportError as error:
            raise _missing(error) from error
        self.card: ModelCard = read_card(weights, verify_weights=True)

        def opened(folder: Path, **how: Any) -> Any:  # noqa: ANN401 -- the library's own
            transformer = Transformer(str(folder), max_seq_length=self.card.max_tokens, **how)
            modules = [transformer, Pooling(self.card.dim, pooling_mode=self.card.pooling)]
            if self.card.normalised:
                modules.append(Normalize())
            return SentenceTransformer(modules=modules, device="cpu")

        self._model: Any = _opened(opened, weights, backend)
        num_frame = self._model.tokenizer.num_special_tokens_to_add()
        self._max_query_tokens = min(self.card.max_query_tokens + num_frame, self.card.max_tokens)

    def embed_skills(self, skills: Sequence[Skill]) -> Floats:
        """Embeddings `[n, D]` of skills, cut to the card's max_tokens."""
        texts = [document_text(self.card.document_prompt, skill) for skill in skills]
        return self._embed(texts, self.card.max_tokens)

    def embed_queries(self, texts: Sequence[str]) -> Floats:
        """Embeddings `[n, D]` of requests, cut to the card's max_query_tokens."""
        return self._embed([query_text(self.card.query_prompt, text) for text in texts], self._max_query_tokens)

    def _embed(self, texts: Sequence[str], max_tokens: int) -> Floats:
        self._model.max_seq_length = max_tokens
        vectors = self._model.encode(
            [mend(text) for text in texts], batch_size=_BATCH_SIZE, convert_to_numpy=True, show_progress_bar=True
        )
        return np.asarray(vectors, np.float32)


class CrossEncoderPeer:
    """A weights folder as a CrossEncoder that gives logits; raises as SentenceTransformersPeer does."""

    def __init__(self, weights: Path, backend: Backend = "torch") -> None:
        try:
            from sentence_transformers import CrossEncoder
            from torch.nn import Identity
        except ImportError as error:
            raise _missing(error) from error
        self.card: ModelCard = read_card(weights, verify_weights=True)

        def opened(folder: Path, **how: Any) -> Any:  # noqa: ANN401 -- the library's own
            return CrossEncoder(
                str(folder), device="cpu", max_length=self.card.max_tokens, activation_fn=Identity(), **how
            )

        self._model: Any = _opened(opened, weights, backend)

    def score(self, pairs: Sequence[tuple[str, Skill]]) -> Floats:
        """Logits `[n]` of requests with skills, cut to the card's max_tokens.

        Requests are cut to its max_query_tokens before that, for which the library has no setting.
        """
        requests = {request: self._cut(mend(query_text("", request))) for request, _ in pairs}
        texts = [(requests[request], mend(skill_text(skill))) for request, skill in pairs]
        scores = self._model.predict(texts, batch_size=_BATCH_SIZE, convert_to_numpy=True, show_progress_bar=False)
        return np.asarray(scores, np.float32).reshape(-1)

    def _cut(self, request: str) -> str:
        """The text of its first tokens."""
        read = self._model.tokenizer(
            request,
            add_special_tokens=False,
            return_offsets_mapping=True,
            truncation=True,
            max_length=self.card.max_query_tokens,
        )
        ends = [end for _, end in read["offset_mapping"]]
        return request[: ends[-1]] if len(ends) == self.card.max_query_tokens else request


def _opened(opened: Callable[..., Any], weights: Path, backend: Backend) -> Any:  # noqa: ANN401 -- the library's own
    """The model in a backend. Graphs are exported for the occasion; nothing is written into the weights folder."""
    if backend == "torch":
        return opened(weights)
    if backend == "openvino":
        return opened(weights, backend="openvino", model_kwargs={"export": True})
    kwargs = {"provider": "CPUExecutionProvider"}
    plain = opened(weights, backend="onnx", model_kwargs={**kwargs, "export": True})
    if backend == "onnx":
        return plain
    from sentence_transformers.backend import export_dynamic_quantized_onnx_model

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export_dynamic_quantized_onnx_model(plain, _RECIPE, name)
        for each in ("config.json", "tokenizer.json"):
            shutil.copyfile(weights / each, folder / each)
        # Loaded whole, so that the folder may go.
        (graph,) = folder.rglob(f"*{_RECIPE}.onnx")
        return opened(folder, backend="onnx", model_kwargs={**kwargs, "file_name": graph.name})


def _missing(error: ImportError) -> MissingExtraError:
    return MissingExtraError(
        "baseline `sentence-transformers`",
        got=str(error),
        wanted="the training extra",
        fix="Install it: pip install 'skillserve[training]'",
    )
