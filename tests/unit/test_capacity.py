"""Soft limits of connections: who is full, and who gets no new flows for that."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.core.capacity import Full, full, held_back
from lb.core.nexthop import NextHop
from lb.core.plan import Observed, ServicePlan, base_tables, plan_service
from lb.core.slots import SLOTS
from lb.core.state import DesiredState
from lb.model.objects import Admin, Backend, Service
from lb.node.crowds import Crowds

HOP = NextHop(2, b"\2\0\0\0\0\1", b"\2\0\0\0\0\2", source=ip_address("203.0.113.254"))
WEB = Service.model_validate(
    {
        **{"name": "web", "vip": "198.51.100.100", "port": 80, "mode": "fullnat"},
        **{"split": {"stable": 100}, "backup": "spare"},
    }
)


def backend(name: str, limit: int | None = 100, **fields: object) -> Backend:
    address = f"203.0.113.{int(name[1:])}"
    given = {"service": "web", "name": name, "address": address, "max_connections": limit}
    return Backend.model_validate({**given, **fields})


@pytest.mark.parametrize(
    ("count", "is_full", "then"),
    [(99, False, False), (100, False, True), (120, False, True), (99, True, True), (90, True, True),
     (89, True, False), (0, True, False)],
)  # fmt: skip
def test_it_is_full_at_its_limit_and_until_below_nine_tenths(
    count: int, is_full: bool, then: bool
) -> None:
    before = {"b1": Full(100, 100)} if is_full else {}
    assert ("b1" in full([backend("b1")], {"b1": count}, before)) is then


def test_a_limit_of_one_can_be_left() -> None:
    one = [backend("b1", 1)]
    assert full(one, {"b1": 1}, {}) == {"b1": Full(1, 1)}
    assert full(one, {"b1": 0}, {"b1": Full(1, 1)}) == {}


def test_without_a_limit_nobody_is_full() -> None:
    assert full([backend("b1", None)], {"b1": 10**6}, {}) == {}
    assert full([backend("b1", None)], {"b1": 10**6}, {"b1": Full(100, 100)}) == {}


def test_small_changes_are_not_told() -> None:
    before = {"b1": Full(120, 100)}
    assert full([backend("b1")], {"b1": 129}, before) == before
    assert full([backend("b1")], {"b1": 131}, before) == {"b1": Full(131, 100)}
    assert full([backend("b1", 101)], {"b1": 120}, before) == {"b1": Full(120, 101)}


def test_who_is_full_is_held_back_but_never_all_of_a_pool() -> None:
    both = [backend("b1"), backend("b2")]
    assert held_back(both, {}, {"b1"}) == ({"b1"}, ())
    assert held_back(both, {}, {"b1", "b2"}) == (frozenset(), ("stable",))
    # The other one can't be used anyway.
    assert held_back(both, {"b2": 0.0}, {"b1"}) == (frozenset(), ("stable",))
    drained = [both[0], backend("b2", admin=Admin.DRAIN)]
    assert held_back(drained, {}, {"b1"}) == (frozenset(), ("stable",))
    # One that still ramps up can.
    assert held_back(both, {"b2": 0.05}, {"b1"}) == ({"b1"}, ())
    assert held_back([*both, backend("b3", pool="canary")], {}, {"b1", "b2"})[1] == ("stable",)


NAMES = [f"b{n}" for n in range(1, 7)]


@given(
    pools=st.lists(st.sampled_from(["stable", "canary"]), min_size=6, max_size=6),
    fitness=st.dictionaries(st.sampled_from(NAMES), st.sampled_from([0.0, 0.5])),
    crowded=st.sets(st.sampled_from(NAMES)),
)
def test_a_pool_that_has_somebody_keeps_somebody(
    pools: list[str], fitness: dict[str, float], crowded: set[str]
) -> None:
    backends = [backend(name, pool=pool) for name, pool in zip(NAMES, pools, strict=True)]
    held, crammed = held_back(backends, fitness, crowded)
    assert held <= crowded
    for pool in set(pools):
        usable = {b.name for b in backends if b.pool == pool and fitness.get(b.name, 1.0)}
        assert not usable or usable - held
        assert (pool in crammed) == (bool(usable) and usable <= crowded)


def planned(crowded: set[str]) -> ServicePlan:
    members = (backend("b1"), backend("b2"), backend("b3", None, pool="spare"))
    observed = Observed({each.address: HOP for each in members}, frozenset({2}))
    bases = base_tables(WEB, members, {}, 0)
    return plan_service(WEB, members, observed, "0" * 32, bases, full=crowded)


def counts(plan: ServicePlan) -> Mapping[str, int]:
    return {name: n for name, n in plan.wanted.table.counts().items() if n}


def test_its_slots_go_to_the_others_and_its_flows_stay() -> None:
    plan = planned({"b1"})
    assert counts(plan) == {"b2": SLOTS}
    assert plan.backends["web", "b1"].usable
    assert plan.problems == ()


def test_where_all_are_full_all_are_used_and_it_is_said() -> None:
    plan = planned({"b1", "b2"})
    assert counts(plan) == {"b1": SLOTS // 2, "b2": SLOTS // 2}  # and not the backup
    [problem] = plan.problems
    assert problem.warning
    assert "all usable backends of pool 'stable' are full" in problem.message


def test_a_limit_that_is_changed_counts_at_once() -> None:
    def state(*backends: Backend) -> DesiredState:
        held = {("web", each.name): each for each in backends}
        return DesiredState(services={"web": WEB}, backends=held)

    crowds, before = Crowds(), state(backend("b1"), backend("b2"))
    assert crowds.count(before, {("web", "b1"): 120, ("web", "b2"): 3})
    assert not crowds.count(before, {("web", "b1"): 121, ("web", "b2"): 4})
    assert {path: tuple(each) for path, each in crowds.full["web"].items()} == {"b1": (120, 100)}
    assert list(crowds.reports()) == ["web/b1"]
    crowds.follow(before)
    assert list(crowds.full["web"]) == ["b1"]
    for after in (backend("b1", 200), backend("b1", None)):
        crowds.count(before, {("web", "b1"): 120})
        crowds.follow(state(after, backend("b2")))
        assert crowds.reports() == {}
    crowds.count(before, {("web", "b1"): 120})
    crowds.follow(DesiredState())
    assert crowds.full == {}
