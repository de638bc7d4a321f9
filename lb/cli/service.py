"""lbctl service: VIPs and their policies."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from lb.cli import words
from lb.cli.change import Draft, perform
from lb.cli.health import (
    CheckOption,
    CheckTimeoutOption,
    FallOption,
    IntervalOption,
    PanicOption,
    PassiveOption,
    RiseOption,
    SlowStartOption,
    ViaOption,
    asked_health,
)
from lb.cli.metrics import metrics
from lb.cli.options import ServiceName, change, command
from lb.cli.rows import backend_rows, backend_table, mirror_line, service_rows, service_table, summary
from lb.cli.session import Session
from lb.cli.slots import slots
from lb.errors import ConflictError, UserError
from lb.model import keys
from lb.model.objects import (
    DEFAULT_WINDOW,
    TUNNELS,
    Affinity,
    Mode,
    NoBackend,
    Protocol,
    Service,
    Tracking,
)

app = typer.Typer(help="Services: VIPs and their policies.", no_args_is_help=True)

ProtocolOption = Annotated[Protocol, typer.Option("--protocol", help="Transport protocol.")]
ModeHelp = (
    "dsr: the server, on a shared segment, answers the client itself; ipip, gue: the same through a"
    " tunnel, over routers; nat: answers come back through the node; fullnat: the same,"
    " and the server sees the node as its client."
)
AffinityHelp = (
    "What picks the backend: the 5-tuple, or the client's address alone. To change it hashes all flows"
    " anew."
)
TrackingHelp = (
    "Which flows are remembered, so that they stay where they are: those whose slot moved lately, all,"
    " or none."
)
WindowHelp = (
    "How long a slot that moved remembers where it was: 900s, 15m. With tracking `moving`, an"
    " established flow that says nothing for so long is lost to the move."
)
QuicIdBytesHelp = (
    "Steer QUIC by connection ID: the length of the server ID in it (draft-ietf-quic-load-balancers,"
    " unencrypted), 1 to 8; 0 = don't. Backends have theirs by --quic-id."
)
QuicConfigHelp = "The first three bits of such a connection ID, 0 to 6."
BackupHelp = "Pool for new flows while no backend of the split can be used."
MirrorHelp = (
    "Send a copy of a share of the flows to a pool, whose answers are dropped: canary:10. In mode nat,"
    " at nodes with --hook tc."
)
ObserveHelp = "Count what becomes of its connections, and how long it takes: lbctl service metrics."
SplitHelp = "Share of new flows for each pool: stable=95,canary=5. Step by step: lbctl rollout."
NoBackendHelp = "While no backend is usable: answer (TCP RST, ICMP unreachable), or drop."


@change(app, "add")
def add(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the new service.")],
    vip: Annotated[
        str,
        typer.Option(
            "--vip",
            metavar="ADDRESS:PORT",
            help="What clients connect to; IPv6: [ADDRESS]:PORT. Several ports: 8000-8100, or any.",
        ),
    ],
    protocol: ProtocolOption = Protocol.TCP,
    mode: Annotated[Mode, typer.Option("--mode", help=ModeHelp)] = Mode.DSR,
    affinity: Annotated[Affinity, typer.Option("--affinity", help=AffinityHelp)] = Affinity.FLOW,
    tracking: Annotated[Tracking, typer.Option("--tracking", help=TrackingHelp)] = Tracking.MOVING,
    window: Annotated[
        str, typer.Option("--window", metavar="TIME", help=WindowHelp)
    ] = f"{DEFAULT_WINDOW}s",
    no_backend: Annotated[
        NoBackend, typer.Option("--no-backend", help=NoBackendHelp)
    ] = NoBackend.REJECT,
    backup: Annotated[str | None, typer.Option("--backup-pool", metavar="POOL", help=BackupHelp)] = None,
    quic_id_bytes: Annotated[
        int, typer.Option("--quic-id-bytes", metavar="N", help=QuicIdBytesHelp)
    ] = 0,
    quic_config: Annotated[int, typer.Option("--quic-config", metavar="N", help=QuicConfigHelp)] = 0,
    observe: Annotated[bool, typer.Option("--observe/--no-observe", help=ObserveHelp)] = False,
    check: CheckOption = None,
    check_via: ViaOption = None,
    interval: IntervalOption = None,
    check_timeout: CheckTimeoutOption = None,
    rise: RiseOption = None,
    fall: FallOption = None,
    slow_start: SlowStartOption = None,
    panic: PanicOption = None,
    passive: PassiveOption = None,
) -> None:
    """Add a service."""
    address, ports = words.socket(vip, "--vip")
    port, end_port = words.ports(ports)
    document = words.build(
        Service,
        name=name,
        vip=address,
        port=port,
        end_port=end_port,
        protocol=protocol,
        mode=mode,
        affinity=affinity,
        tracking=tracking,
        window=window,
        no_backend=no_backend,
        backup=backup,
        quic_id_bytes=quic_id_bytes,
        quic_config=quic_config,
        observe=observe,
        health=asked_health(
            None,
            check,
            passive,
            via=check_via,
            interval=interval,
            timeout=check_timeout,
            rise=rise,
            fall=fall,
            slow_start=slow_start,
            panic=panic,
        ),
    )

    def edit(draft: Draft) -> None:
        draft.add(document)
        _note_sizes(draft, None, document)

    perform(session, edit)


@command(app, "list")
def list_services(session: Session) -> None:
    """List the services, with their counters on this node."""
    state = session.state()
    rows = service_rows(state, state.services, session.kernel(state))
    session.emit([row.model_dump(mode="json") for row in rows], service_table(rows))


@command(app, "show")
def show(session: Session, service: ServiceName) -> None:
    """Show one service, its policies and its backends."""
    state = session.state()
    if service not in state.services:
        raise words.no_such_service(service, state)
    document = state.services[service]
    kernel = session.kernel(state)
    [row] = service_rows(state, [service], kernel)
    backends = backend_rows(state, [service], kernel)
    session.emit(
        {
            "service": row.model_dump(mode="json"),
            "backends": [each.model_dump(mode="json") for each in backends],
        },
        summary(document),
        service_table([row]),
        *([line] if (line := mirror_line(row)) else []),
        *(
            f"node {node} has no room for all of it: `lbctl status` says which map is full"
            for node in row.left_out_on
        ),
        backend_table(backends),
    )


command(app, "slots")(slots)
command(app, "metrics")(metrics)


@change(app, "set")
def set_policies(
    session: Session,
    service: ServiceName,
    split: Annotated[
        str | None, typer.Option("--split", metavar="POOL=PERCENT,…", help=SplitHelp)
    ] = None,
    mode: Annotated[Mode | None, typer.Option("--mode", help=ModeHelp)] = None,
    affinity: Annotated[Affinity | None, typer.Option("--affinity", help=AffinityHelp)] = None,
    tracking: Annotated[Tracking | None, typer.Option("--tracking", help=TrackingHelp)] = None,
    window: Annotated[str | None, typer.Option("--window", metavar="TIME", help=WindowHelp)] = None,
    no_backend: Annotated[NoBackend | None, typer.Option("--no-backend", help=NoBackendHelp)] = None,
    backup: Annotated[
        str | None, typer.Option("--backup-pool", metavar="POOL", help=f"{BackupHelp} none = nobody.")
    ] = None,
    mirror: Annotated[
        str | None, typer.Option("--mirror", metavar="POOL:PERCENT", help=MirrorHelp)
    ] = None,
    no_mirror: Annotated[bool, typer.Option("--no-mirror", help="Copy nothing any more.")] = False,
    quic_id_bytes: Annotated[
        int | None, typer.Option("--quic-id-bytes", metavar="N", help=QuicIdBytesHelp)
    ] = None,
    quic_config: Annotated[
        int | None, typer.Option("--quic-config", metavar="N", help=QuicConfigHelp)
    ] = None,
    observe: Annotated[bool | None, typer.Option("--observe/--no-observe", help=ObserveHelp)] = None,
    check: CheckOption = None,
    check_via: ViaOption = None,
    interval: IntervalOption = None,
    check_timeout: CheckTimeoutOption = None,
    rise: RiseOption = None,
    fall: FallOption = None,
    slow_start: SlowStartOption = None,
    panic: PanicOption = None,
    passive: PassiveOption = None,
) -> None:
    """Change policies of a service; what isn't named stays as it is."""
    asked = {
        "mode": mode,
        "affinity": affinity,
        "tracking": tracking,
        "window": window,
        "no_backend": no_backend,
        "quic_id_bytes": quic_id_bytes,
        "quic_config": quic_config,
        "observe": observe,
    }
    checks = {
        "via": check_via,
        "interval": interval,
        "timeout": check_timeout,
        "rise": rise,
        "fall": fall,
        "slow_start": slow_start,
        "panic": panic,
    }
    fields: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    if split is not None:
        fields["split"] = _split(split)
    if backup is not None:
        fields["backup"] = None if backup == "none" else backup
    if mirror is not None and no_mirror:
        raise UserError("--mirror and --no-mirror contradict each other", hint="give one of them")
    if mirror is not None or no_mirror:
        fields["mirror"] = None if mirror is None else _mirror(mirror)
    about_health = any(value is not None for value in (check, passive, *checks.values()))
    if not fields and not about_health:
        raise UserError(
            "nothing to set", hint="name a policy, for example --no-backend drop; see --help"
        )

    def edit(draft: Draft) -> None:
        before = draft.service(service)
        if about_health:
            fields["health"] = asked_health(before.health, check, passive, **checks)
        after = words.rebuild(before, **fields)
        _check_mirror(draft, after, is_asked=mirror is not None)
        draft.put(after)
        _note_sizes(draft, before, after)

    perform(session, edit)


def _note_sizes(draft: Draft, before: Service | None, after: Service) -> None:
    """A tunnel's headers need room, which is better known before somebody's upload is slow."""
    if after.mode in TUNNELS and (before is None or before.mode is not after.mode):
        more = 8 if after.mode is Mode.GUE else 0
        draft.notes.append(
            f"mode {after.mode} makes packets {20 + more} bytes longer, to servers' IPv6 addresses"
            f" {40 + more}; clients are told by ICMP what fits, if the MTU leaves no room"
            " (docs/howto/tunnel-backend.md, Sizes)"
        )


def _mirror(text: str) -> dict[str, Any]:
    """From canary:10."""
    pool, _, share = text.partition(":")
    try:
        return {"pool": pool, "percent": float(share.removesuffix("%"))}
    except ValueError:
        raise UserError(
            f"--mirror: {text!r} is not POOL:PERCENT", hint="for example canary:10"
        ) from None


def _check_mirror(draft: Draft, service: Service, *, is_asked: bool) -> None:
    if service.mirror is None or service.mirrored is not None:
        return
    pool = service.mirror.pool
    rests = (
        f"pool {pool!r} has {service.split[pool]:g} % of the new flows, whose clients need its answers"
    )
    if is_asked:
        raise ConflictError(
            f"--mirror: {rests}",
            hint="mirror to a pool that has no share in the split (lbctl service set --split)",
        )
    draft.notes.append(f"mirroring rests: {rests}")


def _split(text: str) -> dict[str, float]:
    """From stable=95,canary=5."""
    found: dict[str, float] = {}
    for each in text.split(","):
        pool, equals, share = each.strip().partition("=")
        try:
            number = float(share.removesuffix("%"))
        except ValueError:
            equals = ""
        if not pool or not equals or pool in found:
            raise UserError(
                f"--split: {each.strip()!r} is not POOL=PERCENT, each pool once",
                hint="for example stable=95,canary=5",
            )
        found[pool] = number
    return found


@change(app, "rm")
def remove(
    session: Session,
    service: ServiceName,
    cascade: Annotated[bool, typer.Option("--cascade", help="Remove its backends with it.")] = False,
) -> None:
    """Remove a service. Its VIP is no longer answered, and its flows end."""

    def edit(draft: Draft) -> None:
        if keys.service(service) not in draft.state.versions:  # unreadable ones can be removed
            raise words.no_such_service(service, draft.state)
        backends = draft.keys_under(keys.backend(service, ""))
        if backends and not cascade:
            raise ConflictError(
                f"service {service!r} still has {len(backends)} backend"
                + ("s" if len(backends) > 1 else ""),
                hint=f"drain and remove them first, or: lbctl service rm {service} --cascade",
            )
        draft.remove_service(service)

    perform(session, edit)
