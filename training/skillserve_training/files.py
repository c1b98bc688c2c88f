"""Files of a base: JSON that describes it, and safetensors in one file or in shards, as large models come."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from safetensors import safe_open

from skillserve.errors import ConfigError
from skillserve.publish import sha256_of

__all__ = ["INDEX", "WEIGHTS", "read_json", "tensor_shapes", "weight_files", "weights_digest"]

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
"""Says which tensor is in which shard."""

_SHARD = re.compile(r"[\w.-]+\.safetensors")


def weight_files(folder: Path) -> list[Path]:
    """Where the weights are: the one file, or the shards that an index names; ConfigError for an unsound index."""
    whole, index = folder / WEIGHTS, folder / INDEX
    if whole.is_file() or not index.is_file():
        return [whole]
    places = read_json(index).get("weight_map")
    names = sorted({str(name) for name in places.values()}) if isinstance(places, dict) else []
    wrong = [name for name in names if not _is_shard(folder, name)]
    if wrong or not names:
        raise ConfigError(
            f"base file `{index}`",
            got=f"shards that are not there: {', '.join(wrong)}" if names else "no shards",
            wanted="a weight_map to safetensors in the same folder",
            fix="Fetch the base again, all of its shards.",
        )
    return [folder / name for name in names]


def _is_shard(folder: Path, name: str) -> bool:
    """A regular file of this folder. The hub's cache keeps them in `blobs`, two folders up, and links to them."""
    if not _SHARD.fullmatch(name):
        return False
    home = folder.resolve()
    file = (home / name).resolve()
    return file.is_file() and file.parent in (home, home.parent.parent / "blobs")


def weights_digest(folder: Path) -> str:
    """SHA-256 of the one file, or over names and SHA-256 of the shards."""
    files = weight_files(folder)
    if files == [folder / WEIGHTS]:
        return sha256_of(files[0])
    lines = "".join(f"{file.name}:{sha256_of(file)}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the weights, which are not loaded."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as tensors:
            shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    return shapes


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object that describes a base; ConfigError if it is none."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"base file `{file}`", got=str(error), wanted="a JSON object", fix="Fetch or write the base again."
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(
            f"base file `{file}`", got=type(content).__name__, wanted="a JSON object", fix="Fetch the base again."
        )
    return content
