"""Datagrams that come in pieces: only the first has ports, and the others follow it."""

from __future__ import annotations

from collections.abc import Mapping

from lb.core.reference.parse import Packet
from lb.core.reference.world import Fragment, FragmentKey, Service, World
from lb.model.objects import Address

# As long as a receiver waits for the last of them (RFC 8200, 4.5; RFC 1122, 3.3.2).
FRAGMENT_NS = 60_000_000_000


def key_of(packet: Packet) -> FragmentKey:
    """What the pieces of a datagram have in common (RFC 791, 3.2; RFC 8200, 4.5)."""
    proto = 0 if packet.ipv6 else packet.proto
    return FragmentKey(packet.source, packet.destination, packet.identification, proto)


def led(
    packet: Packet,
    service: tuple[int, Service],
    backend: int,
    address: Address | None,
    world: World,
    *,
    is_answer: bool = False,
) -> Mapping[FragmentKey, Fragment]:
    """What the first piece of a datagram leaves for the others; nothing if this is none."""
    if not packet.fragment or packet.later:
        return {}
    number, policy = service
    first = Fragment(
        service=number,
        backend=backend,
        generation=world.backends[backend].generation,
        mode=policy.mode,
        address=address,
        is_answer=is_answer,
        until=world.clock + FRAGMENT_NS,
    )
    return {key_of(packet): first}


def first_of(packet: Packet, world: World) -> Fragment | None:
    """Where the first piece of a later one's datagram went: if that was lately, and those whom it
    concerned are still the same."""
    first = world.fragments.get(key_of(packet))
    if first is None or first.until <= world.clock:
        return None
    service, backend = world.services.get(first.service), world.backends.get(first.backend)
    if service is None or service.mode is not first.mode:
        return None
    if service.vip.version != packet.destination.version:
        return None
    if backend is None or backend.generation != first.generation:
        return None
    return first
