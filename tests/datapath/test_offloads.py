"""What a test run can't show of tc: packets whose checksums a card is to finish (CHECKSUM_PARTIAL),
several in one (GSO), tags beside them, filters behind ours. Packets are sent for real, into a veth, and
looked at where they leave."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from ipaddress import ip_address

import pytest
from pyroute2 import IPRoute
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet

from lb.core.reference import World, process
from lb.core.reference.checksum import checksum, fold, pseudo_header, words
from lb.datapath import attach, release
from lb.datapath.bpf import Program, ProgramType
from lb.errors import DatapathError
from lb.model.objects import Mode, Tracking

from . import harness, netns
from .harness import Kernel
from .strategies import PEER
from .test_hooks import CLIENTS, REALS, VIPS, install, one_service, those

# linux/socket.h, uapi/linux/if_packet.h and virtio_net.h
SOL_PACKET, PACKET_AUXDATA, PACKET_VNET_HDR = 263, 8, 15
TP_STATUS_VLAN_VALID = 1 << 4
NEEDS_CSUM, VNET_BYTES = 1, 10
GSO = {(4, 6): 1, (6, 6): 4, (4, 17): 5, (6, 17): 5}  # IP version, protocol
HEADER = {6: 20, 17: 8}
CHECK_AT = {6: 16, 17: 6}  # in that header
SEGMENT = 1000
THEIR_PRIORITY = 49152
FAMILIES = pytest.mark.parametrize("version", [4, 6])
PROTOCOLS = pytest.mark.parametrize("proto", [6, 17], ids=["tcp", "udp"])
SEGMENTS = pytest.mark.parametrize("segments", [1, 3])


@dataclass(frozen=True)
class Unfinished:
    """A client's packet whose checksum is only the pseudo header's sum, of one segment or several."""

    version: int
    proto: int
    segments: int = 1
    vlan: int = 0

    @property
    def frame(self) -> bytes:
        l4: Packet = TCP(sport=4000, dport=80, flags="A", seq=1, ack=1, chksum=0)
        if self.proto == 17:
            l4 = UDP(sport=4000, dport=80, chksum=0)
        src, dst = CLIENTS[self.version], VIPS[self.version]
        ip: Packet = IPv6(src=src, dst=str(dst)) if self.version == 6 else IP(src=src, dst=str(dst))
        mac = netns.MAC[netns.C].hex(":")
        ether: Packet = Ether(src=PEER.hex(":"), dst=mac)
        if self.vlan:
            ether /= Dot1Q(vlan=self.vlan)
        raw = bytes(ether / ip / l4 / bytes(SEGMENT * self.segments))
        length = len(raw) - self._l4
        partial = fold(sum(words(pseudo_header(ip_address(src), dst, self.proto, length))))
        at = self._l4 + CHECK_AT[self.proto]
        return raw[:at] + partial.to_bytes(2) + raw[at + 2 :]

    @property
    def vnet(self) -> bytes:
        """struct virtio_net_hdr."""
        several = self.segments > 1
        return struct.pack(
            "=BBHHHH",
            NEEDS_CSUM,
            GSO[self.version, self.proto] if several else 0,
            self._l4 + HEADER[self.proto] if several else 0,
            SEGMENT if several else 0,
            self._l4,
            CHECK_AT[self.proto],
        )

    @property
    def _l4(self) -> int:
        return 14 + (4 if self.vlan else 0) + (20 if self.version == 4 else 40)


class Wire(ExitStack):
    """An interface's other end."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._socket = self.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
        for option in (PACKET_AUXDATA, PACKET_VNET_HDR):
            self._socket.setsockopt(SOL_PACKET, option, 1)
        self._socket.bind((name, 3))

    def send(self, sent: Unfinished) -> None:
        if sent.proto == 17 and sent.segments > 1 and release.version() < (6, 2):
            pytest.skip("VIRTIO_NET_HDR_GSO_UDP_L4 needs Linux 6.2")
        self._socket.send(sent.vnet + sent.frame)

    def received(self, count: int) -> list[bytes]:
        """So many frames, which are waited for, and what is there besides."""
        found: list[bytes] = []
        try:
            while True:
                self._socket.settimeout(5 if len(found) < count else 0)
                raw, [(_, _, beside)], _, address = self._socket.recvmsg(65535, 256)
                if address[2] == socket.PACKET_OUTGOING:
                    continue
                # struct tpacket_auxdata: here sockets get to know of tags.
                status, vlan, tpid = struct.unpack("=I12xHH", beside)
                tag = struct.pack("!HH", tpid, vlan) if status & TP_STATUS_VLAN_VALID else b""
                found.append(raw[VNET_BYTES:][:12] + tag + raw[VNET_BYTES:][12:])
        except (TimeoutError, BlockingIOError):
            return found


def finish_checksums(name: str, *, by_card: bool) -> None:
    """No card is there: so the kernel has to, for us to see whether it can."""
    switch = "on" if by_card else "off"
    subprocess.run(["ethtool", "-K", name, "tx", switch], check=True, capture_output=True)


@pytest.fixture(scope="module")
def attached(kernels: dict[str, Kernel], namespace: netns.Namespace) -> Iterator[Kernel]:
    """The program, where packets really come in."""
    with namespace, IPRoute() as ip:
        [here] = attach.by_index(ip, netns.C)
        attach.attach_filter(ip, here, kernels["tc"].program, "lb-test")
        for name in ("vec", "veb"):
            finish_checksums(name, by_card=False)
        yield kernels["tc"]
        attach.detach_filter(ip, here)
    with namespace:
        for name in ("vec", "veb"):
            finish_checksums(name, by_card=True)


@pytest.fixture
def table(attached: Kernel) -> Iterator[harness.TableMaps]:
    shared = harness.TableMaps()
    attached.use_tables({1: shared})
    yield shared
    shared.close()


@pytest.fixture
def near() -> Iterator[Wire]:
    """Where clients are."""
    with Wire("vec-far") as wire:
        yield wire


@pytest.fixture
def far() -> Iterator[Wire]:
    """Where servers are."""
    with Wire("veb-far") as wire:
        yield wire


def world_of(version: int, proto: int, via: int = 0, **policy: object) -> World:
    world = one_service(version, proto, tracking=Tracking.NEVER, **policy)
    links = {netns.C: netns.MAC[netns.C], netns.B: netns.MAC[netns.B]}
    world = replace(world, links=links)
    if via:
        world = those(world, address=ip_address(REALS[via].format(1)), port=6080)
        world = those(world, source=ip_address(REALS[via].format(9)))
    return world


REFUSALS = {"too big": {"mtu": 600}, "nobody there": {"usable": False}}


@FAMILIES
@PROTOCOLS
@SEGMENTS
@pytest.mark.parametrize("vlan", [0, 7])
@pytest.mark.parametrize("why", REFUSALS)
def test_what_we_answer_is_finished_whatever_the_packet_was(
    attached: Kernel,
    table: harness.TableMaps,
    near: Wire,
    version: int,
    proto: int,
    segments: int,
    vlan: int,
    why: str,
) -> None:
    world = those(world_of(version, proto), **REFUSALS[why])
    install(attached, world, table)
    sent = Unfinished(version, proto, segments, vlan)
    near.send(sent)
    expected = process(sent.frame, netns.C, world)
    assert near.received(1) == [expected.frame]


@FAMILIES
@PROTOCOLS
@SEGMENTS
@pytest.mark.parametrize("via", [4, 6])
@pytest.mark.parametrize("mode", [Mode.IPIP, Mode.GUE])
def test_segments_go_through_a_tunnel_as_they_were(
    attached: Kernel,
    table: harness.TableMaps,
    near: Wire,
    far: Wire,
    version: int,
    proto: int,
    segments: int,
    via: int,
    mode: Mode,
) -> None:
    install(attached, world_of(version, proto, via, mode=mode), table)
    near.send(Unfinished(version, proto, segments))
    frames = far.received(segments)
    assert len(frames) == segments
    for each in frames:
        outer = Ether(each).payload
        assert isinstance(outer, IP if via == 4 else IPv6)
        inner = bytes(outer.payload)
        if mode is Mode.GUE:
            assert (outer[UDP].dport, outer[UDP].len) == (6080, len(inner))
            # RFC 6935: none where it can't be the same for all segments. Over IPv4 there never is.
            assert (outer[UDP].chksum == 0) is (via == 4 or segments > 1)
            assert not outer[UDP].chksum or is_right(outer, 17, inner)
            inner = inner[8:]
        packet = IP(inner) if version == 4 else IPv6(inner)
        assert is_right(packet, proto, bytes(packet.payload))
        assert len(packet.payload.payload) == SEGMENT


@FAMILIES
@pytest.mark.parametrize("mode", list(Mode))
def test_a_tag_comes_off_also_where_the_server_is_on_the_same_interface(
    attached: Kernel, table: harness.TableMaps, near: Wire, version: int, mode: Mode
) -> None:
    """A real frame's tag stands beside the packet, where a test run has it inside."""
    back = {"ifindex": netns.C, "source": ip_address(REALS[version].format(9))}
    world = those(world_of(version, 17, mode=mode), **back)
    install(attached, world, table)
    near.send(Unfinished(version, 17, vlan=7))
    [got] = near.received(1)
    assert got[12:14] == {4: b"\x08\0", 6: b"\x86\xdd"}[version]


def test_filters_behind_ours_see_what_is_not_for_us(
    attached: Kernel, table: harness.TableMaps, near: Wire
) -> None:
    """At tc's own priority for the first filter that names none: a firewall's, say."""
    install(attached, replace(world_of(4, 6), vips={}), table)
    program = Program.constant(ProgramType.SCHED_CLS, "their_filter", harness.TC_ACT_SHOT)
    with IPRoute() as ip:
        [here] = attach.by_index(ip, netns.C)
        attach.attach_filter(ip, here, program, "their_filter", THEIR_PRIORITY)
        try:
            before = dropped_by_filters(here.name)
            near.send(Unfinished(4, 6))
            assert dropped_by_filters(here.name) - before == 1
        finally:
            attach.detach_filter(ip, here, THEIR_PRIORITY)


def dropped_by_filters(name: str) -> int:
    """At the ingress of an interface."""
    command = ["tc", "-s", "-j", "qdisc", "show", "dev", name, "clsact"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return int(json.loads(shown)[0]["drops"])


def test_the_older_ingress_qdisc_is_named(attached: Kernel) -> None:
    with IPRoute() as ip:
        [here] = attach.by_index(ip, netns.A)
        subprocess.run(["tc", "qdisc", "add", "dev", here.name, "ingress"], check=True)
        try:
            with pytest.raises(DatapathError, match="older qdisc `ingress`") as raised:
                attach.attach_filter(ip, here, attached.program, "lb-test")
            assert f"tc qdisc del dev {here.name} ingress" in raised.value.hint
        finally:
            subprocess.run(["tc", "qdisc", "del", "dev", here.name, "ingress"], check=True)


def is_right(ip: Packet, proto: int, segment: bytes) -> bool:
    """Its checksum."""
    ends = ip_address(ip.src), ip_address(ip.dst)
    return checksum(pseudo_header(*ends, proto, len(segment)) + segment) == 0
