"""Following a rollout to its end, and what comes of it: an exit code of its own for each way to end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from lb.cli.rollout_view import data, line, place
from lb.errors import (
    LbError,
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


def follow(store: Store, service: str, id: str, until: float) -> Iterator[Rollout]:
    """The rollout now, and each time that it has changed, until it is over or the time is (monotonic
    clock). A store that is away is waited for, for a while. Raises StoreUnavailable, NotFoundError."""
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


def told(store: Store, rollout: Rollout, until: float, say: Callable[[str], None]) -> Iterator[Rollout]:
    """As follow(), and say each transition that comes after those that `rollout` has."""
    said = len(rollout.status.history)
    for present in follow(store, rollout.service, rollout.id, until):
        for each in present.status.history[said:]:
            say(line(present, each))
        said = len(present.status.history)
        yield present


def to_the_end(
    store: Store, rollout: Rollout, timeout: float | None, say: Callable[[str], None]
) -> Rollout:
    """Wait for its end, or until it needs a person, and say each transition. Raises as outcome() does,
    and RolloutGoesOn when the time is over before."""
    until = float("inf") if timeout is None else time.monotonic() + timeout
    for present in told(store, rollout, until, say):
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
