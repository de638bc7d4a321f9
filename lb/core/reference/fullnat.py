"""Mode fullnat: each flow has a port of ours at its server's socket, held by an entry per direction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from lb.core import flowhash
from lb.core.reference.parse import Packet, tcp_flags
from lb.core.reference.pick import EMPTY, SEEN_STEP, service_at, slot_for
from lb.core.reference.world import (
    TCP,
    Backend,
    Binding,
    Client,
    Endpoint,
    FlowKey,
    NatState,
    Service,
    Translated,
    World,
)
from lb.model.objects import Address

FIRST_PORT = 1024  # ours: below those that Linux takes for connections of its own
PORTS = 31744
TRIES = 32


@dataclass(frozen=True, slots=True)
class Bound:
    """What a packet's flow is bound to (None = nothing), and what changes in the entries."""

    backend: int | None
    binding: Binding | None = None
    is_new: bool = False
    is_full: bool = False  # there was no port for it
    resets: bool = False  # see Choice
    bindings: Mapping[FlowKey, Binding | None] = field(default_factory=dict)
    translations: Mapping[Translated, Client | None] = field(default_factory=dict)


def choose_binding(
    packet: Packet, number: int, service: Service, named: int | None, world: World
) -> Bound:
    """A flow that is bound stays so while its backend is usable. Only what begins a flow is bound: the
    server knows no other port of ours."""
    key = FlowKey(packet.source, number, packet.sport, packet.dport)
    held = world.bindings.get(key)
    gone: dict[FlowKey, Binding | None] = {}
    resets = False
    if held is not None:
        ended = packet.begins and packet.proto == TCP and bool(held.state & _ENDED)
        owner = world.backends.get(held.backend)
        usable = owner is not None and owner.usable and owner.generation == held.generation
        if usable and not ended:
            if packet.quoted:
                return Bound(held.backend, held)
            seen, state = _noted(held.seen, held.state, packet, _ends(packet), world)
            return Bound(held.backend, held, bindings={key: replace(held, seen=seen, state=state)})
        if packet.quoted:
            return Bound(None)
        # The way back of an ended flow is left to lbd: late packets of the old connection may come.
        gone = {key: None}
        resets = owner is not None and owner.resets and owner.generation == held.generation
    if packet.quoted or (packet.proto == TCP and not packet.begins):
        return Bound(None, bindings=gone, resets=resets)
    own = named or slot_for(packet, number, service, world)[0]
    backend = world.backends.get(own)
    if own == EMPTY or backend is None or not backend.usable:
        return Bound(None, bindings=gone)
    for port in candidates(service.seed, packet.source, packet.sport, packet.dport):
        opening = NatState.OPENING
        binding = Binding(backend.source, own, backend.generation, world.now, port, opening)
        back = way_back(packet, binding, backend)
        # Where our address is a VIP, too, answers to a service's port would be that service's.
        is_served = backend.source and service_at(Endpoint(backend.source, port, packet.proto), world)
        if back not in world.translations and not is_served:
            client = Client(key, own, world.now)
            return Bound(own, binding, True, bindings={key: binding}, translations={back: client})
    return Bound(None, is_full=True, bindings=gone)


def way_back(packet: Packet, binding: Binding, backend: Backend) -> Translated:
    """What the backend's answers look like."""
    port = backend.port or packet.dport
    return Translated(backend.address, port, binding.source, binding.port, packet.proto)


def candidates(seed: flowhash.Seed, client: Address, sport: int, dport: int) -> list[int]:
    """The ports that are tried for a flow, in this order."""
    low = int.from_bytes(client.packed[-4:])
    h = flowhash.mix(seed[0] ^ low << 32 ^ sport << 16 ^ dport)
    start, step = (h & 0xFFFFFFFF) % PORTS, 1 + (h >> 32) % (PORTS - 1)
    return [FIRST_PORT + (start + i * step) % PORTS for i in range(TRIES)]


_ENDED = NatState.FIN | NatState.RST


def _ends(packet: Packet) -> NatState:
    flags = tcp_flags(packet.frame, packet.l4) if packet.proto == TCP else frozenset()
    state = NatState(0)
    for name in ("FIN", "RST"):
        if name in flags:
            state |= NatState[name]
    return state


def _noted(
    seen: int, state: NatState, packet: Packet, more: NatState, world: World
) -> tuple[int, NatState]:
    """Who goes on sending was not reset, whoever said so (RFC 7857, 2.2); and who sends more than what
    begins a connection has got an answer."""
    state &= ~NatState.RST
    if not packet.begins and NatState.RST not in more:
        state &= ~NatState.OPENING
    aged = (world.now - seen) % 2**32 >= SEEN_STEP
    return world.now if aged else seen, state | more


def find_client(flow: Packet, world: World) -> tuple[Client | None, Mapping[Translated, Client | None]]:
    """Who an answer, or an error about what we sent to a backend, is for; the entry as it changes."""
    if flow.quoted:
        key = Translated(flow.destination, flow.dport, flow.source, flow.sport, flow.proto)
        return world.translations.get(key), {}
    key = Translated(flow.source, flow.sport, flow.destination, flow.dport, flow.proto)
    client = world.translations.get(key)
    if client is None:
        return None, {}
    seen, state = _noted(client.seen, client.state, flow, NatState.ANSWERED | _ends(flow), world)
    return client, {key: replace(client, seen=seen, state=state)}
