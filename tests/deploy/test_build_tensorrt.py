"""`deploy/build_tensorrt.sh` up to TensorRT's door: what it refuses, with which words, and that it parses."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from ctypes.util import find_library
from importlib.util import find_spec
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent.parent / "deploy" / "build_tensorrt.sh"


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The script, with this Python as the container's."""
    command = ["/bin/bash", str(SCRIPT), *map(str, arguments)]
    environment |= {"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the script takes for an export; it looks at names only."""
    folder = tmp_path / "models" / "skill_embedder"
    folder.mkdir(parents=True)
    for name in ("export.json", "profiles.json", "config.pbtxt"):
        (folder / name).write_text("{}")
    return folder


def test_it_parses_and_stops_at_the_first_error() -> None:
    assert subprocess.run(["/bin/bash", "-n", str(SCRIPT)], capture_output=True).returncode == 0
    assert "set -euo pipefail" in SCRIPT.read_text()
    assert SCRIPT.stat().st_mode & 0o111


def test_shellcheck_finds_nothing() -> None:
    found = shutil.which("shellcheck")
    if found is None:
        pytest.skip("shellcheck is not installed")
    result = subprocess.run([found, str(SCRIPT)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "got none; wanted at least one"),
        (["--cache"], "option --cache: got nothing behind it"),
        (["--colour", "x"], "option --colour"),
        (["/nowhere"], "model folder `/nowhere`: got no export.json"),
    ],
)
def test_wrong_arguments_are_named(arguments: list[str], said: str) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert said in result.stderr
    assert result.stdout == ""


def test_its_help_names_what_it_takes() -> None:
    result = run("--help")
    assert result.returncode == 0
    assert all(word in result.stdout for word in ("--cache", "MODEL_FOLDER", "PYTHON"))


def test_an_export_without_profiles_is_told_how_to_be_made(folder: Path) -> None:
    (folder / "profiles.json").unlink()
    result = run(folder)
    assert result.returncode == 2
    assert "--runtime tensorrt" in result.stderr


def test_without_tensorrt_the_right_container_is_named_and_nothing_is_left(folder: Path) -> None:
    """For real, in an environment of its own on top of this Python's packages."""
    if find_spec("tensorrt"):
        pytest.skip("TensorRT is here")
    before = sorted(folder.parent.parent.rglob("*"))
    result = run("--cache", folder.parent.parent / "engines", folder)
    assert result.returncode == 3, result.stderr
    assert "nvcr.io/nvidia/tensorrt" in result.stderr
    assert sorted(folder.parent.parent.rglob("*")) == before


def test_behind_the_library_the_gpu_is_asked_for(folder: Path, tmp_path: Path) -> None:
    """A module that has nothing but TensorRT's name and version brings the script to `skillserve plan`."""
    if find_library("cuda"):
        pytest.skip("a driver is here")
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "tensorrt.py").write_text('__version__ = "10.13.3.9"\n')
    result = run(folder, PYTHONPATH=os.pathsep.join([str(modules), *filter(None, sys.path)]))
    assert result.returncode == 2, result.stderr
    assert "TensorRT 10.13.3.9" in result.stderr
    assert f"cache {tmp_path / 'engines'}" in result.stderr
    assert "GPU of the plan: got no libcuda.so.1" in result.stderr
