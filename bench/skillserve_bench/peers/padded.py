"""Triton on a repository of the padded layout whose configuration joins nothing, as transformer-deploy writes it.

Its templates give an ONNX graph ids and masks of one request, padded to that request's longest text, with one instance
and no `dynamic_batching`. The rest is skillserve's: the graph, the client, which tokenises in its own process, and the
bundle. So this peer tells what ragged batching is worth, not what the rest of a line would cost.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from google.protobuf import text_format

from skillserve.errors import RepositoryError
from skillserve.publish import write_text
from skillserve.tensors import LAYOUT_PARAMETER
from skillserve_bench.server import Server, started_server
from skillserve_client.configuration import read_configuration

__all__ = ["joining_nothing", "started_padded"]


def joining_nothing(repository: Path, target: Path) -> None:
    """Copy a padded repository without dynamic batching; raises RepositoryError for none, or for another layout."""
    if not any(repository.glob("*/config.pbtxt")):
        raise RepositoryError(
            f"padded model repository `{repository}`",
            got="no models in it",
            wanted="a folder written by `skillserve export`",
            fix="Export them: skillserve export WEIGHTS --layout padded --repository FOLDER",
        )
    shutil.copytree(repository, target)
    for path in sorted(target.glob("*/config.pbtxt")):
        config = read_configuration(path.parent)
        layout = config.parameters[LAYOUT_PARAMETER].string_value
        if layout != "padded":
            raise RepositoryError(
                f"model `{config.name}` in `{repository}`",
                got=f"layout `{layout}`",
                wanted="`padded`",
                fix="Export it so: skillserve export WEIGHTS --layout padded --repository FOLDER",
            )
        config.ClearField("dynamic_batching")
        write_text(path, text_format.MessageToString(config))


@contextmanager
def started_padded(repository: Path, folder: Path) -> Iterator[Server]:
    """Serve such a copy, made in `folder`, while the block runs."""
    target = folder / "padded"
    joining_nothing(repository, target)
    with started_server(target) as server:
        yield server
