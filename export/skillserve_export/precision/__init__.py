"""From a finished float32 graph to one of another precision, whatever its family, layout and attention core.

    linear.py    where the weights are
    inner.py     inner tensors, seen by running the graph
    scales.py    numpy: scales, rounding, smoothing
    blocks.py    numpy: four or eight bits, with a scale and a zero point a block
    int8.py      integer products
    stored.py    weights in eight or four bits
    half.py      fp16 and bf16
    ability.py   what a device can run

Inputs and outputs stay what they were: int32 in, float32 out.
"""

from __future__ import annotations

from skillserve_export.precision.ability import require_runnable
from skillserve_export.precision.lower import lower

__all__ = ["lower", "require_runnable"]
