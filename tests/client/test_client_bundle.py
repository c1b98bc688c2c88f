"""Bundles: published whole or not at all, opened only when every byte is as it was."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skillserve.errors import BundleError
from skillserve.records import Skill
from skillserve.settings import IndexSettings
from skillserve_client import build_bundle, open_bundle
from skillserve_client.table import SkillTable

FILES = [
    "manifest.json",
    "skills.parquet",
    "index.faiss",
    "embedder.card.json",
    "embedder.tokenizer.json",
    "reranker.card.json",
    "reranker.tokenizer.json",
]


def live(root: Path) -> Path:
    """Folder of the live version."""
    return root / (root / "CURRENT").read_text().split()[0]


def reseal(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest and make CURRENT agree, as somebody who means harm (or a later version) would."""
    folder = live(root)
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    content = json.dumps(manifest)
    (folder / "manifest.json").write_text(content)
    (root / "CURRENT").write_text(f"{folder.name} {hashlib.sha256(content.encode()).hexdigest()}\n")


def rewrite(root: Path, name: str, content: bytes) -> None:
    """Replace a file and make manifest and CURRENT agree."""
    (live(root) / name).write_bytes(content)
    entry = {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    reseal(root, lambda manifest: manifest["files"].update({name: entry}))


def test_a_bundle_holds_everything_that_a_search_needs(bundles: Path) -> None:
    bundle = open_bundle(bundles)
    assert sorted(path.name for path in bundle.folder.iterdir()) == sorted(FILES)
    assert (len(bundle.corpus.index), len(bundle.corpus.skills), bundle.manifest.num_skills) == (5, 5, 5)
    pdf = bundle.corpus.skills.skill(1)
    assert (pdf.id, pdf.namespace, pdf.fields) == ("pdf", "acme", {"licence": "MIT"})
    assert bundle.corpus.skills.skill(4).description.endswith("\ufffd")
    assert len(bundle.corpus.skills.rerank_ids(0)) == 45
    assert open_bundle(bundle.folder).version == bundle.version


def test_a_bundle_that_was_opened_survives_its_folder(bundles: Path) -> None:
    bundle = open_bundle(bundles)
    shutil.rmtree(bundles)
    assert bundle.corpus.skills.skill(2).name == "git"


def test_the_rows_of_a_namespace_are_those_of_its_skills_in_order() -> None:
    names = ["a", "", "b", "a", "", "a"]
    table = SkillTable.build(
        [Skill(id=str(i), name="", description="", namespace=n) for i, n in enumerate(names)], None
    )
    for name in ("a", "b", "", "none"):
        assert table.rows_of(name).tolist() == [i for i, each in enumerate(names) if each == name]
    assert table.rows_of("none").dtype == table.rows_of("a").dtype == np.int64


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flip", "missing", "trailing", "truncated", "empty"])
def test_every_damage_to_every_file_is_refused_by_name(name: str, damage: str, bundles: Path) -> None:
    path = live(bundles) / name
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    else:
        content[len(content) // 2] ^= 1
        whole = path.read_bytes()
        changed = {"flip": bytes(content), "trailing": whole + b"\0", "truncated": whole[:-7], "empty": b""}
        path.write_bytes(changed[damage])
    with pytest.raises(BundleError, match=name.replace(".", r"\.")) as caught:
        open_bundle(bundles)
    assert "skillserve index" in caught.value.fix


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_single_changed_byte_goes_unnoticed(bundles: Path, data: st.DataObject) -> None:
    path = live(bundles) / data.draw(st.sampled_from(FILES))
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    path.write_bytes(whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :])
    try:
        with pytest.raises(BundleError):
            open_bundle(bundles)
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(schema_version=2),
        lambda m: m.update(text_format="other/9"),
        lambda m: m.update(num_skills=4),
        lambda m: m.update(dim=15),
        lambda m: m.update(version="another"),
        lambda m: m.update(extra=1),
        lambda m: m["files"].pop("index.faiss"),
        lambda m: m.update(index_kind="milvus"),
        lambda m: m.update(collection={"alias": "a", "name": "a_1"}),
        lambda m: m.update(index_kind="milvus", collection={"alias": "a", "name": "a_1"}),
        lambda m: m["files"].update({"../secret": m["files"]["index.faiss"]}),
        lambda m: m["files"].pop("reranker.tokenizer.json"),
        lambda m: m["models"].pop("reranker"),
        lambda m: m["models"].pop("embedder"),
        lambda m: m["models"]["embedder"].update(digest="d" * 64),
    ],
)
def test_a_manifest_that_contradicts_its_files_is_refused(change: Callable[[Any], object], bundles: Path) -> None:
    """CURRENT agrees with the manifest here, so only the checks of its content are left to notice."""
    reseal(bundles, change)
    with pytest.raises(BundleError):
        open_bundle(bundles)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("skills.parquet", b"PAR1 no table PAR1"),
        ("index.faiss", b"no index"),
        ("embedder.card.json", b"{}"),
    ],
)
def test_a_sealed_file_that_cannot_be_read_is_refused_by_name(name: str, content: bytes, bundles: Path) -> None:
    rewrite(bundles, name, content)
    with pytest.raises(BundleError, match=name.replace(".", r"\.")):
        open_bundle(bundles)


def test_vectors_and_skills_must_be_as_many(bundles: Path) -> None:
    skills = open_bundle(bundles).corpus.skills
    fewer = SkillTable.build([skills.skill(i) for i in range(4)], [skills.rerank_ids(i) for i in range(4)])
    rewrite(bundles, "skills.parquet", fewer.to_bytes())
    with pytest.raises(BundleError, match="5 vectors for 4 skills"):
        open_bundle(bundles)


@pytest.mark.parametrize("line", ["", "x", "../../etc " + "a" * 64 + "\n", "v " + "g" * 64 + "\n", "v\n", "\xff"])
def test_a_pointer_that_points_nowhere_is_refused(line: str, bundles: Path) -> None:
    (bundles / "CURRENT").write_text(line, encoding="latin-1")
    with pytest.raises(BundleError, match="CURRENT"):
        open_bundle(bundles)


def test_an_empty_folder_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="skillserve index"):
        open_bundle(tmp_path)


@pytest.mark.parametrize("at", ["first file", "renamed folder", "CURRENT"])
def test_a_full_disk_leaves_the_live_bundle_and_no_remains(
    at: str, bundles: Path, world: IndexSettings, catalogue: Path, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, entries = (bundles / "CURRENT").read_text(), sorted(bundles.iterdir())
    real, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        renamed = len(list(bundles.glob("2*"))) > 1
        pointing = renamed and bool(list(bundles.glob(".CURRENT.*")))
        if {"first file": True, "renamed folder": renamed, "CURRENT": pointing}[at]:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BundleError, match="No space left on device"):
        build_bundle(catalogue, fake, index=world, force=True)
    assert calls
    assert (bundles / "CURRENT").read_text() == before
    assert sorted(bundles.iterdir()) == entries
    assert open_bundle(bundles).version == before.split()[0]


PUBLISH_WITH_LITTLE_ROOM = """
import os, resource, signal, sys
from pathlib import Path
from skillserve.errors import BundleError
from skillserve_client.bundle import open_bundle
from skillserve_client.versions import publish
root = Path(sys.argv[1])
live = open_bundle(root)
files = {name: (live.folder / name).read_bytes() for name in live.manifest.files}
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    publish(root, files=files, num_skills=5, dim=16, catalogue="a" * 64, models=live.manifest.models)
except BundleError as error:
    print(error.got, flush=True)
os._exit(0)  # as commands end: threads of native libraries may abort the interpreter's teardown
"""


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_the_kernel_refusing_a_write_leaves_the_live_bundle(share: float, bundles: Path) -> None:
    """The real thing, without a mock: the kernel cuts a write short and then refuses it."""
    before, entries = (bundles / "CURRENT").read_text(), sorted(bundles.iterdir())
    room = int(share * max(path.stat().st_size for path in live(bundles).iterdir()))
    command = [sys.executable, "-c", PUBLISH_WITH_LITTLE_ROOM, str(bundles), str(room)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "File too large" in done.stdout
    assert (bundles / "CURRENT").read_text() == before
    assert sorted(bundles.iterdir()) == entries
    assert open_bundle(bundles)
