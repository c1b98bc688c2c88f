"""Flags of commands, made from the configuration's fields: no flag without a field, and one way to merge them.

    @with_settings("search", "client.url")
    def search(query: str, *, settings: Settings, as_json: Json = False) -> None: ...

gives `search` a flag for every field of the section `search`, one for `client.url`, and `--config`; the command
itself sees the merged settings.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_origin

import typer
from rich.markup import escape

from skillserve.config import ENV_PREFIX, load_settings
from skillserve.settings import Section, Settings

__all__ = ["Json", "with_settings"]

Result = TypeVar("Result")

Json = Annotated[bool, typer.Option("--json", help="print JSON on stdout")]
"""What every command's `as_json` is annotated with."""

_Config = Annotated[Path | None, typer.Option("--config", help="configuration file; not set: skillserve.toml if there")]


def with_settings(*paths: str) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Give a command flags for these sections (`search`) and fields (`client.url`), and hand it `settings`."""
    fields = [field for path in paths for field in _expand(path)]

    def decorate(command: Callable[..., Result]) -> Callable[..., Result]:
        own = inspect.signature(command, eval_str=True)
        kept = [parameter for parameter in own.parameters.values() if parameter.name != "settings"]
        flags = {f"{section}.{name}": _parameter(section, name) for section, name in fields}
        config = Parameter("config", Parameter.KEYWORD_ONLY, default=None, annotation=_Config)

        @functools.wraps(command)
        def merged(config: Path | None = None, **given: Any) -> Result:  # noqa: ANN401 -- whatever the command takes
            values = {path: given.pop(parameter.name) for path, parameter in flags.items()}
            return command(**given, settings=load_settings(config, flags=values))

        merged.__signature__ = inspect.Signature([*kept, *flags.values(), config])  # type: ignore[attr-defined]
        # Typer prefers these to the signature; the wrapper's own would name `given`.
        merged.__annotations__ = {p.name: p.annotation for p in (*kept, *flags.values(), config)}
        return merged

    return decorate


def _expand(path: str) -> Iterator[tuple[str, str]]:
    section, _, name = path.partition(".")
    if name:
        yield section, name
    else:
        yield from ((section, each) for each in type(getattr(Settings(), section)).model_fields)


def _parameter(section: str, name: str) -> Parameter:
    """The field's own words as help, its type, and no default: None means that the flag was not given."""
    kind_of_section: type[Section] = type(getattr(Settings(), section))
    field = kind_of_section.model_fields[name]
    value = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
    default = "" if field.default in (None, ()) else f" [{kind_of_section.default_words.format(value)}]"
    variable = f"{ENV_PREFIX}{section}_{name}".upper()
    flag = name.replace("_", "-")
    option = typer.Option(
        f"--{flag}/--no-{flag}" if field.annotation is bool else f"--{flag}",
        # Escaped, since help is read as markup and brackets would be styles.
        help=escape(f"{field.description}{default} [env: {variable}]"),
        show_default=False,
    )
    # Lists are written as one word, `256,128`; the field itself takes it apart.
    kind: Any = str if get_origin(field.annotation) is tuple else field.annotation
    # Through a plain name, since type checkers read `Annotated[…]` as a type, and this one is made at run time.
    annotated: Any = Annotated
    return Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=annotated[kind | None, option])
