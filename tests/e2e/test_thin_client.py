"""`pip install skillserve[client]` in an empty environment: no torch, no transformers, and it searches."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
HEAVY = {
    "torch",
    "transformers",
    "onnx",
    "onnxruntime",
    "optimum",
    "sentence-transformers",
    "nvidia-pytriton",
    "matplotlib",
}

pytestmark = pytest.mark.e2e


def test_a_thin_client_searches(server: Any, bundles: Path, tmp_path: Path) -> None:
    """The built wheel, in an environment of its own, against the running server."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    constraints = str(ROOT / "constraints.txt")
    subprocess.run([*pip, "install", "--quiet", "--constraint", constraints, f"{ROOT}[client]"], check=True)
    listed = subprocess.run([*pip, "list", "--format=json"], check=True, capture_output=True, text=True)
    names = {package["name"].lower() for package in json.loads(listed.stdout)}
    assert not names & HEAVY
    command = [str(tmp_path / "venv" / "bin" / "skillserve"), "search", "find the slow sql query", "--json"]
    command += ["--bundles", str(bundles), "--url", server.url]
    result = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path)
    assert json.loads(result.stdout)["hits"]
    refused = subprocess.run([command[0], "train", "embedder"], capture_output=True, text=True, cwd=tmp_path)
    assert refused.returncode == 3
    assert "pip install 'skillserve[training]'" in refused.stderr
