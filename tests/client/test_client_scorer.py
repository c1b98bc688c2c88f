"""The served line as a scorer: one model, the one that is meant, from the first row to the last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from skillserve.card import ModelCard
from skillserve.errors import BundleError, RepositoryError
from skillserve.scoring import open_server
from skillserve.settings import ClientSettings

SEQUENCES = [np.arange(5, 5 + 1 + i % 20, dtype=np.int32) for i in range(30)]
GRAPH = {"skillserve_precision": "bf16", "skillserve_graph_digest": "a" * 64}

CardOf = Callable[..., ModelCard]


@pytest.fixture
def card(card_of: CardOf) -> ModelCard:
    return card_of("embedder", digest="e" * 64)


def test_rows_come_from_the_server_and_facts_name_it(
    wire_server: Any, wire_settings: ClientSettings, card: ModelCard, computed: Callable[..., Any]
) -> None:
    wire_server.parameters |= GRAPH
    ticks: list[int] = []
    with open_server(card, wire_settings) as scorer:
        rows = scorer.score(SEQUENCES, progress=ticks.append)
        assert scorer.precision == "bf16"
        assert dict(scorer.facts) == {
            "server": "triton 2.51.0",
            "address": wire_server.url,
            "model_version": "10",
            "digest": "e" * 64,
            "graph_digest": "a" * 64,
            "layout": "packed",
        }
    np.testing.assert_array_equal(rows, computed("embedder", SEQUENCES))
    assert sum(ticks) == len(SEQUENCES)


def test_another_digest_is_refused_at_the_door(
    wire_server: Any, wire_settings: ClientSettings, card: ModelCard
) -> None:
    wire_server.parameters |= GRAPH
    wire_server.digests["embedder"] = "b" * 64
    with (
        pytest.raises(RepositoryError, match=r"embedder bbbbbbbbbbbb, version 10; wanted embedder eeeeeeeeeeee"),
        open_server(card, wire_settings),
    ):
        pass
    assert not wire_server.requests


def test_a_server_that_names_no_precision_has_no_limits(wire_settings: ClientSettings, card: ModelCard) -> None:
    with pytest.raises(RepositoryError, match="wanted one of fp32, bf16"), open_server(card, wire_settings):
        pass


@pytest.mark.parametrize("change", ["digest", "graph"])
def test_a_model_that_changes_in_between_gives_no_figures(
    change: str, wire_server: Any, wire_settings: ClientSettings, card: ModelCard
) -> None:
    wire_server.parameters |= GRAPH
    with open_server(card, wire_settings) as scorer:
        if change == "graph":
            wire_server.parameters["skillserve_graph_digest"] = "c" * 64
        else:
            wire_server.digests["embedder"] = "b" * 64
        with pytest.raises((RepositoryError, BundleError)):
            scorer.score(SEQUENCES)
