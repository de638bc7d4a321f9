"""Mirrored traffic: the copies, packet by packet, and what becomes of their servers' answers. Copies are
sent for real, out of a veth whose other end is looked at."""

from __future__ import annotations

import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyroute2 import IPRoute
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from lb.core import flowhash
from lb.core.ids import uid
from lb.core.reference import Flow, FlowKey, World
from lb.datapath import attach, compile, consts, structs
from lb.datapath.bpf import Program
from lb.datapath.maps import Maps
from lb.model import keys
from lb.model.objects import Affinity, Mode, Tracking

from . import harness, netns
from .harness import Kernel, u32
from .strategies import INGRESS, OURS
from .test_hooks import CLIENTS, REALS, frame, one_service

CANARY, TABLE = 5, 2
CANARY_MAC, NODE_MAC = bytes([2, 0, 0, 0, 3, CANARY]), bytes([2, 0, 0, 0, 4, CANARY])
ON = harness.TC_ACT_UNSPEC  # to the balancer
REDIRECT, SHOT = harness.TC_ACT_REDIRECT, harness.TC_ACT_SHOT
FAMILIES = pytest.mark.parametrize("version", [4, 6])
FIRST, THEIRS = 0xFFFFFF00, 0xFFFFFFF0  # sequence numbers that wrap around


@pytest.fixture(scope="module")
def programs(namespace: netns.Namespace) -> Iterator[tuple[Maps, Program]]:
    """mirror_in, to be run, and mirror_out, attached to where copies leave."""
    maps = Maps.create(harness.LIMITS)
    with namespace, tempfile.TemporaryDirectory(prefix="lb-test-") as name, IPRoute() as ip:
        place = Path(name)
        subprocess.run(["mount", "-t", "bpf", "lb-test", name], check=True)
        try:
            maps.pin(place)
            for each in ("mirror_in", "mirror_out"):
                compile.load("tc", place, place / each, each)
            out = Program.open(place / "mirror_out")
            program = Program.open(place / "mirror_in")
        finally:
            subprocess.run(["umount", name], check=True)
        [far] = attach.by_index(ip, netns.B)
        attach.attach_filter(ip, far, out, "lb-test", attach.MIRRORS, attach.EGRESS)
        yield maps, program
        attach.detach_filter(ip, far, attach.MIRRORS, attach.EGRESS)
    for _, each in maps:
        each.close()


@dataclass
class Scene:
    """A service with one backend, and a canary that gets copies."""

    kernel: Kernel
    wire: socket.socket
    version: int

    def client(self, l4: Packet, *, dst: str = "") -> list[Packet]:
        """A client's packet, which goes on as it is; the copies that were sent."""
        sent = frame(l4, self.version, dst=dst)
        seen = self.kernel.run(sent, INGRESS)
        assert (seen.verdict, seen.frame) == (ON, sent)
        return self.copies()

    def canary(self, l4: Packet, *, dst: str = "", flags: int = 0) -> tuple[int, Packet]:
        """What becomes of a packet of the canary's."""
        src = REALS[self.version].format(CANARY)
        sent = frame(l4, self.version, src=src, dst=dst or CLIENTS[self.version])
        seen = self.kernel.run(sent, netns.B, flags=flags)
        if seen.verdict != REDIRECT:
            assert seen.frame == sent
        return seen.verdict, Ether(seen.frame)

    def copies(self) -> list[Packet]:
        found = []
        while True:
            try:
                raw, address = self.wire.recvfrom(65535)
            except BlockingIOError:
                return found
            if address[2] != socket.PACKET_OUTGOING:
                found.append(Ether(raw))

    def counted(self) -> dict[str, int]:
        raw = harness.read_all(self.kernel.maps.mirror_stats, harness.LIMITS.services)[1]
        names = [name for name, *_ in structs.MirrorStats._fields_]
        return {n: int(v) for n, v in zip(names, raw, strict=True) if v and n != "bytes"}

    def entries(self) -> list[structs.Mirrored]:
        return [structs.Mirrored.from_buffer_copy(raw) for _, raw in self.kernel.maps.mirrored.items()]

    def put(self, where: str, key: FlowKey, backend: int) -> None:
        flow = Flow(backend, 0, 0)
        self.kernel.maps.by_name[where].put(harness.flow_key(key), harness.flow_struct(flow))


@pytest.fixture
def mirror(programs: tuple[Maps, Program]) -> Iterator[Any]:
    maps, program = programs
    kernel = Kernel("tc", maps, program, 0, frozenset())
    tables = {1: harness.TableMaps(), TABLE: harness.TableMaps()}
    kernel.use_tables(tables)
    for number, backend in ((1, 1), (TABLE, CANARY)):
        words = np.full(65536, backend, dtype=np.uint32)
        tables[number].fill((bytes(8 * consts.EPOCHS) + words.tobytes(), None))
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    wire.bind(("veb-far", 0))
    wire.setblocking(False)

    def make(version: int = 4, proto: int = 6, *, percent: float = 100, **policy: Any) -> Scene:
        patience = policy.pop("patience", 0)
        world = one_service(version, proto, **{"mode": Mode.NAT, "tracking": Tracking.MOVING, **policy})
        kernel.install(replace(world, links={**world.links, netns.B: OURS}))
        service = harness.service_struct(world.services[1])
        service.mirror_table, service.mirror_limit = TABLE, round(percent * 655.36)
        service.patience = patience
        maps.services.put(u32(1), bytes(service))
        raw = structs.Backend.from_buffer_copy(maps.backends.get(u32(CANARY)) or b"")
        raw.flags |= consts.BackendFlag.MIRROR
        maps.backends.put(u32(CANARY), bytes(raw))
        scene = Scene(kernel, wire, version)
        scene.copies()
        return scene

    yield make
    wire.close()
    kernel.install(World())
    for key in list(maps.mirrored.keys()):
        maps.mirrored.delete(key)
    maps.mirror_stats.put(u32(1), bytes(maps.mirror_stats.user_value_size))
    for table in tables.values():
        table.close()


def syn(port: int = 4000, seq: int = FIRST) -> Packet:
    options = [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (77, 0)), ("NOP", None), ("WScale", 7)]
    return TCP(sport=port, dport=80, flags="S", seq=seq, options=options)


def segment(seq: int, data: bytes = b"", *, flags: str = "PA", ack: int = 1, port: int = 4000) -> Packet:
    options = [("NOP", None), ("NOP", None), ("Timestamp", (78, 0xAABBCCDD))]
    return TCP(sport=port, dport=80, flags=flags, seq=seq, ack=ack, options=options) / data


def theirs(seq: int, data: bytes = b"", *, flags: str = "PA", ack: int = 0, port: int = 4000) -> Packet:
    options: list[Any] = [("NOP", None), ("NOP", None), ("Timestamp", (0x01020304, 78))]
    if "S" in flags:
        options = [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (0x01020304, 77)), ("NOP", None)]
        options.append(("WScale", 7))
    return TCP(sport=8080, dport=port, flags=flags, seq=seq, ack=ack, options=options) / data


def has_right_sums(packet: Packet) -> bool:
    """Its checksums are what scapy would have computed."""
    again = packet.copy()
    for layer in (IP, TCP, UDP):
        if layer in again:
            del again[layer].chksum
    return bytes(Ether(bytes(again))) == bytes(packet)


def next_of(seq: int, count: int) -> int:
    return (seq + count) % 2**32


def handshake(scene: Scene, port: int = 4000) -> None:
    scene.client(syn(port))
    verdict, _ = scene.canary(theirs(THEIRS, flags="SA", ack=FIRST + 1, port=port))
    assert verdict == REDIRECT


@FAMILIES
def test_a_copy_is_the_packet_for_another_server(mirror: Any, version: int) -> None:
    scene = mirror(version)
    sent = Ether(frame(syn(), version))
    [copy] = scene.client(syn())
    ip, was = (copy[IPv6], sent[IPv6]) if version == 6 else (copy[IP], sent[IP])
    assert (ip.src, ip.dst) == (was.src, REALS[version].format(CANARY))
    assert (copy.dst, copy.src) == (CANARY_MAC.hex(":"), NODE_MAC.hex(":"))
    assert (ip.hlim, was.hlim) == (63, 64) if version == 6 else (ip.ttl, was.ttl) == (63, 64)
    assert (copy[TCP].sport, copy[TCP].dport) == (4000, 8080)
    assert (copy[TCP].seq, copy[TCP].options) == (FIRST, sent[TCP].options)
    assert has_right_sums(copy)
    assert scene.counted() == {"flows": 1, "copies": 1}


@FAMILIES
def test_a_whole_connection(mirror: Any, version: int) -> None:
    scene = mirror(version)
    scene.client(syn())
    # The SYN-ACK is acknowledged here, at once.
    verdict, ack = scene.canary(theirs(THEIRS, flags="SA", ack=FIRST + 1))
    assert verdict == REDIRECT
    ip = ack[IPv6] if version == 6 else ack[IP]
    assert (ip.src, ip.dst) == (CLIENTS[version], REALS[version].format(CANARY))
    assert (ack.src, ack.dst) == (OURS.hex(":"), frame_source())
    assert (ack[TCP].sport, ack[TCP].dport, str(ack[TCP].flags)) == (4000, 8080, "A")
    assert (ack[TCP].seq, ack[TCP].ack) == (FIRST + 1, next_of(THEIRS, 1))
    assert has_right_sums(ack)
    # The client's acknowledgements are of the other server.
    assert scene.client(segment(FIRST + 1, flags="A", ack=500)) == []
    [asked] = scene.client(segment(FIRST + 1, b"x" * 300, ack=500))
    assert (asked[TCP].seq, asked[TCP].ack) == (FIRST + 1, next_of(THEIRS, 1))
    assert dict(asked[TCP].options[2:])["Timestamp"] == (78, 0x01020304)
    assert bytes(asked[TCP].payload) == b"x" * 300
    assert has_right_sums(asked)
    # Whatever it answers has come, also out of order.
    for seq, length in ((1, 100), (401, 99), (101, 300)):
        verdict, ack = scene.canary(theirs(next_of(THEIRS, seq), b"y" * length, ack=0))
        assert verdict == REDIRECT
        assert bytes(ack[TCP].payload) == b""
    assert (ack[TCP].seq, ack[TCP].ack) == (next_of(FIRST, 301), next_of(THEIRS, 500))
    assert has_right_sums(ack)
    assert scene.canary(theirs(next_of(THEIRS, 500), flags="A"))[0] == SHOT
    [fin] = scene.client(segment(next_of(FIRST, 301), flags="FA", ack=9000))
    assert (fin[TCP].seq, fin[TCP].ack) == (next_of(FIRST, 301), next_of(THEIRS, 500))
    verdict, ack = scene.canary(theirs(next_of(THEIRS, 500), flags="FA"))
    assert (ack[TCP].seq, ack[TCP].ack) == (next_of(FIRST, 302), next_of(THEIRS, 501))
    assert scene.counted() == {"flows": 1, "copies": 3, "answers": 6}


def frame_source() -> str:
    return Ether(frame(syn(), 4)).src


def test_a_client_that_has_no_timestamps(mirror: Any) -> None:
    scene = mirror()
    scene.client(TCP(sport=4000, dport=80, flags="S", seq=FIRST))
    scene.canary(TCP(sport=8080, dport=4000, flags="SA", seq=THEIRS, ack=FIRST + 1))
    [copy] = scene.client(TCP(sport=4000, dport=80, flags="PA", seq=FIRST + 1, ack=7) / b"GET /")
    assert (copy[TCP].ack, copy[TCP].options) == (next_of(THEIRS, 1), [])
    assert has_right_sums(copy)


def test_data_before_the_canary_has_answered_is_a_lost_copy(mirror: Any) -> None:
    scene = mirror()
    scene.client(syn())
    assert scene.client(segment(FIRST + 1, b"GET /")) == []
    assert scene.client(segment(FIRST + 6, b" HTTP/1.1")) == []
    verdict, reset = scene.canary(theirs(THEIRS, flags="SA", ack=FIRST + 1))
    assert (verdict, str(reset[TCP].flags), reset[TCP].seq) == (REDIRECT, "R", FIRST + 1)
    assert has_right_sums(reset)
    assert scene.counted() == {"flows": 1, "copies": 1, "given_up": 1, "answers": 1}


def test_a_hole_is_a_lost_copy(mirror: Any) -> None:
    scene = mirror()
    handshake(scene)
    assert len(scene.client(segment(FIRST + 1, b"GET /"))) == 1
    assert len(scene.client(segment(FIRST + 1, b"GET /"))) == 1  # sent again
    assert scene.client(segment(FIRST + 10, b"HTTP/1.1")) == []
    assert scene.counted()["given_up"] == 1


def test_syns_sent_again_and_old_ports(mirror: Any) -> None:
    scene = mirror()
    handshake(scene)
    assert len(scene.client(syn())) == 1
    assert [each.stage for each in scene.entries()] == [consts.MirrorStage.OPEN]
    scene.client(syn(seq=5))
    assert [each.stage for each in scene.entries()] == [consts.MirrorStage.OPENING]
    assert scene.counted()["flows"] == 2


def test_resets_of_either_side(mirror: Any) -> None:
    scene = mirror()
    handshake(scene)
    [copy] = scene.client(segment(FIRST + 1, flags="R", ack=0))
    assert (str(copy[TCP].flags), copy[TCP].seq) == ("R", FIRST + 1)
    assert scene.entries() == []
    scene.client(syn(4001))
    assert scene.canary(theirs(0, flags="RA", ack=FIRST + 1, port=4001))[0] == SHOT
    assert scene.entries() == []
    # What comes after that reaches no client, either.
    assert scene.canary(theirs(0, flags="RA", ack=FIRST + 1, port=4001))[0] == SHOT


@FAMILIES
def test_datagrams(mirror: Any, version: int) -> None:
    scene = mirror(version, 17)
    for _ in range(2):
        [copy] = scene.client(UDP(sport=4000, dport=80) / b"question")
        assert (copy[UDP].dport, bytes(copy[UDP].payload)) == (8080, b"question")
        assert has_right_sums(copy)
    assert scene.canary(UDP(sport=8080, dport=4000) / b"answer")[0] == SHOT
    assert scene.counted() == {"copies": 2, "answers": 1}
    # From another port of it, it is no answer.
    assert scene.canary(UDP(sport=8081, dport=4000) / b"answer")[0] == ON


@FAMILIES
def test_that_nobody_listens_there_is_no_news_for_clients(mirror: Any, version: int) -> None:
    scene = mirror(version, 17)
    [copy] = scene.client(UDP(sport=4000, dport=80) / b"question")
    quoted = bytes(copy.payload)[:60]
    error = ICMPv6DestUnreach(code=4) if version == 6 else ICMP(type=3, code=3)
    assert scene.canary(error / quoted)[0] == SHOT


def test_pieces_are_not_copied(mirror: Any) -> None:
    scene = mirror(4, 17)
    sent = Ether(frame(UDP(sport=4000, dport=80) / bytes(64), 4))
    sent[IP].flags = "MF"
    del sent[IP].chksum
    assert scene.kernel.run(bytes(sent), INGRESS).verdict == ON
    assert scene.copies() == []
    assert scene.counted() == {"given_up": 1}


@pytest.mark.parametrize("proto", [6, 17])
def test_health_checks_of_the_node_are_answered(mirror: Any, proto: int) -> None:
    scene = mirror(4, proto)
    l4 = TCP(flags="SA") if proto == 6 else UDP()
    l4.sport, l4.dport = 8080, 50000
    assert scene.canary(l4, dst="198.51.100.1")[0] == ON
    assert scene.canary(l4, dst="192.0.0.8")[0] == ON  # via the VIP
    assert scene.canary(l4)[0] == SHOT


@pytest.mark.parametrize("where", ["conntrack", "embryonic"])
@pytest.mark.parametrize("proto", [6, 17])
def test_flows_that_the_canary_has_from_before_are_left_alone(
    mirror: Any, proto: int, where: str
) -> None:
    scene = mirror(4, proto)
    key = FlowKey(ip_address(CLIENTS[4]), 1, 4000, 80)
    l4 = theirs(9, b"more") if proto == 6 else UDP(sport=8080, dport=4000) / b"more"
    scene.put(where, key, CANARY)
    assert scene.canary(l4)[0] == ON
    assert scene.client(syn() if proto == 6 else UDP(sport=4000, dport=80) / b"?") == []
    scene.put(where, key, 1)  # the other server's
    scene.client(UDP(sport=4000, dport=80) / b"?")
    assert scene.canary(l4)[0] == SHOT


def test_a_share_of_the_flows(mirror: Any) -> None:
    scene = mirror(4, 17, percent=10)
    seed = (11, 22)
    copied = []
    for port in range(2000, 4000):
        packet = UDP(sport=port, dport=80) / b"?"
        counts = {len(scene.client(packet)) for _ in range(2 if port < 2100 else 1)}
        assert len(counts) == 1  # whole flows
        slot = flowhash.slot(seed, ip_address(CLIENTS[4]), port, 80, Affinity.FLOW)
        sampled = flowhash.mix(seed[1] ^ consts.MIRROR_SALT ^ slot) & 0xFFFF < round(6553.6)
        assert counts == {int(sampled)}
        if sampled:
            copied.append(slot)
    assert 150 <= len(copied) <= 250
    # Not those of a few slots, which a few backends have.
    assert np.histogram(copied, bins=4, range=(0, 65536))[0].min() > 20


def test_no_copies_while_it_rests_and_nobody_is_taken_for_one(mirror: Any) -> None:
    scene = mirror()
    handshake(scene)
    assert scene.entries()
    # Now the canary has clients of its own: one comes from the same port.
    maps = scene.kernel.maps
    service = structs.Service.from_buffer_copy(maps.services.get(u32(1)) or b"")
    service.mirror_limit = 0
    maps.services.put(u32(1), bytes(service))
    raw = structs.Backend.from_buffer_copy(maps.backends.get(u32(CANARY)) or b"")
    raw.flags &= ~consts.BackendFlag.MIRROR
    maps.backends.put(u32(CANARY), bytes(raw))
    assert scene.canary(theirs(next_of(THEIRS, 1), b"late", ack=FIRST + 1))[0] == REDIRECT  # of a copy
    assert scene.client(syn(seq=77)) == []
    assert scene.canary(theirs(THEIRS, flags="SA", ack=78))[0] == ON


@pytest.mark.parametrize("why", ["unresolved", "not in the pool", "ttl", "mtu"])
def test_what_nobody_can_take_is_given_up(mirror: Any, why: str) -> None:
    scene = mirror(4, 17)
    maps = scene.kernel.maps
    raw = structs.Backend.from_buffer_copy(maps.backends.get(u32(CANARY)) or b"")
    if why == "unresolved":
        raw.flags &= ~consts.BackendFlag.RESOLVED
    elif why == "not in the pool":
        raw.flags &= ~consts.BackendFlag.MIRROR
    elif why == "mtu":
        raw.mtu = 100
    maps.backends.put(u32(CANARY), bytes(raw))
    sent = frame(UDP(sport=4000, dport=80) / bytes(100), 4, ttl=1 if why == "ttl" else 64)
    assert scene.kernel.run(sent, INGRESS).verdict == ON
    assert scene.copies() == []
    assert scene.counted() == {"given_up": 1}


def test_other_traffic_goes_on(mirror: Any) -> None:
    scene = mirror()
    assert scene.client(TCP(sport=4000, dport=443, flags="S")) == []
    assert scene.client(syn(), dst="198.51.100.1") == []
    src = REALS[4].format(1)
    other = frame(TCP(sport=8080, dport=4000, flags="SA"), 4, src=src, dst=CLIENTS[4])
    assert scene.kernel.run(other, netns.B).verdict == ON
    assert scene.counted() == {}


def test_what_its_connections_come_to_is_counted(mirror: Any) -> None:
    scene = mirror(patience=10)
    maps = scene.kernel.maps
    owner = uid(keys.backend("web", "canary"))
    maps.backend_owners.put(u32(CANARY), bytes(structs.Owner(owner)))
    maps.totals.put(owner.to_bytes(8, "little"), bytes(structs.Totals()))
    try:
        handshake(scene)
        scene.client(segment(FIRST + 1, b"GET / HTTP/1.1\r\n\r\n"))
        scene.canary(theirs(next_of(THEIRS, 1), b"HTTP/1.1 503 Busy\r\n\r\n", ack=FIRST + 19))
        raw = maps.totals.get(owner.to_bytes(8, "little")) or b""
        events = structs.Totals.from_buffer_copy(raw).event
        counted = {each.name: events[each] for each in consts.Event if events[each]}
        assert counted == {"OPENED": 1, "ESTABLISHED": 1, "REQUESTS": 1, "HTTP_5XX": 1}
    finally:
        maps.backend_owners.put(u32(CANARY), bytes(8))
        maps.totals.delete(owner.to_bytes(8, "little"))
        for key in list(maps.watched.keys()):
            maps.watched.delete(key)
