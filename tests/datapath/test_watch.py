"""What the programs count of the connections of an observed service, packet by packet, on both hooks."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any

import numpy as np
import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from lb.core import histogram
from lb.core.ids import uid
from lb.core.reference import World
from lb.datapath import headers, sources, structs
from lb.datapath.bpf import Map, Program
from lb.datapath.watch import Watch
from lb.model import keys
from lb.model.flows import FlowReport, FlowTotals, Vantage
from lb.model.objects import TRANSLATIONS, Mode, Tracking
from lb.settings import Observation

from . import harness
from .harness import Kernel
from .strategies import INGRESS
from .test_hooks import frame, one_service

HOOKS = ["xdp", "tc"]
SECOND = 1_000_000_000
LIMITS = Observation(unanswered=3, unserved=10)
OK, BROKEN = b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 503 Service Unavailable\r\n\r\n"
SOURCE = {4: ip_address("10.1.0.200"), 6: ip_address("2001:db8:b::200")}


@dataclass
class Scene:
    """A service with one backend, b1, observed."""

    kernel: Kernel
    version: int
    watch: Watch
    is_one_way: bool
    port: int = 4000

    @property
    def totals(self) -> FlowTotals:
        return self.report.backends["b1"]

    @property
    def report(self) -> FlowReport:
        return self.watch.reports("n1", Vantage.NODE)["web"]

    def counted(self) -> dict[str, Any]:
        """What isn't zero; of histograms how many."""
        found = self.totals.model_dump(exclude_defaults=True)
        return {k: sum(v.values()) if k in ("handshake", "first_byte") else v for k, v in found.items()}

    def connect(self) -> Connection:
        self.port += 1
        return Connection(self, self.port)

    def entries(self) -> list[structs.Watched]:
        return [structs.Watched.from_buffer_copy(raw) for _, raw in self.kernel.maps.watched.items()]

    def age(self, microseconds: int) -> None:
        """Everything that waits has waited so much longer."""
        for key, raw in list(self.kernel.maps.watched.items()):
            entry = structs.Watched.from_buffer_copy(raw)
            entry.since -= microseconds * 1000
            self.kernel.maps.watched.put(key, bytes(entry))


@dataclass
class Connection:
    """Both ends of a connection, as packets."""

    scene: Scene
    port: int
    seq: int = 0xFFFFFF00  # so that sequence numbers wrap around
    ack: int = 0xFFFFFFF0
    back: dict[str, Any] | None = None  # how the server sees the client

    def client(self, flags: str, data: bytes = b"", *, again: bool = False) -> None:
        seq = (self.seq - len(data)) % 2**32 if again else self.seq
        segment = TCP(sport=self.port, dport=80, flags=flags, seq=seq, ack=self.ack) / data
        seen = self.scene.kernel.run(frame(segment, self.scene.version), INGRESS)
        if not again:
            self.seq = (self.seq + len(data) + sum(f in "SF" for f in flags)) % 2**32
        if self.scene.is_one_way:
            return
        sent = Ether(seen.frame)
        ip = sent[IPv6] if self.scene.version == 6 else sent[IP]
        self.back = {"src": ip.dst, "dst": ip.src, "sport": sent[TCP].dport, "dport": sent[TCP].sport}

    def server(self, flags: str, data: bytes = b"", *, again: bool = False) -> None:
        assert self.back
        seq = (self.ack - len(data)) % 2**32 if again else self.ack
        ports = {side: self.back[side] for side in ("sport", "dport")}
        segment = TCP(**ports, flags=flags, seq=seq, ack=self.seq) / data
        ends = {side: self.back[side] for side in ("src", "dst")}
        self.scene.kernel.run(frame(segment, self.scene.version, **ends), INGRESS)
        if not again:
            self.ack = (self.ack + len(data) + sum(f in "SF" for f in flags)) % 2**32

    def handshake(self) -> Connection:
        self.client("S")
        self.server("SA")
        self.client("A")
        return self


@pytest.fixture(params=HOOKS)
def kernel(request: pytest.FixtureRequest, kernels: dict[str, Kernel]) -> Iterator[Kernel]:
    kernel = kernels[request.param]
    shared = harness.TableMaps()
    kernel.use_tables({1: shared})
    harness.fill_table(shared, np.ones(65536, dtype=np.uint32))
    yield kernel
    kernel.install(World())
    for each in (kernel.maps.watched, kernel.maps.totals, kernel.maps.overdue):
        clear(each)
    for number in (1, 2):
        kernel.maps.backend_owners.put(harness.u32(number), bytes(8))
    shared.close()


def clear(each: Map) -> None:
    for key in list(each.keys()):
        each.delete(key)


def observe(kernel: Kernel, version: int = 4, *, patience: int = 10, **policy: Any) -> Scene:
    world = one_service(version, **policy)
    backends = {n: replace(b, source=SOURCE[version]) for n, b in world.backends.items()}
    kernel.install(replace(world, backends=backends))
    service = harness.service_struct(world.services[1])
    service.patience = patience
    kernel.maps.services.put(harness.u32(1), bytes(service))
    own(kernel, 1, "b1")
    maps = kernel.maps
    watch = Watch(maps.watched, maps.totals, maps.overdue, LIMITS)
    watch.follow({"web": ["b1"]})
    return Scene(kernel, version, watch, world.services[1].mode not in TRANSLATIONS)


def own(kernel: Kernel, number: int, name: str) -> None:
    owner = structs.Owner(uid(keys.backend("web", name)))
    kernel.maps.backend_owners.put(harness.u32(number), bytes(owner))


BOTH_WAYS = pytest.mark.parametrize("mode", [Mode.NAT, Mode.FULLNAT])
FAMILIES = pytest.mark.parametrize("version", [4, 6])


@BOTH_WAYS
@FAMILIES
def test_a_whole_connection(kernel: Kernel, mode: Mode, version: int) -> None:
    scene = observe(kernel, version, mode=mode)
    one = scene.connect().handshake()
    assert scene.counted() == {"opened": 1, "established": 1, "handshake": 1}
    for answer in (OK, BROKEN, OK, b"not HTTP"):
        one.client("PA", b"GET / HTTP/1.1\r\n\r\n")
        one.server("PA", answer)
        one.server("PA", b"more of it")
        one.client("A")
    one.server("FA")
    one.client("FA")
    one.server("A")
    assert scene.counted() == {
        "opened": 1,
        "established": 1,
        "handshake": 1,
        "requests": 4,
        "first_byte": 4,
        "http": {"2xx": 2, "5xx": 1},
    }
    assert scene.entries() == []  # it is over


@BOTH_WAYS
def test_syns_sent_again(kernel: Kernel, mode: Mode) -> None:
    scene = observe(kernel, mode=mode)
    one = scene.connect()
    for _ in range(3):
        one.client("S")
        one.seq -= 1
    assert scene.counted() == {"opened": 1, "syn_retransmissions": 2}
    one.seq += 1
    one.server("SA")
    one.server("SA")
    assert scene.counted() == {
        "opened": 1,
        "syn_retransmissions": 2,
        "established": 1,
        "handshake": 1,
    }


@BOTH_WAYS
def test_the_same_ports_again(kernel: Kernel, mode: Mode) -> None:
    scene = observe(kernel, mode=mode)
    one = scene.connect().handshake()
    one.client("R")
    one.seq = (one.seq + 100_000) % 2**32
    one.handshake()
    assert scene.counted() == {"opened": 2, "established": 2, "handshake": 2, "resets_by_client": 1}


@BOTH_WAYS
def test_a_refusal(kernel: Kernel, mode: Mode) -> None:
    scene = observe(kernel, mode=mode)
    one = scene.connect()
    one.client("S")
    one.server("RA")
    one.server("RA")  # of nothing any more
    assert scene.counted() == {"opened": 1, "refused": 1}


@BOTH_WAYS
def test_resets_by_side(kernel: Kernel, mode: Mode) -> None:
    scene = observe(kernel, mode=mode)
    scene.connect().handshake().server("R")
    for _ in range(2):
        scene.connect().handshake().client("RA")
    counted = scene.counted()
    assert (counted["resets_by_server"], counted["resets_by_client"]) == (1, 2)
    assert scene.entries() == []


@BOTH_WAYS
def test_segments_sent_again(kernel: Kernel, mode: Mode) -> None:
    scene = observe(kernel, mode=mode)
    one = scene.connect().handshake()
    one.client("PA", b"GET / HTTP/1.1\r\n\r\n")
    one.client("PA", b"GET / HTTP/1.1\r\n\r\n", again=True)
    for _ in range(2):
        one.server("PA", OK)
    for _ in range(3):
        one.server("PA", OK, again=True)
    one.client("A")
    counted = scene.counted()
    assert counted["retransmits_by_client"] == 1
    assert counted["retransmits_by_server"] == 3
    assert (counted["requests"], counted["first_byte"], counted["http"]) == (1, 1, {"2xx": 1})


@BOTH_WAYS
def test_a_close_without_an_answer(kernel: Kernel, mode: Mode) -> None:
    scene = observe(kernel, mode=mode)
    one = scene.connect().handshake()
    one.client("PA", b"GET / HTTP/1.1\r\n\r\n")
    one.server("FA")
    one.client("FA")
    counted = scene.counted()
    assert (counted["requests"], counted["unserved"]) == (1, 1)
    assert "first_byte" not in counted
    # One that was overdue before was counted then.
    late = scene.connect().handshake()
    late.client("PA", b"GET / HTTP/1.1\r\n\r\n")
    scene.age(10_500_000)
    scene.watch.look(time.monotonic_ns())
    late.server("FA")
    assert scene.counted()["unserved"] == 2


@BOTH_WAYS
def test_times_are_in_their_buckets(kernel: Kernel, mode: Mode) -> None:
    scene = observe(kernel, mode=mode)
    begin = time.monotonic_ns()
    one = scene.connect()
    one.client("S")
    scene.age(1_000_000)
    one.server("SA")
    one.client("PA", b"GET / ")
    scene.age(50_000_000)
    one.client("PA", b"HTTP/1.1\r\n\r\n")  # the last of a request counts
    scene.age(2_000_000)
    one.server("PA", OK)
    took = (time.monotonic_ns() - begin) // 1000
    for counted, waited in ((scene.totals.handshake, 1_000_000), (scene.totals.first_byte, 2_000_000)):
        (bucket,) = counted
        assert histogram.bucket_of(waited) <= bucket <= histogram.bucket_of(waited + took)


@BOTH_WAYS
def test_what_is_overdue_counts_once(kernel: Kernel, mode: Mode) -> None:
    scene = observe(kernel, mode=mode)
    scene.connect().client("S")
    asked = scene.connect().handshake()
    asked.client("PA", b"GET / HTTP/1.1\r\n\r\n")
    now = time.monotonic_ns()
    for seconds, unanswered, unserved in (
        (0, 0, 0),
        (2, 0, 0),
        (4, 1, 0),
        (9, 1, 0),
        (11, 1, 1),
        (60, 1, 1),
    ):
        assert scene.watch.look(now + seconds * SECOND)
        assert (scene.totals.unanswered, scene.totals.unserved) == (unanswered, unserved)
        # Another lbd goes on where this one was.
        again = Watch(kernel.maps.watched, kernel.maps.totals, kernel.maps.overdue, LIMITS)
        again.follow({"web": ["b1"]})
        scene.watch = again
    assert scene.totals.opened == 2


def test_so_many_that_some_are_lost(kernel: Kernel) -> None:
    scene = observe(kernel, mode=Mode.NAT)
    room = kernel.maps.watched.max_entries
    now = time.monotonic_ns()
    entry = structs.Watched(owner=uid(keys.backend("web", "b1")), since=now)
    many = [(struct.pack("=16sIHH", bytes(16), n, 1, 1), bytes(entry)) for n in range(room)]
    kernel.maps.watched.put_many(many)
    assert not scene.watch.look(now)
    assert scene.watch.look(now + 60 * SECOND)  # what was pushed out had been counted


@pytest.mark.parametrize("mode", [Mode.DSR, Mode.IPIP, Mode.GUE])
@FAMILIES
def test_where_no_answer_passes_the_client_tells(kernel: Kernel, mode: Mode, version: int) -> None:
    scene = observe(kernel, version, mode=mode)
    lost = scene.connect()
    lost.client("S")
    one = scene.connect()
    one.client("S")
    scene.age(100_000)
    one.ack = (one.ack + 1) % 2**32
    one.client("A")  # so the SYN-ACK came
    for _ in range(2):
        one.client("PA", b"GET / HTTP/1.1\r\n\r\n")
        scene.age(300_000)
        one.client("A")
        one.ack = (one.ack + len(OK)) % 2**32
        one.client("A")  # so the answer came
    counted = scene.counted()
    assert counted == {"opened": 2, "established": 1, "handshake": 1, "requests": 2, "first_byte": 2}
    one.client("PA", b"GET / HTTP/1.1\r\n\r\n")
    one.ack = (one.ack + 1) % 2**32
    one.client("A")  # perhaps of a FIN
    scene.watch.look(time.monotonic_ns() + 60 * SECOND)
    totals = scene.totals
    assert (totals.unanswered, totals.unserved, totals.requests) == (1, 1, 3)
    assert min(totals.handshake) >= histogram.bucket_of(100_000)
    assert min(totals.first_byte) >= histogram.bucket_of(300_000)


@BOTH_WAYS
def test_what_is_not_observed_leaves_no_trace(kernel: Kernel, mode: Mode) -> None:
    scene = observe(kernel, mode=mode, patience=0)
    one = scene.connect().handshake()
    one.client("PA", b"GET / HTTP/1.1\r\n\r\n")
    one.server("PA", OK)
    assert (scene.counted(), scene.entries()) == ({}, [])


def test_udp_only_counts_what_begins(kernel: Kernel) -> None:
    scene = observe(kernel, proto=17, mode=Mode.NAT, tracking=Tracking.ALWAYS)
    for port in (5000, 5001, 5001):
        kernel.run(frame(UDP(sport=port, dport=80) / b"x", 4), INGRESS)
    assert scene.counted() == {"opened": 2}


def test_an_id_that_is_given_out_again_is_somebody_else(kernel: Kernel) -> None:
    scene = observe(kernel, mode=Mode.NAT)
    one = scene.connect().handshake()
    epoch = scene.report.epoch
    own(kernel, 1, "b2")  # b1 is gone, and its id goes to b2
    scene.watch.follow({"web": ["b2"]})
    one.client("RA")
    scene.connect().client("S")
    report = scene.report
    assert report.backends.keys() == {"b2"}
    assert report.backends["b2"] == FlowTotals(opened=1)
    assert report.epoch == epoch
    own(kernel, 1, "b1")  # and it comes back: its totals only rise
    scene.watch.follow({"web": ["b1", "b2"]})
    assert scene.totals.opened == scene.totals.resets_by_client == 1
    assert scene.report.epoch == epoch


def test_a_pause_begins_another_epoch(kernel: Kernel) -> None:
    scene = observe(kernel, mode=Mode.NAT)
    scene.connect().client("S")
    scene.age(5_000_000)
    epoch = scene.report.epoch
    scene.watch.follow({})
    assert list(kernel.maps.totals.keys()) == []
    assert scene.watch.reports("n1", Vantage.NODE) == {}
    scene.watch.follow({"web": ["b1"]})
    assert (scene.report.epoch != epoch, scene.counted()) == (True, {})
    scene.watch.look(time.monotonic_ns() + 60 * SECOND)
    assert scene.counted() == {}  # also not what is left of before


def test_where_the_backends_that_went_take_the_room(kernel: Kernel) -> None:
    scene = observe(kernel, mode=Mode.NAT)
    epoch = scene.report.epoch
    room = kernel.maps.totals.max_entries
    scene.watch.follow({"web": [f"b{n}" for n in range(room)]})
    assert scene.report.epoch == epoch
    scene.watch.follow({"web": ["b1", "other"]})
    assert scene.report.backends.keys() == {"b1", "other"}
    assert scene.report.epoch != epoch


def test_services_that_cannot_be_read_keep_theirs(kernel: Kernel) -> None:
    scene = observe(kernel, mode=Mode.NAT)
    epoch = scene.report.epoch
    scene.watch.follow({}, keep={keys.service("web")})
    scene.connect().client("S")
    scene.watch.follow({"web": ["b1"]})
    assert (scene.report.epoch, scene.counted()) == (epoch, {"opened": 1})


@pytest.fixture(scope="module")
def kernels_bucket() -> Iterator[Callable[[int], int]]:
    """bucket_of() as it runs in the kernel."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BCC_KERNEL_SOURCE", str(headers.find().path))
        from bcc import BPF

        module = BPF(
            text=b'#include <uapi/linux/bpf.h>\n#include "lb_consts.h"\n#include "lb_histogram.h"\n'
            b"int tell(struct xdp_md *ctx) {\n"
            b"  u64 *time = (void *)(long)ctx->data;\n"
            b"  return (void *)(time + 1) > (void *)(long)ctx->data_end ? -1 : (int)bucket_of(*time);\n"
            b"}",
            cflags=[f"-I{sources.directory() / 'xdp/include'}", "-Wno-ignored-attributes"],
        )
        program = Program.__new__(Program)
        program.fd = module.load_func(b"tell", BPF.XDP).fd
        yield lambda time: program.run(struct.pack("=Q", time) + bytes(56)).retval
        program.fd = -1  # BCC closes it


def test_the_kernel_fills_the_buckets_of_the_model(kernels_bucket: Callable[[int], int]) -> None:
    edges = [edge for bucket in range(histogram.BUCKETS) for edge in histogram.bounds(bucket)]
    rng = random.Random(5)
    drawn = [rng.getrandbits(rng.randrange(1, 64)) for _ in range(3000)]
    for time_ in {0, 2**64 - 1, *edges, *(edge - 1 for edge in edges if edge), *drawn}:
        assert kernels_bucket(time_) == histogram.bucket_of(time_), time_
