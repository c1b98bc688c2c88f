"""The one door to HdrHistogram: durations in microseconds, mergeable over processes and files."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from hdrh.histogram import HdrHistogram

__all__ = ["HIGHEST_US", "Histogram", "at_share"]

HIGHEST_US = 3_600_000_000
"""One hour; whatever lasts longer counts as that."""

_DIGITS = 3
"""Significant decimal digits: a value read back is within 0.1 % of the one recorded."""


class Histogram:
    """Counts of durations, µs; those of several processes or windows add up to what one would have counted."""

    def __init__(self) -> None:
        self._hdr: Any = HdrHistogram(1, HIGHEST_US, _DIGITS)

    @classmethod
    def of(cls, durations_ns: npt.NDArray[np.int64]) -> Self:
        """Count durations `[n]`; less than half a microsecond, which only a clock's grain gives, counts as 0."""
        histogram = cls()
        clipped_us = np.clip((durations_ns + 500) // 1000, 0, HIGHEST_US)
        for value, count in zip(*np.unique(clipped_us, return_counts=True), strict=True):
            histogram._hdr.record_value(int(value), int(count))
        return histogram

    @classmethod
    def merged(cls, parts: Iterable[Histogram]) -> Self:
        """The sum of several."""
        histogram = cls()
        for part in parts:
            histogram._hdr.add(part._hdr)  # noqa: SLF001 -- of the same class
        return histogram

    @classmethod
    def decode(cls, text: str) -> Self:
        """Read what `encode` wrote; ValueError if it is no histogram of this range and precision."""
        histogram = cls()
        try:
            found = HdrHistogram.decode(text.encode())
            histogram._hdr.add(found)
        except Exception as error:  # the library raises IndexError, zlib.error, binascii.Error and its own
            raise ValueError(f"not an HdrHistogram: {error}") from error
        if (found.highest_trackable_value, found.significant_figures) != (HIGHEST_US, _DIGITS):
            raise ValueError(f"an HdrHistogram of another range: up to {found.highest_trackable_value} us")
        return histogram

    def encode(self) -> str:
        """HdrHistogram's own compressed V2 form, base64; any of its tools reads it."""
        text: bytes = self._hdr.encode()
        return text.decode("ascii")

    def __getstate__(self) -> str:
        return self.encode()

    def __setstate__(self, state: str) -> None:
        self.__init__()  # type: ignore[misc]  # unpickling makes an empty object
        self._hdr.add(HdrHistogram.decode(state.encode()))

    @property
    def num(self) -> int:
        """How many durations were counted."""
        return int(self._hdr.get_total_count())

    @property
    def greatest_us(self) -> float:
        """The longest one; 0 if there is none."""
        return float(self._hdr.get_max_value()) if self.num else 0.0

    def quantile_us(self, share: float) -> float:
        """The least duration that at least `share` of all do not exceed; nan if there is none."""
        values, counts = self.counts()
        return float(at_share(values, counts[None, :], share)[0])

    def counts(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Durations that occur, µs, rising, and how often each: `[K]`, `[K]`."""
        counts = np.frombuffer(self._hdr.counts, np.uint64)  # its iterators take 20 ms a histogram
        (places,) = np.nonzero(counts)
        values = [self._hdr.get_highest_equivalent_value(self._hdr.get_value_from_index(int(i))) for i in places]
        return np.array(values, np.float64), counts[places].astype(np.int64)


def at_share(
    values: npt.NDArray[np.float64], counts_RK: npt.NDArray[np.int64], share: float
) -> npt.NDArray[np.float64]:
    """Of each row of counts over the same rising values `[K]`, the value of rank ceil(share · total): `[R]`.

    This is the inverse of the empirical distribution (type 1 of Hyndman & Fan, 1996), the definition that
    HdrHistogram uses. nan for a row without any.
    """
    if not len(values):
        return np.full(len(counts_RK), np.nan)
    sums_RK = np.cumsum(counts_RK, axis=1)
    # A product such as 0.99 · 100 may end a last bit above the whole number that it is.
    ranks_R = np.maximum(np.ceil(share * sums_RK[:, -1] - 1e-9), 1)
    places_R = np.minimum((sums_RK < ranks_R[:, None]).sum(axis=1), len(values) - 1)
    return np.where(sums_RK[:, -1] > 0, values[places_R], np.nan)
