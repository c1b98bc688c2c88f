"""Recipes: a training run in numbers, as a TOML file that anybody can read, change and name.

    role = "embedder"
    base = "minilm"
    about = "all-MiniLM-L6-v2 on two CPU cores, an hour"

    [train]
    epochs = 4
    batch_size = 64

A flag, a variable or skillserve.toml wins over the recipe, and the recipe over the defaults of `TrainSettings`.
"""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from skillserve.errors import ConfigError
from skillserve.settings import TrainSettings
from skillserve.tensors import Role

__all__ = ["FROM_EMBEDDER", "Recipe", "read_recipe", "recipe_names"]

FROM_EMBEDDER = "embedder"
"""Base of a reranker's recipe: the weights that its first stage has."""

_FOLDER = Path(str(files("skillserve_training"))) / "recipes"


class Recipe(BaseModel):
    """The content of a recipe file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Role
    base: str
    """What the run starts from, as `--base` takes it; a reranker's may be `embedder`."""
    about: str = Field(min_length=1)
    train: TrainSettings

    def with_settings(self, given: TrainSettings) -> TrainSettings:
        """The recipe's values, except where the caller set one."""
        theirs = {name: getattr(given, name) for name in given.model_fields_set}
        ours = {name: getattr(self.train, name) for name in self.train.model_fields_set}
        return TrainSettings.model_validate(ours | theirs)


def recipe_names(role: Role | None = None) -> list[str]:
    """The recipes that come with this package, all or those of a role."""
    names = sorted(path.stem for path in _FOLDER.glob("*.toml"))
    return [name for name in names if role is None or read_recipe(name).role == role]


def read_recipe(spec: str, role: Role | None = None) -> Recipe:
    """A recipe by its name, or a TOML file; raises ConfigError for an unknown one, a faulty one, or another role's."""
    path = _FOLDER / f"{spec}.toml"
    if not path.is_file():
        path = Path(spec)
    if not path.is_file():
        raise ConfigError(
            f"recipe `{spec}`",
            got="no such name or file",
            wanted=f"one of {', '.join(recipe_names(role))}, or a TOML file",
            fix="Correct the name: --recipe NAME",
        )
    try:
        recipe = Recipe.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise _faulty(path, str(error)) from error
    except ValidationError as error:
        first = error.errors()[0]
        raise _faulty(path, f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from error
    if role is not None and recipe.role != role:
        raise ConfigError(
            f"recipe `{spec}`",
            got=f"one for a {recipe.role}",
            wanted=f"one for a {role}",
            fix=f"Name one of {', '.join(recipe_names(role))}",
        )
    return recipe


def _faulty(path: Path, got: str) -> ConfigError:
    return ConfigError(f"recipe `{path}`", got=got, wanted="role, base, about and [train]", fix="Correct the file.")
