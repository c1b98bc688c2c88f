"""Which requests a mean hides: groups of them, by how many skills fit and by whose skills those are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from skillserve.collection import Collection

__all__ = ["MOST_NAMESPACES", "Groups", "by_namespace", "by_num_golds"]

MOST_NAMESPACES = 10
"""Namespaces with a group of their own; the requests of the others are summed up in one."""

Groups = Mapping[str, Sequence[int]]
"""Title → positions in the collection's queries."""


def by_num_golds(collection: Collection) -> Groups:
    """Requests by the number of skills that fit, fewest first."""
    groups: dict[int, list[int]] = defaultdict(list)
    for place, query in enumerate(collection.queries):
        groups[len(collection.golds(query))].append(place)
    return {str(count): groups[count] for count in sorted(groups)}


def by_namespace(collection: Collection) -> Groups:
    """Requests by the namespace of their golds, most requests first, the smaller namespaces summed up at the end.

    A request whose golds are of several namespaces is in the group of each.
    """
    namespaces = {skill.id: skill.namespace or "(none)" for skill in collection.skills}
    groups: dict[str, list[int]] = defaultdict(list)
    for place, query in enumerate(collection.queries):
        for namespace in {namespaces[skill] for skill in collection.golds(query)}:
            groups[namespace].append(place)
    largest = sorted(groups, key=lambda namespace: (-len(groups[namespace]), namespace))
    shown, summed = largest[:MOST_NAMESPACES], largest[MOST_NAMESPACES:]
    rest = sorted({place for namespace in summed for place in groups[namespace]})
    return {namespace: groups[namespace] for namespace in shown} | ({f"{len(summed)} others": rest} if rest else {})
