"""Products by one thread each, and a process whose threads of BLAS are afterwards as they were."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController, threadpool_info

from skillserve.max_sim import Interaction
from skillserve_client import token_embeddings
from skillserve_client.blas import OneThread
from skillserve_client.token_embeddings import SkillTokens, TokenEmbeddings


def num_threads() -> set[int]:
    """Of every BLAS in this process."""
    return {each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"}


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """Whatever the number of cores."""
    with ThreadpoolController().limit(limits=2, user_api="blas"):
        assert num_threads() == {2}
        yield


def test_the_first_one_sets_the_limit_and_the_last_one_takes_it_back() -> None:
    one_thread = OneThread()
    first, second = one_thread(), one_thread()
    first.__enter__()
    assert num_threads() == {1}
    second.__enter__()
    first.__exit__(None, None, None)
    assert num_threads() == {1}  # the second one still multiplies
    second.__exit__(None, None, None)
    assert num_threads() == {2}
    with one_thread():
        assert num_threads() == {1}
    assert num_threads() == {2}


def test_a_product_that_fails_leaves_no_limit() -> None:
    one_thread = OneThread()
    with pytest.raises(ValueError, match="cannot be multiplied"), one_thread():
        raise ValueError("cannot be multiplied")
    assert num_threads() == {2}


def test_skills_are_compared_by_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    embedded = [rng.standard_normal((length, 8)).astype(np.float32) for length in (3, 5)]
    kept = TokenEmbeddings.joined(map(SkillTokens.of, embedded), 8, Interaction(window=2, scale=1.0))
    seen: list[set[int]] = []
    compared = token_embeddings.max_sim

    def watched(*args: object, **kwargs: object) -> np.ndarray:
        seen.append(num_threads())
        return compared(*args, **kwargs)

    monkeypatch.setattr(token_embeddings, "max_sim", watched)
    assert len(kept.scores(embedded[0], [0, 1])) == 2
    assert seen == [{1}]
    assert num_threads() == {2}
