"""A repository as it is served with other settings than it was exported with: the same files, another `config.pbtxt`.

A repository may be read-only, and what is tried for one start is not to last. So the server is given a folder of its
own in which every model is a folder of links, beside a configuration that was read and written as Triton's message.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from skillserve.errors import RepositoryError
from skillserve.publish import write_text
from skillserve.recommendation import ServedAs, Tuning
from skillserve.tensors import EXECUTION_TOKENS_PARAMETER, PRECISION_PARAMETER
from skillserve_serving.repository import CONFIG_FILE, ServedModel

__all__ = ["lay_out_model", "runs_on_gpus", "served_as", "tune"]

_THREADS = "intra_op_thread_count"
_PLAN = "tensorrt_plan"


def lay_out_model(model: ServedModel, target: Path, tuning: Tuning) -> None:
    """Make `target` the model with another configuration; what was there goes once the new one is whole.

    Raises RepositoryError, OSError.
    """
    config = _read(model)
    tune(config, tuning)
    draft = target.with_name(f".{target.name}")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        for entry in sorted(model.folder.resolve().iterdir()):
            if entry.name != CONFIG_FILE:
                (draft / entry.name).symlink_to(entry)
        write_text(draft / CONFIG_FILE, text_format.MessageToString(config))
        shutil.rmtree(target, ignore_errors=True)
        draft.rename(target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def tune(config: Any, tuning: Tuning) -> None:  # noqa: ANN401 -- protobuf messages carry no usable types
    """Change a configuration in place; raises RepositoryError for what the model cannot be."""
    if tuning.num_instances is not None:
        # Without a group Triton makes one of its own choice: one for each GPU, or one on the CPU.
        for group in config.instance_group or [config.instance_group.add(kind=ModelInstanceGroup.KIND_AUTO)]:
            group.count = tuning.num_instances
    if tuning.num_threads is not None and config.platform != _PLAN:  # a plan has no threads to compute with
        config.parameters[_THREADS].string_value = str(tuning.num_threads)
    # Exports leave it out where turns only cost time: late interaction, GPUs, padding.
    if tuning.execution_tokens is not None and EXECUTION_TOKENS_PARAMETER in config.parameters:
        config.parameters[EXECUTION_TOKENS_PARAMETER].string_value = str(tuning.execution_tokens)
    if tuning.max_batch_size is not None:
        if config.platform == _PLAN and tuning.max_batch_size > config.max_batch_size:
            raise RepositoryError(
                f"model `{config.name}`, setting max_batch_size",
                got=f"{tuning.max_batch_size} for a plan that was built for {config.max_batch_size}",
                wanted=f"at most {config.max_batch_size}",
                fix="Lower --max-batch-size, or export and build the plan again: skillserve export, skillserve plan",
            )
        config.max_batch_size = tuning.max_batch_size
    if tuning.max_queue_delay_microseconds is not None:
        config.dynamic_batching.max_queue_delay_microseconds = tuning.max_queue_delay_microseconds


def runs_on_gpus(model: ServedModel) -> bool:
    """Whether Triton puts a model on GPUs if it finds some: unless its configuration asks for the CPU."""
    groups = _read(model).instance_group
    return not groups or any(group.kind in {group.KIND_AUTO, group.KIND_GPU} for group in groups)


def served_as(model: ServedModel) -> ServedAs:
    """What a recommendation must have been measured on; raises RepositoryError."""
    config = _read(model)
    return ServedAs(digest=model.card.digest, precision=config.parameters[PRECISION_PARAMETER].string_value)


def _read(model: ServedModel) -> Any:  # noqa: ANN401 -- see above
    path = model.folder / CONFIG_FILE
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise RepositoryError(
            f"model folder `{model.folder}`",
            got=f"no readable {CONFIG_FILE} ({error})",
            wanted="a configuration as Triton's own message, to be served with other settings",
            fix="Export the model again: skillserve export WEIGHTS",
        ) from error
