"""A rollout: a stepwise change of a service's split, that ends promoted or aborted."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from lb.model.analysis import Analysis
from lb.model.document import LATEST, LONGEST, Document, Moment, Total
from lb.model.evidence import Evidence, Outcome, Verdict
from lb.model.flows import FlowReport
from lb.model.health import DURATION
from lb.model.objects import Name

MAX_STEPS = 50
HISTORY = 250  # transitions that a document keeps: five for each step, and the oldest go first
ONE_SLOT = 100 / 65536  # per cent: the least that a pool can have (lb/core/slots.py: SLOTS)
KEPT = 20  # rollouts of a service that are kept when they are over

_TIME = Field(gt=0, le=LONGEST)
Share = Annotated[float, Field(gt=0, le=100)]
Step = Annotated[int, Field(ge=0, le=MAX_STEPS)]
Split = dict[Name, Annotated[float, Field(ge=0, le=100)]]


class Phase(StrEnum):
    """Where a rollout is. The rules are in lb/core/rollout.py."""

    PENDING = "pending"  # asked for; no node has taken it up
    STEPPING = "stepping"  # the step's split is written; nodes apply it
    BAKING = "baking"  # every node has applied it; the step's time runs
    ANALYSING = "analysing"  # that time is over; the verdict is awaited
    GATE = "gate"  # the step was good; a person has to say "go on"
    PAUSED = "paused"  # a person said "wait"
    PROMOTING = "promoting"  # all new flows go to the canary; nodes apply it
    PROMOTED = "promoted"
    ABORTING = "aborting"  # the split of before is written; nodes apply it
    ABORTED = "aborted"


OVER = frozenset({Phase.PROMOTED, Phase.ABORTED})


class Ending(StrEnum):
    """Why a rollout was aborted."""

    ANALYSIS = "analysis"  # the canary was found to be worse
    UNHEALTHY = "unhealthy"  # no backend of the canary could be used
    INCONCLUSIVE = "inconclusive"  # not enough data, or it could not be measured
    DEADLINE = "deadline"
    PERSON = "person"
    EDITED = "edited"  # somebody else changed the split: it was left as they wrote it
    REMOVED = "removed"  # the service is gone
    REFUSED = "refused"  # it could not begin


class Command(StrEnum):
    """What a person may ask of a rollout that is under way."""

    PAUSE = "pause"
    RESUME = "resume"
    STEP = "step"
    PROMOTE = "promote"
    ABORT = "abort"


class Ask(Document):
    """A command that has not been acted on."""

    command: Command
    who: str = Field(description="Who asks, as the writer says: user@host, or LB_ACTOR.")
    host: str = Field(default="", description="Machine that it was asked from.")
    when: Moment = Field(description="Unix time, seconds.")


class RolloutSpec(Document):
    """What was asked for. It does not change while the rollout is under way."""

    pool: Name = Field(description="The canary: the pool that is to take the new flows.")
    steps: tuple[Share, ...] = Field(
        min_length=1,
        max_length=MAX_STEPS,
        description="Its share of new flows, step by step, in per cent; each above the one before.",
    )
    every: Annotated[float, _TIME, DURATION] = Field(
        default=60.0,
        description="How long a step lasts once every live node has applied it, in seconds.",
    )
    analysis: Analysis | None = Field(
        default=None, description="By what it is judged; none = see `auto`."
    )
    auto: bool = Field(
        default=False,
        description="Without `analysis`: judge it by what can be seen of the stable pool, looked at"
        " before the first step. Else a step is good when its time is over.",
    )
    gate: bool = Field(default=False, description="A person has to agree after each step.")
    deadline: Annotated[float, _TIME, DURATION] | None = Field(
        default=None,
        description="Seconds from when a node takes it up (`begun` of its status), in which it has to be"
        " promoted, or it is aborted.",
    )
    notify: Annotated[str, StringConstraints(pattern=r"^(https?://\S+)?$", max_length=2000)] = Field(
        default="", description="URL that each transition is posted to; empty = none."
    )
    who: str = Field(default="", description="Who asked for it, as the writer says.")
    host: str = Field(default="", description="Machine that it was asked from.")
    when: float = Field(
        default=0.0,
        ge=0,
        le=LATEST,
        description="When; Unix time, seconds; 0 = the writer does not say.",
    )

    @model_validator(mode="after")
    def _check_steps(self) -> Self:
        if self.steps[0] < ONE_SLOT:
            raise ValueError(f"{self.steps[0]:g} % is less than one slot: begin with 0.002 at least")
        for before, after in zip(self.steps, self.steps[1:], strict=False):
            if after <= before:
                raise ValueError(f"steps have to grow: {after:g} comes after {before:g}")
        return self


class Transition(Document):
    """One change of phase."""

    at: Moment = Field(description="Unix time, seconds.")
    phase: Phase = Field(description="The phase since then.")
    step: Step = Field(description="Steps taken by then: 0 = none.")
    words: str = Field(description="What brought it.")
    by: str = Field(description="The node that made it, or the person who asked.")
    split: Split | None = Field(default=None, description="The split that was written with it.")
    replaced: Total | None = Field(
        default=None,
        description="mod_revision of the service's document that this split was written over.",
    )


class StepVerdict(Document):
    """What a metric said at the last look at a step."""

    step: Step = Field(description="1 = the first.")
    at: Moment = Field(description="Unix time, seconds.")
    verdict: Verdict


class RolloutStatus(Document):
    """How far it is. Written by nodes; by `lbctl rollout abort`; and `ask` by people."""

    phase: Phase = Phase.PENDING
    since: Moment = Field(default=0.0, description="When the phase began; Unix time, seconds.")
    begun: Moment = Field(
        default=0.0,
        description="When a node took it up, by the clock of the node that runs it; Unix time, seconds;"
        " 0 = none has.",
    )
    step: Step = Field(default=0, description="Steps taken: 0 = none, 1 = the first one.")
    before: Split | None = Field(default=None, description="The split before the first step.")
    wrote: Split | None = Field(
        default=None,
        description="The split that this rollout has written. If the service has another one, somebody"
        " else has changed it.",
    )
    ask: Ask | None = Field(default=None, description="A command that has not been acted on.")
    ending: Ending | None = Field(default=None, description="Why it is aborted.")
    words: str = Field(default="", description="The same for people.")
    by: str = Field(default="", description="The person who aborted it, or the node.")
    analysis: Analysis | None = Field(
        default=None,
        description="With `auto`: by what it is judged, as was found before the first step.",
    )
    judged: Outcome | None = Field(
        default=None,
        description="What the analysis said at its last look; null = none at this step.",
    )
    reason: str = Field(default="", description="The verdict that decided that, in words.")
    looked: Moment = Field(default=0.0, description="When that look was; Unix time, seconds.")
    verdicts: tuple[StepVerdict, ...] = Field(
        default=(), description="For each step and metric what it said last."
    )
    history: tuple[Transition, ...] = Field(
        default=(), description=f"The oldest first; the newest {HISTORY} are kept."
    )
    dropped: Total = Field(
        default=0,
        description="Transitions that `history` had before its first, and no longer has.",
    )

    @property
    def made(self) -> int:
        """How many transitions there were. They are numbered from 0."""
        return self.dropped + len(self.history)

    def since_number(self, number: int) -> Sequence[tuple[int, Transition]]:
        """Transitions from this number on, with their numbers, as far as they are kept."""
        numbered = enumerate(self.history, start=self.dropped)
        return [(each, transition) for each, transition in numbered if each >= number]


class Rollout(Document):
    """A rollout of a service. Key: /lb/v1/rollouts/<service>: the one under way, or the last one. When
    it is over the nodes keep a copy at /lb/reports/v1/rollouts/<service>/<id>: the last 20 of a service.
    Whoever removes the service removes them.
    """

    service: Name
    id: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,40}$")] = Field(
        description="Tells the service's rollouts apart, in the order of their names."
    )
    spec: RolloutSpec
    status: RolloutStatus = RolloutStatus()

    @property
    def is_over(self) -> bool:
        """Nothing will come of it any more."""
        return self.status.phase in OVER

    @property
    def analysis(self) -> Analysis | None:
        """By what it is judged, as far as that is known."""
        return self.spec.analysis or self.status.analysis

    @model_validator(mode="after")
    def _check_step(self) -> Self:
        if self.status.step > len(self.spec.steps):
            raise ValueError(f"status: there is no step {self.status.step}")
        return self


class RolloutLock(Document):
    """Who runs the rollouts. Key: /lb/reports/v1/locks/rollouts, under a lease of that node."""

    node: Name


class RolloutEvidence(Document):
    """What a rollout is judged by. Key: /lb/reports/v1/evidence/<service>, written by the node that runs
    it with each look, so that another one can go on."""

    id: str = Field(description="The rollout that it is of.")
    step: Step = Field(description="The step that is looked at; 1 = the first.")
    since: Moment = Field(description="When the reading began from which the next look counts.")
    looks: Total = Field(default=0, description="Looks at this step until now.")
    reading: dict[str, FlowReport] = Field(
        default={}, description="What was reported at the last look, by node."
    )
    evidence: Evidence = Evidence()
    figures: tuple[str, ...] = Field(
        default=(),
        description="The figures that it knows of flows: a node that knows others begins anew, because"
        " what is not in a reading would seem to have been 0.",
    )
