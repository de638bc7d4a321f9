"""The story of one packet: parse, find the service, pick a backend, rewrite, send."""

from __future__ import annotations

from dataclasses import replace

from lb.core.reference import answer, rewrite
from lb.core.reference.parse import ICMP, ICMPV6, Packet, Portless, parse
from lb.core.reference.pick import choose_backend, find_service
from lb.core.reference.world import (
    TCP,
    Endpoint,
    FlowKey,
    NatBack,
    Outcome,
    Result,
    Route,
    RouteQuery,
    RouteResult,
    Sender,
    Service,
    Stats,
    Verdict,
    World,
)
from lb.model.objects import Address, Mode, NoBackend, Tracking


def process(frame: bytes, ifindex: int, world: World) -> Result:
    """What becomes of a frame that came in by an interface."""
    parsed = parse(frame, ifindex)
    # A switch floods frames whose owner it doesn't know, and a bridge port sees everybody's: only
    # what is addressed to this interface's own MAC may be balanced.
    if parsed is None or world.links.get(ifindex) != frame[:6]:
        return _pass(frame, Outcome.PASS_NOT_OURS)
    if isinstance(parsed, Portless):
        return _portless(frame, parsed, world)
    if parsed.proto in (ICMP, ICMPV6):
        return _icmp(parsed, world)
    number = find_service(parsed, world)
    if number is None:
        return _nat_reply(parsed, world)
    return _serve(parsed, number, world)


def _pass(frame: bytes, outcome: Outcome) -> Result:
    return Result(Verdict.PASS, outcome, frame)


def _drop(frame: bytes, outcome: Outcome) -> Result:
    return Result(Verdict.DROP, outcome, frame)


def _portless(frame: bytes, parsed: Portless, world: World) -> Result:
    """Ours to judge only if a service of that protocol is at the address."""
    if parsed.proto in world.served(parsed.destination):
        return _drop(frame, parsed.fault)
    return _pass(frame, Outcome.PASS_NOT_OURS)


def _icmp(packet: Packet, world: World) -> Result:
    """Echo to a VIP is answered here; all other ICMP is for the kernel."""
    if world.served(packet.destination) and answer.is_echo_request(packet):
        return Result(Verdict.TX, Outcome.ECHO_REPLY, answer.echo_reply(packet), ifindex=packet.ifindex)
    return _pass(packet.frame, Outcome.PASS_NOT_OURS)


def _serve(packet: Packet, number: int, world: World) -> Result:
    """A packet to a service: counted, placed, and sent on or refused."""
    service = world.services[number]
    choice = choose_backend(packet, number, service, world)
    stats = Stats(packets=1, bytes=len(packet.frame), flows=int(choice.is_new))
    if choice.backend is None:
        return replace(_refuse(packet, service), service=(number, stats))
    result = _forward(packet, service, choice.backend, world)
    return replace(
        result,
        senders=_senders(packet, service, result, world),
        conntrack=choice.conntrack,
        embryonic=choice.embryonic,
        service=(number, stats),
        backend=(choice.backend, stats),
    )


def _forward(packet: Packet, service: Service, number: int, world: World) -> Result:
    """To the backend. Where the next hop isn't known, the kernel can route what is addressed to the
    backend (nat), but not what is still addressed to the VIP (dsr)."""
    backend = world.backends[number]
    if packet.ttl <= 1:
        return _drop(packet.frame, Outcome.DROP_TTL)
    if service.mode is Mode.DSR and not backend.resolved:
        return _drop(packet.frame, Outcome.DROP_UNRESOLVED)
    if service.mode is Mode.NAT:
        packet = rewrite.nat_destination(packet, backend.address, backend.port or packet.dport)
    if not backend.resolved:
        return _pass(packet.frame, Outcome.PASS_UNRESOLVED)
    frame = rewrite.leave(rewrite.take_hop(packet), backend.ifindex, backend.dmac, backend.smac)
    if backend.ifindex == packet.ifindex:
        return Result(Verdict.TX, Outcome.FORWARD_TX, frame, ifindex=backend.ifindex)
    return Result(Verdict.REDIRECT, Outcome.FORWARD_REDIRECT, frame, ifindex=backend.ifindex)


def _senders(packet: Packet, service: Service, result: Result, world: World) -> dict[Address, Sender]:
    """Where the client's frames come from: the way back if the kernel's neighbour table doesn't know
    it. A TCP client tells at each SYN; with UDP any datagram may be the first."""
    early = (Outcome.DROP_TTL, Outcome.DROP_UNRESOLVED)
    if service.mode is not Mode.NAT or result.outcome in early or packet.is_tagged:
        return {}  # an answer without its tag would be on the wrong network
    sender = Sender(packet.ifindex, packet.frame[6:12])
    if packet.proto == TCP and not packet.begins:
        return {}
    return {} if world.senders.get(packet.source) == sender else {packet.source: sender}


def _refuse(packet: Packet, service: Service) -> Result:
    """No usable backend: the client is told, unless the policy or good manners forbid it."""
    silent = service.no_backend is NoBackend.DROP
    # RFC 9293, MUST-63, for TCP as RFC 1122, 3.2.2, for ICMP.
    if silent or packet.fragment or not answer.is_one_host(packet.source):
        return _drop(packet.frame, Outcome.DROP_NO_BACKEND)
    if packet.proto == TCP:
        frame, outcome = answer.reset(packet), Outcome.REJECT_RST
    else:
        frame, outcome = answer.unreachable(packet), Outcome.REJECT_UNREACH
    if frame is None:
        return _drop(packet.frame, Outcome.DROP_NO_BACKEND)
    return Result(Verdict.TX, outcome, frame, ifindex=packet.ifindex)


def _nat_reply(packet: Packet, world: World) -> Result:
    """Not for a VIP: a `nat` backend's answer, to be translated back, or not ours at all."""
    nat = world.nat_back.get(Endpoint(packet.source, packet.sport, packet.proto))
    service = world.services.get(nat.service) if nat else None
    if nat is None or service is None or not _is_our_flow(packet, nat, service, world):
        return _pass(packet.frame, Outcome.PASS_NOT_OURS)
    way = world.route(
        RouteQuery(packet.ifindex, service.vip, packet.destination, packet.end - packet.l3)
    )
    # To this machine itself: its own connection to the backend (a health check), not a client's.
    if way.route is Route.LOCAL:
        return _pass(packet.frame, Outcome.PASS_NOT_OURS)
    if packet.ttl <= 1:
        return _drop(packet.frame, Outcome.DROP_TTL)

    if way.route is Route.NO_NEIGHBOUR:
        way = _return_to_sender(packet, world) or way
    stats = Stats(reply_packets=1, reply_bytes=len(packet.frame))
    packet = rewrite.nat_source(packet, service.vip, service.port)
    sendable = world.reachable is None or way.ifindex in world.reachable
    if way.route is Route.NEIGHBOUR and sendable:
        frame = rewrite.leave(rewrite.take_hop(packet), way.ifindex, way.dmac, way.smac)
        verdict = Verdict.TX if way.ifindex == packet.ifindex else Verdict.REDIRECT
        result = Result(verdict, Outcome.REPLY_REDIRECT, frame, ifindex=way.ifindex)
    else:
        result = _pass(packet.frame, Outcome.REPLY_PASS)
    return replace(result, service=(nat.service, stats), backend=(nat.backend, stats))


def _is_our_flow(packet: Packet, nat: NatBack, service: Service, world: World) -> bool:
    """Did the client's side come through us? Where all flows are remembered there is an entry;
    elsewhere the backend's endpoint belongs to one service only (the planner sees to that).
    """
    if service.mode is not Mode.NAT:
        return False
    if service.tracking is not Tracking.ALWAYS:
        return True
    key = FlowKey(packet.destination, nat.service, packet.dport, service.port)
    return key in world.conntrack or key in world.embryonic


def _return_to_sender(packet: Packet, world: World) -> RouteResult | None:
    """To where the client's frames came from: the kernel can't help with a client that it never
    talked to, as it drops what comes in with an address (the VIP) of its own as the source.
    """
    sender = world.senders.get(packet.destination)
    smac = world.links.get(sender.ifindex) if sender else None
    if sender is None or smac is None:
        return None
    return RouteResult(Route.NEIGHBOUR, sender.ifindex, sender.mac, smac)
