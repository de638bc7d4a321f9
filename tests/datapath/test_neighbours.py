"""Next hops as the kernel's routes and neighbour tables say, in a namespace with both."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address

import pytest
from pyroute2 import IPRoute
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import Ether

from lb.datapath import neighbours
from lb.datapath.neighbours import Resolver
from lb.lab.shell import wait_until

from . import netns

FAR, ROUTER = ip_address("203.0.113.7"), ip_address("198.51.100.254")  # reached by it: netns.WAYS


@pytest.fixture
def resolver() -> Iterator[Resolver]:
    with IPRoute() as ip:
        yield Resolver(ip)


def ip(line: str) -> None:
    subprocess.run(["ip", *line.split()], check=True)


@contextmanager
def configured(what: str, which: str) -> Iterator[None]:
    """A route or a rule that the namespace has for as long as that."""
    ip(f"{what} add {which}")
    try:
        yield
    finally:
        ip(f"{what} del {which}")


def test_an_ipv4_backend_behind_an_ipv6_router_has_that_routers_mac(resolver: Resolver) -> None:
    backend = ip_address("10.77.0.7")  # BGP unnumbered: RFC 8950
    with configured("route", "10.77.0.0/16 via inet6 fe80::fd dev vec"):
        resolver.watch(frozenset({backend}))
        hop = resolver.hops()[backend]
    assert hop.destination_mac == netns.GATEWAY_MAC
    assert (hop.ifindex, hop.gateway) == (netns.C, True)


def test_an_ipv6_router_of_an_ipv4_backend_is_asked_for_its_mac(resolver: Resolver) -> None:
    backend = ip_address("10.77.0.7")
    with configured("route", "10.77.0.0/16 via inet6 fe80::77 dev vec"):
        resolver.watch(frozenset({backend}))
        assert resolver.pending()
        asked = {entry.get_attr("NDA_DST") for entry in resolver.ip.get_neighbours(ifindex=netns.C)}
        assert "fe80::77" in asked
        assert str(backend) not in asked
        ip(f"neigh replace fe80::77 dev vec lladdr {netns.NEIGHBOUR_MAC.hex(':')} nud permanent")
        assert resolver.refresh()
        assert resolver.hops()[backend].destination_mac == netns.NEIGHBOUR_MAC
        ip("neigh del fe80::77 dev vec")


def learn_path_mtu(mtu: int) -> None:
    """A router says that no more fits on the way to FAR, about a datagram that was sent there."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect((str(FAR), 9))
        sender.send(b"much")
        own, port = sender.getsockname()
        quote = IP(src=own, dst=str(FAR)) / UDP(sport=port, dport=9) / b"much"
        error = IP(src=str(ROUTER), dst=own) / ICMP(type=3, code=4, nexthopmtu=mtu) / quote
        frame = Ether(dst=netns.MAC[netns.A].hex(":"), src=netns.GATEWAY_MAC.hex(":")) / error
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as far_end:
            far_end.bind(("vea-far", 0))
            far_end.send(bytes(frame))
        wait_until("the kernel's word", lambda: b"mtu" in _route(FAR))


def _route(address: object) -> bytes:
    command = ["ip", "route", "get", str(address)]
    return subprocess.run(command, check=True, capture_output=True).stdout


def test_a_path_mtu_that_the_kernel_learned_and_forgot(resolver: Resolver) -> None:
    resolver.watch(frozenset({FAR}))
    assert resolver.hops()[FAR].mtu == 1500
    learn_path_mtu(900)
    assert resolver.doubt()
    assert resolver.hops()[FAR].mtu == 900
    ip("route flush cache")  # as it expires: nobody is notified
    assert resolver.doubt()
    assert resolver.hops()[FAR].mtu == 1500


def test_more_addresses_than_one_look_takes_have_their_turns(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "_AT_ONCE", 2)
    some = frozenset(FAR + n for n in range(5))
    resolver.watch(some)
    ip("route change 203.0.113.0/24 via 198.51.100.254 mtu lock 700")
    try:
        counts = []
        for _ in range(3):
            resolver.doubt()
            counts.append(sum(hop.mtu == 700 for hop in resolver.hops().values()))
        assert counts == [2, 4, 5]
    finally:
        ip("route change 203.0.113.0/24 via 198.51.100.254")


def test_a_rule_that_comes_is_news_of_routes() -> None:
    with IPRoute() as listener:
        listener.bind(groups=neighbours._GROUPS)
        for family in ("-4", "-6"):
            with configured(f"{family} rule", "from all lookup main pref 100"):
                assert any(map(neighbours.is_topology, listener.get()))
