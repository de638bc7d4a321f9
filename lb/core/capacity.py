"""Soft limits of connections: which backends are full, and who of them gets no new flows. Pure.

Theory of operation. Each node counts the connections that it translates itself (mode fullnat), every two
seconds, so a limit holds on each node for itself, and new flows of two seconds may exceed it.

- A backend gets *full* when it has as many connections as its limit, and stays so until it has less than
  90 % of it. Without that distance, one connection that ends would move its slots back and forth.
- Who is full gets no new flows. Connections that it has stay.
- But where that would leave a pool nobody, nobody of it is held back: a limit is there to spread
  connections, not to refuse them, and the rest would have to go to pools that nobody asked for them in.
  So the last usable backend of a pool is never held back, and a backup pool doesn't take over.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from lb.model.objects import Backend

LOW = 0.9  # of its limit: below it a backend isn't full any more
WORTH_TELLING = 0.1  # of its limit: how much a count differs from the one that was told last


class Full(NamedTuple):
    """A backend that is full. `connections`: when that was told last."""

    connections: int
    limit: int


def full(
    backends: Iterable[Backend], connections: Mapping[str, int], before: Mapping[str, Full]
) -> dict[str, Full]:
    """Who of a service's backends is full. `connections`: that each has now, `before`: who was full
    until now, both by name."""
    found = {}
    for each in backends:
        limit, count = each.max_connections, connections.get(each.name, 0)
        if limit is None:
            continue
        held = before.get(each.name)
        if count < (limit if held is None else LOW * limit):
            continue
        same = held and held.limit == limit
        if held and same and abs(count - held.connections) <= WORTH_TELLING * limit:
            found[each.name] = held
        else:
            found[each.name] = Full(count, limit)
    return found


def held_back(
    backends: Iterable[Backend], fitness: Mapping[str, float], full: Collection[str]
) -> tuple[frozenset[str], tuple[str, ...]]:
    """Who gets no new flows because it is full, and the pools in which all are full, so that all are
    used. `fitness`: 0 of those that can't be used anyway, 1 where it isn't named."""
    pools: dict[str, set[str]] = {}
    for each in backends:
        if each.takes_flows and fitness.get(each.name, 1.0) > 0:
            pools.setdefault(each.pool, set()).add(each.name)
    held: set[str] = set()
    crammed = []
    for pool, usable in sorted(pools.items()):
        if not usable.issubset(full):
            held |= usable.intersection(full)
        else:
            crammed.append(pool)
    return frozenset(held), tuple(crammed)
