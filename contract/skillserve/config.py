"""Configuration: a TOML file, then `SKILLSERVE_*` environment variables, then flags; the later one wins.

Every flag has a field in `skillserve.settings`, and every field can be set in all three ways:

    skillserve.toml            environment                        flag
    [search]
    candidates = 100           SKILLSERVE_SEARCH_CANDIDATES=100   --candidates 100

An empty variable counts as not set.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from skillserve.errors import ConfigError
from skillserve.settings import Settings

__all__ = ["INDEX_TOKEN_VARIABLE", "load_settings"]

ENV_PREFIX = "SKILLSERVE_"
CONFIG_VARIABLE = "SKILLSERVE_CONFIG"
TRACEBACK_VARIABLE = "SKILLSERVE_TRACEBACK"
"""Set: an unexpected exception is shown with its traceback. The command line reads it, not a section."""
INDEX_TOKEN_VARIABLE = "SKILLSERVE_INDEX_TOKEN"  # noqa: S105 -- the name, not the secret
"""What Milvus is told of who asks. It is read where the connection is made, and is no setting, flag or file."""
DEFAULT_FILE = Path("skillserve.toml")

_NOT_SETTINGS = re.compile(
    # The second line: what Kubernetes puts into every pod beside a Service called `skillserve`.
    rf"{CONFIG_VARIABLE}$|{TRACEBACK_VARIABLE}$|{INDEX_TOKEN_VARIABLE}$"
    rf"|{ENV_PREFIX}(SERVICE_(HOST|PORT)|PORT)(_.*)?$"
)


def load_settings(
    file: Path | None = None,
    *,
    flags: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Merge file, environment and flags (`{"search.candidates": 100}`; None = not given). Raises ConfigError.

    Without `file`, `SKILLSERVE_CONFIG` names it, else `skillserve.toml` in the working folder is read if there.
    """
    environ = os.environ if environ is None else environ
    given = [*_from_file(file, environ), *_from_environment(environ), *_from_flags(flags or {})]
    merged: dict[str, dict[str, object]] = {}
    for value in given:  # later ones win
        merged.setdefault(value.section, {})[value.name] = value.value
    source = {(value.section, value.name): value.source for value in given}
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        first = error.errors()[0]
        section, *names = (str(part) for part in first["loc"])
        if not names:  # values that do not fit together
            raise ConfigError(
                f"section [{section}]", got=first["msg"], wanted="values that fit together", fix="Correct one of them."
            ) from error
        name = names[0]
        if first["type"] == "extra_forbidden":
            known = sorted(type(getattr(Settings(), section)).model_fields)
            raise _unknown(f"setting {name}", source[section, name], known) from error
        raise ConfigError(
            f"setting {source[section, name]}",
            got=repr(first["input"]),
            wanted=first["msg"],
            fix="Correct it and run the command again.",
        ) from error


@dataclass(frozen=True, slots=True)
class _Given:
    """One value that the user set, and where."""

    section: str
    name: str
    value: object
    source: str


def _from_file(file: Path | None, environ: Mapping[str, str]) -> Iterator[_Given]:
    named = file or (Path(environ[CONFIG_VARIABLE]) if environ.get(CONFIG_VARIABLE) else None)
    if named is None and not DEFAULT_FILE.is_file():
        return
    path = named or DEFAULT_FILE
    for section, values in _read_toml(path).items():
        if section not in Settings.model_fields or not isinstance(values, dict):
            raise _unknown(f"section [{section}]", str(path), sorted(Settings.model_fields))
        for name, value in values.items():
            yield _Given(section, name, value, f"[{section}] {name} in {path}")


def _from_environment(environ: Mapping[str, str]) -> Iterator[_Given]:
    for variable in sorted(environ):
        if variable.startswith(ENV_PREFIX) and environ[variable] and not _NOT_SETTINGS.match(variable):
            section, _, name = variable.removeprefix(ENV_PREFIX).lower().partition("_")
            if section not in Settings.model_fields:
                known = [f"{ENV_PREFIX}{known.upper()}_…" for known in Settings.model_fields]
                raise _unknown(f"variable {variable}", "the environment", known)
            yield _Given(section, name, environ[variable], variable)


def _from_flags(flags: Mapping[str, object]) -> Iterator[_Given]:
    for path, value in flags.items():
        if value is not None:
            section, name = path.split(".")
            yield _Given(section, name, value, f"--{name.replace('_', '-')}")


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(
            f"configuration file `{path}`",
            got=str(error),
            wanted="a readable TOML file",
            fix="Correct the file or name another one with --config.",
        ) from error


def _unknown(subject: str, source: str, known: list[str]) -> ConfigError:
    return ConfigError(
        subject, got=f"an unknown name in {source}", wanted=f"one of {', '.join(known)}", fix="Correct the name."
    )
