"""When a rollout is looked at, and what becomes of its document then. Pure.

A step has `looks()` planned looks, spread over its time; the last one is made when that is over, and is
allowed most (lb/core/spending.py). More follow where a step goes on: for want of data, at a gate, in a
pause. What is judged, and how, is lb/core/judgement.py's affair.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lb.core.evidence import BEFORE, Lost, collect, window
from lb.core.judgement import conclusion, judge
from lb.core.measures import default_analysis, pooled
from lb.core.spending import Look, Plan
from lb.model.analysis import Analysis
from lb.model.evidence import Evidence, Measurement, Outcome, Verdict
from lb.model.flows import FIGURES, FlowReport, Vantage
from lb.model.objects import Backend, Service
from lb.model.rollout import Phase, Rollout, RolloutEvidence, RolloutSpec, StepVerdict

LOOK_SECONDS = 10.0  # a planned look for about so much time
MOST_LOOKS = 6
LEAST_SECONDS = 1.5  # between two looks: nodes report every second
FIRST_SECONDS = 10.0  # that nodes have to begin to report a service
OBSERVE_SECONDS = 5.0  # before the first step, to see by what it can be judged
LOOKED_AT = frozenset({Phase.BAKING, Phase.ANALYSING, Phase.GATE, Phase.PAUSED})


def looks(spec: RolloutSpec) -> int:
    """How many are planned for a step."""
    return max(1, min(MOST_LOOKS, int(spec.every / LOOK_SECONDS)))


def next_look(rollout: Rollout, kept: RolloutEvidence | None) -> float:
    """When the next look is due, in Unix seconds; the first one at a step only takes a reading. inf =
    there is nothing to look at now."""
    status, spec = rollout.status, rollout.spec
    if status.phase is Phase.PENDING and spec.auto and rollout.analysis is None:
        is_first = kept is None or kept.id != rollout.id
        return 0.0 if is_first or kept is None else kept.since + OBSERVE_SECONDS
    if rollout.analysis is None or status.phase not in LOOKED_AT:
        return math.inf
    if is_new(rollout, kept) or kept is None:
        return status.since
    if status.phase is Phase.BAKING:
        planned = looks(spec)
        if kept.looks >= planned - 1:
            return math.inf  # the next one comes when the step's time is over
        return status.since + (kept.looks + 1) * spec.every / planned
    if status.phase is Phase.ANALYSING and status.looked == 0:
        return status.since
    return max(kept.since, status.looked) + max(LEAST_SECONDS, spec.every / looks(spec))


def is_new(rollout: Rollout, kept: RolloutEvidence | None) -> bool:
    """Does a reading have to be taken that later ones are compared with? So it is at each step, and when
    one begins anew after a pause: what happened before, or meanwhile, is no part of it."""
    status = rollout.status
    if kept is None or kept.id != rollout.id or kept.step != status.step:
        return True
    return status.phase is Phase.BAKING and kept.since < status.since


def begun(
    rollout: Rollout, kept: RolloutEvidence | None, reading: Mapping[str, FlowReport], now: float
) -> RolloutEvidence:
    """With a reading that the next look counts from."""
    same = kept is not None and kept.id == rollout.id
    return RolloutEvidence(
        id=rollout.id,
        step=rollout.status.step,
        since=now,
        looks=kept.looks if same and kept and kept.step == rollout.status.step else 0,
        reading=dict(reading),
        evidence=kept.evidence if same and kept else Evidence(),
        figures=FIGURES,
    )


def looked(
    rollout: Rollout,
    analysis: Analysis,
    kept: RolloutEvidence,
    reading: Mapping[str, FlowReport],
    backends: Sequence[Backend],
    measured: Mapping[str, Measurement],
    now: float,
) -> tuple[Rollout, RolloutEvidence]:
    """After one more look: the rollout with what it says, and what it is judged by."""
    status = rollout.status
    step = status.step - 1
    stable, canary = sides(rollout, backends)
    found = window(kept.reading, reading, stable, canary, step, vantage(reading))
    evidence = collect(kept.evidence, analysis, found, measured)
    planned = looks(rollout.spec)
    number = kept.looks
    if status.phase is not Phase.BAKING:
        number = max(number, planned - 1)  # the one that was kept for the end of the step's time
    plan = Plan(rollout.spec.steps, planned)
    verdicts = judge(analysis, plan, Look(step, number), evidence)
    outcome = conclusion(verdicts)
    changes = {
        "judged": outcome,
        "reason": reason(verdicts, outcome),
        "looked": now,
        "verdicts": _told(status.verdicts, status.step, verdicts, now),
    }
    after = rollout.model_copy(update={"status": status.model_copy(update=changes)})
    return after, RolloutEvidence(
        id=rollout.id,
        step=status.step,
        since=kept.since,
        looks=number + 1,
        # A report that is lost is no reason to begin anew: the next window is the longer for it.
        reading=kept.reading if isinstance(found, Lost) and _goes_on(kept.reading, reading) else reading,
        evidence=evidence,
        figures=FIGURES,
    )


def chosen(
    rollout: Rollout,
    service: Service,
    kept: RolloutEvidence,
    reading: Mapping[str, FlowReport],
    backends: Sequence[Backend],
) -> Rollout:
    """With the analysis that `auto` stands for: what the stable pool has samples of. Where it has none,
    what any service has; that finds out by itself that there is not enough data."""
    stable = [each.name for each in backends if service.split.get(each.pool, 0.0) > 0]
    where = vantage(reading)
    found = window(kept.reading, reading, stable, (), BEFORE, where)
    seen = None if isinstance(found, Lost) else pooled(found.stable.values())
    analysis = (
        default_analysis(service.mode, service.protocol, where, seen) if seen and seen.opened else None
    ) or default_analysis(service.mode, service.protocol, where)
    status = rollout.status.model_copy(update={"analysis": analysis})
    return rollout.model_copy(update={"status": status})


def vantage(reading: Mapping[str, FlowReport]) -> Vantage:
    """Where it is looked from: the backends, if their own interfaces report; they see all."""
    at_backends = any(each.vantage is Vantage.BACKEND for each in reading.values())
    return Vantage.BACKEND if at_backends else Vantage.NODE


def sides(rollout: Rollout, backends: Sequence[Backend]) -> tuple[list[str], list[str]]:
    """Names of the backends that are compared: of the pools with a share before, and of the canary."""
    before = rollout.status.before or {}
    stable = [each.name for each in backends if before.get(each.pool, 0.0) > 0]
    canary = [each.name for each in backends if each.pool == rollout.spec.pool]
    return stable, canary


def reason(verdicts: Sequence[Verdict], outcome: Outcome) -> str:
    """What decided, in words: all metrics that said so, of those with a say."""
    return "; ".join(e.words for e in verdicts if e.outcome is outcome and not e.observe)


def _goes_on(before: Mapping[str, FlowReport], after: Mapping[str, FlowReport]) -> bool:
    """Can the totals of a later report still be compared with these?"""
    return bool(before) and all(
        name in after and after[name].epoch == each.epoch and after[name].at >= each.at
        for name, each in before.items()
    )


def _told(
    before: Sequence[StepVerdict], step: int, verdicts: Sequence[Verdict], now: float
) -> tuple[StepVerdict, ...]:
    """The last word of each metric on each step."""
    new = [StepVerdict(step=step, at=now, verdict=each) for each in verdicts]
    return (*(each for each in before if each.step != step), *new)
