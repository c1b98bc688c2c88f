"""The one door to TensorRT: a graph and its profiles → the bytes of a plan. Not verified on hardware.

Networks are strongly typed: every tensor has the type that the graph gives it, so the precision is the graph's, as it
passed its gates. The flag asks for it in TensorRT 10 and is ignored by 11, where nothing else exists and the builder
flags FP16 and BF16 are gone (NVIDIA, Migrating from TensorRT 10.x to 11.x).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skillserve.errors import ContractError, MissingExtraError
from skillserve_export.profiles import Profiles

__all__ = ["Options", "TensorRT"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How the builder searches."""

    workspace_bytes: int
    optimization_level: int
    """0 to 5, TensorRT's."""


class TensorRT:
    """TensorRT's Python module; raises MissingExtraError if there is none."""

    def __init__(self) -> None:
        try:
            import tensorrt
        except ImportError as error:
            raise MissingExtraError(
                "TensorRT",
                got=f"no module that loads ({error})",
                wanted="the Python module `tensorrt` of the release that serves",
                fix="Run deploy/build_tensorrt.sh in NVIDIA's container: see deploy/README.md.",
            ) from error
        self._trt: Any = tensorrt

    @property
    def version(self) -> str:
        """As `10.13.3.9`; a plan is read by this version only."""
        return str(self._trt.__version__)

    def build(
        self, graph: Path, inputs: Sequence[str], profiles: Profiles, options: Options, timings: bytes
    ) -> tuple[bytes, bytes]:
        """The plan, and TensorRT's timings with those of this build.

        `timings` of an earlier build save measuring; TensorRT refuses those of another GPU or version, and then
        starts without. Raises ContractError for a graph that it does not take.
        """
        trt = self._trt
        logger = trt.Logger(trt.Logger.WARNING)
        builder = trt.Builder(logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, logger)
        if not parser.parse_from_file(str(graph)):  # by its path: weights may stand beside it
            faults = [str(parser.get_error(i)) for i in range(parser.num_errors)]
            raise _refused(graph, f"a graph that its parser refuses: {'; '.join(faults)[:500]}")
        config = builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
        config.builder_optimization_level = options.optimization_level
        config.clear_flag(trt.BuilderFlag.TF32)  # float32 is to mean that, as in the gates
        for profile in profiles.profiles:
            shapes = builder.create_optimization_profile()
            for name in inputs:
                shapes.set_shape(name, profile.min, profile.opt, profile.max)
            if config.add_optimization_profile(shapes) < 0:
                raise _refused(graph, f"a profile that it refuses: {profile}")
        cache = config.create_timing_cache(timings)
        if not config.set_timing_cache(cache, ignore_mismatch=False):
            cache = config.create_timing_cache(b"")
            config.set_timing_cache(cache, ignore_mismatch=False)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise _refused(graph, "no plan; its reasons stand above, in its own log")
        return bytes(plan), bytes(cache.serialize())


def _refused(graph: Path, got: str) -> ContractError:
    return ContractError(
        f"TensorRT, building a plan of `{graph}`",
        got=got,
        wanted="a plan",
        fix="Serve the graph by ONNX Runtime: skillserve export WEIGHTS --layout padded --runtime onnxruntime-tensorrt",
    )
