"""How many slots everybody gets: pools of all slots, backends of their pool's.

*Even* means: each pool within one slot of its exact share of all slots; each backend within one slot
of its exact share of all slots, and of its share of what its pool got. Among all even answers these
functions take one that moves least from what is held now, and then one that is nearest to the exact
shares. All arithmetic is in integers, so that every machine rounds alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
_Cost = tuple[int, int, int]  # against the direction of the split, moves, distance from exact shares


@dataclass(frozen=True, eq=False)
class Pool:
    """A pool that gets slots. `part` is its share in some unit common to all pools; `before` the
    part that it had when the present table was planned, None = it had none or nobody knows.
    `weights` and `held` are per backend: its weight, and the slots that it holds now."""

    part: int
    before: int | None
    weights: IntArray
    held: IntArray


@dataclass(frozen=True, eq=False)
class _Option:
    """One size that a pool may be given, and what comes with it."""

    size: int
    targets: IntArray
    moves: int  # slots that its backends have to give up
    error: int  # distance from the exact share, in units of 1 / sum of parts
    rising: int  # how far the pool's size goes against the direction of its part


def apportion(slots: int, pools: Sequence[Pool]) -> list[IntArray]:
    """Slots for each backend of each pool; they sum to `slots` (0 if no pool has weight).

    Besides being even and moving least, it is monotone: a pool whose part grew loses no slot, one
    whose part shrank gains none.
    """
    whole = sum(pool.part for pool in pools if pool.weights.any())
    previous = sum(pool.before or 0 for pool in pools)
    if not whole:
        return [np.zeros(len(pool.weights), dtype=np.int64) for pool in pools]
    choices = [
        _options(slots, pool, whole, previous) if pool.part and pool.weights.any() else [_nothing(pool)]
        for pool in pools
    ]
    # The cheapest way to each size of all pools so far; all combinations would be 3^pools.
    best: dict[int, tuple[_Cost, tuple[_Option, ...]]] = {0: ((0, 0, 0), ())}
    for options in choices:
        longer: dict[int, tuple[_Cost, tuple[_Option, ...]]] = {}
        for so_far, (cost, chosen) in best.items():
            for option in options:
                size = so_far + option.size
                price = (
                    cost[0] + option.rising,
                    cost[1] + option.moves,
                    cost[2] + option.error,
                )
                if size not in longer or price < longer[size][0]:
                    longer[size] = price, (*chosen, option)
        best = longer
    return [option.targets for option in best[slots][1]]


def _nothing(pool: Pool) -> _Option:
    targets = np.zeros(len(pool.weights), dtype=np.int64)
    return _Option(0, targets, int(pool.held.sum()), 0, 0)


def _options(slots: int, pool: Pool, whole: int, previous: int) -> list[_Option]:
    exact = slots * pool.part
    total = int(pool.weights.sum())
    held = int(pool.held.sum())
    found = []
    for size in range(-((whole - exact) // whole), (exact + whole) // whole + 1):
        if not 0 <= size <= slots:
            continue
        targets = split(size, pool.weights, total, pool.held, (exact * pool.weights, whole * total))
        rising = 0
        if pool.before is not None and previous:
            # Compare part/whole with before/previous without dividing.
            change = pool.part * previous - pool.before * whole
            rising = max(held - size, 0) if change > 0 else max(size - held, 0) if change < 0 else 0
        found.append(
            _Option(
                size=size,
                targets=targets,
                moves=int(np.maximum(pool.held - targets, 0).sum()),
                error=abs(size * whole - exact),
                rising=rising,
            )
        )
    return found


def split(
    size: int,
    weights: IntArray,
    total: int,
    held: IntArray,
    exact: tuple[IntArray, int] | None = None,
    least: IntArray | None = None,
) -> IntArray:
    """`size` slots among backends by weight (`total` = sum of weights), as near to `held` as even
    allows. `exact` = (numerators, denominator) are shares that must be kept within one slot besides
    those of `size` itself. Nobody gets less than `least`, evenness or not.
    """
    inside = size * weights
    low, high = _bounds(inside, total)
    if exact is not None:
        low_all, high_all = _bounds(*exact)
        low, high = np.maximum(low, low_all), np.minimum(high, high_all)
    low, high = np.maximum(low, 0), np.where(weights > 0, high, 0)  # weight 0 is no slot at all
    if least is not None:
        low = np.maximum(low, least)
        high = np.maximum(high, low)
        if int(low.sum()) > size:  # more is held for good than evenness leaves room for
            low = least
    result: IntArray = np.clip(held, low, high)
    # A backend's room is at most two slots, so this ends soon.
    while missing := size - int(result.sum()):
        step = 1 if missing > 0 else -1
        may = np.flatnonzero(result < high if missing > 0 else result > low)
        if not len(may):
            may = np.flatnonzero(weights > 0) if missing > 0 else np.flatnonzero(result > 0)
        need = (inside[may] - result[may] * total) * step
        order = may[np.lexsort((may, -need))]
        result[order[: abs(missing)]] += step
    return result


def _bounds(numerator: IntArray, denominator: int) -> tuple[IntArray, IntArray]:
    """The least and the greatest integer that is within one of numerator / denominator."""
    return -((denominator - numerator) // denominator), (numerator + denominator) // denominator


def parts(split_of: Mapping[str, float]) -> dict[str, int]:
    """A split in per cent as integers: millionths of a per cent, exact for what people type."""
    return {pool: round(percent * 1_000_000) for pool, percent in split_of.items()}
