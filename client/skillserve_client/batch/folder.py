"""The output folder of a run: one run at a time, one job ever, shards that stand whole or not at all.

<out>/manifest.json                     identity, status, and every shard when it is complete
<out>/rejects.jsonl                     all rejects, in the order of the input, when it is complete
<out>/shards/<place>-<key>.parquet      results; or .jsonl
<out>/receipts/<place>-<key>.json       SHA-256 and counts of a finished shard, and its rejects
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from pydantic import ValidationError

from skillserve.publish import published_file, sha256_of, write_bytes, write_text
from skillserve_client.batch.claim import audit_files_in, claimed, os_errors, require_same_job
from skillserve_client.batch.receipts import (
    MANIFEST_FILE,
    RECEIPTS,
    REJECTS_FILE,
    SHARDS,
    Entry,
    Identity,
    Manifest,
    Receipt,
    Reject,
)

__all__ = ["OutputFolder"]


class OutputFolder:
    """An output folder that this process alone writes to. Made by `opened`."""

    def __init__(self, path: Path, identity: Identity, sources: Sequence[Path]) -> None:
        self.path = path
        self.identity = identity
        self._sources = tuple(str(source) for source in sources)

    @classmethod
    @contextmanager
    def opened(cls, path: Path, identity: Identity, sources: Sequence[Path], *, fresh: bool) -> Iterator[Self]:
        """Claim the folder for this job; with `fresh` what an earlier job of ours left in it is removed first.

        Raises OutputError if another process writes to it, if it holds another job, or anything that is not ours.
        """
        folder = cls(path, identity, sources)
        with claimed(path):
            with os_errors(path):
                folder._prepare(fresh=fresh)
            yield folder

    def places(self) -> dict[int, set[str]]:
        """Place → names of the shards that were finished there before, whatever they were of."""
        found: dict[int, set[str]] = {}
        for path in (self.path / RECEIPTS).glob("*.json"):
            place, dash, _ = path.stem.partition("-")
            if dash and place.isdecimal():
                found.setdefault(int(place), set()).add(path.stem)
        return found

    def finished(self, name: str) -> Receipt | None:
        """The receipt of a finished shard, its file verified; None if there is none, or one of them is damaged."""
        try:
            receipt = Receipt.model_validate_json((self.path / RECEIPTS / f"{name}.json").read_bytes())
            file = self.path / receipt.entry.file
            sound = file.stat().st_size == receipt.entry.size and sha256_of(file) == receipt.entry.sha256
        except (FileNotFoundError, ValidationError):
            return None
        return receipt if sound and receipt.entry.name == name else None

    def commit(
        self,
        name: str,
        content: bytes,
        ending: str,
        *,
        input_digest: str,
        first_row: int,
        num_rows: int,
        num_tokens: int,
        rejects: Sequence[Reject],
    ) -> Receipt:
        """Write a shard, then its receipt, which makes it a finished one."""
        file = f"{SHARDS}/{name}.{ending}"
        entry = Entry(
            name=name,
            file=file,
            sha256=hashlib.sha256(content).hexdigest(),
            size=len(content),
            input_digest=input_digest,
            first_row=first_row,
            num_rows=num_rows,
            num_rejects=len(rejects),
            num_tokens=num_tokens,
        )
        receipt = Receipt(entry=entry, rejects=tuple(rejects))
        with os_errors(self.path):
            write_bytes(self.path / file, content)
            write_text(self.path / RECEIPTS / f"{name}.json", receipt.model_dump_json() + "\n")
        return receipt

    def complete(self, entries: Sequence[Entry]) -> Manifest:
        """Write the rejects and the manifest, and remove shards that are not of this input."""
        manifest, kept = self._manifest("complete", entries), {entry.name for entry in entries}
        with os_errors(self.path):
            with published_file(self.path / REJECTS_FILE) as file:
                for entry in entries:
                    receipt = (self.path / RECEIPTS / f"{entry.name}.json").read_bytes()
                    for reject in Receipt.model_validate_json(receipt).rejects:
                        file.write((reject.model_dump_json() + "\n").encode())
            self._write_manifest(manifest)
            for path in (*(self.path / SHARDS).iterdir(), *(self.path / RECEIPTS).iterdir()):
                if path.name.partition(".")[0] not in kept:
                    path.unlink()
        return manifest

    def _prepare(self, *, fresh: bool) -> None:
        require_same_job(self.path, self.identity, fresh=fresh)
        if fresh:
            self._clear()
        # First, since a folder with anything else in it and no manifest is not ours.
        self._write_manifest(self._manifest("running"))
        for part in (self.path / SHARDS, self.path / RECEIPTS):
            part.mkdir(exist_ok=True)
            for left in part.glob(".*"):  # half-written files of a killed run
                left.unlink()

    def _manifest(self, status: str, entries: Sequence[Entry] = ()) -> Manifest:
        digests = "".join(entry.input_digest for entry in entries)
        return Manifest(
            status="complete" if status == "complete" else "running",
            identity=self.identity,
            identity_digest=self.identity.digest,
            sources=self._sources,
            input_digest=hashlib.sha256(digests.encode()).hexdigest() if entries else "",
            num_rows=sum(entry.num_rows for entry in entries),
            num_rejects=sum(entry.num_rejects for entry in entries),
            num_tokens=sum(entry.num_tokens for entry in entries),
            shards=tuple(entries),
        )

    def _write_manifest(self, manifest: Manifest) -> None:
        write_text(self.path / MANIFEST_FILE, manifest.model_dump_json(indent=1) + "\n")

    def _clear(self) -> None:
        """The manifest last: without it nothing of the rest would be known as ours."""
        for part in (SHARDS, RECEIPTS):
            shutil.rmtree(self.path / part, ignore_errors=True)
        for name in (REJECTS_FILE, *audit_files_in(self.path), MANIFEST_FILE):
            (self.path / name).unlink(missing_ok=True)
