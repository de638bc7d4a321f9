"""The health of backends: from the results of checks to who takes how much traffic. Pure.

Theory of operation. For each backend there are two states that never mix: what a person wants of it
(lb.model.objects.Admin) and what its checks have shown (State, here). Both have to agree before it
takes flows, so a check that passes can't undo a drain.

TABLE holds every transition. What it can't say:

- An *event* is made of results in a row: any result of the other kind begins the count anew.
- The first passed check is enough for a backend that is UNKNOWN: nothing speaks against it, and people
  wait for it. While it is UNKNOWN failures within its grace don't count: it may still be starting.
- An UNKNOWN backend takes no flows, unless it was *admitted*: people asked for that (`initial: up`), or
  it took flows already when somebody added the check.
- Flap damping: who fell `flaps` times within `flap_window` may rise only after `flap_hold` seconds
  without a failed check.
- Slow start: a backend that takes flows again, or for the first time, begins with a small share of its
  weight. Its steps fall on a grid of wall-clock time, so that backends that began together, and nodes,
  take each step together. Only the ratio within a pool counts: where all have begun, none is held back.
- Panic: if too small a share of a pool's backends is healthy, the unhealthy ones are used, too. Those
  that never passed a check count on neither side, and stay out. A pool of which nobody is healthy
  doesn't panic while somebody of the backup pool is: those are better.

Times are Unix seconds, because records outlive the process.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import NamedTuple

from lb.core.passive import Ejection
from lb.model.health import Established, Health, Initial
from lb.model.objects import Protocol

RAMP_STEPS = 20  # of 5 %
HISTORY = 20  # changes that a record keeps


class State(StrEnum):
    """What the checks of a backend have shown."""

    UNKNOWN = "unknown"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


class Event(StrEnum):
    """What a series of results amounts to."""

    PASSED = "a check passed"
    ROSE = "rise checks in a row passed"
    FELL = "fall checks in a row failed"


# Everything that isn't here changes nothing.
TABLE: Mapping[tuple[State, Event], State] = {
    (State.UNKNOWN, Event.PASSED): State.HEALTHY,
    (State.UNKNOWN, Event.FELL): State.UNHEALTHY,
    (State.HEALTHY, Event.FELL): State.UNHEALTHY,
    (State.UNHEALTHY, Event.ROSE): State.HEALTHY,
}


class Result(NamedTuple):
    """How one check ended. `words` say what happened, for people."""

    passed: bool
    words: str
    latency: float  # seconds


class Change(NamedTuple):
    """A transition, with the words of the result that brought it."""

    at: float
    state: State
    words: str


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of one backend."""

    address: str  # whose health this is: another address or port is another server
    added: float
    since: float
    state: State = State.UNKNOWN
    admitted: bool = False
    streak: int = 0  # results in a row: passed ones count up from 0, failed ones down
    turned: float = 0.0  # when the streak began
    falls: tuple[float, ...] = ()
    ramp_from: float | None = None
    checked: float | None = None
    latency: float | None = None
    error: str = ""  # of the last failed check
    failed_at: float | None = None
    history: tuple[Change, ...] = ()
    ejection: Ejection | None = None  # the last one by what the data path saw; it may be over
    port: int = 0  # 0 = any: of a service on several, or written before this was noted


def new(address: str, health: Health, now: float, *, in_use: bool, port: int = 0) -> Record:
    """The record of a backend that is checked from now on. `in_use`: it takes flows already."""
    admitted = in_use or health.initial is Initial.UP
    return Record(address=address, added=now, since=now, admitted=admitted, port=port)


def is_of(record: Record, address: str, port: int) -> bool:
    """Is it the record of this server?"""
    return record.address == address and record.port in (0, port)


def resumed(record: Record, now: float) -> Record:
    """What a record of an earlier process is worth: all, but no row of results spans the gap. One from
    the future was written before the clock was set back."""
    latest = max(record.added, record.since, record.checked or 0.0)
    return shifted(replace(record, streak=0, turned=0.0), min(0.0, now - latest))


def shifted(record: Record, seconds: float) -> Record:
    """The record by a clock that was set ahead so far: what lasts ends as soon as it would have."""
    if not seconds:
        return record

    def move(at: float | None) -> float | None:
        return None if at is None else at + seconds

    ejection = record.ejection
    return replace(
        record,
        added=record.added + seconds,
        since=record.since + seconds,
        turned=record.turned + seconds,
        falls=tuple(at + seconds for at in record.falls),
        ramp_from=move(record.ramp_from),
        checked=move(record.checked),
        failed_at=move(record.failed_at),
        history=tuple(each._replace(at=each.at + seconds) for each in record.history),
        ejection=ejection
        and ejection._replace(since=ejection.since + seconds, until=ejection.until + seconds),
    )


def found(record: Record, now: float) -> Record:
    """The record with what the data path saw: who is ejected counts as unhealthy, and who is back begins
    as who got healthy does."""
    if record.ejection is None:
        return record
    since, until = record.ejection.since, record.ejection.until
    if record.ejection.is_on(now):
        return (
            record
            if record.state is State.UNHEALTHY
            else replace(record, state=State.UNHEALTHY, since=since)
        )
    if record.state is State.HEALTHY and until > (record.ramp_from or 0.0):
        return replace(record, ramp_from=until)
    return record


def eject(record: Record, ejection: Ejection, *, is_checked: bool) -> Record:
    """The record of a backend that is ejected. Where nothing but the data path tells of it, nothing is
    known of it afterwards, and it is in use again."""
    if is_checked:
        return replace(record, ejection=ejection)
    return replace(record, ejection=ejection, state=State.UNKNOWN, admitted=True)


def seen_good(record: Record, now: float) -> Record:
    """The same where the data path is the only one to tell, and has seen that it works."""
    return replace(record, state=State.HEALTHY, since=now, admitted=False)


def step(record: Record, result: Result, health: Health, now: float) -> Record:
    """The record after one more result."""
    record = _counted(record, result, health, now)
    event = _event(record, health, now)
    state = TABLE.get((record.state, event)) if event else None
    return record if state is None else _moved(record, state, result.words, health, now)


def _counted(record: Record, result: Result, health: Health, now: float) -> Record:
    if result.passed:
        goes_on = record.streak > 0
        return replace(
            record,
            streak=record.streak + 1 if goes_on else 1,
            turned=record.turned if goes_on else now,
            checked=now,
            latency=result.latency,
        )
    told = replace(record, checked=now, latency=result.latency, error=result.words, failed_at=now)
    if record.state is State.UNKNOWN and now < record.added + health.grace:
        return told
    goes_on = record.streak < 0
    return replace(
        told,
        streak=record.streak - 1 if goes_on else -1,
        turned=record.turned if goes_on else now,
    )


def _event(record: Record, health: Health, now: float) -> Event | None:
    if record.streak <= -health.fall:
        return Event.FELL
    if record.streak > 0 and record.state is State.UNKNOWN:
        return Event.PASSED
    if record.streak >= health.rise and not is_damped(record, health, now):
        return Event.ROSE
    return None


def is_damped(record: Record, health: Health, now: float) -> bool:
    """Is it kept from rising, because it fell too often?"""
    recent = sum(now - at < health.flap_window for at in record.falls)
    quiet = record.streak > 0 and now - record.turned >= health.flap_hold
    return bool(health.flaps) and recent >= health.flaps and not quiet


def _moved(record: Record, state: State, words: str, health: Health, now: float) -> Record:
    falls, ramp_from = record.falls, record.ramp_from
    if state is State.UNHEALTHY:
        falls = (*(at for at in falls if now - at < health.flap_window), now)
    elif record.state is State.UNHEALTHY or not record.admitted:
        ramp_from = now
    history = (*record.history, Change(now, state, words))[-HISTORY:]
    return replace(
        record,
        state=state,
        since=now,
        admitted=False,
        streak=0,
        falls=falls,
        ramp_from=ramp_from,
        history=history,
    )


def pace(record: Record, health: Health) -> float:
    """Seconds until the next check, at most: fewer while the last result speaks against the state."""
    contradicted = {
        State.UNKNOWN: True,
        State.HEALTHY: record.streak < 0,
        State.UNHEALTHY: record.streak > 0,
    }
    return health.fast if contradicted[record.state] else health.interval


class Ramp(NamedTuple):
    """A share of the weight, and when it grows next (inf = it is whole)."""

    share: float
    until: float


def ramp(began: float, duration: float, now: float) -> Ramp:
    """Slow start: linear, in steps of a second or longer."""
    steps = min(RAMP_STEPS, math.floor(duration))
    if steps < 1:
        return Ramp(1.0, math.inf)
    length = duration / steps
    cell = math.floor(now / length)
    share = (1 + cell - math.floor(began / length)) / steps
    if not 0 < share < 1:  # over; or the clock was set back, which is no reason to hold it down
        return Ramp(1.0, math.inf)
    return Ramp(share, (cell + 1) * length)


@dataclass(frozen=True)
class Member:
    """A backend of a service, as far as it matters here. `takes`: people want it to take flows."""

    name: str
    pool: str
    takes: bool
    health: Health | None  # None: it isn't checked
    record: Record | None


@dataclass(frozen=True)
class Verdict:
    """What the health of a service's backends leads to."""

    fitness: Mapping[str, float] = field(default_factory=dict)  # where it isn't 1
    resets: frozenset[str] = frozenset()  # whose established flows are placed anew
    panics: tuple[str, ...] = ()  # pools
    until: float = math.inf  # when this changes by itself


def judge(
    members: Iterable[Member],
    service: Health | None,
    protocol: Protocol,
    now: float,
    backup: str | None = None,
) -> Verdict:
    """Who of a service's backends takes how much of its weight. `backup`: the pool that stands in."""
    if service is None:
        return Verdict()
    pools: dict[str, list[Member]] = {}
    for member in members:
        pools.setdefault(member.pool, []).append(member)
    fitness: dict[str, float] = {}
    resets: set[str] = set()
    panics = []
    until = math.inf
    has_backup = any(_serves(member) for member in pools.get(backup or "", ()))
    policy = service.established or (Established.RESET if protocol is Protocol.UDP else Established.KEEP)
    for pool, inside in sorted(pools.items()):
        is_relieved = has_backup and pool != backup and not any(map(_serves, inside))
        if not is_relieved and _panics(inside, service.panic):
            panics.append(pool)
            fitness |= {m.name: 0.0 for m in inside if _state(m) is State.UNKNOWN and not _admitted(m)}
            continue
        shares = {member.name: _share(member, now) for member in inside}
        most = max((shares[m.name].share for m in inside if m.takes), default=1.0) or 1.0
        for member in inside:
            share = min(shares[member.name].share / most, 1.0)
            if share < 1:
                fitness[member.name] = share
            until = min(until, shares[member.name].until)
            if policy is Established.RESET and _state(member) is State.UNHEALTHY:
                resets.add(member.name)
    return Verdict(fitness, frozenset(resets), tuple(panics), until)


def _panics(inside: Iterable[Member], threshold: float) -> bool:
    states = [_state(member) for member in inside if member.takes]
    healthy, known = states.count(State.HEALTHY), len(states) - states.count(State.UNKNOWN)
    return bool(known) and 100 * healthy / known < threshold


def _serves(member: Member) -> bool:
    return member.takes and _state(member) is State.HEALTHY


def _state(member: Member) -> State:
    if member.health is None:
        return State.HEALTHY  # as far as anybody can tell
    return member.record.state if member.record else State.UNKNOWN


def _admitted(member: Member) -> bool:
    return member.record is not None and member.record.admitted


def _share(member: Member, now: float) -> Ramp:
    if member.health is None:
        return Ramp(1.0, math.inf)
    if _state(member) is State.UNKNOWN:
        return Ramp(float(_admitted(member)), math.inf)
    if _state(member) is State.UNHEALTHY or member.record is None:
        return Ramp(0.0, math.inf)
    if member.record.ramp_from is None:
        return Ramp(1.0, math.inf)
    return ramp(member.record.ramp_from, member.health.slow_start, now)
