"""The client room: a catalogue becomes a bundle, a request becomes hits, through a Triton server and never torch."""

from skillserve_client.build import Built, build_bundle
from skillserve_client.bundle import Bundle, open_bundle
from skillserve_client.calibration import Calibration
from skillserve_client.manifest import Manifest, Quality
from skillserve_client.search import AsyncSearcher, Searcher
from skillserve_client.triton import AsyncTriton, Triton
from skillserve_client.wire import AsyncInference, Inference, ServedModel, Statistics

__all__ = [
    "AsyncInference",
    "AsyncSearcher",
    "AsyncTriton",
    "Built",
    "Bundle",
    "Calibration",
    "Inference",
    "Manifest",
    "Quality",
    "Searcher",
    "ServedModel",
    "Statistics",
    "Triton",
    "build_bundle",
    "open_bundle",
]
