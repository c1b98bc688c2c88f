# ruff: noqa: S104 - addresses to recognise, nothing is bound
"""What is checked, found and laid out before a server runs, and what is swept after one died."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from skillserve.errors import CardError, ConfigError, MissingExtraError, RepositoryError, ServerStartError
from skillserve.graph_file import check_graph
from skillserve.settings import ServeSettings
from skillserve_serving import embedded, ownership
from skillserve_serving.addresses import check_ports, connect_address, is_loopback, resolve
from skillserve_serving.embedded import embedded_root, embedded_stub, lay_out_backends, shim_environment
from skillserve_serving.installation import find_installation
from skillserve_serving.launcher import Triton
from skillserve_serving.ownership import owned_name, sweep
from skillserve_serving.repository import read_repository
from skillserve_serving.serverlog import ServerLog
from skillserve_serving.session import _options, open_graph
from skillserve_serving.spec import ModelSpec


def test_a_repository_is_read_with_versions_cards_and_probes(repository: Path) -> None:
    models = read_repository(repository)
    assert [(model.name, model.versions, model.card.role) for model in models] == [
        ("skill_embedder", (1,), "embedder"),
        ("skill_reranker", (1,), "reranker"),
    ]


@pytest.mark.parametrize("versions", ["versions: 1", "versions: [1]", "versions : [ 1 ]  # the only one"])
def test_both_spellings_of_a_version_are_read(versions: str, repository: Path) -> None:
    config = repository / "skill_embedder" / "config.pbtxt"
    config.write_text(config.read_text().replace("versions: 1", f"\n{versions}\n"))
    assert read_repository(repository)[0].versions == (1,)


def test_hidden_folders_are_no_models(repository: Path) -> None:
    """A draft of a model, for one."""
    before = read_repository(repository)
    shutil.copytree(repository / "skill_embedder", repository / ".skill_embedder")
    assert read_repository(repository) == before


def test_what_a_repository_lacks_is_named(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="No such file or directory"):
        read_repository(tmp_path / "nowhere")
    with pytest.raises(RepositoryError, match="no model in it"):
        read_repository(repository / "skill_embedder" / "1")
    graph = repository / "skill_embedder" / "1" / "model.onnx"
    for damage in (lambda: graph.write_bytes(b""), graph.unlink):
        damage()
        with pytest.raises(RepositoryError, match=r"no 1/model\.onnx.*skillserve export"):
            read_repository(repository)
    graph.write_bytes(b"x")
    (repository / "skill_embedder" / "probe.json").unlink()
    with pytest.raises(RepositoryError, match=r"probe\.json"):
        read_repository(repository)
    (repository / "skill_embedder" / "card.json").unlink()
    with pytest.raises(CardError, match=r"card\.json"):
        read_repository(repository)


def _record(folder: Path) -> None:
    """`export.json` with what the served files are at this moment."""
    digest = hashlib.sha256((folder / "1" / "model.onnx").read_bytes()).hexdigest()
    (folder / "export.json").write_text(json.dumps({"files": {"1/model.onnx": digest, "card.json": "0" * 64}}))


def _damage(graph: Path) -> None:
    """One bit of one weight: the graph still loads, and answers wrongly."""
    content = bytearray(graph.read_bytes())
    table = next(tensor for tensor in onnx.load(graph).graph.initializer if tensor.name == "table")
    content[content.index(table.raw_data) + 2] ^= 1
    graph.write_bytes(bytes(content))


def test_a_graph_that_changed_since_its_export_is_not_served(repository: Path) -> None:
    folder = repository / "skill_embedder"
    _record(folder)
    read_repository(repository)
    _damage(folder / "1" / "model.onnx")
    with pytest.raises(RepositoryError, match="graph digest"):
        read_repository(repository)
    (folder / "export.json").write_text('{"files": []}')
    with pytest.raises(RepositoryError, match="names no files"):
        read_repository(repository)


def test_a_graph_that_is_a_link_or_too_large_is_not_served(repository: Path, tmp_path: Path) -> None:
    """Checked before a server starts, since the C++ backend checks nothing."""
    with pytest.raises(RepositoryError, match="--max-graph-gib"):
        read_repository(repository, max_graph_gib=1e-7)
    graph = repository / "skill_embedder" / "1" / "model.onnx"
    graph.rename(tmp_path / "elsewhere.onnx")
    graph.symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(RepositoryError, match="symbolic link"):
        Triton(ServeSettings(repository=repository))


def test_a_plan_of_tensorrt_is_left_to_tensorrt(repository: Path) -> None:
    folder = repository / "skill_embedder"
    config = folder / "config.pbtxt"
    config.write_text(config.read_text().replace('backend: "onnxruntime"', 'backend: "tensorrt"'))
    (folder / "1" / "model.plan").write_bytes(b"a plan")
    assert len(read_repository(repository)) == 2


def test_a_plan_is_what_its_record_says(repository: Path) -> None:
    """TensorRT runs whatever stands there, so the bytes are compared before a server starts."""
    folder = repository / "skill_embedder"
    config = folder / "config.pbtxt"
    text = config.read_text().replace('backend: "onnxruntime"', 'platform: "tensorrt_plan"')
    config.write_text(text.replace("model.onnx", "model.plan"))
    with pytest.raises(RepositoryError, match=f"skillserve plan {folder}"):
        read_repository(repository)
    plan = folder / "1" / "model.plan"
    plan.write_bytes(b"a plan")
    files = {"1/model.plan": hashlib.sha256(b"a plan").hexdigest()}
    (folder / "export.json").write_text(json.dumps({"files": files}))
    assert len(read_repository(repository)) == 2
    plan.write_bytes(b"a Plan")
    with pytest.raises(RepositoryError, match="as it was built"):
        read_repository(repository)


def test_a_graph_with_an_accelerator_is_checked_like_any_other(repository: Path) -> None:
    """ONNX Runtime's TensorRT provider is called `tensorrt`, too, and loads the graph itself."""
    folder = repository / "skill_embedder"
    config = folder / "config.pbtxt"
    accelerator = 'optimization { execution_accelerators { gpu_execution_accelerator { name: "tensorrt" } } }'
    config.write_text(f"{config.read_text()}\n{accelerator}\n")
    graph = folder / "1" / "model.onnx"
    files = {"1/model.onnx": hashlib.sha256(graph.read_bytes()).hexdigest()}
    (folder / "export.json").write_text(json.dumps({"files": files}))
    read_repository(repository)
    _damage(graph)
    with pytest.raises(RepositoryError, match="graph digest"):
        read_repository(repository)


def test_the_backend_loads_only_the_graph_that_its_configuration_names(repository: Path, toys: Any) -> None:
    folder = repository / "skill_embedder" / "1"
    digest = check_graph(folder / "model.onnx").digest()
    parameters = toys.config()["parameters"] | {"skillserve_graph_digest": {"string_value": digest}}
    spec = ModelSpec.from_config(toys.config(parameters=parameters))
    assert spec.graph_digest == digest
    open_graph(spec, folder)
    _damage(folder / "model.onnx")
    open_graph(ModelSpec.from_config(toys.config()), folder)  # nobody says what it must be
    with pytest.raises(RepositoryError, match="graph digest"):
        open_graph(spec, folder)
    parameters["skillserve_graph_digest"] = {"string_value": "sha"}
    with pytest.raises(RepositoryError, match="64 hexadecimal digits"):
        ModelSpec.from_config(toys.config(parameters=parameters))


def test_no_folder_of_a_repository_is_left_out_in_silence(repository: Path) -> None:
    (repository / ".skill_embedder.draft").mkdir()
    (repository / "notes.txt").touch()
    assert len(read_repository(repository)) == 2
    config = repository / "skill_reranker" / "config.pbtxt"
    config.write_bytes(b'name: "\xff"')
    with pytest.raises(RepositoryError, match=r"skill_reranker.*UTF-8"):
        read_repository(repository)
    config.unlink()
    with pytest.raises(RepositoryError, match=r"skill_reranker`: got no config\.pbtxt"):
        read_repository(repository)
    config.mkdir()
    with pytest.raises(RepositoryError, match=r"Is a directory.*skill_reranker/config\.pbtxt"):
        read_repository(repository)


def test_a_repository_without_an_embedder_is_served_with_a_warning(
    tmp_path: Path, toys: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    toys.write_model(tmp_path / "models", "skill_reranker")
    Triton(toys.settings(tmp_path / "models"))
    assert "no `skill_embedder`" in capsys.readouterr().err


@pytest.mark.parametrize("log", ["models", "models/skill_embedder/card.json/log"])
def test_a_log_that_cannot_be_written_is_a_setting_to_correct(log: str, repository: Path, toys: Any) -> None:
    with pytest.raises(ConfigError, match="--log-file"):
        Triton(toys.settings(repository, log_file=repository.parent / log)).start()


def test_a_temporary_folder_without_room_is_named(
    repository: Path, toys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The temporary folder vanishes between two starts, as root is refused nothing by permissions."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(ServerStartError, match=r"gone/skillserve-.*TMPDIR"):
        Triton(toys.settings(repository)).start()


def test_threads_of_the_runtime_rest_between_two_requests(toys: Any) -> None:
    options = _options(ModelSpec.from_config(toys.config()).session)
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def test_a_repository_that_follows_the_newest_version_is_refused(repository: Path) -> None:
    config = repository / "skill_embedder" / "config.pbtxt"
    config.write_text(config.read_text().replace("specific { versions: 1 }", "latest { num_versions: 1 }"))
    with pytest.raises(RepositoryError, match="without the versions"):
        read_repository(repository)


def test_a_missing_package_names_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'skillserve\[serving\]'") as caught:
        embedded_root()
    assert caught.value.exit_code == 3


def test_a_python_without_a_stub_is_told_which_ones_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_PYTHON", "3.99")
    with pytest.raises(ServerStartError, match=r"no stub for Python 3\.99; wanted Python 3\.10, 3\.11"):
        embedded_stub(embedded_root())


def test_a_python_without_a_shared_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_library_folders", lambda: iter([Path("/nonexistent")]))
    with pytest.raises(ServerStartError, match="--enable-shared"):
        shim_environment({})


def test_the_stub_sees_the_packages_of_this_python_and_no_gpu() -> None:
    """With a GPU in sight, the core reads KIND_AUTO as KIND_GPU, which our backend does not serve."""
    environment = shim_environment({"PATH": "/usr/bin", "KEPT": "yes"})
    assert environment["PATH"].split(os.pathsep) == [str(Path(sys.executable).parent), "/usr/bin"]
    assert environment["CUDA_VISIBLE_DEVICES"] == ""
    assert environment["KEPT"] == "yes"


def test_a_stub_that_cannot_load_is_found_before_the_server_waits_for_it_for_ever(tmp_path: Path) -> None:
    root = embedded_root()
    other = root / "python_backend_stubs" / "3.8" / embedded.STUB  # a Python whose library is not on this path
    with pytest.raises(ServerStartError, match="error while loading shared libraries"):
        lay_out_backends(tmp_path / "backends", root / "backends" / "python", other, {"LD_LIBRARY_PATH": ""})


def test_a_named_binary_must_be_a_server_with_backends(tmp_path: Path) -> None:
    with pytest.raises(ServerStartError, match="no program there"):
        find_installation(tmp_path / "tritonserver")
    binary = tmp_path / "bin" / "tritonserver"
    binary.parent.mkdir()
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    with pytest.raises(ServerStartError, match="neither an ONNX Runtime nor a Python backend"):
        find_installation(binary)
    own = tmp_path / "backends" / "onnxruntime" / "libtriton_onnxruntime.so"
    own.parent.mkdir(parents=True)
    own.touch()
    found = find_installation(binary)
    assert (found.kind, found.stub, found.backends) == ("named", None, tmp_path / "backends")
    assert found.prepare(tmp_path) == (tmp_path / "backends", dict(os.environ))


def test_a_server_on_the_path_comes_before_the_embedded_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_installation(None).kind == "embedded"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "tritonserver").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "tritonserver").chmod(0o755)
    (tmp_path / "backends" / "onnxruntime").mkdir(parents=True)
    (tmp_path / "backends" / "onnxruntime" / "libtriton_onnxruntime.so").touch()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    assert find_installation(None).kind == "path"


def test_the_stub_refuses_numpy_2_which_it_corrupts(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(embedded.__file__).parent / "backends" / "onnxruntime"
    monkeypatch.syspath_prepend(str(embedded_root() / "backends" / "python"))
    spec = importlib.util.spec_from_file_location("backend_model", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(np, "__version__", "2.1.0")
    with pytest.raises(ServerStartError, match="numpy below 2"):
        module.TritonPythonModel().initialize({})


def test_ports_must_differ_and_be_free(toys: Any) -> None:
    first, second = toys.free_ports(2)
    with pytest.raises(ConfigError, match="a different one for each"):
        check_ports("127.0.0.1", {"http": first, "grpc": first})
    check_ports("127.0.0.1", {"http": first, "grpc": second})
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", first))
        holder.listen()
        with pytest.raises(ServerStartError, match=f"held by process {os.getpid()}"):
            check_ports("127.0.0.1", {"http": first})


@pytest.mark.parametrize(
    ("host", "loopback", "reached"),
    [
        ("127.0.0.1", True, "127.0.0.1"),
        ("127.8.8.8", True, "127.8.8.8"),
        ("localhost", True, "127.0.0.1"),
        ("::1", True, "::1"),
        ("0.0.0.0", False, "127.0.0.1"),
        ("::", False, "::1"),
        ("10.1.2.3", False, "10.1.2.3"),
    ],
)
def test_exposure_is_recognised(host: str, loopback: bool, reached: str) -> None:  # noqa: FBT001 - a table column
    """Triton's HTTP server cannot bind a name, so names are resolved first."""
    assert is_loopback(resolve(host)) is loopback
    assert connect_address(resolve(host)) == reached


def test_a_host_without_an_address_is_a_setting_to_correct() -> None:
    with pytest.raises(ConfigError, match="wanted an address of this machine"):
        resolve("no host")


def test_only_what_dead_owners_of_this_namespace_left_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pid is reused, and another container's pid 7 is not ours: start time and namespace are compared too."""
    monkeypatch.setattr(ownership, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(ownership.tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    mine = owned_name()
    prefix, namespace, pid, start, tail = mine.split("-")
    names = {
        "living": mine + "uuid",
        "dead": f"{prefix}-{namespace}-{dead.pid}-{start}-{tail}",
        "reused": f"{prefix}-{namespace}-{pid}-{int(start) - 1}-{tail}",
        "elsewhere": f"{prefix}-{int(namespace) + 1}-{dead.pid}-{start}-{tail}",
        "foreign": "triton_python_backend_shm_region_1",
    }
    for name in names.values():
        (tmp_path / name).touch()
    folder = tmp_path / "temporary" / names["dead"]
    (folder / "backends" / "python").mkdir(parents=True)
    (folder / "tritonserver.log").touch()
    assert sorted(sweep()) == sorted([names["dead"], names["reused"], names["dead"]])
    left = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert left == {names["living"], names["elsewhere"], names["foreign"]}
    assert [path.name for path in folder.iterdir()] == ["tritonserver.log"]


LOAD = "E1123 16:23:55.684702 10945 model_lifecycle.cc:642] \"failed to load 'toy' version 1: "


@pytest.mark.parametrize(
    ("line", "model", "cause", "repository"),
    [
        (
            LOAD + 'Internal: RepositoryError: setting `x`: got y\\n\\nAt:\\n  /a/model.py(3): initialize\\n"',
            "toy",
            "Internal: RepositoryError: setting `x`: got y",
            True,
        ),
        (LOAD + 'Internal: MemoryError"', "toy", "Internal: MemoryError", False),
        (
            "/x/stub: error while loading shared libraries: libpython3.11.so.1.0: cannot open shared object file",
            None,
            "/x/stub: error while loading shared libraries: libpython3.11.so.1.0: cannot open shared object file",
            False,
        ),
        ("error: creating server: Internal - failed to load all models", None, None, False),
    ],
)
def test_the_log_tells_the_cause_on_one_line(
    line: str,
    model: str | None,
    cause: str | None,
    repository: bool,  # noqa: FBT001 - a table column
    tmp_path: Path,
) -> None:
    path = tmp_path / "log"
    path.write_text("error: of an earlier process\n")
    log = ServerLog(path)
    with path.open("a") as file:
        file.write(f'+---+\n| a |\nI1123 16:23:55.2 1 x.cc:1] "fine"\n{line}\n')
    failure = log.failure()
    assert failure is not None
    assert failure.model == model
    assert failure.cause == (cause or line.removeprefix("error: "))
    assert failure.blames_repository is repository
    assert log.tail().splitlines()[-1] == line
    assert "earlier" not in log.tail()
