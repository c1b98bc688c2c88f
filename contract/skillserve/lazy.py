"""Importing a room's code when it is called for, and saying what to install where its packages are missing."""

from __future__ import annotations

import importlib
from typing import Any

from skillserve.errors import MissingExtraError

__all__ = ["load_target"]


def load_target(target: str, *, extra: str | None, subject: str) -> Any:  # noqa: ANN401 -- whatever stands there
    """The attribute that `module:attribute` names; MissingExtraError with the pip line where a package is missing.

    `extra` is the pip extra that brings the module's packages, None if the base has them.
    """
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if extra is None or (error.name or "").startswith("skillserve"):
            raise
        raise MissingExtraError(
            subject,
            got=f"no package `{error.name}`",
            wanted=f"the {extra} extra",
            fix=f"Install it: pip install 'skillserve[{extra}]'",
        ) from error
