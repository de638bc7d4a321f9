"""Suite `live`: frames that travel. A generator (BPF_PROG_TEST_RUN, BPF_F_TEST_XDP_LIVE_FRAMES) writes
each frame anew and sends it over a veth pair to what is measured; what that sends on is counted by a
program at the other end, and dropped. All of it runs on one CPU: split over two,
the figures are unstable.

    far end of INGRESS ──▶ INGRESS: what is measured ──▶ OTHER ──▶ far end of OTHER
    (generator; sink for XDP_TX)                                   (sink)

Ratios are to a program that parses, swaps the MAC addresses and redirects, with as many flows in the
same round. HAProxy and nginx are not here: they answer whole connections (suite `requests`).
"""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from pyroute2 import IPRoute

from bench import frames
from bench.frames import Target
from bench.load import FLOWS, LIVE, Bench, BenchRun, load, shuffled, uniform_flows
from bench.netns import INGRESS, OTHER, namespace
from bench.packet import FEW, MANY, MANY_LABEL, SOME, Session, pinned
from bench.rows import Options, Row, interleaved, row
from lb.datapath.bpf import Program, _check, _libbpf, _TestRunOpts
from lb.datapath.encode import index_key
from lb.errors import DatapathError
from lb.model.objects import Mode, Tracking
from lb.settings import Limits

SUITE = "live"
FLOOR = "redirect floor"
NFTABLES = "nftables DNAT"
LEAST = 0.99  # share of the frames that has to arrive
STRAYS = 10  # frames of somebody else: the kernel looks for IPv6 neighbours

_F_LIVE_FRAMES = 1 << 1  # BPF_F_TEST_XDP_LIVE_FRAMES
_BATCH = 64
_TC_INGRESS = 0xFFFFFFF2
_ETH_P_ALL = 3
_NEXT = "203.0.113.1"  # whom the kernel hands its packets to


@dataclass(frozen=True)
class Case:
    """What the frames meet (a peer), and which ones."""

    peer: str
    what: str
    flows: int
    target: Target

    @property
    def label(self) -> str:
        """Of the row."""
        return f"{MANY_LABEL[self.flows]}: {self.what}"

    @property
    def key(self) -> str:
        """Of all rows."""
        return f"{self.label}|{self.peer}"


def cases() -> list[Case]:
    """The floors and the peers, and lb: by the number of flows, and mode by mode."""
    dsr, ipip = (Target(mode, 4, Tracking.MOVING) for mode in (Mode.DSR, Mode.IPIP))
    tcp4 = "IPv4 TCP"
    found = [
        Case("XDP_DROP", tcp4, 1, dsr),
        Case("XDP_TX", tcp4, 1, dsr),
        Case("kernel forwarding", tcp4, 1, dsr),
        Case("lb, tc", f"dsr {tcp4}", 1, dsr),
        # Not a million: the kernel's connection tracking holds 262,144 for the whole machine, and no
        # namespace may change that.
        *(Case(NFTABLES, tcp4, flows, dsr) for flows in (1, SOME, MANY)),
        *(
            Case("lb", f"{mode} {tcp4}", 1, Target(mode, 4, Tracking.MOVING))
            for mode in (Mode.GUE, Mode.NAT)
        ),
        Case("lb", "dsr IPv4 TCP, tracking always", 1, Target(Mode.DSR, 4, Tracking.ALWAYS)),
        Case("lb", "dsr IPv6 TCP", 1, Target(Mode.DSR, 6, Tracking.MOVING)),
    ]
    for flows in (1, SOME, MANY, FLOWS):
        found += [Case(FLOOR, tcp4, flows, dsr)]
        found += [Case("lb", f"{each.mode} {tcp4}", flows, each) for each in (dsr, ipip)]
    return found


class Road:
    """The two veth pairs, and the programs on them."""

    def __init__(self, bench: Bench, ip: IPRoute) -> None:
        self._bench = bench
        self._ip = ip
        self._far = {index: ip.link_lookup(ifname=f"bench{index}-far")[0] for index in (INGRESS, OTHER)}
        for index in self._far.values():
            self._attach(index, "bench_sink")
        _prepare_kernel()

    def _attach(self, index: int, program: str | None) -> None:
        fd = self._bench.programs[program].fd if program else -1
        self._ip.link("set", index=index, xdp_fd=fd)

    @contextmanager
    def through(self, peer: str, target: Target) -> Iterator[None]:
        """Have this peer at INGRESS."""
        program = {
            "XDP_DROP": "bench_sink",
            "XDP_TX": "bench_live_tx",
            FLOOR: "bench_live_redirect",
            "lb": "bench_live_lb",
        }.get(peer)
        self._attach(INGRESS, program)
        try:
            if peer == "lb, tc":
                self._ip.tc("add", "clsact", INGRESS)
                self._ip.tc(
                    "add-filter", "bpf", INGRESS, 1, fd=self._bench.programs["tc"].fd, name="bench",
                    parent=_TC_INGRESS, prio=1, protocol=_ETH_P_ALL, direct_action=True,
                )  # fmt: skip
            elif peer == NFTABLES:
                _run("nft", "-f", "-", text=_dnat(target))
            yield
        finally:
            if peer == "lb, tc":
                self._ip.tc("del", "clsact", INGRESS)
            elif peer == NFTABLES:
                _run("nft", "flush", "ruleset")

    def send(self, case: Case, frames_to_send: int) -> float:
        """So many frames; how many arrive in a second."""
        before = self._sunk()
        nanoseconds = _send(
            self._bench.programs["bench_generate"], _frame(case), self._far[INGRESS], frames_to_send
        )
        arrived = self._sunk() - before
        if not LEAST * frames_to_send <= arrived <= frames_to_send + STRAYS:
            raise DatapathError(
                f"bench: {case.label}, {case.peer}: {arrived} of {frames_to_send} arrived"
            )
        return 1e9 / nanoseconds

    def _sunk(self) -> int:
        return int.from_bytes(self._bench.sunk.get(index_key(0)) or b"", "little")


def _frame(case: Case) -> bytes:
    return frames.tcp(frames.vip(case.target))


def _send(generator: Program, frame: bytes, ifindex: int, count: int) -> int:
    source = ctypes.create_string_buffer(frame, len(frame))
    # struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
    context = b"".join(n.to_bytes(4, "little") for n in (0, len(frame), 0, ifindex, 0, 0))
    given = ctypes.create_string_buffer(context, len(context))
    options = _TestRunOpts(
        sz=ctypes.sizeof(_TestRunOpts),
        data_in=ctypes.addressof(source),
        data_size_in=len(frame),
        ctx_in=ctypes.addressof(given),
        ctx_size_in=len(context),
        repeat=count,
        flags=_F_LIVE_FRAMES,
        batch_size=_BATCH,
    )
    _check(_libbpf().bpf_prog_test_run_opts(generator.fd, ctypes.byref(options)), "live frames")
    # Per frame, without making and destroying the pool of frames, which takes tens of ms.
    return int(options.duration)


def _prepare_kernel() -> None:
    """What its own forwarding needs. GRO, so that a veth takes redirected frames without a program."""
    _run("ethtool", "-K", f"bench{INGRESS}", "gro", "on")
    for setting in (
        "net.ipv4.ip_forward=1",
        "net.ipv4.conf.all.rp_filter=0",
        f"net.ipv4.conf.bench{INGRESS}.rp_filter=0",
        # The frames' TCP checksums are wrong, as nobody on the way looks at them.
        "net.netfilter.nf_conntrack_checksum=0",
    ):
        _run("sysctl", "--quiet", "--write", setting)
    link = f"bench{OTHER}"
    _run("ip", "address", "add", "203.0.113.2/24", "dev", link)
    _run("ip", "neighbour", "add", _NEXT, "lladdr", "02:00:00:00:02:01", "dev", link)
    for network in ("198.51.100.0/24", "10.99.0.0/16"):
        _run("ip", "route", "add", network, "via", _NEXT, "dev", link)


def _dnat(target: Target) -> str:
    """As many backends as lb has, by a hash of the flow."""
    number = frames.targets().index(target) + 1
    backends = ", ".join(f"{i} : 10.99.{number}.{i + 1}" for i in range(frames.BACKENDS))
    return (
        "table ip bench {\nchain in {\ntype nat hook prerouting priority dstnat;\n"
        f"ip daddr {frames.vip(target)} tcp dport {frames.PORT} "
        f"dnat to jhash ip saddr . tcp sport mod {frames.BACKENDS} map {{ {backends} }}\n}}\n}}\n"
    )


def _run(*argv: str, text: str | None = None) -> None:
    done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DatapathError(f"bench: {' '.join(argv)}: {done.stderr.strip()}")


def _measure(road: Road, bench: Bench, case: Case, count: int) -> float:
    state = BenchRun(
        flows=case.flows,
        ipv6=case.target.version == 6,
        ports=True,
        frame=(ctypes.c_uint8 * frames.LENGTH)(*_frame(case)),
    )
    bench.runs.put(index_key(0), bytes(state))
    with road.through(case.peer, case.target):
        road.send(case, max(case.flows // 10, 2000))  # caches, and flows where somebody remembers them
        return road.send(case, count)


def measure(chosen: list[Case], rounds: int, count: int) -> dict[str, list[float]]:
    """Frames a second of each case, interleaved, in a namespace of their own. Needs root."""
    with pinned(), namespace(), load(Limits(), (*LIVE, "tc")) as bench, IPRoute() as ip:
        session = Session(bench, frames.world(returned=()))
        session.bench.use_flows(shuffled(uniform_flows(), (1, FEW, SOME, MANY)))
        road = Road(bench, ip)
        work: Mapping[str, Callable[[], float]] = {
            case.key: partial(_measure, road, bench, case, count) for case in chosen
        }
        return interleaved(work, rounds)


def run(options: Options) -> list[Row]:
    """The whole suite. Needs root."""
    chosen = cases()
    found = measure(chosen, options.pick(9, 3), options.pick(500_000, 100_000))
    return rows_of(chosen, found)


def rows_of(chosen: list[Case], found: Mapping[str, list[float]]) -> list[Row]:
    """Millions a second, and the ratio to the floor of as many flows."""
    floors = {case.flows: found[case.key] for case in chosen if case.peer == FLOOR}
    made = []
    for case in chosen:
        values = found[case.key]
        floor = floors[case.flows]
        ratio = sorted(each / least for each, least in zip(values, floor, strict=True))[len(values) // 2]
        made.append(
            row(SUITE, case.label, case.peer, "Mpps", [value / 1e6 for value in values], ratio=ratio)
        )
    return made
