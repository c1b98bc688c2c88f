"""Versions of a bundle under their root: written whole, made the live one in one step.

<root>/CURRENT                      <version> <SHA-256 of that version's manifest.json>
<root>/<version>/manifest.json      SHA-256 and size of every other file
<root>/<version>/…                  see `skillserve_client.manifest`
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path

from skillserve.errors import BundleError
from skillserve.fusion import PLAIN, FirstStageWeights
from skillserve.publish import published_folder, write_text
from skillserve.tensors import Role
from skillserve.text import TEXT_FORMAT
from skillserve_client.manifest import (
    CURRENT,
    MANIFEST_FILE,
    Collection,
    FileEntry,
    LateInteraction,
    Manifest,
    ModelEntry,
    Pointer,
)

__all__ = ["collection_of", "live_version", "publish"]


def publish(
    root: Path,
    *,
    files: Mapping[str, bytes],
    num_skills: int,
    dim: int,
    catalogue: str,
    models: Mapping[Role, ModelEntry],
    weights: FirstStageWeights = PLAIN,
    late_interaction: LateInteraction | None = None,
    collection: Collection | None = None,
    switched: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Manifest:
    """Write a new version under `root` and make it the live one; `catalogue` is the digest of the skills.

    `late_interaction` goes with token embeddings, `collection` is where its vectors are if not in `files`; CURRENT
    changes within `switched`.

    Raises BundleError if the disk does not take it; then the version that was live still is, and nothing of the
    new one remains. Only what fails after CURRENT changed leaves the new one live, whole, and says so.
    """
    now = datetime.now(UTC)
    version = f"{now:%Y%m%dT%H%M%S%f}Z-{catalogue[:8]}"
    target = root / version
    try:
        manifest = Manifest(
            version=version,
            created=now.isoformat(timespec="milliseconds"),
            parent=live_version(root),
            num_skills=num_skills,
            dim=dim,
            index_kind="flat" if collection is None else "milvus",
            collection=collection,
            lexical_weight=weights.lexical,
            part_weight=weights.parts,
            late_interaction=late_interaction,
            text_format=TEXT_FORMAT,
            catalogue_digest=catalogue,
            models=dict(models),
            files={
                name: FileEntry(sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
                for name, content in sorted(files.items())
            },
        )
        # Left out where there is none: releases that know no token embeddings refuse a manifest that speaks of them.
        unused = {"late_interaction"} if late_interaction is None else None
        content = (manifest.model_dump_json(indent=2, exclude=unused) + "\n").encode()
        try:
            with published_folder(target) as draft:
                for name, body in files.items():
                    (draft / name).write_bytes(body)
                (draft / MANIFEST_FILE).write_bytes(content)
            pointer = Pointer(version=version, manifest_sha256=hashlib.sha256(content).hexdigest())
            late: BaseException | None = None
            with switched():
                try:
                    write_text(root / CURRENT, pointer.line())
                except BaseException as error:
                    if live_version(root) != version:
                        raise
                    late = error  # the switch happened; its last flush did not, or Ctrl-C came then
            if late is not None:
                raise late  # noqa: TRY301 -- it was caught for the switch's sake alone
        except BaseException:
            # The folder may stand already, but nobody knows of it: its name is new and CURRENT is the old one.
            if live_version(root) != version:
                shutil.rmtree(target, ignore_errors=True)
            raise
    except OSError as error:
        raise BundleError(
            f"new bundle under `{root}`",
            got=f"{error.strerror or error} while writing it",
            wanted="room and permission to write",
            fix="The bundle that was live still is. Make room, then run the same command again."
            if live_version(root) != version
            else "The new bundle is live, but a power cut may undo that. Check the disk.",
        ) from error
    return manifest


def live_version(root: Path) -> str | None:
    """The version that CURRENT names, unchecked; None if there is none or it cannot be read."""
    try:
        return Pointer.parse((root / CURRENT).read_text(encoding="utf-8")).version
    except (OSError, ValueError):
        return None


def collection_of(folder: Path) -> Collection | None:
    """The collection that a version names in its manifest, unchecked; None if there is none or it cannot be read."""
    try:
        return Manifest.model_validate_json((folder / MANIFEST_FILE).read_bytes()).collection
    except (OSError, ValueError):
        return None
