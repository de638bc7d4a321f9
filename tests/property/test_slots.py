"""The promises of lb/core/slots.py, for random pools, weights and histories."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb.core import slots
from lb.core.overlay import overlay
from lb.core.slots import SLOTS, Member, Table
from lb.model.objects import TableDocument

POOLS = ("a", "b", "c", "d", "e", "f", "g", "h")
NAMES = [f"backend-{i}" for i in range(40)]

weights = st.one_of(st.integers(0, 5), st.integers(0, 65535))
members = st.lists(
    st.builds(
        Member, name=st.sampled_from(NAMES), pool=st.sampled_from([*POOLS[:3], *POOLS]), weight=weights
    ),
    min_size=1,
    max_size=40,
    unique_by=lambda member: member.name,
)


@st.composite
def splits(draw: st.DrawFn) -> dict[str, float]:
    """Per cent for each pool, in tenths, summing to 100; often only for the first three."""
    count = draw(st.sampled_from([3, 3, len(POOLS)]))
    cuts = sorted(draw(st.lists(st.integers(0, 1000), min_size=count - 1, max_size=count - 1)))
    tenths = [high - low for low, high in zip([0, *cuts], [*cuts, 1000], strict=True)]
    return dict.fromkeys(POOLS, 0.0) | dict(zip(POOLS, (n / 10 for n in tenths), strict=False))


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
    """How many slots the best even table differs in, found without the planner: for each size that
    evenness allows a pool, what its backends must take at least; and of all ways to put sizes together
    the cheapest. Sizes that move a pool against its split come last: that is the monotone rule."""
    pools, backends = exact_shares(group, split)
    held = before.counts()
    whole = sum(pools.values())
    was = sum(before.parts.values())
    best: dict[int, tuple[int, int]] = {0: (0, 0)}  # slots given so far -> against the rule, moved
    for pool, share in pools.items():
        mine = [m for m in group if m.pool == pool]
        holds = sum(held.get(m.name, 0) for m in mine)
        trend = Fraction(0)
        if pool in before.parts and share:
            trend = share / whole - Fraction(before.parts[pool], was)
        options = {}
        for size in within_one(share) if share else [0]:
            against = max(holds - size, 0) if trend > 0 else max(size - holds, 0) if trend < 0 else 0
            options[size] = against, must_take(size, mine, backends, held)
        best = cheapest(best, options)
    return best[int(whole)][1]


def within_one(share: Fraction) -> list[int]:
    return [n for n in range(max(0, math.ceil(share - 1)), math.floor(share + 1) + 1) if n <= SLOTS]


def must_take(
    size: int, group: Sequence[Member], exact: dict[str, Fraction], held: dict[str, int]
) -> int:
    """What the backends of a pool of this size must take at least to be even."""
    total = sum(m.weight for m in group)
    lacking = spare = holds = 0
    for member in group:
        have = held.get(member.name, 0)
        inside = Fraction(size * member.weight, total) if total else Fraction(0)
        low = max(0, math.ceil(max(inside, exact[member.name]) - 1))
        high = math.floor(min(inside, exact[member.name]) + 1) if member.weight and size else 0
        lacking += max(0, low - have)
        spare += max(0, have - high)
        holds += have
    return max(lacking, size - holds + spare)


def cheapest(
    best: dict[int, tuple[int, int]], options: dict[int, tuple[int, int]]
) -> dict[int, tuple[int, int]]:
    found: dict[int, tuple[int, int]] = {}
    for given_so_far, cost in best.items():
        for size, more in options.items():
            price = cost[0] + more[0], cost[1] + more[1]
            found[given_so_far + size] = min(found.get(given_so_far + size, price), price)
    return found


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
            assert slots.moved(before, after) == least_moves(before, group, split)
        before = after


def change(dice: random.Random, group: list[Member]) -> list[Member]:
    """One of the things that people do: add, remove, reweight or drain some."""
    kind = dice.choice(["add", "remove", "reweight", "drain", "reweight many"])
    some = dice.sample(group, min(len(group), dice.choice([1, 1, max(1, len(group) // 10)])))
    if kind == "add":
        tag = dice.randrange(10**6)
        return [*group, *(replace(m, name=f"new-{tag}-{i}") for i, m in enumerate(some))]
    if kind == "remove":
        return [m for m in group if m not in some] or group
    weights = {m.name: 0 if kind == "drain" else dice.choice([1, 50, 100, 65535]) for m in some}
    return [replace(m, weight=weights.get(m.name, m.weight)) for m in group]


@pytest.mark.parametrize("count", [1, 2, 10, 100, 1000, 4000])
@pytest.mark.parametrize("pools", [1, 3, 8])
def test_large_tables_are_even_and_move_least(count: int, pools: int) -> None:
    dice = random.Random(count * pools)
    group = [
        Member(f"b{i}", POOLS[i % pools], dice.choice([1, 10, 100, 100, 100, 65535]))
        for i in range(count)
    ]
    before = None
    for turn in range(6):
        cuts = sorted(dice.sample(range(1, 1000), pools - 1))
        tenths = [b - a for a, b in zip([0, *cuts], [*cuts, 1000], strict=True)]
        split = dict.fromkeys(POOLS, 0.0) | {
            pool: n / 10 for pool, n in zip(POOLS, tenths, strict=False)
        }
        if turn % 2 and before is not None:
            group = change(dice, group)
        after = slots.plan(group, split, before)
        assert_even(after, group, split)
        if before is not None and any(exact_shares(group, split)[0].values()):
            assert slots.moved(before, after) == least_moves(before, group, split)
        before = after


def test_more_backends_than_slots() -> None:
    group = [Member(f"b{i}", "a", 1) for i in range(66_000)]
    split = {"a": 100.0}
    table = slots.plan(group, split, None)
    assert set(table.counts().values()) == {0, 1}
    fewer = slots.plan(group[: SLOTS // 2], split, table)
    assert set(fewer.counts().values()) == {2}


def test_one_backend_has_all_and_nobody_has_none() -> None:
    split = {"a": 100.0}
    assert slots.plan([Member("b", "a", 7)], split, None).counts() == {"b": SLOTS}
    for nobody in ([], [Member("b", "a", 0)], [Member("b", "c", 7)]):
        assert (slots.plan(nobody, split, None).slots == slots.EMPTY).all()
    both = [Member("b", "a", 7), Member("c", "a", 7)]
    table = slots.plan(both, split, None)
    assert (overlay(table, both, {"b": 0.0, "c": 0.0}).slots == slots.EMPTY).all()


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(members, splits()), min_size=2, max_size=5), st.data())
def test_nodes_of_different_histories_have_the_same_table(
    history: list[tuple[list[Member], dict[str, float]]], data: st.DataObject
) -> None:
    """What the store holds is planned step by step; nodes were away for some steps, or began anew, or
    saw other states of health on the way."""
    stored = None
    held: list[Table | None] = [None, None]
    for group, split in history:
        stored = slots.to_document("web", slots.plan(group, split, stored and from_store(stored)))
        for node in range(2):
            if data.draw(st.booleans()):
                held[node] = from_store(stored)
                down = data.draw(st.sets(st.sampled_from([m.name for m in group])))
                overlay(held[node], group, dict.fromkeys(down, 0.0))
    assert stored is not None
    group, split = history[-1]
    down = dict.fromkeys(data.draw(st.sets(st.sampled_from([m.name for m in group]))), 0.0)
    tables = [overlay(slots.plan(group, split, from_store(stored)), group, down) for _ in held]
    for table in tables:
        assert table.digest == tables[0].digest
        assert table.slots.tobytes() == tables[0].slots.tobytes()
    # To plan again what is stored is to change nothing: there is nothing to disagree about.
    assert slots.equal(slots.plan(group, split, from_store(stored)), from_store(stored))


def from_store(document: TableDocument) -> Table:
    return slots.from_document(TableDocument.model_validate_json(document.model_dump_json()))


@pytest.mark.parametrize(("count", "down"), [(10, 2), (10, 5), (100, 2), (100, 10), (100, 40)])
def test_with_many_down_one_more_moves_little(count: int, down: int) -> None:
    """Median of slots moved over the least possible, which is what the falling one held."""
    ratios = []
    for trial in range(25):
        dice = random.Random(trial)
        group = [Member(f"b{trial}-{i}", "a", dice.randint(10, 100)) for i in range(count)]
        base = slots.plan(group, {"a": 100.0}, None)
        falling = dice.sample([m.name for m in group], down + 1)
        before = overlay(base, group, dict.fromkeys(falling[:-1], 0.0))
        after = overlay(base, group, dict.fromkeys(falling, 0.0))
        ratios.append(slots.moved(before, after) / before.counts()[falling[-1]])
        # And exactly that comes back.
        assert overlay(base, group, dict.fromkeys(falling[:-1], 0.0)).digest == before.digest
    assert statistics.median(ratios) <= 1.25


def test_one_that_is_down_gives_its_own_slots_and_gets_them_back() -> None:
    dice = random.Random(1)
    for count in (2, 10, 100, 1000):
        group = [Member(f"b{i}", "a", dice.randint(1, 100)) for i in range(count)]
        base = slots.plan(group, {"a": 100.0}, None)
        name = group[count // 2].name
        now = overlay(base, group, {name: 0.0})
        assert slots.moved(base, now) == base.counts()[name]
        assert overlay(base, group, {}) is base


@settings(max_examples=60, deadline=None)
@given(members, st.integers(0, 1000), st.sampled_from([100, 50, 25, 0]))
def test_a_rollout_never_takes_a_client_back(group: list[Member], other: int, abort: int) -> None:
    """The canary's share grows step by step beside two other pools; then it falls to what it was, or to
    some step between."""

    def split_of(share: float) -> dict[str, float]:
        rest = 100 - share
        return dict.fromkeys(POOLS, 0.0) | {
            "a": share,
            "b": rest * other / 1000,
            "c": rest - rest * other / 1000,
        }

    pool_of = {m.name: m.pool for m in group}
    table = slots.plan(group, split_of(0), None)
    steps = [1, 5, 25, 50, 100]
    for before, share in zip([0, *steps], [*steps, abort], strict=True):
        after = slots.plan(group, split_of(share), table)
        was, now = (
            np.array([pool_of.get(n) == "a" for n in (*each.backends, None)])[each.slots]
            for each in (table, after)
        )
        if share > before:
            assert not (was & ~now).any()
        elif share < before:
            assert not (now & ~was).any()
        table = after


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


def against(before: Table, after: Table, group: Sequence[Member], split: dict[str, float]) -> int:
    """Slots that pools lost though their share grew, or won though it fell."""
    pool_of = {m.name: m.pool for m in group}
    was, now = (
        np.array([pool_of.get(n, "") for n in (*each.backends, "")])[each.slots]
        for each in (before, after)
    )
    pools, _ = exact_shares(group, split)
    whole, found = sum(before.parts.values()), 0
    for pool, share in pools.items():
        trend = share / SLOTS - Fraction(before.parts.get(pool, 0), whole)
        lost, won = (was == pool) & (now != pool), (was != pool) & (now == pool)
        found += int((lost if trend > 0 else won if trend < 0 else lost & won).sum())
    return found


@pytest.mark.parametrize("pools", [2, 3, 8])
@pytest.mark.parametrize("count", [8, 240, 1000])
def test_no_pool_moves_against_its_split(count: int, pools: int) -> None:
    """All pools at once, with so many backends that their rounding adds up to whole slots."""
    dice = random.Random(count + pools)
    weights = [1, 10, 100, 100, 100, 65535]
    group = [Member(f"b{i}", POOLS[i % pools], dice.choice(weights)) for i in range(count)]
    table = None
    for _ in range(40):
        cuts = sorted(dice.sample(range(1, 1000), pools - 1))
        tenths = [b - a for a, b in zip([0, *cuts], [*cuts, 1000], strict=True)]
        split = dict.fromkeys(POOLS, 0.0) | {
            pool: n / 10 for pool, n in zip(POOLS, tenths, strict=False)
        }
        after = slots.plan(group, split, table)
        if table is not None:
            assert against(table, after, group, split) == 0
        table = after


def test_many_pools() -> None:
    """As many ways to round as 3 to the power of 40 don't matter."""
    pools = [f"p{i}" for i in range(40)]
    group = [Member(f"{pool}-{i}", pool, 1 + i) for pool in pools for i in range(3)]
    table = slots.plan(group, dict.fromkeys(pools, 2.5), None)
    assert sum(table.counts().values()) == SLOTS
    assert max(table.counts().values()) - SLOTS / 80 <= 1


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
