"""What an even table is, and how little can be moved to get to one: exact, in integers.

A table is *even* when each backend's slots differ by at most one from its exact share of them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

Weights = Mapping[str, int]


@dataclass(frozen=True, eq=False)
class Layout:
    """A table as all peers have it: `slots` are indexes into `names`."""

    names: tuple[str, ...]
    slots: NDArray[np.int32]

    def counts(self) -> dict[str, int]:
        """Slots of each backend."""
        held = np.bincount(self.slots, minlength=len(self.names))
        return {name: int(n) for name, n in zip(self.names, held, strict=True)}


def exact(weights: Weights, size: int) -> dict[str, Fraction]:
    """Each backend's share of `size` slots. Some weight must be positive."""
    total = sum(weights.values())
    return {name: Fraction(size * weight, total) for name, weight in weights.items()}


def moved(before: Layout, after: Layout) -> int:
    """How many slots name another backend than before."""
    index = {name: i for i, name in enumerate(after.names)}
    lookup = np.array([index.get(name, -1) for name in before.names], dtype=np.int32)
    return int(np.count_nonzero(lookup[before.slots] != after.slots))


def least(held: Mapping[str, int], weights: Weights, size: int) -> int:
    """How many slots must move at least from a table with these counts to any table that is even for
    these weights.

    Each backend must give up what it holds above the greatest count that is even, and take what it
    lacks to the least; whichever is more in sum is reached, because every slot that is given up is
    one that is taken, and the bounds leave room for the exact shares between them.
    """
    share = exact(weights, size)
    give = take = 0
    for name in held.keys() | share.keys():
        have, want = held.get(name, 0), share.get(name, Fraction(0))
        give += max(0, have - (math.floor(want + 1) if want else 0))
        take += max(0, math.ceil(want - 1) - have)
    return max(give, take)


def must_change(before: Weights, after: Weights) -> Fraction:
    """The part of the traffic that has to change hands, whatever the table: the total variation
    distance between the exact shares."""
    old, new = exact(before, 1), exact(after, 1)
    return sum((max(Fraction(0), part - new.get(name, 0)) for name, part in old.items()), Fraction(0))


@dataclass(frozen=True)
class Evenness:
    """How far a table is from the exact shares."""

    max_over_share: float  # the most overloaded backend's slots over its exact share
    deviation: float  # standard deviation of slots over exact share, in per cent
    worst_slots: float  # the greatest distance from an exact share, in slots


def evenness(layout: Layout, weights: Weights) -> Evenness:
    """Of a table, for weights that are all positive."""
    share = exact(weights, len(layout.slots))
    held = layout.counts()
    parts = [float(held[name] / share[name]) for name in weights]
    return Evenness(
        max_over_share=max(parts),
        deviation=100 * statistics.pstdev(parts),
        worst_slots=float(max(abs(held[name] - share[name]) for name in weights)),
    )


def runs(slots: NDArray[np.int32]) -> int:
    """How many runs of equal slots a table has: what its stored form is made of."""
    return int(np.count_nonzero(np.diff(slots))) + 1
