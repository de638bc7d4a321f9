"""Judging a canary against the stable pool. Pure.

Theory of operation. A metric of the kernel is looked at in up to three *views* of the evidence:

- `rollout`: all steps so far, each a stratum of its own, so that a busy hour in the middle is no
  difference between the pools;
- `step`: this step alone; `look`: the time since the last look. A canary that decays is found there,
  when the good hours before would hide it.

At 100 % there is no stable traffic at the same time. Then the canary is compared with what the stable
pool did in earlier steps (view `earlier`), with twice the margin, since another time may differ. Only
the step as a whole is compared so: single moments differ more.

A view fails the canary if two things hold: the difference can't be chance (the p-value is below the
level that lb/core/spending.py allows this look, this metric and this view), and it is larger than the
margin of practical relevance. The first keeps equal canaries safe, the second those that differ by what
nobody cares about, which with millions of samples is never chance.

- A share: Fisher's exact test (mid-p), over strata. A rate: the same with a binomial lottery.
- A latency: how many of each pool are above a bucket's edge near the quantile of both pools together
  (Mood's test, at that quantile), or above one with four times as many above it, which finds a canary
  that is slower as a whole with fewer samples; each has half the level. The edges are of the pooled
  times, so that if the pools are equal, who is above is the same lottery, and the test is exact whatever
  the distribution. The figure that has to exceed the margin is the ratio of the quantiles.
- A limit: binomial or Poisson, so that one bad answer of ten does not break a limit of 5 %.

Backends of the stable pool that differ among themselves more than chance explains show how much equals
can differ: all samples then count for less (lb/core/statistics.py, Spread).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from lb.core.comparison import View, against_limit, compare_counts, compare_latency
from lb.core.evidence import bounds
from lb.core.measures import MEASURES, Kind, Measure
from lb.core.spending import Look, Plan, allowance
from lb.core.verdicts import Finding, describe_outside, describe_test
from lb.model.analysis import Analysis, Metric
from lb.model.evidence import Evidence, Outcome, Outside, Verdict
from lb.model.flows import FlowTotals

__all__ = ["Look", "Plan", "conclusion", "judge", "views"]

WHOLE = 100.0  # per cent: nobody is left to compare with
ROLLOUT, RECENT = 0.6, 0.2  # of a look's level, for the views rollout, and step and look
EARLIER_MARGIN = 2.0  # times the margin, when the pools were not seen at the same time
ORDER = (Outcome.FAIL, Outcome.COULD_NOT_MEASURE, Outcome.NOT_ENOUGH_DATA, Outcome.PASS)


def judge(analysis: Analysis, plan: Plan, look: Look, evidence: Evidence) -> tuple[Verdict, ...]:
    """One verdict for each metric of the analysis, in its order."""
    powers = [each for each in analysis.metrics if each.kernel is not None and not each.observe]
    level = analysis.false_alarms * allowance(plan, look) / max(1, len(powers))
    found = []
    for metric in analysis.metrics:
        if metric.kernel is not None:
            found.append(_judge_kernel(metric, MEASURES[metric.kernel], level, plan, look, evidence))
        else:
            found.append(_judge_outside(metric, evidence.outside.get(metric.name)))
    return tuple(found)


def conclusion(verdicts: Iterable[Verdict]) -> Outcome:
    """What they say together; those that only observe have no say. Nothing at all does not pass."""
    said = {each.outcome for each in verdicts if not each.observe}
    return next((each for each in ORDER if each in said), Outcome.NOT_ENOUGH_DATA)


def views(evidence: Evidence, plan: Plan, look: Look) -> tuple[View, ...]:
    """The views of a look."""
    this = [each for each in evidence.steps if each.step == look.step]
    if not this:
        return ()
    if plan.steps[look.step] >= WHOLE:
        swapped = this[0].model_copy(update={"stable": _earlier(evidence, look.step)})
        return (View("earlier", 1.0, (swapped,)),)
    so_far = tuple(each for each in evidence.steps if 0 <= each.step <= look.step)
    found = [View("rollout", ROLLOUT, so_far, so_far), View("step", RECENT, tuple(this), so_far)]
    if evidence.latest is not None:
        found.append(View("look", RECENT, (evidence.latest,), so_far))
    return tuple(found)


def _earlier(evidence: Evidence, step: int) -> dict[str, FlowTotals]:
    # Kept apart by step, as if they were backends: how much they differ tells how much another time
    # can differ.
    return {
        f"{name} in step {each.step}": totals
        for each in evidence.steps
        if each.step < step
        for name, totals in each.stable.items()
    }


def _judge_kernel(
    metric: Metric, measure: Measure, level: float, plan: Plan, look: Look, evidence: Evidence
) -> Verdict:
    def verdict(outcome: Outcome, words: str, finding: Finding | None = None) -> Verdict:
        figures = {} if finding is None else _figures(finding)
        return Verdict(
            metric=metric.name,
            outcome=outcome,
            observe=metric.observe,
            words=words,
            unit=measure.unit,
            **figures,
        )

    seen = views(evidence, plan, look)
    findings = [
        finding for view in seen for finding in _findings(metric, measure, view, level, plan, look)
    ]
    telling = [each for each in findings if _enough(metric, each)]
    failed = [each for each in telling if each.failed]
    if failed:
        worst = min(failed, key=lambda each: each.p_value / each.level)
        return verdict(Outcome.FAIL, describe_test(metric, measure, worst, Outcome.FAIL), worst)
    shown = findings[0] if findings else None
    if evidence.missed > metric.tolerate:
        times = f"{evidence.missed} looks in a row could" if evidence.missed > 1 else "it could"
        words = f"{metric.name}: {times} not be measured: {evidence.why_missed}"
        return verdict(Outcome.COULD_NOT_MEASURE, words, shown)
    if evidence.missed:
        words = f"{metric.name}: the last look could not be measured ({evidence.why_missed})"
        return verdict(Outcome.NOT_ENOUGH_DATA, f"{words}: waiting for the next", shown)
    # The step must have its own samples: those of earlier steps say nothing of this load.
    needed = [each for each in findings if each.view in ("step", "earlier")]
    if not needed or not all(_enough(metric, each) for each in needed):
        short = needed[0] if needed else None
        words = describe_test(metric, measure, short, Outcome.NOT_ENOUGH_DATA)
        return verdict(Outcome.NOT_ENOUGH_DATA, words, short)
    assert shown is not None
    return verdict(Outcome.PASS, describe_test(metric, measure, shown, Outcome.PASS), shown)


def _figures(finding: Finding) -> dict[str, object]:
    # Of no samples there is no figure: 0 would look like a good one.
    return {
        "canary": finding.canary if finding.canary_samples else None,
        "stable": finding.stable if finding.stable_samples else None,
        "limit": finding.limit,
        "canary_samples": finding.canary_samples,
        "stable_samples": finding.stable_samples,
        "p_value": finding.p_value,
        "level": finding.level,
        "bound": finding.bound,
        "view": finding.view,
    }


def _enough(metric: Metric, finding: Finding) -> bool:
    alone = finding.stable is None
    return finding.canary_samples >= metric.min_samples and (
        alone or finding.stable_samples >= metric.min_samples
    )


def _findings(
    metric: Metric, measure: Measure, view: View, level: float, plan: Plan, look: Look
) -> Iterator[Finding]:
    both = metric.compares and metric.limit is not None
    share = level * view.weight / (2 if both else 1)
    if metric.compares:
        margin = measure.margin if metric.margin is None else metric.margin
        if plan.steps[look.step] >= WHOLE:
            margin *= EARLIER_MARGIN
        if measure.kind is Kind.LATENCY:
            yield compare_latency(measure, view, margin, share)
        else:
            yield compare_counts(measure, view, margin, share)
    if metric.limit is not None:
        yield against_limit(measure, view, metric.limit, share)


def _judge_outside(metric: Metric, seen: Outside | None) -> Verdict:
    values = bounds(metric, seen.reference if seen else None)
    if seen is None:
        outcome = Outcome.NOT_ENOUGH_DATA
    elif seen.errors > metric.tolerate:
        outcome = Outcome.COULD_NOT_MEASURE
    elif seen.errors:
        outcome = Outcome.NOT_ENOUGH_DATA
    elif seen.breaches:
        outcome = Outcome.FAIL if seen.breaches >= metric.breaches else Outcome.NOT_ENOUGH_DATA
    else:
        outcome = Outcome.PASS
    limit = None
    if values:
        limit = min(values) if metric.worse == "higher" else max(values)
    return Verdict(
        metric=metric.name,
        outcome=outcome,
        observe=metric.observe,
        words=describe_outside(metric, seen, limit, outcome),
        canary=seen.last.canary if seen else None,
        stable=(seen.last.stable if seen.last.stable is not None else seen.reference) if seen else None,
        limit=limit,
        view="look",
    )
