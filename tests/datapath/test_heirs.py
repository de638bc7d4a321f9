"""An id that goes from one owner to the next in one step (lb/core/heirs.py): after each single write
packets go through the program, and none may reach another service's server."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from lb.core import ids
from lb.core.heirs import Heirs, without
from lb.core.nexthop import NextHop
from lb.core.plan import Observed, Wanted, base_tables, plan
from lb.core.rules import Steer, Steers
from lb.core.slots import Table, to_document
from lb.core.state import DesiredState
from lb.datapath import consts, contents, structs
from lb.datapath.bpf import Map
from lb.datapath.kernel import Kernel, read_owners
from lb.datapath.view import KernelView
from lb.errors import CapacityError
from lb.model import keys
from lb.model.objects import Backend, ClusterConfig, Mirror, Mode, Service, Tracking
from lb.settings import Limits

from . import harness, netns

OWN_MAC = b"\2\0\0\0\0\xff"
# Room for two services and three backends; index 0 is nobody's.
LIMITS = Limits(services=3, vips=8, backends=4, rules=4, conntrack=1024, embryonic=1024)
SERVICES, BACKENDS = ("s1", "s2", "s3"), ("b1", "b2", "b3")
CLIENTS = [ip_address(f"203.0.113.{n}") for n in range(1, 7)]

Members = dict[str, dict[str, int]]  # weights by service and backend


def vip(service: str) -> str:
    return f"198.51.100.{service[1:]}"


def server(service: str, backend: str) -> str:
    return f"203.0.113.{100 + 10 * int(service[1:]) + int(backend[1:])}"


def state_of(members: Members, tracking: Tracking = Tracking.MOVING, **fields: Any) -> DesiredState:
    return DesiredState(
        config=ClusterConfig(seed="00112233445566778899aabbccddeeff"),
        services={
            name: Service.model_validate(
                {"name": name, "vip": vip(name), "port": 80, "tracking": tracking, **fields}
            )
            for name in members
        },
        backends={
            (service, name): Backend(
                service=service, name=name, address=ip_address(server(service, name)), weight=weight
            )
            for service, backends in members.items()
            for name, weight in backends.items()
        },
    )


@cache
def segment(to: str, client: str, flags: str) -> bytes:
    ethernet = Ether(src="02:00:00:00:00:01", dst=OWN_MAC.hex(":"))
    return bytes(ethernet / IP(src=client, dst=to) / TCP(sport=4000, dport=80, flags=flags))


class Node:
    """A kernel with few ids, and a client that sends after each write."""

    def __init__(self, program: harness.Kernel) -> None:
        self.program, self.maps = program, program.maps
        for name in ("vips", "nat_back", "conntrack", "embryonic", "rules", "quic"):
            each = self.maps.by_name[name]
            each.delete_many(list(each.keys()))
        for name in ("services", "backends", "service_owners", "backend_owners"):
            each = self.maps.by_name[name]
            for number in range(each.max_entries):
                each.put(harness.u32(number), bytes(each.value_size))
        for key in list(self.maps.tables.keys()):
            self.maps.tables.delete(key)
        link = structs.Link(ifindex=netns.A, master=netns.A)
        link.mac[:] = OWN_MAC
        self.maps.links.put(harness.u32(netns.A % consts.LINKS), bytes(link))
        self.kernel = Kernel(self.maps)
        self.kernel.adopt()
        self.tables: dict[str, Any] = {}
        self.looks = 0
        self.reached: set[tuple[str, str]] = set()

    def wanted(self, state: DesiredState, now: int) -> Wanted:
        documents = {path: to_document(path, table) for path, table in self.tables.items()}
        self.tables = {
            path: table
            for name, each in state.services.items()
            for path, table in base_tables(each, state.backends_of(name), documents, now).items()
        }
        hops = {
            each.address: NextHop(netns.B, OWN_MAC, b"\2\1\1\1" + bytes(each.address.packed[2:]))
            for each in state.backends.values()
        }
        return plan(state, Observed(hops, frozenset({netns.B})), self.tables)

    def look(self) -> None:
        """Nobody's packet may reach a server of another service."""
        self.looks += 1
        for name in SERVICES:
            for client in CLIENTS:
                for flags in "SA":
                    found = self.send(name, client, flags)
                    if found:
                        assert found[0] == name, f"{client} asked {name} and reached {found}"
                        self.reached.add(found)

    def send(self, service: str, client: Any, flags: str) -> tuple[str, str] | None:
        frame = segment(vip(service), str(client), flags)
        result = self.program.program.run(frame, context=bytes(40) + struct.pack("=I", netns.A))
        if result.retval != harness.TC_ACT_REDIRECT or result.data[:2] != b"\2\1":
            return None
        last = result.data[5] - 100
        return f"s{last // 10}", f"b{last % 10}"


@pytest.fixture(scope="module")
def program(namespace: netns.Namespace) -> Iterator[harness.Kernel]:
    with namespace, harness.load("tc", frozenset({netns.B}), LIMITS) as loaded:
        yield loaded


@pytest.fixture
def node(program: harness.Kernel) -> Node:
    return Node(program)


def watched(node: Node, patch: pytest.MonkeyPatch) -> None:
    """From now on the client sends after each write of whichever map."""
    for name in ("put", "put_many", "delete"):
        original = getattr(Map, name)

        def write(self: Map, *args: Any, original: Any = original, **named: Any) -> Any:
            result = original(self, *args, **named)
            node.look()
            return result

        patch.setattr(Map, name, write)


HISTORIES: dict[str, list[Members]] = {
    "a backend's id": [
        {"s1": {"b1": 1, "b2": 1}, "s2": {"b1": 1}},
        {"s1": {"b1": 1}, "s2": {"b1": 1, "b2": 1}},
    ],
    "the only backend's": [
        {"s1": {"b1": 1}, "s2": {"b1": 1, "b2": 1}},
        {"s1": {}, "s2": {"b1": 1, "b2": 1, "b3": 1}},
    ],
    "both ways": [
        {"s1": {"b1": 1, "b2": 1}, "s2": {"b1": 1}},
        {"s1": {"b3": 1}, "s2": {"b2": 1, "b3": 1}},
    ],
    "a service's": [{"s1": {"b1": 1}, "s2": {"b1": 1}}, {"s3": {"b1": 1}, "s2": {"b1": 1}}],
    "all": [{"s1": {"b1": 1}, "s2": {"b1": 1, "b2": 1}}, {"s3": {"b1": 1, "b2": 1, "b3": 1}}],
}


@pytest.mark.parametrize("tracking", Tracking)
@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES)
def test_no_packet_goes_to_anothers_server(
    node: Node, monkeypatch: pytest.MonkeyPatch, history: list[Members], tracking: Tracking
) -> None:
    first, second = history
    node.kernel.apply(node.wanted(state_of(first, tracking), 0))
    node.look()
    assert {name for name, _ in node.reached} == first.keys()
    watched(node, monkeypatch)
    state = state_of(second, tracking)
    wanted = node.wanted(state, 0)
    node.kernel.apply(wanted)
    monkeypatch.undo()
    assert node.looks >= 8
    assert_is(node, state, wanted)


def assert_is(node: Node, state: DesiredState, wanted: Wanted) -> None:
    """All is as if it had been made at once."""
    view = KernelView(node.maps, state)
    for name, service in wanted.services.items():
        assert view.slots(name) == list(service.table.names())
    assert node.kernel.apply(wanted) == 0
    heir = Kernel(node.maps)
    heir.adopt()
    assert heir.apply(wanted) == 0


members = st.dictionaries(
    st.sampled_from(SERVICES),
    st.dictionaries(st.sampled_from(BACKENDS), st.integers(0, 2), max_size=3),
    max_size=2,
).filter(lambda each: sum(len(backends) for backends in each.values()) <= 3)


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
)
@given(st.lists(st.tuples(members, st.sampled_from([Mode.DSR, Mode.NAT])), min_size=2, max_size=3))
def test_nor_in_any_history(program: harness.Kernel, history: list[tuple[Members, Mode]]) -> None:
    node = Node(program)
    for step, (each, mode) in enumerate(history):
        state = state_of(each, mode=mode)
        wanted = node.wanted(state, 1000 * step)
        with pytest.MonkeyPatch.context() as patch:
            watched(node, patch)
            node.kernel.apply(wanted)
        assert_is(node, state, wanted)


def test_the_others_slots_do_not_move_twice_and_nobody_is_refused_meanwhile(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.kernel.apply(node.wanted(state_of({"s1": {"b1": 1, "b2": 1}, "s2": {"b1": 1}}), 0))
    tables: list[list[str | None]] = []
    state = state_of({"s1": {"b1": 1}, "s2": {"b1": 1, "b2": 1}})
    wanted = node.wanted(state, 0)
    original = contents.write

    def write(*args: Any) -> int:
        changes = original(*args)
        tables.append(KernelView(node.maps, state).slots("s2") or [])
        return changes

    monkeypatch.setattr(contents, "write", write)
    node.kernel.apply(wanted)
    after = list(wanted.services["s2"].table.names())
    assert tables == [["b1"] * 65536, after]
    # What moved remembers where it was, as ever.
    moving = KernelView(node.maps, state).moving("s2") or []
    assert {run.origin for run in moving} == {"b1"}
    assert sum(run.length for run in moving) == after.count("b2")


def test_as_long_as_other_ids_are_free_one_pass_does(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.kernel.apply(node.wanted(state_of({"s1": {"b1": 1, "b2": 1}}), 0))
    passes = []
    original = contents.write
    monkeypatch.setattr(contents, "write", lambda *args: passes.append(1) or original(*args))
    node.kernel.apply(node.wanted(state_of({"s1": {"b1": 1, "b3": 1}}), 0))
    assert passes == [1]


def test_what_is_refused_changes_nothing_even_then(node: Node) -> None:
    node.kernel.apply(node.wanted(state_of({"s1": {"b1": 1, "b2": 1}, "s2": {"b1": 1}}), 0))
    before = {name: sorted(node.maps.by_name[name].items()) for name in ("vips", "backends", "services")}
    full = node.wanted(state_of({"s1": {"b1": 1}, "s2": {"b1": 1, "b2": 1}}), 0)
    s2, base = full.services["s2"], full.services["s2"].base
    many: Steers = {ip_network(f"198.18.{n}.0/24"): Steer(None, None) for n in range(5)}
    assert len(many) > node.maps.rules.max_entries
    ruled = replace(
        s2,
        service=s2.service.model_copy(update={"rules": dict.fromkeys(many, "stable")}),
        base=Table(base.backends, base.slots, base.parts, base.moves, many),
    )
    with pytest.raises(CapacityError, match="rules"):
        node.kernel.apply(replace(full, services={**full.services, "s2": ruled}))
    after = {name: sorted(node.maps.by_name[name].items()) for name in before}
    assert after == before


def test_a_pool_whose_table_waits_has_no_rules_and_copies_meanwhile(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    testers = {ip_network("203.0.113.0/28"): "stable"}
    node.kernel.apply(node.wanted(state_of({"s1": {"b1": 1}, "s2": {"b1": 1}}), 0))
    state = state_of({"s1": {"b1": 1}}, rules=testers)
    wanted = node.wanted(state, 0)
    s1 = wanted.services["s1"]
    copied = replace(
        s1, service=s1.service.model_copy(update={"mirror": Mirror(pool="stable", percent=1)})
    )
    waiting = Heirs(frozenset({"s1/stable"}), frozenset())
    reduced = without(replace(wanted, services={**wanted.services, "s1": copied}), waiting)
    assert list(reduced.services) == ["s1"]
    assert reduced.services["s1"].service.rules == {}
    assert reduced.services["s1"].service.mirror is None
    assert reduced.backends == wanted.backends
    # The pool's table gets the id of s2.
    watched(node, monkeypatch)
    node.kernel.apply(wanted)
    monkeypatch.undo()
    assert_is(node, state, wanted)
    assert len(list(node.maps.rules.keys())) == 1
    assert read_owners(node.maps.service_owners) == {
        1: ids.uid(keys.service("s1")),
        2: ids.uid(keys.service("s1/stable")),
    }
