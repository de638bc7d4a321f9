"""Slot tables: which backend each of a service's 65,536 slots names.

Theory of operation. The *base* table follows what people asked for (weights and splits). It is
planned from the table before, so that a change moves as few slots as any even table would have to:

1. every pool gets floor or ceil of its exact share of the slots, every backend floor or ceil of its
   own; the spare slots go first to those who hold them already;
2. backends that hold more than their target give up their last slots, those that hold fewer take
   them in order. Nothing else moves.

As step 1 looks at the table before, that table is part of the shared state (TableDocument in the
store), and every node plans from the same one.

The *overlay* is what a node really programs: a pure function of the base table and of the backends
that can't be used right now. Their slots are dealt to the others; as the base isn't touched, a backend
that comes back gets exactly its own slots back.

All arithmetic is in integers, so that every machine rounds alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lb.model.objects import TableDocument

SLOTS = 65536
EMPTY = -1

# Splits are counted in millionths of a per cent: exact for any figure that a person types.
_SPLIT_UNITS = 1_000_000

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Member:
    """A backend as the planner sees it."""

    name: str
    pool: str
    weight: int  # 0 = takes no slot


@dataclass(frozen=True, eq=False)
class Table:
    """A slot table. `slots` has shape (65536,), dtype int32: index into `backends`, or EMPTY."""

    backends: tuple[str, ...]
    slots: NDArray[np.int32]

    def counts(self) -> dict[str, int]:
        """Slots per backend; backends without a slot are there with 0."""
        held = np.bincount(self.slots[self.slots >= 0], minlength=len(self.backends))
        return {name: int(n) for name, n in zip(self.backends, held, strict=True)}

    def names(self) -> NDArray[np.object_]:
        """The backend's name for each slot, shape (65536,); None for an empty slot."""
        lookup = np.array([*self.backends, None], dtype=object)
        return lookup[self.slots]

    def digest(self) -> str:
        """16 hexadecimal digits that are equal exactly for equal tables, whatever ids a node gave."""
        state = hashlib.blake2b(digest_size=8)
        state.update("\n".join(self.backends).encode())
        state.update(self.slots.astype("<i4").tobytes())
        return state.hexdigest()


def empty() -> Table:
    """The table of a service without backends."""
    return Table((), np.full(SLOTS, EMPTY, dtype=np.int32))


def plan(members: Sequence[Member], split: Mapping[str, float], previous: Table | None) -> Table:
    """The even table for these members that moves least from `previous`.

    A pool without any weight leaves its share to the other pools; a pool that `split` does not name
    has the share 0. Without any weight at all the table is empty.
    """
    ordered = sorted(members, key=lambda member: member.name)
    names = tuple(member.name for member in ordered)
    slots = _renumbered(previous, names)
    targets = _targets(ordered, split, _held(slots, len(names)))
    return Table(names, _deal(slots, targets))


def overlay(base: Table, members: Sequence[Member], unusable: Collection[str]) -> Table:
    """The table with the slots of `unusable` backends dealt to the usable ones of the same pool, by
    weight; to all usable ones where a pool has none left. Without a usable backend they are empty.
    """
    gone = [i for i, name in enumerate(base.backends) if name in unusable]
    if not gone:
        return base
    known = {member.name: member for member in members}
    usable = [known[name] for name in base.backends if name in known and name not in unusable]
    slots = base.slots.copy()
    for index in gone:
        orphans = np.flatnonzero(base.slots == index)
        pool = known[base.backends[index]].pool if base.backends[index] in known else None
        heirs = [m for m in usable if m.weight and m.pool == pool] or [
            m for m in usable if m.weight
        ]
        slots[orphans] = _inherit(base, heirs, len(orphans))
    return Table(base.backends, slots)


def equal(one: Table, other: Table) -> bool:
    """Do both name the same backends in the same slots?"""
    return one.backends == other.backends and bool(np.array_equal(one.slots, other.slots))


def moved(before: Table, after: Table) -> int:
    """How many slots name another backend than before; filling an empty slot counts too."""
    return int(np.count_nonzero(_renumbered(before, after.backends) != after.slots))


def to_document(service: str, table: Table) -> TableDocument:
    """Run-length encoding for the store."""
    starts = np.flatnonzero(np.diff(table.slots, prepend=table.slots[0] + 1))
    lengths = np.diff(starts, append=SLOTS)
    runs = zip(table.slots[starts].tolist(), lengths.tolist(), strict=True)
    return TableDocument(
        service=service,
        backends=table.backends,
        runs=tuple((int(owner), int(length)) for owner, length in runs),
    )


def from_document(document: TableDocument) -> Table:
    """Raises ValueError for a document that isn't a table."""
    owners = np.array([owner for owner, _ in document.runs], dtype=np.int64)
    lengths = np.array([length for _, length in document.runs], dtype=np.int64)
    if lengths.sum() != SLOTS or (lengths <= 0).any():
        raise ValueError(f"runs cover {lengths.sum()} slots, not {SLOTS}")
    if owners.min() < EMPTY or owners.max() >= len(document.backends):
        raise ValueError("a run names a backend that the table does not have")
    return Table(document.backends, np.repeat(owners, lengths).astype(np.int32))


def _held(slots: NDArray[np.int32], backends: int) -> IntArray:
    return np.bincount(slots[slots >= 0], minlength=backends).astype(np.int64)


def _renumbered(table: Table | None, names: tuple[str, ...]) -> NDArray[np.int32]:
    """The table's slots as indexes into `names`; what is not there any more becomes EMPTY."""
    if table is None:
        return np.full(SLOTS, EMPTY, dtype=np.int32)
    index = {name: i for i, name in enumerate(names)}
    lookup = np.array([*(index.get(name, EMPTY) for name in table.backends), EMPTY], np.int32)
    return lookup[table.slots]


def _targets(members: Sequence[Member], split: Mapping[str, float], held: IntArray) -> IntArray:
    """How many slots each member gets, in the order of `members`."""
    weights = np.array([member.weight for member in members], dtype=np.int64)
    pools = np.array([member.pool for member in members], dtype=object)
    parts: dict[str, int] = {}
    for pool in sorted(set(pools)):
        part = round(split.get(pool, 0.0) * _SPLIT_UNITS)
        if part and weights[pools == pool].any():
            parts[pool] = part
    targets = np.zeros(len(members), dtype=np.int64)
    if not parts:
        return targets
    whole = sum(parts.values())
    options = {
        pool: _PoolOptions.of(part, whole, weights[pools == pool], held[pools == pool])
        for pool, part in parts.items()
    }
    spare = SLOTS - sum(option.floor for option in options.values())
    # Those who would otherwise have to give a slot up come first; then the largest remainders.
    order = sorted(options, key=lambda pool: (-options[pool].gain, -options[pool].remainder, pool))
    for rank, pool in enumerate(order):
        targets[pools == pool] = options[pool].targets(rank < spare)
    return targets


@dataclass(frozen=True)
class _PoolOptions:
    """What one pool's members get if the pool is rounded down, and if it is rounded up."""

    floor: int
    remainder: int
    down: IntArray
    up: IntArray
    gain: int  # slots that need not move if it is rounded up

    @classmethod
    def of(cls, part: int, whole: int, weights: IntArray, held: IntArray) -> _PoolOptions:
        floor, remainder = divmod(SLOTS * part, whole)
        total = int(weights.sum())
        exact = SLOTS * part * weights, whole * total
        down = _split_pool(exact, floor, weights, total, held)
        up = _split_pool(exact, floor + 1, weights, total, held) if remainder else down
        gain = int(np.maximum(held - down, 0).sum() - np.maximum(held - up, 0).sum())
        return cls(floor, remainder if remainder else -1, down, up, gain)

    def targets(self, rounded_up: bool) -> IntArray:
        return self.up if rounded_up else self.down


def _split_pool(
    exact: tuple[IntArray, int], slots: int, weights: IntArray, total: int, held: IntArray
) -> IntArray:
    """Split a pool's `slots` so that each member is within one slot of its exact share
    (numerators, denominator) of all 65,536 and of its share of this pool."""
    numerator, denominator = exact
    low, rest = np.divmod(numerator, denominator)
    high = low + (rest > 0)
    # The pool itself was rounded, which shifts a member's share of it: leave out what would be more
    # than one slot away from that.
    inside = slots * weights
    low = np.maximum(low, -((total - inside) // total))
    high = np.minimum(high, (inside + total) // total)
    result: IntArray = low.copy()
    spare = slots - int(low.sum())
    if spare:
        may = np.flatnonzero(high > low)
        # lexsort: the last key is the first one to be compared.
        order = may[np.lexsort((may, -rest[may], held[may] < high[may]))]
        result[order[:spare]] += 1
    return result


def _deal(slots: NDArray[np.int32], targets: IntArray) -> NDArray[np.int32]:
    """Move surplus slots to those in need; nothing else."""
    # uint16 lets NumPy use its radix sort; EMPTY becomes the last owner.
    owners = slots.astype(np.uint16) if len(targets) < 65535 else slots
    order = np.argsort(owners, kind="stable")
    sorted_owner = slots[order]
    held = _held(slots, len(targets))
    first = np.concatenate(([0], np.cumsum(held)))
    is_empty = sorted_owner == EMPTY
    rank = np.arange(SLOTS) - first[sorted_owner]
    limit = np.append(targets, 0)[sorted_owner]
    surplus = is_empty | (rank >= limit)
    free = np.sort(order[surplus])
    need = np.maximum(targets - held, 0)
    takers = np.repeat(np.arange(len(targets), dtype=np.int32), need)
    result = slots.copy()
    result[free] = EMPTY
    result[free[: len(takers)]] = takers
    return result


def _inherit(base: Table, heirs: Sequence[Member], count: int) -> NDArray[np.int32]:
    """`count` slots among the heirs by weight, interleaved so that each gets its share of any part."""
    if not heirs:
        return np.full(count, EMPTY, dtype=np.int32)
    index = {name: i for i, name in enumerate(base.backends)}
    weights = np.array([heir.weight for heir in heirs], dtype=np.int64)
    bounds = np.cumsum(weights)
    # The k-th slot goes to whoever owns the point k + 1/2 of `count` on the line of weights.
    points = (2 * np.arange(count, dtype=np.int64) + 1) * int(bounds[-1]) // (2 * count)
    owners = np.array([index[heir.name] for heir in heirs], dtype=np.int32)
    return owners[np.searchsorted(bounds, points, side="right")]
