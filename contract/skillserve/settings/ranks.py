"""Ranks that hard negatives are taken from."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

__all__ = ["RankWindow", "window"]


def window(ranks: str) -> tuple[int, int]:
    """First and last rank of a `RankWindow`, counted from 1.

    >>> window("21-60")
    (21, 60)
    """
    first, last = map(int, ranks.split("-"))
    return first, last


def _in_order(ranks: str) -> str:
    first, last = window(ranks)
    if first > last:
        raise ValueError(f"the first rank is at most the last one, as in {last}-{first}")
    return ranks


RankWindow = Annotated[str, Field(pattern=r"^[1-9]\d*-[1-9]\d*$"), AfterValidator(_in_order)]
"""Ranks from the first to the last one, both included, such as `21-60`."""
