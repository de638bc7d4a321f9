"""`make check-slots`: the promises of slot tables, measured.

The last line has the figures of this run; PASS if all are within LIMITS and nothing else went wrong.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

from bench.peers import maglev
from lb.core import slots
from lb.core.overlay import overlay
from lb.core.slots import SLOTS, Member, Table
from lb.core.state import DesiredState
from lb.lab.lab import Lab
from lb.model.objects import Backend, ClusterConfig, Service
from lb.node.planning import Bases
from tests.property.test_slots import POOLS, change, exact_shares, least_moves

sys.path.insert(0, str(Path(__file__).parent.parent / "lab"))
from helpers import held
from sticky import CLIENTS, many_clients

LIMITS = {
    "max_imbalance_slots": 1.0,
    "movement_ratio_median": 1.0,
    "movement_ratio_max": 1.0,
    "monotone_violations": 0,
    "node_mismatches": 0,
    "rebuild_ms_1000": 5.0,
}
HEALTH_LIMIT = 1.25  # median with several backends down, for 10 and 100 backends
POPULATIONS = [1, 2, 10, 100, 1000, 4000]
TURNS = 8


@dataclass
class Found:
    """What was measured."""

    imbalance: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    violations: int = 0
    mismatches: int = 0
    rebuild: float = 0.0
    failures: list[str] = field(default_factory=list)


def splits(dice: random.Random, pools: int) -> dict[str, float]:
    """Per cent for each pool, in tenths."""
    cuts = sorted(dice.sample(range(1, 1000), pools - 1))
    tenths = [high - low for low, high in zip([0, *cuts], [*cuts, 1000], strict=True)]
    shares = zip(POOLS, (n / 10 for n in tenths), strict=False)
    return dict.fromkeys(POOLS, 0.0) | dict(shares)


def population(dice: random.Random, count: int, pools: int) -> list[Member]:
    """So many backends, spread over the pools."""
    weights = [1, 10, 100, 100, 100, 65535]
    return [Member(f"b{i}", POOLS[i % pools], dice.choice(weights)) for i in range(count)]


def imbalance(table: Table, group: list[Member], split: dict[str, float]) -> float:
    """The greatest distance of a pool or a backend from its exact share, in slots: of all slots, and of
    what its pool has."""
    pools, backends = exact_shares(group, split)
    counts = table.counts()
    worst = max((abs(counts[name] - share) for name, share in backends.items()), default=Fraction(0))
    for pool, share in pools.items():
        mine = [m for m in group if m.pool == pool]
        got, total = sum(counts[m.name] for m in mine), sum(m.weight for m in mine)
        worst = max(worst, abs(got - share))
        if total:
            inside = (abs(counts[m.name] - Fraction(got * m.weight, total)) for m in mine)
            worst = max(worst, *inside)
    return float(worst)


def desired_changes(found: Found) -> str:
    """Random histories: adds, removals, weights, drains, splits."""
    changes = 0
    for count in POPULATIONS:
        for pools in (1, 3, 8):
            dice = random.Random(count * pools)
            group, split = population(dice, count, pools), splits(dice, pools)
            before = slots.plan(group, split, None)
            found.imbalance.append(imbalance(before, group, split))
            for turn in range(TURNS):
                if turn % 2:
                    split = splits(dice, pools)
                else:
                    group = change(dice, group)
                after = slots.plan(group, split, before)
                found.imbalance.append(imbalance(after, group, split))
                if any(exact_shares(group, split)[0].values()):
                    least = least_moves(before, group, split)
                    moved = slots.moved(before, after)
                    found.ratios.append(moved / least if least else 1.0 + moved)
                    changes += 1
                before = after
    return (
        f"{changes} changes of {POPULATIONS} backends in 1 to 8 pools: imbalance at most"
        f" {max(found.imbalance):.3f} slots, moved over least possible {max(found.ratios):.4f} at most"
    )


def rollouts(found: Found) -> str:
    """A canary grows and is aborted, beside other pools."""
    steps = 0
    for trial in range(20):
        dice = random.Random(trial)
        group = population(dice, dice.choice([3, 10, 100, 500]), 3)
        pool_of = {m.name: m.pool for m in group}
        table, share = None, 0.0
        for step in (0.0, 1.0, 5.0, 25.0, 50.0, 100.0, dice.choice([0.0, 25.0])):
            rest = 100 - step
            split = dict.fromkeys(POOLS, 0.0) | {"a": step, "b": rest * 0.3, "c": rest * 0.7}
            after = slots.plan(group, split, table)
            if table is not None:
                was, now = (
                    [pool_of.get(name) == "a" for name in each.names()] for each in (table, after)
                )
                against = ((True, False) if step > share else (False, True),)
                found.violations += sum(pair in against for pair in zip(was, now, strict=True))
                steps += 1
            table, share = after, step
    return f"{steps} steps of rollouts: {found.violations} slots against the direction"


def health(found: Found) -> str:
    """Backends fall while others are down."""
    said = []
    for count, down in ((10, 0), (10, 5), (100, 0), (100, 10), (100, 40), (1000, 1), (1000, 160)):
        ratios, shares = [], []
        for trial in range(61 if count <= 100 else 7):
            dice = random.Random(trial)
            group = [Member(f"b{trial}-{i}", "a", dice.randint(10, 100)) for i in range(count)]
            base = slots.plan(group, {"a": 100.0}, None)
            falling = dice.sample([m.name for m in group], down + 1)
            before = overlay(base, group, dict.fromkeys(falling[:-1], 0.0))
            after = overlay(base, group, dict.fromkeys(falling, 0.0))
            ratios.append(slots.moved(before, after) / before.counts()[falling[-1]])
            shares.append(slots.moved(before, after) / SLOTS)
        median = statistics.median(ratios)
        said.append(f"{count}/{down} down {median:.3f} ({100 * statistics.median(shares):.2f} %)")
        limit = 1.0 if down == 0 else HEALTH_LIMIT
        if count <= 100 and median > limit:
            found.failures.append(f"health, {count} backends of which {down} are down: {median:.3f}")
    return "one more falls, slots moved over least possible: " + ", ".join(said)


def nodes(found: Found) -> str:
    """Four nodes of different histories plan from one store: restarted, cut off, or always there."""
    service = Service(name="web", vip="198.51.100.100", port=80)  # type: ignore[arg-type]
    dice = random.Random(7)
    planners = [Bases() for _ in range(4)]
    backends = {
        ("web", f"b{i}"): Backend(service="web", name=f"b{i}", address=f"10.0.0.{i + 1}")  # type: ignore[arg-type]
        for i in range(40)
    }
    state = DesiredState(config=ClusterConfig(seed="0" * 32), services={"web": service})
    compared = 0
    for _ in range(60):
        name = dice.choice(list(backends))
        backends[name] = backends[name].model_copy(update={"weight": dice.choice([0, 10, 100, 200])})
        state = replace(state, backends=dict(backends))
        present = [planner for planner in planners if dice.random() < 0.7] or planners[:1]
        tables = [planner.update(state)["web"] for planner in present]
        # Whoever is first writes it; the others take that.
        written = slots.to_document("web", dice.choice(tables))
        state = replace(state, tables={"web": written})
        if dice.random() < 0.2:
            planners[dice.randrange(4)] = Bases()
        members = [Member(b.name, b.pool, b.weight) for b in backends.values()]
        down = dict.fromkeys((f"b{i}" for i in dice.sample(range(40), 5)), 0.0)
        programmed = [overlay(each.update(state)["web"], members, down) for each in planners]
        found.mismatches += sum(
            each.slots.tobytes() != programmed[0].slots.tobytes() or each.digest != programmed[0].digest
            for each in programmed
        )
        compared += len(programmed)
    return f"{compared} tables of nodes with different histories: {found.mismatches} differ"


def rebuild(found: Found) -> str:
    """One of 1,000 backends gets another weight; a Maglev table of the same in the same run."""
    dice = random.Random(3)
    group = [Member(f"b{i}", "a", dice.randint(10, 100)) for i in range(1000)]
    base = slots.plan(group, {"a": 100.0}, None)
    ours, theirs = [], []
    for turn in range(25):
        group[turn] = replace(group[turn], weight=5)
        ours.append(milliseconds(lambda: slots.plan(group, {"a": 100.0}, base)))
        weights = {m.name: m.weight for m in group}
        theirs.append(
            milliseconds(lambda given=weights: maglev.table([*given], [*given.values()], maglev.SMALL))
        )
    found.rebuild = statistics.median(ours)
    return (
        f"rebuild with 1,000 backends: {found.rebuild:.2f} ms; Maglev {statistics.median(theirs):.2f} ms"
    )


def milliseconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


def moves(found: Found) -> str:
    """Random interleavings of flows and moves, in the model and in both kernel programs."""
    argv = [sys.executable, "-m", "pytest", "-q", "tests/datapath/test_moves.py"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-200:]
    if done.returncode:
        found.failures.append(f"established flows: {last}")
    return f"established flows through moves, floods and restarts (tests/datapath/test_moves.py): {last}"


def real_traffic(found: Found) -> Iterator[str]:
    """The lab: a kernel, lbd, nginx, and a hundred clients."""
    with Lab(prefix="lbk-") as lab:
        lab.start_lbd()
        with many_clients(lab) as web:
            web.split(0)
            with held(lab, web.vip, 40) as connections:
                before = connections.ask()
                back, on_it = web.grow()
                found.violations += back
                yield f"canary 5, 25, 50, 100 %: {back} of {len(CLIENTS)} clients back, {on_it} on it"
                misplaced = web.misplaced()
                found.mismatches += misplaced
                yield f"kernel against planner and traffic: {misplaced} slots or clients differ"
                victim = web.canary[0]
                lab.lbctl("backend", "drain", "web", victim, "--wait")
                new = sum(name == victim for name in web.ask().values())
                if new:
                    found.failures.append(f"{new} new flows to a draining backend")
                yield f"drain: {new} of {len(CLIENTS)} sticky clients got to it"
                broken = sum(a != b for a, b in zip(before, connections.ask(), strict=True))
                if broken:
                    found.failures.append(f"{broken} established connections broke")
                yield f"{len(before)} connections held through all of it: {broken} broke"


def main() -> None:
    """Run everything; exit code 0 = PASS."""
    found = Found()
    for scenario in (desired_changes, rollouts, health, nodes, rebuild, moves):
        print(f"{scenario.__name__}: {scenario(found)}", flush=True)
    for line in real_traffic(found):
        print(f"real_traffic: {line}", flush=True)
    figures = {
        "max_imbalance_slots": round(max(found.imbalance), 3),
        "movement_ratio_median": round(statistics.median(found.ratios), 4),
        "movement_ratio_max": round(max(found.ratios), 4),
        "monotone_violations": found.violations,
        "node_mismatches": found.mismatches,
        "rebuild_ms_1000": round(found.rebuild, 2),
    }
    for failure in found.failures:
        print(f"failed: {failure}")
    good = not found.failures and all(figures[name] <= limit for name, limit in LIMITS.items())
    text = " ".join(f"{name}={value}" for name, value in figures.items())
    print(f"check-slots: {'PASS' if good else 'FAIL'} {text}")
    sys.exit(not good)


if __name__ == "__main__":
    main()
