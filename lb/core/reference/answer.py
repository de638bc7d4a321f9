"""Packets that we originate: echo replies, and what a client gets when no backend is usable."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address

from lb.core.reference.checksum import checksum, pseudo_header
from lb.core.reference.parse import (
    ICMP,
    ICMPV6,
    IPV4_BYTES,
    IPV6_BYTES,
    TCP_BYTES,
    Packet,
    tcp_flags,
)
from lb.core.reference.rewrite import (
    IPV4_DESTINATION,
    IPV4_SOURCE,
    IPV6_DESTINATION,
    IPV6_SOURCE,
    put,
    put_checked,
    set_ttl,
    turn_around,
)
from lb.core.reference.world import TCP
from lb.model.objects import Address

# What health checks in mode nat say that they come from: the dummy address of RFC 7600, and one of the
# prefix of RFC 6666 that ends alike.
PROBE_SOURCES = ip_address("192.0.0.8"), ip_address("100::c000:8")
REPLY_TTL = 64  # RFC 1700's default
QUOTE_BYTES = 8  # of the transport header in an ICMP error: enough for the ports (RFC 792)
DONT_FRAGMENT = 0x4000

ECHO, ECHO_REPLY = 8, 0  # RFC 792
ECHO6, ECHO_REPLY6 = 128, 129  # RFC 4443, 4
UNREACHABLE, PORT = 3, 3  # type and code, RFC 792
UNREACHABLE6, PORT6 = 1, 4  # RFC 4443, 3.1
FRAGMENTATION_NEEDED = 4
TOO_BIG6 = 2

# RFC 1122, 3.2.2, and RFC 4443, 2.4 (e.6): what doesn't name a single host isn't answered. Class E,
# with the limited broadcast, is among them.
_NOT_ONE_HOST4 = tuple(IPv4Network(n) for n in ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/3"))
_NOT_ONE_HOST6 = tuple(IPv6Network(n) for n in ("::/128", "::1/128", "ff00::/8"))


def is_one_host(address: Address) -> bool:
    """May an answer be sent to this address?"""
    networks = _NOT_ONE_HOST6 if address.version == 6 else _NOT_ONE_HOST4
    return not any(address in network for network in networks)


def is_echo_request(packet: Packet) -> bool:
    """A whole ICMP echo request, from somebody who may be answered."""
    wanted = (ICMPV6, ECHO6, 0) if packet.ipv6 else (ICMP, ECHO, 0)
    got = (packet.proto, packet.frame[packet.l4], packet.frame[packet.l4 + 1])
    return got == wanted and not packet.fragment and is_one_host(packet.source)


def echo_reply(packet: Packet) -> bytes:
    """RFC 792: "The data received in the echo message must be returned": so the request is turned
    around in place, with IP options and identification as they came.
    """
    frame = set_ttl(packet, REPLY_TTL)
    # Swapping two addresses changes no sum.
    ours, theirs = packet.destination.packed, packet.source.packed
    source, destination = (
        (IPV6_SOURCE, IPV6_DESTINATION) if packet.ipv6 else (IPV4_SOURCE, IPV4_DESTINATION)
    )
    frame = put(frame, packet.l3 + source, ours)
    frame = put(frame, packet.l3 + destination, theirs)
    kind = bytes([ECHO_REPLY6 if packet.ipv6 else ECHO_REPLY, 0])
    return turn_around(put_checked(frame, packet.l4, kind, packet.l4 + 2))


def reset(packet: Packet) -> bytes | None:
    """RFC 9293, 3.10.7.1: what a segment to a closed port gets; None for a RST, and for a segment
    shorter than it says its header is.
    """
    frame, l4 = packet.frame, packet.l4
    flags = tcp_flags(frame, l4)
    data_bytes = packet.end - l4 - (frame[l4 + 12] >> 4) * 4
    if "RST" in flags or data_bytes < 0:
        return None
    if "ACK" in flags:
        # <SEQ=SEG.ACK><CTL=RST>
        sequence, acknowledgment, answer_flags = frame[l4 + 8 : l4 + 12], bytes(4), 0x04
    else:
        # <SEQ=0><ACK=SEG.SEQ+SEG.LEN><CTL=RST,ACK>; SYN and FIN count as one each (3.4).
        length = data_bytes + ("SYN" in flags) + ("FIN" in flags)
        seen = int.from_bytes(frame[l4 + 4 : l4 + 8]) + length
        sequence, acknowledgment, answer_flags = bytes(4), (seen % 2**32).to_bytes(4), 0x14
    segment = (
        packet.dport.to_bytes(2)
        + packet.sport.to_bytes(2)
        + sequence
        + acknowledgment
        + bytes([TCP_BYTES // 4 << 4, answer_flags])
        + bytes(6)  # window, checksum, urgent pointer
    )
    pseudo = pseudo_header(packet.destination, packet.source, TCP, len(segment))
    segment = put(segment, 16, checksum(pseudo + segment).to_bytes(2))
    return _answer(packet, TCP, segment)


def unreachable(packet: Packet) -> bytes | None:
    """Port unreachable."""
    return _error(packet, (UNREACHABLE6, PORT6) if packet.ipv6 else (UNREACHABLE, PORT), 0)


def too_big(packet: Packet, mtu: int) -> bytes | None:
    """Fragmentation needed (RFC 1191, 4) or packet too big (RFC 4443, 3.2), with what would fit."""
    return _error(packet, (TOO_BIG6, 0) if packet.ipv6 else (UNREACHABLE, FRAGMENTATION_NEEDED), mtu)


def _error(packet: Packet, kind: tuple[int, int], mtu: int) -> bytes | None:
    """An ICMP error, with the IP header and 8 bytes of what it is about.

    Headers with options or extension headers aren't quoted: None. (RFC 4443, 2.4 (c) wants as much
    of the packet as fits into 1,280 bytes; receivers find the socket by the ports all the same.)
    """
    header_bytes = IPV6_BYTES if packet.ipv6 else IPV4_BYTES
    if packet.l4 != packet.l3 + header_bytes:
        return None
    quote = packet.frame[packet.l3 : packet.l4 + QUOTE_BYTES]
    proto = ICMPV6 if packet.ipv6 else ICMP
    message = bytes(kind) + bytes(2) + mtu.to_bytes(4) + quote
    # ICMPv6 checksums cover a pseudo header (RFC 4443, 2.3), ICMP's don't.
    pseudo = (
        pseudo_header(packet.destination, packet.source, proto, len(message)) if packet.ipv6 else b""
    )
    message = put(message, 2, checksum(pseudo + message).to_bytes(2))
    return _answer(packet, proto, message)


def _answer(packet: Packet, proto: int, payload: bytes) -> bytes:
    """A frame from the VIP back to the client, on the link (and VLAN) that the request came by."""
    ours, theirs = packet.destination.packed, packet.source.packed
    if packet.ipv6:
        ip = (
            bytes([6 << 4, 0, 0, 0])
            + len(payload).to_bytes(2)
            + bytes([proto, REPLY_TTL])
            + ours
            + theirs
        )
    else:
        # Never fragmented, so it needs no identification (RFC 6864, 4.1).
        ip = (
            bytes([4 << 4 | IPV4_BYTES // 4, 0])
            + (IPV4_BYTES + len(payload)).to_bytes(2)
            + bytes(2)
            + DONT_FRAGMENT.to_bytes(2)
            + bytes([REPLY_TTL, proto])
            + bytes(2)
            + ours
            + theirs
        )
        ip = put(ip, 10, checksum(ip).to_bytes(2))
    return turn_around(packet.frame[: packet.l3]) + ip + payload
