"""A service's slots as the kernel holds them: a table of words, and one of their past where they moved.

Backends are ids here, times are nanoseconds of CLOCK_MONOTONIC (bpf_ktime_get_ns).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lb.core import moves
from lb.core.moves import QUIET, Moves
from lb.datapath import consts
from lb.datapath.bpf import Map
from lb.datapath.encode import index_key
from lb.datapath.maps import new_table
from lb.errors import DatapathError

EMPTY = 0  # an id that no backend has
_ONLY = bytes(4)  # key of the one element of a table

U32 = NDArray[np.uint32]
Encoded = tuple[bytes, bytes | None]  # a table and its past


def table_key(service: int) -> bytes:
    """In `tables`: of a service's table."""
    return index_key(2 * service)


def past_key(service: int) -> bytes:
    """Of its past."""
    return index_key(2 * service + 1)


@dataclass(frozen=True, eq=False)
class Slots:
    """`backends`: the id that each slot names, shape (65536,), EMPTY = none; `moves`: their past."""

    backends: U32
    moves: Moves


def empty() -> Slots:
    """What a service has that the kernel doesn't know."""
    backends = np.full(consts.SLOTS, EMPTY, dtype=np.uint32)
    return Slots(backends, moves.none(backends))


def encode(slots: Slots) -> Encoded:
    """What the kernel is given; no past if all slots are quiet."""
    stirred = slots.moves.stirred
    if not stirred.any():
        return _table(_NO_EPOCHS, slots.backends), None
    ends = _epochs(np.unique(slots.moves.closes[stirred]))
    # A window closes with its epoch: never early.
    epochs = np.searchsorted(ends, slots.moves.closes).astype(np.uint32)
    marks = epochs << np.uint32(consts.EPOCH_SHIFT) | np.uint32(consts.SLOT_STIRRED)
    words = slots.backends | np.where(stirred, marks, 0).astype(np.uint32)
    origins = np.where(stirred, slots.moves.origin, 0).astype(np.uint32)
    closes = np.zeros(consts.EPOCHS, dtype=np.uint64)
    closes[: len(ends)] = ends
    return _table(closes, words), _table(_NO_EPOCHS, origins)


def decode(table: bytes, past: bytes | None) -> Slots:
    """The opposite of encode(); windows that shared an epoch close together from then on."""
    closes, words = _split(table)
    backends = words & np.uint32(consts.SLOT_BACKEND)
    if past is None:
        return Slots(backends, moves.none(backends))
    stirred = (words & np.uint32(consts.SLOT_STIRRED)) != 0
    epochs = words >> np.uint32(consts.EPOCH_SHIFT) & np.uint32(consts.EPOCHS - 1)
    return Slots(backends, Moves(_split(past)[1], np.where(stirred, closes[epochs], QUIET)))


_NO_EPOCHS = np.zeros(consts.EPOCHS, dtype=np.uint64)


def _table(closes: NDArray[np.uint64], words: U32) -> bytes:
    return closes.tobytes() + words.tobytes()


def _split(table: bytes) -> tuple[NDArray[np.int64], U32]:
    at = _NO_EPOCHS.nbytes
    return np.frombuffer(table[:at], dtype=np.int64), np.frombuffer(table[at:], dtype=np.uint32)


def follow_on(before: Slots | None, after: U32, shared: Moves, window: int) -> Moves:
    """What slots remember when they become `after`. `shared` is what the store says of them (times in
    Unix seconds); it counts where this node has seen no move itself. `window` is in seconds.

    A node without memory (`before` is None) has to see older flows again: its windows begin anew. No
    window is longer than that, whatever a clock says.
    """
    now = time.monotonic_ns()
    whole = now + window * 1_000_000_000
    ahead = now - time.time_ns()
    held = before or empty()
    if not shared.stirred.any():
        return moves.stir(held.backends, held.moves, after, whole, now, EMPTY)
    told = np.minimum(shared.closes * 1_000_000_000 + ahead, whole)
    is_told = shared.stirred & (told > now)
    closes = np.where(is_told, told, whole)
    past = moves.stir(held.backends, held.moves, after, closes, now, EMPTY)
    missed = is_told & ~past.stirred
    return Moves(
        origin=np.where(missed, shared.origin, past.origin),
        closes=np.where(missed, told if before else whole, past.closes),
    )


def read(tables: Map, service: int) -> Slots | None:
    """What the kernel holds for a service id; None if it has no table."""
    held = read_raw(tables, service)
    return None if held is None else decode(*held)


def read_raw(tables: Map, service: int) -> Encoded | None:
    """The same, as bytes."""
    while (held := _read_one(tables, table_key(service))) is not None:
        number, table = held
        past = _read_one(tables, past_key(service)) if _is_stirred(table) else None
        if tables.get(table_key(service)) == number:
            return table, past and past[1]
    return None


def _read_one(tables: Map, key: bytes) -> tuple[bytes, bytes] | None:
    """Number and content of an inner map."""
    found = tables.get(key)
    while found is not None:
        try:
            inner = Map.by_id(int.from_bytes(found, sys.byteorder))
        except DatapathError:
            before, found = found, tables.get(key)
            if found == before:
                raise
            continue  # it was swapped for another one just now, and is gone
        return found, inner.get(_ONLY) or b""
    return None


def _is_stirred(table: bytes) -> bool:
    return bool((_split(table)[1] & np.uint32(consts.SLOT_STIRRED)).any())


def swap(tables: Map, fresh: Mapping[int, Encoded]) -> None:
    """Put new tables in place of the present ones: filled off to the side, then one update each. The
    system call returns when no packet sees the old ones any more (10 ms); packets see the new ones at
    once.

    A past is in place before the table that speaks of it, and goes after it. So a packet may see an
    older table with a newer past; that says the same of each slot whose window is open, as its origin
    stays what it was.
    """
    made: dict[bytes, Map] = {}
    for service, (table, past) in fresh.items():
        if past is not None:
            made[past_key(service)] = _filled(past)
        made[table_key(service)] = _filled(table)
    tables.put_many([(key, index_key(each.fd)) for key, each in made.items()])
    for service, (_, past) in fresh.items():
        if past is None:
            _take_past_away(tables, service)


def take_away(tables: Map, service: int) -> None:
    """The service's table, and its past."""
    tables.delete(table_key(service))
    _take_past_away(tables, service)


def _take_past_away(tables: Map, service: int) -> None:
    if tables.get(past_key(service)) is not None:
        tables.delete(past_key(service))


def _filled(content: bytes) -> Map:
    made = new_table()
    made.put(_ONLY, content)
    return made


def _epochs(ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """At most EPOCHS of these times, the last among them."""
    step = -(-len(ends) // consts.EPOCHS)
    return ends[::-1][::step][::-1]
