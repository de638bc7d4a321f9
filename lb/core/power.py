"""What an analysis would judge, in words, and how likely it is to find what it looks for. Pure.

The chance is that of the last planned look of each step, in the view of the whole rollout, of
independent samples, by the normal law around the exact test's limit. tests/unit/test_power.py compares
it with simulations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from lb.core.comparison import WIDER
from lb.core.evidence import MARGIN_OUTSIDE
from lb.core.judgement import EARLIER_MARGIN, ROLLOUT, WHOLE
from lb.core.measures import MEASURES, Kind
from lb.core.spending import Look, Plan, allowance
from lb.core.statistics import Table, more_in_canary, normal_above
from lb.core.verdicts import FEWEST_BAD
from lb.model.analysis import Analysis, Metric

WORSE = 0.02  # of a share: two points
BASE = 0.01  # the stable pool's share
SLOWER = 1.3
SIGMA = 0.5  # of the logarithm of latencies: p95 is 2.3 times the median
_Z = {0.5: 0.0, 0.8: 0.8416, 0.95: 1.6449, 0.96: 1.7507, 0.99: 2.3263}  # quantiles of the normal law


Strata = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Power:
    """How likely a difference is found by the end of each step."""

    of: str
    by_step: tuple[float, ...]


def power(metric: Metric, analysis: Analysis, plan: Plan, connections: int) -> Power | None:
    """Of a metric that is compared, at so many connections (or requests) a step, of both pools
    together; None of one that is not, or whose events have no known law."""
    if metric.kernel is None or not metric.compares:
        return None
    measure = MEASURES[metric.kernel]
    if measure.kind is Kind.RATE:
        return None
    judged = sum(each.kernel is not None and not each.observe for each in analysis.metrics)
    both = 2 if metric.limit is not None else 1
    margin = measure.margin if metric.margin is None else metric.margin
    found: list[float] = []
    for step, strata in _strata(plan, connections):
        alone = plan.steps[step] >= WHOLE
        level = analysis.false_alarms * allowance(plan, Look(step, plan.looks - 1))
        level *= (1.0 if alone else ROLLOUT) / max(1, judged) / both
        wide = margin * (EARLIER_MARGIN if alone else 1)
        if min(strata[-1]) < metric.min_samples:
            chance = 0.0
        elif measure.kind is Kind.SHARE:
            chance = _chance(strata, BASE, BASE + WORSE, level, wide)
        else:
            chance = _latency_chance(strata, measure.quantile, level, wide)
        found.append(max([chance, *found]))
    share = f"{100 * WORSE:g} points more than {100 * BASE:g} %"
    slow = f"{100 * (SLOWER - 1):.0f} % slower (log-normal, sigma {SIGMA:g})"
    return Power(share if measure.kind is Kind.SHARE else slow, tuple(found))


def _strata(plan: Plan, connections: int) -> Iterator[tuple[int, Strata]]:
    """Of each step: (canary, stable) samples of the strata of the view that knows most."""
    so_far: list[tuple[int, int]] = []
    for step, share in enumerate(plan.steps):
        if share >= WHOLE:
            yield step, ((connections, sum(stable for _, stable in so_far)),)
            return
        canary = round(connections * share / 100)
        so_far.append((canary, connections - canary))
        yield step, tuple(so_far)


def _chance(strata: Strata, base: float, rate: float, level: float, margin: float) -> float:
    """That the test fails a canary of this rate."""
    told = [each for each in strata if min(each)]
    bad = [round(canary * rate + stable * base) for canary, stable in told]
    # What the canary has beyond its part of the bad ones: under equality 0, with the lottery's scatter.
    parts = [canary / (canary + stable) for canary, stable in told]
    even = sum(count * part for count, part in zip(bad, parts, strict=True))
    needed = max(FEWEST_BAD, _least(told, bad, level)) - 0.5 - even
    excess = sum(
        canary * (1 - part) * rate - stable * part * base
        for (canary, stable), part in zip(told, parts, strict=True)
    )
    scatter = math.sqrt(
        sum(
            canary * (1 - part) ** 2 * rate * (1 - rate) + stable * part**2 * base * (1 - base)
            for (canary, stable), part in zip(told, parts, strict=True)
        )
    )
    canary, stable = (sum(each[i] for each in told) for i in (0, 1))
    spread = math.sqrt(rate * (1 - rate) / canary + base * (1 - base) / stable)
    exceeds = normal_above((margin - (rate - base)) / spread)
    return min(normal_above((needed - excess) / scatter), exceeds)


def _least(strata: Strata | list[tuple[int, int]], bad: list[int], level: float) -> int:
    """The least number of bad samples of the canary that is no chance, of so many in each stratum."""

    def p_value(count: int) -> float:
        tables = []
        for (canary, stable), total in zip(strata, bad, strict=True):
            # Only the sum over strata matters.
            ours = max(total - stable, min(count, canary, total))
            count -= ours
            tables.append(Table(ours, canary, total - ours, stable))
        return more_in_canary(tables)

    low, high = 0, sum(min(each[0], total) for each, total in zip(strata, bad, strict=True)) + 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if p_value(middle) < level else (middle + 1, high)
    return low


def _latency_chance(strata: Strata, quantile: float, level: float, margin: float) -> float:
    def above(share: float) -> float:
        return normal_above(_Z[round(share, 2)] - math.log(SLOWER) / SIGMA)

    edges = [share for share in (quantile, 1 - WIDER * (1 - quantile)) if share > 0]
    found = max(_chance(strata, 1 - each, above(each), level / len(edges), 0.0) for each in edges)
    # The figure itself must exceed the margin, too: its scatter on the logarithm (Bahadur 1966).
    canary, stable = (sum(each[i] for each in strata) for i in (0, 1))
    z = _Z[round(quantile, 2)]
    density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi) / SIGMA
    scatter = math.sqrt(quantile * (1 - quantile) * (1 / canary + 1 / stable)) / density
    return min(found, normal_above((math.log1p(margin) - math.log(SLOWER)) / scatter))


def explain(metric: Metric) -> str:
    """What is judged, in a sentence."""
    if metric.kernel is None:
        return _explain_outside(metric)
    measure = MEASURES[metric.kernel]
    margin = measure.margin if metric.margin is None else metric.margin
    parts = []
    if metric.compares:
        if measure.kind is Kind.SHARE:
            how = f"by more than {100 * margin:g} points"
        elif measure.kind is Kind.RATE:
            how = f"by more than {100 * margin:g} %"
        else:
            how = f"by more than {100 * margin:g} %"
            if measure.relevant:
                how += f" and {1000 * measure.relevant:g} ms"
        parts.append(f"higher than the stable pool's {how}, and more than chance explains")
    if metric.limit is not None:
        unit = {Kind.SHARE: f"{100 * metric.limit:g} %", Kind.RATE: f"{metric.limit:g}"}
        limit = unit.get(measure.kind, f"{1000 * metric.limit:g} ms")
        parts.append(f"above {limit}, and more than chance explains")
    figure = f"the {measure.kind} of {measure.words}"
    if measure.kind is Kind.LATENCY:
        figure = f"the time below which {measure.words}"
    elif measure.kind is Kind.RATE:
        figure = f"the number of {measure.words},"
    return f"{_verb(metric)} if {figure} is {'; or '.join(parts)}"


def _explain_outside(metric: Metric) -> str:
    if metric.prometheus is not None:
        source = f"the query {metric.prometheus.query!r} at {metric.prometheus.url}"
    elif metric.command is not None:
        source = f"the figure that {metric.command.argv[0]} prints"
    else:
        assert metric.webhook is not None
        source = f"the figure that {metric.webhook.url} answers"
    parts = []
    higher = metric.worse == "higher"
    if metric.compares:
        margin = MARGIN_OUTSIDE if metric.margin is None else metric.margin
        word = "higher" if higher else "lower"
        parts.append(f"more than {100 * margin:g} % {word} than the stable pool's")
    if metric.limit is not None:
        parts.append(f"{'above' if higher else 'below'} {metric.limit:g}")
    return f"{_verb(metric)} if {source} is {' or '.join(parts)}, {metric.breaches} looks in a row"


def _verb(metric: Metric) -> str:
    return "tells, but does not abort," if metric.observe else "fails"
