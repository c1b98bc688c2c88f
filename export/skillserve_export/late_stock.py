"""The reference of late interaction: Optimum's stock export reads each text alone, the score is written out in numpy.

Nothing of our graphs is in it, nor of the training: the definition is read again from `late` and computed in float64,
stretch by stretch.

Shape legend: Q tokens of a request, K of a skill, H hidden size, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import safe_open

from skillserve.card import ModelCard
from skillserve.pairs import Remembered
from skillserve.tensors import ATTENTION_MASK, INPUT_IDS, Ids
from skillserve_export.stock import Rows, StockGraph

__all__ = ["LateStock", "open_stock"]

Floats = npt.NDArray[np.float64]


def open_stock(path: Path, card: ModelCard, weights: Path) -> StockGraph:
    """The reference of any card; `weights` is the folder that the export came from."""
    return LateStock(path, card, weights) if card.score_kind == "max_sim" else StockGraph(path, card)


class LateStock(StockGraph):
    """Optimum's stock export of the encoder, and what scores are made with."""

    def __init__(self, path: Path, card: ModelCard, weights: Path) -> None:
        super().__init__(path, card)
        facts = json.loads((weights / "config.json").read_bytes())
        self.window, self.scale = int(facts["window"]), float(facts["scale"])
        with safe_open(weights / "model.safetensors", framework="pt") as tensors:
            self.weights_V: Floats = tensors.get_tensor("token_weights").double().numpy()
        self._read: Remembered[npt.NDArray[np.float32]] = Remembered()

    def _run_batch(self, sequences: Sequence[Ids], tokens: Sequence[int]) -> Rows:
        [opening] = tokens
        return np.array([self._score(sequence, opening) for sequence in sequences], np.float32)

    def _score(self, pair: Ids, opening: int) -> float:
        cuts = np.flatnonzero(pair == opening)
        if len(cuts) < 2 or cuts[0] != 0:
            return float("nan")
        request, skill = pair[: cuts[1]], pair[cuts[1] :]
        asks_QH, offers_KH = self._unit_states(request), self._unit_states(skill)
        offers_KH = offers_KH[self.weights_V[skill] > 0]
        nearest_Q = (asks_QH @ offers_KH.T).max(axis=1) if len(offers_KH) else np.full(len(request), -1.0)
        weight_Q = self.weights_V[request]
        size = min(self.window, len(request))
        means = []
        for start in range(len(request) - size + 1):
            stretch = slice(start, start + size)
            weight = weight_Q[stretch].sum()
            means.append(float(weight_Q[stretch] @ nearest_Q[stretch] / weight) if weight > 0 else 0.0)
        return self.scale * max(means)

    def _unit_states(self, text: Ids) -> Floats:
        """States `[length, H]` of length 1, of a text that is read alone, and once."""
        [states_LH] = self._read.recall([text.tobytes()], lambda _: [self._states(text)])
        states = states_LH.astype(np.float64)
        unit: Floats = states / np.linalg.norm(states, axis=1, keepdims=True)
        return unit

    def _states(self, text: Ids) -> npt.NDArray[np.float32]:
        """As they come out of the encoder."""
        ids = text[None].astype(np.int64)
        known: dict[str, npt.NDArray[Any]] = {
            INPUT_IDS: ids,
            ATTENTION_MASK: np.ones_like(ids),
            "token_type_ids": np.zeros_like(ids),
        }
        wanted = [put.name for put in self.session.get_inputs()]
        [hidden] = self.session.run(None, {name: known[name] for name in wanted})
        return np.asarray(hidden[0], np.float32)
