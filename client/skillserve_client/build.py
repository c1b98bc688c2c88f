"""From a catalogue to a bundle: tokenise, embed through the server, index, measure, publish."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from skillserve.console import progress, talk
from skillserve.errors import BundleError, CatalogueError, SkillserveError
from skillserve.framing import RerankerTokens, mend
from skillserve.fusion import FirstStageWeights
from skillserve.lexical import LexicalIndex
from skillserve.records import Skill
from skillserve.settings import IndexSettings, SearchSettings
from skillserve.skillfile import read_skills
from skillserve.tensors import Role
from skillserve.text import skill_text
from skillserve_client.bundle import Bundle, open_bundle
from skillserve_client.corpus import Corpus
from skillserve_client.doors import drafted
from skillserve_client.filling import fill, identity_of, read_tokens, state_digest, tokenised
from skillserve_client.index import FlatIndex
from skillserve_client.manifest import (
    CALIBRATION_FILE,
    CURRENT,
    EMBEDDER_CARD,
    EMBEDDER_TOKENIZER,
    INDEX_FILE,
    LEXICAL_FILE,
    QUALITY_FILE,
    RERANKER_CARD,
    RERANKER_TOKENIZER,
    SKILLS_FILE,
    TOKENS_FILE,
    LateInteraction,
    Manifest,
    ModelEntry,
    Quality,
    catalogue_digest,
)
from skillserve_client.models import Source, read_sources, require_unchanged, token_source
from skillserve_client.quality import Judged, measure, read_judged
from skillserve_client.shelf import collections_in_use, next_version, owner_of
from skillserve_client.table import SkillTable
from skillserve_client.tokens import embedder_tokens, reranker_tokens
from skillserve_client.versions import collection_of, live_version, publish
from skillserve_client.wire import Inference

__all__ = ["Built", "build_bundle"]

_TOKENIZERS: dict[Role, str] = {"embedder": EMBEDDER_TOKENIZER, "reranker": RERANKER_TOKENIZER}
_CARDS: dict[Role, str] = {"embedder": EMBEDDER_CARD, "reranker": RERANKER_CARD}


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What became of a build."""

    manifest: Manifest
    quality: Quality | None
    current: bool
    """The live bundle already was this one; nothing was written."""
    calibrated: bool
    """It can abstain: its predecessor's calibration is of the same catalogue and models, and went along."""


def build_bundle(
    catalogue: Path,
    triton: Inference,
    *,
    index: IndexSettings | None = None,
    search: SearchSettings | None = None,
    queries: Path | None = None,
    qrels: Path | None = None,
    force: bool = False,
) -> Built:
    """Build a bundle from a catalogue and make it the live one, unless the live one already is this one.

    With `queries` (and `qrels`) the new bundle is measured before it is published. Everything that can be read is
    read and checked before the server is asked for anything. Of two runs at once the second to finish is refused,
    unless forced. Raises CatalogueError for faulty lines (all of them), RepositoryError or CardError for a model
    repository that is not the server's, ServerError, and BundleError if the disk does not take it; the live bundle
    is untouched by any of them.
    """
    index = index or IndexSettings()
    weights = FirstStageWeights.of(index)
    live_before = live_version(index.bundles)  # before the catalogue is read, so that an older one cannot win
    skills = [_mended(skill, catalogue) for skill in read_skills(catalogue)]
    judged = read_judged(queries, qrels) if queries else None
    sources = read_sources(index.models, triton)
    token_embedder = token_source(index, sources, triton)
    digest = catalogue_digest(skills)
    live = _live(index)
    if not force and live is not None and _is_current(live, digest, sources, judged, index):
        return Built(
            manifest=live.manifest, quality=live.quality, current=True, calibrated=live.calibration is not None
        )

    # First of all, since it is soon told where bm25s is not installed.
    lexical = LexicalIndex.build([skill_text(skill) for skill in skills]) if weights.lexical else None
    skills_table = _table(skills, sources)
    embedder = embedder_tokens(sources["embedder"].card, sources["embedder"].tokenizer_json)
    identity, marks = identity_of(sources["embedder"]), skills_table.marks()
    owner = owner_of(index.bundles) if index.kind == "milvus" else ""
    with drafted(
        index,
        identity,
        state=state_digest(identity, marks, salt=owner + (datetime.now(UTC).isoformat() if force else "")),
        over=collection_of(index.bundles / live_before) if live_before else None,
        in_use=partial(collections_in_use, index.bundles),
        force=force,
    ) as draft:
        held = None if live is None or force or live.manifest.identity != identity else live.corpus.index
        fill(
            draft.index,
            skills,
            marks,
            embedder=embedder,
            triton=triton,
            held=held,
            lasting=draft.collection is not None,
        )
        reranker = _reranker(sources)
        tokens = None
        if token_embedder is not None and reranker is not None:
            unchanged = None if live is None or force else live
            tokens = read_tokens(
                skills_table, reranker, token_embedder, triton, limit=index.token_embeddings, held=unchanged
            )
        corpus = Corpus(
            index=draft.index,
            skills=skills_table,
            embedder=embedder,
            reranker=reranker,
            tokens=tokens,
            lexical=lexical,
            weights=weights,
        )
        quality = measure(corpus, judged, triton, search or SearchSettings(), progress) if judged else None
        files = {SKILLS_FILE: skills_table.to_bytes()}
        if isinstance(draft.index, FlatIndex):
            files[INDEX_FILE] = draft.index.to_bytes()
        for role, source in sources.items():
            files |= {_CARDS[role]: source.card_json, _TOKENIZERS[role]: source.tokenizer_json}
        if tokens is not None:
            files[TOKENS_FILE] = tokens.to_bytes()
        if lexical is not None:
            files[LEXICAL_FILE] = lexical.to_bytes()
        if quality is not None:
            files[QUALITY_FILE] = (quality.model_dump_json(indent=2) + "\n").encode()
        files |= _calibration(live, digest, sources, index)
        require_unchanged(sources if token_embedder is None else {**sources, "token_embedder": token_embedder}, triton)
        advice = "Run the command again; with --force this run's catalogue wins."
        with next_version(index, over=live_before, advice=advice, force=force):
            manifest = publish(
                index.bundles,
                files=files,
                num_skills=len(skills),
                dim=identity.dim,
                catalogue=digest,
                models={
                    role: ModelEntry(digest=source.card.digest, served_version=source.served.version)
                    for role, source in sources.items()
                },
                weights=weights,
                late_interaction=None if tokens is None else LateInteraction.of(tokens.how, index.token_embeddings),
                collection=draft.collection,
                switched=draft.switched,
            )
    return Built(manifest=manifest, quality=quality, current=False, calibrated=CALIBRATION_FILE in files)


def _reranker(sources: dict[Role, Source]) -> RerankerTokens | None:
    if "reranker" not in sources:
        return None
    return reranker_tokens(sources["reranker"].card, sources["reranker"].tokenizer_json)


def _table(skills: Sequence[Skill], sources: dict[Role, Source]) -> SkillTable:
    reranker = _reranker(sources)
    return SkillTable.build(
        skills, tokenised(reranker.skills, skills, "tokenising for the reranker") if reranker else None
    )


def _live(index: IndexSettings) -> Bundle | None:
    """The live bundle; one that is damaged, or whose vectors are out of reach, counts as none and is replaced."""
    try:
        if not (index.bundles / CURRENT).exists():
            return None
        return open_bundle(index.bundles, index=index)
    except OSError as error:
        raise BundleError(
            f"folder of bundles `{index.bundles}`",
            got=error.strerror or str(error),
            wanted="a folder that can be read",
            fix="Correct its permissions, or name another one: --bundles FOLDER",
        ) from error
    except SkillserveError as error:
        talk(f"The live bundle cannot be used and is built anew: {error.subject}: {error.got}.")
        return None


def _calibration(
    live: Bundle | None, digest: str, sources: dict[Role, Source], index: IndexSettings
) -> dict[str, bytes]:
    """The live bundle's calibration, where it holds for the new one too; if it does not, that is said."""
    if live is None or live.calibration is None:
        return {}
    same = {
        "models": live.digests == {role: source.card.digest for role, source in sources.items()},
        "catalogue": live.manifest.catalogue_digest == digest,
        "first-stage weights": live.manifest.weights == FirstStageWeights.of(index),
        "use of token embeddings": live.manifest.token_embeddings == index.token_embeddings,
    }
    if all(same.values()):
        return {CALIBRATION_FILE: (live.calibration.model_dump_json(indent=2) + "\n").encode()}
    changed = next(what for what, holds in same.items() if not holds)
    talk(
        f"The calibration of the live bundle is dropped, for the {changed} changed: searches of the new one do not "
        "abstain. Calibrate again: skillserve calibrate --requests FILE --none FILE"
    )
    return {}


def _is_current(
    live: Bundle, digest: str, sources: dict[Role, Source], judged: Judged | None, index: IndexSettings
) -> bool:
    measured = judged is None or (live.quality is not None and live.quality.queries_digest == judged.digest)
    models = {role: source.card.digest for role, source in sources.items()}
    collection = live.manifest.collection
    return (
        measured
        and (collection.alias if collection else None) == (index.alias if index.kind == "milvus" else None)
        and live.manifest.catalogue_digest == digest
        and live.manifest.weights == FirstStageWeights.of(index)
        and live.manifest.token_embeddings == index.token_embeddings
        and live.digests == models
        # The digest covers the tokenizer of the weights; this asks for the bytes that were served with them.
        and all(
            live.manifest.files[_TOKENIZERS[role]].sha256 == hashlib.sha256(source.tokenizer_json).hexdigest()
            for role, source in sources.items()
        )
    )


def _mended(skill: Skill, catalogue: Path) -> Skill:
    """The skill with every text encodable as UTF-8; an id must be so already, for two could become one."""
    if mend(skill.id) != skill.id:
        raise CatalogueError(
            f"`{catalogue}`",
            got=f"the id {skill.id!r} with half a surrogate pair",
            wanted="ids that can be written as UTF-8",
            fix="Mend the id and run the command again; nothing was changed.",
        )
    return replace(
        skill,
        name=mend(skill.name),
        description=mend(skill.description),
        body=mend(skill.body),
        namespace=mend(skill.namespace),
        fields={mend(key): mend(value) for key, value in skill.fields.items()},
    )
