"""What slots remember: the rules, their form in the store, and their form in the kernel."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from lb.core import moves, slots
from lb.core.moves import QUIET, Moves
from lb.core.slots import EMPTY, SLOTS, Member, Table
from lb.datapath import consts, slotmaps
from lb.datapath.slotmaps import Slots

A, B, C = 1, 2, 3


def one(owner: int) -> np.ndarray:
    return np.array([owner])


class Slot:
    """A single slot, through its life."""

    def __init__(self, owner: int) -> None:
        self.owner, self.moves = owner, moves.none(one(owner))

    def goes_to(self, owner: int, now: int, window: int = 100) -> Slot:
        self.moves = moves.stir(one(self.owner), self.moves, one(owner), now + window, now, EMPTY)
        self.owner = owner
        return self

    @property
    def past(self) -> tuple[int, int]:
        return int(self.moves.origin[0]), int(self.moves.closes[0])


def test_a_slot_that_moves_remembers_where_it_was() -> None:
    assert Slot(A).goes_to(B, now=10).past == (A, 110)


@pytest.mark.parametrize("then", [A, C])
def test_a_move_in_an_open_window_keeps_the_origin_and_restarts_the_window(then: int) -> None:
    assert Slot(A).goes_to(B, now=10).goes_to(then, now=50).past == (A, 150)


def test_a_move_of_a_settled_slot_is_from_where_it_settled() -> None:
    assert Slot(A).goes_to(B, now=10).goes_to(C, now=110).past == (B, 210)


def test_a_slot_that_stays_stays_quiet_and_one_that_had_nobody_has_nothing_to_remember() -> None:
    assert Slot(A).goes_to(A, now=10).past[1] == QUIET
    assert Slot(EMPTY).goes_to(A, now=10).past[1] == QUIET
    # But what was there before that is remembered.
    assert Slot(A).goes_to(EMPTY, now=10).goes_to(B, now=20).past == (A, 120)


def test_a_settled_slot_is_calm_when_no_flow_goes_elsewhere() -> None:
    owners = np.array([A, B, C, A])
    past = Moves(np.array([B, A, A, 0]), np.array([100, 100, 200, QUIET]))
    at, went = np.array([0, 1, 1]), np.array([A, B, C])
    assert moves.calm(owners, past, at, went, now=100).tolist() == [True, False, False, False]
    assert moves.quieten(past, np.array([True, False, False, False])).closes.tolist() == [
        QUIET,
        100,
        200,
        QUIET,
    ]


# --- in the store ---------------------------------------------------------------------------------


def planned(weights: dict[str, int], previous: Table | None = None) -> Table:
    members = [Member(name, "stable", weight) for name, weight in weights.items()]
    return slots.plan(members, {"stable": 100.0}, previous)


def test_the_store_holds_what_moved_until_its_window_closes() -> None:
    first = planned({"a": 1, "b": 1})
    second = slots.remember(first, planned({"a": 1, "b": 3}, first), now=1000, window=60)
    [(_, length, origin, closes)] = second.moves
    assert (length, origin, closes) == (slots.moved(first, second), 0, 1060)
    document = slots.to_document("web", second)
    assert slots.equal(slots.from_document(document), second)
    # Another change while the window is open, that takes the origin's name away.
    third = slots.remember(second, planned({"b": 3, "c": 3}, second), now=1030, window=60)
    assert {third.backends[n] if n != EMPTY else None for _, _, n, _ in third.moves} == {"b", None}
    nobodys = third.past().stirred & (third.past().origin == EMPTY)
    assert np.array_equal(nobodys, second.past().stirred)
    # And one when it has closed.
    fourth = slots.remember(third, planned({"b": 3, "c": 1}, third), now=2000, window=60)
    assert {closes for *_, closes in fourth.moves} == {2060}


@pytest.mark.parametrize(
    "run", [(0, 0, 0, 9), (65535, 2, 0, 9), (5, 1, 1, 9), (5, 1, -2, 9), (5, 1, 0, 0)]
)
def test_moves_that_make_no_sense_are_no_table(run: tuple[int, int, int, int]) -> None:
    document = slots.to_document("web", planned({"a": 1}))
    with pytest.raises(ValueError, match="move"):
        slots.from_document(document.model_copy(update={"moves": (run,)}))


# --- in the kernel --------------------------------------------------------------------------------


def spread(pattern: list[int], dtype: type = np.uint32) -> np.ndarray:
    return np.resize(np.array(pattern, dtype=dtype), SLOTS)


def test_what_is_encoded_is_decoded() -> None:
    past = Moves(spread([B, 0, C]), spread([5, QUIET, 7], np.int64))
    encoded = slotmaps.encode(Slots(spread([A, B, 0]), past))
    again = slotmaps.decode(*encoded)
    assert np.array_equal(again.backends, spread([A, B, 0]))
    assert np.array_equal(again.moves.closes, past.closes)
    assert np.array_equal(again.moves.origin[past.stirred], past.origin[past.stirred])
    assert slotmaps.encode(again) == encoded


def test_quiet_slots_need_no_second_element() -> None:
    table, past = slotmaps.encode(Slots(spread([A, B]), moves.none(spread([A, B]))))
    assert table == bytes(8 * consts.EPOCHS) + spread([A, B]).tobytes()
    assert past is None


def test_more_windows_than_there_are_epochs_close_together_but_never_early() -> None:
    closes = np.arange(1, SLOTS + 1) % 1000 + 5000
    encoded = slotmaps.encode(Slots(spread([A]), Moves(spread([B]), closes)))
    again = slotmaps.decode(*encoded).moves.closes
    assert len(np.unique(again)) <= consts.EPOCHS
    assert (again >= closes).all()
    assert again.max() == closes.max()
    assert (again - closes).max() <= 1000 / consts.EPOCHS + 1


def shared(closes_in: float) -> Moves:
    """All slots moved away from C, as the store says, with windows that close in so many seconds."""
    return Moves(spread([C]), np.full(SLOTS, int(time.time() + closes_in)))


def left(past: Moves) -> set[int]:
    """Seconds until windows close, roughly."""
    seconds = (np.unique(past.closes[past.stirred]) - time.monotonic_ns()) / 1e9
    return {round(each / 10) * 10 for each in seconds.tolist()}


def test_a_node_without_memory_takes_the_past_from_the_store_and_begins_windows_anew() -> None:
    past = slotmaps.follow_on(None, spread([A]), shared(30), window=60)
    assert (set(past.origin.tolist()), left(past)) == ({C}, {60})
    assert not slotmaps.follow_on(None, spread([A]), shared(-5), window=60).stirred.any()


def test_a_node_that_was_away_learns_of_moves_that_it_missed() -> None:
    before = Slots(spread([A]), moves.none(spread([A])))
    past = slotmaps.follow_on(before, spread([A]), shared(30), window=60)
    assert (set(past.origin.tolist()), left(past)) == ({C}, {30})


def test_a_nodes_own_memory_of_origins_counts_and_the_stores_times() -> None:
    before = Slots(spread([A, B]), moves.none(spread([A])))
    past = slotmaps.follow_on(before, spread([A, A]), shared(30), window=60)
    assert past.origin[:2].tolist() == [C, B]
    assert left(past) == {30}
    # No clock makes a window longer than it is.
    assert left(slotmaps.follow_on(before, spread([A, A]), shared(9999), window=60)) == {60}
    # A move that the store knows nothing of: a backend is down.
    quiet = replace(shared(0), closes=np.full(SLOTS, QUIET))
    past = slotmaps.follow_on(before, spread([A, A]), quiet, window=60)
    assert (past.origin[1], past.closes[0], left(past)) == (B, QUIET, {60})
