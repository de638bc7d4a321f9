"""From a packet to its service, and from there to a backend."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lb.core import flowhash
from lb.core.reference.parse import Packet
from lb.core.reference.world import Backend, Endpoint, Flow, FlowKey, Service, World
from lb.model.objects import Tracking

EMPTY = 0  # in slot tables: no backend

# An entry's time is written at most once in so many jiffies (about a second), so that a busy flow
# doesn't dirty a cache line with each packet.
SEEN_STEP = 256


@dataclass(frozen=True, slots=True)
class Choice:
    """Where a packet goes (None = no backend is usable) and what is remembered of that."""

    backend: int | None
    is_new: bool = False  # it begins a flow
    flow: tuple[FlowKey, Flow] | None = None


def find_service(packet: Packet, world: World) -> int | None:
    """The service at the packet's destination."""
    return world.vips.get(Endpoint(packet.destination, packet.dport, packet.proto))


def choose_backend(packet: Packet, number: int, service: Service, world: World) -> Choice:
    """A tracked flow goes where it went; any other packet where its slot says."""
    key = FlowKey(packet.source, number, packet.sport, packet.dport)
    track = service.tracking is Tracking.ALWAYS
    if track and (flow := _tracked(packet, world.conntrack.get(key), world)):
        return Choice(flow.backend, flow=(key, flow))

    slot = flowhash.slot(service.seed, packet.source, packet.sport, packet.dport, service.affinity)
    table = world.tables.get(number)
    chosen = int(table[slot]) if table is not None else EMPTY
    backend = world.backends.get(chosen)
    if chosen == EMPTY or backend is None or not backend.usable:
        return Choice(None)
    if not track:
        # Without entries, a connection's start is all that can be counted.
        return Choice(chosen, is_new=packet.syn)
    entry = Flow(
        chosen,
        backend.generation,
        world.now,
        embryonic=packet.syn,
        ifindex=0 if packet.is_tagged else packet.ifindex,
        mac=packet.frame[6:12],
    )
    return Choice(chosen, is_new=True, flow=(key, entry))


def _tracked(packet: Packet, flow: Flow | None, world: World) -> Flow | None:
    """The packet's flow as it goes on, or None if it is to be placed anew."""
    if flow is None:
        return None
    # A SYN of a flow that had got further is a new connection on an old port pair (RFC 6191); a
    # retransmitted SYN isn't.
    if packet.syn and not flow.embryonic:
        return None
    backend = world.backends.get(flow.backend)
    if backend is None or not _is_the_same(backend, flow) or not backend.usable:
        return None
    aged = (world.now - flow.seen) % 2**32 >= SEEN_STEP
    return replace(
        flow,
        seen=world.now if aged else flow.seen,
        embryonic=flow.embryonic and packet.syn,
    )


def _is_the_same(backend: Backend, flow: Flow) -> bool:
    """Has the id not been given to another backend since?"""
    return backend.generation == flow.generation
