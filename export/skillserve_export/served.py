"""Graphs that are served, in ONNX Runtime, called with lists of sequences.

Shape legend: S sequences, T tokens, D dimension of a row of a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from skillserve.max_sim import Interaction, max_sim, unit_rows
from skillserve.pairs import Remembered, sides
from skillserve.tensors import ATTENTION_MASK, INPUT_IDS, SEQ_END, SEQ_LENS, TOK_END, Ids, pack
from skillserve_export.device import Device, open_checked
from skillserve_export.precision.inner import Feeds
from skillserve_export.stock import Rows, padded

__all__ = ["PackedGraph", "PaddedGraph", "ServedGraph", "TokenGraph"]


class ServedGraph(Protocol):
    """A graph that is judged."""

    title: ClassVar[str]
    path: Path
    device: Device
    session: ort.InferenceSession
    inputs: ClassVar[dict[str, int]]
    """Input → rank."""

    def feeds(self, sequences: Sequence[Ids]) -> Feeds:
        """The inputs of one execution."""

    def run(self, sequences: Sequence[Ids]) -> Rows:
        """One execution of a list of sequences."""


class PackedGraph:
    """A packed graph."""

    title: ClassVar[str] = "graph"
    inputs: ClassVar[dict[str, int]] = {INPUT_IDS: 1, SEQ_LENS: 1, TOK_END: 1, SEQ_END: 1}

    def __init__(self, path: Path, device: Device = "cpu") -> None:
        self.path, self.device = path, device
        self.session = open_checked(path, device)

    @classmethod
    def feeds(cls, sequences: Sequence[Ids]) -> Feeds:
        """Every sequence a request of its own."""
        packed = pack(sequences)
        lens = packed.seq_lens[0]
        return cls._named(packed.input_ids[0], lens, np.cumsum(lens), np.arange(1, len(lens) + 1))

    def run(self, sequences: Sequence[Ids]) -> Rows:
        """One execution, every sequence a request of its own."""
        return self.run_raw(*self.feeds(sequences).values())

    @staticmethod
    def num_rows(ids: Ids, lens: Sequence[int]) -> int:  # noqa: ARG004
        """How many rows a request of these ids and lengths gets."""
        return len(lens)

    def run_raw(self, ids: npt.ArrayLike, lens: npt.ArrayLike, tok_end: npt.ArrayLike, seq_end: npt.ArrayLike) -> Rows:
        """One execution of the four inputs as given, sound or not."""
        [rows] = self.session.run(None, self._named(ids, lens, tok_end, seq_end))
        return np.asarray(rows)

    @classmethod
    def _named(cls, *values: npt.ArrayLike) -> Feeds:
        return {name: np.asarray(value, np.int32) for name, value in zip(cls.inputs, values, strict=True)}


class TokenGraph(PackedGraph):
    """A packed graph of token embeddings, called with pairs and judged by the scores that its rows make."""

    title: ClassVar[str] = "token graph"

    def __init__(self, path: Path, device: Device, how: Interaction) -> None:
        super().__init__(path, device)
        self.how = how
        self.remembered: Remembered[Rows] | None = None
        """Rows of texts that were read, `[length, D]`; None: every text is read anew."""

    def run(self, sequences: Sequence[Ids]) -> Rows:
        """Scores of pairs; the texts that they are made of are read in one execution, each once."""
        pairs = [sides(sequence) for sequence in sequences]
        texts = {text.tobytes(): text for pair in pairs for text in pair if len(text)}
        remembered: Remembered[Rows] = Remembered() if self.remembered is None else self.remembered
        found = remembered.recall(list(texts), lambda places: self._read([list(texts.values())[i] for i in places]))
        rows = dict(zip(texts, found, strict=True))
        return np.concatenate([self._score(rows, request, skill) for request, skill in pairs])

    @staticmethod
    def num_rows(ids: Ids, lens: Sequence[int]) -> int:  # noqa: ARG004
        """A row a token."""
        return len(ids)

    def _read(self, texts: Sequence[Ids]) -> list[Rows]:
        """The rows of each text."""
        rows = self.run_raw(*self.feeds(texts).values())
        return np.split(rows, np.cumsum([len(text) for text in texts])[:-1])

    def _score(self, rows: dict[bytes, Rows], request: Ids, skill: Ids) -> Rows:
        """`[1]`, NaN for a sequence that is no pair."""
        if not len(skill):
            return np.full(1, np.nan, np.float32)
        offered = unit_rows(rows[skill.tobytes()])
        return max_sim(rows[request.tobytes()], offered, np.array([len(offered)]), self.how)


class PaddedGraph:
    """A padded graph."""

    title: ClassVar[str] = "graph"
    inputs: ClassVar[dict[str, int]] = {INPUT_IDS: 2, ATTENTION_MASK: 2}

    def __init__(self, path: Path, device: Device = "cpu") -> None:
        self.path, self.device = path, device
        self.session = open_checked(path, device)

    @classmethod
    def feeds(cls, sequences: Sequence[Ids]) -> Feeds:
        """Padded to the longest sequence."""
        return dict(zip(cls.inputs, padded(sequences, np.int32), strict=True))

    def run(self, sequences: Sequence[Ids]) -> Rows:
        """One execution, padded to the longest sequence."""
        [rows] = self.session.run(None, self.feeds(sequences))
        return np.asarray(rows)
