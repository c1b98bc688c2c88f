"""The `skillserve` command: a table of commands, each imported only when it is called.

A command lives in its room. Its packages may be missing, since every room has its own extra; then the
table still lists it, and calling it names the pip line.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import click
import typer

from skillserve.config import TRACEBACK_VARIABLE
from skillserve.console import err, print_json, talk
from skillserve.errors import SkillserveError, UsageError
from skillserve.lazy import load_target

__all__ = ["COMMANDS", "Command", "app", "main"]


@dataclass(frozen=True, slots=True)
class Command:
    """One row of the table."""

    target: str
    """`module:attribute` of a typer app or of a plain function."""
    extra: str | None
    """The pip extra that brings its packages; None if the base has them."""
    help: str


COMMANDS: dict[str, Command] = {
    "demo": Command(
        "skillserve.demo:demo",
        None,
        "Run the whole line on the sample catalogue: train, export, serve, index, calibrate, search.",
    ),
    "train": Command("skillserve_training.cli:train", "training", "Fine-tune an embedder or a reranker."),
    "mine": Command(
        "skillserve_training.mining_cli:mine",
        "training",
        "Find hard negatives for training: wrong skills that rank high.",
    ),
    "evaluate": Command(
        "skillserve.evaluation:evaluate", None, "Measure systems on requests whose skills are known, side by side."
    ),
    "card": Command(
        "skillserve_training.cli:card", "training", "Write a weights folder with its card for a stock model."
    ),
    "export": Command(
        "skillserve_export.cli:export",
        "export",
        "Turn weights into a packed graph, gate it, write the model repository.",
    ),
    "verify": Command(
        "skillserve_export.cli:verify",
        "export",
        "Check an exported graph, or what a server answers, against the weights; write no more than a gate's report.",
    ),
    "plan": Command(
        "skillserve_export.plan.cli:plan",
        None,
        "Build the TensorRT plan of an exported model, on the GPU that will run it.",
    ),
    "serve": Command("skillserve_serving.cli:serve", "serving", "Run a model repository on Triton until stopped."),
    "index": Command(
        "skillserve_client.cli:index", "client", "Build a bundle from a catalogue through a running server."
    ),
    "search": Command("skillserve_client.cli:search", "client", "Find skills for a request."),
    "score": Command(
        "skillserve_client.batch.cli:score",
        "client",
        "Embed or audit a catalogue, rank a file of requests, or score pairs, in bulk; a stopped run goes on.",
    ),
    "calibrate": Command(
        "skillserve_client.cli_calibrate:calibrate",
        "calibrate",
        "Teach the live bundle when to abstain, or measure how well it does.",
    ),
    "bench": Command("skillserve_bench.cli:app", "bench", "Measure quality and speed against independent baselines."),
}


class _LazyGroup(typer.core.TyperGroup):
    """Looks commands up in the table; `--help` of the group imports none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        row = COMMANDS.get(cmd_name)
        return None if row is None else _load(cmd_name, row)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, row.help) for name, row in COMMANDS.items()])


def _load(name: str, row: Command) -> click.Command:
    target = load_target(row.target, extra=row.extra, subject=f"command `skillserve {name}`")
    if not isinstance(target, typer.Typer):
        single = typer.Typer(add_completion=False)
        single.command(name, help=row.help)(target)
        target = single
    target.rich_markup_mode = "rich"  # one look of all help, whoever made the app
    command = typer.main.get_command(target)
    command.name = name
    return command


app = typer.Typer(cls=_LazyGroup, no_args_is_help=True, add_completion=False, rich_markup_mode=None)


@app.callback()
def _root() -> None:
    """Find the right agent skill for a request: train, export, serve and search, without padding."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code. With `--json`, every error is one JSON object on stdout."""
    arguments = sys.argv[1:] if argv is None else argv
    as_json = "--json" in arguments
    try:
        result: Any = typer.main.get_command(app).main(arguments, prog_name="skillserve", standalone_mode=False)
    except SkillserveError as error:
        err.quiet = False  # a command may be quiet, its error is not
        talk(f"skillserve: {error}")
        return _fail(error, as_json=as_json)
    except click.ClickException as error:
        error.show()
        wanted, fix = "a command line as its help describes it", "See `skillserve COMMAND --help`."
        return _fail(UsageError("command line", got=error.format_message(), wanted=wanted, fix=fix), as_json=as_json)
    except (click.Abort, KeyboardInterrupt):
        talk("skillserve: stopped.")
        return 130
    except Exception as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        unexpected = SkillserveError(
            "command",
            got=" ".join(f"{type(error).__name__}: {error}".split()),
            wanted="no such exception",
            fix=f"Run it again with {TRACEBACK_VARIABLE}=1 to see where it comes from.",
        )
        err.quiet = False
        talk(f"skillserve: {unexpected}")
        return _fail(unexpected, as_json=as_json)
    return result if isinstance(result, int) else 0


def _fail(error: SkillserveError, *, as_json: bool) -> int:
    if as_json:
        print_json(error.to_dict())
    return error.exit_code


def run() -> None:
    """Entry point of the installed script."""
    code = main()
    with suppress(OSError):  # whoever read our output may be gone
        sys.stdout.flush()
        sys.stderr.flush()
    # Without the interpreter's teardown: by now everything of ours is closed, and threads of native libraries
    # (gRPC, FAISS, Arrow) can abort a teardown. One command in some 400 ended with SIGABRT.
    os._exit(code)
