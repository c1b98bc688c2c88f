"""All who take part in a measurement of the whole search: ours, and the peers that could be started.

A peer that could not is named with its reason. What is the user's mistake, such as a reranker that no peer can load, is
raised before anything is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from skillserve.card import ModelCard
from skillserve.console import talk
from skillserve.errors import CardError, SkillserveError, UsageError
from skillserve.machine import num_cores
from skillserve.settings import ClientSettings, IndexSettings, SearchSettings
from skillserve_bench.load.search import SearchTarget
from skillserve_bench.measurement import Contender
from skillserve_bench.peers.assignment import PeerModels, assign
from skillserve_bench.peers.daemon import started_daemon
from skillserve_bench.peers.install import installation, python_of
from skillserve_bench.peers.padded import started_padded
from skillserve_bench.peers.roster import Peer
from skillserve_bench.peers.target import PeerTarget, peer_payload
from skillserve_bench.supply import Texts, TextSupply
from skillserve_client import open_bundle

__all__ = ["Entrant", "Field", "Invited", "opened_field"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Invited:
    """Whom a user wants to see beside us, and with what."""

    peers: Sequence[Peer]
    folder: Path
    """Of their environments."""
    models: PeerModels | None
    """For daemons."""
    padded: Path | None
    """Repository for the padded Triton."""

    def require(self, served: ModelCard, *, reranks: bool) -> None:
        """Raise UsageError for what is missing, CardError for another embedder than the one that is served."""
        wanted = {
            "--peer-embedder": any(peer.engine for peer in self.peers) and self.models is None,
            "--peer-reranker": reranks and self.models is not None and self.models.reranker is None,
            "--peer-padded": any(not peer.engine for peer in self.peers) and self.padded is None,
        }
        for option, missing in wanted.items():
            if missing:
                raise UsageError(
                    f"peers {', '.join(peer.name for peer in self.peers)}",
                    got=f"no {option}",
                    wanted="the models that they run",
                    fix=f"Name them: {option} FOLDER",
                )
        if self.models and self.models.embedder_card.digest != served.digest:
            raise CardError(
                f"embedder `{self.models.embedder}` for peers",
                got=f"digest {self.models.embedder_card.short_digest}",
                wanted=f"{served.short_digest}, which is served",
                fix="Name the weights folder that the repository was exported from: --peer-embedder FOLDER",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrant:
    """One who takes part."""

    contender: Contender
    about: str
    version: str
    """Of what was measured."""
    payload: Callable[[str], bytes]
    """A request's text as its target reads it."""
    reranker: str
    """Name and digest of what reranks, or `none`."""
    threads: int | None
    """That it was told to compute with; None where its configuration decides."""

    @property
    def name(self) -> str:
        """As in every table."""
        return self.contender.name


@dataclass(slots=True, kw_only=True)
class Field:
    """Those who take part, ours first, and of the others why not."""

    entrants: list[Entrant] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)


@contextmanager
def opened_field(
    invited: Invited,
    ours: Entrant,
    *,
    index: IndexSettings,
    texts: Callable[[], Texts],
    search: SearchSettings,
    client: ClientSettings,
) -> Iterator[Field]:
    """Start every peer that can be started; each draws the same requests, from `texts` of its own."""
    found = Field(entrants=[ours])
    with ExitStack() as stack:
        work = Path(stack.enter_context(TemporaryDirectory()))
        for peer in invited.peers:
            try:
                entrant = (
                    _daemon(stack, invited, peer, work / peer.name, index, texts(), search, client)
                    if peer.engine
                    else _padded(stack, invited, peer, work, index, texts(), search, client, ours)
                )
            except SkillserveError as error:
                found.absent[peer.name] = error.got
                talk(f"{peer.name} does not take part: {error.got}")
            else:
                found.entrants.append(entrant)
        yield found


def _daemon(
    stack: ExitStack,
    invited: Invited,
    peer: Peer,
    folder: Path,
    index: IndexSettings,
    texts: Texts,
    search: SearchSettings,
    client: ClientSettings,
) -> Entrant:
    if peer.engine is None or peer.requirements is None or invited.models is None:
        raise ValueError(f"{peer.name} is no daemon, or its models were not required")
    installed = installation(peer, invited.folder, peer.requirements)
    if not installed.installed:
        raise UsageError(
            f"peer `{peer.name}`", got=installed.reason or "no reason", wanted="an environment", fix="Install it."
        )
    models = invited.models
    corpus = open_bundle(index.bundles, index=index).corpus
    skills = [corpus.skills.skill(row) for row in range(len(corpus.skills))]
    vectors = corpus.index.vectors([skill.id for skill in skills])
    assign(folder, models, skills, vectors, search, threads=num_cores())
    daemon = stack.enter_context(started_daemon(peer.name, peer.engine, python_of(invited.folder, peer), folder))
    payload = partial(peer_payload, models.embedder_card.query_prompt)
    main = peer.main_package or peer.name
    return Entrant(
        contender=Contender(
            name=peer.name,
            target=PeerTarget(peer.name, daemon.port, client.timeout_s, daemon.told),
            supply=TextSupply(texts, payload),
            server_pid=daemon.pid,
        ),
        about=peer.about,
        version=f"{main} {installed.packages.get(main, 'unknown')}",
        payload=payload,
        reranker=named(models.reranker_card),
        threads=daemon.threads,
    )


def _padded(
    stack: ExitStack,
    invited: Invited,
    peer: Peer,
    folder: Path,
    index: IndexSettings,
    texts: Texts,
    search: SearchSettings,
    client: ClientSettings,
    ours: Entrant,
) -> Entrant:
    if invited.padded is None:
        raise ValueError("its repository was not required")
    server = stack.enter_context(started_padded(invited.padded, folder))
    # Padded repositories have no token embedder.
    target = SearchTarget(server.reached(client), index, search, by_pairs=True)
    return Entrant(
        contender=Contender(name=peer.name, target=target, supply=TextSupply(texts, str.encode), server_pid=server.pid),
        about=peer.about,
        version=server.version,
        payload=str.encode,
        reranker=ours.reranker,  # the bundle is of both models, and refuses others
        threads=None,
    )


def named(card: ModelCard | None) -> str:
    """A model in a table."""
    return "none" if card is None else f"{card.name} ({card.family}, {card.short_digest})"
