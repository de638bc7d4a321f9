"""Following a rollout to its end, and what comes of it: an exit code of its own for each way to end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf

from lb.cli.rollout_view import data, line, place
from lb.core import canary
from lb.errors import (
    LbError,
    NotAppliedError,
    NotFoundError,
    RevisionCompacted,
    RolloutAborted,
    RolloutExpired,
    RolloutGoesOn,
    RolloutInconclusive,
    RolloutOverridden,
    RolloutPaused,
    RolloutRefused,
    RolloutUnhealthy,
    RolloutWorse,
    StoreDenied,
    StoreUnavailable,
)
from lb.model import keys
from lb.model.rollout import KEPT, Ending, Phase, Rollout
from lb.store import rollouts as stored
from lb.store.base import Store

LOOK_SECONDS = 5.0  # between two reads, if no watch tells of anything
STORE_PATIENCE = 60.0  # a leader that died, or a restart, is no reason to give up a deployment
RETRY_SECONDS = 0.5
NOBODY_SECONDS = 60.0  # without a node that could run it: longer than lbd takes to start again
STUCK_SECONDS = 60.0  # that the way out may take, after an abort or the deadline

ENDINGS: dict[Ending, type[LbError]] = {
    Ending.ANALYSIS: RolloutWorse,
    Ending.UNHEALTHY: RolloutUnhealthy,
    Ending.INCONCLUSIVE: RolloutInconclusive,
    Ending.DEADLINE: RolloutExpired,
    Ending.PERSON: RolloutAborted,
    Ending.EDITED: RolloutOverridden,
    Ending.REMOVED: RolloutOverridden,
    Ending.REFUSED: RolloutRefused,
}


def read(store: Store, service: str, id: str) -> Rollout:
    """This rollout, also when another one has begun since. Raises NotFoundError, UserError,
    StoreUnavailable."""
    found = stored.find(store, service)
    if found is not None and found.rollout.id == id:
        return found.rollout
    item = store.get(keys.ended_rollout(service, id))
    if item is None:
        raise NotFoundError(
            f"service {service!r} has no rollout {id!r}",
            hint=f"the last {KEPT} are kept: lbctl rollout history {service}",
        )
    return stored.parse(item).rollout


def follow(
    store: Store,
    service: str,
    id: str,
    until: float,
    watch_over: Callable[[Rollout], None] = lambda _: None,
) -> Iterator[Rollout]:
    """The rollout now, and each time that it has changed, until it is over or the time is (monotonic
    clock). A store that is away is waited for, for a while. `watch_over` sees it every few seconds, and
    may raise. Raises StoreUnavailable, NotFoundError."""
    last: Rollout | None = None
    touch = time.monotonic()
    while True:
        try:
            after = store.read(keys.rollout(service)).revision
            with store.watch(keys.rollout(service), after=after) as watch:
                while True:
                    rollout = read(store, service, id)
                    touch = time.monotonic()
                    if rollout != last:
                        yield rollout
                    last = rollout
                    left = until - time.monotonic()
                    if rollout.is_over or left <= 0:
                        return
                    watch_over(rollout)
                    watch.next(min(left, LOOK_SECONDS))
        except StoreDenied:
            raise
        except RevisionCompacted:
            continue
        except StoreUnavailable:
            now = time.monotonic()
            if now >= until or now - touch >= STORE_PATIENCE:
                raise
            time.sleep(RETRY_SECONDS)


@dataclass
class Standstill:
    """Nobody should wait for what will not come without a person. Times are of the monotonic clock."""

    store: Store
    say: Callable[[str], None] = lambda _: None
    _unreadable: str = ""  # as it was said last
    _alone_since: float | None = None
    _late_since: float | None = None

    def look(self, rollout: Rollout) -> None:
        """Says once that nothing is decided, because the service can't be read. Raises NotAppliedError
        if no node has been there to run it for a while, and RolloutGoesOn if the deadline, or an abort,
        was long ago."""
        if needs_a_person(rollout):
            return
        now, service = time.monotonic(), rollout.service
        why = stored.unreadable(self.store, service)
        if why and why != self._unreadable:
            self.say(
                f"it stands still until the document of service {service!r} can be read: {why};"
                f" nothing is decided meanwhile, no abort and no deadline either: {stored.MEND}"
            )
        self._unreadable = why
        details = {"rollout": data(rollout)}
        if self.store.read(keys.NODES).items:
            self._alone_since = None
        else:
            self._alone_since = self._alone_since or now
            if now - self._alone_since >= NOBODY_SECONDS:
                raise NotAppliedError(
                    f"for {NOBODY_SECONDS:g} s no node was there to run the rollout of {service!r}",
                    hint="start lbd on a node: systemctl start lbd; then it goes on, and"
                    f" `lbctl rollout wait {service}` follows it",
                    details=details,
                )
        if rollout.status.phase is not Phase.ABORTING and time.time() < _deadline(rollout):
            self._late_since = None
            return
        self._late_since = self._late_since or now
        if now - self._late_since >= STUCK_SECONDS:
            raise RolloutGoesOn(
                f"the rollout of {service!r} does not come to its end: {place(rollout)}"
                f"{self._awaits(rollout)}",
                hint="`lbctl status` shows what keeps nodes from it, and"
                f" `lbctl rollout wait {service}` follows it",
                details=details,
            )

    def _awaits(self, rollout: Rollout) -> str:
        awaited = canary.awaits(rollout, stored.glance(self.store, rollout.service).view)
        return f"; it waits for {awaited}" if awaited else ""


def _deadline(rollout: Rollout) -> float:
    """At the latest, in Unix seconds: our clock, or that of who began it, may not be the nodes'."""
    deadline = rollout.spec.deadline
    return inf if deadline is None else max(rollout.spec.when, rollout.status.begun) + deadline


def told(
    store: Store,
    rollout: Rollout,
    until: float,
    say: Callable[[str], None],
    watch_over: Callable[[Rollout], None] = lambda _: None,
) -> Iterator[Rollout]:
    """As follow(), and say each transition that comes after those that `rollout` has."""
    said = rollout.status.made
    for present in follow(store, rollout.service, rollout.id, until, watch_over):
        for _, each in present.status.since_number(said):
            say(line(present, each))
        said = present.status.made
        yield present


def to_the_end(
    store: Store, rollout: Rollout, timeout: float | None, say: Callable[[str], None]
) -> Rollout:
    """Wait for its end, or until it needs a person, and say each transition. Raises as outcome() does,
    RolloutGoesOn when the time is over before, and as Standstill.look()."""
    until = inf if timeout is None else time.monotonic() + timeout
    for present in told(store, rollout, until, say, Standstill(store, say).look):
        rollout = present
        if rollout.is_over or needs_a_person(rollout):
            outcome(rollout)
            return rollout
    raise RolloutGoesOn(
        f"after {timeout:g} s the rollout of {rollout.service!r} goes on: {place(rollout)}",
        hint=f"wait again: lbctl rollout wait {rollout.service}",
        details={"rollout": data(rollout)},
    )


def needs_a_person(rollout: Rollout) -> bool:
    """Does it stand still until somebody says something that nobody has said yet?"""
    status = rollout.status
    return status.phase in (Phase.GATE, Phase.PAUSED) and status.ask is None


def outcome(rollout: Rollout) -> None:
    """Raises what belongs to a rollout that was not promoted."""
    service, status = rollout.service, rollout.status
    if status.phase is Phase.PROMOTED:
        return
    details = {"rollout": data(rollout)}
    if not rollout.is_over:
        raise RolloutPaused(
            f"the rollout of {service!r} waits for a person: {place(rollout)}",
            hint=f"lbctl rollout resume {service} --wait, or lbctl rollout abort {service}",
            details=details,
        )
    kind = ENDINGS.get(status.ending or Ending.PERSON, RolloutAborted)
    raise kind(
        f"the rollout of {service!r} was aborted ({status.ending}): {status.words}",
        hint=_hint(rollout),
        details=details,
    )


def _hint(rollout: Rollout) -> str:
    service, ending = rollout.service, rollout.status.ending
    if ending in (Ending.EDITED, Ending.REMOVED):
        return f"the split is as somebody else wrote it: lbctl history --service {service}"
    if ending is Ending.REFUSED:
        return "nothing was changed"
    return f"the split is what it was before; lbctl rollout report {service} has the figures"
