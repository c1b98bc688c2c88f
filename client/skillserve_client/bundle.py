"""Bundles, opened only after every byte was checked.

A bundle is read into memory once; the bytes that were hashed are the bytes that are parsed, and a bundle that
is replaced or deleted afterwards goes on answering in the process that opened it. Vectors in Milvus are not in
memory: such a bundle answers for as long as its collection stands, which goes with the last version that names it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from skillserve.card import ModelCard
from skillserve.errors import BundleError
from skillserve.framing import RerankerTokens
from skillserve.lexical import LexicalIndex
from skillserve.max_sim import Interaction
from skillserve.settings import IndexSettings
from skillserve.tensors import Role
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
    QUALITY_FILE,
    RERANKER_CARD,
    RERANKER_TOKENIZER,
    SKILLS_FILE,
    TOKENS_FILE,
    Manifest,
    Pointer,
    Quality,
)
from skillserve_client.table import SkillTable
from skillserve_client.token_embeddings import TokenEmbeddings
from skillserve_client.tokens import embedder_tokens, reranker_tokens
from skillserve_client.vectors import VectorIndex
from skillserve_client.verified import REBUILD, damaged, read_manifest, read_verified

__all__ = ["Bundle", "open_bundle", "read_files", "read_pinned"]


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
    def digest(self) -> str:
        """SHA-256 of its manifest, which has those of all files: bundles of one version name may differ."""
        return hashlib.sha256(self.manifest.model_dump_json().encode()).hexdigest()

    @property
    def digests(self) -> dict[Role, str]:
        """Role → digest of the weights that the bundle was built with."""
        return {role: entry.digest for role, entry in self.manifest.models.items()}

    @property
    def serving(self) -> dict[Role, str]:
        """Role → digest of the models that searches ask."""
        stages: dict[Role, Role] = {"embedder": "embedder", "reranker": self.corpus.second_stage}
        return {stages[role]: digest for role, digest in self.digests.items()}


def read_files(bundle: Bundle) -> dict[str, bytes]:
    """Every file of an opened bundle as it stands on disk, verified again; raises BundleError."""
    return {name: read_verified(bundle.folder / name, entry) for name, entry in bundle.manifest.files.items()}


def open_bundle(path: Path, *, index: IndexSettings | None = None) -> Bundle:
    """Open the live bundle of a root, or one version folder; raises BundleError naming the file at fault.

    For a bundle in Milvus the settings say where that is; see `skillserve_client.doors.open_collection`.

    The version that is opened is pinned. Only through CURRENT is the manifest itself verified; a version folder
    opened directly is checked against its own manifest.
    """
    folder, manifest = read_pinned(path)
    contents = {name: read_verified(folder / name, entry) for name, entry in manifest.files.items()}
    return _assemble(folder, manifest, contents, index)


def read_pinned(path: Path) -> tuple[Path, Manifest]:
    """What `open_bundle` would open: the folder of that version and its manifest; raises BundleError."""
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
        raise damaged(pointer_file, str(error).splitlines()[0], "`<version> <sha256 of its manifest>`") from error
    return folder, read_manifest(folder / MANIFEST_FILE, anchor)


def _assemble(folder: Path, manifest: Manifest, contents: dict[str, bytes], settings: IndexSettings | None) -> Bundle:
    skills = SkillTable.from_bytes(contents[SKILLS_FILE], subject=f"bundle file `{folder / SKILLS_FILE}`")
    embedder = _read_card(folder / EMBEDDER_CARD, contents[EMBEDDER_CARD], "embedder", manifest)
    index = _open_index(folder, manifest, contents, settings, skills)
    if not len(index) == len(skills) == manifest.num_skills:
        raise BundleError(
            _of_vectors(folder, manifest),
            got=f"{len(index)} vectors for {len(skills)} skills",
            wanted=f"{manifest.num_skills} of each, as the manifest says",
            fix=REBUILD,
        )
    if not index.dim == embedder.dim == manifest.dim:
        raise damaged(folder / MANIFEST_FILE, f"{index.dim} dimensions", f"{embedder.dim}, as the embedder's card says")
    reranker: RerankerTokens | None = None
    if RERANKER_CARD in contents:
        card = _read_card(folder / RERANKER_CARD, contents[RERANKER_CARD], "reranker", manifest)
        reranker = reranker_tokens(card, contents[RERANKER_TOKENIZER])
    lexical: LexicalIndex | None = None
    if LEXICAL_FILE in contents:
        lexical = _read_lexical(folder / LEXICAL_FILE, contents[LEXICAL_FILE], manifest)
    tokens: TokenEmbeddings | None = None
    if manifest.late_interaction is not None:
        how = manifest.late_interaction.how
        # Popped, since it may be as large as all the rest together, and is copied.
        tokens = _read_tokens(folder / TOKENS_FILE, contents.pop(TOKENS_FILE), how, manifest)
    quality: Quality | None = None
    if QUALITY_FILE in contents:
        try:
            quality = Quality.model_validate_json(contents[QUALITY_FILE])
        except ValidationError as error:
            raise damaged(folder / QUALITY_FILE, str(error.errors()[0]["msg"]), "a measurement") from error
    calibration: Calibration | None = None
    if CALIBRATION_FILE in contents:
        calibration = _read_calibration(folder / CALIBRATION_FILE, contents[CALIBRATION_FILE], manifest)
    corpus = Corpus(
        index=index,
        skills=skills,
        embedder=embedder_tokens(embedder, contents[EMBEDDER_TOKENIZER]),
        reranker=reranker,
        tokens=tokens,
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
        raise damaged(path, str(error.errors()[0]["msg"]), "a model card of schema version 1") from error
    wanted = manifest.models[role].digest
    if card.role != role or card.digest != wanted:
        raise damaged(path, f"{card.role} {card.short_digest}", f"{role} {wanted[:12]}, as the manifest says")
    return card


def _read_lexical(path: Path, content: bytes, manifest: Manifest) -> LexicalIndex:
    lexical = LexicalIndex.from_bytes(content, subject=f"bundle file `{path}`")
    if len(lexical) != manifest.num_skills:
        raise damaged(path, f"words of {len(lexical)} skills", f"{manifest.num_skills}, as the manifest says")
    return lexical


def _read_tokens(path: Path, content: bytes, how: Interaction, manifest: Manifest) -> TokenEmbeddings:
    tokens = TokenEmbeddings.from_bytes(content, how, subject=f"bundle file `{path}`")
    if len(tokens) != manifest.num_skills:
        raise damaged(path, f"token embeddings of {len(tokens)} skills", f"{manifest.num_skills}, as the manifest says")
    return tokens


def _read_calibration(path: Path, content: bytes, manifest: Manifest) -> Calibration:
    try:
        calibration = Calibration.model_validate_json(content)
    except ValidationError as error:
        raise damaged(path, str(error.errors()[0]["msg"]), "a calibration of schema version 1") from error
    if calibration.catalogue_digest != manifest.catalogue_digest:
        raise damaged(
            path, f"a calibration of catalogue {calibration.catalogue_digest[:12]}", manifest.catalogue_digest[:12]
        )
    if calibration.weights != manifest.weights:
        raise damaged(path, f"a calibration with the weights {calibration.weights}", str(manifest.weights))
    for role, entry in manifest.models.items():
        if calibration.models.get(role) != entry.digest:
            found = calibration.models.get(role, "no such model")[:13]
            raise damaged(path, f"a calibration with {role} {found}", f"{role} {entry.digest[:12]}")
    if len(calibration.direction) not in {0, manifest.dim}:
        dim = len(calibration.direction)
        raise damaged(path, f"a calibration of embeddings with {dim} dimensions", f"{manifest.dim} dimensions")
    return calibration
