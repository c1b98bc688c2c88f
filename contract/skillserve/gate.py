"""How far a served graph may rank from its reference: the thresholds of the rank gate.

They stand in the section `export` of a model card, for each precision, and here where a card says nothing:

    "export": {"gate": {"bf16": {"min_top1": 0.97, "min_overlap": 0.97, "max_ndcg_loss": 0.3}}}
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from skillserve.tensors import Precision

__all__ = ["GATES", "ExportSection", "Gate"]


class Gate(BaseModel):
    """What a candidate must reach on the requests it is judged on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_top1: float = Field(ge=0, le=1, description="share of requests whose first skill is the reference's")
    min_overlap: float = Field(ge=0, le=1, description="mean share of the reference's first ten that are found again")
    max_ndcg_loss: float = Field(
        ge=0,
        allow_inf_nan=False,
        description="points of NDCG@10 that may be lost at most, by the lower end of the 95 % interval: a loss that "
        "cannot be ruled out counts as one",
    )


GATES: dict[Precision, Gate] = {
    "fp32": Gate(min_top1=0.999, min_overlap=0.999, max_ndcg_loss=0.05),
    "fp16": Gate(min_top1=0.99, min_overlap=0.99, max_ndcg_loss=0.1),
    "bf16": Gate(min_top1=0.97, min_overlap=0.97, max_ndcg_loss=0.5),
    "int8": Gate(min_top1=0.92, min_overlap=0.94, max_ndcg_loss=1.0),
    "w8": Gate(min_top1=0.96, min_overlap=0.97, max_ndcg_loss=0.8),
    "w4": Gate(min_top1=0.9, min_overlap=0.9, max_ndcg_loss=1.0),
}
"""Where a card sets none. Ties of the reference are no errors, so float32 may only differ in near-ties of another
device. The others leave room beyond what rounding all-MiniLM-L6-v2 costs, but w4, which it does not survive; see
docs/decisions.md."""


class ExportSection(BaseModel):
    """What a card says about its exports. It changes no output, so the card's digest leaves it out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gate: dict[Precision, Gate] = Field(default_factory=dict, description="thresholds instead of the defaults")
