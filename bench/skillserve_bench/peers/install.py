"""An environment for each peer, and a record of what became of it: installed, or the reason why not.

FOLDER/NAME/            virtual environment
FOLDER/NAME/peer.json   the record
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from skillserve.console import talk
from skillserve.publish import sha256_of, write_text
from skillserve_bench.peers.roster import Peer

__all__ = ["RECORD_FILE", "Installation", "install", "installation", "python_of"]

RECORD_FILE = "peer.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """What became of a peer's environment."""

    name: str
    installed: bool
    reason: str | None
    """Why it is not installed: the last error of whoever could not go on."""
    packages: dict[str, str]
    """Distribution → version, all that the environment holds."""
    requirements: str
    """SHA-256 of the file that was installed."""
    seconds: float


def python_of(folder: Path, peer: Peer) -> Path:
    """The interpreter of a peer's environment."""
    return folder / peer.name / "bin" / "python"


def install(peer: Peer, folder: Path, requirements: Path) -> Installation:
    """Make the environment, or go on with one that is there; a failure is recorded with its reason, not raised."""
    begin, home = time.monotonic(), folder / peer.name
    # The record of what is about to change; if this is killed, none says that the environment is whole.
    (home / RECORD_FILE).unlink(missing_ok=True)
    python = python_of(folder, peer)
    talk(f"{peer.name}: installing {requirements.name} into {home}")
    # Ours installs into it: an environment without a pip of its own is made at once.
    listed, reason = _carried_out(
        [sys.executable, "-m", "venv", "--without-pip", str(home)],
        [*_pip(python), "install", "--quiet", "--requirement", str(requirements)],
        [*_pip(python), "list", "--format", "json"],
    )
    found = Installation(
        name=peer.name,
        installed=reason is None,
        reason=reason,
        packages={} if reason else _packages(listed),
        requirements=sha256_of(requirements),
        seconds=round(time.monotonic() - begin, 1),
    )
    home.mkdir(parents=True, exist_ok=True)
    write_text(home / RECORD_FILE, json.dumps(asdict(found), indent=2) + "\n")
    return found


def installation(peer: Peer, folder: Path, requirements: Path) -> Installation:
    """What is recorded of a peer; without a record, or with one of other requirements, it counts as not installed."""
    wanted, again = sha256_of(requirements), f"skillserve bench peers install {peer.name} --peers-folder {folder}"
    try:
        found = Installation(**json.loads((folder / peer.name / RECORD_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return _absent(peer, wanted, f"no environment in {folder}: {again}")
    if found.requirements != wanted:
        return _absent(peer, wanted, f"its environment was made from other requirements: {again}")
    if found.installed and not python_of(folder, peer).exists():
        return _absent(peer, wanted, f"its environment is gone: {again}")
    return found


def _absent(peer: Peer, requirements: str, reason: str) -> Installation:
    return Installation(
        name=peer.name, installed=False, reason=reason, packages={}, requirements=requirements, seconds=0.0
    )


def _carried_out(*commands: Sequence[str]) -> tuple[str, str | None]:
    """Run commands until one fails; stdout of the last that ran, and the last error it told, None if all succeeded."""
    output = ""
    for command in commands:
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        except OSError as error:
            return output, str(error)
        output = done.stdout
        if done.returncode:
            lines = [line.strip() for line in (output + "\n" + done.stderr).splitlines() if line.strip()]
            errors = [line for line in lines if line.startswith("ERROR:")]
            last = (errors or lines or [f"exit code {done.returncode}"])[-1]
            return output, last.removeprefix("ERROR:").strip()
    return output, None


def _pip(python: Path) -> list[str]:
    """The pip of this interpreter, on another one."""
    return [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--python", str(python)]


def _packages(listed: str) -> dict[str, str]:
    # Some call themselves infinity_emb; names are compared with hyphens, as the index writes them.
    return {each["name"].lower().replace("_", "-"): each["version"] for each in json.loads(listed)}
