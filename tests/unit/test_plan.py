"""lb/core/plan.py: what the kernel should hold."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from lb.core import health
from lb.core.health import Member, Record, Result, Verdict
from lb.core.nexthop import NextHop
from lb.core.plan import Observed, Wanted, base_table, plan, seed_of
from lb.core.state import DesiredState
from lb.model.health import Health
from lb.model.objects import Admin, Backend, ClusterConfig, Mode, Protocol, Service
from lb.node.planning import Bases

SEED = "00112233445566778899aabbccddeeff"
ADDRESSES = {name: ip_address(f"203.0.113.{n}") for n, name in enumerate(("b1", "b2"), 1)}


PASS, FAIL = Result(True, "connected", 0.001), Result(False, "connection refused", 0.001)


def planned(
    mode: Mode = Mode.DSR,
    admin: Admin = Admin.UP,
    verdict: Verdict = Verdict(),  # noqa: B008 - frozen
    protocol: Protocol = Protocol.TCP,
    **hops: NextHop,
) -> Wanted:
    """A service with two backends, of which b1 has this admin state."""
    backends = {
        ("web", name): Backend(
            service="web", name=name, address=address, admin=admin if name == "b1" else Admin.UP
        )
        for name, address in ADDRESSES.items()
    }
    vip = ip_address("198.51.100.100")
    service = Service(name="web", vip=vip, port=80, mode=mode, protocol=protocol)
    state = DesiredState(config=ClusterConfig(seed=SEED), services={"web": service}, backends=backends)
    next_hops = {ADDRESSES[name]: hop for name, hop in hops.items()}
    bases = {"web": base_table(service, state.backends_of("web"), None, 0)}
    return plan(state, Observed(next_hops, frozenset({2, 3})), bases, {"web": verdict})


def hop(ifindex: int = 2, gateway: bool = False) -> NextHop:
    return NextHop(ifindex, b"\2\0\0\0\0\1", b"\2\0\0\0\0\2", gateway)


def counts(wanted: Wanted) -> dict[str, int]:
    return wanted.services["web"].table.counts()


def test_both_are_there() -> None:
    wanted = planned(b1=hop(), b2=hop(3))
    assert counts(wanted) == {"b1": 32768, "b2": 32768}
    assert wanted.backends["web", "b2"].next_hop == hop(3)
    assert wanted.backends["web", "b2"].port == 80
    assert wanted.problems == ()


def test_a_backend_without_a_way_gets_no_slot_and_the_base_stays() -> None:
    wanted = planned(b2=hop())
    assert counts(wanted) == {"b1": 0, "b2": 65536}
    assert wanted.services["web"].base.counts() == {"b1": 32768, "b2": 32768}


def test_drain_keeps_flows_and_down_does_not() -> None:
    for admin, usable in ((Admin.DRAIN, True), (Admin.DOWN, False)):
        wanted = planned(admin=admin, b1=hop(), b2=hop())
        assert counts(wanted) == {"b1": 0, "b2": 65536}
        assert wanted.backends["web", "b1"].usable is usable


def judged(record: Record, service: Health = Health()) -> Verdict:  # noqa: B008 - frozen
    """A service of which b1 has this record, and b2 is healthy."""
    well = health.step(health.new("b2", service, 0.0, in_use=False), PASS, service, 1.0)
    members = [Member(n, "stable", True, service, r) for n, r in (("b1", record), ("b2", well))]
    return health.judge(members, service, Protocol.TCP, 1000.0)


def series(service: Health, *results: Result) -> Record:
    record = health.new("b1", service, 0.0, in_use=False)
    for each in results:
        record = health.step(record, each, service, 1.0)
    return record


def test_an_unhealthy_backend_gets_no_slot_and_keeps_its_flows() -> None:
    bad = series(Health(), FAIL, FAIL, FAIL)
    wanted = planned(verdict=judged(bad), b1=hop(), b2=hop())
    assert counts(wanted) == {"b1": 0, "b2": 65536}
    assert wanted.services["web"].base.counts() == {"b1": 32768, "b2": 32768}
    assert wanted.backends["web", "b1"].usable
    reset = Health(established="reset")
    wanted = planned(verdict=judged(bad, reset), b1=hop(), b2=hop())
    assert not wanted.backends["web", "b1"].usable
    assert wanted.backends["web", "b1"].resets  # the kernel tells the clients
    assert not wanted.backends["web", "b2"].resets
    wanted = planned(protocol=Protocol.UDP, verdict=judged(bad, reset), b1=hop(), b2=hop())
    assert not wanted.backends["web", "b1"].usable
    assert not wanted.backends["web", "b1"].resets


def test_a_backend_in_slow_start_gets_its_part() -> None:
    service = Health(slow_start=20)
    recovered = replace(series(service, PASS), ramp_from=996.0)
    wanted = planned(verdict=judged(recovered, service), b1=hop(), b2=hop())
    # A quarter of its weight against the whole of the other's.
    assert counts(wanted) == {"b1": 13107, "b2": 52429}


def test_recovery_never_undoes_what_a_person_wants() -> None:
    """Whatever the checks find, a drained backend has no slot, and one that is down no packet."""
    for results in ([], [PASS], [FAIL] * 3, [FAIL] * 3 + [PASS] * 2):
        for panic in (0.0, 100.0):
            service = Health(panic=panic)
            for admin in (Admin.DRAIN, Admin.DOWN):
                verdict = judged(series(service, *results), service)
                wanted = planned(admin=admin, verdict=verdict, b1=hop(), b2=hop())
                assert counts(wanted) == {"b1": 0, "b2": 65536}
                assert wanted.backends["web", "b1"].usable is (admin is Admin.DRAIN)


def test_an_interface_that_is_not_attached() -> None:
    wanted = planned(b1=hop(7), b2=hop())
    assert counts(wanted) == {"b1": 0, "b2": 65536}
    assert "not attached" in wanted.problems[0].message
    assert wanted.problems[0].where == "/lb/v1/backends/web/b1"


def test_a_router_in_the_way_is_for_nat_only() -> None:
    assert counts(planned(Mode.NAT, b1=hop(gateway=True), b2=hop())) == {"b1": 32768, "b2": 32768}
    wanted = planned(Mode.DSR, b1=hop(gateway=True), b2=hop())
    assert counts(wanted) == {"b1": 0, "b2": 65536}
    assert "behind a router" in wanted.problems[0].message


def test_services_have_seeds_of_their_own_that_every_node_derives() -> None:
    assert seed_of(SEED, "web") == planned(b1=hop()).services["web"].seed
    assert len({seed_of(SEED, "web"), seed_of(SEED, "web2"), seed_of("ff" * 16, "web")}) == 3


def test_a_table_of_ours_in_the_store_is_no_reason_to_plan_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backends = {
        ("web", name): Backend(service="web", name=name, address=address)
        for name, address in ADDRESSES.items()
    }
    service = Service(name="web", vip=ip_address("198.51.100.100"), port=80)
    state = DesiredState(services={"web": service}, backends=backends)
    bases = Bases()
    made = bases.update(state)["web"]
    stored = replace(state, tables=bases.unstored(state))
    with monkeypatch.context() as patch:
        patch.setattr("lb.node.planning.base_tables", None)
        assert bases.update(stored)["web"] is made
    assert not bases.unstored(stored)
    heavier = backends["web", "b1"].model_copy(update={"weight": 300})
    changed = replace(stored, backends={**backends, ("web", "b1"): heavier})
    assert bases.update(changed)["web"].counts()["b1"] > 49000
    # Another node's, which began without a table before: that is what all go by.
    theirs, empty = Bases(), replace(changed, tables={})
    other = theirs.update(empty)["web"]
    followed = bases.update(replace(changed, tables=theirs.unstored(empty)))["web"]
    assert followed.digest == other.digest
