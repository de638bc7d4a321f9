"""The overlay: what a node programs when some backends can't take their whole share.

A pure function of the base table and of each backend's *fitness* (0 = can't be used, 1 = whole, between
= slow start), so that every node with the same view has the same table, whatever it saw before.

1. A backend keeps the first of its base slots, as many as its fitness allows, in an order that is
   fixed for each slot. The others become orphans. So a backend that comes back gets exactly its own
   slots back, and one that ramps up gets them back one after the other.
2. Each orphan has an endless, fixed sequence of candidates, drawn by weight (its own pool's
   backends first of all); it goes to the first that accepts. A candidate of fitness f accepts the
   share f of all slots, always the same ones. Only the slots of a backend that falls move then, and
   only those that went to it move back.
3. That is even on average; what is missing to even to the slot is repaired by passing orphans on
   from those who got too many, again in fixed orders, so that the repair differs little when little
   changes.

Steps 1 and 2 alone would move exactly the least possible; step 3 costs a little on top (docs: how
much). This is rendezvous hashing's idea, drawn instead of ranked: the work is proportional to the
orphans, not to orphans times backends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lb.core import apportion
from lb.core.apportion import IntArray
from lb.core.flowhash import mix_words
from lb.core.slots import EMPTY, SLOTS, Member, Table

# A slot whose candidates all refuse for so long takes what is left; (1 - share)^ROUNDS of the
# orphans get there, and the repair looks at them anyway.
_ROUNDS = 48

U64 = NDArray[np.uint64]


def overlay(base: Table, members: Sequence[Member], fitness: Mapping[str, float]) -> Table:
    """The table that serves while backends have this fitness (1 where it isn't named).

    A backend's slots stay in its pool while anybody in it is fit; after that they go to the other
    pools by split and weight. Where nobody is fit, slots are EMPTY.
    """
    fit = np.array([min(max(fitness.get(name, 1.0), 0.0), 1.0) for name in base.backends])
    if (fit >= 1.0).all():
        return base
    known = {member.name: member for member in members}
    weights = np.array([known[n].weight if n in known else 0 for n in base.backends], np.int64)
    pools = np.array([known[n].pool if n in known else "" for n in base.backends], dtype=object)
    # Fitness as 16-bit fractions keeps the arithmetic in integers.
    effective = weights * np.round(fit * 65536).astype(np.int64)
    return _Overlay(base, weights, effective, pools).table()


class _Overlay:
    def __init__(
        self, base: Table, weights: IntArray, effective: IntArray, pools: NDArray[np.object_]
    ) -> None:
        self.base = base
        self.weights = weights
        self.effective = effective
        self.pools = pools
        self.slots = base.slots.copy()
        self.held = np.bincount(base.slots[base.slots >= 0], minlength=len(weights))

    def table(self) -> Table:
        alive = {pool for pool in set(self.pools) if self.effective[self.pools == pool].any()}
        if not alive:
            return Table(self.base.backends, np.full(SLOTS, EMPTY, dtype=np.int32), self.base.parts)
        owner_pool = np.array([*self.pools, ""], dtype=object)[self.base.slots]
        homeless = ~np.isin(owner_pool, list(alive)) & (self.base.slots != EMPTY)
        sizes = self._sizes(alive, int(homeless.sum()))
        adopted = _adopt(
            np.flatnonzero(homeless), sizes, {p: int((owner_pool == p).sum()) for p in alive}
        )
        for pool in sorted(alive):
            mine = np.flatnonzero(owner_pool == pool)
            self._deal(pool, mine, adopted[pool], sizes[pool])
        return Table(self.base.backends, self.slots, self.base.parts)

    def _sizes(self, alive: set[str], homeless: int) -> dict[str, int]:
        """Slots for each pool that is alive: its own and its part of the homeless."""
        own = {pool: int(self.held[self.pools == pool].sum()) for pool in alive}
        order = sorted(alive)
        parts = np.array([self.base.parts.get(pool, 0) for pool in order], dtype=np.int64)
        if not parts.any():
            parts[:] = 1
        extra = apportion.split(homeless, parts, int(parts.sum()), np.zeros_like(parts))
        return {pool: own[pool] + int(n) for pool, n in zip(order, extra, strict=True)}

    def _deal(self, pool: str, mine: IntArray, adopted: IntArray, size: int) -> None:
        inside = np.flatnonzero(self.pools == pool)
        effective = self.effective[inside]
        total = int(effective.sum())
        whole = effective == self.weights[inside] * 65536
        kept_before = self.held[inside]
        share = apportion.split(size, effective, total, kept_before)
        keep = np.where(whole, kept_before, np.minimum(kept_before, share))
        local = np.full(len(self.weights) + 1, -1, dtype=np.int64)
        local[inside] = np.arange(len(inside))
        owners = local[self.base.slots[mine]]
        order = np.lexsort((_priority(mine, 1), owners))
        first = np.concatenate(([0], np.cumsum(np.bincount(owners, minlength=len(inside)))[:-1]))
        rank = np.empty(len(mine), dtype=np.int64)
        rank[order] = np.arange(len(mine)) - first[owners[order]]
        orphans = np.concatenate((mine[rank >= keep[owners]], adopted))
        chosen = _draw(orphans, self.weights[inside], effective)
        counts = keep + np.bincount(chosen, minlength=len(inside))
        targets = apportion.split(size, effective, total, counts, least=keep)
        chosen = _repair(orphans, chosen, targets - keep, effective)
        self.slots[orphans] = inside[chosen].astype(np.int32)


def _adopt(homeless: IntArray, sizes: Mapping[str, int], own: Mapping[str, int]) -> dict[str, IntArray]:
    """Give the slots of dead pools to those that live, in a fixed order."""
    order = homeless[np.argsort(_priority(homeless, 2), kind="stable")]
    found, start = {}, 0
    for pool in sorted(sizes):
        count = sizes[pool] - own[pool]
        found[pool] = order[start : start + count]
        start += count
    return found


def _draw(orphans: IntArray, weights: IntArray, effective: IntArray) -> IntArray:
    """The first candidate of each orphan that accepts; indexes into `weights`."""
    bounds = np.cumsum(weights)
    total = int(bounds[-1])
    accept = np.divide(effective, weights * 65536, out=np.zeros(len(weights)), where=weights > 0)
    chosen = np.full(len(orphans), -1, dtype=np.int64)
    waiting = np.arange(len(orphans))
    for turn in range(_ROUNDS):
        if not len(waiting):
            return chosen
        dice = _priority(orphans[waiting], 16 + turn)
        # Upper bits pick the candidate, lower ones say whether it accepts.
        points = (dice >> np.uint64(32)).astype(np.int64) * total >> 32
        candidate = np.searchsorted(bounds, points, side="right")
        coin = (dice & np.uint64(0xFFFFFFFF)).astype(np.float64) / 2**32
        taken = coin < accept[candidate]
        chosen[waiting[taken]] = candidate[taken]
        waiting = waiting[~taken]
    fallback = int(np.argmax(effective))
    chosen[waiting] = fallback
    return chosen


def _repair(orphans: IntArray, chosen: IntArray, want: IntArray, effective: IntArray) -> IntArray:
    """Pass orphans on until each backend has as many as `want` says."""
    have = np.bincount(chosen, minlength=len(want))
    order = np.lexsort((_priority(orphans, 3), chosen))
    first = np.concatenate(([0], np.cumsum(have)[:-1]))
    rank = np.arange(len(orphans)) - first[chosen[order]]
    passed = order[rank >= want[chosen[order]]]
    need = np.maximum(want - have, 0)
    result = chosen.copy()
    # Deferred acceptance would be stable to the last slot; a few rounds of drawing among those in
    # need, weighted by their need, come near it and stay fast.
    waiting = passed[np.argsort(_priority(orphans[passed], 4), kind="stable")]
    weights = np.where(need > 0, np.maximum(effective >> 16, 1), 0)
    for turn in range(_ROUNDS):
        if not len(waiting) or not weights.any():
            break
        bounds = np.cumsum(weights)
        dice = _priority(orphans[waiting], 1024 + turn)
        points = (dice >> np.uint64(32)).astype(np.int64) * int(bounds[-1]) >> 32
        candidate = np.searchsorted(bounds, points, side="right")
        by_candidate = np.argsort(candidate, kind="stable")
        counts = np.bincount(candidate, minlength=len(want))
        starts = np.concatenate(([0], np.cumsum(counts)[:-1]))
        place = np.arange(len(waiting)) - starts[candidate[by_candidate]]
        accepted = by_candidate[place < need[candidate[by_candidate]]]
        result[waiting[accepted]] = candidate[accepted]
        need -= np.bincount(candidate[accepted], minlength=len(want))
        rest = np.ones(len(waiting), dtype=bool)
        rest[accepted] = False
        waiting = waiting[rest]
        weights = np.where(need > 0, weights, 0)
    result[waiting] = np.repeat(np.arange(len(want)), need)[: len(waiting)]
    return result


def _priority(slots: IntArray, purpose: int) -> U64:
    """64 pseudo-random bits for each slot, the same on every machine."""
    return mix_words(slots.astype(np.uint64) << np.uint64(16) ^ np.uint64(purpose))
