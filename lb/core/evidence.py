"""Collecting evidence: from totals that nodes report to the windows that are judged. Pure.

Totals only rise, within an epoch. A window is the difference of two readings; when an observer has begun
anew in between, its difference would be too small by nobody knows what, so there is no window: that look
could not be measured.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lb.core.measures import pooled
from lb.model.analysis import Analysis, Metric
from lb.model.evidence import Evidence, Measurement, Outside, Window
from lb.model.flows import FlowReport, FlowTotals, Vantage

MOST_BACKENDS = 16  # of a pool that are kept apart; the others are one, so that evidence stays small
OTHERS = "(others)"
BEFORE = -1  # the step of windows before a rollout's first

MARGIN_OUTSIDE = 0.10  # relative, of a figure from outside


@dataclass(frozen=True)
class Lost:
    """A window that could not be measured, and why."""

    why: str


def difference(before: FlowTotals, after: FlowTotals) -> FlowTotals | None:
    """What happened from `before` to `after`; None if a figure fell, so that the totals began anew."""
    found: dict[str, Any] = {}
    for name in FlowTotals.model_fields:
        old, new = getattr(before, name), getattr(after, name)
        if isinstance(new, int):
            if new < old:
                return None
            found[name] = new - old
            continue
        if any(new.get(key, 0) < count for key, count in old.items()):
            return None
        changes = {key: count - old.get(key, 0) for key, count in new.items()}
        found[name] = {key: count for key, count in changes.items() if count}
    return FlowTotals.model_construct(**found)


def window(
    before: Mapping[str, FlowReport],
    after: Mapping[str, FlowReport],
    stable: Collection[str],
    canary: Collection[str],
    step: int,
    vantage: Vantage = Vantage.NODE,
) -> Window | Lost:
    """The window between two readings of all observers of a service (by their key). `stable` and
    `canary` name the backends of the pools; of `vantage` alone reports are taken, so that nothing is
    counted twice, and both pools are seen in the same way."""
    before = {name: each for name, each in before.items() if each.vantage is vantage}
    after = {name: each for name, each in after.items() if each.vantage is vantage}
    if not after:
        return Lost("nobody reports this service's flows")
    parts: dict[str, list[FlowTotals]] = {}
    seconds = 0.0
    for name, old in before.items():
        new = after.get(name)
        if new is None:
            return Lost(f"{name} reports no more")
        if new.epoch != old.epoch:
            return Lost(f"the counters of {name} began anew")
        if new.at < old.at:
            return Lost(f"the clock of {name} was set back")
        if new.at == old.at:
            return Lost(f"{name} has reported nothing new")
        seconds = max(seconds, new.at - old.at)
        for backend in {*stable, *canary}:
            totals = difference(
                old.backends.get(backend, FlowTotals()), new.backends.get(backend, FlowTotals())
            )
            if totals is None:
                return Lost(f"a counter of {backend} on {name} fell: it was set back")
            parts.setdefault(backend, []).append(totals)
    if not before:
        return Lost("there is no earlier reading to compare with")
    # Who came in between is left out of this window: of both pools alike.
    return Window(
        step=step,
        seconds=seconds,
        stable=_of_pool(parts, stable),
        canary=_of_pool(parts, canary),
    )


def _of_pool(parts: Mapping[str, list[FlowTotals]], names: Iterable[str]) -> dict[str, FlowTotals]:
    return {name: pooled(parts[name]) for name in sorted(names) if name in parts}


def merged(windows: Iterable[Window]) -> Window:
    """Several windows of one step, as one."""
    windows = list(windows)
    return Window.model_construct(
        step=windows[-1].step,
        seconds=sum(each.seconds for each in windows),
        stable=_kept_apart([each.stable for each in windows]),
        canary=_kept_apart([each.canary for each in windows]),
    )


def _kept_apart(pools: Iterable[Mapping[str, FlowTotals]]) -> dict[str, FlowTotals]:
    by_name: dict[str, list[FlowTotals]] = {}
    for pool in pools:
        for name, totals in pool.items():
            by_name.setdefault(name, []).append(totals)
    sums = {name: pooled(each) for name, each in by_name.items()}
    # By name and not by traffic: a backend that changed sides would be counted in both.
    names = sorted(name for name in sums if name != OTHERS)
    apart, rest = names[:MOST_BACKENDS], names[MOST_BACKENDS:]
    kept = {name: sums[name] for name in apart}
    others = [sums[name] for name in (*rest, OTHERS) if name in sums]
    return {**kept, OTHERS: pooled(others)} if others else kept


def collect(
    evidence: Evidence,
    analysis: Analysis,
    found: Window | Lost,
    measured: Mapping[str, Measurement],
) -> Evidence:
    """The evidence with one more look in it. `measured`: of the metrics that are measured outside."""
    changes: dict[str, object] = {}
    if isinstance(found, Lost):
        changes.update(latest=None, missed=evidence.missed + 1, why_missed=found.why)
    else:
        small = merged([found])
        others = [each for each in evidence.steps if each.step != found.step]
        same = [each for each in evidence.steps if each.step == found.step]
        steps = sorted((*others, merged([*same, small])), key=lambda each: each.step)
        changes.update(steps=tuple(steps), latest=small, missed=0, why_missed="")
    outside = {
        metric.name: _outside(metric, evidence.outside.get(metric.name), measured.get(metric.name))
        for metric in analysis.outside
    }
    return evidence.model_copy(update={**changes, "outside": outside})


def _outside(metric: Metric, before: Outside | None, now: Measurement | None) -> Outside:
    now = now or Measurement(error="it was not asked for")
    reference = before.reference if before else None
    if now.stable is not None:
        reference = now.stable
    error = now.error
    if not error and now.canary is None:
        error = "there is no figure of the canary"
    if not error and metric.compares and reference is None:
        error = "there is no figure of the stable pool to compare with"
    if error:
        now = Measurement(canary=now.canary, stable=now.stable, error=error)
        return Outside(
            last=now,
            reference=reference,
            errors=(before.errors if before else 0) + 1,
            breaches=before.breaches if before else 0,
        )
    assert now.canary is not None
    breached = any(_worse(metric, now.canary, bound) for bound in bounds(metric, reference))
    breaches = (before.breaches if before else 0) + 1 if breached else 0
    return Outside(last=now, reference=reference, breaches=breaches)


def bounds(metric: Metric, reference: float | None) -> tuple[float, ...]:
    """What a figure from outside must not exceed (or fall below)."""
    found = [] if metric.limit is None else [metric.limit]
    if metric.compares and reference is not None:
        margin = MARGIN_OUTSIDE if metric.margin is None else metric.margin
        found.append(reference + (margin if metric.worse == "higher" else -margin) * abs(reference))
    return tuple(found)


def _worse(metric: Metric, value: float, bound: float) -> bool:
    return value > bound if metric.worse == "higher" else value < bound
