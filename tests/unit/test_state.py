"""lb/core/state.py: what is good is used, what is bad is quarantined, and said."""

from __future__ import annotations

import json
from collections.abc import Mapping

from lb.core.state import LARGEST, DesiredState, advance, parse
from lb.model import keys
from lb.model.objects import Admin, Mode

WEB = {"name": "web", "vip": "198.51.100.100", "port": 80}


def backend(name: str, address: str, **more: object) -> dict[str, object]:
    return {"service": "web", "name": name, "address": address, **more}


def state_of(
    documents: Mapping[str, object], previous: DesiredState | None = None, revision: int = 1
) -> DesiredState:
    items = [
        (key, value if isinstance(value, str) else json.dumps(value), revision)
        for key, value in documents.items()
    ]
    return parse(revision, items, previous)


def test_a_service_and_its_backends() -> None:
    state = state_of(
        {
            keys.service("web"): WEB,
            keys.backend("web", "b2"): backend("b2", "203.0.113.2", admin="drain"),
            keys.backend("web", "b1"): backend("b1", "203.0.113.1", weight=0),
        }
    )
    assert state.problems == ()
    assert [b.name for b in state.backends_of("web")] == ["b1", "b2"]
    assert state.backends["web", "b2"].admin is Admin.DRAIN
    assert state.versions[keys.service("web")] == 1


def test_a_broken_document_leaves_the_last_good_one_in_force() -> None:
    good = state_of({keys.service("web"): WEB})
    bad = state_of({keys.service("web"): {**WEB, "port": 0}}, good, 2)
    assert bad.services["web"].port == 80
    (problem,) = bad.problems
    assert problem.where == keys.service("web")
    assert "port" in problem.message
    assert "last good version" in problem.message


def test_a_broken_document_without_a_good_one_is_ignored() -> None:
    state = state_of({keys.service("web"): "{not json"})
    assert state.services == {}
    assert "ignored" in state.problems[0].message


def test_a_document_that_is_too_large_is_not_read() -> None:
    """Valid as it may be: here it is the good one, with spaces."""
    key = keys.service("web")
    good = state_of({key: WEB})
    padded = json.dumps(WEB | {"window": 60}) + " " * LARGEST
    bad = state_of({key: padded}, good, 2)
    assert bad.services == good.services
    (problem,) = bad.problems
    assert "more than 524,288 are not taken" in problem.message
    assert advance(good, 2, [(key, padded, 2)]) is None
    assert advance(good, 2, [(key, padded[: LARGEST - 1], 2)]) is not None


def test_an_unknown_key_is_an_error_that_names_it() -> None:
    state = state_of({keys.service("web"): {**WEB, "wieght": 3}})
    assert "wieght" in state.problems[0].message


def test_a_document_under_the_wrong_name() -> None:
    state = state_of({keys.service("other"): WEB})
    assert state.services == {}
    assert "'web'" in state.problems[0].message


def test_of_two_services_with_one_vip_the_one_in_force_keeps_it() -> None:
    before = state_of({keys.service("web"): WEB})
    both = {keys.service("web"): WEB, keys.service("a"): {**WEB, "name": "a"}}
    after = state_of(both, before, 2)
    assert set(after.services) == {"web"}
    assert after.problems[0].where == keys.service("a")
    # Without a past, the order of names decides, so that nodes agree.
    assert set(state_of(both).services) == {"a"}


def test_a_backend_needs_its_service() -> None:
    state = state_of({keys.backend("web", "b1"): backend("b1", "203.0.113.1")})
    assert state.backends == {}
    assert "does not exist" in state.problems[0].message


def test_one_socket_is_one_backend() -> None:
    state = state_of(
        {
            keys.service("web"): WEB,
            keys.backend("web", "b1"): backend("b1", "203.0.113.1"),
            keys.backend("web", "b2"): backend("b2", "203.0.113.1", port=80),
        }
    )
    assert set(state.backends) == {("web", "b1")}
    assert "web/b1" in state.problems[0].message


def nat(name: str, port: int) -> dict[str, object]:
    return {**WEB, "name": name, "port": port, "mode": "nat"}


def test_in_nat_mode_a_socket_belongs_to_one_service() -> None:
    documents = {
        keys.service("one"): nat("one", 80),
        keys.service("two"): nat("two", 81),
        keys.backend("one", "b"): {**backend("b", "203.0.113.1", port=8080), "service": "one"},
        keys.backend("two", "b"): {**backend("b", "203.0.113.1", port=8080), "service": "two"},
    }
    state = state_of(documents)
    assert set(state.backends) == {("one", "b")}
    assert state.services["one"].mode is Mode.NAT


def with_ports(name: str, port: int, end: int | None, mode: str = "dsr") -> dict[str, object]:
    return {**WEB, "name": name, "port": port, "end_port": end, "mode": mode}


def test_ranges_of_ports_that_cross_are_refused_and_one_port_within_is_not() -> None:
    state = state_of(
        {
            keys.service("a"): with_ports("a", 8000, 8100),
            keys.service("b"): with_ports("b", 8100, 8200),
            keys.service("c"): with_ports("c", 8101, 8200),
            keys.service("d"): with_ports("d", 8050, None),
        }
    )
    assert set(state.services) == {"a", "c", "d"}
    [problem] = state.problems
    assert "8100-8200/tcp belongs to service 'a' already" in problem.message


def test_in_nat_mode_one_range_of_ports_is_served_by_a_server() -> None:
    for other, refused in (((8050, None), True), ((8200, 8300), True), ((80, None), False)):
        state = state_of(
            {
                keys.service("one"): with_ports("one", 8000, 8100, "nat"),
                keys.service("two"): with_ports("two", *other, "nat"),
                keys.backend("one", "b"): {**backend("b", "203.0.113.1"), "service": "one"},
                keys.backend("two", "b"): {**backend("b", "203.0.113.1"), "service": "two"},
            }
        )
        assert (("two", "b") not in state.backends) is refused
        assert [p.where for p in state.problems] == [keys.backend("two", "b")] * refused


VIA_VIP = {**WEB, "health": {"check": {"kind": "tcp"}, "via": "vip"}}


def test_a_backend_that_can_not_be_checked_via_the_vip_need_not_be() -> None:
    documents = {
        keys.service("web"): VIA_VIP,
        keys.backend("web", "b1"): backend("b1", "2001:db8::1", health={"enabled": False}),
    }
    assert not state_of(documents).problems


def test_misfits() -> None:
    for service, extra, what in (
        (WEB, {"port": 8080}, "can't change the port"),
        ({**WEB, "mode": "nat"}, {"address": "2001:db8::1"}, "can't turn IPv4 into IPv6"),
        (WEB, {"address": "198.51.100.100"}, "is a VIP itself"),
        (with_ports("web", 80, 90, "nat"), {"port": 80}, "don't tell which of the ports 80-90"),
        (with_ports("web", 1, 65535), {"port": 80}, "can't change the port from any to 80"),
        (WEB, {"max_connections": 9}, "in mode dsr connections leave nothing behind"),
        ({**WEB, "mode": "nat"}, {"max_connections": 9}, "in mode nat connections leave nothing"),
        (VIA_VIP, {"address": "2001:db8::1"}, "can't go from IPv4 to IPv6"),
        (VIA_VIP, {"health": {"port": 81}}, "can't ask port 81: clients' packets go to 80"),
        (VIA_VIP, {"health": {"check": {"kind": "exec", "argv": ["/x"]}}}, "connections of its own"),
    ):
        state = state_of(
            {
                keys.service("web"): service,
                keys.backend("web", "b1"): {**backend("b1", "203.0.113.1"), **extra},
            }
        )
        assert what in state.problems[0].message
        assert state.problems[0].hint
        assert state.backends == {}


def test_addresses_that_no_packet_can_be_sent_to() -> None:
    for address in ("0.0.0.0", "224.0.0.1", "255.255.255.255", "127.0.0.1", "::", "ff02::1",
                    "fe80::1", "::ffff:198.51.100.1"):  # fmt: skip
        state = state_of({keys.service("web"): {**WEB, "vip": address}})
        assert state.services == {}, address
        assert "vip" in state.problems[0].message


QUIC = {**WEB, "protocol": "udp", "quic_id_bytes": 2}


def test_quic_ids_have_the_services_length_and_are_one_servers() -> None:
    state = state_of(
        {
            keys.service("web"): QUIC,
            keys.backend("web", "b1"): backend("b1", "203.0.113.1", quic_id="0A3F"),
            keys.backend("web", "b2"): backend("b2", "203.0.113.2", quic_id="0a3f"),
            keys.backend("web", "b3"): backend("b3", "203.0.113.3", quic_id="0a"),
            keys.backend("web", "b4"): backend("b4", "203.0.113.4", quic_id="not hex"),
            keys.backend("web", "b5"): backend("b5", "203.0.113.5"),
        }
    )
    assert [b.name for b in state.backends_of("web")] == ["b1", "b5"]
    said = {problem.where[-2:]: problem.message for problem in state.problems}
    assert "is that of backend 'web/b1' already" in said["b2"]
    assert "has 1 bytes, but service 'web' has quic_id_bytes 2" in said["b3"]
    assert "quic_id" in said["b4"]


def test_quic_is_for_udp() -> None:
    state = state_of({keys.service("web"): {**WEB, "quic_id_bytes": 2}})
    assert "runs over UDP" in state.problems[0].message
