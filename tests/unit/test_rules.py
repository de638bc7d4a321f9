"""lb/core/rules.py, and the tables that rules need in the plan."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from pydantic import ValidationError

from lb.core import rules, slots
from lb.core.nexthop import NextHop
from lb.core.plan import Observed, base_tables, plan
from lb.core.rules import Steer
from lb.core.state import DesiredState
from lb.model.objects import Backend, ClusterConfig, Service, TableDocument

NET, INSIDE, OTHER = (ip_network(text) for text in ("10.0.0.0/8", "10.1.0.0/16", "11.0.0.0/8"))
WINDOW = 100


def test_the_longest_prefix_counts() -> None:
    among = {NET: "a", INSIDE: "b"}
    assert rules.longest(ip_network("10.1.2.3/32"), among) == "b"
    assert rules.longest(ip_network("10.2.0.0/24"), among) == "a"
    assert rules.longest(INSIDE, among) == "b"
    assert rules.longest(ip_network("0.0.0.0/0"), among) is None
    assert rules.longest(ip_network("2001:db8::/32"), among) is None


def test_a_new_rule_remembers_that_its_clients_went_by_the_split() -> None:
    held = rules.follow({}, {NET: "canary"}, 10, WINDOW)
    assert held == {NET: Steer("canary", None, 110)}
    # It stays so while nothing changes, and forgets when the window has closed.
    assert rules.follow(held, {NET: "canary"}, 50, WINDOW) == held
    assert rules.follow(held, {NET: "canary"}, 110, WINDOW) == {NET: Steer("canary", None)}


def test_a_rule_inside_another_remembers_the_outer_one() -> None:
    held = {NET: Steer("canary", None)}
    both = rules.follow(held, {NET: "canary", INSIDE: "stable"}, 10, WINDOW)
    assert both == {NET: Steer("canary", None), INSIDE: Steer("stable", "canary", 110)}


def test_a_removed_rule_stays_until_its_window_closes() -> None:
    held = {NET: Steer("canary", None)}
    removed = rules.follow(held, {}, 10, WINDOW)
    assert removed == {NET: Steer(None, "canary", 110)}
    assert rules.follow(removed, {}, 109, WINDOW) == removed
    assert rules.follow(removed, {}, 110, WINDOW) == {}


def test_a_rule_that_changes_in_an_open_window_keeps_what_was_before() -> None:
    held = rules.follow({}, {NET: "canary"}, 10, WINDOW)
    back = rules.follow(held, {}, 50, WINDOW)  # an aborted try
    assert back == {NET: Steer(None, None, 150)}
    assert rules.follow(held, {NET: "third"}, 50, WINDOW) == {NET: Steer("third", None, 150)}


def test_pools_that_need_a_table() -> None:
    held = {NET: Steer("canary", None, 110), OTHER: Steer(None, "old", 110)}
    assert rules.pools(held) == {"canary", "old"}


# --- in the plan ----------------------------------------------------------------------------------

HOP = NextHop(2, b"\2\0\0\0\0\1", b"\2\0\0\0\0\2")


def service(**fields: object) -> Service:
    return Service.model_validate({"name": "web", "vip": "198.51.100.100", "port": 80, **fields})


def backends(**pools: str) -> tuple[Backend, ...]:
    return tuple(
        Backend(service="web", name=name, pool=pool, address=ip_address(f"203.0.113.{n}"))
        for n, (name, pool) in enumerate(pools.items(), 1)
    )


def planned(web: Service, members: tuple[Backend, ...]):
    state = DesiredState(
        config=ClusterConfig(seed="00112233445566778899aabbccddeeff"),
        services={"web": web},
        backends={("web", each.name): each for each in members},
    )
    hops = {each.address: HOP for each in members}
    return plan(state, Observed(hops, frozenset({2})), base_tables(web, members, {}, 0))


def test_clients_of_a_rule_get_a_table_of_the_pool_alone() -> None:
    wanted = planned(service(rules={NET: "canary"}), backends(b1="stable", b2="canary", b3="canary"))
    assert wanted.services["web"].table.counts() == {"b1": 65536, "b2": 0, "b3": 0}
    assert wanted.services["web/canary"].table.counts() == {"b1": 0, "b2": 32768, "b3": 32768}
    assert wanted.problems == ()


def test_while_nobody_in_the_pool_takes_flows_they_go_by_the_split() -> None:
    members = backends(b1="stable", b2="canary")
    idle = (members[0], members[1].model_copy(update={"weight": 0}))
    wanted = planned(service(rules={NET: "canary"}), idle)
    assert wanted.services["web/canary"].table.counts() == {"b1": 65536, "b2": 0}
    assert "pool 'canary' takes new flows" in wanted.problems[0].message


def test_the_first_tables_of_a_service_have_no_flow_that_is_older_than_its_rules() -> None:
    tables = base_tables(service(rules={NET: "canary"}), backends(b1="stable", b2="canary"), {}, 0)
    assert tables["web"].steers == {NET: Steer("canary", None)}


def test_rules_are_part_of_the_shared_table() -> None:
    members = backends(b1="stable", b2="canary")
    first = base_tables(service(), members, {}, 1000)["web"]
    document = TableDocument.model_validate_json(slots.to_document("web", first).model_dump_json())
    web = service(rules={NET: "canary"}, window=60)
    second = base_tables(web, members, {"web": document}, 1000)
    assert second["web"].steers == {NET: Steer("canary", None, 1060)}
    documents = {
        path: TableDocument.model_validate_json(slots.to_document(path, table).model_dump_json())
        for path, table in second.items()
    }
    assert documents["web/canary"].path == "web/canary"
    again = base_tables(web, members, documents, 1001)
    assert all(slots.equal(again[path], table) for path, table in second.items())


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("2001:db8::/32", "another IP version"),
        ("10.0.0.1/8", "not a valid"),
    ],
)
def test_prefixes_that_no_client_can_have(rule: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        service(rules={rule: "canary"})


def test_mapped_addresses_are_refused() -> None:
    with pytest.raises(ValidationError, match="stands for IPv4"):
        service(vip="2001:db8::100", rules={"::ffff:0:0/96": "canary"})
