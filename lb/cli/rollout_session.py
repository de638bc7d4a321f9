"""The rollout that a command is about: found, said, waited for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress

from lb.cli import rollout_wait, words
from lb.cli.output import Format
from lb.cli.rollout_view import data, place
from lb.cli.session import Session
from lb.errors import Interrupted, LbError, NotFoundError
from lb.model.rollout import Rollout
from lb.store import rollouts as stored
from lb.store.rollouts import Found


def find(session: Session, service: str) -> Found:
    """The present rollout of a service, or its last one. Raises NotFoundError."""
    found = stored.find(session.store, service)
    if found is None:
        state = session.state()
        if service not in state.services:
            raise words.no_such_service(service, state)
        raise NotFoundError(
            f"service {service!r} has had no rollout",
            hint=f"begin one: lbctl rollout start {service} --to POOL",
        )
    return found


def wait(session: Session, rollout: Rollout, timeout: float | None) -> None:
    """Until it is over, or needs a person; raises what its end stands for (rollout_wait.outcome)."""
    try:
        rollout = rollout_wait.to_the_end(session.store, rollout, timeout, say(session))
    except KeyboardInterrupt:
        with suppress(LbError):  # as it is now
            rollout = rollout_wait.read(session.store, rollout.service, rollout.id)
        raise Interrupted(
            f"interrupted: the rollout of {rollout.service!r} goes on: {place(rollout)}",
            hint=f"to end it: lbctl rollout abort {rollout.service}",
            details={"rollout": data(rollout)},
        ) from None
    session.emit({"rollout": data(rollout)}, f"{rollout.service}: {place(rollout)}")


def say(session: Session) -> Callable[[str], None]:
    """Lines while something goes on: beside the one document that programs get."""
    stream = sys.stdout if session.output is Format.TABLE else sys.stderr

    def tell(text: str) -> None:
        print(text, file=stream, flush=True)

    return tell
