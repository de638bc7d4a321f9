"""No established flow changes its backend while slots move: random interleavings of flows and changes,
through the reference model and through the kernel programs.

Established is a flow that has sent more than its SYN, and sends at least one packet per window. It may
be placed anew only when its backend is down; and by a node that lost its memory in the middle of a
window, if it began after the move.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from functools import cache
from ipaddress import ip_address
from typing import Protocol

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from lb.core import flowhash
from lb.core.moves import QUIET, calm, quieten, stir
from lb.core.reference import Backend, Endpoint, FlowKey, Past, Service, World, process
from lb.datapath import consts, slotmaps
from lb.datapath.slotmaps import Slots
from lb.model.objects import Affinity, Tracking

from . import harness, netns
from .strategies import INGRESS, OURS, PEER

SERVICE = Service((3, 5), ip_address("10.0.0.1"), 80, 6, tracking=Tracking.MOVING)
CLIENT = ip_address("198.51.100.2")
BACKENDS = range(1, 6)
GROUPS = 4  # the slots of a group always move together
FLOWS = range(4000, 4012)  # by their source port
WINDOW = 1_000_000_000_000  # ns; no test takes a tenth of it
FLOOD = 3 * harness.LIMITS.embryonic


def slot_of(flow: int) -> int:
    return flowhash.slot(SERVICE.seed, CLIENT, flow, SERVICE.port, Affinity.FLOW)


def key_of(flow: int) -> FlowKey:
    return FlowKey(CLIENT, 1, flow, SERVICE.port)


@cache
def segment(flow: int, flags: str) -> bytes:
    head = Ether(src=PEER.hex(":"), dst=OURS.hex(":")) / IP(src=str(CLIENT), dst=str(SERVICE.vip))
    return bytes(head / TCP(sport=flow, dport=SERVICE.port, flags=flags))


def world_of(backends: dict[int, Backend]) -> World:
    return World(
        links=dict.fromkeys((INGRESS, netns.B), OURS),
        vips={Endpoint(SERVICE.vip, SERVICE.port, 6): 1},
        services={1: SERVICE},
        backends=backends,
    )


class Node(Protocol):
    """A node's data path."""

    def program(self, slots: Slots, backends: dict[int, Backend], now: int) -> None: ...

    def send(self, flow: int, flags: str) -> int | None: ...

    def remembered(self) -> dict[FlowKey, int]: ...

    def forget(self, flow: int) -> None: ...

    def flood(self) -> None: ...

    def reboot(self) -> None: ...


class ModelNode:
    """The specification."""

    def __init__(self) -> None:
        self.world = world_of({})
        self.reboot()

    def program(self, slots: Slots, backends: dict[int, Backend], now: int) -> None:
        pasts = {
            n: Past(int(slots.moves.origin[n]), int(slots.moves.closes[n]))
            for n in WATCHED
            if slots.moves.closes[n] != QUIET
        }
        self.world = replace(
            self.world, tables={1: slots.backends}, pasts={1: pasts}, backends=backends, clock=now
        )

    def send(self, flow: int, flags: str) -> int | None:
        world = replace(self.world, conntrack=self.conntrack, embryonic=self.embryonic)
        result = process(segment(flow, flags), INGRESS, world)
        for mine, written in (
            (self.conntrack, result.conntrack),
            (self.embryonic, result.embryonic),
        ):
            for key, entry in written.items():
                if entry:
                    mine[key] = entry
                else:
                    mine.pop(key, None)
        return result.backend[0] if result.backend else None

    def remembered(self) -> dict[FlowKey, int]:
        return {key: flow.backend for key, flow in (self.embryonic | self.conntrack).items()}

    def forget(self, flow: int) -> None:
        self.conntrack.pop(key_of(flow), None)
        self.embryonic.pop(key_of(flow), None)

    def flood(self) -> None:
        self.embryonic.clear()  # the worst that a flood can do

    def reboot(self) -> None:
        self.conntrack: dict[FlowKey, object] = {}
        self.embryonic: dict[FlowKey, object] = {}


WATCHED = {slot_of(flow) for flow in FLOWS}


class KernelNode:
    """A hook's program, with its maps."""

    def __init__(self, kernel: harness.Kernel) -> None:
        self.kernel = kernel
        self.table = harness.TableMaps()
        kernel.use_tables({1: self.table})
        kernel.install(world_of({}))

    def program(self, slots: Slots, backends: dict[int, Backend], now: int) -> None:
        # The simulated clock, in terms of the one that the program reads.
        ahead = time.monotonic_ns() - now
        stirred = slots.moves.stirred
        moves = replace(slots.moves, closes=np.where(stirred, slots.moves.closes + ahead, 0))
        encoded = slotmaps.encode(Slots(slots.backends, moves))
        for number, backend in backends.items():
            raw = bytes(harness.backend_struct(backend))
            self.kernel.maps.backends.put(harness.u32(number), raw)
        self.table.fill(encoded)

    def send(self, flow: int, flags: str) -> int | None:
        seen = self.kernel.run(segment(flow, flags), INGRESS)
        return next(iter(seen.backends), None)

    def remembered(self) -> dict[FlowKey, int]:
        found = self.kernel.flows("embryonic") | self.kernel.flows("conntrack")
        return {key: flow.backend for key, flow in found.items() if key.client_port in FLOWS}

    def forget(self, flow: int) -> None:
        for name in ("conntrack", "embryonic"):
            self.kernel.maps.by_name[name].delete(harness.flow_key(key_of(flow)))

    def flood(self) -> None:
        frame = bytearray(segment(1, "S"))
        at = frame.index(CLIENT.packed)
        for n in range(FLOOD):
            frame[at + 1 : at + 4] = n.to_bytes(3)
            self.kernel.program.run(bytes(frame), context=self.kernel.context(len(frame), INGRESS))

    def reboot(self) -> None:
        for name in ("conntrack", "embryonic"):
            each = self.kernel.maps.by_name[name]
            for raw in list(each.keys()):
                each.delete(raw)


@dataclass
class Expected:
    """What must be true of a flow."""

    backend: int
    sent: int
    established: bool = False
    fragile: bool = False  # its SYN may have been forgotten


@dataclass
class History:
    """What people, clients and fate do, one after the other."""

    node: Node
    now: int = 10 * WINDOW
    backends: dict[int, Backend] = field(default_factory=dict)
    slots: Slots = field(default_factory=slotmaps.empty)
    flows: dict[int, Expected] = field(default_factory=dict)
    checked: int = 0

    def __post_init__(self) -> None:
        common = {"ifindex": netns.B, "dmac": PEER, "smac": OURS}
        self.backends = {n: Backend(ip_address(f"10.1.0.{n}"), **common) for n in BACKENDS}
        first = np.full(consts.SLOTS, BACKENDS[0], dtype=np.uint32)
        self.slots = Slots(first, slotmaps.empty().moves)
        self.node.reboot()
        self._program()

    def _program(self) -> None:
        self.node.program(self.slots, self.backends, self.now)

    def _own(self, flow: int) -> int:
        return int(self.slots.backends[slot_of(flow)])

    def _place(self, flow: int) -> str:
        at = slot_of(flow)
        if not self.slots.moves.stirred[at]:
            return "quiet"
        return "moving" if self.slots.moves.is_moving(self.now)[at] else "settled"

    def _origin(self, flow: int) -> int:
        return int(self.slots.moves.origin[slot_of(flow)])

    def open(self, flow: int) -> None:
        was = self.flows.get(flow)
        own = self._own(flow)
        to = self.node.send(flow, "S")
        allowed = {own if self._usable(own) else None}
        if was and not was.established and self._usable(was.backend):
            allowed.add(was.backend)  # the SYN sent again
        assert to in allowed
        if to is None:
            self.flows.pop(flow, None)
        else:
            self.flows[flow] = Expected(to, self.now)

    def data(self, flow: int) -> None:
        if flow not in self.flows:
            return
        expected = self.flows[flow]
        to = self.node.send(flow, "PA")
        if self._usable(expected.backend) and (expected.established or not expected.fragile):
            assert to == expected.backend, f"flow {flow}: {expected}, {self._place(flow)}"
            self.checked += 1
        if to is not None:
            self.flows[flow] = Expected(to, self.now, established=True)

    def _usable(self, number: int) -> bool:
        return number in self.backends and self.backends[number].usable

    def move(self, owners: tuple[int, ...]) -> None:
        after = np.resize(np.array(owners, dtype=np.uint32), consts.SLOTS)
        closes = self.now + WINDOW
        moves = stir(self.slots.backends, self.slots.moves, after, closes, self.now, slotmaps.EMPTY)
        self.slots = Slots(after, moves)
        self._program()

    def admin(self, number: int, usable: bool) -> None:
        self.backends[number] = replace(self.backends[number], usable=usable)
        self._program()

    def recycle(self, number: int) -> None:
        """The backend is removed, and its id given to another one."""
        old = self.backends[number]
        self.backends[number] = replace(old, generation=old.generation + 1)
        self.move(tuple(int(n) if n != number else 0 for n in self.slots.backends[:GROUPS]))
        origin = np.where(self.slots.moves.origin == number, slotmaps.EMPTY, self.slots.moves.origin)
        self.slots = Slots(self.slots.backends, replace(self.slots.moves, origin=origin))
        self.flows = {f: each for f, each in self.flows.items() if each.backend != number}
        self._program()

    def wait(self, quarters: int) -> None:
        """Time passes; who has been silent for long enough says something first."""
        for _ in range(quarters):
            for flow, expected in list(self.flows.items()):
                if expected.sent + WINDOW <= self.now + WINDOW // 4:
                    self.data(flow)
            self.now += WINDOW // 4
            self._program()

    def sweep(self) -> None:
        """As lbd does it."""
        for flow in FLOWS:
            if flow not in self.flows or self.flows[flow].sent + WINDOW <= self.now:
                self.node.forget(flow)
                self.flows.pop(flow, None)
        entries = self.node.remembered()
        at = np.array([slot_of(key.client_port) for key in entries], dtype=np.int64)
        went = np.array(list(entries.values()), dtype=np.uint32)
        quiet = calm(self.slots.backends, self.slots.moves, at, went, self.now)
        self.slots = Slots(self.slots.backends, quieten(self.slots.moves, quiet))
        self._program()

    def restart(self) -> None:
        """Of lbd: it finds in the kernel what it needs."""
        self.slots = slotmaps.decode(*slotmaps.encode(self.slots))
        self._program()

    def flood(self) -> None:
        self.node.flood()
        for expected in self.flows.values():
            expected.fragile |= not expected.established

    def lose(self, flow: int) -> bool:
        """Does a node that never saw this flow know better than to break it? It doesn't where the slot
        moved, and the flow isn't where nodes without memory look for it."""
        known = {"quiet": self._own, "settled": self._own, "moving": self._origin}
        return known[self._place(flow)](flow) != self.flows[flow].backend

    def reboot(self) -> None:
        """The node loses its memory; slots and their past are in the shared state. Windows begin anew:
        it has to see older flows again."""
        self.node.reboot()
        moves = self.slots.moves
        closes = np.where(moves.is_moving(self.now), self.now + WINDOW, moves.closes)
        self.slots = Slots(self.slots.backends, replace(moves, closes=closes))
        self._program()
        for flow in [flow for flow in self.flows if self.lose(flow)]:
            del self.flows[flow]
        for expected in self.flows.values():
            expected.fragile |= not expected.established

    def second_node(self) -> None:
        """One that never saw these flows."""
        other = ModelNode()
        other.program(self.slots, self.backends, self.now)
        for flow, expected in self.flows.items():
            if expected.established and not self.lose(flow) and self._usable(expected.backend):
                assert other.send(flow, "PA") == expected.backend


owners = st.lists(
    st.sampled_from([*BACKENDS, *BACKENDS, slotmaps.EMPTY]), min_size=GROUPS, max_size=GROUPS
)
a_flow = st.sampled_from(FLOWS)
a_backend = st.sampled_from(BACKENDS)
step = st.one_of(
    st.tuples(st.just("open"), a_flow),
    st.tuples(st.just("open"), a_flow),
    st.tuples(st.just("data"), a_flow),
    st.tuples(st.just("data"), a_flow),
    st.tuples(st.just("data"), a_flow),
    st.tuples(st.just("move"), owners.map(tuple)),
    st.tuples(st.just("move"), owners.map(tuple)),
    st.tuples(st.just("admin"), a_backend, st.booleans()),
    st.tuples(st.just("recycle"), a_backend),
    st.tuples(st.just("wait"), st.integers(1, 5)),
    st.tuples(st.just("wait"), st.integers(1, 5)),
    st.tuples(st.just("sweep")),
    st.tuples(st.just("restart")),
    st.tuples(st.just("reboot")),
    st.tuples(st.just("second_node")),
)
steps = st.lists(step, min_size=20, max_size=60)


def run(node: Node, story: list[tuple], floods: bool) -> int:
    history = History(node)
    for turn, (what, *how) in enumerate(story):
        getattr(history, what)(*how)
        if floods and turn % 7 == 6:
            history.flood()
    for flow in FLOWS:
        history.data(flow)
    return history.checked


def settings_of(examples: int):
    return settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))


def test_the_model_keeps_established_flows() -> None:
    checked = 0

    @settings_of(400)
    @given(steps, st.booleans())
    def check(story: list[tuple], floods: bool) -> None:
        nonlocal checked
        checked += run(ModelNode(), story, floods)

    check()
    assert checked > 1000


@pytest.mark.parametrize("hook", ["xdp", "tc"])
def test_the_kernel_keeps_established_flows(kernels: dict[str, harness.Kernel], hook: str) -> None:
    node = KernelNode(kernels[hook])
    checked = 0

    @settings_of(60)
    @given(steps)
    def check(story: list[tuple]) -> None:
        nonlocal checked
        checked += run(node, story, floods=False)

    check()
    assert checked > 100


@pytest.mark.parametrize("hook", ["xdp", "tc"])
def test_a_flood_of_syns_pushes_no_established_flow_out(
    kernels: dict[str, harness.Kernel], hook: str
) -> None:
    history = History(KernelNode(kernels[hook]))
    older, younger = FLOWS[:6], FLOWS[6:]
    for flow in older:
        history.open(flow)
        history.data(flow)
    history.move((2, 3, 4, 5))
    for flow in younger:
        history.open(flow)
    for flow in FLOWS:
        history.data(flow)
    embryonic = kernels[hook].maps.embryonic
    history.flood()
    assert len(list(embryonic.keys())) > embryonic.max_entries // 2
    for flow in FLOWS:
        history.data(flow)
    history.wait(5)  # the window closes; each flow has said something in it
    assert all(history._place(flow) == "settled" for flow in FLOWS)
    history.flood()
    before = history.checked
    for flow in FLOWS:
        history.data(flow)
    assert history.checked - before == len(FLOWS)
    history.sweep()
    assert {history._place(flow) for flow in older} == {"settled"}
    assert {history._place(flow) for flow in younger} == {"quiet"}
