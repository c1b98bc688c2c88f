"""Audits from files to a folder: what is in it, and every input that is refused with the old folder as it was."""

from __future__ import annotations

import fcntl
import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skillserve.cli import main
from skillserve.errors import CatalogueError, OutputError, RepositoryError
from skillserve.publish import sha256_of
from skillserve.settings import AuditSettings, IndexSettings, SearchSettings
from skillserve_client import build_bundle, open_bundle
from skillserve_client.batch.audit import tables
from skillserve_client.batch.audit.audit import Audit
from skillserve_client.batch.audit.categories import embed_taxonomy
from skillserve_client.batch.audit.taxonomy import Taxonomy, read_taxonomy
from skillserve_client.batch.crew import Alone
from skillserve_client.batch.embed import EmbedJob
from skillserve_client.batch.engine import Engine
from skillserve_client.batch.finished import Finished
from skillserve_client.batch.jobs import Job
from skillserve_client.batch.rank import RankJob
from skillserve_client.batch.run import Run, Spec
from skillserve_client.models import read_sources
from skillserve_client.tokens import embedder_tokens

WORDS = ["resize", "image", "photo", "pdf", "merge", "table", "email", "git", "commit", "rust", "tests", "chart"]
SETTINGS = AuditSettings(num_neighbours=3, duplicate_similarity=0.9)
FILES = ["categories", "duplicates", "hubs", "manifest", "neighbours", "summary"]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def skill(i: int, description: str) -> dict[str, Any]:
    return {"id": f"s{i}", "name": description.split(maxsplit=1)[0], "description": description}


def score(job: Job[Any, Any], inference: Any, out: Path, **changes: Any) -> Finished:
    spec = Spec(out=out, **{"engine_name": "server", "shard_rows": 8} | changes)
    with Engine(inference, num_workers=2, max_run_tokens=256, patience_s=0.0) as engine:
        Run(job, Alone(job, engine), spec).carry_out()
    return Finished.opened(out, job.name)


def rows_of(out: Path, name: str) -> list[dict[str, Any]]:
    if (out / f"{name}.jsonl").exists():
        return [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]
    return list(pq.read_table(out / f"{name}.parquet").to_pylist())


def digests_of(out: Path) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in out.iterdir() if not path.name.startswith(".")}


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Thirty skills in two files: some alike, two copies, a row without a name, and an id that stands in both."""
    rng = random.Random(2)
    rows = [skill(i, " ".join(rng.choices(WORDS, k=4))) for i in range(27)]
    rows[4] = {"id": "nameless"}
    rows[9] = skill(9, "merge pdf table pdf")
    rows += [skill(i, "merge pdf table pdf") for i in (27, 28)]
    rows += [{**rows[3], "description": "another one with its id"}]
    return [write(tmp_path / "a.jsonl", rows[:20]), write(tmp_path / "b.jsonl", rows[20:])]


@pytest.fixture
def embed(world: IndexSettings, fake: Any, tmp_path: Path) -> Callable[..., Finished]:
    def make(paths: list[Path], out: str = "vectors", inference: Any = None, **changes: Any) -> Finished:
        model = inference or fake
        source = read_sources(world.models, model, roles=("embedder",))["embedder"]
        return score(EmbedJob.of(paths, source), model, tmp_path / out, **changes)

    return make


@pytest.fixture
def carry_out(
    files: list[Path], embed: Any, world: IndexSettings, fake: Any, tmp_path: Path
) -> Callable[..., tuple[dict[str, Any], bool]]:
    """An audit as the command makes it."""

    def make(**changes: Any) -> tuple[dict[str, Any], bool]:
        facts = {"catalogue": files, "rankings": None, "taxonomy": read_taxonomy(None), "settings": SETTINGS}
        facts |= {"file_format": "parquet", "out": tmp_path / "audit"} | changes
        job = Audit(**{"vectors": facts.get("vectors") or embed(files), **facts})

        def categories(taxonomy: Taxonomy) -> Any:
            source = read_sources(world.models, fake, roles=("embedder",))["embedder"]
            return embed_taxonomy(taxonomy, source, fake, model=job.model)

        return job.carry_out(categories)

    return make


def test_an_audit_says_of_every_embedded_skill_what_a_full_comparison_says(
    carry_out: Any, embed: Any, files: list[Path], world: IndexSettings, fake: Any, computed: Any, tmp_path: Path
) -> None:
    summary, current = carry_out()
    out = tmp_path / "audit"
    assert not current
    assert sorted(path.stem for path in out.iterdir()) == FILES
    table = pa.concat_tables(table for _, table in embed(files).tables())
    ids, positions = table.column("id").to_pylist(), table.column("row").to_pylist()
    vectors = np.array(table.column("embedding").to_pylist())
    assert len(ids) == summary["num_skills"] == 28
    assert positions == [*range(4), *range(5, 29)]  # the nameless one, and the last, whose id was there
    near = vectors @ vectors.T
    neighbours = rows_of(out, "neighbours")
    assert [(row["row"], row["id"]) for row in neighbours] == list(zip(positions, ids, strict=True))
    lists = []
    for i, row in enumerate(neighbours):
        found = [ids.index(each["skill_id"]) for each in row["neighbours"]]
        assert i not in found
        others = sorted((near[i, j] for j in range(28) if j != i), reverse=True)[:3]
        assert np.allclose([near[i, j] for j in found], others, atol=1e-6)
        assert np.allclose([each["similarity"] for each in row["neighbours"]], others, atol=1e-6)
        assert [each["rank"] for each in row["neighbours"]] == [1, 2, 3]
        lists += found
    tally = Counter(lists)
    hubs = rows_of(out, "hubs")
    assert {row["id"]: row["occurrences"] for row in hubs} == {ids[i]: tally[i] for i in range(28)}
    assert [row["occurrences"] for row in hubs] == sorted(tally[i] for i in range(28))[::-1]
    assert {row["rankings"] for row in hubs} == {None}
    together = [{ids[i]} for i in range(28)]
    for i, j in np.argwhere(near >= 0.9).tolist():
        one, other = (next(group for group in together if ids[each] in group) for each in (i, j))
        if one is not other:
            together.remove(other)
            one |= other
    duplicates = rows_of(out, "duplicates")
    groups = {number: {row["id"] for row in duplicates if row["group"] == number} for number in range(len(duplicates))}
    wanted = [group for group in together if len(group) > 1]
    assert sorted(map(sorted, filter(None, groups.values()))) == sorted(map(sorted, wanted))
    assert summary["duplicates"]["num_spare"] == sum(len(group) - 1 for group in wanted)
    assert {row["id"]: row["copy_of"] for row in duplicates if row["copy_of"]} == {"s27": "s9", "s28": "s9"}
    assert summary["duplicates"]["num_same_text"] == 2
    assert sum(row["representative"] for row in duplicates) == summary["duplicates"]["num_groups"] == len(wanted)
    taxonomy = read_taxonomy(None)
    source = read_sources(world.models, fake, roles=("embedder",))["embedder"]
    tokens = embedder_tokens(source.card, source.tokenizer_json)
    categories = computed("embedder", [tokens.query(each.request).ids for each in taxonomy.categories])
    scores = vectors @ categories.T
    for i, row in enumerate(rows_of(out, "categories")):
        best = taxonomy.categories[int(scores[i].argmax())]
        assert (row["id"], row["major"], row["sub"]) == (ids[i], best.major, best.sub)
        assert row["margin"] == pytest.approx(np.diff(np.sort(scores[i])[-2:])[0], abs=1e-6)
    counts = summary["categories"]["counts"]
    assert sum(each["num_skills"] for each in counts) == 28


def test_rankings_of_requests_are_counted_and_order_the_hubs(
    carry_out: Any, world: IndexSettings, fake: Any, tmp_path: Path
) -> None:
    rows = [skill(i, " ".join(pair)) for i, pair in enumerate(pairwise(WORDS))]
    catalogue = write(tmp_path / "sound.jsonl", rows)
    build_bundle(catalogue, fake, index=world)
    source = read_sources(world.models, fake, roles=("embedder",))["embedder"]
    vectors = score(EmbedJob.of([catalogue], source), fake, tmp_path / "v")
    requests = write(tmp_path / "r.jsonl", [{"id": f"q{i}", "query": word} for i, word in enumerate(WORDS)])
    ranked = {}
    for file_format in ("parquet", "jsonl"):
        job = RankJob.of([requests], open_bundle(world.bundles), SearchSettings(rerank_depth=0, top_k=2))
        ranked[file_format] = score(job, fake, tmp_path / file_format, file_format=file_format)
    told = [
        carry_out(catalogue=[catalogue], vectors=vectors, rankings=rankings, out=tmp_path / f"audit-{name}")[0]
        for name, rankings in ranked.items()
    ]
    assert told[0] == told[1]
    hits = [[hit["skill_id"] for hit in row["hits"]] for row in rows_of_shards(tmp_path / "parquet")]
    tally, first = Counter(each for found in hits for each in found), Counter(found[0] for found in hits)
    hubs = rows_of(tmp_path / "audit-parquet", "hubs")
    assert {row["id"]: (row["rankings"], row["first"]) for row in hubs} == {
        row["id"]: (tally[row["id"]], first[row["id"]]) for row in rows
    }
    assert [row["rankings"] for row in hubs] == sorted((row["rankings"] for row in hubs), reverse=True)
    assert told[0]["rankings"]["num_rankings"] == len(WORDS)
    other = write(tmp_path / "other.jsonl", [*rows[:1], skill(99, "git")])
    vectors = score(EmbedJob.of([other], source), fake, tmp_path / "v2")
    with pytest.raises(OutputError, match=r"got the skill `s\d+` in shards/.*rankings of this catalogue"):
        carry_out(catalogue=[other], vectors=vectors, rankings=ranked["parquet"], out=tmp_path / "no")


def rows_of_shards(out: Path) -> list[dict[str, Any]]:
    return [row for file in sorted((out / "shards").iterdir()) for row in pq.read_table(file).to_pylist()]


def test_tables_say_what_they_are_of_and_lines_hold_the_same(carry_out: Any, tmp_path: Path) -> None:
    carry_out()
    carry_out(out=tmp_path / "lines", file_format="jsonl")
    manifest = json.loads((tmp_path / "audit" / "manifest.json").read_text())
    for entry in manifest["shards"]:
        assert sha256_of(tmp_path / "audit" / entry["file"]) == entry["sha256"]
    assert {entry["name"] for entry in manifest["shards"]} == {*FILES} - {"manifest"}
    for name in ("categories", "duplicates", "hubs", "neighbours"):
        assert rows_of(tmp_path / "audit", name) == rows_of(tmp_path / "lines", name)
        written = pq.read_metadata(tmp_path / "audit" / f"{name}.parquet")
        assert written.row_group(0).column(0).compression == "ZSTD"
        said = {key.decode(): value.decode() for key, value in written.metadata.items()}
        assert said["skillserve.name"] == name
        assert said["skillserve.identity_digest"] == manifest["identity_digest"]
        assert said["skillserve.input_digest"] == manifest["input_digest"]
        identity = json.loads(said["skillserve.identity"])
        assert identity == manifest["identity"]
        assert (identity["job"], identity["models"]["embedder"]["digest"]) == ("audit", "e" * 64)


def test_the_same_audit_again_does_nothing_and_a_damaged_one_is_made_anew(
    carry_out: Any, fake: Any, tmp_path: Path
) -> None:
    summary, _ = carry_out()
    before = digests_of(out := tmp_path / "audit")
    fake.calls.clear()
    assert carry_out() == (summary, True)
    assert not fake.calls
    for damage in (lambda path: path.unlink(), lambda path: path.write_bytes(b"PAR1")):
        damage(out / "hubs.parquet")
        assert carry_out() == (summary, False)
        assert digests_of(out) == before


def test_without_categories_no_model_is_asked(carry_out: Any, embed: Any, files: list[Path], fake: Any) -> None:
    vectors = embed(files)
    fake.calls.clear()
    summary, _ = carry_out(vectors=vectors, taxonomy=None)
    assert summary["categories"] is None
    assert not fake.calls


def test_a_changed_catalogue_is_refused_until_it_is_embedded_again(
    carry_out: Any, embed: Any, files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    carry_out()
    before, old = digests_of(tmp_path / "audit"), embed(files)
    write(files[1], [skill(50, "rust tests"), skill(51, "git commit")])
    with pytest.raises(OutputError, match=r"another input, from row 16 on.*Embed it again"):
        carry_out(vectors=old)
    with pytest.raises(OutputError, match="another input"):
        carry_out(vectors=old, catalogue=files[:1])
    assert digests_of(tmp_path / "audit") == before
    capsys.readouterr()
    summary, current = carry_out()
    assert (summary["num_skills"], current) == (21, False)
    assert "The input changed since the last audit" in capsys.readouterr().err
    pq.write_table(pa.table({"id": ["a"], "title": ["x"]}), tmp_path / "c.parquet")
    with pytest.raises(CatalogueError, match="also name"):
        carry_out(catalogue=[tmp_path / "c.parquet"], fresh=True)


def test_vectors_that_are_no_finished_output_of_embed_are_refused(
    carry_out: Any, embed: Any, files: list[Path], tmp_path: Path
) -> None:
    vectors = embed(files)
    manifest = tmp_path / "vectors" / "manifest.json"
    sound = json.loads(manifest.read_text())
    for change, said in (
        ({"status": "running"}, "did not come to its end"),
        ({"from_the_future": 1}, "another version, or damaged"),
        ({"identity": {**sound["identity"], "output_format": 7}}, "output format 7"),
        ({"identity": {**sound["identity"], "job": "pairs"}}, "results of `pairs`"),
    ):
        manifest.write_text(json.dumps(sound | change))
        with pytest.raises(OutputError, match=said):
            Finished.opened(tmp_path / "vectors", "embed")
    with pytest.raises(OutputError, match=r"no manifest\.json"):
        Finished.opened(tmp_path / "nowhere", "embed")
    shard = tmp_path / "vectors" / sound["shards"][1]["file"]
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + b"x")
    with pytest.raises(OutputError, match="another SHA-256"):
        carry_out(vectors=vectors)
    shard.unlink()
    with pytest.raises(OutputError, match="no readable shards"):
        carry_out(vectors=vectors)
    assert not digests_of(tmp_path / "audit")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda row: row | {"embedding": [float("nan"), *row["embedding"][1:]]}, "a vector of length nan for `s8`"),
        (lambda row: row | {"embedding": [2 * x for x in row["embedding"]]}, "a vector of length 2 for `s8`"),
        (lambda row: row | {"embedding": row["embedding"][1:]}, "no such table"),
        (lambda row: {"row": row["row"], "id": row["id"]}, "no such table"),
    ],
)
def test_vectors_that_cannot_be_compared_are_refused(
    carry_out: Any, embed: Any, files: list[Path], tmp_path: Path, change: Any, said: str
) -> None:
    """As somebody else's program might write them, manifest and all."""
    vectors = embed(files, file_format="jsonl")
    entry = vectors.manifest.shards[1]
    shard = tmp_path / "vectors" / entry.file
    rows = [json.loads(line) for line in shard.read_text().splitlines()]
    write(shard, [change(rows[0]), *rows[1:]])
    entries = [replace_entry(each, shard) if each is entry else each for each in vectors.manifest.shards]
    changed = replace(vectors, manifest=vectors.manifest.model_copy(update={"shards": tuple(entries)}))
    with pytest.raises(OutputError, match=said):
        carry_out(vectors=changed)


def replace_entry(entry: Any, file: Path) -> Any:
    return entry.model_copy(update={"sha256": sha256_of(file)})


def test_a_parquet_shard_without_its_columns_is_refused(
    carry_out: Any, embed: Any, files: list[Path], tmp_path: Path
) -> None:
    vectors = embed(files)
    entry = vectors.manifest.shards[0]
    shard = tmp_path / "vectors" / entry.file
    pq.write_table(pq.read_table(shard).drop_columns(["embedding"]), shard)
    entries = (replace_entry(entry, shard), *vectors.manifest.shards[1:])
    changed = replace(vectors, manifest=vectors.manifest.model_copy(update={"shards": entries}))
    with pytest.raises(OutputError, match="got columns row, id; wanted a table of row, id, embedding"):
        carry_out(vectors=changed)


def test_other_options_strangers_and_the_folders_that_are_read_are_refused(
    carry_out: Any, embed: Any, files: list[Path], tmp_path: Path
) -> None:
    carry_out()
    before, vectors = digests_of(out := tmp_path / "audit"), embed(files)
    with pytest.raises(OutputError, match=r"options\.duplicate_similarity 0.9, not 0.8.*--fresh"):
        carry_out(settings=SETTINGS.model_copy(update={"duplicate_similarity": 0.8}))
    with pytest.raises(OutputError, match=r"options\.taxonomy"):
        carry_out(taxonomy=None)
    with pytest.raises(OutputError, match="the folder that the audit reads"):
        carry_out(out=tmp_path / "vectors", fresh=True)
    with pytest.raises(OutputError, match="results of job audit, not embed"):
        embed(files, out="audit")
    (out / "notes.txt").write_text("mine")
    for fresh in (False, True):
        with pytest.raises(OutputError, match=r"notes\.txt beside an audit"):
            carry_out(fresh=fresh)
    (out / "notes.txt").unlink()
    (stranger := tmp_path / "stranger").mkdir()
    (stranger / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"notes\.txt and no manifest\.json"):
        carry_out(out=stranger, fresh=True)
    with (out / ".lock").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="another process"):
            carry_out()
    assert digests_of(out) == before
    assert Finished.opened(tmp_path / "vectors", "embed") == vectors


def test_fresh_turns_an_audit_into_another_job_and_back(
    carry_out: Any, embed: Any, files: list[Path], tmp_path: Path
) -> None:
    summary, _ = carry_out()
    vectors = embed(files)
    before = digests_of(tmp_path / "audit")
    embed(files, out="audit", fresh=True)
    assert {path.name for path in (tmp_path / "audit").iterdir()} - {".lock"} == {
        *("manifest.json", "receipts", "rejects.jsonl", "shards")
    }
    with pytest.raises(OutputError, match="results of job embed, not audit"):
        carry_out(vectors=vectors)
    (mine := tmp_path / "audit" / "summary.json").write_text("of somebody who likes the name")
    with pytest.raises(OutputError, match=r"summary\.json beside an audit"):
        carry_out(vectors=vectors, fresh=True)
    embed(files, out="audit", fresh=True)
    mine.unlink()
    assert carry_out(vectors=vectors, fresh=True) == (summary, False)
    assert digests_of(tmp_path / "audit") == before


def test_an_audit_that_fails_while_it_writes_leaves_the_old_one(
    carry_out: Any, embed: Any, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    carry_out()
    before = digests_of(tmp_path / "audit")
    write(files[1], [skill(50, "rust tests")])
    embed(files)

    def full(_row: Any) -> bool:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tables, "are_hubs", full)
        with pytest.raises(OutputError, match=r"No space left on device.*what stood there was not changed"):
            carry_out()
    assert digests_of(tmp_path / "audit") == before
    carry_out()
    assert digests_of(tmp_path / "audit") != before
    assert not list(tmp_path.parent.glob(".*.drafts"))


def test_another_embedder_is_refused(carry_out: Any, embed: Any, files: list[Path], new_fake: Any) -> None:
    class OtherGraph(new_fake):  # type: ignore[misc]
        def served(self, role: Any) -> Any:
            return replace(super().served(role), graph_digest="9" * 64)

    vectors = embed(files, inference=OtherGraph())
    with pytest.raises(RepositoryError, match="wanted eeeeeeeeeeee, graph 999999999999, which made the vectors"):
        carry_out(vectors=vectors)
    model = {"embedder": {**vectors.manifest.identity.models["embedder"], "digest": "d" * 64}}
    identity = vectors.manifest.identity.model_copy(update={"job": "rank", "models": model})
    rankings = replace(vectors, manifest=vectors.manifest.model_copy(update={"identity": identity}))
    with pytest.raises(OutputError, match="rankings with embedder dddddddddddd"):
        carry_out(vectors=vectors, rankings=rankings)


def test_one_skill_is_no_catalogue_to_compare(carry_out: Any, embed: Any, tmp_path: Path) -> None:
    lonely = [write(tmp_path / "one.jsonl", [skill(1, "git")])]
    with pytest.raises(OutputError, match="got 1 skills; wanted at least two"):
        carry_out(catalogue=lonely, vectors=embed(lonely, out="one"))


def test_the_command_speaks_to_people_and_to_machines(
    world: IndexSettings, files: list[Path], wire_server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wire_server.parameters = {"skillserve_max_sequence_tokens": "48"}
    server = ["--url", wire_server.url, "--models", str(world.models)]
    catalogue = list(map(str, files))
    assert main(["score", "embed", *catalogue, "--out", str(tmp_path / "v"), *server]) == 6
    command = ["score", "audit", *catalogue, "--vectors", str(tmp_path / "v"), "--out", str(tmp_path / "a"), *server]
    capsys.readouterr()
    assert main([*command, "--duplicate-similarity", "0.8", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["status"] == "published"
    assert told == json.loads((tmp_path / "a" / "summary.json").read_text()) | {k: told[k] for k in ("status", "out")}
    assert main([*command, "--duplicate-similarity", "0.8"]) == 0
    said = capsys.readouterr().out
    assert "are copies to the letter" in said
    assert "categories of SkillRet" in said
    assert f"28 skills audited into {tmp_path / 'a'}" in said
    assert main([*command, "--json"]) == 4
    assert json.loads(capsys.readouterr().out)["error"] == "OutputError"
    assert main([*command[:-4], "--no-categories", "--fresh"]) == 0
    assert "categories" not in capsys.readouterr().out
    assert not (tmp_path / "a" / "categories.parquet").exists()
