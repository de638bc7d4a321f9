"""`make check-bench`: how fast it is, against its goals. The last line has the figures of this run; PASS
if every goal is met.

Goals for packets are ratios to what Katran was measured at, in terms of the same floor (parse, swap the
MAC addresses, send back): 139 ns for a known flow in IPIP, 313 with 1 M flows, 456 for a new one, 322 in
GUE, 79 for what isn't for a VIP, where the floor is 37 (docs/performance.md).
"""

from __future__ import annotations

import sys
import traceback
from dataclasses import dataclass

from bench import daemon, frames, live, packet, requests
from bench.frames import Target
from bench.load import FLOWS, load
from bench.netns import namespace
from bench.packet import SOME, Case, Session, pinned
from bench.rows import Options, Row
from lb.lab.shell import LabError
from lb.model.objects import Mode, Tracking
from lb.settings import Limits

KATRAN_FLOOR = 37
HIT = 139 / KATRAN_FLOOR
AT_MOST = {
    "hit, ipip": 0.65 * HIT,
    "hit, dsr": 0.55 * HIT,
    "hit, gue": 0.4 * 322 / KATRAN_FLOOR,
    "1 M flows, ipip": 0.4 * 313 / KATRAN_FLOOR,
    "new flow, ipip": 0.3 * 456 / KATRAN_FLOOR,
    "not ours": 0.7 * 79 / KATRAN_FLOOR,
    "1,000 services over 1": 1.15,
    "CPU over direct, of HAProxy's, keep-alive": 0.2,
    "CPU over direct, of HAProxy's, a connection each": 0.2,
    "p99 latency over direct's, keep-alive": 1.1,
    "p99 latency over direct's, a connection each": 1.1,
    "lbd idle, % of a CPU": 1.0,
    "lbd's memory, MB": 150.0,
}
AT_LEAST = {
    "live, of the redirect floor": 0.75,
    "live, 1 M flows, of the redirect floor": 0.75,
    "live, of nftables": 4.0,
}
LIVE_ROUNDS, LIVE_FRAMES = 9, 500_000
REQUEST_ROUNDS, REQUEST_SECONDS = 5, 2


@dataclass
class Found:
    """By the names of the goals."""

    values: dict[str, float]

    def missed(self) -> list[str]:
        """Goals that aren't met, or weren't measured."""
        return [
            *(name for name, limit in AT_MOST.items() if not self.values.get(name, limit + 1) <= limit),
            *(name for name, limit in AT_LEAST.items() if not self.values.get(name, 0.0) >= limit),
        ]

    def line(self) -> str:
        """The last line."""

        def show(name: str, over: str = "") -> str:
            value = self.values.get(name)
            floor = self.values.get(over) if over else 1.0
            return f"{value / floor:.2f}" if value is not None and floor else "none"

        cpu = [self.values.get(name) for name in AT_MOST if name.startswith("CPU")]
        worst = max((each for each in cpu if each is not None), default=None)
        return (
            f"check-bench: {'FAIL' if self.missed() else 'PASS'} hit_vs_floor={show('hit, ipip')}"
            f" newflow_vs_hit={show('new flow, ipip', 'hit, ipip')}"
            f" flows1m_vs_hit={show('1 M flows, ipip', 'hit, ipip')}"
            f" live_vs_redirect={show('live, of the redirect floor')}"
            f" live_vs_nft={show('live, of nftables')}"
            f" cpu_over_direct_vs_haproxy={'none' if worst is None else f'{worst:.2f}'}"
        )


def packets() -> dict[str, float]:
    """Ratios to the floor by test runs."""

    def case(mode: Mode, flows: int = 1, *, syn: bool = False) -> Case:
        target = Target(mode, 4, Tracking.MOVING)
        frame = frames.tcp(frames.vip(target), syn=syn)
        return Case(
            f"{mode}{syn}", frame, 4, packet.verdict(target), flows, service=target.name, new=syn
        )

    cases = {
        "hit, ipip": case(Mode.IPIP),
        "hit, dsr": case(Mode.DSR),
        "hit, gue": case(Mode.GUE),
        "1 M flows, ipip": case(Mode.IPIP, FLOWS),
        "new flow, ipip": case(Mode.IPIP, FLOWS, syn=True),
        "not ours": packet.other_cases()[0],
    }
    with pinned(), namespace(), load(Limits()) as bench:
        rows = packet.measure(Session(bench, frames.world()), list(cases.values()), Options())
        grown = packet.growth(bench, Options(), ((1, 10), (1000, 10)))
    ratios = _of_lb(rows)
    few, many = (
        ratio for label, ratio in _of_lb(grown).items() if label.startswith(packet.MANY_LABEL[1])
    )
    return {name: ratios[each.label] for name, each in cases.items()} | {
        "1,000 services over 1": many / few
    }


def _of_lb(rows: list[Row]) -> dict[str, float]:
    return {each.case: each.ratio_to_floor or 0.0 for each in rows if each.peer == "lb"}


def travelling() -> dict[str, float]:
    """Frames over veth."""
    wanted = {
        "lb": ("dsr IPv4 TCP", "ipip IPv4 TCP"),
        live.FLOOR: ("IPv4 TCP",),
        live.NFTABLES: ("IPv4 TCP",),
    }
    cases = [
        case for case in live.cases() if case.what in wanted.get(case.peer, ()) and case.flows != SOME
    ]
    rows = live.rows_of(cases, live.measure(cases, LIVE_ROUNDS, LIVE_FRAMES))
    of = {(each.peer, each.case): each for each in rows}
    one, million = (of["lb", f"{packet.MANY_LABEL[n]}: ipip IPv4 TCP"] for n in (1, FLOWS))
    nftables = of[live.NFTABLES, f"{packet.MANY_LABEL[1]}: IPv4 TCP"]
    return {
        "live, of the redirect floor": one.ratio_to_floor or 0.0,
        "live, 1 M flows, of the redirect floor": million.ratio_to_floor or 0.0,
        "live, of nftables": one.median / nftables.median,
    }


def asking() -> dict[str, float]:
    """Real requests: the dearer of our modes."""
    peers = (requests.DIRECT, requests.DSR, requests.NAT, requests.HAPROXY)
    runs = requests.measure(REQUEST_ROUNDS, REQUEST_SECONDS, peers)
    for each in requests.rows_of(runs):
        print(f"  {each.case}, {each.peer}: {each.median:.4g} {each.unit}", flush=True)
    ours, found = (requests.DSR, requests.NAT), {}
    for how in (requests.KEEP, requests.CLOSE):
        cpu = max(requests.over_direct(runs, mode, how) for mode in ours)
        theirs = requests.over_direct(runs, requests.HAPROXY, how)
        if theirs <= 0:
            raise LabError(f"{how}: HAProxy took no more than the direct path: the machine is too busy")
        found[f"CPU over direct, of HAProxy's, {how}"] = cpu / theirs
        found[f"p99 latency over direct's, {how}"] = max(
            requests.times_direct(runs, mode, how, lambda run: run.p99) for mode in ours
        )
    return found


def resting() -> dict[str, float]:
    """A real lbd."""
    rows = {each.case: each for each in daemon.run(Options(quick=True))}
    memory = [each.median for case, each in rows.items() if case.startswith("memory")]
    return {"lbd idle, % of a CPU": rows["idle: CPU"].median, "lbd's memory, MB": max(memory)}


def main() -> None:
    """Measure everything; exit code 0 = PASS."""
    found = Found({})
    for part in (packets, travelling, asking, resting):
        try:
            found.values |= part()
        except Exception:  # noqa: BLE001 - programs wait for the last line
            traceback.print_exc()
    for limits, sign in ((AT_MOST, "<="), (AT_LEAST, ">=")):
        for name, limit in limits.items():
            value = found.values.get(name)
            verdict = "missed" if name in found.missed() else "met"
            shown = "not measured" if value is None else f"{value:.3f}"
            print(f"{name}: {shown}, goal {sign} {limit:.3f}: {verdict}", flush=True)
    print(found.line(), flush=True)
    sys.exit(bool(found.missed()))


if __name__ == "__main__":
    main()
