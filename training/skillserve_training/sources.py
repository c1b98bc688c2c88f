"""Where training data stands: a local folder, or a dataset on the Hugging Face hub at a pinned revision.

From the hub come the files of the train split, and the skills of the test split, whose ids and digests are compared
with those of the train split (`sides.py`). Test requests and their judgements are never fetched; no script of a
dataset is either, so no code of others can run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from skillserve.errors import CatalogueError, ConfigError
from skillserve.rows import ENDINGS
from skillserve.skillfile import Part, find_split

__all__ = ["Source", "open_source"]

_HUB_FORM = "hub:org/name@revision"
_HUB = re.compile(r"(?:hub:)?(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
_PARTS: tuple[Part, ...] = ("skills", "queries", "qrels")
_TABLES = ("skills/train", "skills/test", "queries/train", "queries/train-none", "qrels/train")
_TREES = ("skills/train/*SKILL.md", "skills/test/*SKILL.md")
_NESTED = "data"
"""SkillRet's dataset on the hub keeps its parts in a folder of this name."""
_FETCHED = [
    prefix + name
    for prefix in ("", f"{_NESTED}/")
    for name in (*(table + ending for table in _TABLES for ending in ENDINGS), *_TREES)
]


@dataclass(frozen=True, slots=True)
class Source:
    """A folder in SkillRet's layout and where it comes from."""

    folder: Path
    """Holds the folders `skills`, `queries` and `qrels`."""
    origin: str
    """`hub:org/name@commit`, or empty for a local folder."""


def open_source(spec: str | Path) -> Source:
    """The data that `spec` names: a folder, or `[hub:]org/name@revision`, fetched if it is not in the cache.

    CatalogueError if a folder is absent; ConfigError if a dataset is not pinned, not there, or out of reach.
    """
    folder = Path(spec)
    if folder.is_dir():
        return Source(_root(folder), "")
    match = _HUB.fullmatch(str(spec))
    if match is None or not (str(spec).startswith("hub:") or match["revision"]):
        raise CatalogueError(
            f"training data `{spec}`",
            got="no such folder",
            wanted=f"a folder in SkillRet's layout, or a dataset as `{_HUB_FORM}`",
            fix="Check the path, or try the sample: --data examples/sample",
        )
    if match["revision"] is None:
        raise ConfigError(
            f"dataset `{spec}`",
            got="no revision",
            wanted=f"`{_HUB_FORM}`, so that tomorrow's data are today's",
            fix="Append the commit that the dataset's page on the hub shows.",
        )
    return _hub(match["name"], match["revision"])


def _hub(name: str, revision: str) -> Source:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    subject = f"dataset `hub:{name}@{revision}`"
    fetch = f"Fetch it where the hub can be reached: hf download {name} --repo-type dataset --revision {revision}"
    try:
        snapshot = Path(snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=_FETCHED))
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ConfigError(
            subject,
            got=f"no such dataset or revision on the hub ({type(error).__name__})",
            wanted="a public dataset at a commit, branch or tag that exists",
            fix=f"Look its commits up: https://huggingface.co/datasets/{name}/commits/main",
        ) from error
    except (OSError, ValueError) as error:  # the hub's other errors derive from these two: HTTP, offline, invalid id
        raise ConfigError(
            subject,
            got=f"no answer to use from the hub ({type(error).__name__}: {str(error).splitlines()[0]})",
            wanted="a reachable hub, or the dataset in the cache",
            fix=fetch,
        ) from error
    folder = _root(snapshot)
    missing = [f"{part}/train" for part in _PARTS if find_split(folder, part, "train") is None]
    if missing:
        raise ConfigError(
            subject,
            got=f"no {', '.join(missing)} in what was fetched or cached",
            wanted="a dataset in SkillRet's layout, complete in the cache",
            fix=fetch,
        )
    # A branch or tag was resolved to the commit that names the snapshot's folder.
    return Source(folder, f"hub:{name}@{snapshot.name}")


def _root(folder: Path) -> Path:
    nested = folder / _NESTED
    return nested if not (folder / "skills").is_dir() and (nested / "skills").is_dir() else folder
