"""lbctl backend: the servers of a service, their weights and states."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated

import typer

from lb.cli import words
from lb.cli.change import Draft, perform
from lb.cli.complete import backend_names, service_names
from lb.cli.drain import flows_left, remark
from lb.cli.health import detail_lines, history_table
from lb.cli.options import BackendName, BackendNames, ServiceName, change, command
from lb.cli.output import Block
from lb.cli.rows import BackendRow, backend_rows, backend_table
from lb.cli.session import Session
from lb.core.state import DesiredState
from lb.errors import UserError
from lb.model import keys
from lb.model.objects import DEFAULT_POOL, Admin, Backend, Protocol, Tracking

app = typer.Typer(help="Backends: the servers of a service.", no_args_is_help=True)

MaxConnectionsOption = Annotated[
    str | None,
    typer.Option(
        "--max-connections",
        metavar="N",
        help="With so many on a node it gets no new ones there (mode fullnat); none = no limit.",
    ),
]


@change(app, "add")
def add(
    session: Session,
    service: ServiceName,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the new backend.")],
    address: Annotated[
        str,
        typer.Argument(
            metavar="ADDRESS[:PORT]",
            help="Address of the server, and its port if it isn't the VIP's (mode nat only).",
        ),
    ],
    weight: Annotated[
        str,  # for the model to read, so that it is refused in the same words everywhere
        typer.Option("--weight", metavar="N", help="Share of new flows, relative; 0 to 65535."),
    ] = "100",
    pool: Annotated[str, typer.Option("--pool", help="Pool of the service.")] = DEFAULT_POOL,
    quic_id: Annotated[
        str | None,
        typer.Option("--quic-id", metavar="HEX", help="Its server ID in QUIC connection IDs."),
    ] = None,
    max_connections: MaxConnectionsOption = None,
    drain: Annotated[
        bool, typer.Option("--drain", help="Begin without new flows; `backend up` admits them.")
    ] = False,
) -> None:
    """Add a backend to a service."""
    host, port = words.endpoint(address, "ADDRESS")
    document = words.build(
        Backend,
        service=service,
        name=name,
        address=host,
        port=port,
        weight=weight,
        pool=pool,
        quic_id=quic_id,
        max_connections=_limit(max_connections),
        admin=Admin.DRAIN if drain else Admin.UP,
    )

    def edit(draft: Draft) -> None:
        owner = draft.service(service)
        draft.add(document)
        copies = owner.mirror.pool if owner.mirror else None
        if document.pool not in owner.split and document.pool not in (owner.backup, copies):
            draft.notes.append(
                f"pool {document.pool} has no share in the split of service {service}: "
                f"{name} gets no new flow"
            )

    perform(session, edit)


@command(app, "list")
def list_backends(
    session: Session,
    service: Annotated[
        str | None,
        typer.Argument(metavar="SERVICE", help="Only of this service.", autocompletion=service_names),
    ] = None,
) -> None:
    """List backends, with their shares and their counters on this node."""
    state = session.state()
    if service is not None and service not in state.services:
        raise words.no_such_service(service, state)
    names = state.services if service is None else [service]
    rows = backend_rows(state, names, session.kernel(state))
    session.emit([row.model_dump(mode="json") for row in rows], backend_table(rows))


@command(app, "show")
def show(session: Session, service: ServiceName, name: BackendName) -> None:
    """Show one backend: with what nodes have found of its health, and if it drains, who is left."""
    state = session.state()
    row = _row(session, state, service, name)
    remarks: list[Block] = [*_remarks(row)]
    left = None
    if row.admin is Admin.DRAIN:
        left = flows_left(session.settings, state, service, name)
        remarks.append(remark(left, row.drain_until))
    if row.health_on:
        remarks += [*detail_lines(row.health_on), history_table(row.health_on)]
    data = {**row.model_dump(mode="json"), "flows_left": left}
    session.emit(data, backend_table([row]), *remarks)


@change(app, "weight", context_settings={"ignore_unknown_options": True})
def weight(
    session: Session,
    service: ServiceName,
    weights: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME=WEIGHT",
            help="Backends and their weights, 0 to 65535. A single one also as NAME WEIGHT.",
            autocompletion=backend_names,
        ),
    ],
) -> None:
    """Change weights, all in one step. Weight 0 takes no new flows; established ones go on.

    `lbctl backend weight web b1=50 b2=30`, or for a single one `lbctl backend weight web b1 50`.
    """
    wanted = _weights(weights)

    def edit(draft: Draft) -> None:
        for name, text in wanted.items():
            before = draft.backend(service, name)
            _refuse_sign(before, text)
            after = words.rebuild(before, weight=text)
            draft.put(after)
            if after.weight == 0:
                _note_new_udp(draft, service, name)

    perform(session, edit)


@change(app, "limit")
def limit(
    session: Session,
    service: ServiceName,
    names: BackendNames,
    max_connections: MaxConnectionsOption = None,
) -> None:
    """Limit the connections of backends. Established ones stay; if all of a pool are full, all are used.

    `lbctl backend limit web b1 b2 --max-connections 500`; `--max-connections none` takes it away.
    """
    if max_connections is None:
        raise UserError("limit of what?", hint="add --max-connections 500, for example, or none")

    def edit(draft: Draft) -> None:
        for name in names:
            held = draft.backend(service, name)
            draft.put(words.rebuild(held, max_connections=_limit(max_connections)))

    perform(session, edit)


@change(app, "drain")
def drain(
    session: Session,
    service: ServiceName,
    names: BackendNames,
    deadline: Annotated[
        str | None,
        typer.Option("--deadline", metavar="TIME", help="Set them down after this: 90s, 10m, 2h."),
    ] = None,
) -> None:
    """Give backends no new flows; established ones go on until they end, or until the deadline.

    `lbctl backend show` says how many are left.
    """
    until = None if deadline is None else time.time() + words.duration(deadline, "--deadline")
    _set_admin(session, service, names, Admin.DRAIN, until)


@change(app, "up")
def up(session: Session, service: ServiceName, names: BackendNames) -> None:
    """Give backends new flows again, by weight."""
    _set_admin(session, service, names, Admin.UP)


@change(app, "down")
def down(session: Session, service: ServiceName, names: BackendNames) -> None:
    """Give backends no packet at all; established flows are placed anew, so TCP ones break.

    Meant for servers that are gone already. `backend drain` lets established flows end first.
    """
    _set_admin(session, service, names, Admin.DOWN)


@change(app, "rm")
def remove(session: Session, service: ServiceName, names: BackendNames) -> None:
    """Remove backends at once; established flows are placed anew, so TCP ones break.

    To lose none: `lbctl backend drain SERVICE NAME`, wait until its flows have ended, then remove it.
    """

    def edit(draft: Draft) -> None:
        for name in names:
            key = keys.backend(service, name)
            if key not in draft.state.versions:  # unreadable ones can be removed
                draft.backend(service, name)
            draft.remove(key)

    perform(session, edit)


def _set_admin(
    session: Session, service: str, names: Sequence[str], admin: Admin, until: float | None = None
) -> None:
    def edit(draft: Draft) -> None:
        for name in names:
            draft.put(words.rebuild(draft.backend(service, name), admin=admin, drain_until=until))
            if admin is Admin.DRAIN:
                _note_new_udp(draft, service, name)

    perform(session, edit)


def _note_new_udp(draft: Draft, service: str, name: str) -> None:
    """UDP has no SYN: a flow without an entry may be one that was there before the drain."""
    owner = draft.service(service)
    if owner.protocol is Protocol.UDP and owner.tracking is Tracking.MOVING and not owner.quic_id_bytes:
        draft.notes.append(
            f"new UDP flows may still go to {name} for {owner.window:g} s: with tracking `moving` they"
            " can't be told from old ones; with `always` they can:"
            f" lbctl service set {service} --tracking always"
        )


def _limit(text: str | None) -> str | None:
    return None if text == "none" else text


def _weights(typed: Sequence[str]) -> dict[str, str]:
    if len(typed) == 2 and not any("=" in each for each in typed):
        return {typed[0]: typed[1]}
    wanted: dict[str, str] = {}
    for each in typed:
        name, equals, text = each.partition("=")
        if not (name and equals and text):
            raise UserError(
                f"{each!r} is not NAME=WEIGHT",
                hint="lbctl backend weight SERVICE NAME WEIGHT, or SERVICE NAME=WEIGHT NAME=WEIGHT",
            )
        if name in wanted:
            raise UserError(f"backend {name!r} comes twice", hint="give each one weight")
        wanted[name] = text
    return wanted


def _refuse_sign(backend: Backend, text: str) -> None:
    """What reads like a step would be taken for the weight itself."""
    if not text.startswith(("+", "-")):
        return
    try:
        meant = max(0, backend.weight + int(text))
    except ValueError:
        meant = backend.weight
    raise UserError(
        f"weight: {text} reads like a step from the present weight, {backend.weight}; give the weight"
        " that it shall have",
        hint=f"for example: lbctl backend weight {backend.service} {backend.name} {meant}",
    )


def _row(session: Session, state: DesiredState, service: str, name: str) -> BackendRow:
    if service not in state.services:
        raise words.no_such_service(service, state)
    for row in backend_rows(state, [service], session.kernel(state)):
        if row.name == name:
            return row
    raise words.no_such_backend(service, name, state)


def _remarks(row: BackendRow) -> list[str]:
    full = [
        f"{node}: full, with {each.connections:,} of {each.limit:,} connections: no new flow goes there,"
        " unless all of its pool are full"
        for node, each in row.full_on.items()
    ]
    room = [
        f"node {node} has no room for it: `lbctl status` says which map is full"
        for node in row.left_out_on
    ]
    lost = [f"no way to {row.address} was found on node {node}" for node in row.unresolved_on]
    return full + room + lost
