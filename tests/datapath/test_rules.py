"""Rules for client prefixes in the kernel's maps: programmed, adopted, remembered, forgotten."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from lb.core.nexthop import NextHop
from lb.core.plan import Observed, Wanted, base_tables, plan
from lb.core.slots import Table, to_document
from lb.core.state import DesiredState
from lb.datapath import mapkeys, rulemaps, structs
from lb.datapath.encode import index_key
from lb.datapath.kernel import Kernel
from lb.datapath.maps import Maps
from lb.datapath.view import KernelView, Trace
from lb.errors import CapacityError
from lb.model import keys
from lb.model.objects import Backend, ClusterConfig, Protocol, Service, Tracking
from lb.settings import Limits

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="bpf() needs root")

HOP = NextHop(ifindex=1, source_mac=b"\2\0\0\0\0\1", destination_mac=b"\2\0\0\0\0\2")
LIMITS = Limits(services=6, vips=8, backends=6, rules=8, conntrack=1024)
VIP = ip_address("198.51.100.100")
TESTERS, TESTER = ip_network("203.0.113.0/28"), ip_address("203.0.113.5")
ANYBODY = ip_address("203.0.113.99")


def state_of(**fields: object) -> DesiredState:
    """A service with backend b1 in pool stable and b2 in pool canary, which has no share."""
    web = Service.model_validate({"name": "web", "vip": VIP, "port": 80, "window": 60, **fields})
    return DesiredState(
        config=ClusterConfig(seed="00112233445566778899aabbccddeeff"),
        services={"web": web},
        backends={
            ("web", name): Backend(
                service="web", name=name, pool=pool, address=ip_address(f"203.0.113.{100 + n}")
            )
            for n, (name, pool) in enumerate((("b1", "stable"), ("b2", "canary")))
        },
    )


class Node:
    """A node with a store: what lbd does, without lbd."""

    def __init__(self) -> None:
        self.kernel = Kernel(Maps.create(LIMITS))
        self.tables: dict[str, Table] = {}
        self.state = DesiredState()

    def wanted(self, state: DesiredState, now: int) -> Wanted:
        web, members = state.services["web"], state.backends_of("web")
        documents = {path: to_document(path, table) for path, table in self.tables.items()}
        self.tables = base_tables(web, members, documents, now)
        hops = {each.address: HOP for each in members}
        return plan(state, Observed(hops, frozenset({HOP.ifindex})), self.tables)

    def apply(self, state: DesiredState, now: float | None = None) -> int:
        self.state = state
        return self.kernel.apply(self.wanted(state, int(now or time.time())))

    def trace(self, client: object, port: int = 4000) -> Trace:
        view = KernelView(self.kernel.maps, self.state)
        return view.trace(Protocol.TCP, client, port, VIP, 80)

    def rules(self) -> dict:
        return rulemaps.flat(rulemaps.read(self.kernel.maps.rules))

    def remember(self, client: object, backend: int, port: int = 4000) -> None:
        """An established flow that the data path has an entry for."""
        key = structs.FlowKey(service=1, client_port=socket.htons(port), vip_port=socket.htons(80))
        key.client[:] = mapkeys.address_bytes(client)
        flow = structs.Flow(backend, 1, self.kernel.clock.jiffies() % 2**32)
        self.kernel.maps.conntrack.put(bytes(key), bytes(flow))


def test_testers_go_to_the_canary_and_nobody_else() -> None:
    node = Node()
    node.apply(state_of(rules={TESTERS: "canary"}))
    assert node.trace(TESTER).backend == "b2"
    assert any("pool 'canary'" in step for step in node.trace(TESTER).why)
    assert node.trace(ANYBODY).backend == "b1"
    # There was no flow before that could be older than the rule.
    assert [rule.closes for rule in node.rules().values()] == [0]
    assert node.apply(node.state) == 0


@pytest.mark.parametrize("tracking", [Tracking.MOVING, Tracking.ALWAYS, Tracking.NEVER])
def test_a_rule_that_comes_later_has_a_window_unless_nothing_is_tracked(tracking: Tracking) -> None:
    node = Node()
    node.apply(state_of(tracking=tracking))
    node.apply(state_of(tracking=tracking, rules={TESTERS: "canary"}))
    [rule] = node.rules().values()
    left = (rule.closes - time.monotonic_ns()) / 1e9
    if tracking is Tracking.NEVER:
        assert rule.closes == 0
    else:
        assert 50 < left <= 60
        assert any("goes to b1" in step for step in node.trace(TESTER).why)
    assert node.trace(TESTER).backend == "b2"


def test_the_next_lbd_adopts_rules_and_changes_nothing() -> None:
    node = Node()
    node.apply(state_of())
    node.apply(state_of(rules={TESTERS: "canary"}))
    before = node.rules()
    node.kernel = Kernel(node.kernel.maps)
    node.kernel.adopt()
    assert node.apply(node.state) == 0
    assert node.rules() == before
    assert node.kernel.is_stirred


def test_a_removed_rule_is_forgotten_when_no_flow_needs_it() -> None:
    node = Node()
    node.apply(state_of(rules={TESTERS: "canary"}, window=1))
    canary = next(iter(node.rules().values())).to
    node.remember(TESTER, backend=2)  # on b2
    node.apply(state_of(window=1))
    [rule] = node.rules().values()
    assert (rule.to, rule.before) == (1, canary)
    wait_until_closed(node)
    node.kernel.calm()
    assert len(node.rules()) == 1  # the flow is elsewhere than the service's own table says
    assert node.trace(TESTER).backend == "b2"
    assert node.trace(TESTER, port=4001).backend == "b1"
    for key in list(node.kernel.maps.conntrack.keys()):
        node.kernel.maps.conntrack.delete(key)
    node.kernel.calm()
    assert node.rules() == {}
    assert not node.kernel.is_stirred
    raw = structs.Service.from_buffer_copy(node.kernel.maps.services.get(index_key(1)) or b"")
    assert not raw.has_rules
    # The store has it no more, either, and the pool's table goes.
    node.apply(node.state, time.time() + 2)
    assert list(node.tables) == ["web"]
    assert node.trace(TESTER).backend == "b1"
    assert node.apply(node.state, time.time() + 2) == 0


def test_a_rule_whose_flows_went_along_becomes_quiet() -> None:
    node = Node()
    node.apply(state_of(window=1))
    node.apply(state_of(rules={TESTERS: "canary"}, window=1))
    node.remember(TESTER, backend=2)
    node.remember(ANYBODY, backend=1)
    wait_until_closed(node)
    node.kernel.calm()
    assert [rule.closes for rule in node.rules().values()] == [0]
    assert node.trace(TESTER).backend == "b2"


def wait_until_closed(node: Node) -> None:
    last = max(rule.closes for rule in node.rules().values())
    time.sleep(max(0.0, (last - time.monotonic_ns()) / 1e9))


def test_a_table_whose_id_went_to_somebody_else_is_not_remembered() -> None:
    node = Node()
    node.apply(state_of(rules={TESTERS: "canary"}))
    gone = next(iter(node.rules().values())).to
    # This node's own window is still open when the store's has closed, and the pool's table goes.
    node.apply(state_of())
    node.apply(state_of(), time.time() + 61)
    assert list(node.tables) == ["web"]
    assert gone not in {n for rule in node.rules().values() for n in (rule.to, rule.before)}
    assert node.trace(TESTER).backend == "b1"


def test_rules_of_a_service_that_is_not_understood_stay() -> None:
    node = Node()
    node.apply(state_of(rules={TESTERS: "canary"}))
    before = node.rules()
    node.kernel = Kernel(node.kernel.maps)
    node.kernel.adopt()
    keep = {keys.service("web"), keys.backend("web", "b1"), keys.backend("web", "b2")}
    empty = plan(DesiredState(config=node.state.config), Observed(), {})
    assert node.kernel.apply(empty, keep) == 0
    assert node.rules() == before
    assert node.trace(TESTER).backend == "b2"
    assert node.kernel.apply(empty) > 0
    assert node.rules() == {}


def test_what_was_changed_by_hand_is_put_right() -> None:
    node = Node()
    node.apply(state_of(rules={TESTERS: "canary"}))
    node.kernel.maps.rules.delete(mapkeys.rule_key(1, TESTERS))
    node.kernel.maps.rules.put(mapkeys.rule_key(1, ip_network("0.0.0.0/0")), bytes(structs.Rule(2)))
    node.kernel.adopt()
    node.apply(node.state)
    assert node.trace(TESTER).backend == "b2"
    assert node.trace(ANYBODY).backend == "b1"


def test_a_node_that_rebooted_lets_older_flows_go_where_they_were() -> None:
    node = Node()
    node.apply(state_of())
    node.apply(state_of(rules={TESTERS: "canary"}))
    node.kernel = Kernel(Maps.create(LIMITS))
    node.apply(node.state)
    [rule] = node.rules().values()
    assert rule.before == 1
    assert rule.closes > time.monotonic_ns()


def test_more_rules_than_the_map_takes_are_refused_before_anything_is_written() -> None:
    node = Node()
    node.apply(state_of(rules={TESTERS: "canary"}))
    before, good = node.rules(), node.state
    many = {ip_network((TESTER, length), strict=False): "canary" for length in range(20, 32)}
    with pytest.raises(CapacityError, match="rules"):
        node.apply(replace(good, services={"web": state_of(rules=many).services["web"]}))
    assert node.rules() == before


def test_a_full_map_has_room_for_an_exchange_of_rules() -> None:
    node = Node()
    many = [ip_network((TESTER, length), strict=False) for length in range(20, 20 + LIMITS.rules + 1)]
    never = {"tracking": Tracking.NEVER}
    node.apply(state_of(rules=dict.fromkeys(many[1:], "canary"), **never))
    node.apply(state_of(rules=dict.fromkeys(many[:-1], "canary"), **never))
    assert {prefix for _, prefix in node.rules()} == {*many[:-1]}
