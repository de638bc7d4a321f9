"""lbctl trace: which backend a flow would reach, and why."""

from __future__ import annotations

import time
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Annotated

import typer

from lb.cli import health, kernel, words
from lb.cli.options import command
from lb.cli.session import Session
from lb.core.state import DesiredState
from lb.errors import UserError
from lb.model.describe import describe_socket
from lb.model.objects import Address, Protocol, TableDocument, table_path


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "trace")(trace)


def trace(
    session: Session,
    client: Annotated[str, typer.Argument(metavar="CLIENT:PORT", help="Where the flow comes from.")],
    vip: Annotated[str, typer.Argument(metavar="VIP:PORT", help="Where it goes.")],
    protocol: Annotated[Protocol, typer.Option("--protocol", help="Transport protocol.")] = Protocol.TCP,
) -> None:
    """Show which backend a packet of this flow would reach now, and why.

    It follows the data path's own steps through the kernel's own maps, so it needs root on a node.
    """
    source, source_port = _parse(client, "CLIENT:PORT")
    target, target_port = _parse(vip, "VIP:PORT")
    if source.version != target.version:
        raise UserError(
            f"{source} is IPv{source.version}, but {target} is IPv{target.version}",
            hint="give two addresses of one family",
        )
    state = session.state()
    view = kernel.open_kernel(session.settings, state)
    found = view.trace(protocol, source, source_port, target, target_port)
    why = [*found.why, *_health(found, state, session.settings.node)]
    data = {
        "protocol": protocol.value,
        "client": str(source),
        "client_port": source_port,
        "vip": str(target),
        "vip_port": target_port,
        "service": found.service,
        "slot": found.slot,
        "slot_backend": found.slot_backend,
        "tracked_backend": found.tracked_backend,
        "backend": found.backend,
        "verdict": found.verdict,
        "why": why,
    }
    flow = f"{describe_socket(source, source_port)} -> {describe_socket(target, target_port)}"
    reached = f"backend {found.service}/{found.backend}" if found.backend else "no backend"
    session.emit(
        data,
        f"{flow}/{protocol}: {reached}",
        *(f"  {number}. {step}" for number, step in enumerate(why, 1)),
        f"  => {found.verdict}",
    )


def _health(found: kernel.Trace, state: DesiredState, node: str) -> Iterator[str]:
    """What this node's checks found of the backends in question."""
    report = state.nodes.get(node)
    if report is None or found.service is None or found.slot is None:
        return
    table = state.tables.get(table_path(found.service, found.pool))
    asked = _owner(table, found.slot) if table else None
    for name in dict.fromkeys((asked, found.slot_backend, found.tracked_backend)):
        each = report.health.get(f"{found.service}/{name}")
        if name is None or each is None:
            continue
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each.since))
        said = f"{name} is {each.state} on this node since {when} ({health.age(each.since)})"
        if name == asked and name != found.slot_backend:
            said = f"the shared table has {name} in slot {found.slot}, and {said}"
        yield said + (f": {each.error}" if each.error else "")


def _owner(table: TableDocument, slot: int) -> str | None:
    """The backend of a slot."""
    end = 0
    for index, length in table.runs:
        end += length
        if slot < end:
            return table.backends[index] if 0 <= index < len(table.backends) else None
    return None


def _parse(text: str, what: str) -> tuple[Address, int]:
    address, port = words.socket(text, what)
    try:
        found = ip_address(address)
    except ValueError:
        raise UserError(
            f"{what}: {address!r} is not an IPv4 or IPv6 address", hint="for example 198.51.100.10:40000"
        ) from None
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise UserError(
            f"{what}: port must be 1 to 65535, not {port}",
            hint=f"for example {describe_socket(found, 40000)}",
        )
    return found, int(port)
