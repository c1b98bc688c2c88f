"""`profiles.json`: the shapes that TensorRT is tuned for, and why these.

One optimisation profile a length bucket. Profiles do not overlap, so which one runs a request is never a guess, and
together they take every length from 1 to the longest that is served:

    lengths   1 … 32 │ 33 … 96 │ 97 … 256        opt at 32, 96, 256: what clients fill their rows up to
    rows      1 … B in every one of them         opt: as many as `tuned_tokens` hold

B is one number, because Triton joins up to `max_batch_size` requests of any equal length and knows of no profile: the
largest number of rows of which even the longest fit into `max_request_tokens`.

This module is read where a plan is built, so it needs no package but pydantic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from skillserve.errors import RepositoryError
from skillserve_export.buckets import best_buckets, enough

__all__ = [
    "MULTIPLE",
    "PROFILES_FILE",
    "BucketChoice",
    "Profile",
    "Profiles",
    "plan_profiles",
    "read_profiles",
    "shapes",
]

PROFILES_FILE = "profiles.json"

MULTIPLE = 8
"""Buckets end at multiples of it: tensor cores compute half precision in tiles whose sides are (NVIDIA, Deep Learning
Performance Guide: multiples of 16 bytes)."""

_MOST_BUCKETS = 8
"""How many are tried where the number is not given."""

Shape = tuple[int, int]
"""Rows and length."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Profile(_Model):
    """The shapes of both inputs in one optimisation profile."""

    min: Shape
    opt: Shape
    max: Shape


class BucketChoice(_Model):
    """The best buckets of one number."""

    ends: tuple[int, ...]
    padding_waste: float = Field(ge=0, lt=1, description="share of the computed tokens that are padding")


class Profiles(_Model):
    """The file."""

    schema_version: Literal[1] = 1
    source: str = Field(description="whose lengths were counted")
    num_sequences: int
    tokens: int
    choices: tuple[BucketChoice, ...] = Field(description="the best 1, 2, … buckets")
    profiles: tuple[Profile, ...]

    @property
    def ends(self) -> tuple[int, ...]:
        """The longest sequence of each bucket."""
        return tuple(profile.max[1] for profile in self.profiles)

    @property
    def max_batch_size(self) -> int:
        """Most rows of an execution, in every profile."""
        return self.profiles[0].max[0]

    @property
    def whole(self) -> Profile:
        """One profile of all shapes, tuned for the longest: for runtimes that cannot choose between several."""
        return Profile(min=self.profiles[0].min, opt=self.profiles[-1].opt, max=self.profiles[-1].max)


def plan_profiles(
    counts: Mapping[int, int],
    *,
    source: str,
    longest: int,
    num_buckets: int = 0,
    max_batch_size: int,
    max_tokens: int,
    tuned_tokens: int,
) -> Profiles:
    """Profiles for sequences counted by length, `num_buckets` of them, 0: as many as save enough each.

    An execution holds at most `max_batch_size` rows and `max_tokens` tokens, and is expected to hold `tuned_tokens`.
    """
    found = best_buckets(counts, longest=longest, multiple=MULTIPLE, most=max(num_buckets, _MOST_BUCKETS))
    chosen = found[min(num_buckets, len(found)) - 1] if num_buckets else enough(found)
    rows = max(1, min(max_batch_size, max_tokens // longest))
    starts = (1, *(end + 1 for end in chosen.ends))
    return Profiles(
        source=source,
        num_sequences=sum(counts.values()),
        tokens=chosen.tokens,
        choices=tuple(BucketChoice(ends=each.ends, padding_waste=round(each.waste, 4)) for each in found),
        profiles=tuple(
            Profile(min=(1, start), opt=(max(1, min(rows, tuned_tokens // end)), end), max=(rows, end))
            for start, end in zip(starts, chosen.ends, strict=False)
        ),
    )


def read_profiles(folder: Path) -> Profiles:
    """Those of a model folder; raises RepositoryError if it has none, or no sound ones."""
    try:
        return Profiles.model_validate_json((folder / PROFILES_FILE).read_bytes())
    except (OSError, ValidationError) as error:
        raise RepositoryError(
            f"model folder `{folder}`",
            got=f"no valid {PROFILES_FILE} ({type(error).__name__})",
            wanted="the shapes that a plan is built for",
            fix="Export it for TensorRT: skillserve export WEIGHTS --layout padded --runtime tensorrt",
        ) from error


def shapes(profile: Profile, inputs: Sequence[str]) -> dict[str, str]:
    """`min`, `opt` and `max` as ONNX Runtime's options have them: `input_ids:1x32,attention_mask:1x32`."""
    sides: dict[str, Shape] = {"min": profile.min, "opt": profile.opt, "max": profile.max}
    return {side: ",".join(f"{name}:{rows}x{length}" for name in inputs) for side, (rows, length) in sides.items()}
