"""What TensorRT needs in `config.pbtxt`, for a plan and for ONNX Runtime's TensorRT provider.

Not verified on hardware. Names and rules come from triton-inference-server/tensorrt_backend and onnxruntime_backend,
both as of July 2026.

Triton joins requests of equal shape only. Here clients fill rows up to the ends of the buckets, which the
configuration tells them, so shapes are equal often. A ragged batch, as the packed graph has it, would need shapes
inside the plan that depend on numbers in `seq_lens`; the guard and both attention cores do, so there is none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from skillserve.tensors import ATTENTION_MASK, BUCKETS_PARAMETER, INPUT_IDS
from skillserve_export.profiles import Profiles, shapes
from skillserve_export.record import PLAN_FILE

__all__ = ["for_plan", "for_provider", "mask_file"]


def mask_file(end: int) -> str:
    """Name of the file, in the warm-up folder, with the mask of a full row of the bucket that ends there."""
    return f"{ATTENTION_MASK}_{end}"


def for_plan(config: Any, profiles: Profiles) -> None:
    """Turn the configuration of a padded graph into one of its plan, in place."""
    _with_buckets(config, profiles)
    config.ClearField("backend")
    config.platform = "tensorrt_plan"
    config.default_model_filename = PLAN_FILE
    # Without their names the backend would know of the first profile only.
    config.instance_group[0].profile.extend(str(index) for index in range(len(profiles.profiles)))
    # A context stays with its profile, and then needs the memory of that one; by default, of the largest.
    config.parameters["execution_context_allocation_strategy"].string_value = "ON_PROFILE_CHANGE"


def for_provider(config: Any, profiles: Profiles, cache: Path) -> None:
    """Have ONNX Runtime run a padded graph by its TensorRT provider, in place.

    Precisions are the graph's: with `precision_mode` set TensorRT would choose them layer by layer, and from its
    release 11 on it cannot. One profile, because the provider stays with the first whatever is asked
    (microsoft/onnxruntime, pull request 31624, open in August 2026). `cache` belongs to this graph alone: the provider
    names its engines by the structure of a graph, not by its weights, and would take those of another model.
    """
    _with_buckets(config, profiles)
    options = {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(cache),
    }
    names = [tensor.name for tensor in config.input]
    options |= {f"trt_profile_{side}_shapes": text for side, text in shapes(profiles.whole, names).items()}
    accelerator = config.optimization.execution_accelerators.gpu_execution_accelerator.add(name="tensorrt")
    for key, value in options.items():
        accelerator.parameters[key] = value


def _with_buckets(config: Any, profiles: Profiles) -> None:
    config.max_batch_size = profiles.max_batch_size
    group = config.instance_group[0]
    group.kind = group.KIND_GPU
    config.parameters[BUCKETS_PARAMETER].string_value = ",".join(map(str, profiles.ends))
    for end in profiles.ends:
        # The largest execution of every profile before the model is ready: what does not fit shows here, not later.
        sample = config.model_warmup.add(name=f"bucket_{end}", batch_size=profiles.max_batch_size)
        for tensor in config.input:
            filled = sample.inputs[tensor.name]
            filled.data_type = tensor.data_type
            filled.dims.append(end)
        sample.inputs[INPUT_IDS].zero_data = True
        sample.inputs[ATTENTION_MASK].input_data_file = mask_file(end)
