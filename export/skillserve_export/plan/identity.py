"""What a plan depends on, and the key under which it is kept: the same key, the same plan."""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from pydantic import BaseModel, ConfigDict

from skillserve_export.profiles import Profile

__all__ = ["ENGINE_FILE", "EngineRecord", "PlanIdentity"]

ENGINE_FILE = "engine.json"


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PlanIdentity(_Model):
    """Everything that another plan would follow from."""

    schema_version: Literal[1] = 1
    graph_digest: str
    """Over structure and weights, so also over the precision."""
    inputs: tuple[str, ...]
    profiles: tuple[Profile, ...]
    tensorrt: str
    gpu: str
    compute_capability: str
    workspace_bytes: int
    optimization_level: int

    @property
    def key(self) -> str:
        """SHA-256 over it, as JSON with sorted keys."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def timings(self) -> str:
        """A name for the timings that are this build's to use: of this GPU and this TensorRT."""
        place = f"{self.gpu}\n{self.compute_capability}\n{self.tensorrt}"
        return hashlib.sha256(place.encode()).hexdigest()


class EngineRecord(_Model):
    """`engine.json`, beside a plan."""

    key: str
    identity: PlanIdentity
    plan_sha256: str
    num_bytes: int
    build_s: float
