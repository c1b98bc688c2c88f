"""Profiles and configurations for TensorRT: golden files, and that every legal request has exactly one profile."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from skillserve.card import ModelCard
from skillserve.errors import RepositoryError
from skillserve.settings import ExportSettings
from skillserve.tensors import MODEL_NAMES, Role, Runtime, WeightsRole, pack
from skillserve.text import BERT_PAIR_FRAME, BERT_SINGLE_FRAME
from skillserve_export.config import Stamp, model_config, to_pbtxt
from skillserve_export.profiles import Profiles, plan_profiles, read_profiles

COMMITTED = Path(__file__).parent.parent.parent / "deploy" / "tensorrt"
ROLES: tuple[WeightsRole, ...] = get_args(WeightsRole)
RUNTIMES: list[Runtime] = ["tensorrt", "onnxruntime-tensorrt"]


def card_of(role: Role) -> ModelCard:
    """The card behind the committed configurations, with a digest of zeros."""
    embedder = role == "embedder"
    return ModelCard(
        name=f"minilm-{role}",
        role=role,
        family="bert",
        dim=384 if embedder else None,
        vocab_size=30522,
        max_tokens=256 if embedder else 512,
        max_query_tokens=254,
        pooling="mean" if embedder else None,
        normalised=embedder,
        frame=BERT_SINGLE_FRAME if embedder else BERT_PAIR_FRAME,
        score_kind="cosine" if embedder else "logit",
        base_model="sentence-transformers/all-MiniLM-L6-v2",
        base_revision="0",
        licence="Apache-2.0",
        digest="0" * 64,
    )


def profiles_of(role: Role) -> Profiles:
    """Of lengths as they are in examples/sample, a few of them."""
    embedder = role == "embedder"
    counts = {82: 30, 96: 60, 104: 60, 118: 66, 256: 108} if embedder else {432: 400, 468: 900, 512: 2_800}
    longest = card_of(role).max_tokens
    return plan_profiles(
        counts, source="few", longest=longest, max_batch_size=64, max_tokens=32_768, tuned_tokens=4_096
    )


def config_of(role: Role, runtime: Runtime) -> Any:
    """The message of one model."""
    warmup = pack([np.array([101, 7592, 102], np.int32), np.array([101, 2088, 2003, 2204, 102], np.int32)])
    stamp = Stamp(layout="padded", precision="fp16", graph_digest="0" * 64)
    settings = ExportSettings(runtime=runtime, precision="fp16")
    return model_config(card_of(role), settings, stamp, warmup, profiles_of(role))


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_configuration_equals_the_committed_one(role: Role, runtime: Runtime) -> None:
    """Golden: what an operator gets is seen in review."""
    committed = COMMITTED / runtime / MODEL_NAMES[role] / "config.pbtxt"
    assert to_pbtxt(config_of(role, runtime)) == committed.read_text()


@pytest.mark.parametrize("role", ROLES)
def test_a_plan_is_named_with_all_its_profiles(role: Role) -> None:
    """Read back through Triton's message from the committed file."""
    text = (COMMITTED / "tensorrt" / MODEL_NAMES[role] / "config.pbtxt").read_text()
    config = text_format.Parse(text, ModelConfig())
    profiles = profiles_of(role)
    assert (config.platform, config.backend, config.default_model_filename) == ("tensorrt_plan", "", "model.plan")
    [group] = config.instance_group
    assert group.kind == ModelInstanceGroup.KIND_GPU
    assert list(group.profile) == [str(i) for i in range(len(profiles.profiles))]
    assert not config.optimization.HasField("execution_accelerators")
    assert config.HasField("dynamic_batching")
    assert not any(put.allow_ragged_batch for put in config.input)
    assert config.max_batch_size == profiles.max_batch_size
    assert config.parameters["skillserve_length_buckets"].string_value == ",".join(map(str, profiles.ends))


@pytest.mark.parametrize("role", ROLES)
def test_the_provider_gets_one_profile_of_all_shapes_and_a_cache_of_this_graph(role: Role) -> None:
    text = (COMMITTED / "onnxruntime-tensorrt" / MODEL_NAMES[role] / "config.pbtxt").read_text()
    config = text_format.Parse(text, ModelConfig())
    [accelerator] = config.optimization.execution_accelerators.gpu_execution_accelerator
    options = dict(accelerator.parameters)
    longest = card_of(role).max_tokens
    assert accelerator.name == "tensorrt"
    assert config.backend == "onnxruntime"
    assert not config.instance_group[0].profile
    assert options["trt_profile_min_shapes"] == "input_ids:1x1,attention_mask:1x1"
    assert (
        options["trt_profile_opt_shapes"]
        == f"input_ids:{4096 // longest}x{longest},attention_mask:{4096 // longest}x{longest}"
    )
    assert options["trt_profile_max_shapes"] == f"input_ids:64x{longest},attention_mask:64x{longest}"
    assert options["trt_engine_cache_path"].endswith("/" + "0" * 16)
    assert "precision_mode" not in options, "the graph's own types hold"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_profile_is_warmed_up_with_its_largest_execution(runtime: Runtime) -> None:
    config = config_of("embedder", runtime)
    profiles = profiles_of("embedder")
    full = {sample.name: sample for sample in config.model_warmup}
    assert set(full) == {"texts", *(f"bucket_{end}" for end in profiles.ends)}
    for profile in profiles.profiles:
        rows, end = profile.max
        sample = full[f"bucket_{end}"]
        assert sample.batch_size == rows
        assert {name: list(put.dims) for name, put in sample.inputs.items()} == {
            "input_ids": [end],
            "attention_mask": [end],
        }
        assert sample.inputs["attention_mask"].input_data_file == f"attention_mask_{end}"


LENGTHS = st.dictionaries(st.integers(1, 60), st.integers(1, 9), min_size=1, max_size=20)


@given(LENGTHS, st.integers(0, 6), st.integers(1, 40), st.integers(1, 3_000), st.integers(1, 3_000))
def test_every_legal_execution_has_exactly_one_profile(
    counts: dict[int, int], num_buckets: int, rows: int, max_tokens: int, tuned_tokens: int
) -> None:
    """Of any length up to the card's, of any number of rows that Triton may join."""
    profiles = plan_profiles(
        counts,
        source="random",
        longest=64,
        num_buckets=num_buckets,
        max_batch_size=rows,
        max_tokens=max_tokens,
        tuned_tokens=tuned_tokens,
    )
    most = profiles.max_batch_size
    assert 1 <= most <= rows
    assert most * 64 <= max_tokens or most == 1
    for length in range(1, 65):
        fitting = [each for each in profiles.profiles if each.min[1] <= length <= each.max[1]]
        assert [(each.min[0], each.max[0]) for each in fitting] == [(1, most)]
    for profile in profiles.profiles:
        assert all(low <= best <= high for low, best, high in zip(profile.min, profile.opt, profile.max, strict=True))
        assert profile.opt[0] * profile.opt[1] <= tuned_tokens or profile.opt[0] == 1
    assert len(profiles.profiles) <= (num_buckets or 8)
    assert profiles.ends in {choice.ends for choice in profiles.choices}


def test_profiles_survive_their_file(tmp_path: Path) -> None:
    profiles = profiles_of("reranker")
    (tmp_path / "profiles.json").write_text(profiles.model_dump_json())
    assert read_profiles(tmp_path) == profiles


@pytest.mark.parametrize("content", [None, "{}", '{"schema_version": 2}'])
def test_a_folder_without_profiles_names_the_export_that_writes_them(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "profiles.json").write_text(content)
    with pytest.raises(RepositoryError, match="--runtime tensorrt"):
        read_profiles(tmp_path)
