"""The independent reference of the parity gate: Optimum's stock export, padded, read in numpy.

Nothing of our graphs is in it: positions, masks, local windows and heads are those of transformers as Optimum exports
them; pooling, unit length and the gap between two answers are computed here.

Shape legend: B sequences of length L with padding, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skillserve.card import ModelCard
from skillserve.tensors import ATTENTION_MASK, INPUT_IDS, Ids
from skillserve_export.device import open_checked

__all__ = ["BATCH_TOKENS", "Rows", "StockGraph", "neighbours", "padded"]

Rows = npt.NDArray[np.float32]
"""`[n, D]` embeddings or `[n]` scores."""

BATCH_TOKENS = 8_192
"""Tokens in one execution, padding counted."""

_LOGITS_BYTES = 1 << 30
"""Room for the logits of one execution: a language model's stock export gives them for every token and word."""


class StockGraph:
    """Optimum's stock export in ONNX Runtime."""

    def __init__(self, path: Path, card: ModelCard) -> None:
        self.session = open_checked(path)
        self.card = card

    def run(self, sequences: Sequence[Ids], tokens: Sequence[int] = ()) -> Rows:
        """The reference rows, in batches of neighbouring sequences; `tokens` are those of the sample."""
        most = BATCH_TOKENS
        if self.card.score_kind == "yes_no":
            most = min(most, _LOGITS_BYTES // (4 * self.card.vocab_size))
        batches = (sequences[cut] for cut in neighbours(sequences, most))
        return np.concatenate([self._run_batch(batch, tokens) for batch in batches])

    def _run_batch(self, sequences: Sequence[Ids], tokens: Sequence[int]) -> Rows:
        ids_BL, mask_BL = padded(sequences, np.int64)
        last_B = mask_BL.sum(1) - 1
        known = {
            INPUT_IDS: ids_BL,
            ATTENTION_MASK: mask_BL,
            "position_ids": np.broadcast_to(np.arange(ids_BL.shape[1]), ids_BL.shape),
        }
        wanted = [put.name for put in self.session.get_inputs()]
        if "token_type_ids" in wanted:
            known["token_type_ids"] = self._types(sequences, ids_BL, tokens)
        [result] = self.session.run(None, {name: np.ascontiguousarray(known[name]) for name in wanted})
        rows_B = np.arange(len(sequences))
        match self.card.score_kind:
            case "logit":
                return np.asarray(result, np.float32)[:, 0]
            case "yes_no":
                yes, no = tokens
                answers = np.asarray(result)[rows_B, last_B].astype(np.float64)
                return np.asarray(answers[:, yes] - answers[:, no], np.float32)
        hidden_BLH = np.asarray(result, np.float64)
        match self.card.pooling:
            case "cls":
                rows = hidden_BLH[:, 0]
            case "last":
                rows = hidden_BLH[rows_B, last_B]
            case _:
                rows = (hidden_BLH * mask_BL[:, :, None]).sum(1) / mask_BL.sum(1, keepdims=True)
        if self.card.normalised:
            rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return np.asarray(rows, np.float32)

    def _types(self, sequences: Sequence[Ids], ids_BL: npt.NDArray[Any], tokens: Sequence[int]) -> npt.NDArray[Any]:
        """Segment ids by transformers' own rule for pairs: type 1 from behind the first separator."""
        types_BL = np.zeros_like(ids_BL)
        if self.card.role == "reranker":
            [separator] = tokens
            for row, sequence in enumerate(sequences):
                separators = np.flatnonzero(sequence == separator)
                if separators.size:
                    types_BL[row, separators[0] + 1 : len(sequence)] = 1
        return types_BL


def neighbours(sequences: Sequence[Ids], max_tokens: int) -> Iterator[slice]:
    """Cut a list, in order, into runs that padded hold at most `max_tokens` tokens; a longer sequence stands alone."""
    start = longest = 0
    for i, sequence in enumerate(sequences):
        longest = max(longest, len(sequence))
        if i > start and longest * (i + 1 - start) > max_tokens:
            yield slice(start, i)
            start, longest = i, len(sequence)
    yield slice(start, len(sequences))


def padded(sequences: Sequence[Ids], kind: type[np.integer[Any]]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Ids and mask `[B, L]`."""
    lens = np.array([len(sequence) for sequence in sequences])
    mask_BL = np.arange(lens.max()) < lens[:, None]
    ids_BL = np.zeros(mask_BL.shape, kind)
    ids_BL[mask_BL] = np.concatenate(sequences)
    return ids_BL, mask_BL.astype(kind)
