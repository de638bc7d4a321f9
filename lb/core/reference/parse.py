"""From bytes to addresses, protocol and ports: Ethernet, VLAN tags, IPv4, IPv6, TCP, UDP, ICMP.

A frame is read as far as its lengths agree with each other. One that doesn't reach a port that a
service could match is `Portless` when we know whom it was for, and None ("not ours") when we don't.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from typing import TypeAlias

from lb.core.reference.world import TCP, UDP, Outcome
from lb.model.objects import Address

ETHERNET_BYTES = 14
VLAN_BYTES = 4
VLAN_DEPTH = 2
IPV4_BYTES = 20
IPV6_BYTES = 40
TCP_BYTES = 20
UDP_BYTES = 8
ICMP_BYTES = 8
FRAGMENT_BYTES = 8  # of IPv6's fragment header (RFC 8200, 4.5)

QUIC_INITIAL_BYTES = 1200
QUIC_V1, QUIC_V2 = 1, 0x6B3343CF  # RFC 9000, 15; RFC 9369, 3.1
QUIC_INITIALS = ((0xC0, QUIC_V1), (0xD0, QUIC_V2))  # high bits of the first byte, version

ETH_IPV4 = 0x0800
ETH_IPV6 = 0x86DD
ETH_VLANS = (0x8100, 0x88A8)  # 802.1Q, 802.1ad

ICMP = 1
ICMPV6 = 58

# RFC 8200, 4: the extension headers that we step over, and how many at most.
HOP_BY_HOP = 0
ROUTING = 43
FRAGMENT = 44
DESTINATION_OPTIONS = 60
EXTENSION_DEPTH = 6


@dataclass(frozen=True, slots=True)
class Packet:
    """A TCP, UDP or ICMP packet. Offsets count from the start of the frame."""

    frame: bytes
    ifindex: int  # that it came in by
    l3: int
    l4: int
    end: int  # of the IP datagram; what stands behind it is padding
    source: Address
    destination: Address
    proto: int
    sport: int = 0  # 0 with ICMP
    dport: int = 0
    begins: bool = False  # it can only be the first of its flow: TCP SYN without ACK, QUIC Initial
    identification: bytes = b""  # of the datagram that it is a piece of, as it stands in the header
    later: bool = False  # a piece, and not the first one: it has no ports
    quoted: bool = False  # read from an ICMP error: it tells of a flow, and isn't part of it

    @property
    def fragment(self) -> bool:
        """Is it a piece of a larger datagram?"""
        return bool(self.identification)

    @property
    def ipv6(self) -> bool:
        """Is it IPv6?"""
        return self.destination.version == 6

    @property
    def is_tagged(self) -> bool:
        """Did it come by a VLAN?"""
        return self.l3 != ETHERNET_BYTES

    @property
    def ttl(self) -> int:
        """TTL or hop limit."""
        return self.frame[self.l3 + (7 if self.ipv6 else 8)]


@dataclass(frozen=True, slots=True)
class Portless:
    """An IP packet whose ports can't be read, and why."""

    destination: Address
    proto: int
    fault: Outcome


Parsed: TypeAlias = Packet | Portless | None


def _number(data: bytes, at: int, size: int = 2) -> int:
    return int.from_bytes(data[at : at + size])


def parse(frame: bytes, ifindex: int) -> Parsed:
    """Reads a frame."""
    if len(frame) < ETHERNET_BYTES:
        return None
    l3 = ETHERNET_BYTES
    for _ in range(VLAN_DEPTH):
        if _number(frame, l3 - 2) not in ETH_VLANS:
            break
        l3 += VLAN_BYTES
        if len(frame) < l3:
            return None
    ethertype = _number(frame, l3 - 2)
    if ethertype == ETH_IPV4 and len(frame) >= l3 + IPV4_BYTES:
        return _ipv4(frame, ifindex, l3)
    if ethertype == ETH_IPV6 and len(frame) >= l3 + IPV6_BYTES:
        return _ipv6(frame, ifindex, l3)
    return None


def _ipv4(frame: bytes, ifindex: int, l3: int) -> Parsed:
    """RFC 791. Options are carried along unread."""
    version, header_bytes = frame[l3] >> 4, (frame[l3] & 0xF) * 4
    end = l3 + _number(frame, l3 + 2)
    proto = frame[l3 + 9]
    source = IPv4Address(frame[l3 + 12 : l3 + 16])
    destination = IPv4Address(frame[l3 + 16 : l3 + 20])
    # RFC 1122, 3.2.1: a header that contradicts itself or the frame isn't to be believed.
    l4 = l3 + header_bytes
    if version != 4 or header_bytes < IPV4_BYTES or end < l4 or end > len(frame):
        return Portless(destination, proto, Outcome.DROP_MALFORMED)
    more, offset = _number(frame, l3 + 6) & 0x2000, _number(frame, l3 + 6) & 0x1FFF
    cut = b""
    if more or offset:
        cut = frame[l3 + 4 : l3 + 6] + bytes(2)
    packet = Packet(frame, ifindex, l3, l4, end, source, destination, proto, identification=cut)
    return replace(packet, later=True) if offset else _ports(packet)


def _ipv6(frame: bytes, ifindex: int, l3: int) -> Parsed:
    """RFC 8200, with extension headers."""
    end = l3 + IPV6_BYTES + _number(frame, l3 + 4)
    proto = frame[l3 + 6]
    source = IPv6Address(frame[l3 + 8 : l3 + 24])
    destination = IPv6Address(frame[l3 + 24 : l3 + 40])
    # Mapped addresses stand for IPv4 ones inside a machine. On the wire they are somebody's try to
    # reach an IPv4 service past its filters (RFC 4942, 2.2): no service is there.
    if source.ipv4_mapped or destination.ipv4_mapped:
        return None
    if frame[l3] >> 4 != 6 or end > len(frame):
        return Portless(destination, proto, Outcome.DROP_MALFORMED)

    l4 = l3 + IPV6_BYTES
    cut = b""
    for _ in range(EXTENSION_DEPTH):
        if proto not in (HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION_OPTIONS):
            break
        if end < l4 + 8:  # the shortest of them; so the protocol stays unknown
            return None
        following = frame[l4]
        if proto == ROUTING and frame[l4 + 3]:
            # Segments left: the destination is only a stop on the way (RFC 8200, 4.4).
            return None
        if proto == FRAGMENT:
            more, offset = _number(frame, l4 + 2) & 1, _number(frame, l4 + 2) >> 3
            if offset:
                cut = frame[l4 + 4 : l4 + 8]
                # `following` needn't be what the datagram is all about: that stands in the first piece.
                whole = Packet(
                    frame, ifindex, l3, l4, end, source, destination, following, identification=cut
                )
                return replace(whole, later=True)
            # With neither it is an atomic fragment, a whole datagram (RFC 6946).
            if more or cut:
                cut = frame[l4 + 4 : l4 + 8]
            l4 += 8
        else:
            l4 += 8 + frame[l4 + 1] * 8
        proto = following
    return _ports(Packet(frame, ifindex, l3, l4, end, source, destination, proto, identification=cut))


def _ports(packet: Packet) -> Parsed:
    """The transport header: RFC 9293 (TCP), RFC 768 (UDP), RFC 792 and 4443 (ICMP)."""
    frame, l4, end, proto = packet.frame, packet.l4, packet.end, packet.proto
    needed = {TCP: TCP_BYTES, UDP: UDP_BYTES, ICMP: ICMP_BYTES, ICMPV6: ICMP_BYTES}.get(proto)
    if needed is None:
        return None
    # A first fragment with less than the whole header is an old way past filters (RFC 1858, 3).
    if end < l4 + needed or (proto == TCP and frame[l4 + 12] >> 4 < TCP_BYTES // 4):
        return Portless(packet.destination, proto, Outcome.DROP_MALFORMED)
    if proto not in (TCP, UDP):
        return packet
    flags = tcp_flags(frame, l4) if proto == TCP else frozenset()
    return replace(
        packet,
        sport=_number(frame, l4),
        dport=_number(frame, l4 + 2),
        begins=("SYN" in flags and "ACK" not in flags)
        or (proto == UDP and is_quic_initial(frame[l4 + UDP_BYTES : end])),
    )


def is_quic_initial(payload: bytes) -> bool:
    """A QUIC client's first datagram: version 1 (RFC 9000, 17.2.2) or 2 (RFC 9369, 3.2); a client pads
    it to 1,200 bytes (RFC 9000, 14.1)."""
    if len(payload) < QUIC_INITIAL_BYTES:
        return False
    return (payload[0] & 0xF0, _number(payload, 1, 4)) in QUIC_INITIALS


def tcp_flags(frame: bytes, l4: int) -> frozenset[str]:
    """The flags of a TCP header (RFC 9293, 3.1) that decide something here."""
    bits = {"FIN": 0x01, "SYN": 0x02, "RST": 0x04, "ACK": 0x10}
    return frozenset(name for name, bit in bits.items() if frame[l4 + 13] & bit)
