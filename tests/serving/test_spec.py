"""A configuration is honoured or refused by name, never dropped in silence."""

from __future__ import annotations

from typing import Any

import pytest

from skillserve.errors import RepositoryError
from skillserve_serving.spec import BatchInput, ModelSpec, SessionSpec


def test_the_configuration_of_an_exported_model_is_read(toys: Any) -> None:
    spec = ModelSpec.from_config(toys.config())
    assert spec.layout == "packed"
    assert spec.inputs == ("input_ids", "seq_lens")
    assert (spec.output, spec.row_shape) == ("embedding", (toys.dim,))
    assert spec.batch_inputs == (
        BatchInput(target="tok_end", source="input_ids"),
        BatchInput(target="seq_end", source="seq_lens"),
    )
    assert spec.session == SessionSpec()
    assert ModelSpec.from_config(toys.config("skill_reranker")).row_shape == ()


def test_every_setting_of_onnx_runtime_that_the_container_honours_is_honoured(toys: Any) -> None:
    given = {
        "intra_op_thread_count": "3",
        "inter_op_thread_count": "2",
        "execution_mode": "1",
        "enable_mem_arena": "false",
        "enable_mem_pattern": "0",
        "memory.enable_memory_arena_shrinkage": "cpu:0",
    }
    config = toys.config(default_model_filename="other.onnx", optimization={"graph": {"level": -1}})
    config["parameters"] |= {key: {"string_value": value} for key, value in given.items()}
    assert ModelSpec.from_config(config).session == SessionSpec(
        filename="other.onnx",
        graph_level="basic",
        intra_op_thread_count=3,
        inter_op_thread_count=2,
        parallel=True,
        mem_arena=False,
        mem_pattern=False,
        arena_shrinkage="cpu:0",
    )


def with_part(config: dict[str, Any], part: str, **changes: Any) -> dict[str, Any]:
    """The configuration with fields of the first entry of a repeated part changed."""
    first, *others = config[part]
    return config | {part: [first | changes, *others]}


PARAMETER = {"string_value": "1"}
REFUSED: dict[str, Any] = {
    "sequence_batching": lambda c: c | {"sequence_batching": {"max_sequence_idle_microseconds": 1}},
    "ensemble_scheduling": lambda c: c | {"ensemble_scheduling": {"step": [{}]}},
    "model_transaction_policy.decoupled": lambda c: c | {"model_transaction_policy": {"decoupled": True}},
    "model_operations": lambda c: c | {"model_operations": {"op_library_filename": ["x.so"]}},
    "cc_model_filenames": lambda c: c | {"cc_model_filenames": {"8.0": "x.onnx"}},
    "something_new": lambda c: c | {"something_new": True},
    "version_policy": lambda c: c | {"version_policy": {"latest": {"num_versions": 1}}},
    "instance_group.kind": lambda c: c | {"instance_group": [{"kind": "KIND_GPU", "gpus": [0]}]},
    "instance_group.gpus": lambda c: c | {"instance_group": [{"kind": "KIND_AUTO", "gpus": [0]}]},
    "instance_group.passive": lambda c: c | {"instance_group": [{"kind": "KIND_CPU", "passive": True}]},
    "optimization.execution_accelerators": lambda c: (
        c | {"optimization": {"execution_accelerators": {"cpu_execution_accelerator": [{"name": "openvino"}]}}}
    ),
    "optimization.priority": lambda c: c | {"optimization": {"priority": "PRIORITY_MAX"}},
    "optimization.cuda": lambda c: c | {"optimization": {"cuda": {"graphs": True}}},
    "optimization.graph.level": lambda c: c | {"optimization": {"graph": {"level": 7}}},
    "parameters.gpu_mem_limit": lambda c: c | {"parameters": c["parameters"] | {"gpu_mem_limit": PARAMETER}},
    "parameters.execution_mode": lambda c: (
        c | {"parameters": c["parameters"] | {"execution_mode": {"string_value": "2"}}}
    ),
    "parameters.enable_mem_arena": lambda c: (
        c | {"parameters": c["parameters"] | {"enable_mem_arena": {"string_value": "maybe"}}}
    ),
    "parameters.intra_op_thread_count": lambda c: (
        c | {"parameters": c["parameters"] | {"intra_op_thread_count": {"string_value": "-1"}}}
    ),
    "parameters.skillserve_execution_tokens": lambda c: (
        c | {"parameters": c["parameters"] | {"skillserve_execution_tokens": {"string_value": "many"}}}
    ),
    "parameters.skillserve_layout": lambda c: (
        c | {"parameters": c["parameters"] | {"skillserve_layout": {"string_value": "triangular"}}}
    ),
    "parameters.skillserve_vocab_size": lambda c: (
        c | {"parameters": {k: v for k, v in c["parameters"].items() if k != "skillserve_vocab_size"}}
    ),
    "max_batch_size": lambda c: c | {"max_batch_size": 0},
    "input": lambda c: c | {"input": c["input"][:1]},
    "input.input_ids.data_type": lambda c: with_part(c, "input", data_type="TYPE_INT64"),
    "input.input_ids.dims": lambda c: with_part(c, "input", dims=[16]),
    "input.input_ids.allow_ragged_batch": lambda c: with_part(c, "input", allow_ragged_batch=False),
    "input.input_ids.optional": lambda c: with_part(c, "input", optional=True),
    "output": lambda c: c | {"output": c["output"] * 2},
    "output.embedding.data_type": lambda c: with_part(c, "output", data_type="TYPE_FP16"),
    "output.embedding.dims": lambda c: with_part(c, "output", dims=[4]),
    "batch_input.kind": lambda c: with_part(c, "batch_input", kind="BATCH_ELEMENT_COUNT"),
    "batch_input.data_type": lambda c: with_part(c, "batch_input", data_type="TYPE_FP32"),
    "batch_input.target_name": lambda c: with_part(c, "batch_input", target_name=["tok_end", "more"]),
    "batch_input.source_input": lambda c: with_part(c, "batch_input", source_input=["embedding"]),
    "batch_output": lambda c: c | {"batch_output": []},
    "batch_output.target_name": lambda c: with_part(c, "batch_output", target_name=["embedding", "score"]),
    "batch_output.kind": lambda c: with_part(c, "batch_output", kind="SOMETHING_ELSE"),
    "batch_output.source_input": lambda c: with_part(c, "batch_output", source_input=["tok_end"]),
}


@pytest.mark.parametrize("setting", REFUSED)
def test_a_setting_that_cannot_be_honoured_is_refused_by_its_name(setting: str, toys: Any) -> None:
    with pytest.raises(RepositoryError) as caught:
        ModelSpec.from_config(REFUSED[setting](toys.config()))
    assert caught.value.subject == f"model `skill_embedder`, setting `{setting}`"


def test_rows_come_home_by_the_input_that_the_configuration_names(toys: Any) -> None:
    """A row a sequence, or a row a token."""
    for source in ("seq_lens", "input_ids"):
        spec = ModelSpec.from_config(with_part(toys.config(), "batch_output", source_input=[source]))
        assert spec.rows_of == source
        assert spec.row_shape == (toys.dim,)


@pytest.mark.parametrize("sources", [[], ["tok_end"], ["attention_mask"], ["input_ids", "seq_lens"]])
def test_rows_that_would_come_home_by_anything_else_are_refused(sources: list[str], toys: Any) -> None:
    with pytest.raises(
        RepositoryError, match=r"wanted \['seq_lens'\] or, for rows of tokens, \['input_ids'\]"
    ) as caught:
        ModelSpec.from_config(with_part(toys.config(), "batch_output", source_input=sources))
    assert caught.value.subject == "model `skill_embedder`, setting `batch_output.source_input`"
