"""lbctl rollout: new flows go to another pool step by step, or all of them at once."""

from __future__ import annotations

import secrets
import sys
import time
from pathlib import Path
from socket import gethostname
from typing import Annotated

import typer

from lb.cli import rollout_asks, rollout_report, rollout_session, rollout_wait, words
from lb.cli.analysis import read_analysis
from lb.cli.change import ATTEMPTS
from lb.cli.complete import pool_names
from lb.cli.options import ServiceName, command
from lb.cli.output import Format, Table, note
from lb.cli.record import who
from lb.cli.rollout_options import (
    TimeoutOption,
    WaitOption,
    WaitTimeoutOption,
    limit_of,
    spec_of,
    steps_of,
)
from lb.cli.rollout_report import ReportFormat
from lb.cli.rollout_view import blocks, data, line, place
from lb.cli.session import Session
from lb.core import canary
from lb.core.state import DesiredState
from lb.errors import ConflictError, RolloutRefused, UserError
from lb.model import keys
from lb.model.rollout import Phase, Rollout, RolloutSpec
from lb.store import rollouts as stored
from lb.store.base import Compare, Put

app = typer.Typer(
    help="Rollouts: a new version takes traffic step by step, and is promoted or rolled back.",
    no_args_is_help=True,
)

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
            help="Its share, step by step; after the last step it gets 100, written or not. 100 alone is"
            " blue/green: all at once, and back at once.",
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
    id_file: Annotated[
        Path | None,
        typer.Option(
            "--id-file",
            metavar="PATH",
            help="Write its ID there, and nothing if none began: for `lbctl rollout abort --id`.",
        ),
    ] = None,
    wait: WaitOption = False,
    timeout: WaitTimeoutOption = None,
) -> None:
    """Begin a rollout. The nodes run it: whoever began it may go away."""
    spec = spec_of(
        pool=pool,
        steps=steps_of(steps),
        every=words.duration(every, "--every"),
        analysis=None if analysis is None else read_analysis(analysis),
        auto=analysis is None and judged,
        gate=gate,
        deadline=None if deadline is None else words.duration(deadline, "--deadline"),
        notify=notify or "",
        who=who(),
        host=gethostname(),
        when=time.time(),
    )
    limit = limit_of(timeout, wait)
    if id_file is not None:
        _write(id_file, "")  # what can't be written is said before anything begins
    rollout = _begin(session, service, spec)
    if id_file is not None:
        _write(id_file, f"{rollout.id}\n")
    least = len(spec.steps) * spec.every
    if spec.deadline is not None and spec.deadline <= least:
        note(f"its steps take {least:g} s at least: the deadline of {spec.deadline:g} s comes before")
    said = f"rollout {rollout.id} of service {service} to pool {pool} has begun"
    if not wait:
        session.emit(
            {"rollout": data(rollout)}, said, f"lbctl rollout watch {service} shows how it goes on"
        )
        return
    rollout_session.say(session)(said)
    rollout_session.wait(session, rollout, limit)


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text)
    except OSError as error:
        raise UserError(
            f"--id-file: {file}: {error.strerror}", hint="name a file in a folder of yours"
        ) from None


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
    if why := canary.refusal(spec, state.services[service], members):
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
    if state.nodes and not canary.usable_backends(
        probe, canary.View(state.services[service], 0, members, state.nodes)
    ):
        raise RolloutRefused(
            f"every backend of pool {spec.pool!r} is unhealthy",
            hint=f"lbctl backend list {service} says why",
        )


@command(app, "status")
def status(session: Session, service: ServiceName) -> None:
    """Show how far it is: its phase, what it waits for, and the share that each node's kernel holds."""
    found = rollout_session.find(session, service)
    seen = stored.glance(session.store, service)
    session.emit({"rollout": data(found.rollout, seen)}, *blocks(found.rollout, seen))


@command(app, "watch")
def watch(session: Session, service: ServiceName) -> None:
    """Follow it until it is over: live on a terminal, one line a transition elsewhere."""
    rollout = rollout_session.find(session, service).rollout
    if sys.stdout.isatty() and session.output is Format.TABLE:
        _watch_live(session, rollout)
        return
    say = rollout_session.say(session)
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
            live.update(rendered(blocks(each, stored.glance(session.store, each.service))))


@command(app, "wait")
def wait_for_it(session: Session, service: ServiceName, timeout: TimeoutOption = None) -> None:
    """Wait until it is over, or needs a person. The exit code says how it ended."""
    limit = limit_of(timeout, waits=True)
    rollout_session.wait(session, rollout_session.find(session, service).rollout, limit)


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
            words.moment(each.spec.when) if each.spec.when else "-",
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
    rollout = (
        rollout_wait.read(session.store, service, id)
        if id
        else rollout_session.find(session, service).rollout
    )
    print(rollout_report.report(rollout, output))


rollout_asks.add_to(app)
