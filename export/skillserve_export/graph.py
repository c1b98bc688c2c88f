"""The one door to Optimum: torch modules → ONNX graphs.

Three graphs leave this module. `export_packed` is what we serve, a reranker by late interaction twice. `export_padded`
is the same model behind a padded interface, for TensorRT and as the conventional deployment that benchmarks compare
with. `export_stock` is Optimum's own export of the transformers model, untouched by our code: the independent reference
of the parity gate.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import inliner
from optimum.exporters.onnx import export as optimum_export
from optimum.exporters.onnx.base import OnnxConfig
from optimum.exporters.onnx.convert import export_pytorch
from optimum.exporters.tasks import TasksManager
from optimum.utils import NormalizedTextConfig
from torch import Tensor, nn

from skillserve.card import ModelCard, ScoreKind
from skillserve.errors import ParityError
from skillserve.tensors import ATTENTION_MASK, INPUT_IDS, OUTPUT_NAMES, SEQ_END, SEQ_LENS, TOK_END, Role
from skillserve_export.bodies import DOMAIN, OPSET
from skillserve_export.cores import AttentionCore, core_functions
from skillserve_export.files import Weights, read_apart, write_whole

__all__ = ["export_packed", "export_padded", "export_stock"]

IR_VERSION = 8
"""What the ONNX Runtime of Triton 24.10 and later reads."""

_TASKS: dict[ScoreKind, str] = {
    "cosine": "feature-extraction",
    "logit": "text-classification",
    "yes_no": "text-generation",
    "max_sim": "feature-extraction",
}
"""Optimum's names for what a model is exported as."""


def export_packed(module: nn.Module, card: ModelCard, role: Role, core: AttentionCore, output: Path) -> None:
    """Write the packed graph of a role with one attention core inlined: standard operators only."""
    interface = _PACKED_TOKENS if role == "token_embedder" else _PACKED
    graph, weights = _traced(module, card, role, interface, output)
    graph.functions.extend(core_functions(core))
    graph.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    graph = inliner.inline_local_functions(graph)
    kept = [opset for opset in graph.opset_import if opset.domain in ("", "ai.onnx")]
    del graph.opset_import[:]
    graph.opset_import.extend(kept)
    # The tracer labels inner dimensions by guesswork. ONNX Runtime believes the labels, shares buffers between
    # tensors whose labels agree, and then answers wrongly; without labels it infers the shapes itself.
    del graph.graph.value_info[:]
    _finish(graph, weights, card, output)


def export_padded(module: nn.Module, card: ModelCard, output: Path) -> None:
    """Write a module of the padded layout."""
    _finish(*_traced(module, card, card.role, _PADDED, output), card, output)


def export_stock(model: nn.Module, card: ModelCard, output: Path) -> None:
    """Write Optimum's stock export of the transformers model.

    It gives `last_hidden_state [B, L, H]` for embedders and for the encoder of late interaction, and for other
    rerankers `logits`, `[B, 1]` of a classifier or `[B, L, V]` of a language model.
    """
    task = _TASKS[card.score_kind]
    constructor = TasksManager.get_exporter_config_constructor(
        "onnx", model=model, task=task, library_name="transformers"
    )
    with _quiet():
        optimum_export(model, constructor(model.config), output, opset=OPSET)


@dataclass(frozen=True, slots=True)
class _Interface:
    """Inputs and outputs of a graph: name → dynamic axes, and inputs to trace with."""

    inputs: dict[str, dict[int, str]]
    output_axis: str
    trace: dict[str, list[int] | list[list[int]]]


_PACKED = _Interface(
    inputs={INPUT_IDS: {0: "tokens"}, SEQ_LENS: {0: "sequences"}, TOK_END: {0: "requests"}, SEQ_END: {0: "requests"}},
    output_axis="sequences",
    # Two requests of two and one sequences; the trace holds for any number.
    trace={INPUT_IDS: [1, 2, 3, 4, 5, 6, 7], SEQ_LENS: [2, 3, 2], TOK_END: [5, 7], SEQ_END: [2, 3]},
)

_PACKED_TOKENS = replace(_PACKED, output_axis="tokens")

_PADDED = _Interface(
    inputs={name: {0: "batch", 1: "length"} for name in (INPUT_IDS, ATTENTION_MASK)},
    output_axis="batch",
    trace={INPUT_IDS: [[1, 2, 3], [4, 5, 0]], ATTENTION_MASK: [[1, 1, 1], [1, 1, 0]]},
)


class _InterfaceConfig(OnnxConfig):  # type: ignore[misc]
    """Tells Optimum an interface of ours."""

    NORMALIZED_CONFIG_CLASS = NormalizedTextConfig

    def __init__(self, config: Any, card: ModelCard, role: Role, interface: _Interface) -> None:
        super().__init__(config, task=_TASKS[card.score_kind])
        self._role = role
        self._interface = interface

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        return self._interface.inputs

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        return {OUTPUT_NAMES[self._role]: {0: self._interface.output_axis}}

    def generate_dummy_inputs(self, framework: str = "pt", **_shapes: int) -> dict[str, Tensor]:  # noqa: ARG002
        return {name: torch.tensor(value, dtype=torch.int32) for name, value in self._interface.trace.items()}


def _traced(
    module: nn.Module, card: ModelCard, role: Role, interface: _Interface, output: Path
) -> tuple[onnx.ModelProto, Weights]:
    with _quiet():
        export_pytorch(module, _InterfaceConfig(module.config, card, role, interface), opset=OPSET, output=output)
    graph, weights = read_apart(output)
    output.with_name(f"{output.name}_data").unlink(missing_ok=True)  # where Optimum puts weights of more than 2 GB
    return graph, weights


def _finish(graph: onnx.ModelProto, weights: Weights, card: ModelCard, output: Path) -> None:
    """Fix the IR version, refuse a graph with foreign operators, write the rest."""
    graph.ir_version = min(graph.ir_version, IR_VERSION)
    foreign = sorted({node.domain for node in graph.graph.node} - {"", "ai.onnx"})
    if foreign:
        raise ParityError(
            f"graph of `{card.name}`",
            got=f"operators of the domains {', '.join(foreign)}",
            wanted="standard operators only",
            fix="Report this model family: its export is not supported.",
        )
    write_whole(graph, weights, output)
    # By its path: a graph in memory is checked as one message, which must not exceed 2 GB.
    onnx.checker.check_model(output)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the tracer says about code of transformers; our gates check the result."""
    logger = logging.getLogger("optimum.exporters.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)
