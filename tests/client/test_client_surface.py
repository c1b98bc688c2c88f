"""What the room promises to the outside, frozen."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import skillserve_client

SURFACE = [
    "AsyncInference",
    "AsyncSearcher",
    "AsyncTriton",
    "Built",
    "Bundle",
    "Calibration",
    "Inference",
    "Manifest",
    "Quality",
    "Searcher",
    "ServedModel",
    "Statistics",
    "Triton",
    "build_bundle",
    "open_bundle",
]


def test_the_public_names_are_these() -> None:
    assert skillserve_client.__all__ == SURFACE
    assert all(hasattr(skillserve_client, name) for name in SURFACE)


def test_every_module_exports_what_it_says() -> None:
    for path in Path(skillserve_client.__file__).parent.glob("[a-z]*.py"):
        module = importlib.import_module(f"skillserve_client.{path.stem}")
        assert all(hasattr(module, member) for member in module.__all__)


def test_the_room_searches_without_torch_without_onnx_and_without_what_calibrates() -> None:
    """A fresh interpreter, since other tests may have loaded them."""
    heavy = "torch transformers onnx onnxruntime optimum sentence_transformers datasets sklearn matplotlib bm25s"
    code = f"import sys, skillserve_client.cli; print([m for m in '{heavy}'.split() if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
