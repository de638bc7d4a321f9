"""The reference model of the data path, held against scapy: scapy builds what goes in, and takes
apart (checksums included) what comes out.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.config import conf
from scapy.layers.inet import ICMP, IP, TCP, UDP, ICMPerror, IPerror, IPOption_RR, TCPerror, UDPerror
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    IPerror6,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from lb.core import flowhash
from lb.core.reference import (
    Backend,
    Endpoint,
    Flow,
    FlowKey,
    NatBack,
    NatState,
    Outcome,
    Past,
    Result,
    Route,
    RouteQuery,
    RouteResult,
    Sender,
    Service,
    Stats,
    Verdict,
    World,
    fullnat,
    process,
)
from lb.core.reference.checksum import checksum, update
from lb.model.objects import TRANSLATIONS, TUNNELS, Affinity, Mode, NoBackend, Tracking

OURS = "02:00:00:00:00:01"
GATEWAY = "02:00:00:00:00:fe"
SERVER = "02:00:00:00:00:b1"
EGRESS = "02:00:00:00:00:e1"
IN, OUT = 10, 20  # interfaces
TCP_ID, UDP_ID, TCP6_ID, UDP6_ID = 1, 2, 3, 4  # services
B, B6, OLD = 7, 8, 9  # backends

VIP, VIP6 = "10.0.0.1", "2001:db8::1"
CLIENT, CLIENT6 = "198.51.100.7", "2001:db8:c::7"
REAL, REAL6 = "10.1.0.9", "2001:db8:b::9"
SOURCE, SOURCE6 = "10.1.0.1", "2001:db8:b::1"


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def make_world(**policy: object) -> World:
    """Four services (TCP and UDP, IPv4 and IPv6) on two VIPs, a backend of each family."""
    policy = {"tracking": Tracking.NEVER, **policy}
    port = 8080 if policy.get("mode") in TRANSLATIONS else 0
    out = {"ifindex": OUT, "dmac": mac(SERVER), "smac": mac(EGRESS)}
    services = {
        number: Service((1, 2), ip_address(vip), 80, proto, **policy)  # type: ignore[arg-type]
        for number, vip, proto in (
            (TCP_ID, VIP, 6),
            (UDP_ID, VIP, 17),
            (TCP6_ID, VIP6, 6),
            (UDP6_ID, VIP6, 17),
        )
    }
    backends = {
        B: Backend(ip_address(REAL), port, source=ip_address(SOURCE), **out),  # type: ignore[arg-type]
        B6: Backend(ip_address(REAL6), port, source=ip_address(SOURCE6), **out),  # type: ignore[arg-type]
    }
    return World(
        links={IN: mac(OURS)},
        vips={Endpoint(s.vip, s.port, s.proto): n for n, s in services.items()},
        services=services,
        tables={n: [B if s.vip.version == 4 else B6] * 65536 for n, s in services.items()},
        backends=backends,
        nat_back={
            Endpoint(backends[b].address, port or 80, services[n].proto): NatBack(n, b)
            for n, b in ((TCP_ID, B), (UDP_ID, B), (TCP6_ID, B6), (UDP6_ID, B6))
        },
        route=lambda _query: RouteResult(Route.NEIGHBOUR, OUT, mac(GATEWAY), mac(EGRESS)),
    )


def empty(world: World) -> World:
    """The same, with no backend in any slot."""
    return replace(world, tables={n: [0] * 65536 for n in world.tables})


def ether() -> Packet:
    return Ether(src=GATEWAY, dst=OURS)


def to_vip(l4: Packet, *, ipv6: bool, **ip: object) -> Packet:
    if ipv6:
        return ether() / IPv6(src=CLIENT6, dst=VIP6, **ip) / l4
    return ether() / IP(src=CLIENT, dst=VIP, **ip) / l4


def run(packet: Packet, world: World):
    return process(bytes(packet), IN, world)


def dissect(frame: bytes) -> Packet:
    """The frame as scapy reads it, after proving that scapy would have computed all its checksums
    and lengths alike.
    """
    packet = Ether(frame)
    again = packet.copy()
    layer = again
    while layer:
        # Not what is quoted in an ICMP error: its checksum is about a packet that isn't whole here.
        if isinstance(layer, IPerror | IPerror6):
            break
        for name in ("chksum", "cksum", "len", "plen", "ihl", "dataofs"):
            if name in layer.fields:
                delattr(layer, name)
        layer = layer.payload
    assert bytes(again) == frame
    return packet


BOTH = pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])


# --- checksums ------------------------------------------------------------------------------------


@given(st.binary(max_size=200))
def test_checksum_is_scapys(data: bytes) -> None:
    from scapy.utils import checksum as scapys

    assert checksum(data) == scapys(data)


@given(st.binary(min_size=40, max_size=40), st.integers(0, 8), st.binary(min_size=8, max_size=8))
def test_updated_checksum_equals_a_computed_one(data: bytes, word: int, new: bytes) -> None:
    # One word more that never changes keeps the sum from being zero, as a version field does.
    data = b"\x45\x00" + data
    at = 2 + 2 * word
    changed = data[:at] + new + data[at + 8 :]
    assert update(checksum(data), data[at : at + 8], new) == checksum(changed)


# --- the flow hash --------------------------------------------------------------------------------


def test_mix_is_splitmix64() -> None:
    # First outputs of java.util.SplittableRandom / Vigna's splitmix64.c with seed 1234567.
    golden = 0x9E3779B97F4A7C15
    states = [(1234567 + (i + 1) * golden) % 2**64 for i in range(3)]
    assert [flowhash.mix(s) for s in states] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


@given(
    st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)),
    st.lists(st.ip_addresses(v=6), min_size=1, max_size=5),
    st.integers(0, 65535),
    st.integers(0, 65535),
    st.sampled_from(Affinity),
)
def test_vectorised_slots_are_the_same(seed, clients, sport, dport, affinity) -> None:
    import numpy as np

    v6 = np.array([[int(c) >> 64, int(c) % 2**64] for c in clients], dtype=np.uint64)
    sports, dports = np.full(len(clients), sport), np.full(len(clients), dport)
    assert flowhash.slots(seed, v6, sports, dports, affinity).tolist() == [
        flowhash.slot(seed, c, sport, dport, affinity) for c in clients
    ]
    v4_clients = [ip_address(int(c) % 2**32) for c in clients]
    v4 = np.array([int(c) for c in v4_clients], dtype=np.uint64)
    assert flowhash.slots(seed, v4, sports, dports, affinity).tolist() == [
        flowhash.slot(seed, c, sport, dport, affinity) for c in v4_clients
    ]


def test_slots_are_even() -> None:
    import numpy as np

    n = 1 << 20
    ports = np.arange(n) % 60000
    clients = (0x0A000000 + np.arange(n) // 60000).astype(np.uint64)
    counts = np.bincount(
        flowhash.slots((3, 4), clients, ports, np.full(n, 80), Affinity.FLOW) >> 8, minlength=256
    )
    # Chi-square with 255 degrees of freedom: mean 255, standard deviation 22.6.
    chi2 = float((((counts - n / 256) ** 2) / (n / 256)).sum())
    assert 255 - 6 * 22.6 < chi2 < 255 + 6 * 22.6


def test_client_affinity_ignores_ports() -> None:
    a = ip_address(CLIENT)
    by_client = {flowhash.slot((5, 6), a, p, 80, Affinity.CLIENT) for p in range(50)}
    by_flow = {flowhash.slot((5, 6), a, p, 80, Affinity.FLOW) for p in range(50)}
    assert len(by_client) == 1
    assert len(by_flow) > 40


def test_seed_text() -> None:
    assert flowhash.parse_seed("0123456789abcdef" + "f" * 16) == (0x0123456789ABCDEF, 2**64 - 1)


# --- forwarding -----------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("l4", [TCP(sport=4000, dport=80), UDP(sport=4000, dport=80)])
def test_dsr_changes_macs_and_ttl_only(ipv6: bool, l4: Packet) -> None:
    sent = to_vip(l4 / b"payload", ipv6=ipv6)
    result = run(sent, make_world())
    assert (result.verdict, result.outcome) == (Verdict.REDIRECT, Outcome.FORWARD_REDIRECT)
    assert result.ifindex == OUT
    got = dissect(result.frame)
    assert (got.dst, got.src) == (SERVER, EGRESS)
    wanted = Ether(bytes(sent))
    wanted.dst, wanted.src = SERVER, EGRESS
    if ipv6:
        wanted[IPv6].hlim -= 1
    else:
        wanted[IP].ttl -= 1
        del wanted[IP].chksum
    assert result.frame == bytes(wanted)


@BOTH
@pytest.mark.parametrize("proto", [TCP, UDP])
def test_nat_translates_and_keeps_checksums_valid(ipv6: bool, proto: type[Packet]) -> None:
    sent = to_vip(proto(sport=4000, dport=80) / b"odd", ipv6=ipv6)
    got = dissect(run(sent, make_world(mode=Mode.NAT)).frame)
    ip = got[IPv6 if ipv6 else IP]
    assert (ip.src, ip.dst) == ((CLIENT6, REAL6) if ipv6 else (CLIENT, REAL))
    assert (got[proto].sport, got[proto].dport) == (4000, 8080)
    assert bytes(got[proto].payload) == b"odd"


@BOTH
@pytest.mark.parametrize("proto", [TCP, UDP])
def test_nat_reply_comes_from_the_vip(ipv6: bool, proto: type[Packet]) -> None:
    ip = IPv6(src=REAL6, dst=CLIENT6) if ipv6 else IP(src=REAL, dst=CLIENT, options=[IPOption_RR()])
    sent = ether() / ip / proto(sport=8080, dport=4000) / b"answer"
    result = run(sent, make_world(mode=Mode.NAT))
    assert (result.verdict, result.outcome) == (Verdict.REDIRECT, Outcome.REPLY_REDIRECT)
    got = dissect(result.frame)
    assert (got.dst, got.src) == (GATEWAY, EGRESS)
    ip = got[IPv6 if ipv6 else IP]
    assert (ip.src, ip.dst) == ((VIP6, CLIENT6) if ipv6 else (VIP, CLIENT))
    assert (got[proto].sport, got[proto].dport) == (80, 4000)
    number = {(TCP, False): TCP_ID, (UDP, False): UDP_ID, (TCP, True): TCP6_ID, (UDP, True): UDP6_ID}
    stats = Stats(reply_packets=1, reply_bytes=len(bytes(sent)))
    assert result.service == (number[proto, ipv6], stats)
    assert result.backend == (B6 if ipv6 else B, stats)


def test_nat_leaves_udp_without_checksum_alone() -> None:
    sent = to_vip(UDP(sport=4000, dport=80, chksum=0) / b"x", ipv6=False)
    got = Ether(run(sent, make_world(mode=Mode.NAT)).frame)
    assert got[UDP].chksum == 0
    assert (got[IP].dst, got[UDP].dport) == (REAL, 8080)


def test_udp_checksum_that_becomes_zero_is_sent_as_ones() -> None:
    # Two bytes of payload are chosen so that the translated checksum computes to zero.
    world = make_world(mode=Mode.NAT)
    probe = ether() / IP(src=CLIENT, dst=REAL) / UDP(sport=4000, dport=8080) / b"\0\0"
    filler = Ether(bytes(probe))[UDP].chksum.to_bytes(2, "big")
    got = Ether(run(to_vip(UDP(sport=4000, dport=80) / filler, ipv6=False), world).frame)
    assert got[UDP].chksum == 0xFFFF


def test_wrong_checksums_stay_wrong() -> None:
    sent = to_vip(TCP(sport=4000, dport=80, chksum=0x1234), ipv6=False)
    got = Ether(run(sent, make_world(mode=Mode.NAT)).frame)
    received = got[TCP].chksum
    del got[TCP].chksum
    assert Ether(bytes(got))[TCP].chksum != received


@BOTH
def test_vlan_tags_go_also_where_the_frame_stays_on_the_link(ipv6: bool) -> None:
    inner = to_vip(TCP(dport=80), ipv6=ipv6).payload
    sent = ether() / Dot1AD(vlan=5) / Dot1Q(vlan=6) / inner
    world = make_world()
    got = dissect(run(sent, world).frame)
    assert not got.haslayer(Dot1Q)
    assert not got.haslayer(Dot1AD)

    number = B6 if ipv6 else B
    same_link = replace(world.backends[number], ifindex=IN)
    result = run(sent, replace(world, backends={number: same_link}))
    assert (result.verdict, result.outcome) == (Verdict.TX, Outcome.FORWARD_TX)
    got = dissect(result.frame)
    assert not got.haslayer(Dot1Q)
    assert not got.haslayer(Dot1AD)


@BOTH
@pytest.mark.parametrize("mode", list(Mode))
def test_unresolved_backends_are_for_the_kernel_where_it_can_help(ipv6: bool, mode: Mode) -> None:
    world = make_world(mode=mode)
    world = replace(world, backends={n: replace(b, resolved=False) for n, b in world.backends.items()})
    sent = to_vip(TCP(dport=80), ipv6=ipv6)
    result = run(sent, world)
    if mode not in TRANSLATIONS:
        assert (result.verdict, result.outcome) == (Verdict.DROP, Outcome.DROP_UNRESOLVED)
        return
    assert (result.verdict, result.outcome) == (Verdict.PASS, Outcome.PASS_UNRESOLVED)
    got = dissect(result.frame)
    assert got[IPv6 if ipv6 else IP].dst == (REAL6 if ipv6 else REAL)
    # The hop is the kernel's to take.
    assert (got[IPv6].hlim if ipv6 else got[IP].ttl) == 64


@BOTH
@pytest.mark.parametrize(
    ("ttl", "outcome"),
    [(0, Outcome.DROP_TTL), (1, Outcome.DROP_TTL), (2, Outcome.FORWARD_REDIRECT)],
)
def test_a_used_up_ttl_is_dropped(ipv6: bool, ttl: int, outcome: Outcome) -> None:
    ip = {"hlim": ttl} if ipv6 else {"ttl": ttl}
    assert run(to_vip(TCP(dport=80), ipv6=ipv6, **ip), make_world()).outcome is outcome


def test_wrong_owner_or_link_is_not_ours() -> None:
    sent = to_vip(TCP(dport=80), ipv6=False)
    other_mac = bytes(sent).replace(mac(OURS), mac(SERVER))
    assert process(other_mac, IN, make_world()).outcome is Outcome.PASS_NOT_OURS
    assert process(bytes(sent), OUT, make_world()).outcome is Outcome.PASS_NOT_OURS
    assert process(bytes(sent), IN, make_world()).outcome is Outcome.FORWARD_REDIRECT


# --- flows that are remembered ----------------------------------------------------------------------

NOW, CLOCK = 1000, 5_000
MOVED, SETTLED = Past(OLD, CLOCK + 1), Past(OLD, CLOCK)


def tracked_world(
    tracking: Tracking = Tracking.ALWAYS, past: Past | None = None, down: int = 0
) -> World:
    """All slots name B; they may have been OLD's."""
    world = make_world(tracking=tracking)
    second = replace(world.backends[B], generation=3)
    backends = {**world.backends, OLD: second}
    if down:
        backends[down] = replace(backends[down], usable=False)
    pasts = {n: dict.fromkeys(range(65536), past) for n in (TCP_ID, UDP_ID) if past}
    return replace(world, backends=backends, pasts=pasts, now=NOW, clock=CLOCK)


def key(service: int = TCP_ID) -> FlowKey:
    return FlowKey(ip_address(CLIENT), service, 4000, 80)


def segment(flags: str) -> Packet:
    return to_vip(TCP(sport=4000, dport=80, flags=flags), ipv6=False)


def datagram(payload: bytes = b"?") -> Packet:
    return to_vip(UDP(sport=4000, dport=80) / payload, ipv6=False)


INITIAL = bytes.fromhex("c300000001") + bytes(1195)


def test_a_new_flow_gets_an_entry() -> None:
    result = run(segment("S"), tracked_world())
    assert (result.conntrack, result.embryonic) == ({}, {key(): Flow(B, 1, NOW)})
    assert result.service == (TCP_ID, Stats(packets=1, bytes=54, flows=1))
    assert result.backend == (B, Stats(packets=1, bytes=54, flows=1))
    # In the middle of a connection that somebody else has seen begin.
    result = run(segment("A"), tracked_world())
    assert (result.conntrack, result.embryonic) == ({key(): Flow(B, 1, NOW)}, {})
    assert result.backend == (B, Stats(packets=1, bytes=54))
    # A datagram may be the only one of its flow.
    result = run(datagram(), tracked_world())
    assert (result.conntrack, result.embryonic) == ({}, {key(UDP_ID): Flow(B, 1, NOW)})


@pytest.mark.parametrize("tracking", [Tracking.ALWAYS, Tracking.MOVING])
@pytest.mark.parametrize(
    ("flags", "entry", "backend"),
    [
        ("A", Flow(OLD, 3, 900), OLD),  # goes on where it went
        ("SA", Flow(OLD, 3, 900), OLD),  # not the start of a connection
        ("S", Flow(OLD, 3, 900), B),  # a new connection on old ports
        ("A", Flow(OLD, 2, 900), B),  # the id is somebody else's now
        ("A", Flow(77, 1, 900), B),  # the backend is gone
    ],
)
def test_flows_that_have_got_further(tracking: Tracking, flags: str, entry: Flow, backend: int) -> None:
    world = replace(tracked_world(tracking, Past(0, CLOCK + 1)), conntrack={key(): entry})
    result = run(segment(flags), world)
    assert result.backend is not None
    assert result.backend[0] == backend
    assert result.backend[1].flows == int(flags == "S")
    if flags == "S":
        assert (result.conntrack, result.embryonic) == ({key(): None}, {key(): Flow(B, 1, NOW)})
    else:
        generation = world.backends[backend].generation
        seen = 900 if backend == OLD else NOW
        assert (result.conntrack, result.embryonic) == ({key(): Flow(backend, generation, seen)}, {})


@pytest.mark.parametrize("tracking", [Tracking.ALWAYS, Tracking.MOVING])
def test_flows_that_have_only_begun(tracking: Tracking) -> None:
    world = tracked_world(tracking, Past(B, CLOCK + 1))
    world = replace(world, embryonic={key(): Flow(OLD, 3, 900)})
    again = run(segment("S"), world)
    assert (again.conntrack, again.embryonic) == ({}, {key(): Flow(OLD, 3, 900)})
    further = run(segment("A"), world)
    assert (further.conntrack, further.embryonic) == ({key(): Flow(OLD, 3, NOW)}, {key(): None})
    for result in (again, further):
        assert result.backend is not None
        assert (result.backend[0], result.backend[1].flows) == (OLD, 0)
    gone = replace(world, embryonic={key(): Flow(OLD, 2, 900)})
    placed = run(segment("A"), gone)
    assert (placed.conntrack, placed.embryonic) == ({key(): Flow(B, 1, NOW)}, {key(): None})


def test_a_known_flow_whose_backend_is_down_is_placed_anew() -> None:
    world = replace(tracked_world(down=OLD), conntrack={key(): Flow(OLD, 3, 900)})
    assert run(segment("A"), world).conntrack == {key(): Flow(B, 1, NOW)}
    # A datagram's, too: it isn't the first, so the new entry isn't among those that have only begun.
    world = replace(world, conntrack={key(UDP_ID): Flow(OLD, 3, 900)})
    result = run(datagram(), world)
    assert (result.conntrack, result.embryonic) == ({key(UDP_ID): Flow(B, 1, NOW)}, {})


@pytest.mark.parametrize(
    ("past", "packet", "backend", "where"),
    [
        (None, segment("S"), B, None),
        (None, segment("A"), B, None),
        (None, datagram(), B, None),
        (MOVED, segment("S"), B, "embryonic"),
        (MOVED, segment("A"), OLD, "conntrack"),  # older than the move
        (MOVED, datagram(), OLD, "conntrack"),
        (MOVED, datagram(INITIAL), B, "embryonic"),
        (MOVED, datagram(INITIAL[:-1]), OLD, "conntrack"),  # too short for one
        (SETTLED, segment("S"), B, None),
        (SETTLED, segment("A"), B, None),
        (SETTLED, datagram(), B, None),
    ],
)
def test_state_only_while_something_moves(
    past: Past | None, packet: Packet, backend: int, where: str | None
) -> None:
    world = tracked_world(Tracking.MOVING, past)
    result = run(packet, world)
    assert result.backend is not None
    assert result.backend[0] == backend
    entry = Flow(backend, world.backends[backend].generation, NOW)
    at = key(UDP_ID if UDP in packet else TCP_ID)
    assert result.conntrack == ({at: entry} if where == "conntrack" else {})
    assert result.embryonic == ({at: entry} if where == "embryonic" else {})


def test_where_all_flows_are_remembered_an_unknown_datagram_is_new() -> None:
    world = tracked_world(Tracking.ALWAYS, MOVED)
    for packet, backend in ((datagram(), B), (segment("A"), OLD)):
        result = run(packet, world)
        assert result.backend is not None
        assert result.backend[0] == backend


def test_older_flows_of_an_origin_that_is_down_are_placed_anew_and_stay_there() -> None:
    result = run(segment("A"), tracked_world(Tracking.MOVING, MOVED, down=OLD))
    assert result.conntrack == {key(): Flow(B, 1, NOW)}


def test_older_flows_stay_with_the_origin_while_new_ones_find_no_backend() -> None:
    world = empty(tracked_world(Tracking.MOVING, MOVED))
    assert run(segment("S"), world).outcome is Outcome.REJECT_RST
    result = run(segment("A"), world)
    assert result.backend is not None
    assert result.backend[0] == OLD


def test_never_means_never() -> None:
    for past in (MOVED, SETTLED):
        result = run(segment("A"), tracked_world(Tracking.NEVER, past))
        assert result.backend is not None
        assert (result.backend[0], result.conntrack, result.embryonic) == (B, {}, {})


def test_time_is_written_about_once_a_second() -> None:
    for seen, written in ((900, 900), (744, NOW), (2**32 - 1, NOW)):
        world = replace(tracked_world(), conntrack={key(): Flow(OLD, 3, seen)})
        assert run(segment("A"), world).conntrack == {key(): Flow(OLD, 3, written)}


def test_untracked_flows_are_counted_by_their_syn() -> None:
    for flags, flows in (("S", 1), ("A", 0), ("SA", 0)):
        result = run(segment(flags), make_world())
        assert (result.conntrack, result.embryonic) == ({}, {})
        assert result.backend == (B, Stats(packets=1, bytes=54, flows=flows))


# --- nat: whose answers are ours -------------------------------------------------------------------


def reply(ttl: int = 64) -> Packet:
    return ether() / IP(src=REAL, dst=CLIENT, ttl=ttl) / TCP(sport=8080, dport=4000, flags="SA")


def test_a_tracked_service_translates_only_known_flows() -> None:
    world = make_world(mode=Mode.NAT, tracking=Tracking.ALWAYS)
    result = run(reply(), world)
    assert (result.outcome, result.frame) == (Outcome.PASS_NOT_OURS, bytes(reply()))
    for where in ("conntrack", "embryonic"):
        known = replace(world, **{where: {key(): Flow(B, 1, 0)}})
        assert run(reply(), known).outcome is Outcome.REPLY_REDIRECT


@pytest.mark.parametrize("tracking", [Tracking.MOVING, Tracking.NEVER])
def test_elsewhere_the_backends_socket_belongs_to_the_service(tracking: Tracking) -> None:
    assert run(reply(), make_world(mode=Mode.NAT, tracking=tracking)).outcome is Outcome.REPLY_REDIRECT


@pytest.mark.parametrize(
    ("way", "ttl", "outcome"),
    [
        (RouteResult(Route.LOCAL), 64, Outcome.PASS_NOT_OURS),
        (RouteResult(Route.LOCAL), 1, Outcome.PASS_NOT_OURS),  # a health check's answer may end here
        (RouteResult(Route.KERNEL), 64, Outcome.REPLY_PASS),
        (RouteResult(Route.NO_NEIGHBOUR), 64, Outcome.REPLY_PASS),
        (RouteResult(Route.KERNEL), 1, Outcome.DROP_TTL),
        (RouteResult(Route.NEIGHBOUR, OUT), 64, Outcome.REPLY_REDIRECT),
        (RouteResult(Route.NEIGHBOUR, OUT), 1, Outcome.DROP_TTL),
        (RouteResult(Route.NEIGHBOUR, 99), 64, Outcome.REPLY_PASS),  # XDP can't reach it
    ],
)
def test_ways_back(way: RouteResult, ttl: int, outcome: Outcome) -> None:
    asked: list[RouteQuery] = []

    def route(query: RouteQuery) -> RouteResult:
        asked.append(query)
        return way

    world = replace(make_world(mode=Mode.NAT), route=route, reachable=frozenset({IN, OUT}))
    result = run(reply(ttl), world)
    assert result.outcome is outcome
    assert asked == [RouteQuery(IN, ip_address(VIP), ip_address(CLIENT), 40)]
    if outcome is Outcome.REPLY_PASS:
        got = dissect(result.frame)
        assert (got[IP].src, got[IP].ttl, got[TCP].sport) == (VIP, 64, 80)
    elif outcome is not Outcome.REPLY_REDIRECT:
        assert result.frame == bytes(reply(ttl))


@pytest.mark.parametrize(
    ("ifindex", "outcome"),
    [
        (IN, Outcome.REPLY_REDIRECT),
        (0, Outcome.REPLY_PASS),  # nobody knows where from
        (99, Outcome.REPLY_PASS),  # the interface was detached
    ],
)
def test_a_client_that_the_kernel_does_not_know(ifindex: int, outcome: Outcome) -> None:
    world = replace(
        make_world(mode=Mode.NAT),
        route=lambda _query: RouteResult(Route.NO_NEIGHBOUR),
        senders={ip_address(CLIENT): Sender(ifindex, mac(SERVER))} if ifindex else {},
    )
    result = run(reply(), world)
    assert result.outcome is outcome
    got = dissect(result.frame)
    assert (got[IP].src, got[TCP].sport) == (VIP, 80)
    if outcome is Outcome.REPLY_REDIRECT:
        assert (result.verdict, result.ifindex) == (Verdict.TX, IN)
        assert (got.dst, got.src) == (SERVER, OURS)


def test_where_a_clients_frames_come_from_is_remembered() -> None:
    world = make_world(mode=Mode.NAT)
    learned = {ip_address(CLIENT): Sender(IN, mac(GATEWAY))}
    for packet in (segment("S"), datagram()):
        assert run(packet, world).senders == learned
        assert run(packet, replace(world, senders=learned)).senders == {}  # it is known
        # On a VLAN it isn't: an answer without the tag would be on another one.
        assert run(ether() / Dot1Q(vlan=4) / packet.payload, world).senders == {}
        assert run(packet, make_world()).senders == {}  # answers don't come through us
    assert run(segment("A"), world).senders == {}


# --- answers --------------------------------------------------------------------------------------


@BOTH
def test_echo(ipv6: bool) -> None:
    request = ICMPv6EchoRequest(id=3, seq=4, data=b"ping!") if ipv6 else ICMP(id=3, seq=4) / b"ping!"
    result = run(to_vip(request, ipv6=ipv6, **({"hlim": 3} if ipv6 else {"ttl": 3})), make_world())
    assert (result.verdict, result.outcome) == (Verdict.TX, Outcome.ECHO_REPLY)
    got = dissect(result.frame)
    assert (got.src, got.dst) == (OURS, GATEWAY)
    if ipv6:
        assert (got[IPv6].src, got[IPv6].dst, got[IPv6].hlim) == (VIP6, CLIENT6, 64)
        answer = got[ICMPv6EchoReply]
        assert (answer.id, answer.seq, answer.data) == (3, 4, b"ping!")
    else:
        assert (got[IP].src, got[IP].dst, got[IP].ttl) == (VIP, CLIENT, 64)
        assert (got[ICMP].type, got[ICMP].id, got[ICMP].seq) == (0, 3, 4)
        assert bytes(got[Raw]) == b"ping!"


@pytest.mark.parametrize(
    "packet",
    [
        IP(src=CLIENT, dst=VIP) / ICMP(type=13),  # timestamp
        IP(src=CLIENT, dst=VIP) / ICMP(code=1),
        IP(src=CLIENT, dst=VIP) / ICMP(type=3, code=4) / IP() / UDP(),
        IP(src=CLIENT, dst=VIP, flags="MF") / ICMP() / b"12345678",
        IP(src=CLIENT, dst="10.0.0.99") / ICMP(),  # no VIP
        IP(src="224.0.0.1", dst=VIP) / ICMP(),
        IP(src="0.0.0.0", dst=VIP) / ICMP(),
        IP(src="127.0.0.1", dst=VIP) / ICMP(),
        IP(src="255.255.255.255", dst=VIP) / ICMP(),
        IPv6(src="ff02::1", dst=VIP6) / ICMPv6EchoRequest(),
        IPv6(src="::", dst=VIP6) / ICMPv6EchoRequest(),
        IPv6(src=CLIENT6, dst=VIP6) / ICMPv6PacketTooBig() / IPv6() / UDP(),
        IPv6(src=CLIENT6, dst=VIP6) / IPv6ExtHdrFragment(m=1) / ICMPv6EchoRequest(),
    ],
    ids=lambda p: p.summary(),
)
def test_other_icmp_is_for_the_kernel(packet: Packet) -> None:
    result = run(ether() / packet, make_world())
    assert (result.verdict, result.outcome) == (Verdict.PASS, Outcome.PASS_NOT_OURS)
    assert result.frame == bytes(ether() / packet)


# RFC 9293, 3.10.7.1: (flags, payload) -> (answer's flags, seq, ack) for a segment with SEQ=1000 and
# ACK=7000.
RESETS = [
    ("S", 0, "RA", 0, 1001),
    ("F", 0, "RA", 0, 1001),
    ("SF", 3, "RA", 0, 1005),
    ("", 10, "RA", 0, 1010),
    ("SA", 0, "R", 7000, 0),
    ("A", 10, "R", 7000, 0),
    ("FA", 0, "R", 7000, 0),
]


@BOTH
@pytest.mark.parametrize(("flags", "size", "answer_flags", "seq", "ack"), RESETS)
def test_reset(ipv6: bool, flags: str, size: int, answer_flags: str, seq: int, ack: int) -> None:
    options = [("MSS", 1460), ("NOP", None), ("WScale", 7)]
    tcp = TCP(sport=4000, dport=80, flags=flags, seq=1000, ack=7000, options=options)
    # Ethernet padding isn't part of the segment.
    frame = bytes(to_vip(tcp / bytes(size), ipv6=ipv6)) + bytes(9)
    result = process(frame, IN, empty(make_world()))
    assert (result.verdict, result.outcome) == (Verdict.TX, Outcome.REJECT_RST)
    got = dissect(result.frame)
    assert (got.src, got.dst) == (OURS, GATEWAY)
    ip = got[IPv6 if ipv6 else IP]
    assert (ip.src, ip.dst) == ((VIP6, CLIENT6) if ipv6 else (VIP, CLIENT))
    assert (got[TCP].sport, got[TCP].dport) == (80, 4000)
    assert (got[TCP].flags, got[TCP].seq, got[TCP].ack) == (answer_flags, seq, ack)
    assert not got[TCP].payload


@BOTH
def test_reset_keeps_the_vlan(ipv6: bool) -> None:
    sent = ether() / Dot1Q(vlan=42) / to_vip(TCP(dport=80, flags="S"), ipv6=ipv6).payload
    got = dissect(run(sent, empty(make_world())).frame)
    assert (got[Dot1Q].vlan, got[TCP].flags) == (42, "RA")


@BOTH
def test_unreachable(ipv6: bool) -> None:
    sent = to_vip(UDP(sport=4000, dport=80) / b"hello", ipv6=ipv6)
    result = run(sent, empty(make_world()))
    assert (result.verdict, result.outcome) == (Verdict.TX, Outcome.REJECT_UNREACH)
    got = dissect(result.frame)
    if ipv6:
        assert (got[IPv6].src, got[IPv6].dst) == (VIP6, CLIENT6)
        assert (got[ICMPv6DestUnreach].type, got[ICMPv6DestUnreach].code) == (1, 4)
        quoted = got[IPerror6]
        assert (quoted.src, quoted.dst) == (CLIENT6, VIP6)
    else:
        assert (got[IP].src, got[IP].dst) == (VIP, CLIENT)
        assert (got[ICMP].type, got[ICMP].code) == (3, 3)
        quoted = got[IPerror]
        assert (quoted.src, quoted.dst) == (CLIENT, VIP)
        assert not got.haslayer(ICMPerror)
    assert (quoted[UDPerror].sport, quoted[UDPerror].dport) == (4000, 80)


@pytest.mark.parametrize(
    "packet",
    [
        IP(src=CLIENT, dst=VIP) / TCP(dport=80, flags="RA"),
        IP(src=CLIENT, dst=VIP) / TCP(dport=80, flags="S", dataofs=12),  # header beyond the segment
        IP(src="255.255.255.255", dst=VIP) / TCP(dport=80, flags="S"),  # RFC 9293, MUST-63
        IP(src="127.0.0.1", dst=VIP) / UDP(dport=80),
        IP(src="239.1.1.1", dst=VIP) / UDP(dport=80),
        IPv6(src="ff02::1", dst=VIP6) / TCP(dport=80, flags="S"),
        IPv6(src="::1", dst=VIP6) / UDP(dport=80),
        IP(src=CLIENT, dst=VIP, flags="MF") / UDP(dport=80) / bytes(8),
        IP(src=CLIENT, dst=VIP, options=[IPOption_RR()]) / UDP(dport=80),
    ],
    ids=lambda p: p.summary(),
)
def test_what_gets_no_answer(packet: Packet) -> None:
    result = run(ether() / packet, empty(make_world()))
    assert (result.verdict, result.outcome) == (Verdict.DROP, Outcome.DROP_NO_BACKEND)
    assert result.service is not None
    assert result.backend is None


@BOTH
@pytest.mark.parametrize("proto", [TCP, UDP])
def test_policy_drop(ipv6: bool, proto: type[Packet]) -> None:
    world = empty(make_world(no_backend=NoBackend.DROP))
    result = run(to_vip(proto(dport=80), ipv6=ipv6), world)
    assert (result.verdict, result.outcome) == (Verdict.DROP, Outcome.DROP_NO_BACKEND)


# --- parsing --------------------------------------------------------------------------------------

MALFORMED, FRAGMENT = Outcome.DROP_MALFORMED, Outcome.DROP_FRAGMENT
FORWARDED, NOT_OURS = Outcome.FORWARD_REDIRECT, Outcome.PASS_NOT_OURS
V4 = {"src": CLIENT, "dst": VIP}
V6 = {"src": CLIENT6, "dst": VIP6}


@pytest.mark.parametrize(
    ("packet", "outcome"),
    [
        (IP(**V4, options=[IPOption_RR()] * 2) / TCP(dport=80), FORWARDED),
        (IP(**V4, ihl=4) / TCP(dport=80), MALFORMED),
        (IP(**V4, version=5) / TCP(dport=80), MALFORMED),
        (IP(**V4, len=4000) / TCP(dport=80), MALFORMED),
        (IP(**V4, len=39) / TCP(dport=80), MALFORMED),
        (IP(**V4, len=39) / TCP(dport=81), MALFORMED),  # whom it is for can't be told
        (IP(**V4) / TCP(dport=80, dataofs=4), MALFORMED),
        (IP(**V4, len=27) / UDP(dport=80), MALFORMED),
        (IP(**V4, flags="MF") / TCP(dport=80), FORWARDED),
        (IP(**V4, flags="MF", frag=9) / TCP(dport=80), FRAGMENT),
        (IP(**V4, frag=9) / UDP(dport=80), FRAGMENT),
        (IP(src=CLIENT, dst="10.9.9.9", frag=9) / UDP(dport=80), NOT_OURS),
        (IP(**V4, proto=47) / b"gre, say", NOT_OURS),
        (IP(**V4) / TCP(dport=81), NOT_OURS),
        (IPv6(**V6, plen=4000) / TCP(dport=80), MALFORMED),
        (IPv6(**V6, plen=19) / TCP(dport=80), MALFORMED),
        (IPv6(**V6, version=4) / TCP(dport=80), MALFORMED),
        # 40 + 65,535 doesn't fit into 16 bits, but that is no way past the check.
        (IPv6(**V6, plen=65535) / IPv6ExtHdrFragment(offset=1) / TCP(dport=80), NOT_OURS),
        (IPv6(**V6) / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / TCP(dport=80), FORWARDED),
        (IPv6(**V6) / IPv6ExtHdrRouting(segleft=0) / UDP(dport=80), FORWARDED),
        # The VIP is only a stop on this packet's way.
        (IPv6(**V6) / IPv6ExtHdrRouting(addresses=["2001:db8::9"]) / UDP(dport=80), NOT_OURS),
        (IPv6(**V6) / IPv6ExtHdrFragment(m=1) / UDP(dport=80), FORWARDED),
        (IPv6(**V6) / IPv6ExtHdrFragment(offset=3) / UDP(dport=80), FRAGMENT),
        (IPv6(**V6) / IPv6ExtHdrDestOpt() / IPv6ExtHdrFragment(offset=3) / b"", NOT_OURS),
        (IPv6(**V6, nh=59), NOT_OURS),
        # Lengths that leave no room for the extension header's successor.
        (IPv6(**V6, plen=8) / IPv6ExtHdrDestOpt() / IPv6ExtHdrFragment(offset=3), NOT_OURS),
        (IPv6(src=CLIENT6, dst="::ffff:" + VIP) / TCP(dport=80), NOT_OURS),
        (IPv6(src="::ffff:" + CLIENT, dst=VIP6) / TCP(dport=80), NOT_OURS),
    ],
    ids=lambda p: p.summary() if isinstance(p, Packet) else "",
)
def test_parsing(packet: Packet, outcome: Outcome) -> None:
    result = run(ether() / packet, make_world())
    assert result.outcome is outcome
    if outcome is not FORWARDED:
        assert result.frame == bytes(ether() / packet)


def test_atomic_fragments_are_whole() -> None:
    # RFC 6946: so they get an answer, which fragments don't.
    sent = to_vip(IPv6ExtHdrFragment() / TCP(dport=80, flags="S", seq=9), ipv6=True)
    result = run(sent, empty(make_world()))
    assert result.outcome is Outcome.REJECT_RST
    assert dissect(result.frame)[TCP].ack == 10


def test_six_extension_headers_are_walked_and_no_more() -> None:
    def nested(depth: int) -> Packet:
        packet: Packet = TCP(dport=80)
        for _ in range(depth):
            packet = IPv6ExtHdrDestOpt() / packet
        return to_vip(packet, ipv6=True)

    assert run(nested(6), make_world()).outcome is FORWARDED
    assert run(nested(7), make_world()).outcome is NOT_OURS


def test_a_third_vlan_tag_is_not_read() -> None:
    inner = to_vip(TCP(dport=80), ipv6=False).payload
    assert run(ether() / Dot1Q() / Dot1Q() / inner, make_world()).outcome is FORWARDED
    assert run(ether() / Dot1Q() / Dot1Q() / Dot1Q() / inner, make_world()).outcome is NOT_OURS


@BOTH
def test_every_truncation_is_survived(ipv6: bool) -> None:
    world = empty(make_world())
    whole = bytes(ether() / Dot1Q() / to_vip(TCP(dport=80) / b"data", ipv6=ipv6).payload)
    for size in range(len(whole)):
        result = process(whole[:size], IN, world)
        l3 = 18 + (40 if ipv6 else 20)
        assert result.outcome is (MALFORMED if size >= l3 else NOT_OURS), size


def test_scapy_is_not_loaded_by_the_model() -> None:
    # A specification that leaned on its judge would be worth little.
    import lb.core.reference as reference

    assert conf.version
    for name in ("answer", "checksum", "parse", "pick", "process", "rewrite", "world"):
        module = __import__(f"{reference.__name__}.{name}", fromlist=["_"])
        assert not any("scapy" in str(getattr(v, "__module__", "")) for v in vars(module).values())


# --- tunnels --------------------------------------------------------------------------------------


def tunnel_world(mode: Mode, outer: int, mtu: int = 0) -> World:
    world = make_world(mode=mode)
    real, source = (REAL, SOURCE) if outer == 4 else (REAL6, SOURCE6)
    port = 6080 if mode is Mode.GUE else 0
    backends = {
        n: replace(b, address=ip_address(real), source=ip_address(source), port=port, mtu=mtu)
        for n, b in world.backends.items()
    }
    return replace(world, backends=backends)


@BOTH
@pytest.mark.parametrize("outer", [4, 6])
@pytest.mark.parametrize("mode", [Mode.IPIP, Mode.GUE])
@pytest.mark.parametrize("l4", [TCP(dport=80) / b"hello", UDP(dport=80) / b"hello"])
def test_a_tunnel_carries_the_packet_as_it_was(ipv6: bool, outer: int, mode: Mode, l4: Packet) -> None:
    sent = to_vip(l4, ipv6=ipv6, **({"tc": 0xB9} if ipv6 else {"tos": 0xB9}))
    result = run(sent, tunnel_world(mode, outer))
    assert (result.verdict, result.outcome) == (Verdict.REDIRECT, Outcome.FORWARD_REDIRECT)
    got = Ether(result.frame)  # scapy would add the outer checksum that gue leaves out in IPv4
    assert (got.dst, got.src) == (SERVER, EGRESS)
    header = got[IP] if outer == 4 else got[IPv6]
    assert (header.src, header.dst) == ((SOURCE, REAL) if outer == 4 else (SOURCE6, REAL6))
    assert (header.ttl if outer == 4 else header.hlim) == 64
    assert (header.tos if outer == 4 else header.tc) == 0xB9  # ECN among them
    rest = bytes(result.frame)[14 + (20 if outer == 4 else 40) :]
    proto = header.proto if outer == 4 else header.nh
    if mode is Mode.GUE:
        udp = UDP(rest)
        assert (proto, udp.dport, udp.len) == (17, 6080, len(rest))
        assert udp.sport >= 0xC000
        # scapy computes over all bytes what the model makes of headers alone.
        again = header.copy()
        again.remove_payload()
        again = again / UDP(sport=udp.sport, dport=6080) / rest[8:]
        whole = (IP if outer == 4 else IPv6)(bytes(again))
        assert udp.chksum == (0 if outer == 4 else whole[UDP].chksum)
        rest = rest[8:]
    else:
        assert proto == (41 if ipv6 else 4)
    inner = dissect(bytes(Ether())[:12] + (b"\x86\xdd" if ipv6 else b"\x08\x00") + rest)
    assert bytes(inner[type(l4)]) == bytes(sent[type(l4)])
    assert (inner[IPv6].hlim if ipv6 else inner[IP].ttl) == 63
    assert inner[IPv6 if ipv6 else IP].dst == (VIP6 if ipv6 else VIP)


@BOTH
@pytest.mark.parametrize("outer", [4, 6])
def test_what_does_not_fit_with_the_outer_header(ipv6: bool, outer: int) -> None:
    """RFC 1191 and RFC 8201: the error says what would fit, and quotes what did not."""
    world = tunnel_world(Mode.IPIP, outer, mtu=1500)
    room = 1500 - (20 if outer == 4 else 40)
    headers = 60 if ipv6 else 40
    fits = to_vip(TCP(dport=80) / bytes(room - headers), ipv6=ipv6)
    assert run(fits, world).outcome is Outcome.FORWARD_REDIRECT
    sent = to_vip(TCP(dport=80) / bytes(room - headers + 1), ipv6=ipv6)
    result = run(sent, world)
    assert (result.verdict, result.outcome) == (Verdict.TX, Outcome.REJECT_TOO_BIG)
    got = dissect(result.frame)
    if ipv6:
        assert got[ICMPv6PacketTooBig].mtu == room
        assert (got[IPv6].src, got[IPv6].dst) == (VIP6, CLIENT6)
    else:
        assert (got[ICMP].type, got[ICMP].code, got[ICMP].nexthopmtu) == (3, 4, room)
        assert (got[IP].src, got[IP].dst) == (VIP, CLIENT)


# --- ICMP errors ----------------------------------------------------------------------------------


def error_about(inner: Packet, *, ipv6: bool, src: str, dst: str) -> Packet:
    if ipv6:
        return ether() / IPv6(src=src, dst=dst) / ICMPv6PacketTooBig(mtu=1280) / inner
    return ether() / IP(src=src, dst=dst) / ICMP(type=3, code=4, nexthopmtu=1200) / inner


@BOTH
@pytest.mark.parametrize("mode", [mode for mode in Mode if mode is not Mode.FULLNAT])
def test_an_error_about_an_answer_goes_to_the_backend_that_sent_it(ipv6: bool, mode: Mode) -> None:
    world = tunnel_world(mode, 4) if mode in TUNNELS else make_world(mode=mode)
    vip, client, router = (VIP6, CLIENT6, "2001:db8::fe") if ipv6 else (VIP, CLIENT, "10.9.9.9")
    answer = (IPv6 if ipv6 else IP)(src=vip, dst=client) / TCP(sport=80, dport=4000) / bytes(20)
    result = run(error_about(answer, ipv6=ipv6, src=router, dst=vip), world)
    assert result.outcome is Outcome.FORWARD_REDIRECT
    assert result.backend is not None
    flow = run(to_vip(TCP(sport=4000, dport=80), ipv6=ipv6), world)
    assert flow.backend is not None
    assert result.backend[0] == flow.backend[0]
    assert result.backend[1].flows == 0
    if mode is not Mode.NAT:
        return
    got = dissect(result.frame)
    real = REAL6 if ipv6 else REAL
    about = got[IPerror6 if ipv6 else IPerror]
    assert got[IPv6 if ipv6 else IP].dst == real
    assert (about.src, about.dst, got[TCPerror].sport) == (real, client, 8080)


def test_an_error_about_a_datagram_in_pieces_goes_to_the_backend_that_sent_it() -> None:
    """Over IPv6 the sender cuts, and most need to hear what fits about these."""
    world = make_world(mode=Mode.NAT)
    for header, expected in (
        (IPv6ExtHdrFragment(m=1, id=7), Outcome.FORWARD_REDIRECT),
        (IPv6ExtHdrFragment(id=7), Outcome.FORWARD_REDIRECT),
        (IPv6ExtHdrFragment(offset=150, id=7), Outcome.PASS_NOT_OURS),
    ):
        answer = IPv6(src=VIP6, dst=CLIENT6) / header / UDP(sport=80, dport=4000) / bytes(20)
        result = run(error_about(answer, ipv6=True, src="2001:db8::fe", dst=VIP6), world)
        assert result.outcome is expected
        if expected is Outcome.FORWARD_REDIRECT:
            got = dissect(result.frame)
            assert (got[IPv6].dst, got[IPerror6].src, got[IPerror6].dst) == (REAL6, REAL6, CLIENT6)
            assert got[UDPerror].sport == 8080


@BOTH
def test_without_an_error_left_nobody_is_told(ipv6: bool) -> None:
    large = to_vip(UDP(sport=4000, dport=80) / bytes(400), ipv6=ipv6)
    for backend, told, untold in (
        ({"mtu": 300}, Outcome.REJECT_TOO_BIG, Outcome.DROP_TOO_BIG),
        ({"usable": False}, Outcome.REJECT_UNREACH, Outcome.DROP_NO_BACKEND),
    ):
        world = make_world()
        world = replace(
            world,
            backends={n: replace(b, **backend) for n, b in world.backends.items()},
        )
        assert run(large, world).outcome is told
        assert run(large, replace(world, may_send_errors=False)).outcome is untold


@BOTH
def test_an_error_about_a_translated_packet_reaches_the_client(ipv6: bool) -> None:
    """Mode nat: a router between node and backend tells the client, who knows only the VIP."""
    world = make_world(mode=Mode.NAT)
    vip, real, client, router = (
        (VIP6, REAL6, CLIENT6, "2001:db8::fe") if ipv6 else (VIP, REAL, CLIENT, "10.9.9.9")
    )
    sent = (IPv6 if ipv6 else IP)(src=client, dst=real) / TCP(sport=4000, dport=8080) / bytes(20)
    for source in (router, real):
        result = run(error_about(sent, ipv6=ipv6, src=source, dst=client), world)
        assert result.outcome is Outcome.REPLY_REDIRECT
        got = dissect(result.frame)
        about = got[IPerror6 if ipv6 else IPerror]
        assert (about.src, about.dst, got[TCPerror].dport) == (client, vip, 80)
        # A router keeps its name; the backend's own must not be seen.
        assert got[IPv6 if ipv6 else IP].src == (vip if source == real else router)


# --- fullnat --------------------------------------------------------------------------------------


def after(world: World, result: Result) -> World:
    """The world with what a packet changed in it."""
    bindings = {**world.bindings, **result.bindings}
    translations = {**world.translations, **result.translations}
    return replace(
        world,
        bindings={k: v for k, v in bindings.items() if v is not None},
        translations={k: v for k, v in translations.items() if v is not None},
    )


@BOTH
@pytest.mark.parametrize("layer", [TCP, UDP])
def test_fullnat_there_and_back(ipv6: bool, layer: type[Packet]) -> None:
    world = make_world(mode=Mode.FULLNAT)
    ip, vip, real, source, client = (
        (IPv6, VIP6, REAL6, SOURCE6, CLIENT6) if ipv6 else (IP, VIP, REAL, SOURCE, CLIENT)
    )
    first = run(to_vip(layer(sport=4000, dport=80) / b"hello", ipv6=ipv6), world)
    assert first.outcome is Outcome.FORWARD_REDIRECT
    assert first.backend is not None
    assert first.backend[1].flows == 1
    got = dissect(first.frame)
    ours = got[layer].sport
    assert (got[ip].src, got[ip].dst, got[layer].dport) == (source, real, 8080)
    assert fullnat.FIRST_PORT <= ours < fullnat.FIRST_PORT + fullnat.PORTS

    world = after(world, first)
    again = layer(sport=4000, dport=80, **({"flags": "A"} if layer is TCP else {})) / b"more"
    result = run(to_vip(again, ipv6=ipv6), world)
    assert dissect(result.frame)[layer].sport == ours
    assert result.backend is not None
    assert result.backend[1].flows == 0

    answer = ether() / ip(src=real, dst=source) / layer(sport=8080, dport=ours) / b"yes"
    result = run(answer, after(world, result))
    assert result.outcome is Outcome.REPLY_REDIRECT
    got = dissect(result.frame)
    assert (got[ip].src, got[ip].dst) == (vip, client)
    assert (got[layer].sport, got[layer].dport) == (80, 4000)
    (entry,) = result.translations.values()
    assert entry is not None
    assert entry.state is NatState.ANSWERED


@BOTH
def test_fullnat_knows_only_what_it_saw_begin(ipv6: bool) -> None:
    """The server knows no other port of ours, so an unknown connection is reset at once."""
    world = make_world(mode=Mode.FULLNAT)
    result = run(to_vip(TCP(sport=4000, dport=80, flags="A"), ipv6=ipv6), world)
    assert (result.outcome, result.bindings) == (Outcome.REJECT_RST, {})


@BOTH
def test_fullnat_errors_reach_both_ends(ipv6: bool) -> None:
    world = make_world(mode=Mode.FULLNAT)
    ip, vip, real, source, client, router = (
        (IPv6, VIP6, REAL6, SOURCE6, CLIENT6, "2001:db8::fe")
        if ipv6
        else (IP, VIP, REAL, SOURCE, CLIENT, "10.9.9.9")
    )
    first = run(to_vip(TCP(sport=4000, dport=80), ipv6=ipv6), world)
    ours = dissect(first.frame)[TCP].sport
    world = after(world, first)

    answered = ip(src=vip, dst=client) / TCP(sport=80, dport=4000) / bytes(20)
    result = run(error_about(answered, ipv6=ipv6, src=router, dst=vip), world)
    assert result.outcome is Outcome.FORWARD_REDIRECT
    got = dissect(result.frame)
    about = got[IPerror6 if ipv6 else IPerror]
    assert (got[ip].src, got[ip].dst) == (router, real)
    assert (about.src, about.dst) == (real, source)
    assert (got[TCPerror].sport, got[TCPerror].dport) == (8080, ours)

    sent = ip(src=source, dst=real) / TCP(sport=ours, dport=8080) / bytes(20)
    result = run(error_about(sent, ipv6=ipv6, src=router, dst=source), world)
    assert result.outcome is Outcome.REPLY_REDIRECT
    got = dissect(result.frame)
    about = got[IPerror6 if ipv6 else IPerror]
    assert (got[ip].src, got[ip].dst) == (router, client)
    assert (about.src, about.dst) == (client, vip)
    assert (got[TCPerror].sport, got[TCPerror].dport) == (4000, 80)


@BOTH
def test_fullnat_without_a_free_port_refuses(ipv6: bool) -> None:
    world = make_world(mode=Mode.FULLNAT)
    first = run(to_vip(TCP(sport=4000, dport=80), ipv6=ipv6), world)
    ((back, client),) = first.translations.items()
    assert client is not None
    taken = fullnat.candidates((1, 2), ip_address(CLIENT6 if ipv6 else CLIENT), 4000, 80)
    full = {replace(back, port=port): client for port in taken}
    assert back.port == taken[0]
    result = run(to_vip(TCP(sport=4000, dport=80), ipv6=ipv6), replace(world, translations=full))
    assert (result.verdict, result.outcome) == (Verdict.TX, Outcome.REJECT_NAT_FULL)
    assert dissect(result.frame)[TCP].flags == "RA"
    del full[replace(back, port=taken[-1])]
    result = run(to_vip(TCP(sport=4000, dport=80), ipv6=ipv6), replace(world, translations=full))
    assert dissect(result.frame)[TCP].sport == taken[-1]
