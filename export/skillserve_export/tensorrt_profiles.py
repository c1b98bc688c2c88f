"""Exports for TensorRT: what is refused before any work, and the profiles that the data asks for."""

from __future__ import annotations

from pathlib import Path

from skillserve.card import ModelCard
from skillserve.errors import UsageError
from skillserve.settings import ExportSettings
from skillserve.tensors import Layout
from skillserve_export.gate import SAMPLE
from skillserve_export.lengths import served_lengths
from skillserve_export.profiles import Profiles, plan_profiles

__all__ = ["profiles_for", "require_tensorrt"]


def require_tensorrt(settings: ExportSettings, layout: Layout) -> None:
    """Raise UsageError for a graph that TensorRT cannot take; any graph is right for ONNX Runtime alone."""
    subject = f"runtime `{settings.runtime}`"
    if settings.runtime == "onnxruntime":
        return
    if layout != "padded":
        raise UsageError(
            subject,
            got=f"--layout {layout}",
            wanted="the padded layout: shapes of a plan must not depend on numbers inside a request",
            fix="Export it so: --layout padded",
        )
    if settings.precision == "int8":
        raise UsageError(
            subject,
            got="--precision int8, made of MatMulInteger",
            wanted="fp32, fp16 or bf16: TensorRT's parser does not take that operator",
            fix="Choose --precision fp16.",
        )


def profiles_for(card: ModelCard, weights: Path, settings: ExportSettings, data: Path | None) -> Profiles | None:
    """Profiles from the lengths of `data`, or of the sample of a clone; None for ONNX Runtime alone.

    Raises UsageError where there is nothing to count.
    """
    if settings.runtime == "onnxruntime":
        return None
    if data is None and not SAMPLE.is_dir():
        raise UsageError(
            f"runtime `{settings.runtime}`",
            got=f"no --data, and no `{SAMPLE}` here",
            wanted="requests and skills, whose lengths TensorRT is tuned for",
            fix="Run it again with --data FOLDER, in SkillRet's layout.",
        )
    source = data or SAMPLE
    return plan_profiles(
        served_lengths(card, weights, source),
        source=f"{source}, test",
        longest=card.max_tokens,
        num_buckets=settings.num_buckets,
        max_batch_size=settings.max_batch_size,
        max_tokens=settings.max_request_tokens,
        tuned_tokens=settings.tuned_tokens,
    )
