"""lb/core/plan.py: what the kernel should hold."""

from __future__ import annotations

from ipaddress import ip_address

from lb.core.nexthop import NextHop
from lb.core.plan import Observed, Wanted, base_table, plan, seed_of
from lb.core.state import DesiredState
from lb.model.objects import Admin, Backend, ClusterConfig, Mode, Service

SEED = "00112233445566778899aabbccddeeff"
ADDRESSES = {name: ip_address(f"203.0.113.{n}") for n, name in enumerate(("b1", "b2"), 1)}


def planned(mode: Mode = Mode.DSR, admin: Admin = Admin.UP, **hops: NextHop) -> Wanted:
    """A service with two backends, of which b1 has this admin state."""
    backends = {
        ("web", name): Backend(
            service="web", name=name, address=address, admin=admin if name == "b1" else Admin.UP
        )
        for name, address in ADDRESSES.items()
    }
    service = Service(name="web", vip=ip_address("198.51.100.100"), port=80, mode=mode)
    state = DesiredState(config=ClusterConfig(seed=SEED), services={"web": service}, backends=backends)
    next_hops = {ADDRESSES[name]: hop for name, hop in hops.items()}
    bases = {"web": base_table(service, state.backends_of("web"), None, 0)}
    return plan(state, Observed(next_hops, frozenset({2, 3})), bases)


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
