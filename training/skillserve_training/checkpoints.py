"""Checkpoints of a run, beside the folder that it will write: what a killed run goes on from.

`weights/embedder` has its checkpoints in `weights/embedder.checkpoints`, until the run is done. `run.json` in it says
which run they belong to; another run refuses them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from transformers import PreTrainedModel

from skillserve.errors import ConfigError
from skillserve.publish import published_folder, write_text
from skillserve_training.distributed import is_main, wait_for_all

__all__ = ["Checkpoint", "Checkpoints", "load_weights", "save_weights"]

_RUN_FILE = "run.json"
_STATE_FILE = "trainer_state.json"
_WEIGHTS_FILE = "model.safetensors"
_ONE_FILE = 1 << 60
"""No model has so many bytes, so none is written in shards."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Weights, optimiser and place in the run after a step."""

    step: int
    folder: Path


class Checkpoints:
    """The checkpoints of one run. `identity` is everything that its course depends on.

    Raises ConfigError where the folder holds those of another run, unless `fresh`, which removes them.
    """

    def __init__(self, out: Path, identity: Mapping[str, Any], *, fresh: bool) -> None:
        self.folder = out.with_name(f"{out.name}.checkpoints")
        wanted = json.loads(json.dumps(identity))
        if fresh and is_main():
            self.remove()
        wait_for_all()
        found = self._identity()
        if found is not None and found != wanted:
            differing = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
            raise ConfigError(
                f"checkpoints in `{self.folder}`",
                got=f"those of a run that differs in {', '.join(differing)}",
                wanted="those of this run, to go on from",
                fix="Run it with the settings of then to finish it, or with --fresh to remove them and start anew.",
            )
        if is_main():
            if found is None:  # whatever is there was left by a removal that did not end
                self.remove()
            write_text(self.folder / _RUN_FILE, json.dumps(wanted, indent=2, sort_keys=True) + "\n")
            self._remove_halves()

    def latest(self) -> Checkpoint | None:
        """The newest whole checkpoint."""
        found = (_read(folder) for folder in self.folder.glob("checkpoint-*"))
        whole = [checkpoint for checkpoint in found if checkpoint is not None]
        return max(whole, key=lambda checkpoint: checkpoint.step, default=None)

    def keep_best(self, model: PreTrainedModel) -> None:
        """Write the weights that did best on the hold-out so far."""
        with published_folder(self.folder / "best") as draft:
            save_weights(model, draft)

    def restore_best(self, model: PreTrainedModel) -> None:
        """Load what `keep_best` wrote."""
        load_weights(model, self.folder / "best")

    def remove(self) -> None:
        """Forget the run: it is done, or not wanted any more."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _remove_halves(self) -> None:
        """Remove what a kill left half written; the state is written last."""
        for folder in self.folder.glob("checkpoint-*"):
            if _read(folder) is None:
                shutil.rmtree(folder)

    def _identity(self) -> Mapping[str, Any] | None:
        try:
            identity: dict[str, Any] = json.loads((self.folder / _RUN_FILE).read_bytes())
        except (OSError, ValueError):
            return None
        return identity


def _read(folder: Path) -> Checkpoint | None:
    try:
        return Checkpoint(int(json.loads((folder / _STATE_FILE).read_bytes())["global_step"]), folder)
    except (OSError, ValueError, KeyError):
        return None


def save_weights(model: PreTrainedModel, folder: Path) -> None:
    """Write a model's weights, in one file."""
    model.save_pretrained(folder, safe_serialization=True, max_shard_size=_ONE_FILE)


def load_weights(model: PreTrainedModel, folder: Path) -> None:
    """Fill a model with the weights of a checkpoint, in place."""
    # Tied weights are written once.
    model.load_state_dict(load_file(folder / _WEIGHTS_FILE), strict=False)
    model.tie_weights()
