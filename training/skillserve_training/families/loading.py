"""Opening weights: safetensors of a local folder, in float32, complete, or an error that says what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from skillserve.errors import CardError, ConfigError
from skillserve_training.base import MINILM

__all__ = ["load"]


def load(
    kind: type[PreTrainedModel],
    folder: Path,
    *,
    config: Mapping[str, object],
    optional: tuple[str, ...] = (),
) -> PreTrainedModel:
    """A model in evaluation mode, on the GPU if there is one; names that begin like `optional` may be missing.

    `config` overrides fields of config.json. CardError if the weights cannot be read, ConfigError if some are missing.
    """
    try:
        model, report = kind.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            dtype=torch.float32,
            attn_implementation="sdpa",
            output_loading_info=True,
            **config,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CardError(
            f"weights in `{folder}`",
            got=f"{type(error).__name__}: {str(error).splitlines()[0]}",
            wanted=f"safetensors of a {kind.__name__}",
            fix=f"Name another base, such as --base {MINILM}",
        ) from error
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(optional))
    if missing:
        raise ConfigError(
            f"weights in `{folder}`",
            got=f"no `{missing[0]}`" + (f" and {len(missing) - 1} more tensors missing" if len(missing) > 1 else ""),
            wanted=f"all tensors of a {kind.__name__}",
            fix=f"Name another base; a reranker is made by: skillserve train reranker --base {MINILM}",
        )
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
