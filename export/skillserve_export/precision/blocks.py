"""Weights of four or eight bits in blocks, in numpy: each block has the scale and the zero point that round it best.

Nearest rounding spans a block from its least to its largest weight. Here spans that cut off its ends are tried too,
and for each the scale that fits its whole numbers in least squares; the one with the least squared error is kept. It
looks at weights alone, so no data is needed.

Shape legend: K input features, N output features, B blocks of input features; codes `[N, B, K]` hold K of one block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from skillserve_export.precision.scales import TINY

__all__ = ["BLOCK", "Blocks", "packed", "quantised_blocks"]

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

BLOCK = 32
"""Weights that share a scale. At 128 four bits err by half as much again, and ONNX Runtime's sums depend on company."""

_SPANS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6)
"""Shares of a block's span that are tried."""
_MOST_WEIGHTS = 1 << 22
"""Weights that are rounded at once, to bound memory."""


class Blocks(NamedTuple):
    """A matrix: weight = (code - zero) · scale; `[N, B, K]`, `[N, B]` and `[N, B]`."""

    codes: Bytes
    """0 … 15, or 0 … 255; where K is no multiple of `BLOCK`, what fills up the last block is its zero point."""
    scale: Floats
    zero: Bytes


def quantised_blocks(weight_KN: Floats, bits: int) -> Blocks:
    """Weights `[K, N]` in four bits or eight."""
    features, outputs = weight_KN.shape
    blocks = -(-features // BLOCK)
    codes_NBK = np.empty((outputs, blocks, BLOCK), np.uint8)
    scale_NB, zero_NB = np.empty((outputs, blocks), np.float32), np.empty((outputs, blocks), np.uint8)
    step = max(1, _MOST_WEIGHTS // (blocks * BLOCK))
    for start in range(0, outputs, step):
        part = slice(start, start + step)
        block_NBK = np.zeros((len(scale_NB[part]), blocks * BLOCK), np.float32)
        block_NBK[:, :features] = weight_KN[:, part].T
        codes_NBK[part], scale_NB[part], zero_NB[part] = _best(block_NBK.reshape(-1, blocks, BLOCK), 2**bits - 1)
    return Blocks(codes_NBK, scale_NB, zero_NB)


def packed(codes: Bytes, bits: int) -> Bytes:
    """Codes `[…, n]` as bytes, those of four bits `[…, ⌈n / 2⌉]` with the first of two in the lower half."""
    if bits == 8:
        return codes
    even = codes if codes.shape[-1] % 2 == 0 else np.concatenate([codes, np.zeros_like(codes[..., :1])], axis=-1)
    pairs: Bytes = np.bitwise_or(even[..., 0::2], np.left_shift(even[..., 1::2], 4))
    return pairs


def _best(block_NBK: Floats, top: int) -> tuple[Bytes, Floats, Bytes]:
    """Codes from 0 to `top`, scales and zero points of whole blocks."""
    best_NB = np.full(block_NBK.shape[:-1], np.inf, np.float32)
    found_NB, zeros_NB = np.empty_like(best_NB), np.empty_like(best_NB)
    for scale_NB, zero_NB in _candidates(block_NBK, top):
        restored = (_codes(block_NBK, scale_NB, zero_NB, top) - zero_NB[..., None]) * scale_NB[..., None]
        error_NB = np.square(restored - block_NBK).sum(axis=-1)
        better = error_NB < best_NB
        best_NB[better], found_NB[better], zeros_NB[better] = error_NB[better], scale_NB[better], zero_NB[better]
    codes = _codes(block_NBK, found_NB, zeros_NB, top)
    return codes.astype(np.uint8), found_NB, zeros_NB.astype(np.uint8)


def _candidates(block_NBK: Floats, top: int) -> Iterator[tuple[Floats, Floats]]:
    """Scales and zero points: of each span, then with the scale that fits the codes of that span best."""
    low_NB = np.minimum(block_NBK.min(axis=-1), 0)
    high_NB = np.maximum(block_NBK.max(axis=-1), 0)
    for share in _SPANS:
        scale_NB = np.maximum((high_NB - low_NB) * np.float32(share / top), TINY)
        zero_NB = np.clip(np.rint(-low_NB * np.float32(share) / scale_NB), 0, top)
        yield scale_NB, zero_NB
        whole = _codes(block_NBK, scale_NB, zero_NB, top) - zero_NB[..., None]
        size_NB = np.square(whole).sum(axis=-1)
        fitted_NB = (whole * block_NBK).sum(axis=-1) / np.maximum(size_NB, 1)
        yield np.maximum(fitted_NB, TINY), zero_NB


def _codes(block_NBK: Floats, scale_NB: Floats, zero_NB: Floats, top: int) -> Floats:
    codes: Floats = np.clip(np.rint(block_NBK / scale_NB[..., None] + zero_NB[..., None]), 0, top)
    return codes
