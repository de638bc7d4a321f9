"""Who may give a false alarm, and how often: the allowance of a whole rollout, dealt out. Pure.

Each test is allowed its part, and the parts sum to the whole, so the chance that any of them is wrong is
no larger, however they depend on each other (Bonferroni, with weights). Metrics with power have equal
parts. Steps have parts like the root of their share, as the smallest difference that can be found goes:
at 1 % little can be found but disasters, and those need no allowance. Within a step the last planned
look, which knows most, has 60 %; the earlier ones share 30 %, and looks beyond the plan (a rollout that
waits at a gate) share the rest, each half of the one before, so that there may be any number of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

LAST = 0.6
EARLIER = 0.3
BEYOND = 0.1


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


def allowance(plan: Plan, look: Look) -> float:
    """The part of the whole that this look has."""
    last = plan.looks - 1
    if look.number > last:
        part = BEYOND * 0.5 ** (look.number - last)
    elif look.number == last:
        part = LAST if last else LAST + EARLIER
    else:
        part = EARLIER / last
    return part * math.sqrt(plan.steps[look.step]) / sum(map(math.sqrt, plan.steps))
