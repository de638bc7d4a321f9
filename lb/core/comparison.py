"""The tests of one metric in one view of the evidence; lb/core/judgement.py has their theory. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from lb.core import histogram
from lb.core.measures import Kind, Measure
from lb.core.statistics import (
    Table,
    above_limit,
    more_in_canary,
    spread,
    thinned,
    worse_at_most,
)
from lb.core.verdicts import Finding
from lb.model.evidence import Window
from lb.model.flows import FlowTotals

Groups = list[dict[str, tuple[int, int]]]  # of windows: (bad, samples) by backend

PRIOR = 20.0  # degrees of freedom that speak for no bursts, while what is seen can be chance
WIDER = 4.0  # times as many above the second edge of a latency


@dataclass(frozen=True)
class View:
    """A part of the evidence: windows in which both pools are compared, and its part of the level."""

    name: str
    weight: float
    windows: tuple[Window, ...]
    background: tuple[Window, ...] = ()  # more windows that tell how much stable backends differ


def compare_counts(measure: Measure, view: View, margin: float, level: float) -> Finding:
    """Test a share or a rate of the canary against the stable pool's."""
    several = measure.kind is Kind.RATE
    tables = [_table(measure, each) for each in view.windows]
    canary_bad, canary = (sum(each[i] for each in tables) for i in (0, 1))
    stable = sum(each[3] for each in tables)

    def groups(windows: Iterable[Window]) -> Groups:
        return [{n: measure.counts(totals) for n, totals in each.stable.items()} for each in windows]

    factor = _factors(view, canary, groups, several=several, clusters=measure.clusters)
    p_value = more_in_canary([thinned(Table(*each), *factor) for each in tables], several=several)
    rate = canary_bad / canary if canary else 0.0
    reference = _expected(tables)
    limit = reference * (1 + margin) if several else reference + margin
    bound = None
    if not several and canary and stable:
        bound = worse_at_most((rate, canary / factor[0]), (reference, stable / factor[1]))
    return Finding(
        view=view.name,
        canary=rate,
        stable=reference,
        limit=limit,
        canary_samples=canary,
        stable_samples=stable,
        p_value=p_value,
        level=level,
        bound=bound,
        bad=canary_bad,
    )


def _table(measure: Measure, window: Window) -> tuple[int, int, int, int]:
    canary = [measure.counts(each) for each in window.canary.values()]
    stable = [measure.counts(each) for each in window.stable.values()]
    return (
        sum(bad for bad, _ in canary),
        sum(total for _, total in canary),
        sum(bad for bad, _ in stable),
        sum(total for _, total in stable),
    )


def _expected(tables: Iterable[tuple[int, int, int, int]]) -> float:
    """The stable pool's rate with the canary's mix of strata: what is expected of an equal."""
    told = [each for each in tables if each[1] and each[3]]
    samples = sum(each[1] for each in told)
    return sum(each[1] * each[2] / each[3] for each in told) / samples if samples else 0.0


def _factors(
    view: View,
    canary: int,
    groups: Callable[[Iterable[Window]], Groups],
    *,
    several: bool,
    clusters: float = 1.0,
) -> tuple[float, float]:
    """By how much samples of the canary, and of the stable pool, count for less. `groups`: of windows,
    the (bad, samples) of each stable backend."""
    own = groups(view.windows)
    # A backend that differs for good does so most clearly over all strata together; one that has its
    # bad moments, in each of them.
    together: dict[str, tuple[int, int]] = {}
    for group in own:
        for name, (bad, samples) in group.items():
            before = together.get(name, (0, 0))
            together[name] = (before[0] + bad, before[1] + samples)
    for_good = spread([list(together.values())], several=several)
    moments = groups(view.background) if view.background else own
    at_times = spread([list(each.values()) for each in moments], several=several, prior=PRIOR)
    backends = len({name for each in view.windows for name in each.canary})
    floor = max(clusters, at_times.factor)
    return max(floor, for_good.at(canary / max(1, backends))), max(floor, for_good.factor)


def compare_latency(measure: Measure, view: View, margin: float, level: float) -> Finding:
    """Test a quantile of the canary against the stable pool's."""
    pairs = [
        (_histogram(measure, each.canary.values()), _histogram(measure, each.stable.values()))
        for each in view.windows
    ]
    sizes = [(sum(canary.values()), sum(stable.values())) for canary, stable in pairs]
    edges = _edges(measure.quantile)
    p_values = [_above_edges(measure, view, pairs, share) for share in edges]
    all_canary: dict[int, float] = {}
    all_stable: dict[int, float] = {}
    for (canary, stable), (ours, theirs) in zip(pairs, sizes, strict=True):
        if not ours or not theirs:
            continue
        for bucket, count in canary.items():
            all_canary[bucket] = all_canary.get(bucket, 0.0) + count
        # With the canary's mix of strata, as in _expected().
        for bucket, count in stable.items():
            all_stable[bucket] = all_stable.get(bucket, 0.0) + count * ours / theirs
    there = _seconds(all_stable, measure.quantile)
    return Finding(
        view=view.name,
        canary=_seconds(all_canary, measure.quantile),
        stable=there,
        limit=max(there * (1 + margin), there + measure.relevant),
        canary_samples=sum(ours for ours, _ in sizes),
        stable_samples=sum(theirs for _, theirs in sizes),
        p_value=min(1.0, len(edges) * min(p_values)),
        level=level,
    )


def _edges(share: float) -> tuple[float, ...]:
    wider = 1 - WIDER * (1 - share)
    return (share, wider) if wider > 0 else (share,)


def _above_edges(
    measure: Measure,
    view: View,
    pairs: Iterable[tuple[dict[int, int], dict[int, int]]],
    share: float,
) -> float:
    """The p-value of how many of the canary's times are above the edge near `share` of each window."""
    tables: list[Table] = []
    for canary, stable in pairs:
        if canary and stable:
            edge = edge_near(canary, stable, share)
            ours, theirs = sum(canary.values()), sum(stable.values())
            tables.append(Table(_above(canary, edge), ours, _above(stable, edge), theirs))

    def groups(windows: Iterable[Window]) -> Groups:
        found = []
        for each in windows:
            backends = {name: measure.histogram(totals) for name, totals in each.stable.items()}
            both = _histogram(measure, each.stable.values())
            edge = edge_near({}, both, share) if both else 0
            found.append({n: (_above(h, edge), sum(h.values())) for n, h in backends.items()})
        return found

    factor = _factors(view, sum(each.canary for each in tables), groups, several=False)
    return more_in_canary([thinned(each, *factor) for each in tables])


def edge_near(canary: dict[int, int], stable: dict[int, int], share: float) -> int:
    """The bucket whose lower edge comes closest to having `share` of all times of both pools below it,
    by the ratio of those above; never one that has all or none above it, if there is another."""
    both = sorted({*canary, *stable})
    total = sum(canary.values()) + sum(stable.values())
    wanted = (1 - share) * total
    best, distance, above = both[-1], float("inf"), 0
    for bucket in reversed(both[1:]):
        above += canary.get(bucket, 0) + stable.get(bucket, 0)
        if above:
            away = max(above / wanted, wanted / above)
            if away < distance:
                best, distance = bucket, away
    return best


def _above(counts: Mapping[int, int], edge: int) -> int:
    return sum(count for bucket, count in counts.items() if bucket >= edge)


def _histogram(measure: Measure, backends: Iterable[FlowTotals]) -> dict[int, int]:
    found: dict[int, int] = {}
    for totals in backends:
        for bucket, count in measure.histogram(totals).items():
            if count:
                found[bucket] = found.get(bucket, 0) + count
    return found


def _seconds(counts: Mapping[int, float], share: float) -> float:
    return (histogram.quantile(counts, share) or 0.0) / 1e6


def against_limit(measure: Measure, view: View, limit: float, level: float) -> Finding:
    """Test the canary alone against a fixed limit."""
    backends = [totals for each in view.windows for totals in each.canary.values()]
    if measure.kind is Kind.LATENCY:
        counts = _histogram(measure, backends)
        samples = sum(counts.values())
        # A bucket that holds the limit counts as within it.
        edge = histogram.bucket_of(round(limit * 1e6)) + 1
        bad = _above(counts, edge)
        p_value = above_limit(bad, samples, 1 - measure.quantile)
        value = _seconds(counts, measure.quantile)
        return Finding(view.name, value, None, limit, samples, 0, p_value, level, bad=bad)
    pairs = [measure.counts(each) for each in backends]
    bad, samples = (sum(each[i] for each in pairs) for i in (0, 1))
    clusters = measure.clusters
    p_value = above_limit(
        int(bad / clusters),
        max(1, round(samples / clusters)),
        limit,
        several=measure.kind is Kind.RATE,
    )
    rate = bad / samples if samples else 0.0
    return Finding(view.name, rate, None, limit, samples, 0, p_value, level, bad=bad)
