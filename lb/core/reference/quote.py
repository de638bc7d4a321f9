"""ICMP errors: the packet that one quotes, and what translation (nat) changes in both."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

from lb.core.reference.checksum import update
from lb.core.reference.parse import (
    FRAGMENT,
    FRAGMENT_BYTES,
    ICMP,
    ICMP_BYTES,
    ICMPV6,
    IPV4_BYTES,
    IPV6_BYTES,
    Packet,
)
from lb.core.reference.rewrite import (
    IPV4_CHECK,
    IPV4_DESTINATION,
    IPV4_SOURCE,
    IPV6_DESTINATION,
    IPV6_SOURCE,
    put,
    put_checked,
)
from lb.core.reference.world import TCP, UDP
from lb.model.objects import Address

ERRORS = (3, 11, 12)  # RFC 792: unreachable, time exceeded, parameter problem
ERRORS6 = (1, 2, 3, 4)  # RFC 4443, 2.1: the same, and packet too big
QUOTED_BYTES = 8  # of what the quoted packet carries, at least (RFC 792)


def is_error(packet: Packet) -> bool:
    """Is it a whole ICMP error?"""
    kinds = {(ICMP, False): ERRORS, (ICMPV6, True): ERRORS6}.get((packet.proto, packet.ipv6), ())
    return packet.frame[packet.l4] in kinds and not packet.fragment


def quoted(packet: Packet, *, sent: bool) -> Packet | None:
    """The packet that the error is about, as if it were one of the client's: so it finds the same
    backend. `sent`: the server sent it, so its source is the VIP. None if it can't be told."""
    l3 = packet.l4 + ICMP_BYTES
    quote = packet.frame[l3:]
    a: Address
    b: Address
    if packet.ipv6:
        if len(quote) < IPV6_BYTES or quote[0] >> 4 != 6:
            return None
        a, b = IPv6Address(quote[8:24]), IPv6Address(quote[24:40])
        if a.ipv4_mapped or b.ipv4_mapped:
            return None
        proto, header_bytes = quote[6], IPV6_BYTES
        if proto == FRAGMENT:
            piece = quote[IPV6_BYTES : IPV6_BYTES + FRAGMENT_BYTES]
            if len(piece) < FRAGMENT_BYTES or int.from_bytes(piece[2:4]) >> 3:
                return None  # only the first has the ports
            proto, header_bytes = piece[0], IPV6_BYTES + FRAGMENT_BYTES
    else:
        if len(quote) < IPV4_BYTES or quote[0] >> 4 != 4 or quote[0] & 0xF < IPV4_BYTES // 4:
            return None
        if int.from_bytes(quote[6:8]) & 0x1FFF:
            return None
        a, b = IPv4Address(quote[12:16]), IPv4Address(quote[16:20])
        proto, header_bytes = quote[9], (quote[0] & 0xF) * 4
    l4 = l3 + header_bytes
    if proto not in (TCP, UDP) or l4 + QUOTED_BYTES > packet.end:
        return None
    first = int.from_bytes(packet.frame[l4 : l4 + 2])
    second = int.from_bytes(packet.frame[l4 + 2 : l4 + 4])
    return replace(
        packet,
        l3=l3,
        l4=l4,
        source=b if sent else a,
        destination=a if sent else b,
        proto=proto,
        sport=second if sent else first,
        dport=first if sent else second,
        begins=False,
        quoted=True,
    )


def turned(quote: Packet) -> Packet:
    """The same, as if it had gone the other way."""
    return replace(
        quote,
        source=quote.destination,
        destination=quote.source,
        sport=quote.dport,
        dport=quote.sport,
    )


def translate(
    packet: Packet, quote: Packet, address: Address, port: int, *, source: bool, own: bool
) -> Packet:
    """RFC 5508, 4.2: one end of the quoted packet, its `source` or its destination, becomes this; and,
    if `own`, the address of the error itself that is the same host's. The quoted TCP or UDP checksum
    stays."""
    frame, v6 = packet.frame, packet.ipv6
    check_at = packet.l4 + 2
    old = packet.destination if source else packet.source
    if v6:
        inner_at = quote.l3 + (IPV6_SOURCE if source else IPV6_DESTINATION)
        frame = put_checked(frame, inner_at, address.packed, check_at)
    else:
        inner_at = quote.l3 + (IPV4_SOURCE if source else IPV4_DESTINATION)
        check = quote.l3 + IPV4_CHECK
        frame = _patch(frame, put_checked(frame, inner_at, address.packed, check), quote.l3, check_at)
    frame = put_checked(frame, quote.l4 + (0 if source else 2), port.to_bytes(2), check_at)
    if not own:
        return replace(packet, frame=frame)
    if v6:
        at = packet.l3 + (IPV6_DESTINATION if source else IPV6_SOURCE)
        icmp = update(int.from_bytes(frame[check_at : check_at + 2]), old.packed, address.packed)
        frame = put(put(frame, at, address.packed), check_at, icmp.to_bytes(2))
    else:
        at = packet.l3 + (IPV4_DESTINATION if source else IPV4_SOURCE)
        frame = put_checked(frame, at, address.packed, packet.l3 + IPV4_CHECK)
    if source:
        return replace(packet, frame=frame, destination=address)
    return replace(packet, frame=frame, source=address)


def _patch(before: bytes, after: bytes, at: int, check_at: int) -> bytes:
    """`after`, with the checksum at `check_at` told of the changes in the IPv4 header at `at`."""
    changed = slice(at + IPV4_CHECK, at + IPV4_BYTES)
    check = int.from_bytes(before[check_at : check_at + 2])
    check = update(check, before[changed], after[changed])
    return put(after, check_at, check.to_bytes(2))
