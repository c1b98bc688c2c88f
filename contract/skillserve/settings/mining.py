"""Settings of mining."""

from __future__ import annotations

from pydantic import Field

from skillserve.settings.ranks import RankWindow
from skillserve.settings.section import Section

__all__ = ["MineSettings"]


class MineSettings(Section):
    """Mining hard negatives: wrong skills that several systems rank high, with guards against unjudged right ones."""

    ranks: RankWindow = Field(
        "21-60",
        description="wrong skills at these ranks of any system are candidates; later ranks hide fewer right ones, "
        "1-30 gives the hardest",
    )
    num_negatives: int = Field(15, ge=1, description="negatives drawn for each request, once")
    guard_top: bool = Field(False, description="leave out what another system ranks above the window")
    guard_names: bool = Field(True, description="leave out what is called as a fitting skill is")
    max_overlap: float = Field(
        0.5,
        gt=0,
        le=1,
        description="leave out texts that share more of their runs of five words with a fitting skill's",
    )
    max_share: float = Field(
        0.95,
        gt=0,
        description="leave out what is nearer to the request than this share of the nearest fitting skill; "
        "needs an embedder among the systems",
    )
    max_gold_similarity: float = Field(
        0.95, gt=0, description="leave out what is nearer than this to a fitting skill; needs an embedder"
    )
    seed: int = Field(13, ge=0, description="seed of the draw")
