"""What a finished job left, read as the input of another one: nothing unverified is parsed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from skillserve.errors import OutputError
from skillserve_client.batch.files import read_shard
from skillserve_client.batch.receipts import MANIFEST_FILE, OUTPUT_FORMAT, Entry, JobName, Manifest

__all__ = ["Finished"]


@dataclass(frozen=True, slots=True)
class Finished:
    """The output folder of a job that came to its end."""

    path: Path
    manifest: Manifest

    @classmethod
    def opened(cls, path: Path, job: JobName) -> Finished:
        """Read the manifest; OutputError if it is no output of that job, of another version, or not complete."""
        again = f"Name the output of `skillserve score {job}`, or run that command again to its end."
        try:
            manifest = Manifest.model_validate_json((path / MANIFEST_FILE).read_bytes())
        except OSError as error:
            raise _refused(path, job, f"no {MANIFEST_FILE} ({error.strerror})", again) from error
        except ValidationError as error:
            what = error.errors()[0]["msg"]
            raise _refused(path, job, f"a {MANIFEST_FILE} of another version, or damaged ({what})", again) from error
        if manifest.identity.output_format != OUTPUT_FORMAT:
            raise _refused(path, job, f"output format {manifest.identity.output_format}", again)
        if manifest.identity.job != job:
            raise _refused(path, job, f"results of `{manifest.identity.job}`", again)
        if manifest.status != "complete":
            raise _refused(path, job, "a run that did not come to its end", again)
        return cls(path, manifest)

    def tables(self) -> Iterator[tuple[Entry, Any]]:
        """Every shard with its rows as an Arrow table; OutputError for one that is not what its manifest says."""
        job = self.manifest.identity.job
        for entry in self.manifest.shards:
            content = self._read(entry, job)
            yield (
                entry,
                read_shard(content, self.manifest.identity.options["format"], job=job, subject=f"shard `{entry.file}`"),
            )

    def _read(self, entry: Entry, job: JobName) -> bytes:
        again = f"Run `skillserve score {job}` again: it computes what is missing or damaged."
        path = self.path / entry.file
        try:
            content = path.read_bytes()
        except OSError as error:
            raise _refused(self.path, job, f"no readable {entry.file} ({error.strerror})", again) from error
        if hashlib.sha256(content).hexdigest() != entry.sha256:
            raise _refused(self.path, job, f"{entry.file} with another SHA-256 than its manifest says", again)
        return content


def _refused(path: Path, job: JobName, got: str, fix: str) -> OutputError:
    return OutputError(f"folder `{path}`", got=got, wanted=f"the complete output of `skillserve score {job}`", fix=fix)
