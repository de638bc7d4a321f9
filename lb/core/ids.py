"""Ids: the small numbers that services and backends have in the kernel maps of one node. Pure.

An id is given back when its owner goes, and given out again as late as possible; each time it is,
its generation grows (and if its owner becomes somebody else under its name: renewed()). A conntrack
entry holds id and generation, so it never leads an old flow to a new owner, however early the id is
reused. A quiet slot holds the id alone: an id that changes hands in one step has to be out of all tables
before its new owner gets it (changed_hands()).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from lb.errors import CapacityError


@dataclass(frozen=True)
class Allocation:
    """One id: who owns it (uid, 0 = nobody), and how often it was given out."""

    owner: int
    generation: int


def uid(key: str) -> int:
    """64 bits that stand for an object of the store in the kernel's owner maps; never 0."""
    number = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")
    return number or 1


def allocate(
    held: Mapping[int, Allocation], wanted: Collection[int], capacity: int, what: str
) -> dict[int, Allocation]:
    """Ids for the wanted owners; those that have one keep it.

    `held` and the result map ids 1..capacity-1 to allocations; ids without an owner are kept for
    their generation. Raises CapacityError.
    """
    owned = {each.owner: number for number, each in held.items() if each.owner}
    result = {
        number: each if each.owner in wanted else Allocation(0, each.generation)
        for number, each in held.items()
    }
    new = sorted(set(wanted) - owned.keys())
    if not new:
        return result
    # Never used before is best (generation 0), then what was used least often; last what some packet may
    # still be sent to, as its owner goes only now.
    free = sorted(
        (held[number].owner != 0, each.generation, number)
        for number, each in result.items()
        if each.owner == 0
    )
    fresh = (number for number in range(1, capacity) if number not in result)
    for owner in new:
        number = next(fresh, 0)
        if not number:
            if not free:
                raise CapacityError(
                    f"{what} map is full ({capacity - 1} entries)",
                    hint=f"raise limits.{what} in lb.toml, then lbd --detach and start lbd again",
                )
            *_, number = free.pop(0)
        before = result.get(number)
        result[number] = Allocation(owner, before.generation + 1 if before else 1)
    return result


def renewed(allocations: Mapping[int, Allocation], numbers: Collection[int]) -> dict[int, Allocation]:
    """The same, with these ids as if they had been given out anew, to the owners that they have."""
    return {
        number: Allocation(each.owner, each.generation + 1) if number in numbers else each
        for number, each in allocations.items()
    }


def given_out(held: Mapping[int, Allocation], after: Mapping[int, Allocation]) -> list[int]:
    """The ids that have owners in `after` who don't have them in `held`."""
    return [
        number
        for number, each in after.items()
        if each.owner and (number not in held or held[number].owner != each.owner)
    ]


def changed_hands(held: Mapping[int, Allocation], after: Mapping[int, Allocation]) -> set[int]:
    """Owners in `after` of ids that somebody else has in `held`."""
    return {
        each.owner
        for number, each in after.items()
        if each.owner and number in held and held[number].owner not in (0, each.owner)
    }
