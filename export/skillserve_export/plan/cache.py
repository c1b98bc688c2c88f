"""Plans that were built before, each under its key, and TensorRT's timings; whatever is damaged is built again.

<cache>/
├── plans/<key>/         published whole or not at all
│   ├── model.plan
│   └── engine.json
└── timings/<name>       of one kind of GPU and one version of TensorRT
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import ValidationError

from skillserve.publish import published_folder, sha256_of, write_bytes
from skillserve_export.plan.identity import ENGINE_FILE, EngineRecord, PlanIdentity
from skillserve_export.record import PLAN_FILE

__all__ = ["EngineCache"]


class EngineCache:
    """A folder that several builds may use at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def folder_of(self, identity: PlanIdentity) -> Path:
        """Where a plan stands, or will."""
        return self._folder / "plans" / identity.key

    def find(self, identity: PlanIdentity) -> EngineRecord | None:
        """The record of a plan that is there and is what its record says; None otherwise."""
        folder = self.folder_of(identity)
        try:
            record = EngineRecord.model_validate_json((folder / ENGINE_FILE).read_bytes())
            sound = record.identity == identity and sha256_of(folder / PLAN_FILE) == record.plan_sha256
        except (OSError, ValidationError):
            return None
        return record if sound else None

    def keep(self, identity: PlanIdentity, plan: bytes, build_s: float) -> EngineRecord:
        """Write a plan with its record."""
        record = EngineRecord(
            key=identity.key,
            identity=identity,
            plan_sha256=hashlib.sha256(plan).hexdigest(),
            num_bytes=len(plan),
            build_s=round(build_s, 1),
        )
        with published_folder(self.folder_of(identity)) as draft:
            (draft / PLAN_FILE).write_bytes(plan)
            (draft / ENGINE_FILE).write_text(record.model_dump_json(indent=1) + "\n")
        return record

    def timings(self, identity: PlanIdentity) -> bytes:
        """TensorRT's timings so far; empty if there are none."""
        try:
            return self._timings(identity).read_bytes()
        except FileNotFoundError:
            return b""

    def keep_timings(self, identity: PlanIdentity, timings: bytes) -> None:
        """Replace them by those of a build that began with them."""
        write_bytes(self._timings(identity), timings)

    def _timings(self, identity: PlanIdentity) -> Path:
        return self._folder / "timings" / identity.timings
