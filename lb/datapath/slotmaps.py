"""A service's slots as the kernel holds them: a map of words, and one of their past where they moved.

Backends are ids here, times are nanoseconds of CLOCK_MONOTONIC (bpf_ktime_get_ns).
"""

from __future__ import annotations

import ctypes
import sys
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lb.core import moves
from lb.core.moves import QUIET, Moves
from lb.datapath import layout
from lb.datapath.bpf import Map

EMPTY = 0  # an id that no backend has
_ZERO = bytes(4)

U32 = NDArray[np.uint32]
Encoded = tuple[bytes, bytes | None]  # values of the inner maps of `tables` and `origins`


@dataclass(frozen=True, eq=False)
class Slots:
    """`backends`: the id that each slot names, shape (65536,), EMPTY = none; `moves`: their past."""

    backends: U32
    moves: Moves


def empty() -> Slots:
    """What a service has that the kernel doesn't know."""
    backends = np.full(layout.SLOTS, EMPTY, dtype=np.uint32)
    return Slots(backends, moves.none(backends))


def encode(slots: Slots) -> Encoded:
    """What the kernel is given; no past if all slots are quiet."""
    stirred = slots.moves.stirred
    if not stirred.any():
        return slots.backends.tobytes(), None
    words = slots.backends | np.where(stirred, layout.SLOT_STIRRED, 0).astype(np.uint32)
    ends = _epochs(np.unique(slots.moves.closes[stirred]))
    # A window closes with its epoch: never early.
    epochs = np.where(stirred, np.searchsorted(ends, slots.moves.closes), 0).astype(np.uint32)
    origins = np.where(stirred, slots.moves.origin, 0).astype(np.uint32)
    closes = np.zeros(layout.EPOCHS, dtype=np.uint64)
    closes[: len(ends)] = ends
    packed: U32 = origins | epochs << np.uint32(layout.EPOCH_SHIFT)
    return words.tobytes(), closes.tobytes() + packed.tobytes()


def decode(table: bytes, origins: bytes | None) -> Slots:
    """The opposite of encode(); windows that shared an epoch close together from then on."""
    words = np.frombuffer(table, dtype=np.uint32)
    backends = words & np.uint32(layout.SLOT_BACKEND)
    if origins is None:
        return Slots(backends, moves.none(backends))
    split = ctypes.sizeof(layout.Origins) - 4 * layout.SLOTS
    closes = np.frombuffer(origins[:split], dtype=np.uint64).astype(np.int64)
    packed = np.frombuffer(origins[split:], dtype=np.uint32)
    stirred = (words & np.uint32(layout.SLOT_STIRRED)) != 0
    return Slots(
        backends,
        Moves(
            origin=packed & np.uint32(layout.SLOT_BACKEND),
            closes=np.where(stirred, closes[packed >> np.uint32(layout.EPOCH_SHIFT)], QUIET),
        ),
    )


def follow_on(before: Slots | None, after: U32, shared: Moves, window: int) -> Moves:
    """What slots remember when they become `after`. `shared` is what the store says of them (times in
    Unix seconds); it counts where this node has seen no move itself. `window` is in seconds.

    A node without memory (`before` is None) has to see older flows again: its windows begin anew. No
    window is longer than that, whatever a clock says.
    """
    now = time.monotonic_ns()
    whole = now + window * 1_000_000_000
    ahead = now - time.time_ns()
    told = np.minimum(shared.closes * 1_000_000_000 + ahead, whole)
    is_told = shared.stirred & (told > now)
    held = before or empty()
    closes = np.where(is_told, told, whole)
    past = moves.stir(held.backends, held.moves, after, closes, now, EMPTY)
    missed = is_told & ~past.stirred
    return Moves(
        origin=np.where(missed, shared.origin, past.origin),
        closes=np.where(missed, told if before else whole, past.closes),
    )


def read(tables: Map, origins: Map, service: int) -> Slots | None:
    """What the kernel holds for a service id; None if it has no table."""
    table = read_inner(tables, service)
    return None if table is None else decode(table, read_inner(origins, service))


def read_inner(outer: Map, service: int) -> bytes | None:
    """The one value of an inner map; None if there is none for this service."""
    inner = outer.get(service.to_bytes(4, sys.byteorder))
    if inner is None:
        return None
    return Map.by_id(int.from_bytes(inner, sys.byteorder)).get(_ZERO)


def _epochs(ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """At most EPOCHS of these times, the last among them."""
    step = -(-len(ends) // layout.EPOCHS)
    return ends[::-1][::step][::-1]
