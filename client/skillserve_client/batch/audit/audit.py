"""Carrying an audit out: everything is compared first, then a whole folder takes the place of the old one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skillserve.console import progress, talk
from skillserve.errors import OutputError
from skillserve.publish import published_folder, sha256_of
from skillserve.settings import AuditSettings
from skillserve_client.batch.audit.catalogue import Skills, read_skills_of
from skillserve_client.batch.audit.categories import Assigned, assign
from skillserve_client.batch.audit.findings import Compared, compare, summarise
from skillserve_client.batch.audit.hubs import Crowding, crowding_of
from skillserve_client.batch.audit.tables import (
    Columns,
    category_parts,
    duplicate_parts,
    hub_parts,
    neighbour_parts,
    write_table,
)
from skillserve_client.batch.audit.taxonomy import Taxonomy
from skillserve_client.batch.claim import LOCK_FILE, audit_files_in, claimed, os_errors, require_same_job
from skillserve_client.batch.files import Format
from skillserve_client.batch.finished import Finished
from skillserve_client.batch.receipts import (
    MANIFEST_FILE,
    SHARDED_FILES,
    SUMMARY_FILE,
    Entry,
    Identity,
    Manifest,
)
from skillserve_client.wire import Floats

__all__ = ["Audit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """One catalogue, as one embedder sees it, into one folder."""

    catalogue: Sequence[Path]
    vectors: Finished
    """Of `score embed`, of this catalogue."""
    rankings: Finished | None
    """Of `score rank`, over this catalogue."""
    taxonomy: Taxonomy | None
    settings: AuditSettings
    file_format: Format
    out: Path
    fresh: bool = False

    @property
    def model(self) -> Mapping[str, str]:
        """The embedder that made the vectors: digest, graph digest, precision."""
        return self.vectors.manifest.identity.models["embedder"]

    @property
    def identity(self) -> Identity:
        """All that the audit depends on besides its input."""
        return Identity(
            job="audit",
            models=self.vectors.manifest.identity.models,
            options={
                "vectors": self.vectors.manifest.identity_digest,
                "rankings": self.rankings.manifest.identity_digest if self.rankings else None,
                "taxonomy": self.taxonomy.digest if self.taxonomy else None,
                "num_neighbours": self.settings.num_neighbours,
                "duplicate_similarity": self.settings.duplicate_similarity,
                "format": self.file_format,
            },
        )

    @property
    def input_digest(self) -> str:
        """SHA-256 over those of the vectors' input and the rankings'."""
        read = [each.manifest.input_digest for each in (self.vectors, self.rankings) if each]
        return hashlib.sha256(":".join(read).encode()).hexdigest()

    def carry_out(self, embed: Callable[[Taxonomy], Floats]) -> tuple[dict[str, Any], bool]:
        """The summary, and whether the folder had it already; `embed` gives the categories' vectors, where wanted.

        Raises OutputError for folders that do not belong together or are not ours, CatalogueError for a catalogue
        that cannot be read, and what `embed` raises. Then the output folder is what it was.
        """
        self._require_other_folders()
        with claimed(self.out):
            with os_errors(self.out):
                before = require_same_job(self.out, self.identity, fresh=self.fresh)
                self._require_alone()
            # Also where nothing will be computed: a catalogue that changed since it was embedded must be noticed.
            skills = read_skills_of(self.vectors, self.catalogue)
            if before and before.input_digest != self.input_digest:
                talk("The input changed since the last audit: everything is compared anew.")
            elif before and (known := self._intact(before)):
                return known, True
            crowding = crowding_of(self.rankings, skills.ids) if self.rankings else None
            assigned = self._assigned(skills, embed)
            with progress("comparing skills", len(skills)) as bar:
                compared = compare(skills, self.settings, bar)
            summary = summarise(
                skills,
                compared,
                threshold=self.settings.duplicate_similarity,
                crowding=crowding,
                taxonomy=self.taxonomy,
                assigned=assigned,
            )
            with os_errors(self.out, kept="what stood there was not changed"), published_folder(self.out) as draft:
                self._write(draft, self._tables(skills, compared, crowding, assigned), summary)
        return summary, False

    def _assigned(self, skills: Skills, embed: Callable[[Taxonomy], Floats]) -> Assigned | None:
        if self.taxonomy is None:
            return None
        majors = [category.major for category in self.taxonomy.categories]
        return assign(skills.vectors, embed(self.taxonomy), majors)

    def _tables(
        self, skills: Skills, compared: Compared, crowding: Crowding | None, assigned: Assigned | None
    ) -> dict[str, Iterable[Columns]]:
        tables: dict[str, Iterable[Columns]] = {
            "neighbours": neighbour_parts(skills, compared.similarities, compared.neighbours),
            "duplicates": duplicate_parts(skills, compared.groups, compared.first_of_text),
            "hubs": hub_parts(skills, compared.occurrences, crowding),
        }
        if self.taxonomy and assigned:
            tables["categories"] = category_parts(skills, self.taxonomy, assigned)
        return tables

    def _write(self, draft: Path, tables: Mapping[str, Iterable[Columns]], summary: Mapping[str, Any]) -> None:
        identity, input_digest = self.identity, self.input_digest
        metadata = {
            "identity": identity.model_dump(mode="json"),
            "identity_digest": identity.digest,
            "input_digest": input_digest,
        }
        written = []
        for name, parts in tables.items():
            path, num_rows = write_table(draft, name, parts, self.file_format, {"name": name, **metadata})
            written.append(_entry(path, input_digest, num_rows))
        (draft / SUMMARY_FILE).write_text(json.dumps(summary, ensure_ascii=False, allow_nan=False, indent=1) + "\n")
        written.append(_entry(draft / SUMMARY_FILE, input_digest, 1))
        manifest = Manifest(
            status="complete",
            identity=identity,
            identity_digest=identity.digest,
            sources=tuple(map(str, self.catalogue)),
            input_digest=input_digest,
            num_rows=self.vectors.manifest.num_rows,
            num_rejects=self.vectors.manifest.num_rejects,
            shards=tuple(written),
        )
        (draft / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=1) + "\n")

    def _intact(self, before: Manifest) -> dict[str, Any] | None:
        """The summary of an audit whose files are all as it wrote them."""
        with suppress(FileNotFoundError):
            if all(sha256_of(self.out / entry.file) == entry.sha256 for entry in before.shards):
                found: dict[str, Any] = json.loads((self.out / SUMMARY_FILE).read_bytes())
                return found
        return None

    def _require_alone(self) -> None:
        """A whole folder is exchanged, so nothing that is not ours may be in it."""
        ours = {MANIFEST_FILE, LOCK_FILE} | audit_files_in(self.out) | (SHARDED_FILES if self.fresh else frozenset())
        strangers = sorted(entry.name for entry in self.out.iterdir() if entry.name not in ours)
        if strangers:
            raise OutputError(
                f"output folder `{self.out}`",
                got=f"{strangers[0]} beside an audit",
                wanted="an empty folder, or an audit alone, since the folder is replaced as a whole",
                fix="Move it away, or name another folder: --out FOLDER",
            )

    def _require_other_folders(self) -> None:
        read = [each.path for each in (self.vectors, self.rankings) if each]
        if self.out.resolve() in [path.resolve() for path in read]:
            raise OutputError(
                f"output folder `{self.out}`",
                got="the folder that the audit reads",
                wanted="another one",
                fix="Name another folder: --out FOLDER",
            )
        if self.rankings and (found := self.rankings.manifest.identity.models["embedder"]["digest"]) != (
            wanted := self.model["digest"]
        ):
            raise OutputError(
                f"rankings `{self.rankings.path}`",
                got=f"rankings with embedder {found[:12]}",
                wanted=f"{wanted[:12]}, which made the vectors",
                fix="Rank with a bundle of that embedder, or leave out --rankings.",
            )


def _entry(path: Path, input_digest: str, num_rows: int) -> Entry:
    return Entry(
        name=path.stem,
        file=path.name,
        sha256=sha256_of(path),
        size=path.stat().st_size,
        input_digest=input_digest,
        first_row=0,
        num_rows=num_rows,
        num_rejects=0,
        num_tokens=0,
    )
