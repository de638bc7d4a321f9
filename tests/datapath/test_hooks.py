"""What both programs must have in common, and what the packets of test_against_model.py can't show."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network

import numpy as np
import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet

from lb.core import flowhash
from lb.core.reference import (
    Backend,
    Binding,
    Client,
    Endpoint,
    Flow,
    FlowKey,
    NatBack,
    Outcome,
    Past,
    Rule,
    Sender,
    Service,
    Translated,
    World,
    answer,
    fullnat,
    process,
)
from lb.core.reference.pick import SEEN_STEP
from lb.core.state import DesiredState
from lb.datapath import consts
from lb.datapath.clock import Clock
from lb.datapath.replay import Replay
from lb.datapath.slotmaps import table_key
from lb.model.objects import TRANSLATIONS, Affinity, Mode, Network, NoBackend, Tracking
from lb.settings import Hook

from . import harness, netns
from .harness import Kernel
from .strategies import INGRESS, OURS, PEER

BACKENDS = 5
VIPS = {4: ip_address("10.0.0.1"), 6: ip_address("2001:db8::1")}
REALS = {4: "10.1.0.{}", 6: "2001:db8:b::{}"}
CLIENTS = {4: "198.51.100.2", 6: "2001:db8:a::2"}
HOOKS = ["xdp", "tc"]


def one_service(version: int, proto: int = 6, **policy: object) -> World:
    """A service with five backends, to be told apart by their MAC addresses."""
    service = Service((11, 22), VIPS[version], 80, proto, **policy)  # type: ignore[arg-type]
    backends = {
        n: Backend(
            ip_address(REALS[version].format(n)),
            8080 if service.mode is Mode.NAT else 0,
            ifindex=netns.B,
            dmac=bytes([2, 0, 0, 0, 3, n]),
            smac=bytes([2, 0, 0, 0, 4, n]),
        )
        for n in range(1, BACKENDS + 1)
    }
    slots = random.Random(version).choices(range(1, BACKENDS + 1), [50, 30, 15, 4, 1], k=65536)
    return World(
        links=dict.fromkeys((INGRESS, netns.B), OURS),
        vips={Endpoint(service.vip, service.port, proto): 1},
        services={1: service},
        tables={1: np.array(slots, dtype=np.uint32)},
        backends=backends,
        nat_back={Endpoint(b.address, b.port, proto): NatBack(1, n) for n, b in backends.items()},
        route=netns.route,
    )


@pytest.fixture
def table(kernels: dict[str, Kernel]) -> Iterator[harness.TableMaps]:
    """Service 1's table, in both kernels."""
    shared = harness.TableMaps()
    for kernel in kernels.values():
        kernel.use_tables({1: shared})
    yield shared
    shared.close()


def install(kernel: Kernel, world: World, table: harness.TableMaps) -> None:
    kernel.install(world)
    harness.fill_table(table, world.tables[1])


def frame(l4: Packet, version: int, *, src: str = "", dst: str = "", ttl: int = 64) -> bytes:
    src, dst = src or CLIENTS[version], dst or str(VIPS[version])
    ip = IPv6(src=src, dst=dst, hlim=ttl) if version == 6 else IP(src=src, dst=dst, ttl=ttl)
    return bytes(Ether(src=PEER.hex(":"), dst=OURS.hex(":")) / ip / l4)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("affinity", list(Affinity))
def test_the_same_packets_get_the_same_backend(
    kernels: dict[str, Kernel], table: harness.TableMaps, version: int, affinity: Affinity
) -> None:
    world = one_service(version, affinity=affinity, tracking=Tracking.NEVER)
    for kernel in kernels.values():
        install(kernel, world, table)
    rng = random.Random(7)
    chosen = {hook: [] for hook in kernels}
    expected = []
    for _ in range(600):
        client = ip_address(rng.getrandbits(128) if version == 6 else 0x0A000000 + rng.getrandbits(24))
        port = rng.randrange(65536)
        packet = frame(TCP(sport=port, dport=80), version, src=str(client))
        slot = flowhash.slot((11, 22), client, port, 80, affinity)
        expected.append(int(world.tables[1][slot]))
        for hook, kernel in kernels.items():
            seen = kernel.run(packet, INGRESS)
            assert list(seen.outcomes) == [Outcome.FORWARD_REDIRECT]
            chosen[hook].append(seen.frame[5])
    assert chosen["xdp"] == chosen["tc"] == expected
    assert set(expected) == set(range(1, BACKENDS + 1))


@pytest.mark.parametrize("hook", HOOKS)
def test_a_service_without_a_table_has_no_backend(kernels: dict[str, Kernel], hook: str) -> None:
    kernel = kernels[hook]
    world = one_service(4, no_backend=NoBackend.DROP)
    kernel.install(world)
    kernel.maps.tables.delete(table_key(1))
    seen = kernel.run(frame(TCP(dport=80), 4), INGRESS)
    assert list(seen.outcomes) == [Outcome.DROP_NO_BACKEND]


def nested(depth: int) -> Packet:
    packet: Packet = IPv6()
    for _ in range(depth):
        packet /= IPv6ExtHdrDestOpt()
    return packet / TCP(dport=80)


RARE = {
    # Where the stated length ends, padding begins, whatever it looks like.
    "a fragment header in the padding": IPv6(plen=8)
    / IPv6ExtHdrDestOpt()
    / IPv6ExtHdrFragment(offset=3),
    "a TCP header in the padding": IPv6(plen=8) / IPv6ExtHdrDestOpt() / TCP(dport=80),
    # 40 + 65,535 doesn't fit into 16 bits.
    "a length that wraps around": IPv6(plen=65535) / IPv6ExtHdrFragment(offset=3) / TCP(dport=80),
    "a length that wraps around, TCP": IPv6(plen=65530) / TCP(dport=80),
    "an extension header beyond the frame": IPv6() / IPv6ExtHdrDestOpt(len=255) / TCP(dport=80),
    "a route that goes on": IPv6() / IPv6ExtHdrRouting(addresses=["::9"]) / TCP(dport=80),
    "a route that ends": IPv6() / IPv6ExtHdrRouting(segleft=0) / TCP(dport=80),
    "an atomic fragment": IPv6() / IPv6ExtHdrFragment() / TCP(dport=80),
    "a fragment behind an atomic one": IPv6()
    / IPv6ExtHdrFragment()
    / IPv6ExtHdrFragment(m=1)
    / TCP(dport=80),
    "no next header": IPv6(nh=59),
    "six extension headers": nested(6),
    "seven extension headers": nested(7),
    "a mapped destination": IPv6(dst="::ffff:10.0.0.1") / TCP(dport=80),
    "a mapped source": IPv6(src="::ffff:198.51.100.2") / TCP(dport=80),
}


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("name", RARE)
def test_rare_frames(kernels: dict[str, Kernel], table: harness.TableMaps, hook: str, name: str) -> None:
    """What chance may not come upon, with a backend and without."""
    ip = RARE[name].copy()
    ip.src = ip.fields.get("src", CLIENTS[6])
    ip.dst = ip.fields.get("dst", str(VIPS[6]))
    packet = bytes(Ether(src=PEER.hex(":"), dst=OURS.hex(":")) / ip)
    world = one_service(6, tracking=Tracking.NEVER)
    for slots in (world.tables[1], np.zeros(65536, dtype=np.uint32)):
        case = replace(world, tables={1: slots})
        install(kernels[hook], case, table)
        expected, seen = process(packet, INGRESS, case), kernels[hook].run(packet, INGRESS)
        assert not harness.compare(kernels[hook], packet, expected, seen)


# The header of a piece that an ICMPv6 error quotes, and the bytes of the quote.
PIECES = {
    "first": (IPv6ExtHdrFragment(m=1, id=7), 56, Outcome.FORWARD_REDIRECT),
    "whole": (IPv6ExtHdrFragment(id=7), 60, Outcome.FORWARD_REDIRECT),
    "later": (IPv6ExtHdrFragment(offset=150, id=7), 60, Outcome.PASS_NOT_OURS),
    "ports cut off": (IPv6ExtHdrFragment(m=1, id=7), 55, Outcome.PASS_NOT_OURS),
    "header cut off": (IPv6ExtHdrFragment(m=1, id=7), 44, Outcome.PASS_NOT_OURS),
}


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("mode", [Mode.DSR, Mode.NAT])
@pytest.mark.parametrize("piece", PIECES)
def test_an_error_about_a_datagram_in_pieces(
    kernels: dict[str, Kernel], table: harness.TableMaps, hook: str, mode: Mode, piece: str
) -> None:
    header, size, outcome = PIECES[piece]
    world = one_service(6, 17, mode=mode)
    install(kernels[hook], world, table)
    quote = IPv6(src=str(VIPS[6]), dst=CLIENTS[6]) / header / UDP(sport=80, dport=4000) / bytes(90)
    packet = frame(ICMPv6PacketTooBig(mtu=1280) / bytes(quote)[:size], 6, src="2001:db8:a::99")
    expected, seen = process(packet, INGRESS, world), kernels[hook].run(packet, INGRESS)
    assert expected.outcome is outcome
    assert not harness.compare(kernels[hook], packet, expected, seen)


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    ("ifindex", "outcome"),
    [
        (INGRESS, Outcome.REPLY_REDIRECT),
        (netns.B, Outcome.REPLY_REDIRECT),
        (netns.C, Outcome.REPLY_PASS),  # not attached
        (0, Outcome.REPLY_PASS),  # nobody knows where from
    ],
)
def test_way_back_to_a_client_without_neighbour_entry(
    kernels: dict[str, Kernel],
    table: harness.TableMaps,
    hook: str,
    version: int,
    ifindex: int,
    outcome: Outcome,
) -> None:
    client = {4: "198.51.100.77", 6: "2001:db8:a::77"}[version]
    known = {ip_address(client): Sender(ifindex, PEER)} if ifindex else {}
    world = replace(one_service(version, mode=Mode.NAT), senders=known)
    install(kernels[hook], world, table)
    packet = frame(TCP(sport=8080, dport=4000), version, src=REALS[version].format(1), dst=client)
    expected, seen = process(packet, INGRESS, world), kernels[hook].run(packet, INGRESS)
    assert expected.outcome is outcome
    assert not harness.compare(kernels[hook], packet, expected, seen)


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("size", [0, 1446, 3400])
def test_frames_of_all_sizes(
    kernels: dict[str, Kernel], table: harness.TableMaps, hook: str, version: int, size: int
) -> None:
    kernel = kernels[hook]
    world = one_service(version, proto=17, mode=Mode.NAT, tracking=Tracking.NEVER)
    install(kernel, world, table)
    packet = frame(UDP(sport=5, dport=80) / random.Random(size).randbytes(size), version)
    seen, expected = kernel.run(packet, INGRESS), process(packet, INGRESS, world)
    assert (seen.frame, list(seen.outcomes)) == (expected.frame, [Outcome.FORWARD_REDIRECT])


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("resolved", [True, False])
@pytest.mark.parametrize("ttl", [2, 64, 255])
def test_the_sum_that_a_card_computed_stays_right(
    kernels: dict[str, Kernel],
    table: harness.TableMaps,
    version: int,
    mode: Mode,
    resolved: bool,
    ttl: int,
) -> None:
    """CHECKSUM_COMPLETE: the kernel compares skb->csum with the packet after the run, and fails it if
    they differ. (Not where VLAN tags are cut off: the helper takes a test run for egress, where the
    sum covers something else. Answers that we write ourselves lose the sum when they are resized.)
    """
    kernel = kernels["tc"]
    outcomes = set()
    for proto, l4 in ((6, TCP), (17, UDP)):
        world = one_service(version, proto, mode=mode, tracking=Tracking.NEVER)
        some = {n: replace(b, resolved=resolved) for n, b in world.backends.items()}
        install(kernel, replace(world, backends=some), table)
        packets = [frame(l4(dport=80) / b"odd", version, ttl=ttl)]
        if mode is Mode.NAT:
            back = {"src": REALS[version].format(1), "dst": CLIENTS[version], "ttl": ttl}
            packets.append(frame(l4(sport=8080), version, **back))
        if version == 6:
            packets.append(frame(ICMPv6EchoRequest(data=b"odd"), version, ttl=ttl))
        for packet in packets:
            seen = kernel.run(packet, INGRESS, flags=harness.TEST_SKB_CHECKSUM_COMPLETE)
            outcomes |= set(seen.outcomes)
    lost = Outcome.PASS_UNRESOLVED if mode in TRANSLATIONS else Outcome.DROP_UNRESOLVED
    assert outcomes == {
        Outcome.FORWARD_REDIRECT if resolved else lost,
        *([Outcome.REPLY_REDIRECT] if mode is Mode.NAT else []),
        *([Outcome.ECHO_REPLY] if version == 6 else []),
    }


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("tags", [1, 2])
def test_a_client_of_a_vlan_and_a_server_of_the_same_interface(
    kernels: dict[str, Kernel], table: harness.TableMaps, hook: str, mode: Mode, tags: int
) -> None:
    """A trunk. The server's next hop isn't by the VLAN's interface: so it is on the network without."""
    world = one_service(4, mode=mode, tracking=Tracking.NEVER)
    back = {
        n: replace(b, ifindex=INGRESS, source=ip_address("203.0.113.1"))
        for n, b in world.backends.items()
    }
    world = replace(world, backends=back)
    install(kernels[hook], world, table)
    ip = IP(src=CLIENTS[4], dst=str(VIPS[4]))
    ether: Packet = Ether(src=PEER.hex(":"), dst=OURS.hex(":"))
    for tag in range(tags):
        ether /= Dot1Q(vlan=7 + tag)
    packet = bytes(ether / ip / TCP(dport=80, flags="S"))
    expected, seen = process(packet, INGRESS, world), kernels[hook].run(packet, INGRESS)
    assert expected.outcome is Outcome.FORWARD_TX
    assert seen.frame[12:14] == b"\x08\0"
    assert not harness.compare(kernels[hook], packet, expected, seen)


def those(world: World, **fields: object) -> World:
    """The world with all backends so."""
    changed = {n: replace(each, **fields) for n, each in world.backends.items()}  # type: ignore[arg-type]
    return replace(world, backends=changed)


def exhausted(version: int, **policy: object) -> World:
    """Mode fullnat, and each port that the flow could get is somebody else's."""
    world = those(one_service(version, mode=Mode.FULLNAT, **policy), source=VIPS[version])
    client, service = ip_address(CLIENTS[version]), world.services[1]
    taken = {}
    for n, backend in world.backends.items():
        for port in fullnat.candidates(service.seed, client, 4000, 80):
            back = Translated(backend.address, 80, backend.source, port, 6)
            taken[back] = Client(FlowKey(client, 2, 1, 1), n, 0)
    return replace(world, translations=taken)


SYN = TCP(sport=4000, dport=80, flags="S")
UNKNOWN = {4: "198.51.100.77", 6: "2001:db8:a::77"}  # on a segment, and nobody knows its MAC address


def nat_answer(version: int, client: str) -> bytes:
    answer = TCP(sport=8080, dport=4000, flags="SA")
    return frame(answer, version, src=REALS[version].format(1), dst=client)


def fragment(version: int) -> bytes:
    if version == 4:
        ip = IP(src=CLIENTS[4], dst=str(VIPS[4]), proto=6, frag=185)
        return bytes(Ether(src=PEER.hex(":"), dst=OURS.hex(":")) / ip / bytes(60))
    return frame(IPv6ExtHdrFragment(offset=185, nh=6) / bytes(60), 6)


# Of each IP version: a world, and a frame that ends so in it.
ENDS: dict[Outcome, Callable[[int], tuple[World, bytes]]] = {
    Outcome.PASS_NOT_OURS: lambda v: (one_service(v), frame(TCP(dport=81), v)),
    Outcome.PASS_UNRESOLVED: lambda v: (
        those(one_service(v, mode=Mode.NAT), resolved=False),
        frame(SYN, v),
    ),
    Outcome.FORWARD_TX: lambda v: (those(one_service(v), ifindex=INGRESS), frame(SYN, v)),
    Outcome.FORWARD_REDIRECT: lambda v: (one_service(v), frame(SYN, v)),
    Outcome.REPLY_REDIRECT: lambda v: (one_service(v, mode=Mode.NAT), nat_answer(v, CLIENTS[v])),
    Outcome.REPLY_PASS: lambda v: (one_service(v, mode=Mode.NAT), nat_answer(v, UNKNOWN[v])),
    Outcome.ECHO_REPLY: lambda v: (
        one_service(v),
        frame(ICMPv6EchoRequest() if v == 6 else ICMP(), v),
    ),
    Outcome.REJECT_RST: lambda v: (those(one_service(v), usable=False), frame(SYN, v)),
    Outcome.REJECT_UNREACH: lambda v: (
        those(one_service(v, 17), usable=False),
        frame(UDP(sport=4000, dport=80), v),
    ),
    Outcome.DROP_NO_BACKEND: lambda v: (
        those(one_service(v, no_backend=NoBackend.DROP), usable=False),
        frame(SYN, v),
    ),
    Outcome.DROP_MALFORMED: lambda v: (one_service(v), frame(TCP(dport=80, dataofs=2), v)),
    Outcome.DROP_FRAGMENT: lambda v: (one_service(v), fragment(v)),
    Outcome.DROP_TTL: lambda v: (one_service(v), frame(SYN, v, ttl=1)),
    Outcome.DROP_UNRESOLVED: lambda v: (those(one_service(v), resolved=False), frame(SYN, v)),
    Outcome.REJECT_TOO_BIG: lambda v: (those(one_service(v), mtu=300), frame(SYN / bytes(400), v)),
    Outcome.DROP_TOO_BIG: lambda v: (
        those(one_service(v), mtu=300),
        frame(SYN / bytes(400), v, src={4: "255.255.255.255", 6: "ff02::1"}[v]),
    ),
    Outcome.REJECT_NAT_FULL: lambda v: (exhausted(v), frame(SYN, v)),
    Outcome.DROP_NAT_FULL: lambda v: (exhausted(v, no_backend=NoBackend.DROP), frame(SYN, v)),
}


def test_every_end_of_a_packet_has_its_test() -> None:
    # DROP_NO_SPACE: when the kernel has no memory to reshape a packet.
    assert {*ENDS, Outcome.DROP_NO_SPACE} == set(Outcome)


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("outcome", ENDS, ids=lambda outcome: outcome.name.lower())
def test_every_end_of_a_packet(
    kernels: dict[str, Kernel], table: harness.TableMaps, hook: str, version: int, outcome: Outcome
) -> None:
    world, packet = ENDS[outcome](version)
    kernel = kernels[hook]
    install(kernel, world, table)
    expected = process(packet, INGRESS, world)
    seen = kernel.run(packet, INGRESS)
    assert expected.outcome is outcome
    assert not harness.compare(kernel, packet, expected, seen)


# Of each kind of errors: one, what becomes of the packet without it, and an error of the other kind.
ERRORS = {
    consts.Error.UNREACH: (Outcome.REJECT_UNREACH, Outcome.DROP_NO_BACKEND, Outcome.REJECT_TOO_BIG),
    consts.Error.TOO_BIG: (Outcome.REJECT_TOO_BIG, Outcome.DROP_TOO_BIG, Outcome.REJECT_UNREACH),
}


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("kind", ERRORS)
def test_errors_have_an_allowance(
    kernels: dict[str, Kernel],
    table: harness.TableMaps,
    hook: str,
    version: int,
    kind: consts.Error,
) -> None:
    kernel, (sent, otherwise, other) = kernels[hook], ERRORS[kind]
    for wanted, spent in ((sent, 0), (otherwise, harness.NEVER), (sent, 0)):
        world, packet = ENDS[sent](version)
        world = replace(world, may_send_errors=wanted is sent)
        install(kernel, replace(world, may_send_errors=True), table)
        kernel.set_allowance(kind, spent)  # of this kind only
        expected, seen = process(packet, INGRESS, world), kernel.run(packet, INGRESS)
        assert expected.outcome is wanted
        assert not harness.compare(kernel, packet, expected, seen)
    world, packet = ENDS[other](version)
    install(kernel, world, table)
    kernel.set_allowance(kind, harness.NEVER)
    assert list(kernel.run(packet, INGRESS).outcomes) == [other]


@pytest.mark.parametrize("hook", HOOKS)
def test_an_error_spends_its_part_of_a_second(
    kernels: dict[str, Kernel], table: harness.TableMaps, hook: str
) -> None:
    kernel, second = kernels[hook], 1_000_000_000
    world, packet = ENDS[Outcome.REJECT_UNREACH](4)
    install(kernel, world, table)
    part = second // consts.ERRORS_PER_SECOND
    for ago in (0.5, 60):
        began = time.monotonic_ns()
        before = began - int(ago * second)
        kernel.set_allowance(consts.Error.UNREACH, before)
        assert list(kernel.run(packet, INGRESS).outcomes) == [Outcome.REJECT_UNREACH]
        ended = time.monotonic_ns()
        (after,) = set(kernel.allowance(consts.Error.UNREACH)) - {before}
        # What is older than a second is lost.
        assert max(before, began - second) + part <= after <= max(before, ended - second) + part


def test_frames_of_a_capture_need_no_allowance(
    kernels: dict[str, Kernel], table: harness.TableMaps
) -> None:
    kernel = kernels["tc"]
    world, packet = ENDS[Outcome.REJECT_UNREACH](4)
    install(kernel, world, table)
    kernel.set_allowance(consts.Error.UNREACH, harness.NEVER)
    replay = Replay(Hook.TC, kernel.program, kernel.maps, DesiredState())
    assert replay.send(packet, INGRESS).outcome == "reject_unreach"


OPEN, CLOSED = 2**62, 1


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("mode", [Mode.DSR, Mode.FULLNAT])
def test_clients_of_a_prefix_go_by_a_table_of_their_own(
    kernels: dict[str, Kernel], table: harness.TableMaps, hook: str, version: int, mode: Mode
) -> None:
    kernel, world = kernels[hook], one_service(version, mode=mode)
    client = ip_address(CLIENTS[version])
    near = ip_network((client, {4: 24, 6: 64}[version]), strict=False)
    elsewhere = ip_network("10.0.0.0/8" if version == 4 else "2001:db8:ffff::/48")
    sources = {n: replace(b, source=VIPS[version]) for n, b in world.backends.items()}
    world = replace(
        world,
        clock=1000,
        backends=sources,
        tables={1: np.full(65536, 1, np.uint32), 2: np.full(65536, 2, np.uint32)}
        | {3: np.full(65536, 3, np.uint32)},
    )
    more = {number: harness.TableMaps() for number in (2, 3)}
    kernel.use_tables(more)
    for number, each in more.items():
        harness.fill_table(each, world.tables[number])

    def goes_to(flags: str, rules: dict[Network, Rule], *, tracked: bool = False) -> int:
        now = replace(world, rules={1: rules})
        install(kernel, now, table)
        if tracked:
            kernel.run(frame(TCP(sport=4000, dport=80, flags="S"), version), INGRESS)
            now = replace(now, embryonic=kernel.flows("embryonic"), bindings=kernel.bindings())
            now = replace(now, translations=kernel.translations())
        packet = frame(TCP(sport=4000, dport=80, flags=flags), version)
        expected = process(packet, INGRESS, now)
        seen = kernel.run(packet, INGRESS)
        assert not harness.compare(kernel, packet, expected, seen)
        return expected.backend[0] if expected.backend else 0

    assert goes_to("S", {}) == 1
    assert goes_to("S", {elsewhere: Rule(2)}) == 1
    assert goes_to("S", {near: Rule(2)}) == 2
    exactly = ip_network(client)
    assert goes_to("S", {near: Rule(2), exactly: Rule(3)}) == 3
    assert goes_to("A", {near: Rule(2, 1, OPEN)}, tracked=True) == 2
    if mode is Mode.FULLNAT:
        return  # its flows stay where they are bound, whatever moves
    assert goes_to("A", {near: Rule(2, 1, OPEN)}) == 1  # older than the rule
    assert goes_to("A", {near: Rule(2, 1, CLOSED)}) == 2
    assert goes_to("A", {near: Rule(1, 3, OPEN), elsewhere: Rule(2)}) == 3


@pytest.mark.parametrize("hook", HOOKS)
def test_the_verifier_has_room_left(kernels: dict[str, Kernel], hook: str, record_property) -> None:
    # Its limit is a million; a jump means that some branch doubles the ways through the program.
    verified = harness.verified_instructions(kernels[hook].program)
    record_property("verified", verified)
    record_property("instructions", kernels[hook].instructions)
    assert verified < 120_000
    assert kernels[hook].instructions < 16_000


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize(("version", "client"), [(4, "192.0.2.77"), (6, "2001:db8:d::77")])
def test_answers_larger_than_the_route_takes_are_for_the_kernel(
    kernels: dict[str, Kernel], table: harness.TableMaps, hook: str, version: int, client: str
) -> None:
    """The route's MTU (600 and 1,300) is smaller than its interface's."""
    world = one_service(version, mode=Mode.NAT, tracking=Tracking.NEVER)
    install(kernels[hook], world, table)
    outcomes = []
    for size in (100, 1350):
        segment = TCP(sport=8080, dport=4000) / bytes(size)
        packet = frame(segment, version, src=REALS[version].format(1), dst=client)
        expected, seen = process(packet, INGRESS, world), kernels[hook].run(packet, INGRESS)
        assert not harness.compare(kernels[hook], packet, expected, seen)
        outcomes += seen.outcomes
    assert outcomes == [Outcome.REPLY_REDIRECT, Outcome.REPLY_PASS]


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("version", [4, 6])
def test_answers_to_health_checks_via_the_vip_are_for_the_kernel(
    kernels: dict[str, Kernel], table: harness.TableMaps, hook: str, version: int
) -> None:
    """In mode nat these say that they come from an address that nobody has."""
    world = one_service(version, mode=Mode.NAT, tracking=Tracking.NEVER)
    install(kernels[hook], world, table)
    own = next(each for each in answer.PROBE_SOURCES if each.version == version)
    outcomes = []
    for client in (str(own), CLIENTS[version]):
        packet = frame(TCP(sport=8080, dport=4000), version, src=REALS[version].format(1), dst=client)
        expected, seen = process(packet, INGRESS, world), kernels[hook].run(packet, INGRESS)
        assert not harness.compare(kernels[hook], packet, expected, seen)
        outcomes += seen.outcomes
    assert outcomes == [Outcome.PASS_NOT_OURS, Outcome.REPLY_REDIRECT]


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("where", ["conntrack", "embryonic"])
def test_answers_keep_what_is_remembered(
    kernels: dict[str, Kernel], table: harness.TableMaps, hook: str, version: int, where: str
) -> None:
    """RFC 4787, REQ-6: a flow on which only the server still sends is not idle. An ICMP error is no sign
    of life."""
    world = one_service(version, 17, mode=Mode.NAT, tracking=Tracking.ALWAYS)
    key = FlowKey(ip_address(CLIENTS[version]), 1, 4000, 80)
    clock = Clock()
    old = (clock.jiffies() - 10 * SEEN_STEP) % 2**32
    world = replace(world, **{where: {key: Flow(1, 1, old)}})
    install(kernels[hook], world, table)
    server = REALS[version].format(1)
    ip = IPv6 if version == 6 else IP
    sent = ip(src=CLIENTS[version], dst=server) / UDP(sport=4000, dport=8080)
    error = ICMPv6DestUnreach(code=4) if version == 6 else ICMP(type=3, code=3)
    outcomes = []
    for inner, kept in ((error / sent, False), (UDP(sport=8080, dport=4000), True)):
        packet = frame(inner, version, src=server, dst=CLIENTS[version])
        before = clock.jiffies()
        seen = kernels[hook].run(packet, INGRESS)
        expected = process(packet, INGRESS, replace(world, now=before))
        assert not harness.compare(kernels[hook], packet, expected, seen)
        outcomes += seen.outcomes
        (flow,) = kernels[hook].flows(where).values()
        assert (flow.seen != old) is kept is bool(getattr(expected, where))
        assert not kept or (clock.jiffies() - flow.seen) % 2**32 <= clock.jiffies() - before
    assert outcomes == [Outcome.REPLY_REDIRECT] * 2


FOREVER = 2**63


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("how", ["remembered", "older than the move", "bound"])
def test_clients_of_a_backend_that_failed_are_told(
    kernels: dict[str, Kernel], table: harness.TableMaps, hook: str, version: int, how: str
) -> None:
    """`established: reset`: whatever the policy for a service without a backend. What begins a
    connection goes to another one."""
    always = how == "remembered"
    world = one_service(
        version,
        mode=Mode.FULLNAT if how == "bound" else Mode.DSR,
        tracking=Tracking.ALWAYS if always else Tracking.MOVING,
        no_backend=NoBackend.DROP,
    )
    source = ip_address(REALS[version].format(9))
    backends = {n: replace(each, source=source) for n, each in world.backends.items()}
    backends[1] = replace(backends[1], usable=False, resets=True)
    key = FlowKey(ip_address(CLIENTS[version]), 1, 4000, 80)
    pasts = harness.Pasts((Past(1, FOREVER),)) if how == "older than the move" else harness.Pasts()
    world = replace(
        world,
        backends=backends,
        tables={1: np.full(65536, 2, dtype=np.uint32)},
        conntrack={key: Flow(1, 1, 0)} if always else {},
        bindings={key: Binding(source, 1, 1, 0, 5000)} if how == "bound" else {},
        pasts={1: pasts},
    )
    kernels[hook].install(world)
    harness.fill_table(table, world.tables[1], pasts)
    outcomes = []
    for flags in ("A", "S"):
        packet = frame(TCP(sport=4000, dport=80, flags=flags, seq=7, ack=9), version)
        expected, seen = process(packet, INGRESS, world), kernels[hook].run(packet, INGRESS)
        assert not harness.compare(kernels[hook], packet, expected, seen)
        outcomes += seen.outcomes
        kernels[hook].install(world)
    assert outcomes == [Outcome.REJECT_RST, Outcome.FORWARD_REDIRECT]
