"""Rollouts: from what is asked, seen and measured to the next split of a service. Pure.

Theory of operation. A rollout is one document. TABLE holds every transition; `decide()` looks which
event has happened, and returns the document after it, and the split that has to be written *in the same
transaction*, with both documents compared: so whoever runs it, two at once or one after the other, at
whatever moment, each transition is made once. What the table can't say:

- Of several events the one that comes first in `_event()` counts: what somebody else did to the service,
  then an abort, then all other reasons to abort, then everything else.
- An analysis looks again and again (lb/node/analyst.py writes what it says into the document). At any
  look it may say "worse". That a step was good it says of the whole step, so not before its time is
  over; if it can't tell then, more time may help, up to PATIENT_STEPS of it. Silence never promotes.
- A *step* is the split that is written on the way into STEPPING. PAUSED goes back to STEPPING without
  one: the step stays what it is, and its time begins anew, as the analysis needs a whole window.
- **A person wins.** If the service's split is another one than was written here, somebody else has
  changed it: the rollout ends, and leaves the split as it is. All other edits (weights, drains, rules,
  policies, or a split that is the same) are no reason to stop: only the split is written, into the
  document that is there.
- What the split is to be goes before what people wish for the day when a pool fails: a backup that gets
  a share by a split that is written here is a backup no more, and the history says so.
- ABORTING has one way out, and nothing leads out of ABORTED and PROMOTED. The canary's share in the
  split of before is 0 (`refusal()` insists on it), so after an abort it only falls, and stays 0.
- While the service's document can't be read, nothing is decided. Nodes go on by its last good version:
  a split that were written into the broken one would reach no kernel, and to write the last good one in
  its place would undo what somebody meant.
- When a split is *applied*, and when a canary *can be used*: lb/core/canary.py.

Times are Unix seconds of whoever runs it, because they outlive the process. But clocks are set, and the
next node has another one; so `on_time()` turns the document's times into times of the present clock:

- If the node saw that its clock was set, all times move with it, as if nobody had.
- A time that is yet to come was written by another clock. It becomes now: what lasts begins anew, which
  takes longer, and cuts no step short. (A node whose clock is ahead of the last one's can't know. It
  does cut the step short, by as much; hence NTP.)
- The deadline counts from when a node took it up (`begun`), in every phase: PENDING's wait for a canary
  that can be used counts, that for a node to be there doesn't. `when` is of the clock of the machine
  that lbctl ran on, and decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from lb.core.canary import PATIENCE, View, holding, is_applied, refusal, usable_backends
from lb.core.splits import backup_ends, describe, same_split, split_at
from lb.model.evidence import Outcome
from lb.model.rollout import (
    HISTORY,
    Ask,
    Command,
    Ending,
    Phase,
    Rollout,
    Transition,
)

PATIENT_STEPS = 2.0  # times the step's time, that "not enough data" may last after it
LEAST_PATIENCE = 10.0  # seconds; nodes report every second


class Event(StrEnum):
    """What happened. `decide()` sees it in what it is given."""

    BEGUN = "a node takes it up, and the canary can be used"
    REFUSED = "it can't be begun"
    APPLIED = "every live node has applied the split"
    TIME_UP = "the step's time is over; the verdict is awaited"
    NEXT = "the step was good, and there is another"
    GATED = "the step was good, and a person has to agree"
    LAST = "the last step was good"
    FAILED = "the analysis found the canary worse"
    UNSURE = "the analysis could not tell"
    UNHEALTHY = "no backend of the canary can be used"
    LATE = "the deadline has passed"
    PAUSE = "a person pauses it"
    RESUME = "a person goes on with the same step"
    STEP = "a person goes on to the next step"
    PROMOTE = "a person promotes it"
    ABORT = "a person aborts it"
    OVERRIDDEN = "somebody else changed the split"
    REMOVED = "the service is gone"
    CLEARED = "every live node holds the split of before, without the canary"


_UNDER_WAY = (Phase.STEPPING, Phase.BAKING, Phase.ANALYSING, Phase.GATE, Phase.PAUSED)
_ABORTS = (Event.ABORT, Event.UNHEALTHY, Event.LATE)
_LEFT = (Event.OVERRIDDEN, Event.REMOVED)  # the split is no longer ours

# Everything that isn't here changes nothing.
TABLE: Mapping[tuple[Phase, Event], Phase] = {
    (Phase.PENDING, Event.BEGUN): Phase.STEPPING,
    **{
        (Phase.PENDING, event): Phase.ABORTED
        for event in (Event.REFUSED, Event.ABORT, Event.LATE, Event.REMOVED)
    },
    (Phase.STEPPING, Event.APPLIED): Phase.BAKING,
    (Phase.BAKING, Event.TIME_UP): Phase.ANALYSING,
    **{
        (phase, event): after
        for phase in (Phase.BAKING, Phase.ANALYSING)
        for event, after in (
            (Event.NEXT, Phase.STEPPING),
            (Event.GATED, Phase.GATE),
            (Event.LAST, Phase.PROMOTING),
            (Event.FAILED, Phase.ABORTING),
        )
    },
    (Phase.ANALYSING, Event.UNSURE): Phase.ABORTING,
    (Phase.GATE, Event.FAILED): Phase.ABORTING,
    (Phase.PAUSED, Event.FAILED): Phase.ABORTING,
    **{(phase, Event.PAUSE): Phase.PAUSED for phase in _UNDER_WAY if phase is not Phase.PAUSED},
    (Phase.PAUSED, Event.RESUME): Phase.STEPPING,
    **{(phase, Event.STEP): Phase.STEPPING for phase in _UNDER_WAY},
    **{(phase, Event.PROMOTE): Phase.PROMOTING for phase in _UNDER_WAY},
    (Phase.PROMOTING, Event.APPLIED): Phase.PROMOTED,
    **{(phase, event): Phase.ABORTING for phase in (*_UNDER_WAY, Phase.PROMOTING) for event in _ABORTS},
    **{
        (phase, event): Phase.ABORTED
        for phase in (*_UNDER_WAY, Phase.PROMOTING, Phase.ABORTING)
        for event in _LEFT
    },
    (Phase.ABORTING, Event.CLEARED): Phase.ABORTED,
}

_ENDINGS = {
    Event.REFUSED: Ending.REFUSED,
    Event.FAILED: Ending.ANALYSIS,
    Event.UNSURE: Ending.INCONCLUSIVE,
    Event.UNHEALTHY: Ending.UNHEALTHY,
    Event.LATE: Ending.DEADLINE,
    Event.ABORT: Ending.PERSON,
    Event.OVERRIDDEN: Ending.EDITED,
    Event.REMOVED: Ending.REMOVED,
}

_ASKED = {
    Command.PAUSE: Event.PAUSE,
    Command.RESUME: Event.RESUME,
    Command.STEP: Event.STEP,
    Command.PROMOTE: Event.PROMOTE,
    Command.ABORT: Event.ABORT,
}


@dataclass(frozen=True)
class Decision:
    """A transition. `split` is what the service has to get in the same transaction; None = it stays.
    `note`: what else of the service changes with it, in words."""

    rollout: Rollout
    event: Event
    split: Mapping[str, float] | None = None
    note: str = ""

    @property
    def said(self) -> str:
        """What happened, for a log."""
        return f"{self.event}; {self.note}" if self.note else self.event.value


def decide(rollout: Rollout, view: View, now: float, by: str) -> Decision | None:
    """The next transition, if it is time for one. `by`: the node that asks."""
    status = rollout.status
    if view.unreadable:  # not gone: what it says is not known
        return None
    found = None if rollout.is_over else _event(rollout, view, now)
    if found is None:
        if status.ask is None or rollout.is_over:
            return None
        # It made sense when it was asked, but something else came first.
        return Decision(asked(rollout, None), _ASKED[status.ask.command])
    event, words = found
    phase = TABLE[status.phase, event]
    who = by
    if status.ask and event is _event_asked(rollout):
        who = status.ask.who
        words = f"{status.ask.command} by {status.ask.who}" + (f": {words}" if words else "")
    step, split = status.step, None
    if phase is Phase.STEPPING and event is not Event.RESUME:
        step += 1
        split = split_at(status.before or _split(view), rollout.spec.pool, rollout.spec.steps[step - 1])
    elif phase is Phase.PROMOTING:
        step = len(rollout.spec.steps)
        split = split_at(status.before or {}, rollout.spec.pool, 100.0)
    elif phase is Phase.ABORTING:
        split = dict(status.before or {})
    changes: dict[str, Any] = {"phase": phase, "since": now, "step": step, "ask": None}
    if phase in (Phase.STEPPING, Phase.ANALYSING):
        changes |= {"judged": None, "reason": "", "looked": 0.0}
    if split is not None:
        changes |= {"wrote": split, "before": status.before or _split(view)}
    is_new = split is not None and not same_split(split, _split(view))
    note = backup_ends(view.service, split) if split is not None and is_new else ""
    words = (words or event.value) + (f"; {note}" if note else "")
    if phase in (Phase.ABORTING, Phase.ABORTED) and status.ending is None:
        changes |= {"ending": _ENDINGS[event], "words": words, "by": who}
    told = Transition(
        at=now,
        phase=phase,
        step=step,
        words=words,
        by=who,
        split=split if is_new else None,
        replaced=view.version if is_new else None,
    )
    history = (*status.history, told)[-HISTORY:]
    changes |= {"history": history, "dropped": status.made + 1 - len(history)}
    return Decision(_with(rollout, **changes), event, split if is_new else None, note)


def _event(rollout: Rollout, view: View, now: float) -> tuple[Event, str] | None:
    """What has happened that leads somewhere from here, in words if there is more to say."""
    for event, words in _happened(rollout, view, now):
        if (rollout.status.phase, event) in TABLE:
            return event, words
    return None


def _happened(rollout: Rollout, view: View, now: float) -> Iterable[tuple[Event, str]]:
    """All that can be seen, what matters most first."""
    spec, status = rollout.spec, rollout.status
    if view.service is None:
        yield Event.REMOVED, ""
        return
    if status.wrote is not None and not same_split(status.wrote, view.service.split):
        yield Event.OVERRIDDEN, f"somebody else changed the split to {describe(view.service.split)}"
    asked = _event_asked(rollout)
    if asked is Event.ABORT:
        yield Event.ABORT, ""
    if status.phase is Phase.PENDING and (why := refusal(spec, view.service, view.backends)):
        yield Event.REFUSED, why
    if _is_late(rollout, now):
        yield Event.LATE, f"the deadline of {spec.deadline:g} s has passed"
    usable = usable_backends(rollout, view)
    if not usable:
        yield Event.UNHEALTHY, f"no backend of pool {spec.pool} can be used"
    if status.judged is Outcome.FAIL:
        yield Event.FAILED, status.reason
    if asked is not None:
        yield asked, ""
    if usable and view.nodes and (rollout.analysis or not spec.auto):
        yield Event.BEGUN, ""
    if is_applied(rollout, view, now):
        words = _without(view.lost)
        if status.phase is not Phase.ABORTING:
            yield Event.APPLIED, words
        elif not holding(rollout, view.nodes):
            yield Event.CLEARED, words
    if status.phase is Phase.BAKING and now >= _bakes_until(rollout):
        # The verdict that counts is one of the whole step, so it is not there yet.
        yield (Event.TIME_UP if is_analysed(rollout) else _after_a_good_step(rollout)), ""
    if status.phase is Phase.ANALYSING and status.judged is Outcome.PASS:
        yield _after_a_good_step(rollout), status.reason
    if status.phase is Phase.ANALYSING and now >= _patient_until(rollout):
        yield Event.UNSURE, status.reason or "it could not be looked at"


def _event_asked(rollout: Rollout) -> Event | None:
    """At a gate to go on is to take the next step, and after the last step to promote."""
    status = rollout.status
    if status.ask is None:
        return None
    event = _ASKED[status.ask.command]
    if event is Event.RESUME and status.phase is Phase.GATE:
        event = Event.STEP
    if event is Event.STEP and _is_last(rollout):
        event = Event.PROMOTE
    return event


def _after_a_good_step(rollout: Rollout) -> Event:
    if rollout.spec.gate:
        return Event.GATED
    return Event.LAST if _is_last(rollout) else Event.NEXT


def _is_last(rollout: Rollout) -> bool:
    return rollout.status.step >= len(rollout.spec.steps)


def is_analysed(rollout: Rollout) -> bool:
    """Does a verdict decide on its steps?"""
    return rollout.spec.analysis is not None or rollout.spec.auto


def may(rollout: Rollout, command: Command) -> bool:
    """Does this command lead anywhere now?"""
    ask = Ask(command=command, who="", when=0.0)
    event = _event_asked(_with(rollout, ask=ask))
    return event is not None and (rollout.status.phase, event) in TABLE


def asked(rollout: Rollout, ask: Ask | None) -> Rollout:
    """The document with a command in it, to be acted on; or without one."""
    return _with(rollout, ask=ask)


def on_time(rollout: Rollout, now: float, jump: float = 0.0) -> Rollout:
    """The document with its times by the clock of who runs it now. `jump`: seconds that this clock was
    set ahead since they were written, negative if back."""
    status = rollout.status
    first = status.history[0].at if status.history else now  # of an lbd that didn't note it yet
    times = {
        "begun": moved(status.begun, now, jump) or min(first, now),
        "since": moved(status.since, now, jump),
        "looked": moved(status.looked, now, jump),
    }
    return _with(rollout, **times)


def moved(at: float, now: float, jump: float) -> float:
    """A time by a clock that was set ahead so far, and nothing that is yet to come; 0 = none."""
    return at and min(at + jump, now)


def due(rollout: Rollout, now: float) -> float:
    """When time alone may bring an event, in Unix seconds; inf = never."""
    moments = [deadline(rollout)]
    if rollout.status.phase is Phase.BAKING:
        moments.append(_bakes_until(rollout))
    if rollout.status.phase is Phase.ANALYSING:
        moments.append(_patient_until(rollout))
    moments.append(rollout.status.since + PATIENCE)
    return min((each for each in moments if each > now), default=math.inf)


def _bakes_until(rollout: Rollout) -> float:
    return rollout.status.since + rollout.spec.every


def _patient_until(rollout: Rollout) -> float:
    """Until when a verdict is awaited: with little traffic some more of it may do."""
    return rollout.status.since + max(PATIENT_STEPS * rollout.spec.every, LEAST_PATIENCE)


def deadline(rollout: Rollout) -> float:
    """When it is to be over, in Unix seconds of who runs it; inf = whenever, or nobody does yet."""
    begun, deadline = rollout.status.begun, rollout.spec.deadline
    return begun + deadline if begun and deadline is not None else math.inf


def _is_late(rollout: Rollout, now: float) -> bool:
    return now >= deadline(rollout)


def _without(lost: Sequence[str]) -> str:
    return f"not known of {', '.join(lost)}: lost" if lost else ""


def _split(view: View) -> dict[str, float]:
    return dict(view.service.split) if view.service else {}


def _with(rollout: Rollout, **changes: Any) -> Rollout:
    return rollout.model_copy(update={"status": rollout.status.model_copy(update=changes)})
