"""Graphs of the two layouts in ONNX Runtime, called with lists of sequences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from skillserve.tensors import ATTENTION_MASK, INPUT_IDS, SEQ_END, SEQ_LENS, TOK_END, Ids, pack
from skillserve_export.device import Device, open_checked
from skillserve_export.precision.inner import Feeds
from skillserve_export.stock import Rows, padded

__all__ = ["PackedGraph", "PaddedGraph", "ServedGraph"]


class ServedGraph(Protocol):
    """A graph that is judged: of the packed layout or the padded one."""

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

    def run_raw(self, ids: npt.ArrayLike, lens: npt.ArrayLike, tok_end: npt.ArrayLike, seq_end: npt.ArrayLike) -> Rows:
        """One execution of the four inputs as given, sound or not."""
        [rows] = self.session.run(None, self._named(ids, lens, tok_end, seq_end))
        return np.asarray(rows)

    @classmethod
    def _named(cls, *values: npt.ArrayLike) -> Feeds:
        return {name: np.asarray(value, np.int32) for name, value in zip(cls.inputs, values, strict=True)}


class PaddedGraph:
    """A padded graph."""

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
