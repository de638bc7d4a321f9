"""`make check-bench`: how fast it is, against its goals (bench/goals.py). The last line has the
figures of this run; PASS if every goal is met.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping

from bench import daemon, frames, goals, growth, live, packet, requests
from bench.goals import GOALS
from bench.load import FLOWS, load
from bench.netns import namespace
from bench.packet import Session, pinned
from bench.rows import Options, Row
from lb.model.objects import Mode
from lb.settings import Limits

LIVE_ROUNDS, LIVE_FRAMES = 9, 500_000
REQUEST_ROUNDS, REQUEST_SECONDS = 5, 2


def line(values: Mapping[str, float]) -> str:
    """The last line."""

    def show(name: str, over: str = "") -> str:
        value = values.get(name)
        floor = values.get(over) if over else 1.0
        return f"{value / floor:.2f}" if value is not None and floor else "none"

    cpu = [values[name] for name in values if name.startswith("CPU")]
    return (
        f"check-bench: {'FAIL' if goals.missed(dict(values)) else 'PASS'}"
        f" hit_vs_floor={show('hit, ipip')}"
        f" newflow_vs_hit={show('new flow, ipip', 'hit, ipip')}"
        f" flows1m_vs_hit={show('1 M flows, ipip', 'hit, ipip')}"
        f" live_vs_redirect={show('live, of the redirect floor')}"
        f" live_vs_nft={show('live, of nftables')}"
        f" cpu_over_direct_vs_haproxy={f'{max(cpu):.2f}' if cpu else 'none'}"
    )


def packets() -> list[Row]:
    """By test runs."""
    cases = [
        *(goals.packet_case(mode) for mode in (Mode.IPIP, Mode.DSR, Mode.GUE)),
        goals.packet_case(Mode.IPIP, FLOWS),
        goals.packet_case(Mode.IPIP, syn=True),
        goals.not_ours(),
    ]
    with pinned(), namespace():
        with load(Limits()) as bench:
            rows = packet.measure(Session(bench, frames.world()), cases, Options())
        # In maps of its own: slots of services that were there before would be moving.
        with load(Limits()) as bench:
            return rows + growth.measured(bench, Options(), ((1, 10), (1000, 10)))


def travelling() -> list[Row]:
    """Frames over veth."""
    wanted = {"lb": ("ipip IPv4 TCP",), live.FLOOR: ("IPv4 TCP",), live.NFTABLES: ("IPv4 TCP",)}
    cases = [
        case
        for case in live.cases()
        if case.what in wanted.get(case.peer, ()) and case.flows in (1, FLOWS)
    ]
    return live.rows_of(cases, live.measure(cases, LIVE_ROUNDS, LIVE_FRAMES))


def asking() -> list[Row]:
    """Real requests."""
    peers = (requests.DIRECT, requests.DSR, requests.NAT, requests.ROAD, requests.HAPROXY)
    return requests.rows_of(requests.measure(REQUEST_ROUNDS, REQUEST_SECONDS, peers))


def resting() -> list[Row]:
    """A real lbd."""
    return daemon.run(Options(quick=True))


def main() -> None:
    """Measure everything; exit code 0 = PASS."""
    rows: list[Row] = []
    for part in (packets, travelling, asking, resting):
        try:
            rows += part()
        except Exception:  # noqa: BLE001 - programs wait for the last line
            traceback.print_exc()
    for each in rows:
        if each.suite == requests.SUITE:
            print(f"  {each.case}, {each.peer}: {each.median:.4g} {each.unit}", flush=True)
    found = goals.values(rows)
    for goal in GOALS:
        value = found.get(goal.name)
        shown = "not measured" if value is None else f"{value:.3f}"
        sign, verdict = ">=" if goal.at_least else "<=", "met" if goal.met(value) else "missed"
        print(f"{goal.name}: {shown}, goal {sign} {goal.limit:.3f}: {verdict}", flush=True)
    print(line(found), flush=True)
    sys.exit(bool(goals.missed(found)))


if __name__ == "__main__":
    main()
