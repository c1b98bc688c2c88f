"""Plans up to TensorRT's door: which calls reach it, when it is not asked at all, and what is published.

What stands behind the door is `RecordingTensorRT`, which only writes calls down. Exports, digests, cache, records and
publications are real.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from skillserve.cli import main
from skillserve.errors import ContractError, MissingExtraError, RepositoryError, UsageError
from skillserve.publish import sha256_of
from skillserve.settings import ExportSettings, PlanSettings
from skillserve_export.plan import build as build_module
from skillserve_export.plan.build import Built, build_plan
from skillserve_export.plan.cache import EngineCache
from skillserve_export.plan.door import Options, TensorRT
from skillserve_export.plan.gpu import Gpu, first_gpu
from skillserve_export.plan.identity import EngineRecord, PlanIdentity
from skillserve_export.profiles import read_profiles
from skillserve_export.record import read_record
from skillserve_export.repository import export_model, verify_model

GPU = Gpu("NVIDIA H200", "9.0")
OTHER = Gpu("NVIDIA L4", "8.9")


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The stand-in, where `import tensorrt` finds it."""
    spec = importlib.util.spec_from_file_location("recording_tensorrt", Path(__file__).parent / "recording_tensorrt.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    stand_in = module.RecordingTensorRT()
    monkeypatch.setitem(sys.modules, "tensorrt", stand_in)
    return stand_in


@pytest.fixture(scope="module")
def exported(tiny_embedder: Path, sample_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder for TensorRT, in half precision, without its plan."""
    repository = tmp_path_factory.mktemp("exported")
    settings = ExportSettings(repository=repository, runtime="tensorrt", precision="fp16", gate_requests=6)
    return export_model(tiny_embedder, settings, data=sample_data, layout="padded").folder


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """One to build in."""
    return Path(shutil.copytree(exported, tmp_path / "models" / exported.name))


def built(folder: Path, gpu: Gpu = GPU, **changes: float) -> Built:
    """With a cache beside the repository."""
    settings = PlanSettings.model_validate({"cache": folder.parent.parent / "engines", **changes})
    return build_plan(folder, settings, TensorRT(), gpu)


def contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in folder.rglob("*") if path.is_file()}


def test_the_library_is_asked_for_the_graphs_own_types_and_all_profiles(folder: Path, recording: Any) -> None:
    built(folder, workspace_gib=2, optimization_level=5)
    profiles = read_profiles(folder)
    shapes = [
        ("set_shape", (name, profile.min, profile.opt, profile.max))
        for profile in profiles.profiles
        for name in ("input_ids", "attention_mask")
    ]
    assert recording.calls[:4] == [
        ("create_network", (1,)),
        ("parse_from_file", (str(folder / "1" / "model.onnx"),)),
        ("set_memory_pool_limit", ("workspace", 2 << 30)),
        ("clear_flag", ("tf32",)),
    ]
    assert [call for call in recording.calls if call[0] == "set_shape"] == shapes
    assert recording.names().count("add_optimization_profile") == len(profiles.profiles)
    assert recording.calls[-2:] == [("set_timing_cache", (b"", False)), ("build_serialized_network", (5,))]


def test_a_plan_joins_its_folder_and_changes_nothing_else(folder: Path, recording: Any) -> None:  # noqa: ARG001
    before = contents(folder)
    result = built(folder)
    after = contents(folder)
    assert after.keys() - before.keys() == {"1/model.plan", "engine.json"}
    assert {name for name in before if before[name] != after[name]} == {"export.json"}
    assert read_record(folder).files["1/model.plan"] == result.record.plan_sha256 == after["1/model.plan"]
    engine = EngineRecord.model_validate_json((folder / "engine.json").read_bytes())
    assert engine == result.record
    assert (engine.identity.gpu, engine.identity.tensorrt) == ("NVIDIA H200", "10.13.3.9")


def test_the_graph_beside_a_plan_is_still_verified(tiny_embedder: Path, folder: Path, recording: Any) -> None:  # noqa: ARG001
    built(folder)
    settings = ExportSettings(repository=folder.parent)
    assert all(check.passed for check in verify_model(tiny_embedder, settings, data=None).checks)


def test_the_same_plan_is_not_built_twice(folder: Path, recording: Any) -> None:
    first = built(folder)
    recording.calls.clear()
    again = built(folder)
    assert recording.calls == []
    assert not first.reused
    assert again.reused
    assert again.record == first.record


def test_whatever_a_plan_depends_on_asks_for_another_one(
    folder: Path, recording: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [built(folder).record.key, built(folder, OTHER).record.key, built(folder, optimization_level=4).record.key]
    keys.append(built(folder, workspace_gib=1).record.key)
    monkeypatch.setattr(type(recording), "__version__", "11.4.1.2")
    keys.append(built(folder).record.key)
    assert len(set(keys)) == len(keys)
    assert recording.names().count("build_serialized_network") == len(keys)


def test_the_key_covers_every_field_and_no_order(folder: Path, recording: Any) -> None:  # noqa: ARG001
    """A field that somebody adds later cannot be forgotten: all of them are changed here, one after the other."""
    identity = built(folder).record.identity
    last = identity.profiles[-1]
    others: dict[str, object] = {
        "schema_version": 2,
        "graph_digest": "0" * 64,
        "inputs": ("input_ids",),
        "profiles": (*identity.profiles[:-1], last.model_copy(update={"opt": (1, last.opt[1])})),
        "tensorrt": "11.4.1.2",
        "gpu": OTHER.name,
        "compute_capability": OTHER.compute_capability,
        "workspace_bytes": 1,
        "optimization_level": 0,
    }
    assert others.keys() == set(PlanIdentity.model_fields)
    keys = {identity.model_copy(update={name: value}).key for name, value in others.items()}
    assert len(keys | {identity.key}) == len(others) + 1
    assert PlanIdentity.model_validate(dict(reversed(identity.model_dump().items()))).key == identity.key


@pytest.mark.parametrize("damage", ["plan", "record", "gone"])
def test_a_damaged_plan_of_the_cache_is_built_again(damage: str, folder: Path, recording: Any) -> None:
    first = built(folder)
    kept = EngineCache(folder.parent.parent / "engines").folder_of(first.record.identity)
    if damage == "gone":
        (kept / "model.plan").unlink()
    else:
        victim = kept / ("model.plan" if damage == "plan" else "engine.json")
        victim.write_bytes(victim.read_bytes()[:-9])
    assert not built(folder).reused
    assert recording.names().count("build_serialized_network") == 2
    assert sha256_of(folder / "1" / "model.plan") == read_record(folder).files["1/model.plan"]


def test_timings_serve_the_next_build_on_the_same_gpu_only(folder: Path, recording: Any) -> None:
    built(folder)
    built(folder, optimization_level=4)
    built(folder, OTHER)
    begun = [arguments[0] for name, arguments in recording.calls if name == "set_timing_cache"]
    assert begun == [b"", b"+", b""]


def test_timings_that_the_library_refuses_are_left_behind(folder: Path, recording: Any) -> None:
    built(folder)
    recording.calls.clear()
    recording.known_timings = False
    built(folder, optimization_level=4)
    assert [arguments for name, arguments in recording.calls if name == "set_timing_cache"] == [
        (b"+", False),
        (b"", False),
    ]


@pytest.mark.parametrize("fault", ["parser", "builder"])
def test_a_graph_that_the_library_refuses_leaves_everything_as_it_was(fault: str, folder: Path, recording: Any) -> None:
    before = contents(folder)
    if fault == "parser":
        recording.faults = ["node 7: no such operator"]
    else:
        recording.builds_nothing = True
    with pytest.raises(ContractError, match="node 7" if fault == "parser" else "no plan"):
        built(folder)
    assert contents(folder) == before
    assert not (folder.parent.parent / "engines" / "plans").exists()


def test_a_full_disk_leaves_the_old_folder(folder: Path, recording: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    before = contents(folder)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build_module, "digests", full)
    with pytest.raises(OSError, match="No space left"):
        built(folder)
    assert contents(folder) == before


def test_a_folder_that_changed_since_its_export_is_not_built(folder: Path, recording: Any) -> None:
    (folder / "profiles.json").write_text((folder / "profiles.json").read_text() + "\n")
    with pytest.raises(RepositoryError, match=r"profiles\.json"):
        built(folder)
    assert recording.calls == []


def test_an_export_for_another_runtime_is_told_which_one_it_needs(
    tiny_embedder: Path,
    tmp_path: Path,
    recording: Any,  # noqa: ARG001
) -> None:
    folder = export_model(tiny_embedder, ExportSettings(repository=tmp_path / "models"), layout="padded").folder
    with pytest.raises(RepositoryError, match="--runtime tensorrt"):
        built(folder)


def test_without_the_library_the_container_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For real: this installation has no TensorRT, like any other outside of NVIDIA's containers."""
    if importlib.util.find_spec("tensorrt"):
        pytest.skip("TensorRT is here")
    assert main(["plan", str(folder), "--json"]) == MissingExtraError.exit_code
    told = json.loads(capsys.readouterr().out)
    assert told["error"] == "MissingExtraError"
    assert "deploy/build_tensorrt.sh" in told["fix"]


def test_without_a_driver_the_gpu_is_missed_by_name() -> None:
    with pytest.raises(UsageError, match=r"libcuda-that-is-nowhere.*--gpus"):
        first_gpu("libcuda-that-is-nowhere.so.1")


def test_a_library_that_breaks_on_import_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where its shared libraries are missing."""
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingExtraError, match="no module that loads"):
        TensorRT()


def test_a_plan_needs_no_package_but_the_bases() -> None:
    """What stands in NVIDIA's container: neither torch nor ONNX."""
    code = (
        "import sys; import skillserve_export.plan.cli;"
        "print('LOADED', sorted({'torch', 'onnx', 'onnxruntime', 'tritonclient', 'tokenizers'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "LOADED []" in result.stdout


def test_a_profile_that_the_library_refuses_is_named(
    folder: Path, recording: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = type(recording.Builder(None).create_builder_config())
    monkeypatch.setattr(kind, "add_optimization_profile", lambda *_: -1)
    profiles = read_profiles(folder)
    options = Options(workspace_bytes=1, optimization_level=0)
    with pytest.raises(ContractError, match="a profile that it refuses"):
        TensorRT().build(folder / "1" / "model.onnx", ["input_ids"], profiles, options, b"")
