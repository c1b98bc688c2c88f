"""Model families: how each architecture becomes a packed module.

A family is one small module with an entry in `FAMILIES`, keyed by `model_type` of config.json.
"""

from __future__ import annotations

from functools import cache

from skillserve.card import ModelCard
from skillserve.errors import ContractError
from skillserve.lazy import load_target
from skillserve_export.families.family import Family

__all__ = ["FAMILIES", "Family", "family_of"]

FAMILIES = {
    "bert": "bert:Bert",
    "late-bert": "late_bert:LateBert",
    "modernbert": "modernbert:ModernBert",
    "qwen3": "qwen3:Qwen3",
    "xlm-roberta": "xlm_roberta:XlmRoberta",
}
"""Module and class. Each is imported when it is called for: transformers' modules behind them take a second or two."""


@cache
def _opened(kind: str) -> Family:
    family: Family = load_target(f"{__name__}.{FAMILIES[kind]}", extra="export", subject=f"model family `{kind}`")()
    return family


def family_of(card: ModelCard) -> Family:
    """The entry for a card; raises ContractError with the known names."""
    if card.family not in FAMILIES:
        raise ContractError(
            f"model `{card.name}`",
            got=f"architecture {card.family}",
            wanted=f"one of {', '.join(sorted(FAMILIES))}",
            fix="Export a model of a known family, or add a module to skillserve_export/families.",
        )
    return _opened(card.family)
