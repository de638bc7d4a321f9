"""The reference model on datagrams in pieces and QUIC connection IDs. scapy cuts and puts together."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest
from scapy.layers.inet import IP, TCP, UDP, defragment, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, defragment6, fragment6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from lb.core.reference import (
    Backend,
    Endpoint,
    FlowKey,
    NatBack,
    Outcome,
    Result,
    Route,
    RouteResult,
    Service,
    Verdict,
    World,
    pieces,
    process,
    quic,
)
from lb.model.objects import TRANSLATIONS, Mode, Tracking

OURS, GATEWAY, SERVER, EGRESS = (f"02:00:00:00:00:0{n}" for n in range(1, 5))
IN, OUT = 10, 20
CLIENT = {4: "198.51.100.2", 6: "2001:db8:a::2"}
VIP = {4: "10.0.0.1", 6: "2001:db8::1"}
REAL = {4: "10.1.0.1", 6: "2001:db8:b::1"}
NODE = {4: "10.1.0.100", 6: "2001:db8:b::100"}
DATA = bytes(range(256)) * 16

versions = pytest.mark.parametrize("version", [4, 6])


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def world_of(version: int, mode: Mode = Mode.NAT, **policy: object) -> World:
    """A UDP service with one backend, and slots that name nobody else."""
    service = Service((1, 2), ip_address(VIP[version]), 80, 17, mode, tracking=Tracking.NEVER, **policy)  # type: ignore[arg-type]
    real = ip_address(REAL[version])
    server = Backend(
        real,
        6080 if mode is Mode.GUE else 8080 if mode in TRANSLATIONS else 0,
        source=ip_address(NODE[version]),
        ifindex=OUT,
        dmac=mac(SERVER),
        smac=mac(EGRESS),
    )
    return World(
        links={IN: mac(OURS)},
        vips={Endpoint(service.vip, 80, 17): 1},
        services={1: service},
        tables={1: [1] * 65536},
        backends={1: server, 2: replace(server, dmac=mac("02:00:00:00:00:09"))},
        nat_back={Endpoint(real, server.port, 17): NatBack(1, 1)},
        route=lambda _query: RouteResult(Route.NEIGHBOUR, OUT, mac(GATEWAY), mac(EGRESS)),
        clock=1000,
    )


def cut(version: int, source: str, destination: str, sport: int, dport: int) -> list[bytes]:
    """A datagram of 4,096 bytes, in pieces."""
    segment = UDP(sport=sport, dport=dport) / Raw(DATA)
    if version == 4:
        whole = IP(src=source, dst=destination, id=7) / segment
        found = fragment(IP(bytes(whole)), fragsize=1400)
    else:
        whole = IPv6(src=source, dst=destination) / IPv6ExtHdrFragment(id=7) / segment
        found = fragment6(whole, 1400)
    return [bytes(Ether(src=GATEWAY, dst=OURS) / each) for each in found]


def through(frames: list[bytes], world: World) -> tuple[list[Result], World]:
    """One after the other, with what each leaves behind."""
    results = []
    for frame in frames:
        result = process(frame, IN, world)
        results.append(result)
        world = replace(
            world,
            fragments={**world.fragments, **result.fragments},
            bindings={**world.bindings, **result.bindings},
            translations={**world.translations, **result.translations},
        )
    return results, world


def together(version: int, results: list[Result]) -> Packet:
    """The datagram as its receiver has it; with a checksum as scapy computes it."""
    layers = [Ether(each.frame).payload for each in results]
    whole = defragment(layers)[0] if version == 4 else defragment6(layers)
    whole = (IP if version == 4 else IPv6)(bytes(whole))
    check = whole[UDP].chksum
    del whole[UDP].chksum
    assert (IP if version == 4 else IPv6)(bytes(whole))[UDP].chksum == check
    return whole


@versions
@pytest.mark.parametrize("mode", list(Mode))
def test_the_pieces_follow_the_first(version: int, mode: Mode) -> None:
    world = world_of(version, mode)
    frames = cut(version, CLIENT[version], VIP[version], 4000, 80)
    results, _ = through(frames, world)
    assert len(results) > 2
    assert {each.outcome for each in results} == {Outcome.FORWARD_REDIRECT}
    assert {each.frame[:12] for each in results} == {mac(SERVER) + mac(EGRESS)}
    if mode in TRANSLATIONS:
        whole = together(version, results)
        assert (whole.dst, whole[UDP].dport, bytes(whole[UDP].payload)) == (REAL[version], 8080, DATA)
        assert whole.src == (NODE[version] if mode is Mode.FULLNAT else CLIENT[version])


@versions
@pytest.mark.parametrize("mode", sorted(TRANSLATIONS))
def test_the_pieces_of_an_answer_are_translated_back(version: int, mode: Mode) -> None:
    world = world_of(version, mode)
    asked, world = through(cut(version, CLIENT[version], VIP[version], 4000, 80), world)
    seen = together(version, asked)
    frames = cut(version, REAL[version], seen.src, 8080, seen[UDP].sport)
    results, _ = through(frames, world)
    assert {each.outcome for each in results} == {Outcome.REPLY_REDIRECT}
    whole = together(version, results)
    assert (whole.src, whole.dst) == (VIP[version], CLIENT[version])
    assert (whole[UDP].sport, whole[UDP].dport) == (80, 4000)
    assert bytes(whole[UDP].payload) == DATA


@versions
def test_a_piece_without_a_first_has_nobody_to_follow(version: int) -> None:
    frames = cut(version, CLIENT[version], VIP[version], 4000, 80)
    results, world = through(frames[1:], world_of(version))
    assert {each.outcome for each in results} == {Outcome.DROP_FRAGMENT}
    # Nor when the first was of another datagram, or too long ago.
    _, led = through(frames[:1], world)
    assert process(frames[1], IN, led).outcome is Outcome.FORWARD_REDIRECT
    late = replace(led, clock=led.clock + pieces.FRAGMENT_NS)
    assert process(frames[1], IN, late).outcome is Outcome.DROP_FRAGMENT
    [(key, first)] = led.fragments.items()
    other = replace(led, fragments={replace(key, identification=b"\0\1\0\0"): first})
    assert process(frames[1], IN, other).outcome is Outcome.DROP_FRAGMENT


@versions
@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({"usable": False}, Outcome.DROP_NO_BACKEND),
        ({"generation": 2}, Outcome.DROP_FRAGMENT),  # the id is somebody else's by now
    ],
)
def test_the_first_pieces_backend_is_gone(version: int, changes: dict, outcome: Outcome) -> None:
    frames = cut(version, CLIENT[version], VIP[version], 4000, 80)
    _, world = through(frames[:1], world_of(version))
    gone = {1: replace(world.backends[1], **changes), 2: world.backends[2]}
    assert process(frames[1], IN, replace(world, backends=gone)).outcome is outcome


# --- QUIC -----------------------------------------------------------------------------------------

# draft-ietf-quic-load-balancers-21, appendix B.1: config rotation bits, server ID, connection ID. (The
# second one's nonce lacks a digit there; it isn't read.)
VECTORS = [
    (0, "c4605e", "07c4605e4504cc4f"),
    (1, "350d28b420", "2a350d28b4203487d9700b"),
]
V1, V2 = "00000001", "6b3343cf"


def named(version: int, payload: bytes, size: int, config: int = 0, server: int = 0, **backend: object):
    """Where a QUIC packet goes, with backend 2 known by this server ID; slots name backend 1."""
    world = world_of(version, Mode.DSR, quic_bytes=size, quic_config=config)
    servers = {1: world.backends[1], 2: replace(world.backends[2], **backend)}
    world = replace(world, quic={(1, server): 2}, backends=servers)
    ip = (IP if version == 4 else IPv6)(src=CLIENT[version], dst=VIP[version])
    frame = bytes(Ether(src=GATEWAY, dst=OURS) / ip / UDP(sport=4000, dport=80) / Raw(payload))
    result = process(frame, IN, world)
    assert result.verdict is Verdict.REDIRECT
    return result.backend[0]


@versions
@pytest.mark.parametrize(("config", "server", "cid"), VECTORS)
def test_the_drafts_own_connection_ids(version: int, config: int, server: str, cid: str) -> None:
    number, size = int(server, 16), len(server) // 2
    short = bytes.fromhex("4f" + cid) + bytes(20)
    assert named(version, short, size, config, number) == 2
    assert named(version, short, size, config + 1, number) == 1  # another configuration
    assert named(version, short, size, config, number + 1) == 1  # a server that nobody has
    assert named(version, short, 0, config, number) == 1  # not asked for
    assert named(version, short, size, config, number, usable=False) == 1
    # A Handshake packet of version 1 and 2, and how long its connection ID is.
    for head in (f"e0{V1}", f"f5{V2}"):
        long = bytes.fromhex(f"{head}{len(cid) // 2:02x}{cid}") + bytes(20)
        assert named(version, long, size, config, number) == 2


@pytest.mark.parametrize(
    "head",
    [
        f"c0{V1}08",  # Initial, and 0-RTT: a client chooses these by itself
        f"d0{V1}08",
        f"d0{V2}08",
        f"e0{V2}08",
        f"e0{'0a0a0a0a'}08",  # a version that nobody knows
        f"e0{V1}03",  # shorter than first octet and server ID
        "0f",  # not QUIC: the fixed bit is missing
    ],
)
def test_packets_that_name_nobody(head: str) -> None:
    payload = bytes.fromhex(f"{head}07c4605e4504cc4f") + bytes(20)
    assert named(4, payload, 3, 0, 0xC4605E) == 1


def test_a_packet_that_ends_before_its_connection_id_could() -> None:
    whole = bytes.fromhex("4f07c4605e4504cc4fff")
    assert named(4, whole, 3, 0, 0xC4605E) == 2
    for size in range(len(whole)):
        assert named(4, whole[:size], 3, 0, 0xC4605E) == 1
    assert quic.MAX_ID_BYTES == 8


@pytest.mark.parametrize("tracking", Tracking)
def test_a_client_that_changes_its_address_stays_with_its_server(tracking: Tracking) -> None:
    """Also where each flow is remembered: so that the answers (nat) are known for its own."""
    world = world_of(4, Mode.NAT, quic_bytes=3)
    service = replace(world.services[1], tracking=tracking)
    world = replace(world, services={1: service}, quic={(1, 0xC4605E): 2})
    payload = Raw(bytes.fromhex("4f07c4605e4504cc4f") + bytes(20))
    frame = bytes(
        Ether(src=GATEWAY, dst=OURS)
        / IP(src="198.51.100.77", dst=VIP[4])
        / UDP(sport=9, dport=80)
        / payload
    )
    result = process(frame, IN, world)
    assert result.backend is not None
    assert result.backend[0] == 2
    flow = FlowKey(ip_address("198.51.100.77"), 1, 9, 80)
    remembered = {key: each.backend for key, each in result.conntrack.items() if each}
    assert remembered == ({flow: 2} if tracking is Tracking.ALWAYS else {})


def test_quic_is_for_udp_only() -> None:
    world = world_of(4, Mode.DSR, quic_bytes=3)
    tcp = replace(world.services[1], proto=6, quic_bytes=0)
    world = replace(
        world, services={1: tcp}, vips={Endpoint(tcp.vip, 80, 6): 1}, quic={(1, 0xC4605E): 2}
    )
    payload = Raw(bytes.fromhex("4f07c4605e4504cc4f"))
    frame = bytes(Ether(src=GATEWAY, dst=OURS) / IP(src=CLIENT[4], dst=VIP[4]) / TCP(dport=80) / payload)
    result = process(frame, IN, world)
    assert result.backend is not None
    assert result.backend[0] == 1
