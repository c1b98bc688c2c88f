"""Model folders: the golden configuration, what is written, and that a failed gate writes nothing."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from skillserve.card import ModelCard, ScoreKind, read_card, write_card
from skillserve.errors import CardError, ContractError, ParityError, RepositoryError
from skillserve.max_sim import Interaction
from skillserve.probe import read_probe
from skillserve.publish import sha256_of
from skillserve.settings import ExportSettings
from skillserve.tensors import MODEL_NAMES, Layout, Role, pack, weights_role
from skillserve.text import BERT_LATE_FRAME, BERT_PAIR_FRAME, BERT_SINGLE_FRAME
from skillserve_export import folder, parity
from skillserve_export.config import Stamp, TokenRows, model_config, to_pbtxt
from skillserve_export.families import family_of
from skillserve_export.parity import PackedGraph
from skillserve_export.repository import export_model, verify_model
from skillserve_export.sample import load_sample

COMMITTED = Path(__file__).parent.parent.parent / "model_repository"


def minilm_card(role: Role) -> ModelCard:
    """The card behind the committed configurations; their digest is zero, the export stamps the real one."""
    embedder, late = role == "embedder", role == "token_embedder"
    return ModelCard(
        name=f"minilm-{role}",
        role=weights_role(role),
        family="late-bert" if late else "bert",
        dim=384 if embedder else None,
        vocab_size=30522,
        max_tokens=256 if embedder else 512,
        max_query_tokens=254,
        pooling="mean" if embedder else None,
        normalised=embedder,
        frame=BERT_SINGLE_FRAME if embedder else BERT_LATE_FRAME if late else BERT_PAIR_FRAME,
        score_kind="cosine" if embedder else "max_sim" if late else "logit",
        base_model="sentence-transformers/all-MiniLM-L6-v2",
        base_revision="0",
        licence="Apache-2.0",
        digest="0" * 64,
    )


WARMUP = pack([np.array([101, 7592, 102], np.int32), np.array([101, 2088, 2003, 2204, 102], np.int32)])
MINILM_TOKENS = TokenRows(384, Interaction(window=32, scale=20.0))
"""What a reranker of all-MiniLM-L6-v2's width by late interaction gives, as it is trained by default."""


def stamp(layout: Layout, tokens: TokenRows | None = None) -> Stamp:
    """Of no graph: zero, like the cards' digest."""
    return Stamp(layout=layout, precision="fp32", graph_digest="0" * 64, tokens=tokens)


@pytest.mark.parametrize("role", get_args(Role))
def test_the_configuration_equals_the_committed_one(role: Role) -> None:
    """Golden: a change of config.pbtxt is a change of the wire, and must be seen in review."""
    tokens = MINILM_TOKENS if role == "token_embedder" else None
    config = model_config(minilm_card(role), ExportSettings(), stamp("packed", tokens), WARMUP)
    assert to_pbtxt(config) == (COMMITTED / MODEL_NAMES[role] / "config.pbtxt").read_text()


def test_a_committed_configuration_says_what_the_server_needs() -> None:
    """Read back through Triton's message, independent of how the text looks."""
    text = (COMMITTED / "skill_embedder" / "config.pbtxt").read_text()
    config = text_format.Parse(text, ModelConfig())
    assert [put.allow_ragged_batch for put in config.input] == [True, True]
    assert list(config.output[0].dims) == [-1, 384]
    assert [(list(b.target_name), list(b.source_input)) for b in config.batch_input] == [
        (["tok_end"], ["input_ids"]),
        (["seq_end"], ["seq_lens"]),
    ]
    assert list(config.batch_output[0].target_name) == ["embedding"]
    assert list(config.version_policy.specific.versions) == [1]
    assert config.instance_group[0].kind == 0  # KIND_AUTO


def test_a_token_embedder_brings_rows_of_tokens_home_and_says_what_scores_are_made_with() -> None:
    """It reads no text twice, whatever a turn holds, so that it is computed in turns as an embedder is."""
    config = text_format.Parse((COMMITTED / "skill_token_embedder" / "config.pbtxt").read_text(), ModelConfig())
    assert (config.output[0].name, list(config.output[0].dims)) == ("token_embedding", [-1, 384])
    assert list(config.batch_output[0].source_input) == ["input_ids"]
    found = {key: value.string_value for key, value in config.parameters.items()}
    wanted = {"skillserve_late_window": "32", "skillserve_late_scale": "20.0", "skillserve_execution_tokens": "2048"}
    assert found.items() >= wanted.items()


@pytest.mark.parametrize(
    ("layout", "changes", "score_kind", "stamped"),
    [
        ("packed", {}, "logit", "2048"),
        ("packed", {"execution_tokens": 512}, "logit", "512"),
        ("packed", {"attention_core": "gather"}, "logit", None),
        ("packed", {}, "max_sim", None),
        ("padded", {}, "logit", None),
    ],
)
def test_a_packed_graph_on_cpus_computes_so_many_tokens_at_once(
    layout: Layout, changes: dict[str, Any], score_kind: ScoreKind, stamped: str | None
) -> None:
    """Late interaction would read a request again in each turn, and a GPU wants all that there is."""
    card = minilm_card("reranker").model_copy(update={"score_kind": score_kind})
    config = model_config(card, ExportSettings(**changes), stamp(layout), WARMUP)
    found = {key: value.string_value for key, value in config.parameters.items()}
    assert found.get("skillserve_execution_tokens") == stamped


def test_padded_configurations_batch_ordinary_tensors() -> None:
    """Rows `[B, D]`, and `[B]` through an empty reshape; nothing ragged."""
    settings = ExportSettings()
    embedder = model_config(minilm_card("embedder"), settings, stamp("padded"), WARMUP)
    reranker = model_config(minilm_card("reranker"), settings, stamp("padded"), WARMUP)
    assert list(embedder.output[0].dims) == [384]
    assert list(reranker.output[0].dims) == [1]
    assert reranker.output[0].HasField("reshape")
    assert not any(put.allow_ragged_batch for put in embedder.input)
    assert not embedder.batch_input
    assert not embedder.batch_output


@pytest.fixture(scope="module")
def exported(tiny_embedder: Path, sample_data: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportSettings:
    """A repository with one exported model."""
    settings = ExportSettings(repository=tmp_path_factory.mktemp("repository"))
    export_model(tiny_embedder, settings, data=sample_data)
    return settings


def test_a_model_folder_is_complete(exported: ExportSettings, tiny_embedder: Path) -> None:
    """Everything a server and a client need, under the digest of the weights."""
    folder = exported.repository / "skill_embedder"
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {
        "config.pbtxt",
        "card.json",
        "tokenizer.json",
        "probe.json",
        "export.json",
        "warmup/input_ids",
        "warmup/seq_lens",
        "1/model.onnx",
    }
    card = read_card(tiny_embedder)
    assert read_card(folder).digest == card.digest
    assert card.digest in (folder / "config.pbtxt").read_text()
    record = json.loads((folder / "export.json").read_text())
    assert record["attention_core"] == "loop"
    assert all(check["passed"] for check in record["checks"])


def test_the_configuration_names_the_graph_beside_it(exported: ExportSettings) -> None:
    """By the digest that the backend compares and by its precision."""
    folder = exported.repository / "skill_embedder"
    config = text_format.Parse((folder / "config.pbtxt").read_text(), ModelConfig())
    digest = hashlib.sha256(f"model.onnx:{sha256_of(folder / '1' / 'model.onnx')}\n".encode()).hexdigest()
    assert config.parameters["skillserve_graph_digest"].string_value == digest
    assert config.parameters["skillserve_precision"].string_value == "fp32"


def test_the_probe_is_answered_by_the_graph(exported: ExportSettings) -> None:
    """And by nothing else: other numbers are told apart."""
    folder = exported.repository / "skill_embedder"
    probe = read_probe(folder)
    lens = probe.seq_lens
    assert len(lens) > 1
    assert max(lens) < 64  # it is asked every few seconds beside the server's work
    answer = PackedGraph(folder / "1" / "model.onnx").run_raw(probe.input_ids, lens, [sum(lens)], [len(lens)])
    assert probe.differs_by(answer) < 1e-5
    assert probe.differs_by(answer + 0.1) > probe.tolerance
    assert probe.differs_by(np.full_like(answer, np.nan)) == np.inf


def test_it_is_warmed_up_with_whole_texts(exported: ExportSettings, tiny_embedder: Path, sample_data: Path) -> None:
    """And not with the probe's few words: memory is to be there before the first request."""
    folder = exported.repository / "skill_embedder"
    ids, lens = (np.fromfile(folder / "warmup" / name, np.int32) for name in ("input_ids", "seq_lens"))
    sequences = load_sample(read_card(tiny_embedder), tiny_embedder, sample_data).sequences
    assert sorted(map(len, sequences))[: len(lens)] == sorted(lens.tolist())
    assert any(np.array_equal(ids[: lens[0]], sequence) for sequence in sequences)


def test_verify_passes_what_export_wrote(exported: ExportSettings, tiny_embedder: Path, sample_data: Path) -> None:
    """And writes nothing."""
    before = {path: path.stat().st_mtime_ns for path in exported.repository.rglob("*")}
    verified = verify_model(tiny_embedder, exported, data=sample_data)
    assert all(check.passed for check in verified.checks)
    assert {path: path.stat().st_mtime_ns for path in exported.repository.rglob("*")} == before


def test_verify_refuses_a_graph_of_other_weights(exported: ExportSettings, tiny_cls_embedder: Path) -> None:
    """The error names both digests and the command that mends it."""
    with pytest.raises(RepositoryError, match="skillserve export"):
        verify_model(tiny_cls_embedder, exported)


@pytest.mark.parametrize("name", ["1/model.onnx", "tokenizer.json", "config.pbtxt", "probe.json", "card.json"])
def test_verify_refuses_a_folder_that_changed(tiny_embedder: Path, tmp_path: Path, name: str) -> None:
    """A flipped byte in anything that servers or clients read is found before anything is loaded."""
    settings = ExportSettings(repository=tmp_path)
    export_model(tiny_embedder, settings)
    victim = tmp_path / "skill_embedder" / name
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(bytes(content))
    with pytest.raises(RepositoryError, match=name):
        verify_model(tiny_embedder, settings)


def test_verify_refuses_a_graph_behind_a_link(tiny_embedder: Path, tmp_path: Path) -> None:
    """The right content, but under a name that somebody else may change."""
    settings = ExportSettings(repository=tmp_path / "models")
    export_model(tiny_embedder, settings)
    graph = settings.repository / "skill_embedder" / "1" / "model.onnx"
    graph.rename(tmp_path / "elsewhere.onnx")
    graph.symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(RepositoryError, match="symbolic link"):
        verify_model(tiny_embedder, settings)


def test_a_graph_beyond_the_limit_is_not_written(tiny_embedder: Path, tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="--max-graph-gib"):
        export_model(tiny_embedder, ExportSettings(repository=tmp_path / "models", max_graph_gib=1e-6))
    assert not (tmp_path / "models" / "skill_embedder").exists()


def test_verify_knows_the_padded_layout(tiny_reranker: Path, tmp_path: Path) -> None:
    """The layout is read from the record, not assumed."""
    settings = ExportSettings(repository=tmp_path)
    export_model(tiny_reranker, settings, layout="padded")
    assert all(check.passed for check in verify_model(tiny_reranker, settings).checks)


@pytest.mark.parametrize("change", [{"vocab_size": 115}, {"max_tokens": 65}, {"dim": 384}, {"pooling": "last"}])
def test_a_card_that_promises_too_much_is_refused(
    tiny_embedder: Path, tmp_path: Path, change: dict[str, object]
) -> None:
    """Ids and positions that the model does not have would get past the guard and fail a whole batch."""
    for path in tiny_embedder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    write_card(tmp_path, read_card(tiny_embedder).model_copy(update=change))
    with pytest.raises(CardError, match=next(iter(change))):
        export_model(tmp_path, ExportSettings(repository=tmp_path / "repository"))
    assert not (tmp_path / "repository").exists()


def test_a_failed_gate_writes_nothing(tiny_embedder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an impossible tolerance the gate fails, and the model that stands in the repository stays."""
    settings = ExportSettings(repository=tmp_path)
    export_model(tiny_embedder, settings)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(parity, "VALUE_TOLERANCE", 0.0)
    with pytest.raises(ParityError, match="values"):
        export_model(tiny_embedder, settings)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_full_disk_leaves_the_old_model(tiny_embedder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is swapped whole or not at all."""
    settings = ExportSettings(repository=tmp_path)
    export_model(tiny_embedder, settings)
    before = sorted(tmp_path.rglob("*"))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder, "_write_warmup", full)
    with pytest.raises(OSError, match="No space left"):
        export_model(tiny_embedder, settings)
    assert sorted(tmp_path.rglob("*")) == before


def test_weights_that_do_not_match_their_card_are_refused(tiny_embedder: Path, tmp_path: Path) -> None:
    """A card is bound to its weights by the digest."""
    for path in tiny_embedder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "tokenizer.json").write_text((tmp_path / "tokenizer.json").read_text() + "\n")
    with pytest.raises(CardError, match="content with digest"):
        export_model(tmp_path, ExportSettings(repository=tmp_path / "repository"))
    assert not (tmp_path / "repository").exists()


def test_an_unknown_architecture_is_refused_with_the_known_ones(tiny_embedder: Path, tmp_path: Path) -> None:
    """The family comes from the card."""
    for path in tiny_embedder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    card = write_card(tmp_path, read_card(tiny_embedder).model_copy(update={"family": "mamba"}))
    with pytest.raises(ContractError, match="mamba; wanted one of bert, late-bert, modernbert, qwen3, xlm-roberta"):
        family_of(card)
