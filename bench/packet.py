"""Suite `packet`: ns per packet by BPF_PROG_TEST_RUN, on one CPU, in a namespace of its own.

Each case goes through the same wrapper (wrapper.c) three times: empty, parse + swap MACs + TX (the
floor), and the balancer. Only ratios within one run are comparable: the guest's clock has phases.

`tracking always` is a flow with a conntrack entry; the other ways of tracking go by the slot table
alone, `moving` as long as nothing moves. What a case claims (the verdict, whether flows were new) is
checked against the counters.
"""

from __future__ import annotations

import ctypes
import os
import statistics
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from bench import frames
from bench.frames import Target
from bench.load import (
    FLOWS,
    VERDICTS,
    XDP_PASS,
    XDP_REDIRECT,
    XDP_TX,
    Bench,
    BenchRun,
    empty,
    load,
    shuffled,
    uniform_flows,
)
from bench.netns import INGRESS, namespace
from bench.rows import Options, Row, interleaved, row
from lb.core import ids, slots
from lb.core.plan import Observed, plan
from lb.core.state import DesiredState
from lb.datapath import structs
from lb.datapath.bpf import possible_cpus
from lb.datapath.encode import index_key
from lb.datapath.kernel import read_owners
from lb.datapath.watch import Watch
from lb.errors import DatapathError
from lb.model import keys
from lb.model.objects import Mode, Protocol, Tracking
from lb.node.planning import Bases
from lb.settings import Limits, Observation

SUITE = "packet"
PROGRAM_OF = {"empty wrapper": "bench_empty", "parse + swap + TX": "bench_swap", "lb": "bench_lb"}
FLOOR = "parse + swap + TX"
FEW, SOME, MANY = 1000, 10_000, 100_000
MANY_LABEL = {
    1: "1 flow",
    FEW: "1 k flows",
    SOME: "10 k flows",
    MANY: "100 k flows",
    FLOWS: "1 M flows",
}
TOLERATED = 0.01  # share of packets that may find their LRU entry evicted, or still there

# struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
_CONTEXT = b"".join(n.to_bytes(4, "little") for n in (0, frames.LENGTH, 0, INGRESS, 0, 0))


@dataclass(frozen=True)
class Case:
    """What is sent, and what should become of it."""

    name: str
    frame: bytes
    version: int
    verdict: int
    flows: int = 1
    ports: bool = True
    service: str = ""
    new: bool = False  # each packet begins a flow
    opening: bytes = b""  # what a flow has to begin with to be known; else `frame`
    spread: bool = False  # each flow to the address that it has in the table

    @property
    def label(self) -> str:
        """Of the row."""
        return f"{MANY_LABEL[self.flows]}: {self.name}"


class Session:
    """One loaded balancer, and each case's place in its flows."""

    def __init__(
        self, bench: Bench, world: tuple[DesiredState, Observed], to: Sequence[int] = (0,)
    ) -> None:
        self.bench = bench
        self._next: dict[tuple[str, str], int] = {}
        self._inserted = uniform_flows(to)
        self._walked = shuffled(self._inserted, (1, FEW, SOME, MANY))
        self._state, self._observed = world
        self._bases = Bases()
        self._apply()
        self._ids = {uid: number for number, uid in read_owners(bench.maps.service_owners).items()}

    def _apply(self) -> None:
        tables = self._bases.update(self._state)
        self.bench.kernel.apply(plan(self._state, self._observed, tables))
        stored = {name: slots.to_document(name, table) for name, table in tables.items()}
        self._state = replace(self._state, tables=stored)

    def move(self) -> float:
        """Give the heaviest backends less weight; the share of slots that moves."""
        before = self._bases.update(self._state)
        heaviest = f"b{frames.BACKENDS}"
        self._state = replace(
            self._state,
            backends={
                key: each.model_copy(update={"weight": 40}) if key[1] == heaviest else each
                for key, each in self._state.backends.items()
            },
        )
        after = self._bases.update(self._state)
        self._apply()
        moved = [slots.moved(before[name], after[name]) for name in before]
        return statistics.mean(moved) / slots.SLOTS

    def observe(self, services: Collection[str]) -> None:
        """From now on it is counted what becomes of these services' connections, and of no others'."""
        self._state = replace(
            self._state,
            services={
                name: each.model_copy(update={"observe": name in services})
                for name, each in self._state.services.items()
            },
        )
        self._apply()
        maps = self.bench.maps
        watch = Watch(maps.watched, maps.totals, maps.overdue, Observation())
        watch.follow({name: [each.name for each in self._state.backends_of(name)] for name in services})

    def entries(self) -> int:
        """How many flows are remembered."""
        maps = self.bench.maps
        return sum(len(each.dump()[0]) // each.key_size for each in (maps.conntrack, maps.embryonic))

    def run(self, case: Case, peer: str, packets: int) -> float:
        """Send so many packets, going on with the flow after the last one; ns per packet."""
        before = self._new_flows(case)
        where = (case.label, peer)
        ns, after = self._send(case, peer, packets, self._next.get(where, 0))
        self._next[where] = after.next
        if peer == "lb":
            self._check(case, packets, list(after.verdicts), self._new_flows(case) - before)
        return ns

    def warm(self, case: Case) -> None:
        """Two packets of each flow, as it takes two to be more than begun: makes the entries that the
        case counts on. If its flows are to be new, one of each fills the LRU, so that each evicts one;
        then the order is that of the measurement, in which a flow comes up again when all others have
        been there."""
        self.bench.use_flows(self._walked if case.new else self._inserted)
        self._send(replace(case, frame=case.opening or case.frame), "lb", max(case.flows, 1000), 0)
        if not case.new:
            self._send(case, "lb", max(case.flows, 1000), 0)
        self.bench.use_flows(self._walked)

    def forget(self) -> None:
        """No flow is known any more. In a full LRU those that were used again would stay in the way of
        all that are not yet, whose flows then evict each other."""
        empty(self.bench.maps.conntrack)
        empty(self.bench.maps.embryonic)

    def _send(self, case: Case, peer: str, packets: int, first: int) -> tuple[float, BenchRun]:
        state = BenchRun(
            next=first,
            flows=case.flows,
            ipv6=case.version == 6,
            ports=case.ports,
            spread=case.spread,
            frame=(ctypes.c_uint8 * frames.LENGTH)(*case.frame),
        )
        self.bench.runs.put(index_key(0), bytes(state))
        program = self.bench.programs[PROGRAM_OF[peer]]
        result = program.run(case.frame, context=_CONTEXT, repeat=packets)
        after = self.bench.runs.get(index_key(0)) or b""
        return float(result.duration), BenchRun.from_buffer_copy(after)

    def _new_flows(self, case: Case) -> int:
        """How many flows the service has begun, by its own counter."""
        if not case.service:
            return 0
        number = self._ids[ids.uid(keys.service(case.service))]
        raw = self.bench.maps.service_stats.get(index_key(number)) or b""
        size = len(raw) // possible_cpus()
        parts = (raw[at : at + size] for at in range(0, len(raw), size))
        return sum(structs.Stats.from_buffer_copy(part).flows for part in parts)

    def _check(self, case: Case, packets: int, verdicts: Sequence[int], new: int) -> None:
        wanted = [packets if verdict == case.verdict else 0 for verdict in range(VERDICTS)]
        if list(verdicts) != wanted:
            raise DatapathError(f"bench: {case.label}: verdicts {list(verdicts)}, not {wanted}")
        unexpected = packets - new if case.new else new
        if unexpected > TOLERATED * packets:
            kind = "known" if case.new else "new"
            raise DatapathError(f"bench: {case.label}: {unexpected} of {packets} flows were {kind}")


def measure(session: Session, cases: Sequence[Case], options: Options, suite: str = SUITE) -> list[Row]:
    """All of these interleaved: per case the three programs."""
    rounds, repeat = options.pick(11, 3), options.pick(100_000, 20_000)
    for case in cases:
        session.warm(case)
    work = {
        (case, peer): (lambda c=case, p=peer: session.run(c, p, repeat))
        for case in cases
        for peer in PROGRAM_OF
    }
    times = interleaved({f"{case.label}|{peer}": each for (case, peer), each in work.items()}, rounds)
    found = []
    for case in cases:
        floors = times[f"{case.label}|{FLOOR}"]
        for peer in PROGRAM_OF:
            values = times[f"{case.label}|{peer}"]
            # Within a round, as the three ran one after the other: phases of the machine cancel out.
            ratio = statistics.median(ns / floor for ns, floor in zip(values, floors, strict=True))
            found.append(row(suite, case.label, peer, "ns/packet", values, ratio=ratio))
    return found


def flow_cases(flows: int) -> list[Case]:
    """TCP data of flows that are known, for every mode, family and tracking; and UDP. Mode `fullnat`
    knows all its flows, whatever `tracking` says, but has no room for so many."""
    udp = (4,) if flows in (FEW, SOME) else (4, 6)  # with both, conntrack's default would be full
    return [
        Case(
            name=f"{t.mode} IPv{t.version} {t.protocol.upper()}, {tracked(t)}",
            frame=(frames.tcp if t.protocol is Protocol.TCP else frames.udp)(frames.vip(t)),
            version=t.version,
            verdict=verdict(t),
            flows=flows,
            service=t.name,
            opening=frames.tcp(frames.vip(t), syn=True) if t.protocol is Protocol.TCP else b"",
        )
        for t in frames.targets()
        if t.protocol is Protocol.TCP or (t.tracking is Tracking.ALWAYS and t.version in udp)
        if t.mode is not Mode.FULLNAT or (t.tracking is Tracking.ALWAYS and flows <= SOME)
    ]


def tracked(target: Target) -> str:
    """In words."""
    if target.mode is Mode.FULLNAT:
        return "bound"
    if target.tracking is Tracking.ALWAYS:
        return "known (tracking always)"
    return f"no entry (tracking {target.tracking})"


def verdict(target: Target) -> int:
    """By frames.world()."""
    return XDP_TX if target.mode in frames.RETURNED else XDP_REDIRECT


def syn_cases() -> list[Case]:
    """A SYN of a new flow with each packet: 1 M different ones in turn, more than the LRU keeps."""
    return [
        Case(
            name=f"{t.mode} IPv{t.version} TCP SYN, new flow each packet (tracking {t.tracking})",
            frame=frames.tcp(frames.vip(t), syn=True),
            version=t.version,
            verdict=verdict(t),
            flows=FLOWS,
            service=t.name,
            new=True,
        )
        for t in frames.targets()
        if t.protocol is Protocol.TCP and t.mode is not Mode.FULLNAT
    ]


def other_cases() -> list[Case]:
    """What is not for a service, and pings."""
    pinged = {version: Target(Mode.DSR, version, Tracking.ALWAYS) for version in (4, 6)}
    found = []
    for version, target in pinged.items():
        stranger, vip = frames.elsewhere(version), frames.vip(target)
        found += [
            Case(f"not ours, IPv{version} TCP", frames.tcp(stranger), version, XDP_PASS),
            Case(f"ICMP echo to a VIP, IPv{version}", frames.echo(vip), version, XDP_TX, ports=False),
        ]
    return found


def while_slots_move(session: Session, options: Options) -> list[Row]:
    """1 M established flows, remembered all the time or only while something moves: before a change of
    weights that moves a tenth of the slots, and after it."""
    wanted = (Tracking.MOVING, Tracking.ALWAYS)
    targets = [Target(Mode.DSR, 4, tracking) for tracking in wanted]
    found: list[Row] = []
    for when in ("nothing moves", "10 % of the slots move"):
        if when != "nothing moves":
            share = session.move()
            if not 0.09 < share < 0.11:
                raise DatapathError(f"bench: {share:.1%} of the slots moved, not 10 %")
        cases = []
        for target in targets:
            case = Case(
                name=f"tracking {target.tracking}, {when}",
                frame=frames.tcp(frames.vip(target)),
                version=4,
                verdict=verdict(target),
                flows=FLOWS,
                service=target.name,
            )
            before = session.entries()
            session.warm(case)
            used = session.entries() - before
            cases.append(case)
            found.append(row(SUITE, f"{case.label}, entries added", "lb", "entries", [used]))
        found += measure(session, cases, options)
    return found


def observation(session: Session, options: Options) -> list[Row]:
    """The same packets to services that are observed, and that are not: data, and SYNs of new flows."""
    found: list[Row] = []
    targets = [Target(mode, 4, Tracking.MOVING) for mode in (Mode.DSR, Mode.NAT)]
    for words in ("not observed", "observed"):
        session.observe([target.name for target in targets] if words == "observed" else [])
        for syn, flows in ((False, SOME), (True, FLOWS)):
            cases = [
                Case(
                    name=f"{target.mode} IPv4 TCP {'SYN' if syn else 'data'}, {words}",
                    frame=frames.tcp(frames.vip(target), syn=syn),
                    version=4,
                    verdict=verdict(target),
                    flows=flows,
                    service=target.name,
                    new=syn,
                    opening=frames.tcp(frames.vip(target), syn=True),
                )
                for target in targets
            ]
            found += measure(session, cases, options)
    session.observe([])
    return found


def chosen(cases: Sequence[Case], options: Options) -> list[Case]:
    """Warming 1 M flows takes a second for each case."""
    return [each for each in cases if not options.quick or "dsr IPv4 TCP" in each.name]


@contextmanager
def pinned() -> Iterator[None]:
    """This process runs on the last of its CPUs."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def run(options: Options) -> list[Row]:
    """The whole suite. Needs root."""
    found: list[Row] = []
    with pinned(), namespace():
        with load(Limits()) as bench:
            session = Session(bench, frames.world())
            found += measure(session, [*flow_cases(1), *other_cases()], options)
            for flows in (FEW, SOME):
                found += measure(session, flow_cases(flows), options)
            found += observation(session, options)
            for case in chosen(syn_cases(), options):
                session.forget()
                found += measure(session, [case], options)
        # Twice as many entries as flows: a full LRU evicts by approximation.
        with load(Limits(conntrack=2 * FLOWS, embryonic=2 * FLOWS)) as bench:
            session = Session(bench, frames.world())
            found += measure(session, chosen(flow_cases(MANY), options), options)
            for case in chosen(flow_cases(FLOWS), options):
                session.forget()
                found += measure(session, [case], options)
            session.forget()
            found += while_slots_move(session, options)
    return found
