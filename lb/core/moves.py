"""Slots that moved lately: where they were, and until when that counts. Pure.

A slot is *quiet* until it moves. Then it is *moving* for a window, and remembers its **origin**, the
backend that it had when it last was not moving: a flow that nobody has seen before and that does not
begin now is older than the move, so it belongs there. If it moves again while its window is open, it
keeps its origin and its window begins anew; so nothing has to wait for a window, and an aborted
canary (A to B to A) breaks no flow that began on B. Once the window has closed it is *settled*: flows
that were seen keep their backend, all others go to the slot's own.

The same rules hold for the table that nodes share (indexes of backends, Unix seconds) and for the one
that a node programs (ids, nanoseconds of its monotonic clock); so these functions know neither.

Relatives: JET (CoNEXT'20), Beamer (NSDI'18), Cheetah (NSDI'20).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

QUIET = 0  # in `closes`


@dataclass(frozen=True, eq=False)
class Moves:
    """Arrays over the slots. `origin`: a backend, in whatever terms the table has; it says nothing
    where a slot is quiet. `closes`, int64: when the window closes, or QUIET."""

    origin: NDArray[Any]
    closes: NDArray[np.int64]

    @property
    def stirred(self) -> NDArray[np.bool_]:
        """Slots that aren't quiet."""
        found: NDArray[np.bool_] = self.closes != QUIET
        return found

    def is_moving(self, now: int) -> NDArray[np.bool_]:
        """Slots whose window is open."""
        found: NDArray[np.bool_] = self.closes > now
        return found


def none(slots: NDArray[Any]) -> Moves:
    """Every slot is quiet."""
    return Moves(np.zeros_like(slots), np.full(len(slots), QUIET, dtype=np.int64))


def stir(
    before: NDArray[Any],
    moves: Moves,
    after: NDArray[Any],
    closes: NDArray[np.int64] | int,
    now: int,
    empty: int,
) -> Moves:
    """What is remembered when the slots `before` become `after` at the time `now`, with windows that
    close at `closes`. A slot that was quiet and `empty` had no flow to remember."""
    moved = (before != after) & ~((before == empty) & ~moves.stirred)
    fresh = moved & ~moves.is_moving(now)
    return Moves(
        origin=np.where(fresh, before, moves.origin),
        closes=np.where(moved, closes, moves.closes),
    )


def calm(
    slots: NDArray[Any], moves: Moves, at: NDArray[Any], went: NDArray[Any], now: int
) -> NDArray[np.bool_]:
    """The settled slots that can become quiet: of the flows that are remembered, which are in the slots
    `at` and went to the backends `went`, none goes elsewhere than they say."""
    busy = np.zeros(len(slots), dtype=bool)
    busy[at[went != slots[at]]] = True
    found: NDArray[np.bool_] = moves.stirred & ~moves.is_moving(now) & ~busy
    return found


def quieten(moves: Moves, slots: NDArray[np.bool_]) -> Moves:
    """The same, but these slots are quiet."""
    return Moves(moves.origin, np.where(slots, QUIET, moves.closes))
