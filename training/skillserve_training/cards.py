"""Drawing up the card of a model from what its base says about itself."""

from __future__ import annotations

import json

from skillserve.card import ModelCard, Pooling
from skillserve.console import talk
from skillserve.errors import ConfigError
from skillserve.tensors import Role
from skillserve_training.base import MINILM, Base
from skillserve_training.families import Family, family_in
from skillserve_training.files import read_json
from skillserve_training.tokenizer import token_ids
from skillserve_training.weights import embedder_tokens, reranker_tokens

__all__ = ["draft_card"]

_POOLINGS: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
    "mean": "mean",
    "cls": "cls",
    "lasttoken": "last",
}
"""Words of sentence-transformers, those of its older files first."""
_SERVED_MODULES = ("Transformer", "Pooling", "Normalize")
"""Modules of a sentence-transformers model that serving reproduces."""


def draft_card(
    base: Base, role: Role, *, max_tokens: int, max_query_tokens: int | None = None, late: bool = False
) -> ModelCard:
    """The card of a model on this base, without digest. ConfigError if the base cannot take the role.

    Limits are capped so that the frame always fits. Without `max_query_tokens` a request may fill an embedder's
    whole frame, and half of a reranker's, since the skill has to fit beside it. `late` is a reranker's interaction.
    """
    family = family_in(base.folder, late=late)
    config = family.config.from_dict(read_json(base.folder / "config.json"))
    _require_tokens(base, family, role)
    most_tokens = family.most_tokens(config)
    if max_tokens > most_tokens:
        raise ConfigError(
            f"max_tokens of base `{base.name}`",
            got=str(max_tokens),
            wanted=f"at most its {most_tokens} positions",
            fix=f"Run it again with --max-tokens {most_tokens}",
        )
    embeds = role == "embedder"
    query_prompt, document_prompt = _prompts(base, family) if embeds else ("", "")
    card = ModelCard(
        name=base.name,
        role=role,
        family=family.config.model_type,
        dim=config.hidden_size if embeds else None,
        vocab_size=config.vocab_size,
        max_tokens=max_tokens,
        max_query_tokens=max_tokens,
        pooling=_pooling(base, family) if embeds else None,
        normalised=embeds,
        query_prompt=query_prompt,
        document_prompt=document_prompt,
        frame=family.frames[role],
        score_kind="cosine" if embeds else family.score_kind,
        base_model=base.model,
        base_revision=base.revision,
        licence=base.licence,
    )
    room = (embedder_tokens if embeds else reranker_tokens)(base.folder, card).room
    wanted = max_query_tokens or (room if embeds else room // 2)
    return card.model_copy(update={"max_query_tokens": min(wanted, room)})


def _require_tokens(base: Base, family: Family, role: Role) -> None:
    token_ids(base.folder, family.frame_tokens[role])
    if role == "reranker":
        family.score_tokens(base.folder)


def _pooling(base: Base, family: Family) -> Pooling:
    """Pooling of the base's card, or of its sentence-transformers files; a plain model has its family's usual one."""
    if base.card and base.card.pooling:
        return base.card.pooling
    if (base.folder / "modules.json").is_file():
        _refuse_unknown_modules(base)
    file = base.folder / "1_Pooling" / "config.json"
    if not file.is_file():
        talk(f"Base {base.name} states no pooling; `{family.poolings[0]}` is usual for {family.config.model_type}.")
        return family.poolings[0]
    told = read_json(file)
    modes = [str(told["pooling_mode"])] if told.get("pooling_mode") else []
    modes += [name for name, on in told.items() if name.startswith("pooling_mode_") and on]
    found = _POOLINGS.get(modes[0]) if len(modes) == 1 else None
    if found not in family.poolings:
        raise ConfigError(
            f"pooling of base `{base.name}`",
            got=", ".join(modes) or "none",
            wanted=" or ".join(name for name, pooling in _POOLINGS.items() if pooling in family.poolings),
            fix=f"Name another base, such as --base {MINILM}",
        )
    return found


def _refuse_unknown_modules(base: Base) -> None:
    file = base.folder / "modules.json"
    try:
        kinds = [str(module["type"]).rsplit(".", 1)[-1] for module in json.loads(file.read_bytes())]
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"base file `{file}`",
            got=f"{type(error).__name__}: {error}",
            wanted="the list of modules that sentence-transformers writes",
            fix=f"Fetch the base again, or start from --base {MINILM}",
        ) from error
    unknown = [kind for kind in kinds if kind not in _SERVED_MODULES]
    if unknown:
        raise ConfigError(
            f"modules of base `{base.name}`",
            got=", ".join(unknown),
            wanted=f"only {', '.join(_SERVED_MODULES)}",
            fix=f"Name another base, such as --base {MINILM}",
        )


def _prompts(base: Base, family: Family) -> tuple[str, str]:
    """(query prompt, document prompt) of the base's card, its family's recipe, or its sentence-transformers files."""
    if base.card and base.card.role == "embedder":
        return base.card.query_prompt, base.card.document_prompt
    if family.prompts is not None:
        return family.prompts
    file = base.folder / "config_sentence_transformers.json"
    prompts = read_json(file).get("prompts") if file.is_file() else None
    found = prompts if isinstance(prompts, dict) else {}
    document = found.get("document", found.get("passage", ""))
    return str(found.get("query") or ""), str(document or "")
