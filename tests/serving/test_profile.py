"""What `serve --profile` sets, what it leaves alone, and that a tuned server runs so while its repository stays."""

from __future__ import annotations

import errno
import json
import os
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from skillserve import machine
from skillserve.config import load_settings
from skillserve.errors import ConfigError, ContractError, RepositoryError, ServerStartError
from skillserve.recommendation import (
    RECOMMENDATION_FILE,
    Advice,
    Asking,
    Machine,
    Recommendation,
    Recommended,
    ServedAs,
    Tuning,
    read_recommendation,
    write_recommendation,
)
from skillserve.settings import ServeSettings
from skillserve_serving import tuning
from skillserve_serving.launcher import Triton, running_server
from skillserve_serving.profile import built_in, built_in_for_gpus, tuned
from skillserve_serving.repository import read_repository
from skillserve_serving.tuning import lay_out_model, tune

ASKING = Asking(candidates=50, rerank_depth=10, max_request_tokens=4_096)


def recommended(**changes: Any) -> Recommendation:
    """One for the toy models, measured here."""
    advice = Advice(serve=Tuning(num_instances=3, num_threads=1), asking=ASKING, figures={"p90_ms": 3.0})
    models = {
        "skill_embedder": ServedAs(digest="e" * 64, precision=""),
        "skill_reranker": ServedAs(digest="f" * 64, precision=""),
    }
    part = Recommended(repository="models", models=changes.pop("models", models), profiles={"latency": advice})
    facts: dict[str, Any] = {
        "date": "2026-01-31",
        "skillserve": "0.1.0",
        "commit": "none",
        "server": "Triton 2.51.0 (embedded)",
        "machine": Machine(processor=machine.processor(), num_cores=machine.num_cores()),
        "num_clients": 4,
        "quality_loss": 0.01,
        "recommended": (part,),
    }
    return Recommendation(**facts | changes)


def settings(repository: Path, **given: Any) -> ServeSettings:
    """As a command line gives them."""
    flags = {f"serve.{name}": value for name, value in {"repository": repository, **given}.items()}
    return load_settings(flags=flags, environ={}).serve


@pytest.mark.parametrize("cores", [1, 2, 3, 4, 6, 16, 64])
def test_the_defaults_never_use_more_threads_than_there_are_cores(cores: int) -> None:
    lone, many = built_in("latency", cores), built_in("throughput", cores)
    assert (lone.num_instances, lone.num_threads) == (1, cores)
    assert many.num_instances is not None
    assert many.num_threads is not None
    assert cores / 2 < many.num_instances * many.num_threads <= cores


def test_without_a_file_the_number_of_cores_decides_and_that_is_said(repository: Path) -> None:
    found = tuned(settings(repository, profile="throughput"), read_repository(repository))
    assert found.tuning == built_in("throughput", machine.num_cores())
    assert "nothing was measured" in found.told[0]


@pytest.mark.parametrize(
    ("kind", "gpus", "on_gpus"),
    [("KIND_AUTO", 2, True), ("KIND_GPU", 2, True), ("KIND_CPU", 2, False), ("KIND_AUTO", 0, False)],
)
def test_where_there_are_gpus_for_a_model_they_decide_and_not_the_cores(
    repository: Path, kind: str, gpus: int, *, on_gpus: bool
) -> None:
    """Triton counts instances for each GPU: as many as there are cores for would each hold the weights."""
    for file in repository.glob("*/config.pbtxt"):
        config = text_format.Parse(file.read_text(), ModelConfig())
        del config.instance_group[:]
        config.instance_group.add(count=1, kind=kind)
        file.write_text(text_format.MessageToString(config))
    found = tuned(settings(repository, profile="throughput"), read_repository(repository), gpus=gpus)
    assert found.tuning == (built_in_for_gpus() if on_gpus else built_in("throughput", machine.num_cores()))
    assert ("not verified on hardware" in found.told[0]) == on_gpus


def test_what_a_user_set_is_not_touched_in_whichever_way_it_was_set(repository: Path, tmp_path: Path) -> None:
    path = tmp_path / "measured.json"
    write_recommendation(path, recommended())
    given = {"repository": repository, "profile": "latency", "recommendation": path}
    flags = {f"serve.{name}": value for name, value in given.items()}
    serve = load_settings(flags=flags, environ={"SKILLSERVE_SERVE_NUM_THREADS": "0"}).serve
    found = tuned(serve, read_repository(repository))
    assert found.tuning == Tuning(num_instances=3, num_threads=0)
    assert "num_instances 3" in found.told[0]
    assert "--rerank-depth 10" in found.told[1]
    assert "set: num_threads 0" in found.told[2]


def test_a_recommendation_in_the_repository_is_found_and_one_of_another_processor_is_warned_of(
    repository: Path,
) -> None:
    elsewhere = Machine(processor="Abacus 9000", num_cores=machine.num_cores())
    write_recommendation(repository / RECOMMENDATION_FILE, recommended(machine=elsewhere))
    found = tuned(settings(repository, profile="latency"), read_repository(repository))
    assert found.tuning.num_instances == 3
    assert "Abacus 9000" in found.told[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"models": {"skill_embedder": ServedAs(digest="a" * 64, precision="int8")}}, "skill_embedder aaaaaaaaaaaa"),
        ({"machine": Machine(processor="any", num_cores=machine.num_cores() + 1)}, "counted in cores"),
    ],
)
def test_one_of_other_models_or_cores_is_refused_if_named_and_passed_over_aloud_if_found(
    repository: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    path = tmp_path / "other.json"
    write_recommendation(path, recommended(**changes))
    models = read_repository(repository)
    with pytest.raises(ContractError, match=said):
        tuned(settings(repository, profile="latency", recommendation=path), models)
    path.rename(repository / RECOMMENDATION_FILE)
    found = tuned(settings(repository, profile="latency"), models)
    assert found.tuning == built_in("latency", machine.num_cores())
    assert "passed over" in found.told[0]
    assert said in found.told[0]


def test_a_profile_that_was_not_measured_a_file_that_is_none_and_one_without_a_profile_are_refused(
    repository: Path, tmp_path: Path
) -> None:
    models, path = read_repository(repository), tmp_path / "some.json"
    write_recommendation(path, recommended())
    with pytest.raises(ConfigError, match="no profile `throughput`"):
        tuned(settings(repository, profile="throughput", recommendation=path), models)
    with pytest.raises(ConfigError, match="without a profile"):
        tuned(settings(repository, recommendation=path), models)
    for content in ("{}", "no JSON", json.dumps(recommended().model_dump(mode="json") | {"version": 2})):
        path.write_text(content)
        with pytest.raises(ConfigError, match="of version 1"):
            read_recommendation(path)
    with pytest.raises(ConfigError, match="--profile"):
        settings(repository, profile="speed")


def test_a_plan_keeps_the_batch_that_it_was_built_for() -> None:
    plan = ModelConfig(name="m", platform="tensorrt_plan", max_batch_size=8)
    tune(plan, Tuning(num_threads=2, max_batch_size=4))
    assert (plan.max_batch_size, len(plan.parameters)) == (4, 0)
    with pytest.raises(RepositoryError, match="plan that was built for 4"):
        tune(plan, Tuning(max_batch_size=8))


def test_turns_are_set_only_where_the_export_set_them() -> None:
    """It leaves them out where they only cost time, such as for late interaction."""
    model = ModelConfig(name="m")
    tune(model, Tuning(execution_tokens=64))
    assert not model.parameters
    model.parameters["skillserve_execution_tokens"].string_value = "2048"
    tune(model, Tuning(execution_tokens=64))
    assert model.parameters["skillserve_execution_tokens"].string_value == "64"


def test_a_model_that_finds_no_room_stays_as_it_was_laid_out(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, target = read_repository(repository)[0], tmp_path / "served" / "skill_embedder"
    lay_out_model(model, target, Tuning(num_threads=1))
    before = (target / "config.pbtxt").read_text()

    def full(_path: Path, _content: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(tuning, "write_text", full)
        with pytest.raises(OSError, match="No space left"):
            lay_out_model(model, target, Tuning(num_threads=2))
    assert (target / "config.pbtxt").read_text() == before
    assert [each.name for each in target.parent.iterdir()] == [target.name]
    lay_out_model(model, target, Tuning(num_threads=2))
    assert (target / "config.pbtxt").read_text() != before


def test_a_repair_that_finds_no_room_fails_as_what_the_supervisor_knows(repository: Path, toys: Any) -> None:
    server = Triton(toys.settings(repository).model_copy(update={"num_threads": 1}))
    folder = server.log_path.parent
    folder.write_text("no folder can be made in a file")
    try:
        with pytest.raises(ServerStartError, match="what the server needs of this machine"):
            server.reload("skill_embedder")
    finally:
        folder.unlink()


def test_a_tuned_server_runs_so_also_after_a_reload_and_its_repository_stays(repository: Path, toys: Any) -> None:
    path = repository / "skill_embedder" / "config.pbtxt"
    before = path.read_bytes()
    changes = {"num_instances": 2, "num_threads": 1, "max_batch_size": 8, "max_queue_delay_microseconds": 300}
    with running_server(toys.settings(repository).model_copy(update=changes)) as server:
        assert server.tuning.changes == changes
        assert server.reload("skill_embedder").state == "green"
        for name in ("skill_embedder", "skill_reranker"):
            with urllib.request.urlopen(f"{server.http_url}/v2/models/{name}/config", timeout=10) as answer:  # noqa: S310 -- loopback
                config = json.load(answer)
            assert config["instance_group"][0]["count"] == 2
            assert config["parameters"]["intra_op_thread_count"]["string_value"] == "1"
            assert config["max_batch_size"] == 8
            assert config["dynamic_batching"]["max_queue_delay_microseconds"] == 300
        assert path.read_bytes() == before
        folder = server.log_path.parent
    assert not folder.exists()
