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
3. That is even on average; what is missing to even to the slot is repaired: who got too many passes
   the surplus on to who got too few, by stable matching (deferred acceptance, Gale and Shapley 1962),
   whose outcome changes little when little changes.

Steps 1 and 2 alone would move exactly the least possible; step 3 costs a little on top (see
docs/decisions/007). This is rendezvous hashing's idea, drawn instead of ranked: the work is
proportional to the orphans, not to orphans times backends. The draws are a Weyl sequence over the
slot's number rather than a hash of it: neighbouring slots, which mostly had the same owner, then spread
evenly by themselves, and step 3 has less to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lb.core import apportion
from lb.core.apportion import IntArray
from lb.core.flowhash import mix_words
from lb.core.slots import EMPTY, SLOTS, Member, Table

# The first draws are low-discrepancy: multiples of the powers of 1/x, with x the root of
# x^(d+1) = x + 1, fill the d-dimensional unit cube evenly (Roberts, "The Unreasonable Effectiveness of
# Quasirandom Sequences", 2018). Odd 64-bit integers stand for the fractions.
_DIMENSIONS = 8
_ROOT = 1.085070245491451
_WEYL = [int(_ROOT ** -(k + 1) * 2**64) | 1 for k in range(_DIMENSIONS)]

# Draws after which an orphan takes the fittest backend; 2^-48 of them get there while half are fit.
_ROUNDS = 48
# Rounds of matching after which the few slots that are left are settled one by one.
_MATCH_ROUNDS = 256

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
        self.owners = base.slots
        self.slots = self.owners.copy()
        self.held = np.bincount(self.owners[self.owners >= 0], minlength=len(weights))
        self.pool_names, pool_of = np.unique(pools.astype(str), return_inverse=True)
        self.pool_of = pool_of.astype(np.int64)

    def table(self) -> Table:
        # A pool whose split is 0 gets nothing, also while all others are down.
        alive = [
            pool
            for pool, name in enumerate(self.pool_names)
            if self.base.parts.get(name, 0) and self.effective[self.pool_of == pool].any()
        ]
        if not alive:
            return Table(self.base.backends, np.full(SLOTS, EMPTY, np.int32), self.base.parts)
        dead = ~np.isin(self.pool_of, alive)
        extra = self._shares(alive, int(self.held[dead].sum()))
        sizes = {
            pool: int(self.held[self.pool_of == pool].sum() + more)
            for pool, more in zip(alive, extra, strict=True)
        }
        keep = self._keep(sizes)
        orphans = self._orphans(keep)
        owner_pool = self.pool_of[self.owners[orphans]]
        homeless = orphans[~np.isin(owner_pool, alive)]
        adopted = np.split(
            homeless[np.argsort(_bits(homeless, 2), kind="stable")], np.cumsum(extra)[:-1]
        )
        for pool, more in zip(alive, adopted, strict=True):
            mine = np.concatenate((orphans[owner_pool == pool], more))
            if len(mine):
                self._deal(pool, mine, keep, sizes[pool])
        return Table(self.base.backends, self.slots, self.base.parts)

    def _keep(self, sizes: Mapping[int, int]) -> IntArray:
        """How many base slots each backend keeps: all if it is whole; else no more than its exact
        share, rounded down, which only grows while its fitness does."""
        keep = self.held.copy()
        for pool, size in sizes.items():
            inside = np.flatnonzero(self.pool_of == pool)
            total = int(self.effective[inside].sum())
            for index in inside[self.effective[inside] < self.weights[inside] * 65536]:
                share = size * int(self.effective[index]) // total
                keep[index] = min(int(self.held[index]), share)
        keep[self.effective == 0] = 0
        return keep

    def _orphans(self, keep: IntArray) -> IntArray:
        """The slots that their backends don't keep."""
        losing = keep < self.held
        orphans = np.flatnonzero(np.append(losing, False)[self.owners])
        for index in np.flatnonzero(losing & (keep > 0)):
            mine = np.flatnonzero(self.owners == index)
            kept = mine[np.argsort(_bits(mine, 1), kind="stable")[: keep[index]]]
            orphans = np.setdiff1d(orphans, kept, assume_unique=True)
        return orphans

    def _shares(self, alive: list[int], homeless: int) -> IntArray:
        """How many slots of dead pools each pool that is alive takes in: by split."""
        parts = np.array([self.base.parts[self.pool_names[pool]] for pool in alive], np.int64)
        return apportion.split(homeless, parts, int(parts.sum()), np.zeros_like(parts))

    def _deal(self, pool: int, orphans: IntArray, keep: IntArray, size: int) -> None:
        inside = np.flatnonzero(self.pool_of == pool)
        weights, kept = self.weights[inside], keep[inside]
        # Who had to give slots up has its share already.
        taking = np.where(kept == self.held[inside], self.effective[inside], 0)
        size -= int(kept[taking == 0].sum())
        chosen = _draw(orphans, weights, taking)
        least = np.where(taking > 0, kept, 0)
        counts = least + np.bincount(chosen, minlength=len(inside))
        targets = apportion.split(size, taking, int(taking.sum()), counts, least=least)
        chosen = _repair(orphans, chosen, targets - least, np.where(taking > 0, weights, 0))
        self.slots[orphans] = inside[chosen].astype(np.int32)


def _draw(orphans: IntArray, weights: IntArray, effective: IntArray) -> IntArray:
    """The first candidate of each orphan that accepts; indexes into `weights`."""
    accept = np.divide(effective, weights * 65536, out=np.zeros(len(weights)), where=weights > 0)
    chosen = np.full(len(orphans), int(np.argmax(effective)), dtype=np.int64)
    waiting = np.arange(len(orphans))
    for turn in range(_ROUNDS):
        if not len(waiting):
            break
        slots = orphans[waiting]
        if turn < _DIMENSIONS:
            dice = slots.astype(np.uint64) * np.uint64(_WEYL[turn])
        else:
            dice = _bits(slots, 16 + turn)
        candidate = _pick(dice, weights)
        taken = _fraction(_bits(slots, 1024 + turn)) < accept[candidate]
        chosen[waiting[taken]] = candidate[taken]
        waiting = waiting[~taken]
    return chosen


def _repair(orphans: IntArray, chosen: IntArray, want: IntArray, weights: IntArray) -> IntArray:
    """Pass orphans on until each backend has as many as `want` says."""
    have = np.bincount(chosen, minlength=len(want))
    order, rank = _ranked(chosen, _bits(orphans, 3))
    passed = np.sort(order[rank >= want[chosen[order]]])
    result = chosen.copy()
    if len(passed):
        result[passed] = _match(orphans[passed], np.maximum(want - have, 0), weights)
    return result


def _match(slots: IntArray, room: IntArray, weights: IntArray) -> IntArray:
    """Stable matching of slots with backends that have `room`, which sums to their number: each slot
    asks the candidates of a fixed sequence in turn, each backend keeps those it likes best."""
    chosen = np.full(len(slots), -1, dtype=np.int64)
    bits = _bits(slots, 5)
    waiting = np.arange(len(slots))
    turns = np.zeros(len(slots), dtype=np.int64)
    for _ in range(_MATCH_ROUNDS):
        if not len(waiting):
            return chosen
        dice = mix_words(bits[waiting] + turns[waiting].astype(np.uint64))
        turns[waiting] += 1
        candidate = _pick(dice, weights)
        asks = room[candidate] > 0
        asked = np.zeros(len(room), dtype=bool)
        asked[candidate[asks]] = True
        held = np.flatnonzero((chosen >= 0) & asked[chosen])
        who = np.concatenate((held, waiting[asks]))
        at = np.concatenate((chosen[held], candidate[asks]))
        order, rank = _ranked(at, mix_words(bits[who] ^ at.astype(np.uint64)))
        who, at = who[order], at[order]
        liked = rank < room[at]
        chosen[who[liked]] = at[liked]
        chosen[who[~liked]] = -1
        waiting = np.concatenate((waiting[~asks], who[~liked]))
    room = room - np.bincount(chosen[chosen >= 0], minlength=len(room))
    for index in np.sort(waiting):
        open_ = np.flatnonzero(room > 0)
        likes = mix_words(bits[index] ^ open_.astype(np.uint64))
        chosen[index] = open_[np.argmin(likes)]
        room[chosen[index]] -= 1
    return chosen


def _ranked(groups: IntArray, priority: U64) -> tuple[IntArray, IntArray]:
    """An order that sorts by group and then by priority, and the rank in its group of each place."""
    order = np.lexsort((priority, groups))
    counts = np.bincount(groups)
    first = np.concatenate(([0], np.cumsum(counts)[:-1]))
    return order, np.arange(len(groups)) - first[groups[order]]


def _pick(dice: U64, weights: IntArray) -> IntArray:
    """An index for each throw, by weight. The sum of weights is below 2^31."""
    bounds = np.cumsum(weights)
    points = (dice >> np.uint64(32)).astype(np.int64) * int(bounds[-1]) >> 32
    return np.searchsorted(bounds, points, side="right")


def _fraction(bits: U64) -> NDArray[np.float64]:
    # 32 bits are exact in a double, so that all machines compare alike.
    return (bits >> np.uint64(32)).astype(np.float64) / 2**32


def _bits(slots: IntArray, purpose: int) -> U64:
    """64 pseudo-random bits for each slot, the same on every machine."""
    return mix_words(slots.astype(np.uint64) << np.uint64(16) ^ np.uint64(purpose))
