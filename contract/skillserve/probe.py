"""The probe: a known question with its known answer, written by the export, asked by whoever runs a server.

`probe.json` stands in the model's folder of the repository. A server that answers it correctly has the right
weights, a working runtime, and hands tensors through unharmed; a mere readiness flag says none of that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from skillserve.errors import RepositoryError

__all__ = ["PROBE_FILE", "Probe", "read_probe"]

PROBE_FILE = "probe.json"


class Probe(BaseModel):
    """One request with the first numbers of each of its output rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    model: str
    output: str
    input_ids: tuple[int, ...]
    seq_lens: tuple[int, ...]
    expected: tuple[tuple[float, ...], ...]
    """Per output row, which is of a sequence or of a token, its first numbers."""
    tolerance: float
    """Largest absolute difference that still counts as the same answer."""

    def differs_by(self, answer: npt.NDArray[np.float32]) -> float:
        """Largest absolute difference; `answer` is `[n, D]`, `[n]` or `[T, D]`; infinite if a number is not finite."""
        wanted = np.asarray(self.expected, np.float32)
        found = np.asarray(answer, np.float32).reshape(len(self.expected), -1)[:, : wanted.shape[1]]
        if found.shape != wanted.shape or not np.isfinite(found).all():
            return float("inf")
        return float(np.abs(found - wanted).max())


def read_probe(model_folder: Path) -> Probe:
    """Read the probe of one model; raises RepositoryError if it is missing or invalid."""
    path = model_folder / PROBE_FILE
    try:
        return Probe.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise RepositoryError(
            f"model folder `{model_folder}`",
            got=f"no valid {PROBE_FILE} ({type(error).__name__})",
            wanted="a model written by `skillserve export`",
            fix="Export the model: skillserve export WEIGHTS",
        ) from error
