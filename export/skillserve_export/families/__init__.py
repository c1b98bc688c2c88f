"""Model families: how each architecture becomes a packed module.

A family is one small module with an entry in `FAMILIES`, keyed by `model_type` of config.json.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from skillserve.card import ModelCard
from skillserve.errors import ContractError
from skillserve_export.families import bert

__all__ = ["FAMILIES", "Family", "family_of"]


@dataclass(frozen=True, slots=True)
class Family:
    """What the export needs to know about an architecture."""

    load: Callable[[Path, ModelCard], nn.Module]
    """Weights folder and card → the transformers model, in evaluation mode."""
    packed: Callable[[nn.Module, ModelCard, Path, int], nn.Module]
    """That model, card, weights folder and `max_request_tokens` → a module of the wire contract."""
    padded: Callable[[nn.Module, ModelCard, Path], nn.Module]
    """That model, card and weights folder → a module of the padded layout."""


FAMILIES: dict[str, Family] = {"bert": Family(load=bert.load, packed=bert.packed, padded=bert.padded)}


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
