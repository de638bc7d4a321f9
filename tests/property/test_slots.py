"""The promises of lb/core/slots.py, for random pools, weights and histories."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lb.core import slots
from lb.core.overlay import overlay
from lb.core.slots import SLOTS, Member, Table

POOLS = ("a", "b", "c")
NAMES = [f"backend-{i}" for i in range(40)]

weights = st.one_of(st.integers(0, 5), st.integers(0, 65535))
members = st.lists(
    st.builds(Member, name=st.sampled_from(NAMES), pool=st.sampled_from(POOLS), weight=weights),
    min_size=1,
    max_size=40,
    unique_by=lambda member: member.name,
)


@st.composite
def splits(draw: st.DrawFn) -> dict[str, float]:
    """Per cent for each pool, in tenths, summing to 100."""
    first = draw(st.integers(0, 1000))
    second = draw(st.integers(0, 1000 - first))
    tenths = (first, second, 1000 - first - second)
    return {pool: n / 10 for pool, n in zip(POOLS, tenths, strict=True)}


def exact_shares(
    group: Sequence[Member], split: dict[str, float]
) -> tuple[dict[str, Fraction], dict[str, Fraction]]:
    """Exact slots of each pool, and of each backend, from the definitions alone."""
    totals = {p: sum(m.weight for m in group if m.pool == p) for p in POOLS}
    part = {p: Fraction(str(split[p])) for p in POOLS if totals[p]}
    whole = sum(part.values())
    pools = {p: SLOTS * part.get(p, Fraction(0)) / whole if whole else Fraction(0) for p in POOLS}
    backends = {
        m.name: pools[m.pool] * m.weight / totals[m.pool] if totals[m.pool] else Fraction(0)
        for m in group
    }
    return pools, backends


def assert_even(table: Table, group: Sequence[Member], split: dict[str, float]) -> None:
    pools, backends = exact_shares(group, split)
    counts = table.counts()
    assert sum(counts.values()) == (SLOTS if any(pools.values()) else 0)
    for pool, share in pools.items():
        got = sum(counts[m.name] for m in group if m.pool == pool)
        assert abs(got - share) <= 1
        total = sum(m.weight for m in group if m.pool == pool)
        for member in group:
            if member.pool == pool and total:
                assert abs(counts[member.name] - Fraction(got * member.weight, total)) <= 1
    for name, share in backends.items():
        assert abs(counts[name] - share) <= 1
        if share == 0:
            assert counts[name] == 0


def least_moves(before: Table, group: Sequence[Member], split: dict[str, float]) -> int:
    """How many slots any even table must differ in, by counting: what is held above the greatest
    allowed number must go, and what is missing to the least allowed must come. (A bound from below;
    where it is reached, it is exact.)"""
    pools, backends = exact_shares(group, split)
    held = before.counts()
    empty = SLOTS - sum(held.get(m.name, 0) for m in group)
    # An empty or orphaned slot that is filled counts as moved.
    away = empty + sum(
        max(0, held.get(m.name, 0) - int(backends[m.name] + 1)) for m in group if backends[m.name]
    )
    away += sum(held.get(m.name, 0) for m in group if not backends[m.name])
    come = sum(max(0, -int(-(backends[m.name] - 1) // 1) - held.get(m.name, 0)) for m in group)
    by_pool = empty + sum(
        max(0, sum(held.get(m.name, 0) for m in group if m.pool == p) - int(share + 1))
        for p, share in pools.items()
    )
    return max(away, come, by_pool)


@settings(max_examples=150, deadline=None)
@given(members, splits())
def test_a_first_table_is_even(group: list[Member], split: dict[str, float]) -> None:
    assert_even(slots.plan(group, split, None), group, split)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(members, splits()), min_size=2, max_size=4))
def test_every_table_of_a_history_is_even_and_moves_least(
    history: list[tuple[list[Member], dict[str, float]]],
) -> None:
    before = None
    for group, split in history:
        after = slots.plan(group, split, before)
        assert_even(after, group, split)
        if before is not None and any(exact_shares(group, split)[0].values()):
            least = least_moves(before, group, split)
            # The bound is from below: two or more roundings at once may cost a slot each.
            assert least <= slots.moved(before, after) <= least + len(group)
        before = after


@settings(max_examples=100, deadline=None)
@given(members, splits())
def test_planning_again_moves_nothing(group: list[Member], split: dict[str, float]) -> None:
    once = slots.plan(group, split, None)
    again = slots.plan(list(reversed(group)), split, once)
    assert slots.equal(once, again)


@settings(max_examples=100, deadline=None)
@given(members, splits(), st.sampled_from(POOLS), st.integers(1, 1000))
def test_monotone(group: list[Member], split: dict[str, float], pool: str, by: int) -> None:
    """Raising one pool's split takes no slot from that pool, and gives the others none."""
    up = min(split[pool] + by / 10, 100.0)
    others = 100.0 - split[pool]
    raised = {
        p: round(up, 6) if p == pool else round(split[p] * (100 - up) / others, 6) if others else 0.0
        for p in POOLS
    }
    first = slots.plan(group, split, None)
    second = slots.plan(group, raised, first)
    pool_of = {m.name: m.pool for m in group}
    for before, after in ((first, second), (second, slots.plan(group, split, second))):
        rising = before is first
        was = np.array([pool_of.get(n) == pool for n in (*before.backends, None)])[before.slots]
        now = np.array([pool_of.get(n) == pool for n in (*after.backends, None)])[after.slots]
        lost, won = int((was & ~now).sum()), int((~was & now).sum())
        if split[pool] == raised[pool]:
            continue
        assert (lost if rising else won) == 0


@settings(max_examples=100, deadline=None)
@given(members, splits(), st.data())
def test_the_overlay_moves_only_what_must_and_gives_it_back(
    group: list[Member], split: dict[str, float], data: st.DataObject
) -> None:
    base = slots.plan(group, split, None)
    down = data.draw(st.sets(st.sampled_from([m.name for m in group])))
    now = overlay(base, group, dict.fromkeys(down, 0.0))
    counts = now.counts()
    assert all(counts[name] == 0 for name in down)
    fell = np.array([name in down for name in (*base.backends, None)])[base.slots]
    assert np.array_equal(now.slots[~fell], base.slots[~fell])
    # A pool whose split is 0 gets nothing, also while all others are down.
    usable = [m for m in group if m.name not in down and m.weight and split[m.pool]]
    assert (now.slots == slots.EMPTY).sum() == (0 if usable else slots.SLOTS)
    pool_of = {m.name: m.pool for m in group}
    for pool in POOLS:
        alive = [m for m in usable if m.pool == pool and m.weight]
        total = sum(m.weight for m in alive)
        got = sum(counts[m.name] for m in alive)
        for member in alive:
            # A slot that a backend holds of its own is never taken from it, so where only a few
            # slots are dealt out anew, rounding may leave it one more.
            assert abs(counts[member.name] - Fraction(got * member.weight, total)) <= 2
        if alive and all(pool_of[n] == pool for n in down):
            assert got == sum(base.counts()[m.name] for m in group if m.pool == pool)
    assert overlay(base, group, {}) is base


@settings(max_examples=60, deadline=None)
@given(members, splits(), st.sampled_from(NAMES), st.floats(0, 1), st.floats(0, 1))
def test_a_backend_that_ramps_up_gets_its_own_slots_back_and_keeps_them(
    group: list[Member], split: dict[str, float], name: str, one: float, other: float
) -> None:
    base = slots.plan(group, split, None)
    low, high = sorted((one, other))
    mine = np.array([n == name for n in (*base.backends, None)])[base.slots]
    before, after = (
        np.array([n == name for n in (*t.backends, None)])[t.slots] & mine
        for t in (overlay(base, group, {name: low}), overlay(base, group, {name: high}))
    )
    assert not (before & ~after).any()


@settings(max_examples=60, deadline=None)
@given(members, splits())
def test_the_stored_form_is_the_same_table(group: list[Member], split: dict[str, float]) -> None:
    table = slots.plan(group, split, None)
    document = slots.to_document("web", table)
    assert slots.equal(slots.from_document(document), table)
    assert document == slots.to_document("web", slots.from_document(document))
