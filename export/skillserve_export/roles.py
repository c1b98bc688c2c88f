"""What weights are served as: in one role, or, a reranker by late interaction, in two."""

from __future__ import annotations

from pathlib import Path

from skillserve.card import CARD_FILE, ModelCard, read_card
from skillserve.settings import ExportSettings
from skillserve.tensors import MODEL_NAMES, Layout, Role
from skillserve_export.record import read_record

__all__ = ["roles_of", "roles_to_verify", "stale_folder"]


def roles_of(card: ModelCard, layout: Layout) -> tuple[Role, ...]:
    """What weights are served as: a reranker by late interaction, in the packed layout, also as a token embedder."""
    return (card.role, "token_embedder") if card.score_kind == "max_sim" and layout == "packed" else (card.role,)


def roles_to_verify(card: ModelCard, settings: ExportSettings) -> tuple[Role, ...]:
    """The weights' own role, and what else of them may stand in the repository and does.

    Beside a padded reranker a token embedder is a leftover, which `stale_folder` finds.
    """
    folder = settings.repository / MODEL_NAMES[card.role]
    layout = read_record(folder).layout
    return tuple(
        role
        for role in roles_of(card, layout)
        if role == card.role or (settings.repository / MODEL_NAMES[role]).exists()
    )


def stale_folder(card: ModelCard, settings: ExportSettings) -> Path | None:
    """A token embedder of other weights than the reranker's that was just written: served, and of no use."""
    folder = settings.repository / MODEL_NAMES["token_embedder"]
    if card.role != "reranker" or not (folder / CARD_FILE).is_file():
        return None
    return folder if read_card(folder).digest != card.digest else None
