"""Files of a bundle: not a byte is parsed before it was seen to be the one that was published.

Whatever is amiss is a BundleError that names the file.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import ValidationError

from skillserve.errors import BundleError
from skillserve.parts import PART_FORMAT
from skillserve.text import TEXT_FORMAT
from skillserve_client.manifest import (
    CURRENT,
    INDEX_FILE,
    LEXICAL_FILE,
    OPTIONAL_FILES,
    REQUIRED_FILES,
    RERANKER_CARD,
    RERANKER_TOKENIZER,
    TOKENS_FILE,
    FileEntry,
    Manifest,
    Pointer,
)

__all__ = ["REBUILD", "damaged", "read_manifest", "read_verified"]

REBUILD = "Build it again: skillserve index CATALOGUE --force"
"""What helps against damage."""


def read_manifest(path: Path, anchor: Pointer | None) -> Manifest:
    """The manifest in a file, of the digest and version that `anchor` names if there is one."""
    content = _read(path)
    if anchor is not None and (found := hashlib.sha256(content).hexdigest()) != anchor.manifest_sha256:
        raise damaged(path, f"SHA-256 {found[:12]}", f"{anchor.manifest_sha256[:12]}, as {CURRENT} says")
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "manifest"
        raise damaged(path, f"at {where}: {first['msg']}", "a manifest of schema version 1") from error
    names = set(manifest.files)
    if unknown := names - REQUIRED_FILES - OPTIONAL_FILES:
        raise damaged(path, f"the unknown file {min(unknown)!r}", "only files that this version knows")
    if missing := REQUIRED_FILES - names:
        raise damaged(path, f"no entry for {min(missing)}", "every file of a bundle")
    _require_whole(path, manifest)
    if anchor is not None and manifest.version != anchor.version:
        raise damaged(path, f"version {manifest.version}", f"{anchor.version}, as {CURRENT} says")
    _require_formats(path, manifest)
    return manifest


def _require_whole(path: Path, manifest: Manifest) -> None:
    """Refuse a bundle with half of something that takes two files, or a file and a figure."""
    names = set(manifest.files)
    if (INDEX_FILE in names, manifest.collection is not None) != (flat := manifest.index_kind == "flat", not flat):
        raise damaged(path, f"no place of the vectors, or two ({manifest.index_kind})", f"{INDEX_FILE} or a collection")
    if {RERANKER_CARD in names, RERANKER_TOKENIZER in names, "reranker" in manifest.models} not in ({True}, {False}):
        raise damaged(path, "a part of a reranker", "its card, its tokenizer and its digest, or none of them")
    if (LEXICAL_FILE in names) != (manifest.lexical_weight > 0):
        raise damaged(path, "half of a hybrid bundle", f"{LEXICAL_FILE} and its weight, or neither")
    if (TOKENS_FILE in names) != (manifest.late_interaction is not None):
        raise damaged(path, "half of token embeddings", f"{TOKENS_FILE} and what scores are made with, or neither")
    if TOKENS_FILE in names and "reranker" not in manifest.models:
        raise damaged(path, "token embeddings without a reranker", "the model that they are of")
    if "embedder" not in manifest.models:
        raise damaged(path, "no digest of the embedder", "the model that the index was built with")


def _require_formats(path: Path, manifest: Manifest) -> None:
    """Refuse a bundle that was made from, or measured with, texts that this version makes otherwise."""
    if manifest.text_format != TEXT_FORMAT:
        raise damaged(path, f"text format {manifest.text_format}", TEXT_FORMAT)
    if manifest.part_weight and manifest.part_format != PART_FORMAT:
        raise damaged(path, f"part format {manifest.part_format}", PART_FORMAT)


def read_verified(path: Path, entry: FileEntry) -> bytes:
    """Bytes of a file, of the size and digest that its manifest says."""
    content = _read(path)
    if len(content) != entry.size_bytes:
        raise damaged(path, f"{len(content)} bytes", f"{entry.size_bytes} bytes, as its manifest says")
    found = hashlib.sha256(content).hexdigest()
    if found != entry.sha256:
        raise damaged(path, f"SHA-256 {found[:12]}", f"{entry.sha256[:12]}, as its manifest says")
    return content


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise damaged(path, error.strerror or str(error), "a readable file of the bundle") from error


def damaged(path: Path, got: str, wanted: str) -> BundleError:
    """The error that names the file at fault."""
    return BundleError(f"bundle file `{path}`", got=got, wanted=wanted, fix=REBUILD)
