"""QUIC by connection ID: a server writes its own ID into the connection IDs that it gives out, so that a
client whose address changes stays with it (draft-ietf-quic-load-balancers-21, unencrypted)."""

from __future__ import annotations

from lb.core.reference.parse import QUIC_V1, QUIC_V2, UDP_BYTES, Packet
from lb.core.reference.world import Service, World

MAX_ID_BYTES = 8
LONG, FIXED = 0x80, 0x40  # of a packet's first byte (RFC 9000, 17)
HANDSHAKE = {QUIC_V1: 0xE0, QUIC_V2: 0xF0}  # its high bits (RFC 9000, 17.2; RFC 9369, 3.2)


def named_backend(packet: Packet, number: int, service: Service, world: World) -> int | None:
    """The backend whose ID stands in the packet's destination connection ID, if it is usable."""
    if not service.quic_bytes or packet.quoted:
        return None
    cid = _connection_id(packet.frame[packet.l4 + UDP_BYTES : packet.end], service.quic_bytes)
    if cid is None or cid[0] >> 5 != service.quic_config:
        return None
    found = world.quic.get((number, int.from_bytes(cid[1 : 1 + service.quic_bytes])))
    backend = world.backends.get(found) if found else None
    return found if backend and backend.usable else None


def _connection_id(payload: bytes, id_bytes: int) -> bytes | None:
    """The begin of the destination connection ID. A client chooses that of its first packets (Initial,
    0-RTT) by itself, so it means nothing there. Nothing that is QUIC is shorter than what is read."""
    if len(payload) < 6:
        return None
    at = 1
    if payload[0] & LONG:
        if payload[0] & 0xF0 != HANDSHAKE.get(int.from_bytes(payload[1:5])):
            return None
        if payload[5] < 1 + id_bytes:
            return None
        at = 6
    elif not payload[0] & FIXED:
        return None
    cid = payload[at : at + 1 + MAX_ID_BYTES]
    return cid if len(cid) == 1 + MAX_ID_BYTES else None
