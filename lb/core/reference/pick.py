"""From a packet to its service, and from there to a backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from lb.core import flowhash
from lb.core.reference.parse import Packet
from lb.core.reference.world import TCP, Endpoint, Flow, FlowKey, Past, Rule, Service, World
from lb.model.objects import Address, Tracking

EMPTY = 0  # in slot tables: no backend

# An entry's time is written at most once in so many jiffies (about a second), so that a busy flow
# doesn't dirty a cache line with each packet.
SEEN_STEP = 256


Written = Mapping[FlowKey, Flow | None]  # entries written; None = deleted


@dataclass(frozen=True, slots=True)
class Choice:
    """Where a packet goes (None = no backend is usable) and what is remembered of that."""

    backend: int | None
    is_new: bool = False  # it begins a flow
    conntrack: Written = field(default_factory=dict)
    embryonic: Written = field(default_factory=dict)
    resets: bool = False  # of a flow that its backend no longer takes: the client is told


def find_service(packet: Packet, world: World) -> int | None:
    """The service at the packet's destination."""
    return service_at(Endpoint(packet.destination, packet.dport, packet.proto), world)


def service_at(vip: Endpoint, world: World) -> int | None:
    """One that names the port goes before one whose range covers it."""
    if vip in world.vips:
        return world.vips[vip]
    for each, number in world.ranges.items():
        if (each.address, each.proto) == (
            vip.address,
            vip.proto,
        ) and each.first <= vip.port <= each.last:
            return number
    return None


def slot_for(packet: Packet, number: int, service: Service, world: World) -> tuple[int, Past | None]:
    """The backend (or EMPTY) that the packet's slot names, and the past of the slot or, if that changed
    lately, of the rule for its client."""
    slot = flowhash.slot(service.seed, packet.source, packet.sport, packet.dport, service.affinity)
    rule = _rule_for(packet.source, number, world)
    if rule is None:
        return _slot(number, slot, world)
    own, past = _slot(rule.table, slot, world)
    if rule.closes <= world.clock:
        return own, past or (Past(EMPTY, rule.closes) if rule.closes else None)
    was, earlier = _slot(rule.before, slot, world)
    if earlier is not None and earlier.closes > world.clock:
        was = earlier.origin
    return own, Past(was, rule.closes)


def _slot(table: int, slot: int, world: World) -> tuple[int, Past | None]:
    slots = world.tables.get(table)
    own = int(slots[slot]) if slots is not None else EMPTY
    return own, world.pasts.get(table, {}).get(slot)


def _rule_for(client: Address, number: int, world: World) -> Rule | None:
    """That of the longest prefix."""
    prefixes = [prefix for prefix in world.rules.get(number, {}) if client in prefix]
    longest = max(prefixes, key=lambda prefix: prefix.prefixlen, default=None)
    return world.rules[number][longest] if longest else None


def choose_backend(
    packet: Packet, number: int, service: Service, named: int | None, world: World
) -> Choice:
    """The backend that the packet itself names goes before all else. A flow that is remembered goes
    where it went. One that is older than its slot's last move goes
    to where the slot was then; any other where its slot says."""
    own, past = slot_for(packet, number, service, world)
    always = service.tracking is Tracking.ALWAYS
    if named is not None and not always:
        return Choice(named)
    if service.tracking is Tracking.NEVER or (past is None and not always):
        # Without entries, a connection's start is all that can be counted.
        return Choice(own, is_new=packet.begins) if _is_usable(own, world) else Choice(None)

    key = FlowKey(packet.source, number, packet.sport, packet.dport)
    known = _follow(key, packet, world)
    if named is not None and (known is None or known.backend != named):
        return _renamed(key, named, world)
    if known:
        return known
    moving = past if past is not None and past.closes > world.clock else None
    # Nobody saw it begin, and it doesn't begin now: it is older than the move. Where each datagram is
    # remembered, one that isn't begins a flow.
    goes_on = packet.proto == TCP and not packet.begins and not packet.quoted
    if goes_on and _is_over(key, moving, world):
        return Choice(None, resets=True)
    older = packet.quoted or (not packet.begins and (packet.proto == TCP or not always))
    chosen = _place(own, moving if older else None, world)
    # What is known already must not say something else later.
    known_before = key in world.conntrack or key in world.embryonic
    if chosen is None or packet.quoted or not (always or moving or known_before):
        return Choice(chosen, is_new=chosen is not None and not older)
    return _remember(key, chosen, older, packet, world)


def _is_over(key: FlowKey, past: Past | None, world: World) -> bool:
    """Has the flow's backend failed, so that clients are told? That which is remembered counts, else
    that which the slot had."""
    remembered = [flow for flow in (world.conntrack.get(key), world.embryonic.get(key)) if flow]
    if remembered:
        found = [world.backends.get(flow.backend) for flow in remembered]
        return any(
            owner is not None and owner.resets and owner.generation == flow.generation
            for flow, owner in zip(remembered, found, strict=True)
        )
    origin = world.backends.get(past.origin) if past else None
    return origin is not None and origin.resets


def _renamed(key: FlowKey, named: int, world: World) -> Choice:
    """What is remembered is where the packet's own word sends it, whatever it was."""
    flow = Flow(named, world.backends[named].generation, world.now)
    gone: Written = {key: None} if key in world.embryonic else {}
    return Choice(named, conntrack={key: flow}, embryonic=gone)


def _place(own: int, past: Past | None, world: World) -> int | None:
    if past is not None and _is_usable(past.origin, world):
        return past.origin
    return own if _is_usable(own, world) else None


def _follow(key: FlowKey, packet: Packet, world: World) -> Choice | None:
    """Where the flow goes on, or None if it is to be placed anew."""
    flow = world.conntrack.get(key)
    # A SYN of a flow that had got further is a new connection on an old port pair (RFC 6191).
    if flow and not (packet.begins and packet.proto == TCP) and _may_go_on(flow, world):
        return Choice(flow.backend, conntrack={} if packet.quoted else {key: _touched(flow, world)})
    flow = world.embryonic.get(key)
    if flow is None or not _may_go_on(flow, world):
        return None
    if packet.quoted:
        return Choice(flow.backend)
    if packet.begins:  # sent again
        return Choice(flow.backend, embryonic={key: _touched(flow, world)})
    grown = replace(flow, seen=world.now)
    return Choice(flow.backend, conntrack={key: grown}, embryonic={key: None})


def _remember(key: FlowKey, chosen: int, older: bool, packet: Packet, world: World) -> Choice:
    """Flows that have only begun are kept apart from the others, which a flood of SYNs (or of single
    datagrams) then can't push out."""
    flow = Flow(chosen, world.backends[chosen].generation, world.now)
    if packet.begins or (not older and key not in world.conntrack):
        gone: Written = {key: None} if key in world.conntrack else {}
        return Choice(chosen, is_new=not older, conntrack=gone, embryonic={key: flow})
    gone = {key: None} if key in world.embryonic else {}
    return Choice(chosen, is_new=not older, conntrack={key: flow}, embryonic=gone)


def answered(key: FlowKey, world: World) -> tuple[Written, Written]:
    """What an answer writes to `conntrack` and `embryonic`: a flow that is remembered is kept by what
    its server sends, too (RFC 4787, REQ-6)."""
    if key in world.conntrack:
        return {key: _touched(world.conntrack[key], world)}, {}
    if key in world.embryonic:
        return {}, {key: _touched(world.embryonic[key], world)}
    return {}, {}


def _touched(flow: Flow, world: World) -> Flow:
    aged = (world.now - flow.seen) % 2**32 >= SEEN_STEP
    return replace(flow, seen=world.now) if aged else flow


def _may_go_on(flow: Flow, world: World) -> bool:
    """Is its backend usable, and has the id not been given to another backend since?"""
    backend = world.backends.get(flow.backend)
    return backend is not None and backend.usable and backend.generation == flow.generation


def _is_usable(number: int, world: World) -> bool:
    backend = world.backends.get(number)
    return number != EMPTY and backend is not None and backend.usable
