"""Suite `slots`: how even tables are, how much a change moves, and how long a rebuild takes.

Ours has 65,536 slots, the peers have the Maglev paper's 65,537 and 655,373. Each trial draws weights,
names and victims anew; all peers get the same ones.

The floor of a movement is the part of the traffic that has to change hands between the exact shares
(shares.must_change); it is the same for all peers. Rounding to whole slots lets an even table come out
a little below it, so there is a stricter figure for our own tables: slots moved over the least that any
even table must differ in from the very table before (shares.least).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from bench import shares
from bench.peers import maglev, native, rendezvous
from bench.rows import Options, Row, interleaved, row, stopwatch
from bench.shares import Layout
from lb.core import slots
from lb.core.overlay import overlay
from lb.core.slots import SLOTS, Member, Table

SUITE = "slots"
POOL = "stable"
SPLIT = {POOL: 100.0}
OURS = f"lb {SLOTS:,}"
# At least a tenth of the mean weight: below, a table's rounding is all that one would see.
LIGHTEST, HEAVIEST, EQUAL = 10, 100, 100

Weights = dict[str, int]
Build = Callable[[Weights], Layout]


@dataclass(frozen=True)
class Change:
    """What happens between two tables. Backends in `down` keep their weight, but can't serve."""

    name: str
    before: Weights
    after: Weights
    down_before: frozenset[str] = frozenset()
    down: frozenset[str] = frozenset()

    def serving(self) -> Weights:
        """The weights of those who can serve afterwards."""
        return {name: w for name, w in self.after.items() if name not in self.down}


def population(count: int, equal: bool, dice: random.Random) -> Weights:
    """So many backends, with names that differ between trials."""
    tag = dice.randrange(16**6)
    return {
        f"b{tag:06x}-{i}": EQUAL if equal else dice.randint(LIGHTEST, HEAVIEST) for i in range(count)
    }


def changes(weights: Weights, dice: random.Random) -> Iterator[Change]:
    """One of each kind. No weight rises above the greatest: in a weighted Maglev that is the price of a
    turn, and another price makes another table (measured: 24 times what must move, for 1,000)."""
    names = list(weights)
    few = max(1, len(names) // 10)
    # One of middling weight, so that trials, of which peers have different numbers, are alike.
    by_weight = sorted(names, key=lambda name: weights[name])
    victim = by_weight[len(names) // 2]
    others = dice.sample(names, few)
    spare = next(name for name in by_weight[len(names) // 2 :] if name not in others)
    without = {name: weight for name, weight in weights.items() if name != victim}
    yield Change("one added", weights, {**weights, victim + "-new": weights[victim]})
    yield Change("one removed", weights, without)
    yield Change("one reweighted (halved)", weights, {**weights, victim: weights[victim] // 2})
    lighter = {n: weights[n] * 2 // 3 if i % 2 else weights[n] // 2 for i, n in enumerate(others)}
    yield Change("10 % reweighted (to 1/2 or 2/3)", weights, {**weights, **lighter})
    ill = frozenset(others)
    yield Change("one down", weights, weights, down=frozenset([victim]))
    yield Change("10 % down", weights, weights, down=ill)
    yield Change("one more down, 10 % were", weights, weights, ill, ill | {spare})


def members(weights: Weights) -> list[Member]:
    """As our planner takes them."""
    return [Member(name, POOL, weight) for name, weight in weights.items()]


def _layout(table: Table) -> Layout:
    return Layout(table.backends, table.slots)


def our_tables(change: Change) -> tuple[Layout, Layout]:
    """Before and after, planned and overlaid as a node does it."""
    old, new = members(change.before), members(change.after)
    base = slots.plan(old, SPLIT, None)
    after = base if change.after is change.before else slots.plan(new, SPLIT, base)
    return (
        _layout(overlay(base, old, dict.fromkeys(change.down_before, 0.0))),
        _layout(overlay(after, new, dict.fromkeys(change.down, 0.0))),
    )


def their_tables(change: Change, build: Build) -> tuple[Layout, Layout]:
    """Before and after, for a method that knows no history: who is down is not in the table."""
    before = {name: w for name, w in change.before.items() if name not in change.down_before}
    return build(before), build(change.serving())


def maglev_layout(weights: Weights, size: int) -> Layout:
    """A Maglev table; by name, as all nodes have to have the same order."""
    names = sorted(weights)
    return Layout(tuple(names), maglev.table(names, [weights[name] for name in names], size))


def rendezvous_layout(weights: Weights, size: int) -> Layout:
    """A weighted rendezvous table."""
    names = sorted(weights)
    return Layout(tuple(names), rendezvous.table(names, [weights[name] for name in names], size))


def remembered(build: Callable[[Weights, int], Layout], size: int) -> Build:
    """Each table is built once."""
    known: dict[frozenset[tuple[str, int]], Layout] = {}

    def look_up(weights: Weights) -> Layout:
        key = frozenset(weights.items())
        if key not in known:
            known[key] = build(weights, size)
        return known[key]

    return look_up


def peers(count: int, equal: bool, trial: int, options: Options) -> dict[str, Build]:
    """Those that take part in a trial. A rendezvous table can take seconds; and without a C compiler
    everything large does."""
    found = {f"Maglev {maglev.SMALL:,}": remembered(maglev_layout, maglev.SMALL)}
    if native.available():
        found[f"Maglev {maglev.LARGE:,}"] = remembered(maglev_layout, maglev.LARGE)
    if trial < 3 and (count < 1000 or (native.available() and not options.quick)):
        found[f"HRW {maglev.SMALL:,}"] = remembered(rendezvous_layout, maglev.SMALL)
    trials = 2 if count < 1000 else int(equal)
    if trial < trials and native.available() and not options.quick:
        found[f"HRW {maglev.LARGE:,}"] = remembered(rendezvous_layout, maglev.LARGE)
    return found


class _Samples:
    """What trials add up to: (case, peer) -> values, and ratios where there is a floor."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, str, str], list[float]] = {}
        self.ratios: dict[tuple[str, str, str], list[float]] = {}

    def add(self, case: str, peer: str, unit: str, value: float, ratio: float | None = None) -> None:
        key = case, peer, unit
        self.values.setdefault(key, []).append(value)
        if ratio is not None:
            self.ratios.setdefault(key, []).append(ratio)

    def rows(self) -> list[Row]:
        return [
            row(SUITE, case, peer, unit, values, ratio=_middle(self.ratios.get((case, peer, unit))))
            for (case, peer, unit), values in self.values.items()
        ]


def _middle(values: list[float] | None) -> float | None:
    return float(np.median(values)) if values else None


def tables(options: Options) -> list[Row]:
    """Evenness and movement."""
    samples = _Samples()
    for count in (10, 100, 1000):
        for equal in (True, False):
            for trial in range(options.pick(5, 1) if native.available() else 1):
                _trial(samples, count, equal, trial, options)
    return samples.rows()


def _trial(samples: _Samples, count: int, equal: bool, trial: int, options: Options) -> None:
    dice = random.Random(f"{count} {equal} {trial}")
    weights = population(count, equal, dice)
    where = f"N = {count:,}, {'equal' if equal else 'random'} weights"
    theirs = peers(count, equal, trial, options)
    plain = _layout(slots.plan(members(weights), SPLIT, None))
    for peer, layout in [(OURS, plain), *((peer, build(weights)) for peer, build in theirs.items())]:
        even = shares.evenness(layout, weights)
        samples.add(f"evenness, max over exact share: {where}", peer, "x", even.max_over_share)
        samples.add(f"evenness, standard deviation: {where}", peer, "% of share", even.deviation)
        samples.add(f"evenness, worst error: {where}", peer, "slots", even.worst_slots)
    for change in changes(weights, dice):
        case = f"moved, {change.name}: {where}"
        # Down backends hold slots of the base; what serves is what counts.
        serving = {n: w for n, w in change.before.items() if n not in change.down_before}
        share = shares.must_change(serving, change.serving())
        samples.add(case, "exact shares", "% of slots", 100 * float(share))
        outcomes = [(OURS, our_tables(change))]
        outcomes += [(peer, their_tables(change, build)) for peer, build in theirs.items()]
        for peer, (before, after) in outcomes:
            size = len(after.slots)
            count_moved = shares.moved(before, after)
            ratio = count_moved / float(size * share)
            samples.add(case, peer, "% of slots", 100 * count_moved / size, ratio)
            least = shares.least(before.counts(), change.serving(), size)
            if peer == OURS and least:
                strict = f"moved over the least from that table, {change.name}: {where}"
                samples.add(strict, peer, "x", count_moved / least)


def rebuild_times(options: Options) -> list[Row]:
    """ms for one service's table. Ours is NumPy, Maglev is C if there is a compiler; the hashes of the
    names are part of Maglev's, as they have to be made for who comes."""
    language, sizes = "Python", [maglev.SMALL]
    if native.available():
        language, sizes = "C", [maglev.SMALL, maglev.LARGE]
    found = []
    for count in (10, 100, 1000, 4000):
        weights = population(count, False, random.Random(count))
        work = _our_rebuilds(weights)
        for size in sizes:
            work[f"Maglev {size:,} ({language})"] = partial(maglev_layout, weights, size)
        rounds = options.pick(21, 5) if native.available() else 3
        times = interleaved({peer: stopwatch(each) for peer, each in work.items()}, rounds)
        found += [
            row(SUITE, f"rebuild: N = {count:,}", peer, "ms", values) for peer, values in times.items()
        ]
    return found


def _our_rebuilds(weights: Weights) -> dict[str, Callable[[], object]]:
    group, victim = members(weights), next(iter(weights))
    first = slots.plan(group, SPLIT, None)
    changed = members({**weights, victim: 2 * weights[victim]})
    return {
        "lb, one weight changed": partial(slots.plan, changed, SPLIT, first),
        "lb, from nothing": partial(slots.plan, group, SPLIT, None),
        "lb, overlay with one down": partial(overlay, first, group, {victim: 0.0}),
    }


def run_counts(options: Options) -> list[Row]:
    """How large the stored table is after 60 random changes, each planned from the one before."""
    samples = _Samples()
    for count in (10, 100, 1000):
        for trial in range(options.pick(3, 1)):
            dice = random.Random(f"runs {count} {trial}")
            weights = population(count, False, dice)
            table = slots.plan(members(weights), SPLIT, None)
            for step in range(60):
                weights = _some_change(weights, step, dice)
                table = slots.plan(members(weights), SPLIT, table)
            where = f"stored table after 60 changes: N = {count:,}"
            document = slots.to_document("web", table).model_dump_json()
            samples.add(f"{where}, runs", OURS, "runs", shares.runs(table.slots))
            samples.add(f"{where}, JSON", OURS, "kB", len(document) / 1e3)
    return samples.rows()


def _some_change(weights: Weights, step: int, dice: random.Random) -> Weights:
    """A backend comes, goes, or gets another weight."""
    victim = dice.choice(list(weights))
    match dice.choice(("add", "remove", "weigh")):
        case "add":
            return {**weights, f"b{step}-new": dice.randint(LIGHTEST, HEAVIEST)}
        case "remove" if len(weights) > 2:
            return {name: weight for name, weight in weights.items() if name != victim}
        case _:
            return {**weights, victim: dice.randint(LIGHTEST, HEAVIEST)}


def run(options: Options) -> list[Row]:
    """The whole suite."""
    return [*tables(options), *rebuild_times(options), *run_counts(options)]
