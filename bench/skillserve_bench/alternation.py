"""Contenders measured in turns: A B A B, so that whatever the machine does meanwhile happens to all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

__all__ = ["alternate"]

Measurement = TypeVar("Measurement")


def alternate(
    contenders: Mapping[str, Callable[[int], Measurement]],
    *,
    rounds: int,
    warm_up: int = 1,
    advance: Callable[[], object] = lambda: None,
) -> dict[str, list[Measurement]]:
    """Measure every contender once per round, in the given order; returns the measurements by name.

    A contender is called with the number of its round. Rounds of the warm-up are negative and not returned.
    `advance` is called after each measurement, warm-up included.
    """
    measured: dict[str, list[Measurement]] = {name: [] for name in contenders}
    for number in range(-warm_up, rounds):
        for name, contender in contenders.items():
            measurement = contender(number)
            if number >= 0:
                measured[name].append(measurement)
            advance()
    return measured
