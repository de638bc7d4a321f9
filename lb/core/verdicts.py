"""Findings, and verdicts in words. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from lb.core.measures import Kind, Measure
from lb.model.analysis import Metric
from lb.model.evidence import Outcome, Outside

# Errors like to come in twos and threes (one client that tries again): fewer never fail a canary,
# however improbable they are.
FEWEST_BAD = 5

_WHERE = {
    "rollout": "over all steps so far",
    "step": "in this step",
    "look": "since the last look",
    "earlier": "against the stable pool in earlier steps",
}


@dataclass(frozen=True)
class Finding:
    """What one test found."""

    view: str
    canary: float
    stable: float | None
    limit: float
    canary_samples: int
    stable_samples: int
    p_value: float
    level: float
    bound: float | None = None
    bad: int = FEWEST_BAD  # of the canary's samples

    @property
    def failed(self) -> bool:
        """Is it worse than chance explains, and by more than the margin?"""
        return self.p_value < self.level and self.canary > self.limit and self.bad >= FEWEST_BAD


def describe_test(metric: Metric, measure: Measure, finding: Finding | None, outcome: Outcome) -> str:
    """What a test of the kernel's metrics found."""
    if finding is None:
        return f"{metric.name}: not enough data: nothing was seen in this step yet"
    if outcome is Outcome.NOT_ENOUGH_DATA:
        least = f"{metric.min_samples:,} of each pool" if metric.compares else f"{metric.min_samples:,}"
        return (
            f"{metric.name}: not enough data: {finding.canary_samples:,} {measure.samples} of the canary"
            + (f", {finding.stable_samples:,} of the stable pool" if finding.stable is not None else "")
            + f" {_WHERE[finding.view]}; it takes {least}"
        )
    text = f"{metric.name}: canary {_value(measure, finding.canary)}"
    text += f" of {finding.canary_samples:,} {measure.samples}"
    if finding.stable is None:
        text += f", limit {_value(measure, finding.limit)}"
    else:
        text += f", stable {_value(measure, finding.stable)} of {finding.stable_samples:,}"
        text += f", at most {_value(measure, finding.limit)} would do"
    if outcome is Outcome.FAIL:
        text += f"; between equals that has a probability of {_odds(finding.p_value)}"
    elif finding.bound is not None:
        text += f"; worse by at most {100 * max(0.0, finding.bound):.2g} points (95 %)"
    elif finding.canary > finding.limit:
        text += (
            f"; that can be chance (p = {_odds(finding.p_value)}, fails below {_odds(finding.level)})"
        )
    return f"{text}, {_WHERE[finding.view]}"


def describe_outside(metric: Metric, seen: Outside | None, limit: float | None, outcome: Outcome) -> str:
    """What a figure from outside says."""
    if seen is None:
        return f"{metric.name}: not enough data: it was not measured yet"
    if seen.errors:
        tries = f"{seen.errors} looks in a row" if seen.errors > 1 else "this look"
        text = f"{metric.name}: could not be measured, {tries}: {seen.last.error}"
        return text if outcome is Outcome.COULD_NOT_MEASURE else f"{text}; waiting for the next"
    text = f"{metric.name}: canary {seen.last.canary:g}"
    reference = seen.last.stable if seen.last.stable is not None else seen.reference
    if reference is not None:
        text += f", stable {reference:g}"
    if limit is not None:
        word = "at most" if metric.worse == "higher" else "at least"
        text += f", {word} {limit:g} would do"
    if seen.breaches:
        text += f"; out of bounds for {seen.breaches} of {metric.breaches} looks in a row"
    return text


def _value(measure: Measure, value: float) -> str:
    if measure.kind is Kind.SHARE:
        return f"{100 * value:.3g} %"
    if measure.kind is Kind.RATE:
        return f"{value:.3g}"
    return f"{1000 * value:.3g} ms"


def _odds(value: float) -> str:
    return "under 1e-15" if value < 1e-15 else f"{value:.2g}"
