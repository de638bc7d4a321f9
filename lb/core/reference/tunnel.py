"""Modes ipip and gue: the packet as it is, behind an outer header that leads to the backend."""

from __future__ import annotations

from dataclasses import replace

from lb.core import flowhash
from lb.core.reference.checksum import checksum, fold, pseudo_header, words
from lb.core.reference.parse import ICMP, ICMPV6, IPV4_BYTES, IPV6_BYTES, UDP_BYTES, Packet
from lb.core.reference.rewrite import put
from lb.core.reference.world import UDP, Backend, Service
from lb.model.objects import TUNNELS, Mode

IPV4_IN_IP, IPV6_IN_IP = 4, 41  # protocol numbers: RFC 2003, RFC 2473 and 4213
OUTER_TTL = 64
DONT_FRAGMENT = 0x4000
ETH = {4: b"\x08\x00", 6: b"\x86\xdd"}

GUE_PORTS = 0xC000  # of the outer source: ephemeral ones (RFC 6335)


def overhead(service: Service, backend: Backend) -> int:
    """Bytes that the mode adds to an IP packet."""
    if service.mode not in TUNNELS:
        return 0
    bytes_ = IPV4_BYTES if backend.address.version == 4 else IPV6_BYTES
    return bytes_ + (UDP_BYTES if service.mode is Mode.GUE else 0)


def encapsulate(packet: Packet, service: Service, backend: Backend) -> Packet:
    """RFC 2003 (4 in 4), 2473 (in IPv6), 4213 (6 in 4); gue is variant 1 of
    draft-ietf-intarea-gue: an IP packet straight behind a UDP header."""
    frame, l3 = packet.frame, packet.l3
    length = packet.end - l3
    header = b""
    proto = IPV6_IN_IP if packet.ipv6 else IPV4_IN_IP
    if service.mode is Mode.GUE:
        header = (
            source_port(packet, service).to_bytes(2)
            + backend.port.to_bytes(2)
            + (length + UDP_BYTES).to_bytes(2)
            + bytes(2)
        )
        proto = UDP
        if backend.address.version == 6:
            header = put(header, 6, _udp_checksum(packet, header, backend).to_bytes(2))
    outer = _outer_ip(packet, backend, proto, length + len(header)) + header
    version = backend.address.version
    return replace(packet, frame=frame[: l3 - 2] + ETH[version] + outer + frame[l3:])


def _outer_ip(packet: Packet, backend: Backend, proto: int, length: int) -> bytes:
    # RFC 6040, 4.1: the ECN bits are copied, and with them the whole of the traffic class.
    l3 = packet.l3
    tos = int.from_bytes(packet.frame[l3 : l3 + 2]) >> 4 & 0xFF if packet.ipv6 else packet.frame[l3 + 1]
    source = backend.source or backend.address
    if backend.address.version == 6:
        return (
            (6 << 28 | tos << 20).to_bytes(4)
            + length.to_bytes(2)
            + bytes([proto, OUTER_TTL])
            + source.packed
            + backend.address.packed
        )
    header = (
        bytes([4 << 4 | IPV4_BYTES // 4, tos])
        + (IPV4_BYTES + length).to_bytes(2)
        + bytes(2)
        + DONT_FRAGMENT.to_bytes(2)
        + bytes([OUTER_TTL, proto])
        + bytes(2)
        + source.packed
        + backend.address.packed
    )
    return put(header, 10, checksum(header).to_bytes(2))


def source_port(packet: Packet, service: Service) -> int:
    """Spreads flows over whatever spreads by UDP ports, and keeps each on one way."""
    client = int.from_bytes(packet.source.packed[-4:])
    h = flowhash.mix(service.seed[1] ^ client << 32 ^ packet.sport << 16 ^ packet.dport)
    return GUE_PORTS | h >> 50


def _udp_checksum(packet: Packet, header: bytes, backend: Backend) -> int:
    """Of the outer header, from headers alone: a segment whose own checksum is right adds the
    complement of its pseudo header's sum. 0 (none, as RFC 6935 allows for tunnels) where the inner
    packet has none that covers all of it."""
    frame, l3, l4 = packet.frame, packet.l3, packet.l4
    inner_header = frame[l3:l4]
    plain = len(inner_header) == (IPV6_BYTES if packet.ipv6 else IPV4_BYTES)
    if packet.fragment or packet.proto in (ICMP, ICMPV6) or not plain:
        return 0
    segment_bytes = packet.end - l4
    if packet.proto == UDP and (
        frame[l4 + 6 : l4 + 8] == bytes(2) or int.from_bytes(frame[l4 + 4 : l4 + 6]) != segment_bytes
    ):
        return 0
    if not packet.ipv6 and checksum(inner_header) != 0:
        return 0
    source = backend.source or backend.address
    outer = pseudo_header(source, backend.address, UDP, int.from_bytes(header[4:6])) + header
    inner = pseudo_header(packet.source, packet.destination, packet.proto, segment_bytes)
    total = sum(words(outer + (inner_header if packet.ipv6 else b"")))
    total += ~fold(sum(words(inner))) & 0xFFFF
    return ~fold(total) & 0xFFFF or 0xFFFF
