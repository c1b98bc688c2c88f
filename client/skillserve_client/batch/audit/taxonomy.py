"""A taxonomy: categories with descriptions, read from TOML or JSON; SkillRet's where none is named."""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, StringConstraints, ValidationError, model_validator

from skillserve.errors import ConfigError
from skillserve_client.manifest import Record

__all__ = ["Category", "Taxonomy", "read_taxonomy"]

_SKILLRET = Path(__file__).with_name("skillret.toml")

_Words = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Category(Record):
    """One category."""

    major: str = ""
    """The category above it, if there is one."""
    sub: _Words
    description: _Words

    @property
    def title(self) -> str:
        """Both names."""
        return f"{self.major} / {self.sub}" if self.major else self.sub

    @property
    def request(self) -> str:
        """What the embedder reads, as a request: an embedder is taught to bring those close to the skills that fit."""
        return f"{self.sub}: {self.description}"


class Taxonomy(Record):
    """Categories that a skill is assigned to one of."""

    name: _Words
    source: str = ""
    """Where names and descriptions come from."""
    categories: tuple[Category, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _named_once(self) -> Self:
        titles = [category.title for category in self.categories]
        if repeated := [title for title in titles if titles.count(title) > 1]:
            raise ValueError(f"the category `{repeated[0]}` stands there twice")
        return self

    @property
    def digest(self) -> str:
        """SHA-256 over all of it."""
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()


def read_taxonomy(path: Path | None) -> Taxonomy:
    """The taxonomy of a `.toml` or `.json` file; None: SkillRet's. Raises ConfigError."""
    path = path or _SKILLRET
    try:
        text = path.read_text(encoding="utf-8")
        return Taxonomy.model_validate(json.loads(text) if path.suffix == ".json" else tomllib.loads(text))
    except ValidationError as error:
        first = error.errors()[0]
        raise _refused(path, f"{first['msg']} at {'.'.join(map(str, first['loc'])) or 'its top'}") from error
    except (OSError, ValueError) as error:  # no UTF-8, no TOML and no JSON are ValueErrors
        raise _refused(path, str(error)) from error


def _refused(path: Path, got: str) -> ConfigError:
    return ConfigError(
        f"taxonomy `{path}`",
        got=got,
        wanted="TOML or JSON with a `name` and two or more `categories` of `sub`, `description` and perhaps `major`",
        fix="Correct it, or leave out --taxonomy for SkillRet's.",
    )
