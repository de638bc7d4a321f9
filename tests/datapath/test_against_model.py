"""The kernel's programs against the reference model: same verdict, same bytes, same counters, same
flows remembered, for whatever Hypothesis makes of worlds and frames.

`make test` runs a fixed set; LB_PACKETS=200000 runs that many others (a new set each time), LB_MODE=ipip
with services of that mode only. `make test-packets` does that for every mode.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from lb.core.reference import (
    Flow,
    Fragment,
    FragmentKey,
    Outcome,
    Result,
    Stats,
    World,
    process,
    quic,
)
from lb.core.reference.parse import ICMP, ICMPV6, Packet, parse
from lb.core.reference.pick import SEEN_STEP, find_service
from lb.core.reference.pieces import FRAGMENT_NS
from lb.core.reference.world import FlowKey
from lb.datapath.clock import Clock

from . import harness
from .harness import Kernel
from .strategies import CLOSED, INGRESS, MAX_TABLES, ONLY_MODE, OPEN, Scene, damaged_copies, encounters

PACKETS = int(os.environ.get("LB_PACKETS", "0"))
ENOUGH = 12000
# A virtual machine without KVM has time for fewer of them (tests/kernels).
FIXED_PACKETS = int(os.environ.get("LB_FIXED_PACKETS", ENOUGH))
COPIES = 2  # damaged ones, of each frame
PACKETS_PER_SCENE = 45  # at least, on average


class Pair:
    """A kernel and the model's idea of it, going through the same packets."""

    def __init__(self, kernel: Kernel, scene: Scene, clock: Clock) -> None:
        self.kernel, self.clock = kernel, clock
        world = scene.at(clock.jiffies())
        reachable = None if kernel.hook == "tc" else frozenset(world.links)
        self.flows: dict[str, dict[FlowKey, Flow]] = {
            "conntrack": dict(world.conntrack),
            "embryonic": dict(world.embryonic),
        }
        self.senders = dict(world.senders)
        self.bindings = dict(world.bindings)
        self.translations = dict(world.translations)
        self.fragments = dict(world.fragments)
        clock_ns = (OPEN[0] + CLOSED[-1]) // 2
        self.world: World = replace(
            world,
            **self.flows,
            senders=self.senders,
            bindings=self.bindings,
            translations=self.translations,
            fragments=self.fragments,
            reachable=reachable,
            clock=clock_ns,
        )
        kernel.install(self.world)

    def send(self, frame: bytes) -> tuple[Result, list[str]]:
        if not self.kernel.takes(frame):
            return process(frame, INGRESS, self.world), []
        before, began = self.clock.jiffies(), time.monotonic_ns()
        seen = self.kernel.run(frame, INGRESS)
        expected = process(frame, INGRESS, replace(self.world, now=before))
        differences = harness.compare(self.kernel, frame, expected, seen)
        for where, written in (("conntrack", expected.conntrack), ("embryonic", expected.embryonic)):
            for key, flow in written.items():
                differences += self._note(where, key, flow, before)
        self.senders.update(expected.senders)
        for held, changed, there in (
            (self.bindings, expected.bindings, self.kernel.bindings),
            (self.translations, expected.translations, self.kernel.translations),
        ):
            if changed:
                differences += self._note_nat(held, changed, there(), before)
        if expected.fragments:
            differences += self._note_fragments(expected.fragments, began)
        return expected, differences

    def _note_fragments(self, written: Mapping[FragmentKey, Fragment], began: int) -> list[str]:
        """The same for the first pieces of datagrams, which the kernel times by its own clock."""
        differences, held = [], self.kernel.fragments()
        for key, first in written.items():
            got = held.get(key)
            if got and began <= got.until - FRAGMENT_NS <= time.monotonic_ns():
                first = replace(first, until=got.until)
            self.fragments[key] = replace(first, until=OPEN[0])
            if got != first:
                differences.append(f"{self.kernel.hook}: {key}: model {first}, kernel {got}")
        return differences

    def _note(self, where: str, key: FlowKey, flow: Flow | None, before: int) -> list[str]:
        """Is the kernel's entry as the model says it was written?"""
        got = self.kernel.flow(where, key)
        if flow and got and got != flow and self._is_late(self.flows[where].get(key), flow, got, before):
            flow = got
        if flow is None:
            self.flows[where].pop(key, None)
        else:
            self.flows[where][key] = flow
        return [] if got == flow else [f"{self.kernel.hook}: {where}: model {flow}, kernel {got}"]

    def _note_nat(self, held: dict, changed: Mapping, got: dict, before: int) -> list[str]:
        """The same for the entries of fullnat."""
        differences = []
        for key, wanted in changed.items():
            found, old = got.get(key), held.get(key)
            if wanted and found and found != wanted and self._is_late(old, wanted, found, before):
                wanted = found
            held.pop(key, None)
            if wanted is not None:
                held[key] = wanted
            if found != wanted:
                differences.append(f"{self.kernel.hook}: {key}: model {wanted}, kernel {found}")
        return differences

    def _is_late(self, old: Flow | None, flow: Flow, got: Flow, before: int) -> bool:
        """Does the kernel's entry differ only because time went on while it worked?"""
        now = self.clock.jiffies()
        elapsed = (now - before) % 2**32
        written = (got.seen - before) % 2**32 <= elapsed
        was_due = flow.seen == before or (old is not None and (now - old.seen) % 2**32 >= SEEN_STEP)
        return replace(got, seen=flow.seen) == flow and written and was_due


FORWARDED = (Outcome.FORWARD_TX, Outcome.FORWARD_REDIRECT)
SENT = (*FORWARDED, Outcome.REPLY_REDIRECT)


def is_later(frame: bytes) -> bool:
    packet = parse(frame, INGRESS)
    return isinstance(packet, Packet) and packet.later


def names_a_backend(frame: bytes, world: World) -> bool:
    packet = parse(frame, INGRESS)
    number = find_service(packet, world) if isinstance(packet, Packet) else None
    if number is None or not isinstance(packet, Packet):
        return False
    return quic.named_backend(packet, number, world.services[number], world) is not None


def is_icmp(frame: bytes) -> bool:
    packet = parse(frame, INGRESS)
    return isinstance(packet, Packet) and packet.proto in (ICMP, ICMPV6)


def hypothesis_settings(packets: int):
    return settings(
        max_examples=packets // PACKETS_PER_SCENE,
        derandomize=not PACKETS,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )


@pytest.mark.timeout(0)
def test_kernel_does_what_the_model_says(kernels: dict[str, Kernel], record_property) -> None:
    clock = Clock()
    tables = {n: harness.TableMaps() for n in range(1, MAX_TABLES + 1)}
    for kernel in kernels.values():
        kernel.use_tables(tables)
    outcomes: Counter[Outcome] = Counter()
    reached: Counter[str] = Counter()

    @hypothesis_settings(PACKETS or FIXED_PACKETS)
    @given(encounters())
    def run(encounter: tuple[Scene, list[bytes]]) -> None:
        scene, arriving = encounter
        for number, slots in scene.world.tables.items():
            harness.fill_table(tables[number], slots, scene.world.pasts[number])
        pairs = [Pair(kernel, scene, clock) for kernel in kernels.values()]
        for frame in (f for whole in arriving for f in (whole, *damaged_copies(whole, COPIES))):
            placed = []
            for pair in pairs:
                expected, differences = pair.send(frame)
                assert not differences, "\n".join(
                    [*differences, f"frame {frame.hex()}", f"{expected.outcome}"]
                )
                placed.append(expected.backend and expected.backend[0])
            # The model decides alike for both hooks, and each kernel does as it says.
            assert placed[0] == placed[1]
            outcomes[expected.outcome] += 1
            entries = (*expected.conntrack.values(), *expected.embryonic.values())
            stats = expected.backend[1] if expected.backend else Stats()
            reached["flow remembered"] += any(entries) and stats.packets
            reached["flow goes on"] += any(entries) and stats.packets - stats.flows
            reached["flow kept by an answer"] += any(entries) and stats.reply_packets
            reached["flow forgotten"] += None in entries
            by = expected.service and scene.world.rules.get(expected.service[0])
            reached["by a rule"] += any(entries) and bool(stats.packets and by)
            reached["sender learned"] += bool(expected.senders)
            forwarded = expected.outcome in FORWARDED
            reached["bound"] += any(each and each.state for each in expected.bindings.values())
            reached["newly bound"] += bool(expected.translations and expected.bindings)
            reached["unbound"] += None in expected.bindings.values()
            reached["put into a tunnel"] += forwarded and len(expected.frame) > len(frame) + 8
            reached["first piece"] += bool(expected.fragments)
            reached["later piece"] += expected.outcome in SENT and is_later(frame)
            reached["named by a connection ID"] += names_a_backend(frame, scene.world)
            about = is_icmp(frame)
            reached["error to a backend"] += forwarded and about
            reached["error to a client"] += expected.outcome is Outcome.REPLY_REDIRECT and about
        for pair in pairs:
            for where, flows in pair.flows.items():
                assert pair.kernel.flows(where) == flows
            assert pair.kernel.senders() == pair.senders
            assert pair.kernel.bindings() == pair.bindings
            assert pair.kernel.translations() == pair.translations
            assert pair.kernel.fragments().keys() == pair.fragments.keys()

    run()
    total = outcomes.total()
    record_property("packets", total)
    print(f"\n{total} packets per hook:", *(f"{o.name}={n}" for o, n in outcomes.most_common()))
    assert total >= (PACKETS or FIXED_PACKETS)
    print(dict(reached))
    if ONLY_MODE:
        return
    # What isn't reached isn't tested. Few packets may miss what is rare: that has tests of its own
    # (test_hooks.py), this one then only sees to it that most are met.
    if PACKETS:
        assert {*outcomes, Outcome.DROP_NO_SPACE} == set(Outcome)
        assert min(reached.values()) > total // 3000
    elif FIXED_PACKETS >= ENOUGH:
        assert len(outcomes) > len(Outcome) * 3 // 4
        assert sum(map(bool, reached.values())) > len(reached) * 3 // 4
