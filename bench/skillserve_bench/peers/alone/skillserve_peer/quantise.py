"""Export the models of a job and quantise their graphs: `python -m skillserve_peer.quantise FOLDER`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from onnxruntime.quantization import QuantType, quantize_dynamic
from sentence_transformers import CrossEncoder, SentenceTransformer

from .job import Job


def main(folder: Path) -> None:
    """Write `int8/embedder.onnx` and, where there is a reranker, `int8/reranker.onnx`."""
    job, target = Job.read(folder), folder / "int8"
    target.mkdir()
    how: dict[str, Any] = {
        "device": "cpu",
        "backend": "onnx",
        "model_kwargs": {"export": True, "provider": "CPUExecutionProvider"},
    }
    _quantise(SentenceTransformer(str(job.embedder), **how), target / "embedder.onnx")
    if job.reranker:
        _quantise(CrossEncoder(str(job.reranker), **how), target / "reranker.onnx")


def _quantise(model: Any, target: Path) -> None:  # noqa: ANN401 -- the library's own
    with tempfile.TemporaryDirectory() as name:
        model.save_pretrained(name)
        (graph,) = Path(name).rglob("*.onnx")
        quantize_dynamic(graph, target, weight_type=QuantType.QInt8)


main(Path(sys.argv[1]))
