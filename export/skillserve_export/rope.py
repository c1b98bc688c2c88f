"""Rotary positions, from tables as long as the longest sequence.

The tables are computed once, in float32, by the transformers model's own rotary embedding, so whatever scaling its
configuration asks for is in them. A graph that computed angles itself would lose them in half precision: position
8,000 times a frequency does not fit there, while its cosine does.

Shape legend: T tokens, N heads, D head dimension, P positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Rope", "rotated"]


class Rope(nn.Module):
    """Cosines and signed sines `[P, D]` of every position."""

    cos: Tensor
    sin: Tensor

    def __init__(self, rotary: Any, max_tokens: int) -> None:
        super().__init__()
        with torch.no_grad():
            cos, sin = (table[0] for table in rotary(torch.zeros(1), torch.arange(max_tokens)[None]))
        low, high = sin.chunk(2, dim=-1)
        self.register_buffer("cos", cos)
        # The minus of the rotation stands in the table, so no layer has to negate.
        self.register_buffer("sin", torch.cat([-low, high], dim=-1))

    def forward(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Angles of tokens: `[T]` → twice `[T, 1, D]`."""
        return self.cos[position].unsqueeze(1), self.sin[position].unsqueeze(1)


def rotated(heads: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Queries or keys `[T, N, D]` turned by their positions, side by side again: `[T, N·D]`."""
    cos, sin = angles
    low, high = heads.chunk(2, dim=-1)
    turned: Tensor = heads * cos + torch.cat([high, low], dim=-1) * sin
    return turned.view(-1, heads.shape[1] * heads.shape[2])
