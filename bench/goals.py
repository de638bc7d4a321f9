"""What the figures ought to be, and what of the rows each is made of: for `make check-bench` and
docs/performance.md.

Goals for packets are ratios to what Katran was measured at, in terms of the same floor (parse, swap the
MAC addresses, send back): 139 ns for a known flow in IPIP, 313 with 1 M flows, 456 for a new one, 322 in
GUE, 79 for what isn't for a VIP, where the floor is 37.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench import daemon, growth, live, packet, requests
from bench.frames import Target
from bench.load import FLOWS
from bench.packet import MANY_LABEL, SOME, Case
from bench.rows import Row
from lb.model.objects import Mode, Tracking

LB = "lb"
KATRAN_FLOOR = 37
HIT = 139 / KATRAN_FLOOR


class Figures:
    """Rows by what identifies them."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = tuple(rows)
        self._rows = {each.key: each for each in rows}

    def row(self, suite: str, case: str, peer: str = LB) -> Row:
        """Raises KeyError if it wasn't measured."""
        return self._rows[suite, case, peer]

    def ratio(self, suite: str, case: str, peer: str = LB) -> float:
        """To its floor."""
        ratio = self.row(suite, case, peer).ratio_to_floor
        if ratio is None:
            raise KeyError(f"{suite}, {case}, {peer}: no ratio")
        return ratio

    def all(self, suite: str) -> list[Row]:
        """Of one suite."""
        return [each for each in self.rows if each.suite == suite]

    def median(self, suite: str, case: str, peer: str = LB) -> float:
        """In the row's unit."""
        return self.row(suite, case, peer).median


@dataclass(frozen=True)
class Goal:
    """`limit` is the most that it may be, or the least."""

    name: str
    limit: float
    value: Callable[[Figures], float]
    at_least: bool = False

    def met(self, value: float | None) -> bool:
        """Not if it wasn't measured, or isn't a number."""
        if value is None:
            return False
        return value >= self.limit if self.at_least else value <= self.limit


def _target(mode: Mode) -> Target:
    return Target(mode, 4, Tracking.MOVING)


def packet_case(mode: Mode, flows: int = 1, *, syn: bool = False) -> Case:
    """IPv4 TCP of suite `packet`, that needs no entry: data of a known flow, or a SYN of a new one."""
    cases = packet.syn_cases() if syn else packet.flow_cases(flows)
    return next(case for case in cases if case.service == _target(mode).name)


def not_ours() -> Case:
    """The same, for nobody."""
    return packet.other_cases()[0]


def _packet(case: Case) -> Callable[[Figures], float]:
    return lambda figures: figures.ratio(packet.SUITE, case.label)


def _growth(flows: int, *, spread: bool) -> Callable[[Figures], float]:
    def over(figures: Figures) -> float:
        few, many = (
            f"{MANY_LABEL[flows]}: {growth.label(services, 10, spread=spread)}" for services in (1, 1000)
        )
        return figures.ratio(growth.SUITE, many) / figures.ratio(growth.SUITE, few)

    return over


def _live(flows: int) -> Callable[[Figures], float]:
    return lambda figures: figures.ratio(live.SUITE, f"{MANY_LABEL[flows]}: ipip IPv4 TCP")


def _over_nftables(figures: Figures) -> float:
    return figures.median(live.SUITE, f"{MANY_LABEL[1]}: ipip IPv4 TCP") / figures.median(
        live.SUITE, f"{MANY_LABEL[1]}: IPv4 TCP", live.NFTABLES
    )


def _cpu(how: str) -> Callable[[Figures], float]:
    case = f"CPU over direct, of HAProxy's: {how}"
    return lambda figures: max(
        figures.median(requests.SUITE, case, mode) for mode in (requests.DSR, requests.NAT)
    )


def _p99(how: str) -> Callable[[Figures], float]:
    case = f"latency p99: {how}"
    return lambda figures: max(
        figures.ratio(requests.SUITE, case, mode) for mode in (requests.DSR, requests.NAT)
    )


def _memory(figures: Figures) -> float:
    return max(each.median for each in figures.all(daemon.SUITE) if each.section == "memory")


GOALS = (
    Goal("hit, ipip", 0.65 * HIT, _packet(packet_case(Mode.IPIP))),
    Goal("hit, dsr", 0.55 * HIT, _packet(packet_case(Mode.DSR))),
    Goal("hit, gue", 0.4 * 322 / KATRAN_FLOOR, _packet(packet_case(Mode.GUE))),
    Goal("1 M flows, ipip", 0.4 * 313 / KATRAN_FLOOR, _packet(packet_case(Mode.IPIP, FLOWS))),
    Goal("new flow, ipip", 0.3 * 456 / KATRAN_FLOOR, _packet(packet_case(Mode.IPIP, syn=True))),
    Goal("not ours", 0.7 * 79 / KATRAN_FLOOR, _packet(not_ours())),
    Goal("1,000 services over 1, traffic to one", 1.15, _growth(1, spread=False)),
    Goal("1,000 services over 1, 10 k flows to all", 1.15, _growth(SOME, spread=True)),
    Goal("CPU over direct, of HAProxy's, keep-alive", 0.2, _cpu(requests.KEEP)),
    Goal("CPU over direct, of HAProxy's, a connection each", 0.2, _cpu(requests.CLOSE)),
    Goal("p99 latency over direct's, keep-alive", 1.1, _p99(requests.KEEP)),
    Goal("p99 latency over direct's, a connection each", 1.1, _p99(requests.CLOSE)),
    Goal("lbd idle, % of a CPU", 1.0, lambda figures: figures.median(daemon.SUITE, "idle: CPU")),
    Goal("lbd's memory, MB", 150.0, _memory),
    Goal("live, of the redirect floor", 0.75, _live(1), at_least=True),
    Goal("live, 1 M flows, of the redirect floor", 0.75, _live(FLOWS), at_least=True),
    Goal("live, of nftables", 4.0, _over_nftables, at_least=True),
)


def values(rows: Sequence[Row]) -> dict[str, float]:
    """What was measured, by the names of the goals; without what wasn't."""
    figures, found = Figures(rows), {}
    for goal in GOALS:
        try:
            found[goal.name] = goal.value(figures)
        except (KeyError, ValueError):
            continue
    return found


def missed(found: dict[str, float]) -> list[str]:
    """Goals that aren't met, or weren't measured."""
    return [goal.name for goal in GOALS if not goal.met(found.get(goal.name))]
