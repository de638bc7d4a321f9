"""Slot tables: which backend each of a service's 65,536 slots names.

Theory of operation. The *base* table follows what people asked for (weights and splits). It is
planned from the table before, so that a change moves as few slots as any even table would have to:

1. apportion.py says how many slots each backend gets: even, and as near as that allows to what it
   holds;
2. backends that hold more than their target give up their last slots, those that hold fewer take
   them in order, from their own pool first. Nothing else moves.

As both look at the table before, that table is part of the shared state (TableDocument in the store),
and every node plans from the same one.

The *overlay* (overlay.py) is what a node really programs: a pure function of the base table and of
the health that the node sees.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lb.core import apportion, moves
from lb.core.apportion import IntArray, Pool
from lb.core.moves import Moves
from lb.core.rules import Steer, Steers
from lb.model.objects import TableDocument

SLOTS = 65536
EMPTY = -1


@dataclass(frozen=True)
class Member:
    """A backend as the planner sees it."""

    name: str
    pool: str
    weight: int  # 0 = takes no slot


MoveRun = tuple[int, int, int, int]  # as in TableDocument.moves


class Table:
    """A slot table. Immutable. It holds runs of equal slots, as lbd keeps one for each service."""

    def __init__(
        self,
        backends: tuple[str, ...],
        slots: NDArray[np.int32],
        parts: Mapping[str, int] | None = None,
        moves: tuple[MoveRun, ...] = (),
        steers: Steers | None = None,
    ) -> None:
        """`slots` has shape (65536,): index into `backends`, or EMPTY. `parts` is each pool's share
        that it was planned for, in millionths of a per cent. `moves`, `steers`: see TableDocument."""
        starts = _starts(slots)
        self.backends = backends
        self.parts: Mapping[str, int] = parts or {}
        self.moves = moves
        self.steers: Steers = steers or {}
        self.owners: NDArray[np.int32] = slots[starts].astype(np.int32)
        self.lengths: NDArray[np.int32] = np.diff(starts, append=SLOTS).astype(np.int32)

    def with_steers(self, steers: Steers) -> Table:
        """The same slots, and other rules remembered."""
        return Table(self.backends, self.slots, self.parts, self.moves, steers)

    @property
    def slots(self) -> NDArray[np.int32]:
        """Index into `backends`, or EMPTY, for each slot; shape (65536,). A new array each time."""
        return np.repeat(self.owners, self.lengths)

    @property
    def has_backends(self) -> bool:
        """Does any slot name a backend?"""
        return bool((self.owners != EMPTY).any())

    def counts(self) -> dict[str, int]:
        """Slots per backend; backends without a slot are there with 0."""
        named = self.owners >= 0
        held = np.bincount(self.owners[named], weights=self.lengths[named], minlength=len(self.backends))
        return {name: int(n) for name, n in zip(self.backends, held, strict=True)}

    def names(self) -> NDArray[np.object_]:
        """The backend's name for each slot, shape (65536,); None for an empty slot."""
        lookup = np.array([*self.backends, None], dtype=object)
        return lookup[self.slots]

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits that are equal exactly for equal tables, whatever ids a node gave."""
        state = hashlib.blake2b(digest_size=8)
        state.update("\n".join(self.backends).encode())
        state.update(self.slots.astype("<i4").tobytes())
        return state.hexdigest()

    def past(self) -> Moves:
        """What moved lately; origins are indexes into `backends`, times Unix seconds."""
        past = moves.none(np.full(SLOTS, EMPTY, dtype=np.int32))
        for first, length, origin, closes in self.moves:
            past.origin[first : first + length] = origin
            past.closes[first : first + length] = closes
        return past


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
    held = _held(slots, len(names))
    weights = np.array([member.weight for member in ordered], dtype=np.int64)
    pools = np.array([member.pool for member in ordered], dtype=object)
    parts = apportion.parts(split)
    before = previous.parts if previous else {}
    order = sorted(set(pools))
    choices = [
        Pool(parts.get(pool, 0), before.get(pool), weights[pools == pool], held[pools == pool])
        for pool in order
    ]
    targets, pool_of = (np.zeros(len(names), dtype=np.int64) for _ in range(2))
    for number, counts in enumerate(apportion.apportion(SLOTS, choices)):
        inside = pools == order[number]
        targets[inside], pool_of[inside] = counts, number
    served = {
        pool: choice.part
        for pool, choice in zip(order, choices, strict=True)
        if choice.part and choice.weights.any()
    }
    return Table(names, _deal(slots, targets, pool_of), served)


def equal(one: Table, other: Table) -> bool:
    """Are they the same, slot for slot?"""
    return (
        one.backends == other.backends
        and one.parts == other.parts
        and one.moves == other.moves
        and one.steers == other.steers
        and np.array_equal(one.owners, other.owners)
        and np.array_equal(one.lengths, other.lengths)
    )


def moved(before: Table, after: Table) -> int:
    """How many slots name another backend than before; filling an empty slot counts too."""
    return int(np.count_nonzero(_renumbered(before, after.backends) != after.slots))


def to_document(path: str, table: Table) -> TableDocument:
    """Run-length encoding for the store; the path is a service's name, or service/pool."""
    service, _, pool = path.partition("/")
    return TableDocument(
        service=service,
        pool=pool or None,
        backends=table.backends,
        parts=dict(table.parts),
        runs=tuple(zip(table.owners.tolist(), table.lengths.tolist(), strict=True)),
        moves=table.moves,
        steers=tuple((p, each.to, each.before, each.closes) for p, each in table.steers.items()),
    )


def from_document(document: TableDocument) -> Table:
    """Raises ValueError for a document that isn't a table."""
    owners = np.array([owner for owner, _ in document.runs], dtype=np.int64)
    lengths = np.array([length for _, length in document.runs], dtype=np.int64)
    if lengths.sum() != SLOTS or (lengths <= 0).any():
        raise ValueError(f"runs cover {lengths.sum()} slots, not {SLOTS}")
    if owners.min() < EMPTY or owners.max() >= len(document.backends):
        raise ValueError("a run names a backend that the table does not have")
    end = 0
    for first, length, origin, closes in document.moves:
        if first < end or length <= 0 or first + length > SLOTS:
            raise ValueError("moves are not in order, or beyond the last slot")
        if not EMPTY <= origin < len(document.backends) or closes <= 0:
            raise ValueError("a move names a backend that the table does not have, or no time")
        end = first + length
    slots = np.repeat(owners, lengths).astype(np.int32)
    steers = {prefix: Steer(to, before, closes) for prefix, to, before, closes in document.steers}
    return Table(document.backends, slots, dict(document.parts), document.moves, steers)


def remember(previous: Table, table: Table, now: int, window: int) -> Table:
    """`table`, which follows on `previous`, with its moves: both those that are made now (Unix seconds)
    and those before whose windows are open."""
    lookup = _lookup(previous.backends, table.backends)
    before = previous.past()
    past = moves.stir(
        lookup[previous.slots],
        Moves(lookup[before.origin], before.closes),
        table.slots,
        now + window,
        now,
        EMPTY,
    )
    return Table(table.backends, table.slots, table.parts, _runs(past, now), table.steers)


def _runs(past: Moves, now: int) -> tuple[MoveRun, ...]:
    closes = np.where(past.is_moving(now), past.closes, moves.QUIET)
    origin = np.where(closes == moves.QUIET, EMPTY, past.origin)
    starts = _starts(closes, origin)
    lengths = np.diff(starts, append=SLOTS)
    columns = (each.tolist() for each in (starts, lengths, origin[starts], closes[starts]))
    return tuple(run for run in zip(*columns, strict=True) if run[3] != moves.QUIET)


def _starts(*columns: NDArray[Any]) -> NDArray[np.int64]:
    """Where the runs begin in which none of these arrays changes."""
    changes = np.zeros(SLOTS, dtype=bool)
    changes[0] = True
    for column in columns:
        changes[1:] |= column[1:] != column[:-1]
    return np.flatnonzero(changes)


def _held(slots: NDArray[np.int32], backends: int) -> IntArray:
    return np.bincount(slots[slots >= 0], minlength=backends).astype(np.int64)


def _renumbered(table: Table | None, names: tuple[str, ...]) -> NDArray[np.int32]:
    """The table's slots as indexes into `names`; what is not there any more becomes EMPTY."""
    if table is None:
        return np.full(SLOTS, EMPTY, dtype=np.int32)
    return np.repeat(_lookup(table.backends, names)[table.owners], table.lengths)


def _lookup(old: tuple[str, ...], new: tuple[str, ...]) -> NDArray[np.int32]:
    """From indexes into `old` to indexes into `new`; EMPTY, and what isn't there any more, is EMPTY."""
    index = {name: i for i, name in enumerate(new)}
    return np.array([*(index.get(name, EMPTY) for name in old), EMPTY], np.int32)


def _deal(slots: NDArray[np.int32], targets: IntArray, pool_of: IntArray) -> NDArray[np.int32]:
    """Move surplus slots to those in need; nothing else."""
    held = _held(slots, len(targets))
    if np.array_equal(held, targets) and held.sum() in (0, SLOTS):
        return slots  # nobody has too many: nothing to sort
    if not held.any():
        dealt = np.full(SLOTS, EMPTY, dtype=np.int32)
        dealt[: int(targets.sum())] = np.repeat(np.arange(len(targets), dtype=np.int32), targets)
        return dealt
    # uint16 lets NumPy use its radix sort; EMPTY becomes the last owner.
    owners = slots.astype(np.uint16) if len(targets) < 65535 else slots
    order = np.argsort(owners, kind="stable")
    sorted_owner = slots[order]
    first = np.concatenate(([0], np.cumsum(held)))
    is_empty = sorted_owner == EMPTY
    rank = np.arange(SLOTS) - first[sorted_owner]
    limit = np.append(targets, 0)[sorted_owner]
    surplus = is_empty | (rank >= limit)
    free = np.sort(order[surplus])
    need = np.maximum(targets - held, 0)
    takers = np.repeat(np.arange(len(targets), dtype=np.int32), need)
    if pool_of.any():
        # Else two pools could swap slots, and one that grows would lose some on the way.
        left = np.append(pool_of, EMPTY)[slots[free]]
        of_free, of_takers = _pool_by_pool(left, pool_of[takers], int(pool_of.max()) + 1)
        free, takers = free[of_free], takers[of_takers]
    result = slots.copy()
    result[free] = EMPTY
    result[free[: len(takers)]] = takers
    return result


def _pool_by_pool(left: IntArray, wanted: IntArray, pools: int) -> tuple[IntArray, IntArray]:
    """In which order to pair slots with takers: first within each pool as far as it goes, then the rest.
    `left` is the pool that each slot comes from, or EMPTY, `wanted` that of each taker."""
    counts = (np.bincount(each + 1, minlength=pools + 1) for each in (left, wanted))
    both = np.minimum(*counts)
    orders = []
    for pool in (left, wanted):
        order = np.argsort(pool, kind="stable")
        rank = np.arange(len(pool)) - np.searchsorted(pool[order], pool[order])
        stays = rank < both[pool[order] + 1]
        orders.append(np.concatenate((order[stays], np.sort(order[~stays]))))
    return orders[0], orders[1]
