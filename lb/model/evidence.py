"""What a rollout has seen so far, and what was concluded of it: documents, so that a takeover goes on
with them."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field

from lb.model.document import LARGEST_FIGURE, LATEST, Document, Total
from lb.model.flows import FlowTotals

Measured = Annotated[float, Field(ge=-LARGEST_FIGURE, le=LARGEST_FIGURE)]
Step = Annotated[int, Field(ge=-1, le=1000)]


class Window(Document):
    """What both pools did over the same time: differences of totals, by the backend's name."""

    step: Step = Field(description="Which step of the rollout, from 0; -1 = before the first.")
    seconds: float = Field(default=0.0, ge=0, le=2 * LATEST, description="How long, in seconds.")
    stable: dict[str, FlowTotals] = Field(default={}, description="Of the pool that is there.")
    canary: dict[str, FlowTotals] = Field(default={}, description="Of the pool that is judged.")


class Measurement(Document):
    """An answer from outside: a figure for each side, or why there is none."""

    canary: Measured | None = Field(default=None, description="Figure of the canary.")
    stable: Measured | None = Field(default=None, description="Figure of the stable pool.")
    error: str = Field(default="", description="Why it could not be measured; empty = it could.")


class Outside(Document):
    """What is remembered of a metric that is measured outside."""

    last: Measurement = Field(description="The last answer.")
    reference: Measured | None = Field(
        default=None, description="The stable pool's last figure: it has none once all is the canary's."
    )
    errors: Total = Field(default=0, description="Looks in a row that could not be measured.")
    breaches: Total = Field(default=0, description="Looks in a row that were out of bounds.")


class Evidence(Document):
    """All that is judged. lb/core/evidence.py adds to it; nobody else makes one up."""

    steps: tuple[Window, ...] = Field(default=(), description="All windows of a step as one.")
    latest: Window | None = Field(default=None, description="The window of the last look.")
    missed: Total = Field(default=0, description="Looks in a row without a window of the kernel.")
    why_missed: str = Field(default="", description="Why the last one has none.")
    outside: dict[str, Outside] = Field(default={}, description="By the metric's name.")


class Outcome(StrEnum):
    """Of a metric, or of an analysis. Only `pass` promotes, only `fail` aborts."""

    PASS = "pass"
    FAIL = "fail"
    NOT_ENOUGH_DATA = "not enough data"
    COULD_NOT_MEASURE = "could not measure"


class Verdict(Document):
    """What one metric says at one look."""

    # Figures are for people, and where there is none it is written as null.
    model_config = ConfigDict(allow_inf_nan=True)

    metric: str = Field(description="The metric's name.")
    outcome: Outcome = Field(description="What it says.")
    observe: bool = Field(default=False, description="It has no power: it neither aborts nor holds up.")
    words: str = Field(description="The same in a sentence, with the figures.")
    unit: str = Field(default="", description="Of canary, stable and limit: share, s, a connection.")
    canary: float | None = Field(default=None, description="Figure of the canary.")
    stable: float | None = Field(default=None, description="Figure of the stable pool.")
    limit: float | None = Field(default=None, description="What the canary's figure must not exceed.")
    canary_samples: Total = Field(default=0, description="Connections or requests behind it.")
    stable_samples: Total = Field(default=0, description="The same of the stable pool.")
    p_value: float | None = Field(
        default=None, description="How likely so large a difference is between equals; none = no test."
    )
    level: float | None = Field(default=None, description="A smaller p-value fails; none = no test.")
    bound: float | None = Field(
        default=None, description="Of a share: the canary is likely (95 %) not worse by more than this."
    )
    view: str = Field(default="", description="Which evidence decided: rollout, step, look or earlier.")
