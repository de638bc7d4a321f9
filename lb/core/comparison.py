"""The tests of one metric in one view of the evidence; lb/core/judgement.py has their theory. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lb.core import histogram
from lb.core.measures import Kind, Measure
from lb.core.statistics import (
    Spread,
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

WIDER = 4.0  # times as many above the second edge of a latency


@dataclass(frozen=True)
class View:
    """A part of the evidence: windows in which both pools are compared, and its part of the level."""

    name: str
    weight: float
    windows: tuple[Window, ...]


def compare_counts(measure: Measure, view: View, margin: float, level: float) -> Finding:
    """Test a share or a rate of the canary against the stable pool's."""
    several = measure.kind is Kind.RATE
    tables = [_table(measure, each) for each in view.windows]
    canary_bad, canary = (sum(each[i] for each in tables) for i in (0, 1))
    stable = sum(each[3] for each in tables)
    groups = [[measure.counts(totals) for totals in each.stable.values()] for each in view.windows]
    told = [Table(*each) for each in tables]
    factor = _factors(measure, view, groups, several)
    p_value = more_in_canary([thinned(each, *factor) for each in told], several=several)
    rate = canary_bad / canary if canary else 0.0
    reference = _expected(tables)
    limit = reference * (1 + margin) if several else reference + margin
    bound = None
    if not several and canary and stable:
        bound = worse_at_most((rate, canary / factor[0]), (reference, stable / factor[1]))
    return Finding(view.name, rate, reference, limit, canary, stable, p_value, level, bound)


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
    measure: Measure, view: View, groups: list[list[tuple[int, int]]], several: bool
) -> tuple[float, float]:
    """By how much samples of the canary, and of the stable pool, count for less."""
    # Over all strata: a backend that differs does so in each of them.
    names = {name for each in view.windows for name in each.stable}
    together: dict[str, tuple[int, int]] = dict.fromkeys(names, (0, 0))
    for window, group in zip(view.windows, groups, strict=True):
        for name, (bad, samples) in zip(window.stable, group, strict=True):
            together[name] = (together[name][0] + bad, together[name][1] + samples)
    found: Spread = spread([list(together.values())], several=several)
    backends = len({name for each in view.windows for name in each.canary})
    canary = sum(measure.samples_of(totals) for each in view.windows for totals in each.canary.values())
    floor = measure.clusters
    return max(floor, found.at(canary / max(1, backends))), max(floor, found.factor)


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
    groups: list[list[tuple[int, int]]] = []
    for window, (canary, stable) in zip(view.windows, pairs, strict=True):
        if not canary or not stable:
            groups.append([(0, 0) for _ in window.stable])
            continue
        edge = edge_near(canary, stable, share)
        tables.append(
            Table(_above(canary, edge), sum(canary.values()), _above(stable, edge), sum(stable.values()))
        )
        backends = window.stable.values()
        groups.append(
            [(_above(measure.histogram(each), edge), measure.samples_of(each)) for each in backends]
        )
    factor = _factors(measure, view, groups, several=False)
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
        return Finding(view.name, value, None, limit, samples, 0, p_value, level)
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
    return Finding(view.name, rate, None, limit, samples, 0, p_value, level)
