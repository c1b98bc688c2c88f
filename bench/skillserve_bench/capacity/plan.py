"""The formulas: from measured figures to machines, hours and memory. `docs/capacity.md` tells them in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from skillserve_bench.capacity.growth import Estimate, Growth

__all__ = [
    "EmbeddingPlan",
    "IndexPlan",
    "Machine",
    "Machines",
    "machines_for_hours",
    "machines_for_memory",
    "plan_embedding",
    "plan_index",
]

_S_AN_HOUR = 3_600


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine that is planned with; its cores are those of the one that measured."""

    memory_bytes: float
    share: float
    """Of the memory, which an index may fill: the rest is the system's, the process's, and a build's."""

    @property
    def usable_bytes(self) -> float:
        """What an index may fill."""
        return self.memory_bytes * self.share


@dataclass(frozen=True, slots=True)
class Machines:
    """A whole number of them, at least 1, with its range."""

    num: int
    least: int
    greatest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingPlan:
    """What embedding all skills takes."""

    one_machine_h: Estimate
    machines: Machines
    """For the hours wanted."""
    num_shards: int
    file_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexPlan:
    """What holding all vectors takes, and what searches of them do."""

    memory_bytes: Estimate
    machines: Machines
    rows_each: int
    """Vectors on each machine, if there are so many machines as `machines.num`."""
    build_h: Estimate
    """Each machine builds its own part, all at once."""
    search_s: Estimate
    """Every machine searches its part; the slowest decides, and merging comes on top."""
    per_s: Estimate
    """Searches a second: of all machines together as many as of each, since all take part in each."""
    disk_bytes: Estimate


def machines_for_memory(memory_bytes: Estimate, machine: Machine) -> Machines:
    """⌈bytes / (bytes of a machine · share)⌉."""
    return _whole(memory_bytes.scaled(1 / machine.usable_bytes))


def machines_for_hours(one_machine_h: Estimate, hours: float) -> Machines:
    """⌈hours of one machine / hours wanted⌉: shards are independent of each other."""
    return _whole(one_machine_h.scaled(1 / hours))


def plan_embedding(skills: int, per_s: Estimate, *, hours: float, shard_rows: int, bytes_a_row: float) -> EmbeddingPlan:
    """Hours = skills / (skills a second) / 3600; files hold `shard_rows` skills each."""
    one_machine_h = per_s.inverse().scaled(skills / _S_AN_HOUR)
    return EmbeddingPlan(
        one_machine_h=one_machine_h,
        machines=machines_for_hours(one_machine_h, hours),
        num_shards=math.ceil(skills / shard_rows),
        file_bytes=skills * bytes_a_row,
    )


def plan_index(skills: int, growths: Mapping[str, Growth], machine: Machine, *, other_bytes: float) -> IndexPlan:
    """Memory for all skills decides how many machines there are; time is that of one machine's part."""
    beside = skills * other_bytes
    memory = growths["memory"].at(skills).plus(Estimate(value=beside, least=beside, greatest=beside))
    machines = machines_for_memory(memory, machine)
    rows_each = math.ceil(skills / machines.num)
    build = growths["add"].at(rows_each)
    if "train" in growths:
        build = build.plus(growths["train"].at(rows_each))
    return IndexPlan(
        memory_bytes=memory,
        machines=machines,
        rows_each=rows_each,
        build_h=build.scaled(1 / _S_AN_HOUR),
        search_s=growths["search"].at(rows_each),
        per_s=growths["batch"].at(rows_each).inverse(),
        disk_bytes=growths["disk"].at(skills),
    )


def _whole(machines: Estimate) -> Machines:
    return Machines(*(max(1, math.ceil(num)) for num in (machines.value, machines.least, machines.greatest)))
