"""The commands `skillserve bench peers list|install`, and what `latency` is told of peers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from skillserve.console import out as results
from skillserve.console import print_json
from skillserve.errors import UsageError
from skillserve.flags import Json, with_settings
from skillserve.settings import BenchSettings, Settings
from skillserve_bench.peers.assignment import read_models
from skillserve_bench.peers.field import Invited
from skillserve_bench.peers.install import Installation, install, installation
from skillserve_bench.peers.roster import PADDED, ROSTER, Peer, chosen
from skillserve_bench.report import Table, terminal_table

__all__ = ["PeerEmbedder", "PeerNames", "PeerPadded", "PeerReranker", "app", "invited"]

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)

PeerNames = Annotated[
    list[str] | None,
    typer.Option("--peer", help="measure this peer beside us in the level `search`; may be given more than once"),
]
PeerEmbedder = Annotated[
    Path | None, typer.Option(help="weights folder that the repository's embedder was exported from, for peers")
]
PeerReranker = Annotated[
    Path | None, typer.Option(help="weights folder of a cross-encoder with one logit, which peers can load")
]
PeerPadded = Annotated[
    Path | None, typer.Option(help="padded model repository of the same weights, for the peer `triton-padded`")
]


@app.callback()
def _peers() -> None:
    """Install what is measured beside us, each in an environment of its own."""


@app.command("list")
@with_settings("bench.peers_folder")
def list_peers(*, settings: Settings, as_json: Json = False) -> None:
    """Say which peers there are, and which of them are installed."""
    folder = settings.bench.peers_folder
    _show({peer: _installation(peer, folder) for peer in ROSTER.values()}, as_json=as_json)


@app.command("install")
@with_settings("bench.peers_folder")
def install_peers(
    names: Annotated[
        list[str] | None, typer.Argument(help="peers; none named: all of them", show_default=False)
    ] = None,
    *,
    settings: Settings,
    as_json: Json = False,
) -> None:
    """Make the environments of peers from their pinned requirements; exit 1 if one of them could not be made."""
    found: dict[Peer, Installation | None] = {}
    for peer in chosen(names or list(ROSTER)):
        found[peer] = install(peer, settings.bench.peers_folder, peer.requirements) if peer.requirements else None
    _show(found, as_json=as_json)
    if any(each and not each.installed for each in found.values()):
        raise typer.Exit(1)


def invited(
    names: Sequence[str] | None,
    settings: BenchSettings,
    *,
    embedder: Path | None,
    reranker: Path | None,
    padded: Path | None,
) -> Invited | None:
    """Whom a command's options invite; None without `--peer`. UsageError for peers and options that change nothing."""
    peers = chosen(names or [])
    daemon = next((peer.name for peer in peers if peer.engine), None)
    for option, given, needed, wanted in (
        ("--peer-embedder", embedder, daemon, f"--peer {next(iter(ROSTER))}"),
        ("--peer-reranker", reranker, daemon, f"--peer {next(iter(ROSTER))}"),
        ("--peer-reranker", reranker, embedder, "--peer-embedder FOLDER"),
        ("--peer-padded", padded, ROSTER[PADDED] in peers, f"--peer {PADDED}"),
    ):
        if given and not needed:
            raise UsageError(
                f"option {option}",
                got="nobody who reads it",
                wanted=f"it together with {wanted.split()[0]}",
                fix=f"Leave it out, or add for instance: {wanted}",
            )
    if not peers:
        return None
    if "search" not in settings.levels:
        raise UsageError(
            f"peers {', '.join(peer.name for peer in peers)}",
            got=f"the levels {', '.join(settings.levels)}",
            wanted="the level `search`, the only one that peers have",
            fix="Add it: --levels search",
        )
    models = read_models(embedder, reranker) if embedder else None
    return Invited(peers=peers, folder=settings.peers_folder, models=models, padded=padded)


def _installation(peer: Peer, folder: Path) -> Installation | None:
    return installation(peer, folder, peer.requirements) if peer.requirements else None


def _show(found: dict[Peer, Installation | None], *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                peer.name: {
                    "installed": each is None or each.installed,
                    "reason": each.reason if each else None,
                    "version": _version(peer, each) or None,
                }
                for peer, each in found.items()
            }
        )
        return
    rows = [[peer.name, peer.about, _version(peer, each), _state(each)] for peer, each in found.items()]
    results.print(terminal_table(Table(title="Peers", columns=["", "what", "version", "state"], rows=rows)))


def _version(peer: Peer, found: Installation | None) -> str:
    if found is None:
        return "skillserve's own"
    return found.packages.get(peer.main_package or "", "")


def _state(found: Installation | None) -> str:
    if found is None:
        return "needs no environment"
    return "installed" if found.installed else f"NOT installed: {found.reason}"
