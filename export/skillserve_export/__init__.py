"""Weights and card → a packed ONNX graph → a model repository that Triton serves, gated by parity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skillserve_export.repository import export_model, verify_model

__all__ = ["export_model", "verify_model"]


def __getattr__(name: str) -> Any:
    """The two above when they are asked for: a plan is built where there is no torch."""
    if name not in __all__:
        raise AttributeError(f"module `{__name__}` has no attribute `{name}`")
    from skillserve_export import repository

    return getattr(repository, name)
