"""Model families: how each architecture becomes a packed module.

A family is one small module with an entry in `FAMILIES`, keyed by `model_type` of config.json.
"""

from __future__ import annotations

from skillserve.card import ModelCard
from skillserve.errors import ContractError
from skillserve_export.families.bert import Bert
from skillserve_export.families.family import Family
from skillserve_export.families.late_bert import LateBert
from skillserve_export.families.modernbert import ModernBert
from skillserve_export.families.qwen3 import Qwen3
from skillserve_export.families.xlm_roberta import XlmRoberta

__all__ = ["FAMILIES", "Family", "family_of"]

FAMILIES: dict[str, Family] = {
    "bert": Bert(),
    "late-bert": LateBert(),
    "modernbert": ModernBert(),
    "qwen3": Qwen3(),
    "xlm-roberta": XlmRoberta(),
}


def family_of(card: ModelCard) -> Family:
    """The entry for a card; raises ContractError with the known names."""
    try:
        return FAMILIES[card.family]
    except KeyError as error:
        raise ContractError(
            f"model `{card.name}`",
            got=f"architecture {card.family}",
            wanted=f"one of {', '.join(sorted(FAMILIES))}",
            fix="Export a model of a known family, or add a module to skillserve_export/families.",
        ) from error
