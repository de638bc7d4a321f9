"""lbctl rollout: new flows go to another pool step by step, or all of them at once."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Callable
from socket import gethostname
from typing import Annotated

import typer

from lb.cli import rollout_report, rollout_wait, words
from lb.cli.analysis import read_analysis
from lb.cli.complete import pool_names
from lb.cli.options import ServiceName, command
from lb.cli.output import Format, Table, note
from lb.cli.record import who
from lb.cli.rollout_options import limit_of, spec_of, steps_of, time_of
from lb.cli.rollout_report import ReportFormat
from lb.cli.rollout_view import blocks, data, line, place
from lb.cli.session import Session
from lb.core import rollout as core
from lb.core.state import DesiredState
from lb.errors import ConflictError, NotFoundError, RolloutRefused, StoreDenied
from lb.model import keys
from lb.model.rollout import Ask, Command, Ending, Phase, Rollout, RolloutSpec
from lb.store import rollouts as stored
from lb.store.base import Compare, Put
from lb.store.rollouts import Found

app = typer.Typer(
    help="Rollouts: a new version takes traffic step by step, and is promoted or rolled back.",
    no_args_is_help=True,
)

ATTEMPTS = 50  # of writers who outrun this one
ACTED_SECONDS = 10.0  # that a command waits for a node to act on it

WaitOption = Annotated[
    bool,
    typer.Option(
        "--wait/--no-wait",
        help="Return when it is over, or waits for a person; the exit code says how it ended.",
    ),
]
WaitTimeoutOption = Annotated[
    str | None,
    typer.Option("--timeout", metavar="TIME", help="How long --wait waits; none = as long as it takes."),
]
IdOption = Annotated[
    str | None,
    typer.Option("--id", metavar="ID", help="An earlier rollout, as `lbctl rollout history` shows it."),
]


@command(app, "start")
def start(
    session: Session,
    service: ServiceName,
    pool: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="POOL",
            help="Pool that is to take the new flows.",
            autocompletion=pool_names,
        ),
    ],
    steps: Annotated[
        str,
        typer.Option(
            "--steps",
            metavar="PERCENT,…",
            help="Its share, step by step. 100 alone is blue/green: all at once, and back at once.",
        ),
    ] = "1,5,25,50,100",
    every: Annotated[
        str,
        typer.Option(
            "--every",
            metavar="TIME",
            help="How long a step lasts, once every node has applied it: 60s, 5m.",
        ),
    ] = "60s",
    analysis: Annotated[
        str | None,
        typer.Option(
            "--analysis",
            metavar="FILE",
            help="By what it is judged (`lbctl schema analysis`). Without it: by what the nodes see.",
        ),
    ] = None,
    judged: Annotated[
        bool,
        typer.Option("--auto-analysis/--no-analysis", help="Without FILE: judge it, or not at all."),
    ] = True,
    gate: Annotated[
        bool, typer.Option("--manual-gate", help="After each step wait for `lbctl rollout resume`.")
    ] = False,
    deadline: Annotated[
        str | None,
        typer.Option("--deadline", metavar="TIME", help="Abort it if it is not promoted by then: 30m."),
    ] = None,
    notify: Annotated[
        str | None, typer.Option("--notify", metavar="URL", help="Post each transition there, as JSON.")
    ] = None,
    wait: WaitOption = False,
    timeout: WaitTimeoutOption = None,
) -> None:
    """Begin a rollout. The nodes run it: whoever began it may go away."""
    spec = spec_of(
        pool=pool,
        steps=steps_of(steps),
        every=time_of(every, "--every"),
        analysis=None if analysis is None else read_analysis(analysis),
        auto=analysis is None and judged,
        gate=gate,
        deadline=None if deadline is None else time_of(deadline, "--deadline"),
        notify=notify or "",
        who=who(),
        host=gethostname(),
        when=time.time(),
    )
    limit = limit_of(timeout)
    rollout = _begin(session, service, spec)
    least = len(spec.steps) * spec.every
    if spec.deadline is not None and spec.deadline <= least:
        note(f"its steps take {least:g} s at least: the deadline of {spec.deadline:g} s comes before")
    said = f"rollout {rollout.id} of service {service} to pool {pool} has begun"
    if not wait:
        session.emit(
            {"rollout": data(rollout)}, said, f"lbctl rollout watch {service} shows how it goes on"
        )
        return
    _say(session)(said)
    _wait(session, rollout, limit)


def _begin(session: Session, service: str, spec: RolloutSpec) -> Rollout:
    """Write its document: that is all that a CI job needs the right for."""
    for attempt in range(ATTEMPTS):
        state = session.state()
        found = stored.find(session.store, service)
        if found is not None and not found.rollout.is_over:
            raise RolloutRefused(
                f"service {service!r} has a rollout already, to pool {found.rollout.spec.pool!r}"
                f" ({place(found.rollout)})",
                hint=f"lbctl rollout watch {service}, or end it: lbctl rollout abort {service}",
                details={"rollout": data(found.rollout)},
            )
        _check(state, service, spec)
        if not state.nodes:
            note("no node is there to run it; it begins when one is: systemctl start lbd")
        moment = time.strftime("%Y%m%d-%H%M%S", time.gmtime(spec.when))
        rollout = Rollout(service=service, id=f"{moment}-{secrets.token_hex(2)}", spec=spec)
        key = keys.rollout(service)
        try:
            session.store.commit(
                [Put(key, rollout.model_dump_json())], [Compare(key, found.version if found else 0)]
            )
            return rollout
        except ConflictError:
            if attempt == ATTEMPTS - 1:
                raise
    raise AssertionError("not reached")


def _check(state: DesiredState, service: str, spec: RolloutSpec) -> None:
    if service not in state.services:
        raise words.no_such_service(service, state)
    members = state.backends_of(service)
    pools = sorted({each.pool for each in members})
    if spec.pool not in pools:
        raise words.no_such(
            f"service {service!r} has no backend in pool {spec.pool!r}",
            spec.pool,
            pools,
            f"add one: lbctl backend add {service} NAME ADDRESS --pool {spec.pool}",
        )
    if why := core.refusal(spec, state.services[service], members):
        hint = f"lbctl backend list {service} shows pools and states"
        if spec.auto and "to judge it by" in why:
            hint = "--analysis FILE, with metrics from outside; or --no-analysis"
        if state.services[service].split.get(spec.pool):
            hint = f"a rollout begins at 0 %: lbctl service set {service} --split …"
        raise RolloutRefused(why, hint=hint)
    probe = Rollout(service=service, id="0", spec=spec)
    probe = probe.model_copy(
        update={"status": probe.status.model_copy(update={"phase": Phase.STEPPING})}
    )
    if state.nodes and not core.usable_backends(
        probe, core.View(state.services[service], 0, members, state.nodes)
    ):
        raise RolloutRefused(
            f"every backend of pool {spec.pool!r} is unhealthy",
            hint=f"lbctl backend list {service} says why",
        )


@command(app, "status")
def status(session: Session, service: ServiceName) -> None:
    """Show how far it is: its phase, what it waits for, and the share that each node's kernel holds."""
    found = _find(session, service)
    seen = stored.sight(session.store, service)
    session.emit({"rollout": data(found.rollout, seen)}, *blocks(found.rollout, seen))


@command(app, "watch")
def watch(session: Session, service: ServiceName) -> None:
    """Follow it until it is over: live on a terminal, one line a transition elsewhere."""
    rollout = _find(session, service).rollout
    if sys.stdout.isatty() and session.output is Format.TABLE:
        _watch_live(session, rollout)
        return
    say = _say(session)
    for each in rollout.status.history:
        say(line(rollout, each))
    for present in rollout_wait.told(session.store, rollout, float("inf"), say):
        rollout = present
    if session.output is not Format.TABLE:
        session.emit({"rollout": data(rollout)})


def _watch_live(session: Session, rollout: Rollout) -> None:
    from rich.live import Live  # 50 ms: only where somebody looks

    from lb.cli.output import rendered

    with Live(refresh_per_second=4) as live:
        for each in rollout_wait.follow(session.store, rollout.service, rollout.id, float("inf")):
            live.update(rendered(blocks(each, stored.sight(session.store, each.service))))


@command(app, "wait")
def wait_for_it(session: Session, service: ServiceName, timeout: WaitTimeoutOption = None) -> None:
    """Wait until it is over, or needs a person. The exit code says how it ended."""
    _wait(session, _find(session, service).rollout, limit_of(timeout))


def _commanded(name: Command, summary: str) -> None:
    def ask(
        session: Session,
        service: ServiceName,
        wait: WaitOption = False,
        timeout: WaitTimeoutOption = None,
    ) -> None:
        limit = limit_of(timeout)
        rollout = _ask(session, service, name)
        if not wait:
            session.emit({"rollout": data(rollout)}, f"{service}: {place(rollout)}")
            return
        _wait(session, rollout, limit)

    ask.__doc__ = summary
    command(app, name.value)(ask)


def _ask(session: Session, service: str, name: Command) -> Rollout:
    """Write the command into the document, and wait a moment for a node to act on it."""
    for attempt in range(ATTEMPTS):
        found = _find(session, service)
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
            _put(session, found, core.asked(rollout, _asking(name)))
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


@command(app, "abort")
def abort(
    session: Session,
    service: ServiceName,
    wait: WaitOption = False,
    timeout: WaitTimeoutOption = None,
) -> None:
    """Roll back now: the split of before is written by this command itself, so no node has to run it.

    With --wait it returns when every live node's kernel holds no slot for the canary.
    """
    limit = limit_of(timeout)
    rollout = _abort(session, service)
    if wait:
        rollout = _until_over(session, rollout, limit)
    elif rollout.status.phase is Phase.ABORTING:
        _note_who_is_away(session, rollout)
    if rollout.status.ending is Ending.EDITED:
        rollout_wait.outcome(rollout)  # the canary has the share that somebody gave it
    session.emit({"rollout": data(rollout)}, f"{service}: {place(rollout)}")


def _abort(session: Session, service: str) -> Rollout:
    for attempt in range(ATTEMPTS):
        found = _find(session, service)
        rollout = found.rollout
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
        seen = stored.sight(session.store, service)
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
        return rollout_wait.to_the_end(session.store, rollout, timeout, _say(session))
    except tuple(rollout_wait.ENDINGS.values()):
        return rollout_wait.read(session.store, rollout.service, rollout.id)


@command(app, "history")
def history(session: Session, service: ServiceName) -> None:
    """List the rollouts of a service, the newest first: the last 20 that are over."""
    found = {each.id: each for each in stored.ended(session.store, service)}
    present = stored.find(session.store, service)
    if present is not None:
        found[present.rollout.id] = present.rollout
    if not found and service not in session.state().services:
        raise words.no_such_service(service, session.state())
    listed = [found[id] for id in sorted(found, reverse=True)]
    rows = [
        (
            each.id,
            each.spec.pool,
            place(each),
            words.moment(each.spec.when),
            each.spec.who or "-",
            each.status.words or "-",
        )
        for each in listed
    ]
    columns = ("ID", "POOL", "STATE", "ASKED", "BY", "BECAUSE")
    table = Table(columns, rows, empty=f"no rollout yet; lbctl rollout start {service} --to POOL")
    session.emit([data(each) for each in listed], table)


@command(app, "report")
def report(
    session: Session,
    service: ServiceName,
    output: Annotated[
        ReportFormat,
        typer.Option("--output", "-o", help="Markdown, JSON, JUnit, or HTML as one file."),
    ] = ReportFormat.MARKDOWN,
    id: IdOption = None,
) -> None:
    """Report on a rollout: what was asked, what happened, each verdict with its figures, and why."""
    rollout = rollout_wait.read(session.store, service, id) if id else _find(session, service).rollout
    print(rollout_report.report(rollout, output))


# -- shared ----------------------------------------------------------------------------------------


def _find(session: Session, service: str) -> Found:
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


def _put(session: Session, found: Found, rollout: Rollout) -> None:
    key = keys.rollout(rollout.service)
    session.store.commit([Put(key, rollout.model_dump_json())], [Compare(key, found.version)])


def _asking(name: Command) -> Ask:
    return Ask(command=name, who=who(), host=gethostname(), when=time.time())


def _wait(session: Session, rollout: Rollout, timeout: float | None) -> None:
    try:
        rollout = rollout_wait.to_the_end(session.store, rollout, timeout, _say(session))
    except KeyboardInterrupt:
        note(f"the rollout goes on; to end it: lbctl rollout abort {rollout.service}")
        raise
    session.emit({"rollout": data(rollout)}, f"{rollout.service}: {place(rollout)}")


def _say(session: Session) -> Callable[[str], None]:
    """Lines while something goes on: beside the one document that programs get."""
    stream = sys.stdout if session.output is Format.TABLE else sys.stderr

    def say(text: str) -> None:
        print(text, file=stream, flush=True)

    return say


_commanded(Command.PAUSE, "Hold it where it is; `resume` goes on.")
_commanded(
    Command.RESUME,
    "Go on: after a pause with the same step, whose time begins anew; at a gate with the next one.",
)
_commanded(Command.STEP, "Go on to the next step now; after the last one, promote.")
_commanded(Command.PROMOTE, "Give the pool all new flows now, whatever steps are left.")
