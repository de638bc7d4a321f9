"""Suite `requests`: wrk asks one nginx in the lab, directly and by way of what stands in between.

Two floors stand in the same path as `nat`, between the client and the server's own address: the node's
kernel as a router, and the least that an XDP program can do there (road.c). What they take more than
the direct path is the lab's: veth pairs and bridges, which everything that answers both ways through
the node pays for, too.

The balancer's program is off the interfaces while others are measured, as frames that went through a
program cost the kernel's own stack more. CPU is that of the whole machine, less that of processes
that are none of the lab's (the machine may be shared). lbd isn't running meanwhile: the data path needs
it for nothing, and suite `control` tells what it costs.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench import road
from bench.rows import Options, Row, interleaved, row
from lb.lab.lab import Lab
from lb.lab.shell import LabError, wait_until
from lb.lab.topology import VIP4, Address

SUITE = "requests"
DIRECT, HAPROXY, NGINX, NFTABLES = "direct", "HAProxy", "nginx stream", "nftables DNAT"
ROUTER, ROAD = "kernel forwarding", "redirect floor"
DSR, NAT = "lb dsr", "lb nat"
PORT = {DSR: 80, NAT: 8084, HAPROXY: 8081, NGINX: 8082, NFTABLES: 8083}
KEEP, CLOSE = "keep-alive", "a connection each"
CONNECTIONS = 16
STREAM_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
_SCRIPT = Path(__file__).with_name("report.lua")

_HAPROXY = """\
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend all
    bind {vip}:{port}
    default_backend servers
backend servers
    server one {server}:80
"""
_NGINX = """\
load_module {module};
daemon off;
worker_processes 1;
pid {folder}/stream.pid;
error_log {folder}/stream.log;
events {{ worker_connections 4096; }}
stream {{ server {{ listen {vip}:{port} backlog=4096; proxy_pass {server}:80; }} }}
"""
_NFTABLES = """\
table ip bench {{
    chain in {{
        type nat hook prerouting priority dstnat;
        ip daddr {vip} tcp dport {port} dnat ip addr . port to \\
            jhash ip saddr . tcp sport mod 2 map {{ 0 : {server} . 80, 1 : {server} . 80 }}
    }}
}}
"""


@dataclass(frozen=True)
class Run:
    """One run of wrk. Latencies in ms, CPU in seconds for 10,000 requests."""

    rate: float
    p50: float
    p99: float
    cpu: float


class Field:
    """The lab with everything that can be asked through."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        (backend,) = lab.topology.backends
        self._server = lab.topology.back_addresses(backend)[0]
        self._front = lab.topology.front_addresses(backend)[0]
        self._namespaces = {_namespace(f"/run/netns/{name}") for name in lab.topology.namespaces}
        self._ports = [link.port for link in lab.topology.links if link.namespace == lab.topology.node]
        self._prepare(backend)
        (balancer,) = (lab.node_folder / "bpf/lb").glob("program_xdp_*")
        self._programs = {DSR: balancer, NAT: balancer, ROAD: road.pin(lab)}
        self._attached: Path | None = balancer

    def _prepare(self, backend: str) -> None:
        lab = self._lab
        services = [
            {"name": "dsr", "vip": str(VIP4), "port": PORT[DSR], "mode": "dsr",
             "backends": [{"name": backend, "address": str(self._front)}]},
            {"name": "nat", "vip": str(VIP4), "port": PORT[NAT], "mode": "nat",
             "backends": [{"name": backend, "address": str(self._server), "port": 80}]},
        ]  # fmt: skip
        lab.start_lbd("xdp")
        lab.lbctl("apply", "-f", "-", "--wait", text=json.dumps({"services": services}))
        lab.kill_lbd()
        folder = lab.node_folder
        names = {"vip": VIP4, "server": self._server, "folder": folder, "module": STREAM_MODULE}
        # The switch stands for one of hardware: it asks no firewall (where the kernel has br_netfilter).
        bridge = [f"net.bridge.bridge-nf-call-{each}tables=0" for each in ("ip", "ip6", "arp")]
        lab.run("switch", ["sysctl", "--quiet", "--ignore", "--write", *bridge])
        (folder / "haproxy.cfg").write_text(_HAPROXY.format(**names, port=PORT[HAPROXY]))
        lab.popen("node1", ["haproxy", "-db", "-f", str(folder / "haproxy.cfg")])
        (folder / "nftables.conf").write_text(_NFTABLES.format(**names, port=PORT[NFTABLES]))
        lab.run("node1", ["nft", "-f", str(folder / "nftables.conf")])
        if STREAM_MODULE.exists():
            (folder / "stream.conf").write_text(_NGINX.format(**names, port=PORT[NGINX]))
            command = ["nginx", "-e", f"{folder}/stream.log", "-p", str(folder)]
            lab.popen("node1", [*command, "-c", str(folder / "stream.conf")])

    def peers(self) -> list[str]:
        """Those that are installed."""
        stream = [NGINX] if STREAM_MODULE.exists() else []
        return [DIRECT, DSR, NAT, ROAD, ROUTER, NFTABLES, HAPROXY, *stream]

    def _attach(self, wanted: Path | None) -> None:
        if self._attached == wanted:
            return
        self._attached = wanted
        node, switch = self._lab.topology.node, self._lab.topology.switch
        for namespace, interfaces, pinned in (
            (node, ("front0", "back0"), wanted),
            (switch, self._ports, wanted and self._lab.node_folder / "bpf/pass"),
        ):
            for interface in interfaces:
                link = ["ip", "link", "set", "dev", interface]
                self._lab.run(namespace, [*link, "xdp", "off"])
                if pinned:
                    self._lab.run(namespace, [*link, "xdpdrv", "pinned", str(pinned)])

    def _at(self, peer: str) -> tuple[Address, int]:
        """Where to ask."""
        return {
            DIRECT: (self._front, 80),
            ROAD: (self._server, 80),
            ROUTER: (self._server, 80),
        }.get(peer) or (VIP4, PORT[peer])

    def ask(self, peer: str, how: str, seconds: int) -> Run:
        """One run of wrk through this peer."""
        self._attach(self._programs.get(peer))
        address, port = self._at(peer)
        wait_until(f"an answer by {peer}", lambda: bool(self._lab.answer(address, port)))
        command = ["wrk", "--threads", "1", "--connections", str(CONNECTIONS), "--latency"]
        command += ["--duration", f"{seconds}s", "--script", str(_SCRIPT)]
        command += ["--header", "Connection: close"] if how == CLOSE else []
        with self._cpu() as cpu:
            done = self._lab.run("client", [*command, f"http://{address}:{port}/"])
        found = json.loads(done.stdout.strip().rpartition("\n")[2])
        if found["failed"] or not found["requests"]:
            raise LabError(f"bench: {peer}, {how}: {done.stdout}")
        return Run(
            found["requests"] / found["seconds"],
            found["p50"],
            found["p99"],
            cpu[0] / found["requests"] * 10_000,
        )

    @contextmanager
    def _cpu(self) -> Iterator[list[float]]:
        found: list[float] = []
        busy, others = _busy(), self._others()
        yield found
        found.append(_busy() - busy - max(self._others() - others, 0))

    def _others(self) -> float:
        """CPU seconds of processes that are neither the kernel's nor the lab's nor this one."""
        total = 0.0
        for folder in Path("/proc").iterdir():
            if not folder.name.isdecimal() or int(folder.name) == os.getpid():
                continue
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if fields[1] == "2" or _namespace(f"{folder}/ns/net") in self._namespaces:
                    continue
            except OSError:  # it has just ended
                continue
            total += int(fields[11]) + int(fields[12])
        return total / os.sysconf("SC_CLK_TCK")


def _namespace(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _busy() -> float:
    """CPU seconds of the machine: user, nice, system, irq, softirq (proc(5))."""
    numbers = [int(n) for n in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    return sum(numbers[i] for i in (0, 1, 2, 5, 6)) / os.sysconf("SC_CLK_TCK")


Runs = Mapping[tuple[str, str], Sequence[Run]]  # by peer and how


def measure(rounds: int, seconds: int, wanted: Sequence[str] = ()) -> Runs:
    """All peers (or these) with and without keep-alive, interleaved. Needs root."""
    found: dict[tuple[str, str], list[Run]] = {}
    with Lab(prefix="lbb-", backends=1) as lab:
        field = Field(lab)

        def one(peer: str, how: str) -> float:
            run = field.ask(peer, how, seconds)
            found.setdefault((peer, how), []).append(run)
            return run.cpu

        peers = [peer for peer in field.peers() if not wanted or peer in wanted]
        work = {f"{how}|{peer}": partial(one, peer, how) for how in (KEEP, CLOSE) for peer in peers}
        interleaved(work, rounds)
    return found


def over_direct(runs: Runs, peer: str, how: str) -> float:
    """CPU seconds for 10,000 requests more than the direct path takes. Of the least of each, as what
    else the machine does only ever adds to them (caches are shared)."""
    return min(each.cpu for each in runs[peer, how]) - min(each.cpu for each in runs[DIRECT, how])


def times_direct(runs: Runs, peer: str, how: str, value: Callable[[Run], float]) -> float:
    """A figure over that of the direct path, median over the rounds."""
    floor = runs[DIRECT, how]
    return statistics.median(value(a) / value(b) for a, b in zip(runs[peer, how], floor, strict=True))


def run(options: Options) -> list[Row]:
    """The whole suite. Needs root."""
    return rows_of(measure(options.pick(5, 2), options.pick(3, 1)))


def rows_of(runs: Runs) -> list[Row]:
    """Ratios are to the direct path, medians over the rounds."""
    made = []
    figures: dict[tuple[str, str], Callable[[Run], float]] = {
        ("answers", "1/s"): lambda r: r.rate,
        ("latency p50", "ms"): lambda r: r.p50,
        ("latency p99", "ms"): lambda r: r.p99,
        ("CPU for 10,000 requests", "s"): lambda r: r.cpu,
    }
    for (what, unit), value in figures.items():
        for (peer, how), each in runs.items():
            ratio = times_direct(runs, peer, how, value)
            made.append(row(SUITE, f"{what}: {how}", peer, unit, [value(r) for r in each], ratio=ratio))
    for peer, how in runs:
        if peer == DIRECT:
            continue
        more = over_direct(runs, peer, how)
        made.append(row(SUITE, f"CPU over direct for 10,000 requests: {how}", peer, "s", [more]))
        theirs = over_direct(runs, HAPROXY, how) if (HAPROXY, how) in runs else 0.0
        if theirs > 0:
            made.append(row(SUITE, f"CPU over direct, of HAProxy's: {how}", peer, "x", [more / theirs]))
    return made
