"""Judging a canary against the stable pool. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lb.model.analysis import Analysis
from lb.model.evidence import Evidence, Outcome, Verdict


@dataclass(frozen=True)
class Plan:
    """How often a rollout will look: the canary's share at each step in per cent, and looks a step."""

    steps: tuple[float, ...]
    looks: int = 1


@dataclass(frozen=True)
class Look:
    """Which look of a plan it is, both from 0. There may be more looks at a step than planned."""

    step: int
    number: int


def judge(analysis: Analysis, plan: Plan, look: Look, evidence: Evidence) -> tuple[Verdict, ...]:
    """One verdict for each metric of the analysis, in its order."""
    raise NotImplementedError


def conclusion(verdicts: Iterable[Verdict]) -> Outcome:
    """What they say together; those that only observe have no say."""
    raise NotImplementedError
