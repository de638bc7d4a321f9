"""The kernel's programs against the reference model: same verdict, same bytes, same counters, same
conntrack entries, for whatever Hypothesis makes of worlds and frames.

`make test` runs a fixed set; LB_PACKETS=200000 runs that many others (a new set each time).
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from lb.core.reference import Flow, Outcome, Result, World, process
from lb.core.reference.pick import SEEN_STEP
from lb.core.reference.world import FlowKey
from lb.datapath.maps import new_table

from . import harness
from .harness import Clock, Kernel
from .strategies import INGRESS, MAX_SERVICES, Scene, damaged_copies, encounters

PACKETS = int(os.environ.get("LB_PACKETS", "0"))
FIXED_PACKETS = 6000
COPIES = 2  # damaged ones, of each frame
PACKETS_PER_SCENE = 50  # at least, on average

# These can't be reached from outside: buffers have room for every answer that we make.
UNREACHABLE = {Outcome.DROP_NO_SPACE}


class Pair:
    """A kernel and the model's idea of it, going through the same packets."""

    def __init__(self, kernel: Kernel, scene: Scene, clock: Clock) -> None:
        self.kernel, self.clock = kernel, clock
        world = scene.at(clock.now())
        reachable = None if kernel.hook == "tc" else frozenset(world.links)
        self.conntrack: dict[FlowKey, Flow] = dict(world.conntrack)
        self.world: World = replace(world, conntrack=self.conntrack, reachable=reachable)
        kernel.install(self.world)

    def send(self, frame: bytes) -> tuple[Result, list[str]]:
        if not self.kernel.takes(frame):
            return process(frame, INGRESS, self.world), []
        before = self.clock.now()
        seen = self.kernel.run(frame, INGRESS)
        expected = process(frame, INGRESS, replace(self.world, now=before))
        differences = harness.compare(self.kernel, frame, expected, seen)
        if expected.flow:
            key, flow = expected.flow
            got = self.kernel.flow(key)
            if got and got != flow and self._is_late(key, flow, got, before):
                flow = got
            if got != flow:
                differences.append(f"{self.kernel.hook}: entry: model {flow}, kernel {got}")
            self.conntrack[key] = flow
        return expected, differences

    def _is_late(self, key: FlowKey, flow: Flow, got: Flow, before: int) -> bool:
        """Does the kernel's entry differ only because time went on while it worked?"""
        now = self.clock.now()
        elapsed = (now - before) % 2**32
        written = (got.seen - before) % 2**32 <= elapsed
        old = self.conntrack.get(key)
        was_due = flow.seen == before or (old is not None and (now - old.seen) % 2**32 >= SEEN_STEP)
        return replace(got, seen=flow.seen) == flow and written and was_due


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
    tables = {n: new_table() for n in range(1, MAX_SERVICES + 1)}
    for kernel in kernels.values():
        kernel.use_tables(tables)
    outcomes: Counter[Outcome] = Counter()
    reached: Counter[str] = Counter()

    @hypothesis_settings(PACKETS or FIXED_PACKETS)
    @given(encounters())
    def run(encounter: tuple[Scene, list[bytes]]) -> None:
        scene, arriving = encounter
        for number, slots in scene.world.tables.items():
            harness.fill_table(tables[number], slots)
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
            reached["conntrack written"] += bool(expected.flow)
            reached["flow goes on"] += bool(expected.flow and expected.backend[1].flows == 0)
        for pair in pairs:
            if pair.conntrack:
                assert pair.kernel.flows() == pair.conntrack

    run()
    total = outcomes.total()
    record_property("packets", total)
    print(f"\n{total} packets per hook:", *(f"{o.name}={n}" for o, n in outcomes.most_common()))
    assert total >= (PACKETS or FIXED_PACKETS)
    # What isn't reached isn't tested.
    assert set(outcomes) == set(Outcome) - UNREACHABLE
    assert min(reached.values()) > total // 100
