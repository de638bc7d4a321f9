"""Hypothesis strategies: worlds, and frames that are likely to mean something in them.

What decides a packet's fate is drawn, and so shrinks; what merely fills fields (identifications,
sequence numbers, payload) comes from a drawn seed. scapy builds the frames, so that lengths and
checksums are somebody else's work.
"""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from ipaddress import IPv4Address, ip_address, ip_network

import numpy as np
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP, IPOption_RR, IPOption_Timestamp
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6ND_NS,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from lb.core.reference import (
    Backend,
    Binding,
    Client,
    Endpoint,
    Flow,
    FlowKey,
    Fragment,
    FragmentKey,
    NatBack,
    NatState,
    Past,
    Range,
    Rule,
    Sender,
    Service,
    Translated,
    World,
    fullnat,
)
from lb.model.objects import (
    TRANSLATIONS,
    TUNNELS,
    Address,
    Affinity,
    Mode,
    Network,
    NoBackend,
    Tracking,
)

from . import harness, netns
from .harness import Pasts

TCP_NUMBER, UDP_NUMBER = 6, 17
OURS = bytes([2, 0, 0, 0, 1, netns.A])
PEER = bytes([2, 0, 0, 0, 2, 1])
INGRESS = netns.A
MAX_SERVICES = 6
MAX_TABLES = 2 * MAX_SERVICES  # each service may have another one, for rules
UNREACHED = 40  # an interface that is in no devmap

VIPS = {4: ["10.0.0.1", "10.0.0.2"], 6: ["2001:db8::1", "2001:db8::2"]}
NOT_VIPS = {4: "10.0.0.3", 6: "2001:db8::3"}
REALS = {4: ["10.1.0.1", "10.1.0.2", "10.1.0.3"], 6: ["2001:db8:b::1", "2001:db8:b::2"]}
SOURCES = {4: "10.1.0.100", 6: "2001:db8:b::100"}
GUE_PORT = 6080
ONLY_MODE = os.environ.get("LB_MODE", "")
VIP_PORTS = [80, 53]
RANGE = (50, 81)
CLIENT_PORTS = [4000, 4001, 65535]
BACKEND_PORTS = [0, 8080]
RANGE_PORTS = [50, 64, 80, 81]

# Sources that nobody may answer (RFC 1122, 3.2.2), and one that has no business on a wire.
STRANGE = {
    4: ["0.0.0.0", "127.0.0.1", "224.0.0.5", "240.0.0.1", "255.255.255.255"],
    6: ["::", "::1", "ff02::1", "::ffff:198.51.100.2"],
}
CLIENTS = {
    # The well-connected ones more often.
    v: [*netns.clients(v), *netns.clients(v)[1:3] * 3, ip_address(nowhere)]
    for v, nowhere in ((4, "172.31.9.9"), (6, "2001:db8:ffff::9"))
}


# --- worlds ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """A world, with slot tables as arrays; and the time that flows have not been seen."""

    world: World
    ages: dict[FlowKey, int]

    def at(self, now: int) -> World:
        """The world at a time, with its entries' times set."""
        conntrack, embryonic = (
            {key: replace(flow, seen=(now - self.ages[key]) % 2**32) for key, flow in flows.items()}
            for flows in (self.world.conntrack, self.world.embryonic)
        )
        bindings = {
            key: replace(binding, seen=(now - self.ages[key]) % 2**32)
            for key, binding in self.world.bindings.items()
        }
        translations = {
            back: replace(client, seen=(now - self.ages.get(client.flow, 0)) % 2**32)
            for back, client in self.world.translations.items()
        }
        return replace(
            self.world,
            conntrack=conntrack,
            embryonic=embryonic,
            bindings=bindings,
            translations=translations,
            now=now,
        )


@st.composite
def services(draw: st.DrawFn) -> dict[int, Service]:
    endpoints = draw(
        st.lists(
            st.tuples(
                st.sampled_from([*VIPS[4], *VIPS[6]]),
                st.sampled_from(VIP_PORTS),
                st.sampled_from([TCP_NUMBER, UDP_NUMBER]),
            ),
            min_size=1,
            max_size=MAX_SERVICES,
            unique=True,
        )
    )
    seed = (draw(st.integers(0, 2**64 - 1)), draw(st.integers(0, 2**64 - 1)))
    return {
        number: Service(
            seed,
            ip_address(vip),
            # 0 stands for RANGE; the other service of that address may have a port of its own in it.
            0 if port == VIP_PORTS[1] and draw(st.booleans()) else port,
            proto,
            draw(st.sampled_from([Mode(ONLY_MODE)] if ONLY_MODE else list(Mode))),
            draw(st.sampled_from(Affinity)),
            draw(st.sampled_from(Tracking)),
            draw(st.sampled_from(NoBackend)),
            quic_bytes=draw(st.sampled_from([0, 0, 1, 2, 8])) if proto == UDP_NUMBER else 0,
            quic_config=draw(st.sampled_from([0, 5])),
        )
        for number, (vip, port, proto) in enumerate(endpoints, 1)
    }


@st.composite
def backends(draw: st.DrawFn, version: int, mode: Mode) -> Backend:
    ifindex = draw(st.sampled_from([INGRESS, netns.B, netns.C, UNREACHED]))
    if mode in TUNNELS:
        version = draw(st.sampled_from([4, 6]))
    usable = draw(st.sampled_from([True] * 6 + [False]))
    return Backend(
        ip_address(draw(st.sampled_from(REALS[version]))),
        GUE_PORT if mode is Mode.GUE else draw(st.sampled_from(BACKEND_PORTS)),
        source=ip_address(draw(_sources(version))) if mode in (*TUNNELS, Mode.FULLNAT) else None,
        mtu=draw(st.sampled_from([0, 0, 9000, 1500, 1400, 700, 700, 300])),
        generation=draw(st.integers(1, 3)),
        usable=usable,
        resets=not usable and draw(st.booleans()),
        resolved=draw(st.sampled_from([True] * 5 + [False])),
        ifindex=ifindex,
        dmac=bytes([2, 0, 0, 0, 3, draw(st.integers(1, 9))]),
        # Told apart by it on the wire: a test run doesn't say where a frame was redirected to.
        smac=bytes([2, 0, 0, 0, 4, ifindex]),
    )


def _sources(version: int) -> st.SearchStrategy[str]:
    """Ours may be a VIP, too."""
    return st.sampled_from([SOURCES[version]] * 3 + [VIPS[version][0]])


IDENTIFICATIONS = [bytes(4), b"\1\2\0\0"]
SERVER_IDS = [0, 1, 7, 255]


def _piece(
    draw: st.DrawFn, number: int, service: Service, one: int, server: Backend
) -> tuple[FragmentKey, Fragment]:
    """The first piece of a datagram that came by: of a client's, or of an answer."""
    version, is_answer = service.vip.version, service.mode in TRANSLATIONS and draw(st.booleans())
    client = draw(st.sampled_from(CLIENTS[version]))
    ends = (client, service.vip)
    if is_answer:
        # A server of fullnat answers us.
        ends = (server.address, server.source or client)
    proto = 0 if version == 6 else service.proto
    key = FragmentKey(*ends, draw(st.sampled_from(IDENTIFICATIONS)), proto)
    return key, Fragment(
        service=draw(st.sampled_from([number] * 5 + [number % 2 + 1])),
        backend=one,
        generation=server.generation + draw(st.sampled_from([0] * 5 + [1])),
        mode=draw(st.sampled_from([service.mode] * 5 + [Mode.DSR])),
        address=client if is_answer else server.source if service.mode is Mode.FULLNAT else None,
        is_answer=is_answer,
        until=draw(st.sampled_from([CLOSED[0], *OPEN, *OPEN])),
    )


@cache
def slots_modulo(n: int) -> np.ndarray:
    return np.arange(65536) % n


# Nobody's clock stands there while a test runs: these windows are closed, those open.
CLOSED, OPEN = [1, 1000], [2**62, 2**63]


@st.composite
def memories(draw: st.DrawFn, origins: list[int]) -> Pasts:
    """The past of a service's slots: none, or that of many of them."""
    one = st.builds(Past, st.sampled_from(origins), st.sampled_from([*CLOSED, *OPEN, *OPEN]))
    return Pasts(tuple(draw(st.lists(st.none() | one, min_size=1, max_size=4))))


@st.composite
def some_rules(draw: st.DrawFn, version: int, tables: list[int]) -> dict[Network, Rule]:
    """For prefixes of all lengths around the clients: 63 is a table that nobody has."""
    one = st.builds(
        Rule,
        st.sampled_from(tables),
        st.sampled_from([*tables, 63]),
        st.sampled_from([0, *CLOSED, *OPEN, *OPEN]),
    )
    clients = st.sampled_from(CLIENTS[version])
    lengths = st.sampled_from([0, 1, 8, 24, 31, 32] if version == 4 else [0, 32, 64, 96, 128])
    prefixes = st.builds(lambda a, n: ip_network((a, n), strict=False), clients, lengths)
    return draw(st.dictionaries(prefixes, one, min_size=1, max_size=3))


STATES = [
    NatState(0),
    NatState.ANSWERED,
    NatState.FIN,
    NatState.RST,
    NatState.ANSWERED | NatState.FIN,
    NatState.OPENING,
    NatState.OPENING | NatState.RST,
]


def _bind(
    draw: st.DrawFn,
    key: FlowKey,
    backend: int,
    generation: int,
    service: Service,
    server: Backend,
    bindings: dict[FlowKey, Binding],
    translations: dict[Translated, Client],
) -> None:
    """A flow of mode fullnat, with its way back (most of the time)."""
    port = draw(st.sampled_from([1024, 2000, 32767]))
    states = draw(st.sampled_from(STATES)), draw(st.sampled_from(STATES))
    back = Translated(server.address, server.port or key.vip_port, server.source, port, service.proto)
    if back in translations:
        return
    bindings[key] = Binding(server.source, backend, generation, 0, port, states[0])
    translations[back] = Client(key, backend, 0, states[1])


def _taken(
    service: Service, client: Address, number: int, server: Backend
) -> Iterator[tuple[Translated, Client]]:
    """All the ports that new flows of a client could get at a server, in somebody else's hands."""
    other = FlowKey(client, MAX_SERVICES + 1, 1, 1)
    dport = service.port or RANGE_PORTS[0]
    for sport in CLIENT_PORTS:
        for port in fullnat.candidates(service.seed, client, sport, dport):
            back = Translated(server.address, server.port or dport, server.source, port, service.proto)
            yield back, Client(other, number, 0)


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    """Services, each with up to three backends, and some conntrack entries."""
    by_id: dict[int, Backend] = {}
    tables: dict[int, np.ndarray] = {}
    nat_back: dict[Endpoint, NatBack] = {}
    pasts: dict[int, Pasts] = {}
    rules: dict[int, dict[Network, Rule]] = {}
    conntrack: dict[FlowKey, Flow] = {}
    embryonic: dict[FlowKey, Flow] = {}
    senders: dict[Address, Sender] = {}
    ages: dict[FlowKey, int] = {}
    bindings: dict[FlowKey, Binding] = {}
    translations: dict[Translated, Client] = {}
    fragments: dict[FragmentKey, Fragment] = {}
    quic: dict[tuple[int, int], int] = {}
    served = draw(services())
    for number, service in served.items():
        own = draw(st.lists(backends(service.vip.version, service.mode), min_size=1, max_size=3))
        ids = range(len(by_id) + 1, len(by_id) + 1 + len(own))
        by_id.update(zip(ids, own, strict=True))
        for one, backend in zip(ids, own, strict=True):
            where = Endpoint(backend.address, backend.port or service.port, service.proto)
            if service.mode in TRANSLATIONS:
                nat_back.setdefault(where, NatBack(number, one))
        # Some slots are empty, some name an id that nobody has.
        pattern = draw(st.lists(st.sampled_from([*ids] * 4 + [0, 63]), min_size=0, max_size=6))
        # An empty list: a table without any backend.
        tables[number] = np.array(pattern or [0], dtype=np.uint32)[slots_modulo(len(pattern) or 1)]
        pasts[number] = draw(memories([*ids, *ids, 0, 63]))
        if draw(st.sampled_from([True, False, False])):
            other = number + MAX_SERVICES
            tables[other] = draw(st.sampled_from([tables[number], np.flip(tables[number])]))
            pasts[other] = draw(memories([*ids, *ids, 0, 63]))
            rules[number] = draw(some_rules(service.vip.version, [number, other, other]))
        if draw(st.booleans()):
            one = draw(st.sampled_from([*ids]))
            fragments.update([_piece(draw, number, service, one, by_id[one])])
        if service.quic_bytes:
            for one in (*ids, 63):
                quic[number, draw(st.sampled_from(SERVER_IDS))] = one
        if service.mode is Mode.FULLNAT and draw(st.booleans()):
            for one in ids:
                for client in set(CLIENTS[service.vip.version]):
                    translations.update(_taken(service, client, one, by_id[one]))
        for _ in range(draw(st.integers(0, 3))):
            key = FlowKey(
                draw(st.sampled_from(CLIENTS[service.vip.version])),
                number,
                draw(st.sampled_from(CLIENT_PORTS)),
                service.port or draw(st.sampled_from(RANGE_PORTS)),
            )
            target = draw(st.sampled_from([*ids, *ids, 63]))
            generation = by_id[target].generation if target in by_id else 1
            if draw(st.sampled_from([False, False, True])):
                generation += 1  # the id has been given to somebody else since
            if service.mode is Mode.FULLNAT and target in by_id:
                _bind(draw, key, target, generation, service, by_id[target], bindings, translations)
                ages[key] = draw(st.sampled_from([0, 5, 5000]))
                continue
            where = draw(st.sampled_from([[conntrack], [embryonic], [conntrack, embryonic]]))
            for flows in where:
                flows[key] = Flow(target, generation, 0)
            ages[key] = draw(st.sampled_from([0, 5, 5000, 2**31]))
            if draw(st.sampled_from([True] * 5 + [False])):
                ifindex = draw(st.sampled_from([INGRESS, netns.B, netns.C, UNREACHED]))
                senders[key.client] = Sender(ifindex, bytes([2, 0, 0, 0, 5, len(senders)]))
    # Attached here; elsewhere only; or elsewhere under a number that shares this one's place.
    link = draw(st.sampled_from([INGRESS] * 30 + [netns.B, INGRESS + 4096]))
    world = World(
        ports={INGRESS: netns.C} if draw(st.sampled_from([False] * 6 + [True])) else {},
        links={link: OURS, netns.C: netns.MAC[netns.C], netns.LO: bytes(6)}
        | ({} if link == netns.B else {netns.B: netns.MAC[netns.B]}),
        vips={Endpoint(s.vip, s.port, s.proto): n for n, s in served.items() if s.port},
        ranges={Range(s.vip, *RANGE, s.proto): n for n, s in served.items() if not s.port},
        services=served,
        tables=tables,
        backends=by_id,
        nat_back=nat_back,
        pasts=pasts,
        rules=rules,
        conntrack=conntrack,
        embryonic=embryonic,
        senders=senders,
        bindings=bindings,
        translations=translations,
        fragments=fragments,
        quic=quic,
        may_send_errors=draw(st.sampled_from([True] * 9 + [False])),
        route=netns.route,
    )
    return Scene(world, ages)


# --- frames ---------------------------------------------------------------------------------------

TCP_FLAGS = ["S", "S", "A", "PA", "SA", "FA", "R", "RA", "F", "", "SF", "FSRPAUEC"]
TCP_OPTIONS = [[], [("MSS", 1460), ("NOP", None), ("WScale", 7), ("SAckOK", b"")]]
# Two that begin a connection, and some that are near it.
QUIC = [
    bytes.fromhex(head)
    for head in ("c300000001", "df6b3343cf", "d300000001", "c36b3343cf", "4300000001")
]
# A short header; Handshakes of versions 1 and 2, and of another; 0-RTT; something that is not QUIC.
QUIC_NAMING = [
    bytes.fromhex(head)
    for head in ("40", "40", "7f", "e00000000114", "ff6b3343cf09", "f00000000114", "d00000000114", "00")
]


def _cid(draw: st.DrawFn, rng: random.Random) -> bytes:
    """The begin of a QUIC connection ID that may name a server."""
    size = draw(st.sampled_from([1, 2, 8, 8]))
    first = draw(st.sampled_from([0, 5, 5, 7])) << 5 | rng.getrandbits(5)
    server = draw(st.sampled_from(SERVER_IDS)).to_bytes(size)
    return bytes([first]) + server + rng.randbytes(draw(st.sampled_from([0, 7, 30])))


EXTENSIONS = {
    "hop": IPv6ExtHdrHopByHop,
    "dest": IPv6ExtHdrDestOpt,
    "routed": lambda: IPv6ExtHdrRouting(segleft=0, addresses=["2001:db8::99"]),
    "routing": lambda: IPv6ExtHdrRouting(addresses=["2001:db8::99"]),
}
IP_OPTIONS = {
    "nop": IPOption_NOP,
    "rr": lambda: IPOption_RR(pointer=4, routers=["0.0.0.0"] * 3),
    "time": IPOption_Timestamp,
}
FRAGMENTS = {"first": (0, 1), "middle": (185, 1), "last": (185, 0), "atomic": (0, 0)}


@dataclass(frozen=True)
class Way:
    """Who sends to whom."""

    source: Address
    sport: int
    destination: Address
    dport: int
    proto: int
    is_answer: bool = False  # of a server
    piece: bytes = b""  # identification of a datagram of which this is a later piece
    cid: bytes = b""  # the begin of a connection ID that names a server


KINDS = ["service"] * 8 + ["known"] * 6 + ["reply"] * 5 + ["piece", "named", "other port", "stranger"]


def _draw_way(draw: st.DrawFn, world: World) -> Way:
    """Mostly from a client to a service or from a backend to a client."""
    kind = draw(st.sampled_from(KINDS))
    if kind == "piece" and world.fragments:
        piece = draw(st.sampled_from(list(world.fragments)))
        return Way(piece.source, 0, piece.destination, 0, piece.proto or 6, piece=piece.identification)
    if kind == "named" and world.quic:
        number, server_id = draw(st.sampled_from(list(world.quic)))
        service = world.services[number]
        client = draw(st.sampled_from(CLIENTS[service.vip.version]))
        size = service.quic_bytes
        cid = bytes([service.quic_config << 5]) + server_id.to_bytes(size) + bytes(8 - size)
        return Way(client, 4000, service.vip, service.port or RANGE_PORTS[0], service.proto, cid=cid)
    if kind == "reply" and world.translations and draw(st.booleans()):
        back = draw(st.sampled_from(list(world.translations)))
        return Way(back.backend, back.backend_port, back.source, back.port, back.proto, is_answer=True)
    if kind == "reply" and world.nat_back:
        where = draw(st.sampled_from(list(world.nat_back)))
        nat = world.nat_back[where]
        known = [k for k in (*world.conntrack, *world.embryonic) if k.service == nat.service]
        if known and draw(st.sampled_from([True] * 5 + [False])):
            key = draw(st.sampled_from(known))
            client, port = key.client, key.client_port
        else:
            client = draw(st.sampled_from(CLIENTS[where.address.version]))
            port = draw(st.sampled_from(CLIENT_PORTS))
        sport = where.port or draw(st.sampled_from([*RANGE_PORTS, 82]))
        return Way(where.address, sport, client, port, where.proto, is_answer=True)
    if kind == "known" and (world.conntrack or world.embryonic or world.bindings):
        key = draw(st.sampled_from([*world.conntrack, *world.embryonic, *world.bindings]))
        service = world.services[key.service]
        return Way(key.client, key.client_port, service.vip, key.vip_port, service.proto)
    service = draw(st.sampled_from(list(world.services.values())))
    version = service.vip.version
    source = draw(st.sampled_from(CLIENTS[version]))
    destination, dport = service.vip, service.port or draw(st.sampled_from(RANGE_PORTS))
    if kind == "other port":
        dport = draw(st.sampled_from([0, 49, 82, 81, *VIP_PORTS]))
    elif kind == "stranger":
        source = ip_address(draw(st.sampled_from(STRANGE[version])))
        destination = draw(st.sampled_from([destination, destination, ip_address(NOT_VIPS[version])]))
    proto = service.proto
    return Way(source, draw(st.sampled_from(CLIENT_PORTS)), destination, dport, proto)


def _transport(draw: st.DrawFn, way: Way, rng: random.Random) -> Packet:
    """What the IP packet carries: mostly TCP or UDP, as the way says."""
    version = way.destination.version
    payload = rng.randbytes(draw(st.sampled_from([0, 0, 1, 6, 17, 64, 700, 1360])))
    if way.proto == UDP_NUMBER and draw(st.sampled_from([False] * 3 + [True])):
        payload = draw(st.sampled_from(QUIC)) + rng.randbytes(draw(st.sampled_from([1194, 1195, 1300])))
    elif way.proto == UDP_NUMBER and (way.cid or draw(st.sampled_from([False, False, True]))):
        payload = draw(st.sampled_from(QUIC_NAMING)) + (way.cid or _cid(draw, rng))
    kind = draw(
        st.sampled_from(
            ["flow"] * 14 + ["echo", "icmp", "other"] + ["error"] * (20 if way.is_answer else 3)
        )
    )
    if kind == "error":
        return _error(draw, way, rng)
    if kind == "flow" and way.proto == TCP_NUMBER:
        return (
            TCP(
                sport=way.sport,
                dport=way.dport,
                flags=draw(st.sampled_from(TCP_FLAGS)),
                seq=draw(st.sampled_from([rng.getrandbits(32), 2**32 - 1])),
                ack=rng.getrandbits(32),
                window=rng.getrandbits(16),
                options=draw(st.sampled_from(TCP_OPTIONS)),
            )
            / payload
        )
    if kind == "flow":
        none = {"chksum": 0} if draw(st.sampled_from([False] * 5 + [True])) else {}
        return UDP(sport=way.sport, dport=way.dport, **none) / payload
    if kind == "echo":
        if version == 6:
            return ICMPv6EchoRequest(id=rng.getrandbits(16), seq=7, data=payload)
        return ICMP(id=rng.getrandbits(16), seq=7) / payload
    if kind == "icmp" and version == 6:
        return draw(st.sampled_from([ICMPv6ND_NS(), ICMPv6PacketTooBig() / payload]))
    if kind == "icmp":
        return ICMP(type=draw(st.sampled_from([0, 3, 13])), code=1) / payload
    return Raw(payload)  # a protocol that nobody knows


def _error(draw: st.DrawFn, way: Way, rng: random.Random) -> Packet:
    """An ICMP error about a packet of the way's other direction: so that its own destination is where
    that one came from. Sometimes it is about something else."""
    version = way.destination.version
    source, destination = way.source, way.destination
    if draw(st.sampled_from([False] * 6 + [True])):
        destination = ip_address(draw(st.sampled_from([*VIPS[version], *REALS[version]])))
    layer = TCP if way.proto == TCP_NUMBER else UDP
    segment: Packet = layer(sport=way.dport, dport=way.sport) / rng.randbytes(40)
    quote: Packet
    if version == 6:
        quote = IPv6(src=str(destination), dst=str(source), hlim=7)
        for offset in draw(st.sampled_from([[]] * 6 + [[0], [0], [7]])):
            quote /= IPv6ExtHdrFragment(offset=offset, m=draw(st.booleans()), id=9)
        quote /= segment
        error = draw(
            st.sampled_from(
                [ICMPv6PacketTooBig(mtu=1280), ICMPv6DestUnreach(code=4), ICMPv6TimeExceeded()]
            )
        )
    else:
        options = draw(st.sampled_from([[]] * 3 + [["nop"]]))
        quote = (
            IP(
                src=str(destination),
                dst=str(source),
                frag=draw(st.sampled_from([0] * 6 + [7])),
                options=[IP_OPTIONS[name]() for name in options],
            )
            / segment
        )
        kind, code = draw(st.sampled_from([(3, 4), (3, 3), (11, 0), (12, 0), (5, 0)]))
        error = ICMP(type=kind, code=code)
    # As much as is left of it in the error: the least, or more.
    whole = bytes(quote)
    header = len(whole) - len(segment) if version == 6 else (whole[0] & 15) * 4
    return error / whole[: header + draw(st.sampled_from([8, 8, 20, 60, 4, -4]))]


def _fragment(draw: st.DrawFn, way: Way) -> tuple[str | None, bytes]:
    """Which piece of a datagram it is (mostly none), and what identifies that."""
    if way.piece:
        return draw(st.sampled_from(["middle", "last"])), way.piece
    fragment = draw(st.sampled_from([None] * 12 + list(FRAGMENTS)))
    return fragment, draw(st.sampled_from(IDENTIFICATIONS))


def _ipv4(draw: st.DrawFn, way: Way, inner: Packet, rng: random.Random) -> Packet:
    options = draw(st.sampled_from([[]] * 4 + [["nop"], ["rr"], ["rr", "nop", "time"]]))
    fragment, cut = _fragment(draw, way)
    offset, more = FRAGMENTS[fragment] if fragment else (0, 0)
    identification = int.from_bytes(cut[:2]) if fragment else rng.getrandbits(16)
    proto = {"proto": 253} if isinstance(inner, Raw) else {}  # RFC 3692: for experiments
    return (
        IP(
            src=str(way.source),
            dst=str(way.destination),
            id=identification,
            tos=rng.getrandbits(8),
            ttl=draw(TTLS),
            frag=offset,
            flags="MF" if more else draw(st.sampled_from(["", "DF"])),
            options=[IP_OPTIONS[name]() for name in options],
            **proto,
        )
        / inner
    )


def _ipv6(draw: st.DrawFn, way: Way, inner: Packet, rng: random.Random) -> Packet:
    names = draw(
        st.sampled_from(
            [[]] * 8
            + [[name] for name in EXTENSIONS]
            + [["hop", "dest"], ["hop", "routed", "dest"], ["dest"] * 6, ["dest"] * 7]
        )
    )
    fragment, cut = _fragment(draw, way)
    packet: Packet = IPv6(
        src=str(way.source),
        dst=str(way.destination),
        tc=rng.getrandbits(8),
        fl=rng.getrandbits(20),
        hlim=draw(TTLS),
    )
    for name in names:
        packet /= EXTENSIONS[name]()
    if fragment:
        offset, more = FRAGMENTS[fragment]
        packet /= IPv6ExtHdrFragment(offset=offset, m=more, id=int.from_bytes(cut))
    if isinstance(inner, Raw):
        packet.lastlayer().nh = 253
    return packet / inner


TTLS = st.sampled_from([64] * 8 + [255, 2, 1, 0])


@st.composite
def whole_frames(draw: st.DrawFn, world: World) -> bytes:
    """A frame whose lengths and checksums are right."""
    rng = random.Random(draw(st.integers(0, 2**32 - 1)))
    way = _draw_way(draw, world)
    inner = _transport(draw, way, rng)
    build = _ipv4 if isinstance(way.destination, IPv4Address) else _ipv6
    packet = build(draw, way, inner, rng)
    if draw(st.sampled_from([False] * 40 + [True])):
        packet = ARP(pdst=str(VIPS[4][0]))
    tags = draw(st.sampled_from([()] * 20 + [(Dot1Q,)] * 5 + [(Dot1AD, Dot1Q)] * 3 + [(Dot1Q,) * 3]))
    # Somebody else's frame, flooded by a switch; or to all.
    dst = draw(st.sampled_from([OURS] * 60 + [PEER, b"\xff" * 6]))
    frame: Packet = Ether(src=PEER.hex(":"), dst=dst.hex(":"))
    for tag in tags:
        frame /= tag(vlan=rng.randrange(1, 4095), prio=rng.randrange(8))
    return bytes(frame / packet)


@st.composite
def frames(draw: st.DrawFn, world: World) -> bytes:
    """A frame, in a third of the cases padded, cut short or damaged."""
    frame = draw(whole_frames(world))
    damage = draw(st.sampled_from(["none"] * 8 + ["pad", "cut", "shorten", "flip"]))
    if damage == "pad":
        return frame + bytes(draw(st.sampled_from([1, 6, 18, 46])))
    if damage == "cut":
        # Below 15 bytes a test run refuses the frame itself.
        return frame[: draw(st.integers(15, max(15, len(frame) - 1)))]
    if damage == "shorten":
        # The IP header's length says that some of what it carries is padding.
        at = _addresses(frame)[0] + (-4 if len(_addresses(frame)) == 32 else -10)
        return frame[:at] + draw(st.integers(0, 80)).to_bytes(2) + frame[at + 2 :]
    if damage == "flip":
        damaged = bytearray(frame)
        for _ in range(draw(st.integers(1, 4))):
            # Headers are where it hurts.
            at = draw(st.integers(12, min(len(frame), 110) - 1))
            damaged[at] = draw(st.integers(0, 255))
        return bytes(damaged)
    return frame


def damaged_copies(frame: bytes, copies: int) -> list[bytes]:
    """The frame with some header bytes overwritten; always the same ones for the same frame. They
    cost much less than drawn frames do.
    """
    rng = random.Random(zlib.crc32(frame))
    # With another Ethernet type it would never be read.
    places = range(14, min(len(frame), 110))
    # With another address it would be somebody else's: rarely.
    telling = [at for at in places if at not in _addresses(frame)] or places
    found = []
    for _ in range(copies):
        damaged = bytearray(frame)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.choice(places if rng.random() < 0.1 else telling)] = rng.choice(BYTES)
        found.append(bytes(damaged))
    return found


def _addresses(frame: bytes) -> range:
    """Where the IP addresses stand."""
    l3 = 14
    while frame[l3 - 2 : l3] in (b"\x81\0", b"\x88\xa8"):
        l3 += 4
    return range(l3 + 8, l3 + 40) if frame[l3 - 2 : l3] == b"\x86\xdd" else range(l3 + 12, l3 + 20)


# Interesting as lengths, protocols, versions; and some others.
BYTES = [0, 1, 4, 6, 17, 20, 28, 40, 44, 58, 0x45, 0x46, 0x60, 0xFF, *range(0, 256, 8)]


@st.composite
def encounters(draw: st.DrawFn) -> tuple[Scene, list[bytes]]:
    """A scene, and the frames that arrive in it one after the other."""
    scene = draw(scenes())
    return scene, draw(st.lists(frames(scene.world), min_size=12, max_size=30))


assert UNREACHED not in netns.LINKS.values()
assert len(harness.BACKENDS) >= 63
