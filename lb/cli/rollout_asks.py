"""lbctl rollout pause, resume, step, promote and abort: what people ask of one that is under way."""

from __future__ import annotations

import secrets
import time
from socket import gethostname
from typing import Annotated

import typer

from lb.cli import rollout_session, rollout_wait
from lb.cli.change import ATTEMPTS
from lb.cli.options import ServiceName, command
from lb.cli.output import note
from lb.cli.record import who
from lb.cli.rollout_options import WaitOption, WaitTimeoutOption, limit_of
from lb.cli.rollout_view import data, place
from lb.cli.session import Session
from lb.core import rollout as core
from lb.errors import ConflictError, RolloutRefused, StoreDenied, UserError
from lb.model.rollout import Ask, Command, Ending, Phase, Rollout
from lb.store import rollouts as stored

ACTED_SECONDS = 10.0  # that a command waits for a node to act on it

SUMMARIES = {
    Command.PAUSE: "Hold it where it is; `resume` goes on.",
    Command.RESUME: (
        "Go on: after a pause with the same step, whose time begins anew; at a gate with the next one."
    ),
    Command.STEP: "Go on to the next step now; after the last one, promote.",
    Command.PROMOTE: "Give the pool all new flows now, whatever steps are left.",
}


def add_to(app: typer.Typer) -> None:
    """Make these commands of it."""
    command(app, "abort")(abort)
    for name, summary in SUMMARIES.items():
        _add(app, name, summary)


def _add(app: typer.Typer, name: Command, summary: str) -> None:
    def ask(
        session: Session,
        service: ServiceName,
        wait: WaitOption = False,
        timeout: WaitTimeoutOption = None,
    ) -> None:
        limit = limit_of(timeout, wait)
        rollout = _ask(session, service, name)
        if not wait:
            session.emit({"rollout": data(rollout)}, f"{service}: {place(rollout)}")
            return
        rollout_session.wait(session, rollout, limit)

    ask.__doc__ = summary
    command(app, name.value)(ask)


def _ask(session: Session, service: str, name: Command) -> Rollout:
    """Write the command into the document, and wait a moment for a node to act on it."""
    for attempt in range(ATTEMPTS):
        found = rollout_session.find(session, service)
        rollout = found.rollout
        if not core.may(rollout, name):
            raise RolloutRefused(
                f"can't {name} the rollout of {service!r}: it is {place(rollout)}",
                hint=f"lbctl rollout status {service} shows what it waits for",
                details={"rollout": data(rollout)},
            )
        if rollout.status.ask is not None and rollout.status.ask.command is Command.ABORT:
            raise RolloutRefused(
                f"{rollout.status.ask.who} has asked to abort it",
                hint=f"lbctl rollout status {service}",
                details={"rollout": data(rollout)},
            )
        try:
            stored.replace(session.store, found, core.asked(rollout, _asking(name)))
            break
        except ConflictError:
            if attempt == ATTEMPTS - 1:
                raise
    until = time.monotonic() + ACTED_SECONDS
    for present in rollout_wait.follow(session.store, service, rollout.id, until):
        rollout = present
        if rollout.status.ask is None:
            return rollout
    note("no node has acted on it yet; it will when one is there: lbctl node list")
    return rollout


def abort(
    session: Session,
    service: ServiceName,
    id: Annotated[
        str | None,
        typer.Option("--id", metavar="ID", help="Only if it is this one, say the one that a job began."),
    ] = None,
    wait: WaitOption = False,
    timeout: WaitTimeoutOption = None,
) -> None:
    """Roll back now: the split of before is written by this command itself, so no node has to run it.

    With --wait it returns when every live node's kernel holds no slot for the canary. A rollout whose
    document can't be read is deleted; then the split stays as it is.
    """
    limit = limit_of(timeout, wait)
    if id is None and (why := stored.drop_unreadable(session.store, service)):
        note(f"{why}: it is deleted, and the split is left as it is: lbctl service show {service}")
        session.emit({"rollout": None}, f"{service}: no rollout")
        return
    rollout = _abort(session, service, id)
    if wait:
        rollout = _until_over(session, rollout, limit)
    elif rollout.status.phase is Phase.ABORTING:
        _note_who_is_away(session, rollout)
    if rollout.status.ending is Ending.EDITED:
        rollout_wait.outcome(rollout)  # the canary has the share that somebody gave it
    session.emit({"rollout": data(rollout)}, f"{service}: {place(rollout)}")


def _abort(session: Session, service: str, id: str | None) -> Rollout:
    for attempt in range(ATTEMPTS):
        found = rollout_session.find(session, service)
        rollout = found.rollout
        if id is not None and rollout.id != id:
            raise RolloutRefused(
                f"the rollout of {service!r} is another one: {rollout.id} ({place(rollout)})",
                hint=f"nothing was changed; lbctl rollout history {service} shows all of them",
                details={"rollout": data(rollout)},
            )
        if rollout.status.phase is Phase.ABORTING:
            return rollout
        if rollout.is_over:
            back = rollout.status.phase is Phase.PROMOTED and rollout.status.before
            split = ",".join(f"{pool}={share:g}" for pool, share in (back or {}).items())
            raise RolloutRefused(
                f"the rollout of {service!r} is over: {place(rollout)}",
                hint=f"to go back: lbctl service set {service} --split {split}"
                if back
                else f"lbctl rollout history {service} shows all of them",
                details={"rollout": data(rollout)},
            )
        wanted = core.asked(rollout, _asking(Command.ABORT))
        try:
            seen = stored.sight(session.store, service)
        except UserError as error:  # nobody can change the split in what can't be read
            note(f"{error.message}; {error.hint}. The rollout is aborted as soon as it can be read")
            return _ask(session, service, Command.ABORT)
        now = time.time()
        decision = core.decide(wanted, seen.view, now, who())
        assert decision is not None
        assert decision.rollout.status.phase in (Phase.ABORTING, Phase.ABORTED)
        try:
            return stored.commit(
                session.store, found, seen, decision, who=who(), tail=secrets.token_hex(4), now=now
            ).rollout
        except ConflictError:
            if attempt == ATTEMPTS - 1:
                raise
        except StoreDenied:  # a user who may write the rollout, and not the service: then a node has to
            return _ask(session, service, Command.ABORT)
    raise AssertionError("not reached")


def _note_who_is_away(session: Session, rollout: Rollout) -> None:
    """The split is written, but a kernel follows only while its lbd runs."""
    view = stored.sight(session.store, rollout.service).view
    if not view.nodes or view.lost:
        away = f"node {', '.join(view.lost)} is away" if view.lost else "no node is there"
        note(f"{away}: its kernel keeps the split that it holds until its lbd is back")


def _until_over(session: Session, rollout: Rollout, timeout: float | None) -> Rollout:
    """An abort that came to its end is what was asked for, whoever was first."""
    try:
        return rollout_wait.to_the_end(session.store, rollout, timeout, rollout_session.say(session))
    except tuple(rollout_wait.ENDINGS.values()):
        return rollout_wait.read(session.store, rollout.service, rollout.id)


def _asking(name: Command) -> Ask:
    return Ask(command=name, who=who(), host=gethostname(), when=time.time())
