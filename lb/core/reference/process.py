"""The story of one packet: parse, find the service, pick a backend, rewrite, send."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lb.core.reference import answer, pieces, quic, quote, rewrite, tunnel
from lb.core.reference.fullnat import Bound, choose_binding, find_client
from lb.core.reference.parse import ICMP, ICMPV6, Packet, Portless, parse
from lb.core.reference.pick import Choice, Written, answered, choose_backend, find_service, service_at
from lb.core.reference.world import (
    TCP,
    UDP,
    Backend,
    Binding,
    Client,
    Endpoint,
    FlowKey,
    Fragment,
    Outcome,
    Result,
    Route,
    RouteQuery,
    RouteResult,
    Sender,
    Service,
    Stats,
    Translated,
    Verdict,
    World,
)
from lb.model.objects import TRANSLATIONS, TUNNELS, Address, Mode, NoBackend, Tracking


def process(frame: bytes, ifindex: int, world: World) -> Result:
    """What becomes of a frame that came in by an interface."""
    # What comes in by a port of a bond came in by the bond.
    parsed = parse(frame, world.ports.get(ifindex, ifindex))
    # A switch floods frames whose owner it doesn't know, and a bridge port sees everybody's: only
    # what is addressed to this interface's own MAC may be balanced.
    if parsed is None or world.links.get(ifindex) != frame[:6]:
        return _pass(frame, Outcome.PASS_NOT_OURS)
    if isinstance(parsed, Portless):
        return _portless(frame, parsed, world)
    if parsed.later:
        return _later(parsed, world)
    flow = parsed
    if parsed.proto in (ICMP, ICMPV6):
        about = _about(parsed, world)
        if about is None:
            return _icmp(parsed, world)
        flow = about
    number = find_service(flow, world)
    if number is None:
        # An error to a VIP, but about nothing that came from a service: perhaps about what we sent to a
        # server from that address (fullnat).
        if flow.quoted and world.served(parsed.destination):
            flow = quote.turned(flow)
        return _nat_reply(parsed, flow, world)
    if flow.destination != parsed.destination:
        # Not about a packet from the VIP that it is addressed to: somebody's invention.
        return _pass(frame, Outcome.PASS_NOT_OURS)
    return _serve(parsed, flow, number, world)


def _later(packet: Packet, world: World) -> Result:
    """A piece of a datagram that isn't the first: it follows that one."""
    first = pieces.first_of(packet, world)
    if first is None:
        unknown = Portless(packet.destination, packet.proto, Outcome.DROP_FRAGMENT)
        return _portless(packet.frame, unknown, world)
    service = world.services[first.service]
    packet = replace(packet, proto=service.proto)
    if first.is_answer and first.address is not None:
        client = FlowKey(first.address, first.service, 0, 0)
        return _counted_reply(packet, packet, first.backend, service, client, world)
    return _serve(packet, packet, first.service, world, first)


def _about(packet: Packet, world: World) -> Packet | None:
    """What an ICMP error quotes: a packet that came from the VIP that it is addressed to or, if it isn't
    addressed to one, that went to a server."""
    if not quote.is_error(packet):
        return None
    return quote.quoted(packet, sent=bool(world.served(packet.destination)))


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
    """Echo to a VIP is answered here; what else is about no flow of ours is for the kernel."""
    if world.served(packet.destination) and answer.is_echo_request(packet):
        return Result(Verdict.TX, Outcome.ECHO_REPLY, answer.echo_reply(packet), ifindex=packet.ifindex)
    return _pass(packet.frame, Outcome.PASS_NOT_OURS)


def _serve(
    packet: Packet, flow: Packet, number: int, world: World, first: Fragment | None = None
) -> Result:
    """A packet to a service, or an ICMP error about one of its flows: counted, placed as the flow is (or
    as the first piece of a datagram was), and sent on or refused."""
    service = world.services[number]
    bound = Bound(None)
    named = quic.named_backend(flow, number, service, world) if first is None else None
    if first is not None:
        binding = Binding(first.address, first.backend, first.generation, 0, 0)
        bound = Bound(None, binding if service.mode is Mode.FULLNAT else None)
        choice = Choice(first.backend if world.backends[first.backend].usable else None)
    elif service.mode is Mode.FULLNAT:
        bound = choose_binding(flow, number, service, named, world)
        choice = Choice(bound.backend, bound.is_new, resets=bound.resets)
    else:
        choice = choose_backend(flow, number, service, named, world)
    stats = Stats(packets=1, bytes=len(packet.frame), flows=int(choice.is_new))
    if choice.backend is None:
        if flow.quoted:
            refused = _drop(packet.frame, Outcome.DROP_NO_BACKEND)
        else:
            refused = _refuse(packet, service, world, is_full=bound.is_full, resets=choice.resets)
        return replace(refused, bindings=bound.bindings, service=(number, stats))
    result = _forward(packet, flow, service, choice.backend, bound.binding, world)
    return replace(
        result,
        senders=_senders(packet, service, result, world),
        conntrack=choice.conntrack,
        embryonic=choice.embryonic,
        bindings=bound.bindings,
        translations=bound.translations,
        fragments=pieces.led(
            packet,
            (number, service),
            choice.backend,
            bound.binding.source if bound.binding else None,
            world,
        ),
        service=(number, stats),
        backend=(choice.backend, stats),
    )


def _forward(
    packet: Packet,
    flow: Packet,
    service: Service,
    number: int,
    binding: Binding | None,
    world: World,
) -> Result:
    """To the backend. Where the next hop isn't known, the kernel can route what is addressed to the
    backend (nat, fullnat), but not what is still addressed to the VIP."""
    backend = world.backends[number]
    if packet.ttl <= 1:
        return _drop(packet.frame, Outcome.DROP_TTL)
    if service.mode not in TRANSLATIONS and not backend.resolved:
        return _drop(packet.frame, Outcome.DROP_UNRESOLVED)
    more = tunnel.overhead(service, backend)
    if backend.mtu and packet.end - packet.l3 + more > backend.mtu:
        return _too_big(packet, backend.mtu - more, world)
    if service.mode in TRANSLATIONS:
        packet = _translate(packet, flow, backend, binding)
    if not backend.resolved:
        return _pass(packet.frame, Outcome.PASS_UNRESOLVED)
    packet = rewrite.take_hop(packet)
    if service.mode in TUNNELS:
        packet = tunnel.encapsulate(packet, service, backend)
    frame = rewrite.leave(packet, backend.dmac, backend.smac)
    if backend.ifindex == packet.ifindex:
        return Result(Verdict.TX, Outcome.FORWARD_TX, frame, ifindex=backend.ifindex)
    return Result(Verdict.REDIRECT, Outcome.FORWARD_REDIRECT, frame, ifindex=backend.ifindex)


def _translate(packet: Packet, flow: Packet, backend: Backend, binding: Binding | None) -> Packet:
    """nat: to the backend. fullnat: from us, too. An error's quote tells of the other direction."""
    port = backend.port or flow.dport
    if flow.quoted:
        packet = quote.translate(packet, flow, backend.address, port, source=True, own=True)
    else:
        packet = rewrite.nat_destination(packet, backend.address, port)
    if binding is None or binding.source is None:
        return packet
    if flow.quoted:
        return quote.translate(packet, flow, binding.source, binding.port, source=False, own=False)
    return rewrite.nat_source(packet, binding.source, binding.port)


def _too_big(packet: Packet, mtu: int, world: World) -> Result:
    """Longer than the way to the backend takes: the client is told what would fit, also where it didn't
    set DF, as a tunnel's packets are never cut."""
    error = None
    told = packet.proto in (TCP, UDP) and not packet.fragment and answer.is_one_host(packet.source)
    if told and world.may_send_errors:
        error = answer.too_big(packet, mtu)
    if error is None:
        return _drop(packet.frame, Outcome.DROP_TOO_BIG)
    return Result(Verdict.TX, Outcome.REJECT_TOO_BIG, error, ifindex=packet.ifindex)


def _senders(packet: Packet, service: Service, result: Result, world: World) -> dict[Address, Sender]:
    """Where the client's frames come from: the way back if the kernel's neighbour table doesn't know
    it. A TCP client tells at each SYN; with UDP any datagram may be the first."""
    early = (
        Outcome.DROP_TTL, Outcome.DROP_UNRESOLVED, Outcome.REJECT_TOO_BIG, Outcome.DROP_TOO_BIG,
    )  # fmt: skip
    if service.mode not in TRANSLATIONS or result.outcome in early or packet.is_tagged:
        return {}  # an answer without its tag would be on the wrong network
    sender = Sender(packet.ifindex, packet.frame[6:12])
    if packet.proto != UDP and not packet.begins:
        return {}
    return {} if world.senders.get(packet.source) == sender else {packet.source: sender}


def _refuse(packet: Packet, service: Service, world: World, *, is_full: bool, resets: bool) -> Result:
    """Nobody takes it: no backend is usable, (fullnat) no port is free, or that of its connection has
    failed. The client is told, unless the policy (not in the last case) or good manners forbid it."""
    silent = service.no_backend is NoBackend.DROP and not resets
    dropped = _drop(packet.frame, Outcome.DROP_NAT_FULL if is_full else Outcome.DROP_NO_BACKEND)
    # RFC 9293, MUST-63, for TCP as RFC 1122, 3.2.2, for ICMP.
    if silent or packet.fragment or not answer.is_one_host(packet.source):
        return dropped
    if packet.proto == TCP:
        frame, outcome = answer.reset(packet), Outcome.REJECT_RST
    elif world.may_send_errors:
        frame, outcome = answer.unreachable(packet), Outcome.REJECT_UNREACH
    else:
        return dropped
    if frame is None:
        return dropped
    if is_full:
        outcome = Outcome.REJECT_NAT_FULL
    return Result(Verdict.TX, outcome, frame, ifindex=packet.ifindex)


def _nat_reply(packet: Packet, flow: Packet, world: World) -> Result:
    """Not for a VIP: a backend's answer (nat, fullnat), or an ICMP error about a packet that went to
    one, both to be translated back; or not ours at all."""
    # A quoted packet went the other way.
    server, port = (flow.destination, flow.dport) if flow.quoted else (flow.source, flow.sport)
    seen, seen_port = (flow.source, flow.sport) if flow.quoted else (flow.destination, flow.dport)
    nat = world.nat_back.get(Endpoint(server, port, flow.proto))
    nat = nat or world.nat_back.get(Endpoint(server, 0, flow.proto))  # a server of a range of ports
    service = world.services.get(nat.service) if nat else None
    if nat is None or service is None or packet.destination != seen:
        return _pass(packet.frame, Outcome.PASS_NOT_OURS)
    backend = nat.backend
    client = FlowKey(seen, nat.service, seen_port, service.port or port)
    changed: Mapping[Translated, Client | None] = {}
    kept: tuple[Written, Written] = {}, {}
    if service.mode is Mode.FULLNAT:
        # The entry that was found only says that a server of this mode is there.
        found, changed = find_client(flow, world)
        service = world.services.get(found.flow.service) if found else None
        if found is None or service is None or service.mode is not Mode.FULLNAT:
            return replace(_pass(packet.frame, Outcome.PASS_NOT_OURS), translations=changed)
        backend, client = found.backend, found.flow
    elif not _is_our_flow(client, service, world):
        return _pass(packet.frame, Outcome.PASS_NOT_OURS)
    elif service.tracking is Tracking.ALWAYS and not flow.quoted:
        kept = answered(client, world)
    result = _counted_reply(packet, flow, backend, service, client, world)
    return replace(result, translations=changed, conntrack=kept[0], embryonic=kept[1])


def _counted_reply(
    packet: Packet, flow: Packet, backend: int, service: Service, client: FlowKey, world: World
) -> Result:
    result = _reply(packet, flow, service, client, world)
    if result.outcome in (Outcome.PASS_NOT_OURS, Outcome.DROP_TTL):
        return result
    stats = Stats(reply_packets=1, reply_bytes=len(packet.frame))
    owner = (client.service, service)
    led = pieces.led(packet, owner, backend, client.client, world, is_answer=True)
    return replace(result, fragments=led, service=(client.service, stats), backend=(backend, stats))


def _reply(packet: Packet, flow: Packet, service: Service, client: FlowKey, world: World) -> Result:
    """Translated back, and on its way to the client."""
    if client.client in answer.PROBE_SOURCES:  # a health check of ours: for tc/probe_back.c
        return _pass(packet.frame, Outcome.PASS_NOT_OURS)
    way = world.route(RouteQuery(packet.ifindex, service.vip, client.client, packet.end - packet.l3))
    # To this machine itself: its own connection to the backend (a health check), not a client's.
    if way.route is Route.LOCAL:
        return _pass(packet.frame, Outcome.PASS_NOT_OURS)
    if packet.ttl <= 1:
        return _drop(packet.frame, Outcome.DROP_TTL)

    if way.route is Route.NO_NEIGHBOUR:
        way = _return_to_sender(client.client, world) or way
    if flow.quoted:
        own = packet.source == flow.destination
        packet = quote.translate(packet, flow, service.vip, client.vip_port, source=False, own=own)
    else:
        packet = rewrite.nat_source(packet, service.vip, client.vip_port)
    if service.mode is Mode.FULLNAT:
        if flow.quoted:
            packet = quote.translate(
                packet, flow, client.client, client.client_port, source=True, own=True
            )
        else:
            packet = rewrite.nat_destination(packet, client.client, client.client_port)
    sendable = world.reachable is None or way.ifindex in world.reachable
    if way.route is Route.NEIGHBOUR and sendable:
        frame = rewrite.leave(rewrite.take_hop(packet), way.dmac, way.smac)
        verdict = Verdict.TX if way.ifindex == packet.ifindex else Verdict.REDIRECT
        return Result(verdict, Outcome.REPLY_REDIRECT, frame, ifindex=way.ifindex)
    return _pass(packet.frame, Outcome.REPLY_PASS)


def _is_our_flow(flow: FlowKey, service: Service, world: World) -> bool:
    """Did the client's side come through us? Where all flows are remembered there is an entry;
    elsewhere the backend's endpoint belongs to one service only (the planner sees to that). Of a range,
    the port has to be in it, and no other service's.
    """
    if service.mode is not Mode.NAT:
        return False
    vip = Endpoint(service.vip, flow.vip_port, service.proto)
    if not service.port and service_at(vip, world) != flow.service:
        return False
    if service.tracking is not Tracking.ALWAYS:
        return True
    return flow in world.conntrack or flow in world.embryonic


def _return_to_sender(client: Address, world: World) -> RouteResult | None:
    """To where the client's frames came from: the kernel can't help with a client that it never
    talked to, as it drops what comes in with an address (the VIP) of its own as the source.
    """
    sender = world.senders.get(client)
    smac = world.links.get(sender.ifindex) if sender else None
    if sender is None or smac is None:
        return None
    return RouteResult(Route.NEIGHBOUR, sender.ifindex, sender.mac, smac)
