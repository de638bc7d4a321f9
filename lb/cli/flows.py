"""lbctl flows: what the kernel remembers of flows."""

from __future__ import annotations

from dataclasses import asdict
from ipaddress import ip_network
from typing import Annotated

import typer

from lb.cli.complete import service_names
from lb.cli.options import DryRunOption, command
from lb.cli.output import Table, number
from lb.cli.session import Session
from lb.core.flows import Filter, Kind
from lb.core.state import DesiredState
from lb.errors import NotFoundError, UserError
from lb.model.describe import describe_socket

app = typer.Typer(
    help="The flows that this node remembers: list them, forget them.", no_args_is_help=True
)

ServiceOption = Annotated[
    str | None,
    typer.Option("--service", metavar="NAME", help="Of this service.", autocompletion=service_names),
]
BackendOption = Annotated[
    str | None, typer.Option("--backend", metavar="NAME", help="That go to a backend of this name.")
]
ClientOption = Annotated[
    str | None, typer.Option("--client", metavar="PREFIX", help="From this address or prefix.")
]
KindOption = Annotated[
    Kind | None, typer.Option("--kind", help="Only begun, established, or translated (fullnat).")
]


@command(app, "list")
def list_(
    session: Session,
    service: ServiceOption = None,
    backend: BackendOption = None,
    client: ClientOption = None,
    kind: KindOption = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="List at most so many.")] = 1000,
) -> None:
    """List flows with their backend, and for how long they have been silent.

    A slot that didn't move lately needs no memory of its flows (`tracking: moving`), so what is not
    listed here may be served all the same. It needs root, on a node.
    """
    from lb.datapath.clock import Clock
    from lb.datapath.flows import FlowTable
    from lb.datapath.maps import Maps

    state = session.state()
    only = _filter(state, service, backend, client, kind)
    table = FlowTable(Maps.open(session.settings.pin_dir), state)
    clock = Clock()
    found = table.listed(only, limit, clock.jiffies(), clock.rate)
    count = table.count(only)
    data = {
        "count": count,
        "flows": [
            {**asdict(flow), "client": str(flow.client), "source": flow.source and str(flow.source)}
            for flow in found
        ],
    }
    session.emit(
        data,
        Table(
            ("CLIENT", "SERVICE", "PORT", "BACKEND", "KIND", "IDLE", "AS"),
            [
                (
                    describe_socket(flow.client, flow.client_port),
                    flow.service,
                    str(flow.vip_port),
                    flow.backend or "gone",
                    flow.kind,
                    f"{flow.idle:.0f} s",
                    describe_socket(flow.source, flow.source_port or 0) if flow.source else "-",
                )
                for flow in found
            ],
            right=frozenset({"PORT", "IDLE"}),
            empty="no flows",
        ),
        f"{number(len(found))} of {number(count)} flows",
    )


@command(app, "clear")
def clear(
    session: Session,
    service: ServiceOption = None,
    backend: BackendOption = None,
    client: ClientOption = None,
    kind: KindOption = None,
    everything: Annotated[bool, typer.Option("--all", help="All flows of this node.")] = False,
    dry_run: DryRunOption = False,
) -> None:
    """Forget flows: their next packet goes where its slot says, as a new flow's would.

    Connections that a slot's backend doesn't know break; translated ones (fullnat) break always. It
    needs root, and concerns this node only.
    """
    from lb.datapath.flows import FlowTable
    from lb.datapath.maps import Maps

    if everything == any((service, backend, client, kind)):
        raise UserError(
            "--all stands alone" if everything else "say which flows",
            hint="give --service, --backend, --client or --kind; or --all for every flow of this node",
        )
    state = session.state()
    only = _filter(state, service, backend, client, kind)
    table = FlowTable(Maps.open(session.settings.pin_dir), state)
    count = table.count(only) if dry_run else table.forget(only)
    said = "would be forgotten" if dry_run else "forgotten"
    session.emit({"cleared": count, "dry_run": dry_run}, f"{number(count)} flows {said}")


def _filter(
    state: DesiredState,
    service: str | None,
    backend: str | None,
    client: str | None,
    kind: Kind | None,
) -> Filter:
    if service is not None and service not in state.services:
        raise NotFoundError(f"no service {service!r}", hint="lbctl service list")
    known = {name for of, name in state.backends if service in (None, of)}
    if backend is not None and backend not in known:
        where = f" in service {service!r}" if service else ""
        raise NotFoundError(f"no backend {backend!r}{where}", hint="lbctl backend list")
    try:
        prefix = ip_network(client) if client else None
    except ValueError as error:
        raise UserError(
            f"--client: {error}", hint="give an address or a prefix: 198.51.100.0/24"
        ) from None
    return Filter(service, backend, prefix, kind)
