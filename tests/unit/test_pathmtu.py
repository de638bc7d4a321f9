"""lb/core/pathmtu.py: what routers say of tunnels, with errors as scapy writes them."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6PacketTooBig, IPv6
from scapy.packet import Packet, Raw

from lb.core.nexthop import NextHop
from lb.core.pathmtu import LIFETIME_SECONDS, PathMtus, TooBig, read_ipv4, read_ipv6

NODE4, SERVER4, ROUTER4 = (f"203.0.113.{n}" for n in (1, 11, 60))
NODE6, SERVER6, ROUTER6 = (f"2001:db8:2::{n}" for n in (1, 11, 60))
INNER = IP(src="198.51.100.10", dst="198.51.100.100") / TCP(dport=80) / Raw(bytes(100))


def ipv4(quoted: Packet, kind: int = 3, code: int = 4, mtu: int = 1400) -> bytes:
    error = ICMP(type=kind, code=code, nexthopmtu=mtu) / Raw(bytes(quoted)[:28])
    return bytes(IP(src=ROUTER4, dst=NODE4, options=b"\1" * 4) / error)


def ipv6(quoted: Packet, error: Packet) -> bytes:
    whole = bytes(IPv6(src=ROUTER6, dst=NODE6) / error / Raw(bytes(quoted)[:48]))
    return whole[40:]


OUTER4 = IP(src=NODE4, dst=SERVER4)
OUTER6 = IPv6(src=NODE6, dst=SERVER6)
WORD4 = TooBig(ip_address(NODE4), ip_address(SERVER4), 1400)
WORD6 = TooBig(ip_address(NODE6), ip_address(SERVER6), 1400)


@pytest.mark.parametrize(
    "packet",
    [
        OUTER4 / INNER,
        IP(src=NODE4, dst=SERVER4, proto=41) / Raw(bytes(60)),
        OUTER4 / UDP(dport=6080) / INNER,
    ],
)
def test_what_is_about_a_tunnel_over_ipv4(packet: Packet) -> None:
    assert read_ipv4(ipv4(packet)) == WORD4


@pytest.mark.parametrize(
    "packet", [IPv6(src=NODE6, dst=SERVER6, nh=4) / INNER, OUTER6 / UDP(dport=6080) / INNER]
)
def test_what_is_about_a_tunnel_over_ipv6(packet: Packet) -> None:
    assert read_ipv6(ipv6(packet, ICMPv6PacketTooBig(mtu=1400))) == WORD6


def test_what_is_not() -> None:
    assert read_ipv4(ipv4(OUTER4 / TCP(dport=80))) is None
    assert read_ipv4(ipv4(OUTER4 / UDP(dport=53))) is None
    assert read_ipv4(ipv4(OUTER4 / INNER, code=1)) is None
    assert read_ipv4(ipv4(OUTER4 / INNER, kind=11)) is None
    assert read_ipv6(ipv6(OUTER6 / UDP(dport=6080) / INNER, ICMPv6DestUnreach())) is None
    assert read_ipv6(ipv6(OUTER6 / TCP(), ICMPv6PacketTooBig(mtu=1400))) is None


def test_errors_that_end_anywhere_say_nothing_and_break_nothing() -> None:
    whole = ipv4(OUTER4 / UDP(dport=6080) / INNER)
    assert [read_ipv4(whole[:size]) for size in range(48)] == [None] * 48
    whole = ipv6(OUTER6 / UDP(dport=6080) / INNER, ICMPv6PacketTooBig(mtu=1400))
    assert [read_ipv6(whole[:size]) for size in range(48)] == [None] * 48


def hop(source: str = NODE4, mtu: int = 1500) -> NextHop:
    return NextHop(2, bytes(6), bytes(6), True, ip_address(source), mtu)


SERVER = ip_address(SERVER4)
HOPS = {SERVER: hop()}


def test_what_was_learned_lowers_the_way_and_is_forgotten_after_a_while() -> None:
    learned = PathMtus().learn(WORD4, HOPS, now=100)
    assert learned.lower(HOPS)[SERVER].mtu == 1400
    assert learned.lower({SERVER: hop(mtu=1300)})[SERVER].mtu == 1300
    assert learned.lower({SERVER: hop(mtu=0)})[SERVER].mtu == 1400
    assert learned.lower({}) == {}
    assert learned.forget(100 + LIFETIME_SECONDS - 1) is learned
    assert learned.forget(100 + LIFETIME_SECONDS).lower(HOPS) == HOPS


def test_only_what_is_news_and_can_be_about_our_packets_counts() -> None:
    learned = PathMtus().learn(WORD4, HOPS, now=100)
    assert learned.learn(WORD4, HOPS, now=101) is learned
    nothing = PathMtus()
    assert nothing.learn(WORD4, {}, now=100) is nothing  # no backend of ours
    assert nothing.learn(WORD4, {SERVER: hop(source="203.0.113.9")}, now=100) is nothing
    assert nothing.learn(TooBig(WORD4.source, SERVER, 1500), HOPS, now=100) is nothing
    lower = learned.learn(TooBig(WORD4.source, SERVER, 1000), HOPS, now=102)
    assert lower.lower(HOPS)[SERVER].mtu == 1000


def test_nobody_makes_it_tiny() -> None:
    learned = PathMtus().learn(TooBig(WORD4.source, SERVER, 68), HOPS, now=100)
    assert learned.lower(HOPS)[SERVER].mtu == 552
