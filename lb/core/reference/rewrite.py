"""Changes on the way through: addresses and ports (nat), the hop, MAC addresses, VLAN tags.

Each returns a new frame. None changes the length but `leave`, which may take VLAN tags off.
"""

from __future__ import annotations

from dataclasses import replace

from lb.core.reference.checksum import update
from lb.core.reference.parse import ETHERNET_BYTES, Packet
from lb.core.reference.world import UDP
from lb.model.objects import Address

IPV4_CHECK = 10  # offsets within their headers
IPV4_TTL = 8
IPV4_SOURCE, IPV4_DESTINATION = 12, 16
IPV6_HOP_LIMIT = 7
IPV6_SOURCE, IPV6_DESTINATION = 8, 24
TCP_CHECK = 16
UDP_CHECK = 6


def put(frame: bytes, at: int, value: bytes) -> bytes:
    """The frame with `value` written over what stood at `at`."""
    return frame[:at] + value + frame[at + len(value) :]


def put_checked(frame: bytes, at: int, value: bytes, check_at: int) -> bytes:
    """The same, with the checksum at `check_at` brought up to date. `at` must be a word's start."""
    check = int.from_bytes(frame[check_at : check_at + 2])
    check = update(check, frame[at : at + len(value)], value)
    return put(put(frame, at, value), check_at, check.to_bytes(2))


def nat_destination(packet: Packet, address: Address, port: int) -> Packet:
    """On the way in: to the backend's address and port."""
    frame = _translate(packet, packet.destination, address, packet.dport, port, source=False)
    return replace(packet, frame=frame, destination=address, dport=port)


def nat_source(packet: Packet, address: Address, port: int) -> Packet:
    """On the way back: from the VIP, as the client expects it."""
    frame = _translate(packet, packet.source, address, packet.sport, port, source=True)
    return replace(packet, frame=frame, source=address, sport=port)


def _translate(
    packet: Packet, old: Address, new: Address, old_port: int, port: int, *, source: bool
) -> bytes:
    """RFC 3022, 4.1: addresses count in the IP checksum (IPv4) and, by the pseudo header, in
    that of TCP and UDP. In the later pieces of a datagram neither that nor a port is to be found.
    """
    frame, l3 = packet.frame, packet.l3
    if not packet.later:
        frame = _translate_segment(packet, old, new, old_port, port, source=source)
    if packet.ipv6:
        return put(frame, l3 + (IPV6_SOURCE if source else IPV6_DESTINATION), new.packed)
    address_at = l3 + (IPV4_SOURCE if source else IPV4_DESTINATION)
    return put_checked(frame, address_at, new.packed, l3 + IPV4_CHECK)


def _translate_segment(
    packet: Packet, old: Address, new: Address, old_port: int, port: int, *, source: bool
) -> bytes:
    frame, l4 = packet.frame, packet.l4
    check_at = l4 + (UDP_CHECK if packet.proto == UDP else TCP_CHECK)
    check = int.from_bytes(frame[check_at : check_at + 2])
    # RFC 768: a UDP checksum of 0 says "none", and one that computes to 0 is sent as all ones.
    if packet.proto != UDP or check != 0:
        check = update(check, old.packed + old_port.to_bytes(2), new.packed + port.to_bytes(2))
        if packet.proto == UDP and check == 0:
            check = 0xFFFF
        frame = put(frame, check_at, check.to_bytes(2))
    return put(frame, l4 + (0 if source else 2), port.to_bytes(2))


def take_hop(packet: Packet) -> Packet:
    """One off the TTL (RFC 1812, 5.3.1) or the hop limit (RFC 8200, 3)."""
    return replace(packet, frame=set_ttl(packet, packet.ttl - 1))


def set_ttl(packet: Packet, ttl: int) -> bytes:
    """The frame with another TTL or hop limit."""
    if packet.ipv6:
        return put(packet.frame, packet.l3 + IPV6_HOP_LIMIT, bytes([ttl]))
    # The TTL shares its checksummed word with the protocol.
    at = packet.l3 + IPV4_TTL
    return put_checked(packet.frame, at, bytes([ttl, packet.frame[at + 1]]), packet.l3 + IPV4_CHECK)


def leave(packet: Packet, dmac: bytes, smac: bytes) -> bytes:
    """The frame as it goes to a next hop: without VLAN tags, as that is known by an interface, which is
    the VLAN's own where there is one."""
    frame = put(packet.frame, 0, dmac + smac)
    ethertype = frame[packet.l3 - 2 : packet.l3]
    return frame[: ETHERNET_BYTES - 2] + ethertype + frame[packet.l3 :]


def turn_around(frame: bytes) -> bytes:
    """An answer's MAC addresses: back to whom the request came from."""
    return frame[6:12] + frame[:6] + frame[12:]
