"""In which precision matrix products run."""

from __future__ import annotations

from typing import Literal

import torch

__all__ = ["Precision", "choose_precision"]

Precision = Literal["float32", "bfloat16"]


def choose_precision(wanted: Literal["auto"] | Precision) -> Precision:
    """`auto` takes bfloat16 where the hardware multiplies it natively; elsewhere it is slower than float32."""
    if wanted != "auto":
        return wanted
    features = torch.cpu.get_capabilities()
    native = torch.cuda.is_available() or features.get("avx512_bf16") or features.get("amx_bf16")
    return "bfloat16" if native else "float32"
