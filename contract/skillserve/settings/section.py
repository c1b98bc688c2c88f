"""What sections of the settings have in common."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["GraphGib", "Port", "Section", "words"]

Port = Annotated[int, Field(ge=1, le=65535)]

GraphGib = Annotated[float, Field(gt=0, description="largest graph that is loaded, with its external data, GiB")]


def words(value: object) -> object:
    """Text with commas, as flags and variables bring it, as a tuple; anything else as it is."""
    return tuple(part for part in value.split(",") if part) if isinstance(value, str) else value


class Section(BaseModel):
    """A part of the settings; its fields' descriptions are the help of their flags."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    default_words: ClassVar[str] = "default: {}"
    """How help states a default."""
