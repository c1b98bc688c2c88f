"""Bundles on disk: published whole, opened only after every byte was checked.

    <root>/CURRENT                      <version> <SHA-256 of that version's manifest.json>
    <root>/<version>/manifest.json      SHA-256 and size of every other file
    <root>/<version>/…                  see `skillserve_client.manifest`

A bundle is read into memory once; the bytes that were hashed are the bytes that are parsed, and a bundle that
is replaced or deleted afterwards goes on answering in the process that opened it. Vectors in Milvus are not in
memory: such a bundle answers for as long as its collection stands, which goes with the last version that names it.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from skillserve.card import ModelCard
from skillserve.errors import BundleError
from skillserve.framing import RerankerTokens
from skillserve.fusion import PLAIN, FirstStageWeights
from skillserve.lexical import LexicalIndex
from skillserve.parts import PART_FORMAT
from skillserve.publish import published_folder, write_text
from skillserve.settings import IndexSettings
from skillserve.tensors import Role
from skillserve.text import TEXT_FORMAT
from skillserve_client.calibration import Calibration
from skillserve_client.corpus import Corpus
from skillserve_client.doors import open_collection
from skillserve_client.index import FlatIndex
from skillserve_client.manifest import (
    CALIBRATION_FILE,
    CURRENT,
    EMBEDDER_CARD,
    EMBEDDER_TOKENIZER,
    INDEX_FILE,
    LEXICAL_FILE,
    MANIFEST_FILE,
    OPTIONAL_FILES,
    QUALITY_FILE,
    REQUIRED_FILES,
    RERANKER_CARD,
    RERANKER_TOKENIZER,
    SKILLS_FILE,
    Collection,
    FileEntry,
    Manifest,
    ModelEntry,
    Pointer,
    Quality,
)
from skillserve_client.table import SkillTable
from skillserve_client.tokens import embedder_tokens, reranker_tokens
from skillserve_client.vectors import VectorIndex

__all__ = ["Bundle", "collection_of", "live_version", "open_bundle", "publish", "read_files"]

_REBUILD = "Build it again: skillserve index CATALOGUE --force"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A verified bundle, in memory."""

    folder: Path
    manifest: Manifest
    corpus: Corpus
    quality: Quality | None
    calibration: Calibration | None

    @property
    def version(self) -> str:
        """Name of this version."""
        return self.manifest.version

    @property
    def digests(self) -> dict[Role, str]:
        """Role → digest of the model that the bundle was built with."""
        return {role: entry.digest for role, entry in self.manifest.models.items()}


def publish(
    root: Path,
    *,
    files: Mapping[str, bytes],
    num_skills: int,
    dim: int,
    catalogue: str,
    models: Mapping[Role, ModelEntry],
    weights: FirstStageWeights = PLAIN,
    collection: Collection | None = None,
    switched: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Manifest:
    """Write a new version under `root` and make it the live one; `catalogue` is the digest of the skills.

    `collection` is where its vectors are if not in `files`; CURRENT changes within `switched`.

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
            text_format=TEXT_FORMAT,
            catalogue_digest=catalogue,
            models=dict(models),
            files={
                name: FileEntry(sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
                for name, content in sorted(files.items())
            },
        )
        content = (manifest.model_dump_json(indent=2) + "\n").encode()
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


def read_files(bundle: Bundle) -> dict[str, bytes]:
    """Every file of an opened bundle as it stands on disk, verified again; raises BundleError."""
    return {name: _read_verified(bundle.folder / name, entry) for name, entry in bundle.manifest.files.items()}


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


def open_bundle(path: Path, *, index: IndexSettings | None = None) -> Bundle:
    """Open the live bundle of a root, or one version folder; raises BundleError naming the file at fault.

    For a bundle in Milvus the settings say where that is; see `skillserve_client.doors.open_collection`.

    The version that is opened is pinned. Only through CURRENT is the manifest itself verified; a version folder
    opened directly is checked against its own manifest.
    """
    pointer_file = path / CURRENT
    anchor: Pointer | None = None
    folder = path
    try:
        anchor = Pointer.parse(pointer_file.read_bytes().decode())
        folder = path / anchor.version
    except (FileNotFoundError, NotADirectoryError) as error:
        if not (path / MANIFEST_FILE).exists():
            raise BundleError(
                f"bundle `{path}`",
                got=f"neither {CURRENT} nor {MANIFEST_FILE}",
                wanted="a folder of bundles, or one bundle",
                fix=f"Build one: skillserve index CATALOGUE --bundles {path}",
            ) from error
    except (OSError, ValueError) as error:
        raise _damaged(pointer_file, str(error).splitlines()[0], "`<version> <sha256 of its manifest>`") from error
    manifest = _read_manifest(folder / MANIFEST_FILE, anchor)
    contents = {name: _read_verified(folder / name, entry) for name, entry in manifest.files.items()}
    return _assemble(folder, manifest, contents, index)


def _read_manifest(path: Path, anchor: Pointer | None) -> Manifest:
    content = _read(path)
    if anchor is not None and (found := hashlib.sha256(content).hexdigest()) != anchor.manifest_sha256:
        raise _damaged(path, f"SHA-256 {found[:12]}", f"{anchor.manifest_sha256[:12]}, as {CURRENT} says")
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "manifest"
        raise _damaged(path, f"at {where}: {first['msg']}", "a manifest of schema version 1") from error
    names = set(manifest.files)
    if unknown := names - REQUIRED_FILES - OPTIONAL_FILES:
        raise _damaged(path, f"the unknown file {min(unknown)!r}", "only files that this version knows")
    if missing := REQUIRED_FILES - names:
        raise _damaged(path, f"no entry for {min(missing)}", "every file of a bundle")
    if (INDEX_FILE in names, manifest.collection is not None) != (flat := manifest.index_kind == "flat", not flat):
        raise _damaged(
            path, f"no place of the vectors, or two ({manifest.index_kind})", f"{INDEX_FILE} or a collection"
        )
    if {RERANKER_CARD in names, RERANKER_TOKENIZER in names, "reranker" in manifest.models} not in ({True}, {False}):
        raise _damaged(path, "a part of a reranker", "its card, its tokenizer and its digest, or none of them")
    if (LEXICAL_FILE in names) != (manifest.lexical_weight > 0):
        raise _damaged(path, "half of a hybrid bundle", f"{LEXICAL_FILE} and its weight, or neither")
    if "embedder" not in manifest.models:
        raise _damaged(path, "no digest of the embedder", "the model that the index was built with")
    if anchor is not None and manifest.version != anchor.version:
        raise _damaged(path, f"version {manifest.version}", f"{anchor.version}, as {CURRENT} says")
    _require_formats(path, manifest)
    return manifest


def _require_formats(path: Path, manifest: Manifest) -> None:
    """Refuse a bundle that was made from, or measured with, texts that this version makes otherwise."""
    if manifest.text_format != TEXT_FORMAT:
        raise _damaged(path, f"text format {manifest.text_format}", TEXT_FORMAT)
    if manifest.part_weight and manifest.part_format != PART_FORMAT:
        raise _damaged(path, f"part format {manifest.part_format}", PART_FORMAT)


def _read_verified(path: Path, entry: FileEntry) -> bytes:
    content = _read(path)
    if len(content) != entry.size_bytes:
        raise _damaged(path, f"{len(content)} bytes", f"{entry.size_bytes} bytes, as its manifest says")
    found = hashlib.sha256(content).hexdigest()
    if found != entry.sha256:
        raise _damaged(path, f"SHA-256 {found[:12]}", f"{entry.sha256[:12]}, as its manifest says")
    return content


def _assemble(
    folder: Path, manifest: Manifest, contents: Mapping[str, bytes], settings: IndexSettings | None
) -> Bundle:
    skills = SkillTable.from_bytes(contents[SKILLS_FILE], subject=f"bundle file `{folder / SKILLS_FILE}`")
    embedder = _read_card(folder / EMBEDDER_CARD, contents[EMBEDDER_CARD], "embedder", manifest)
    index = _open_index(folder, manifest, contents, settings, skills)
    if not len(index) == len(skills) == manifest.num_skills:
        raise BundleError(
            _of_vectors(folder, manifest),
            got=f"{len(index)} vectors for {len(skills)} skills",
            wanted=f"{manifest.num_skills} of each, as the manifest says",
            fix=_REBUILD,
        )
    if not index.dim == embedder.dim == manifest.dim:
        raise _damaged(
            folder / MANIFEST_FILE, f"{index.dim} dimensions", f"{embedder.dim}, as the embedder's card says"
        )
    reranker: RerankerTokens | None = None
    if RERANKER_CARD in contents:
        card = _read_card(folder / RERANKER_CARD, contents[RERANKER_CARD], "reranker", manifest)
        reranker = reranker_tokens(card, contents[RERANKER_TOKENIZER])
    lexical: LexicalIndex | None = None
    if LEXICAL_FILE in contents:
        lexical = _read_lexical(folder / LEXICAL_FILE, contents[LEXICAL_FILE], manifest)
    quality: Quality | None = None
    if QUALITY_FILE in contents:
        try:
            quality = Quality.model_validate_json(contents[QUALITY_FILE])
        except ValidationError as error:
            raise _damaged(folder / QUALITY_FILE, str(error.errors()[0]["msg"]), "a measurement") from error
    calibration: Calibration | None = None
    if CALIBRATION_FILE in contents:
        calibration = _read_calibration(folder / CALIBRATION_FILE, contents[CALIBRATION_FILE], manifest)
    corpus = Corpus(
        index=index,
        skills=skills,
        embedder=embedder_tokens(embedder, contents[EMBEDDER_TOKENIZER]),
        reranker=reranker,
        lexical=lexical,
        weights=manifest.weights,
    )
    return Bundle(folder=folder, manifest=manifest, corpus=corpus, quality=quality, calibration=calibration)


def _open_index(
    folder: Path,
    manifest: Manifest,
    contents: Mapping[str, bytes],
    settings: IndexSettings | None,
    skills: SkillTable,
) -> VectorIndex:
    if manifest.collection is not None:
        return open_collection(manifest.collection, manifest.identity, settings)
    return FlatIndex.from_bytes(contents[INDEX_FILE], skills.marks(), subject=_of_vectors(folder, manifest))


def _of_vectors(folder: Path, manifest: Manifest) -> str:
    if manifest.collection is not None:
        return f"collection `{manifest.collection.name}` of bundle {manifest.version}"
    return f"bundle file `{folder / INDEX_FILE}`"


def _read_card(path: Path, content: bytes, role: Role, manifest: Manifest) -> ModelCard:
    try:
        card = ModelCard.model_validate_json(content)
    except ValidationError as error:
        raise _damaged(path, str(error.errors()[0]["msg"]), "a model card of schema version 1") from error
    wanted = manifest.models[role].digest
    if card.role != role or card.digest != wanted:
        raise _damaged(path, f"{card.role} {card.short_digest}", f"{role} {wanted[:12]}, as the manifest says")
    return card


def _read_lexical(path: Path, content: bytes, manifest: Manifest) -> LexicalIndex:
    lexical = LexicalIndex.from_bytes(content, subject=f"bundle file `{path}`")
    if len(lexical) != manifest.num_skills:
        raise _damaged(path, f"words of {len(lexical)} skills", f"{manifest.num_skills}, as the manifest says")
    return lexical


def _read_calibration(path: Path, content: bytes, manifest: Manifest) -> Calibration:
    try:
        calibration = Calibration.model_validate_json(content)
    except ValidationError as error:
        raise _damaged(path, str(error.errors()[0]["msg"]), "a calibration of schema version 1") from error
    if calibration.catalogue_digest != manifest.catalogue_digest:
        raise _damaged(
            path, f"a calibration of catalogue {calibration.catalogue_digest[:12]}", manifest.catalogue_digest[:12]
        )
    if calibration.weights != manifest.weights:
        raise _damaged(path, f"a calibration with the weights {calibration.weights}", str(manifest.weights))
    for role, entry in manifest.models.items():
        if calibration.models.get(role) != entry.digest:
            found = calibration.models.get(role, "no such model")[:13]
            raise _damaged(path, f"a calibration with {role} {found}", f"{role} {entry.digest[:12]}")
    if len(calibration.direction) not in {0, manifest.dim}:
        dim = len(calibration.direction)
        raise _damaged(path, f"a calibration of embeddings with {dim} dimensions", f"{manifest.dim} dimensions")
    return calibration


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _damaged(path, error.strerror or str(error), "a readable file of the bundle") from error


def _damaged(path: Path, got: str, wanted: str) -> BundleError:
    return BundleError(f"bundle file `{path}`", got=got, wanted=wanted, fix=_REBUILD)
