"""Model families: what differs between architectures, and nothing else does.

A family is one module with an entry in `FAMILIES`, keyed by `model_type` of config.json.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from transformers import PreTrainedModel

from skillserve.errors import ConfigError
from skillserve.lazy import load_target
from skillserve_training.base import MINILM
from skillserve_training.families.family import Family
from skillserve_training.files import read_json

__all__ = ["FAMILIES", "Family", "family_in", "family_of"]

FAMILIES = {
    "bert": "bert:Bert",
    "late-bert": "late_bert:LateBert",
    "modernbert": "modernbert:ModernBert",
    "qwen3": "qwen3:Qwen3",
    "xlm-roberta": "xlm_roberta:XlmRoberta",
}
"""Module and class. Each is imported when it is called for: transformers' modules behind them take a second or two."""


@cache
def _opened(kind: str) -> Family:
    family: Family = load_target(f"{__name__}.{FAMILIES[kind]}", extra="training", subject=f"model family `{kind}`")()
    return family


_LATE = "late-"
"""How families with late interaction are called after those that they are made of."""


def family_in(folder: Path, *, late: bool = False) -> Family:
    """The family of the weights in a folder, or the one with late interaction that is made of it.

    ConfigError names the known ones.
    """
    kind = str(read_json(folder / "config.json").get("model_type"))
    if late and not kind.startswith(_LATE):
        kind = _LATE + kind
    if kind not in FAMILIES:
        raise ConfigError(
            f"base `{folder}`",
            got=f"model type {kind}",
            wanted=f"one of {', '.join(sorted(FAMILIES))}",
            fix=f"Name another base, such as --base {MINILM}",
        )
    return _opened(kind)


def family_of(model: PreTrainedModel) -> Family:
    """The family of a model that one of them opened."""
    return _opened(model.config.model_type)
