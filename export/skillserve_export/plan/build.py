"""A model folder, exported for TensorRT → the same folder with its plan, from the cache or newly built."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from skillserve.errors import RepositoryError
from skillserve.graph_file import check_graph
from skillserve.publish import published_folder
from skillserve.settings import PlanSettings
from skillserve.tensors import ATTENTION_MASK, INPUT_IDS
from skillserve_export.plan.cache import EngineCache
from skillserve_export.plan.door import Options, TensorRT
from skillserve_export.plan.gpu import Gpu
from skillserve_export.plan.identity import ENGINE_FILE, EngineRecord, PlanIdentity
from skillserve_export.profiles import read_profiles
from skillserve_export.record import EXPORT_FILE, GRAPH_FILE, PLAN_FILE, digests, read_record

__all__ = ["Built", "build_plan"]

_INPUTS = (INPUT_IDS, ATTENTION_MASK)
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Built:
    """A plan that stands in its model folder."""

    folder: Path
    record: EngineRecord
    reused: bool
    """Whether it came from the cache."""


def build_plan(
    folder: Path,
    settings: PlanSettings,
    library: TensorRT,
    gpu: Gpu,
    *,
    version: int = 1,
    tell: Callable[[str], None] = lambda _: None,
) -> Built:
    """Build the plan of a model folder and put it there, whole or not at all.

    Raises RepositoryError for a folder that changed since its export or was not made for TensorRT, ContractError for
    a graph that TensorRT does not take.
    """
    record = read_record(folder)
    if record.runtime != "tensorrt":
        raise RepositoryError(
            f"model folder `{folder}`",
            got=f"an export for the runtime `{record.runtime}`",
            wanted="one for `tensorrt`, with its profiles and configuration",
            fix="Export it so: skillserve export WEIGHTS --layout padded --runtime tensorrt",
        )
    profiles = read_profiles(folder)
    graph = check_graph(folder / str(version) / GRAPH_FILE)
    options = Options(
        workspace_bytes=int(settings.workspace_gib * _GIB), optimization_level=settings.optimization_level
    )
    identity = PlanIdentity(
        graph_digest=graph.digest(),
        inputs=_INPUTS,
        profiles=profiles.profiles,
        tensorrt=library.version,
        gpu=gpu.name,
        compute_capability=gpu.compute_capability,
        workspace_bytes=options.workspace_bytes,
        optimization_level=options.optimization_level,
    )
    cache = EngineCache(settings.cache)
    found = cache.find(identity)
    if found is not None:
        tell(f"Plan {identity.key[:12]} is in `{settings.cache}` and is used again.")
        engine = found
    else:
        tell(f"Building plan {identity.key[:12]} on {gpu.name}, TensorRT {library.version}; this takes minutes.")
        started = time.monotonic()
        plan, timings = library.build(graph.path, _INPUTS, profiles, options, cache.timings(identity))
        engine = cache.keep(identity, plan, time.monotonic() - started)
        cache.keep_timings(identity, timings)
    with published_folder(folder) as draft:
        # Copies and no links: a file under two names is not loaded, see skillserve.graph_file.
        shutil.copytree(folder, draft, dirs_exist_ok=True)
        shutil.copyfile(cache.folder_of(identity) / PLAN_FILE, draft / str(version) / PLAN_FILE)
        (draft / ENGINE_FILE).write_text(engine.model_dump_json(indent=1) + "\n")
        updated = record.model_copy(update={"files": digests(draft)})
        (draft / EXPORT_FILE).write_text(updated.model_dump_json(indent=1) + "\n")
    return Built(folder, engine, reused=found is not None)
