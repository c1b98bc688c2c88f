"""What a sweep of settings recommends: a small file that `bench sweep` writes and `serve --profile` reads.

It says of which models and on which machine it was measured, because neither carries over. Settings of the server are
what `serve` sets; those of searches and clients are advice, since they are set elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from skillserve.errors import ConfigError, ContractError
from skillserve.publish import write_text
from skillserve.settings import ServeSettings
from skillserve.settings.serving import Profile

__all__ = [
    "RECOMMENDATION_FILE",
    "Advice",
    "Asking",
    "Machine",
    "Recommendation",
    "Recommended",
    "ServedAs",
    "Tuning",
    "read_recommendation",
    "write_recommendation",
]

RECOMMENDATION_FILE = "recommendation.json"
"""Its name in a model repository, where `serve --profile` looks for it."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Tuning(_Part):
    """What a server changes of each model's configuration; None leaves it as it was exported."""

    num_instances: int | None = Field(None, ge=1)
    num_threads: int | None = Field(None, ge=0)
    max_batch_size: int | None = Field(None, ge=1)
    execution_tokens: int | None = Field(None, ge=0)
    max_queue_delay_microseconds: int | None = Field(None, ge=0)

    @classmethod
    def of(cls, settings: ServeSettings) -> Tuning:
        """What the settings of a server ask for."""
        return cls(**{name: getattr(settings, name) for name in cls.model_fields})

    @property
    def changes(self) -> dict[str, int]:
        """Setting → value, of those that are set."""
        return self.model_dump(exclude_none=True)

    @property
    def flags(self) -> str:
        """As a command line says it; empty if nothing is set."""
        return _flags(self.changes)


class Asking(_Part):
    """How searches ask; the names are those of `search` and `client`."""

    candidates: int = Field(ge=1)
    rerank_depth: int = Field(ge=0)
    max_request_tokens: int = Field(ge=1)

    @property
    def flags(self) -> str:
        """As a command line says it."""
        return _flags(self.model_dump())


class Advice(_Part):
    """What is recommended for one profile, and what was measured with it."""

    serve: Tuning
    asking: Asking
    figures: Mapping[str, float]
    """`p50_ms`, `p90_ms` of a lone search, `searches_per_s` of many clients, `ndcg@10`."""


class ServedAs(_Part):
    """A model as it was served."""

    digest: str
    """Of weights, tokenizer and card."""
    precision: str
    """As the export stamped it; empty if it did not."""


class Recommended(_Part):
    """What is recommended for one repository."""

    repository: str
    """Name of its folder, for people."""
    models: Mapping[str, ServedAs]
    """Name in the repository → what it was."""
    profiles: Mapping[Profile, Advice]


class Machine(_Part):
    """Where it was measured."""

    processor: str
    num_cores: int = Field(ge=1)
    gpus: tuple[str, ...] = ()


class Recommendation(_Part):
    """The file."""

    version: Literal[1] = 1
    date: str
    """UTC, `2026-01-31`."""
    skillserve: str
    commit: str
    server: str
    """As `Triton 2.51.0 (embedded)`."""
    machine: Machine
    num_clients: int = Field(ge=1)
    """Behind `searches_per_s`."""
    quality_loss: float = Field(ge=0)
    """NDCG@10 that a recommended point may lie below the best one."""
    recommended: tuple[Recommended, ...]
    """One for each repository."""

    def of_models(self, models: Mapping[str, ServedAs], *, path: Path) -> Recommended:
        """The part about these models; raises ContractError if it speaks of others."""
        for each in self.recommended:
            if dict(each.models) == dict(models):
                return each
        raise ContractError(
            f"recommendation `{path}`",
            got="one for " + "; or ".join(_told(each.models) for each in self.recommended),
            wanted=f"one for {_told(models)}, since another model has another cost",
            fix="Measure these models: skillserve bench sweep --repository FOLDER --data DATA --recommend-to FILE",
        )


def read_recommendation(path: Path) -> Recommendation:
    """Read the file; raises ConfigError if it is none, or one of another version."""
    try:
        return Recommendation.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        where = ".".join(str(part) for part in first["loc"]) if first else ""
        raise ConfigError(
            f"recommendation `{path}`",
            got=f"{where}: {first['msg']}".removeprefix(": ") if first else str(error),
            wanted="a file of version 1 that `skillserve bench sweep --recommend-to` wrote",
            fix="Write it anew, or leave --recommendation out.",
        ) from error


def write_recommendation(path: Path, recommendation: Recommendation) -> None:
    """Write it whole or not at all; raises OSError."""
    write_text(path, json.dumps(recommendation.model_dump(mode="json"), indent=2) + "\n")


def _flags(values: Mapping[str, int]) -> str:
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in values.items())


def _told(models: Mapping[str, ServedAs]) -> str:
    return ", ".join(
        f"{name} {each.digest[:12]} in {each.precision or 'a precision that is not told'}"
        for name, each in sorted(models.items())
    )
