"""lb/core/ids.py: ids are kept, given back, and never mistaken for an earlier owner's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.core.ids import Allocation, allocate, changed_hands, given_out, renewed, uid
from lb.errors import CapacityError


def test_owners_keep_their_ids() -> None:
    first = allocate({}, {7, 8, 9}, 100, "backends")
    second = allocate(first, {9, 7, 10}, 100, "backends")
    owned = {each.owner: number for number, each in first.items()}
    again = {each.owner: number for number, each in second.items() if each.owner}
    assert again[7] == owned[7]
    assert again[9] == owned[9]
    assert again[10] not in owned.values()


def test_a_reused_id_has_a_new_generation() -> None:
    held = {1: Allocation(0, 5), 2: Allocation(11, 1)}
    after = allocate(held, {11, 12}, 3, "backends")
    assert after[1] == Allocation(12, 6)
    assert after[2] == Allocation(11, 1)


def test_who_moved_keeps_its_id_and_not_its_generation() -> None:
    held = {1: Allocation(11, 5), 2: Allocation(22, 1), 3: Allocation(0, 7)}
    assert renewed(held, {1}) == {**held, 1: Allocation(11, 6)}
    assert given_out(held, renewed(held, {1})) == []


def test_given_out_are_ids_with_another_owner_than_before() -> None:
    held = {1: Allocation(11, 5), 2: Allocation(22, 1), 3: Allocation(0, 7)}
    after = {1: Allocation(11, 5), 2: Allocation(0, 1), 3: Allocation(33, 8), 4: Allocation(44, 1)}
    assert given_out(held, after) == [3, 4]


def test_a_full_map_is_an_error_that_names_the_limit() -> None:
    with pytest.raises(CapacityError, match="backends map is full") as caught:
        allocate({}, {1, 2, 3}, 3, "backends")
    assert "limits.backends" in caught.value.hint


@given(st.lists(st.sets(st.integers(1, 30), max_size=12), max_size=20))
def test_no_id_and_generation_ever_has_two_owners(history: list[set[int]]) -> None:
    held: dict[int, Allocation] = {}
    owners: dict[tuple[int, int], int] = {}
    for wanted in history:
        held = allocate(held, wanted, 16, "backends")
        assert {each.owner for each in held.values() if each.owner} == wanted
        for number, each in held.items():
            assert 0 < number < 16
            if each.owner:
                assert owners.setdefault((number, each.generation), each.owner) == each.owner


def test_what_is_given_back_now_is_given_out_last() -> None:
    held = {1: Allocation(11, 1), 2: Allocation(22, 1), 3: Allocation(0, 7)}
    after = allocate(held, {22, 33}, 4, "backends")
    assert after == {1: Allocation(0, 1), 2: Allocation(22, 1), 3: Allocation(33, 8)}
    assert changed_hands(held, after) == set()
    again = allocate(held, {22, 33, 44}, 4, "backends")
    assert again[1] == Allocation(44, 2)
    assert changed_hands(held, again) == {44}


@given(st.lists(st.sets(st.integers(1, 30), max_size=12), max_size=20))
def test_an_id_changes_hands_only_if_no_other_is_left(history: list[set[int]]) -> None:
    held: dict[int, Allocation] = {}
    for wanted in history:
        after = allocate(held, wanted, 16, "backends")
        owned = {each.owner for each in held.values() if each.owner}
        left = 15 - len(owned)
        assert len(changed_hands(held, after)) == max(0, len(wanted - owned) - left)
        # Without those that have to wait nobody has to.
        first = allocate(held, wanted - changed_hands(held, after), 16, "backends")
        assert changed_hands(held, first) == set()
        held = allocate(first, wanted, 16, "backends")
        assert changed_hands(first, held) == set()


def test_uids_differ_and_are_never_zero() -> None:
    names = {uid(f"/lb/v1/backends/web/b{i}") for i in range(10_000)}
    assert len(names) == 10_000
    assert 0 not in names
