"""What a model configuration asks of the backend, read strictly: what cannot be honoured is refused by name.

Triton hands a backend its `config.pbtxt` as JSON and never asks whether the backend understood it. The C++
ONNX Runtime backend and this one serve the same configurations; a setting that only the C++ one knows would
otherwise be dropped in silence, and the two would answer differently.

Triton's core itself does dynamic batching, warm-up, the response cache and `max_batch_size`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, Self

from skillserve.errors import RepositoryError
from skillserve.tensors import (
    EXECUTION_TOKENS_PARAMETER,
    GRAPH_DIGEST_PARAMETER,
    INPUT_IDS,
    LAYOUT_PARAMETER,
    MAX_SEQUENCE_TOKENS_PARAMETER,
    MAX_TOKENS_PARAMETER,
    SEQ_LENS,
    VOCAB_SIZE_PARAMETER,
)

__all__ = ["ATTENTION_MASK", "BatchInput", "ModelSpec", "SessionSpec"]

ATTENTION_MASK = "attention_mask"

Config = Mapping[str, Any]

_OF_CORE = frozenset(
    {
        "name", "platform", "backend", "runtime", "max_batch_size", "dynamic_batching", "model_warmup",
        "response_cache", "metric_tags", "model_metrics",
    }
)  # fmt: skip
_READ_HERE = frozenset(
    {
        "version_policy", "input", "output", "batch_input", "batch_output", "optimization", "instance_group",
        "default_model_filename", "parameters",
    }
)  # fmt: skip
_HARMLESS_TENSOR_FIELDS = frozenset({"name", "data_type", "dims", "allow_ragged_batch", "reshape", "label_filename"})
_SESSION_PARAMETERS = frozenset(
    {
        "intra_op_thread_count", "inter_op_thread_count", "execution_mode", "enable_mem_arena",
        "enable_mem_pattern", "memory.enable_memory_arena_shrinkage",
    }
)  # fmt: skip
_OWN_PARAMETERS = "skillserve_"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_BOOLEANS = {"1": True, "true": True, "0": False, "false": False}
_GRAPH_LEVELS: dict[int, Literal["basic", "extended", "off", "all"]] = {-1: "basic", 0: "all", 1: "extended", 2: "off"}


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchInput:
    """One graph input that is filled from request shapes: running element counts of `source`, `[R]`."""

    target: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSpec:
    """How ONNX Runtime is to run the graph."""

    filename: str = "model.onnx"
    graph_level: Literal["basic", "extended", "off", "all"] = "all"
    intra_op_thread_count: int = 0
    """0: as many as there are cores."""
    inter_op_thread_count: int = 0
    parallel: bool = False
    """Run independent branches of the graph beside each other (execution_mode 1)."""
    mem_arena: bool = True
    mem_pattern: bool = True
    arena_shrinkage: str = ""
    """Devices whose memory arena is given back after each run, as ONNX Runtime writes them (`cpu:0`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """Everything that answering a batch of requests needs to know about one model."""

    name: str
    layout: Literal["packed", "padded"]
    output: str
    row_shape: tuple[int, ...]
    """Shape of one output row of the graph: `(D,)` or `()`."""
    rows_of: str = SEQ_LENS
    """The wire input of a packed graph whose elements have a row each: its lengths, or its ids where rows are of
    tokens."""
    vocab_size: int
    max_sequence_tokens: int
    max_request_tokens: int
    """Most tokens of one request, and of those that are answered together."""
    execution_tokens: int = 0
    """Most tokens that a packed graph computes at once, but for a longer sequence; 0: all of `max_request_tokens`."""
    graph_digest: str | None = None
    """What the graph's files must be (`skillserve.graph_file`); None if the configuration does not say."""
    batch_inputs: tuple[BatchInput, ...] = ()
    session: SessionSpec = SessionSpec()

    @property
    def inputs(self) -> tuple[str, str]:
        """Names of the two wire inputs, token ids first."""
        return (INPUT_IDS, SEQ_LENS if self.layout == "packed" else ATTENTION_MASK)

    @classmethod
    def from_config(cls, config: Config) -> Self:
        """Read a model configuration as Triton hands it to a backend.

        Raises RepositoryError that names the first setting which this backend cannot honour.
        """
        reader = _Reader(config)
        reader.refuse_foreign_settings()
        layout = reader.layout()
        return cls(
            name=reader.model,
            layout=layout,
            output=reader.output_name(),
            row_shape=reader.row_shape(layout),
            rows_of=reader.rows_of(layout),
            vocab_size=reader.limit(VOCAB_SIZE_PARAMETER),
            max_sequence_tokens=reader.limit(MAX_SEQUENCE_TOKENS_PARAMETER),
            max_request_tokens=reader.limit(MAX_TOKENS_PARAMETER),
            execution_tokens=reader.execution_tokens(layout),
            graph_digest=reader.graph_digest(),
            batch_inputs=reader.batch_inputs(layout),
            session=reader.session(),
        )


class _Reader:
    """Takes one configuration apart; each method reads, and answers for, one part of it."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.model = str(config.get("name", "?"))
        self._parameters = {
            key: str(value.get("string_value", "")) for key, value in config.get("parameters", {}).items()
        }

    def refuse(self, setting: str, got: object, wanted: str) -> NoReturn:
        raise RepositoryError(
            f"model `{self.model}`, setting `{setting}`",
            got=str(got),
            wanted=wanted,
            fix="Export the model again, or serve it with a Triton that brings its own ONNX Runtime backend.",
        )

    def refuse_foreign_settings(self) -> None:
        """Whatever neither the core nor this backend does; fields that are empty or false ask for nothing."""
        config = self._config
        for key, value in config.items():
            if key == "model_transaction_policy":
                if value.get("decoupled"):
                    self.refuse("model_transaction_policy.decoupled", "true", "one answer per request")
            elif key not in _OF_CORE | _READ_HERE and value:
                self.refuse(key, "a setting that this backend does not implement", "a model without it")
        if "specific" not in config.get("version_policy", {}):
            got = ", ".join(config.get("version_policy", {})) or "none"
            self.refuse("version_policy", got, "specific: any other switches everybody to whatever folder appears")
        self._refuse_devices()
        self._refuse_optimization()
        for key in self._parameters:
            if key not in _SESSION_PARAMETERS and not key.startswith(_OWN_PARAMETERS):
                known = ", ".join(sorted(_SESSION_PARAMETERS))
                self.refuse(f"parameters.{key}", "a parameter that this backend does not know", f"one of {known}")

    def _refuse_devices(self) -> None:
        for group in self._config.get("instance_group", []):
            if group.get("kind", "KIND_AUTO") not in {"KIND_CPU", "KIND_AUTO"}:
                self.refuse("instance_group.kind", group["kind"], "KIND_AUTO or KIND_CPU: this backend runs on the CPU")
            for key in ("gpus", "secondary_devices", "profile", "passive"):
                if group.get(key):
                    self.refuse(f"instance_group.{key}", group[key], "an instance group without it")

    def _refuse_optimization(self) -> None:
        optimization = self._config.get("optimization", {})
        if optimization.get("execution_accelerators"):
            self.refuse("optimization.execution_accelerators", "an accelerator", "plain ONNX Runtime on the CPU")
        if optimization.get("priority", "PRIORITY_DEFAULT") != "PRIORITY_DEFAULT":
            self.refuse("optimization.priority", optimization["priority"], "PRIORITY_DEFAULT")
        # Pinned memory, the gather kernel and eager batching only steer how a GPU backend copies its inputs.
        unknown = optimization.keys() - {
            "graph", "execution_accelerators", "priority", "input_pinned_memory", "output_pinned_memory",
            "gather_kernel_buffer_threshold", "eager_batching",
        }  # fmt: skip
        for key in sorted(unknown):
            if optimization[key]:
                self.refuse(f"optimization.{key}", "a setting that this backend does not implement", "none")

    def layout(self) -> Literal["packed", "padded"]:
        """The layout parameter, and that the declared inputs are those of the layout."""
        layout = self._parameters.get(LAYOUT_PARAMETER, "missing")
        if layout not in {"packed", "padded"}:
            self.refuse(f"parameters.{LAYOUT_PARAMETER}", layout, "`packed` or `padded`")
        names = {INPUT_IDS, SEQ_LENS} if layout == "packed" else {INPUT_IDS, ATTENTION_MASK}
        inputs = self._config.get("input", [])
        found = {tensor.get("name") for tensor in inputs}
        if found != names:
            self.refuse("input", ", ".join(sorted(map(str, found))) or "none", " and ".join(sorted(names)))
        for tensor in inputs:
            where = f"input.{tensor['name']}"
            self._plain_tensor(tensor, where)
            if tensor.get("data_type") != "TYPE_INT32":
                self.refuse(f"{where}.data_type", tensor.get("data_type"), "TYPE_INT32")
            if _dims(tensor) != [-1] or "reshape" in tensor:
                self.refuse(f"{where}.dims", _dims(tensor), "[-1], not reshaped")
            if bool(tensor.get("allow_ragged_batch")) != (layout == "packed"):
                self.refuse(
                    f"{where}.allow_ragged_batch", tensor.get("allow_ragged_batch", False), "true if packed, else false"
                )
        if int(self._config.get("max_batch_size", 0)) < 1:
            self.refuse("max_batch_size", self._config.get("max_batch_size", 0), "at least 1")
        return "packed" if layout == "packed" else "padded"

    def _plain_tensor(self, tensor: Config, where: str) -> None:
        for key, value in tensor.items():
            if key not in _HARMLESS_TENSOR_FIELDS and value and value != "FORMAT_NONE":
                self.refuse(f"{where}.{key}", value, "a tensor without it")

    def _output(self) -> Config:
        outputs = self._config.get("output", [])
        if len(outputs) != 1:
            self.refuse("output", f"{len(outputs)} outputs", "exactly one")
        output: Config = outputs[0]
        return output

    def output_name(self) -> str:
        """Name of the one float output."""
        output = self._output()
        self._plain_tensor(output, f"output.{output['name']}")
        if output.get("data_type") != "TYPE_FP32":
            self.refuse(f"output.{output['name']}.data_type", output.get("data_type"), "TYPE_FP32")
        return str(output["name"])

    def row_shape(self, layout: str) -> tuple[int, ...]:
        """Shape of one graph row, from the output's dims."""
        output = self._output()
        where = f"output.{output['name']}"
        dims = _dims(output)
        if layout == "padded":
            if self._config.get("batch_output"):
                self.refuse("batch_output", "an entry", "none: padded outputs are cut along the batch dimension")
            row = [int(dim) for dim in output["reshape"].get("shape", [])] if "reshape" in output else dims
        else:
            if dims[:1] != [-1] or "reshape" in output:
                self.refuse(f"{where}.dims", dims, "[-1, …], not reshaped: the first one counts rows")
            row = dims[1:]
        if any(dim < 1 for dim in row):
            self.refuse(f"{where}.dims", dims, "fixed dimensions after the first")
        return tuple(row)

    def rows_of(self, layout: str) -> str:
        """The wire input that says how many rows a request gets, and brings them home."""
        if layout == "padded":
            return ATTENTION_MASK
        output = str(self._output()["name"])
        entries = self._config.get("batch_output", [])
        if len(entries) != 1:
            self.refuse("batch_output", f"{len(entries)} entries", "exactly one, for the one output")
        entry = entries[0]
        for key, wanted in {
            "target_name": [output],
            "kind": "BATCH_SCATTER_WITH_INPUT_SHAPE",
        }.items():
            if entry.get(key) != wanted:
                self.refuse(f"batch_output.{key}", entry.get(key), f"{wanted}")
        sources = entry.get("source_input", [])
        if len(sources) != 1 or sources[0] not in {INPUT_IDS, SEQ_LENS}:
            self.refuse("batch_output.source_input", sources, f"{[SEQ_LENS]} or, for rows of tokens, {[INPUT_IDS]}")
        return str(sources[0])

    def batch_inputs(self, layout: str) -> tuple[BatchInput, ...]:
        """The inputs that are filled from request shapes."""
        entries = self._config.get("batch_input", [])
        if entries and layout == "padded":
            self.refuse("batch_input", f"{len(entries)} entries", "none in the padded layout")
        found = []
        for entry in entries:
            if entry.get("kind") != "BATCH_ACCUMULATED_ELEMENT_COUNT":
                self.refuse("batch_input.kind", entry.get("kind"), "BATCH_ACCUMULATED_ELEMENT_COUNT")
            if entry.get("data_type") != "TYPE_INT32":
                self.refuse("batch_input.data_type", entry.get("data_type"), "TYPE_INT32")
            targets, sources = entry.get("target_name", []), entry.get("source_input", [])
            if len(targets) != 1:
                self.refuse("batch_input.target_name", targets, "one target per entry")
            if len(sources) != 1 or sources[0] not in {INPUT_IDS, SEQ_LENS}:
                self.refuse("batch_input.source_input", sources, f"{INPUT_IDS} or {SEQ_LENS}")
            found.append(BatchInput(target=targets[0], source=sources[0]))
        if len({entry.target for entry in found}) != len(found):
            self.refuse("batch_input.target_name", [entry.target for entry in found], "different targets")
        return tuple(found)

    def limit(self, parameter: str) -> int:
        """A bound that the export stamped into the configuration; it must be there, or nothing is bounded."""
        return self._integer(parameter, self._parameters.get(parameter, "missing"), at_least=1)

    def execution_tokens(self, layout: str) -> int:
        """What is computed at once; a rectangle is not cut."""
        text = self._parameters.get(EXECUTION_TOKENS_PARAMETER, "0")
        value = self._integer(EXECUTION_TOKENS_PARAMETER, text)
        if value and layout == "padded":
            self.refuse(f"parameters.{EXECUTION_TOKENS_PARAMETER}", text, "none in the padded layout")
        return value

    def graph_digest(self) -> str | None:
        """Of the graph's files, as the export stamped it."""
        text = self._parameters.get(GRAPH_DIGEST_PARAMETER)
        if text is not None and not _SHA256.fullmatch(text):
            self.refuse(f"parameters.{GRAPH_DIGEST_PARAMETER}", text, "a SHA-256, 64 hexadecimal digits")
        return text

    def _integer(self, parameter: str, text: str, *, at_least: int = 0) -> int:
        try:
            value = int(text)
        except ValueError:
            value = at_least - 1
        if value < at_least:
            self.refuse(f"parameters.{parameter}", text, f"a whole number, at least {at_least}")
        return value

    def _boolean(self, parameter: str) -> bool:
        text = self._parameters.get(parameter, "1")
        if text.lower() not in _BOOLEANS:
            self.refuse(f"parameters.{parameter}", text, "one of true, false, 1, 0")
        return _BOOLEANS[text.lower()]

    def session(self) -> SessionSpec:
        """ONNX Runtime's options, with the C++ backend's names, values and defaults."""
        level = int(self._config.get("optimization", {}).get("graph", {}).get("level", 0))
        if level not in _GRAPH_LEVELS:
            self.refuse("optimization.graph.level", level, f"one of {sorted(_GRAPH_LEVELS)}")
        mode = self._parameters.get("execution_mode", "0")
        if mode not in {"0", "1"}:
            self.refuse("parameters.execution_mode", mode, "0 (sequential) or 1 (parallel)")
        return SessionSpec(
            filename=self._config.get("default_model_filename") or "model.onnx",
            graph_level=_GRAPH_LEVELS[level],
            intra_op_thread_count=self._threads("intra_op_thread_count"),
            inter_op_thread_count=self._threads("inter_op_thread_count"),
            parallel=mode == "1",
            mem_arena=self._boolean("enable_mem_arena"),
            mem_pattern=self._boolean("enable_mem_pattern"),
            arena_shrinkage=self._parameters.get("memory.enable_memory_arena_shrinkage", ""),
        )

    def _threads(self, parameter: str) -> int:
        return self._integer(parameter, self._parameters.get(parameter, "0"))


def _dims(tensor: Config) -> list[int]:
    # 64-bit numbers are strings in protobuf's own JSON and numbers in Triton's; both are read.
    return [int(dim) for dim in tensor.get("dims", [])]
