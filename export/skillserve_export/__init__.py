"""Weights and card → a packed ONNX graph → a model repository that Triton serves, gated by parity."""

from skillserve_export.repository import export_model, verify_model

__all__ = ["export_model", "verify_model"]
