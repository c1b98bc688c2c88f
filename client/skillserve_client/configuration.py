"""Reading `config.pbtxt` with Triton's own message, for what runs a repository's model without its server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import json_format, text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from skillserve.errors import RepositoryError

__all__ = ["as_backend_reads_it", "read_configuration", "served_version"]


def read_configuration(folder: Path) -> Any:  # noqa: ANN401 - protobuf messages carry no usable types
    """The configuration message of a model folder; raises RepositoryError."""
    path = folder / "config.pbtxt"
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise RepositoryError(
            f"model folder `{folder}`",
            got=f"no readable config.pbtxt ({error})",
            wanted="a model written by `skillserve export`",
            fix="Export it: skillserve export WEIGHTS, or name its repository: --models FOLDER",
        ) from error


def served_version(config: Any) -> str:  # noqa: ANN401 - see above
    """The newest version that the configuration serves."""
    return str(max(config.version_policy.specific.versions, default=1))


def as_backend_reads_it(config: Any) -> dict[str, Any]:  # noqa: ANN401 - see above
    """The message as Triton hands it to a backend, defaults written out."""
    read: dict[str, Any] = json_format.MessageToDict(
        config, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return read
