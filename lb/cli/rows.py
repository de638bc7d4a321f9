"""What `-o json` and `-o yaml` give for services and backends; docs/reference/cli.md is made of it.

Keys are a promise: none is renamed or taken away. A figure that isn't known here (it is in a kernel
that this user or machine can't see) is null, and `-` in a table.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field

from lb.cli import health
from lb.cli.kernel import Kernel, Stats
from lb.cli.output import Table, number, percent
from lb.core.state import DesiredState
from lb.errors import DatapathError
from lb.model.checkwords import describe_check
from lb.model.describe import describe_socket, describe_vip
from lb.model.objects import (
    Address,
    Admin,
    Affinity,
    Backend,
    Mirror,
    Mode,
    Network,
    NoBackend,
    Protocol,
    Tracking,
)
from lb.model.objects import Service as ServiceDocument
from lb.model.reports import BackendHealth, FullReport


class Row(BaseModel):
    """Base of the rows."""

    model_config = ConfigDict(frozen=True)


class Counters(Row):
    """Counters of the kernel of this node, since its maps were made."""

    flows: int | None = Field(default=None, description="New flows.")
    packets: int | None = Field(default=None, description="Packets from clients.")
    bytes: int | None = Field(default=None, description="Bytes from clients.")
    reply_packets: int | None = Field(default=None, description="Packets to clients (mode nat).")
    reply_bytes: int | None = Field(default=None, description="Bytes to clients (mode nat).")


class MirrorCounters(Row):
    """What the kernel of this node has copied of a service's traffic."""

    flows: int = Field(description="Connections of which copies were sent (TCP).")
    copies: int = Field(description="Packets.")
    bytes: int = Field(description="Bytes of these.")
    given_up: int = Field(description="Connections whose copy has a hole, and what nobody could take.")
    answers: int = Field(description="Packets that answered copies, and were dropped.")


class ServiceRow(Counters):
    """A service."""

    name: str = Field(description="Name of the service.")
    vip: Address = Field(description="Address that clients connect to.")
    port: int = Field(description="Port that clients connect to, or the first one of a range.")
    end_port: int | None = Field(description="Last port of the range; null = only `port`.")
    ports: str = Field(description="The same as one text: 80, 8000-8100 or any.")
    protocol: Protocol = Field(description="tcp or udp.")
    mode: Mode = Field(description="dsr, nat, fullnat, ipip or gue.")
    affinity: Affinity = Field(description="What the flow hash covers.")
    tracking: Tracking = Field(description="Which flows are remembered.")
    window: int = Field(description="Seconds for which a slot that moved remembers where it was.")
    no_backend: NoBackend = Field(description="Answer while no backend is usable.")
    split: dict[str, float] = Field(description="Share of new flows for each pool, in per cent.")
    backup: str | None = Field(
        description="Pool for new flows while no backend of the split can be used; null = none."
    )
    rules: dict[Network, str] = Field(
        description="Pool for the clients of each source prefix, whatever the split says."
    )
    mirror: Mirror | None = Field(
        description="`pool` that gets copies of `percent` of the flows; null = none."
    )
    mirrored: MirrorCounters | None = Field(description="What was copied; null = not known here.")
    quic_id_bytes: int = Field(
        description="Length of the server ID in QUIC connection IDs; 0 = not steered by them."
    )
    quic_config: int = Field(description="The first three bits of such a connection ID.")
    observe: bool = Field(description="Whether it is counted what becomes of its connections.")
    check: str | None = Field(description="How its backends are checked, in short; null = not at all.")
    backends: int = Field(description="How many backends it has.")
    backends_up: int = Field(description="How many of them take new flows.")
    left_out_on: list[str] = Field(description="Nodes that have no room for it, or for all of it.")


class BackendRow(Counters):
    """A backend."""

    service: str = Field(description="Service that it belongs to.")
    name: str = Field(description="Name of the backend.")
    address: Address = Field(description="Address of the server.")
    port: int | None = Field(description="Port of the server; null = the VIP's.")
    pool: str = Field(description="Pool that it belongs to.")
    weight: int = Field(description="Weight that was asked for.")
    admin: Admin = Field(description="What a person wants: up, drain or down.")
    drain_until: float | None = Field(
        description="When a drain ends and it becomes down, in Unix seconds; null = never."
    )
    health: str | None = Field(
        description="What checks have shown: unknown, healthy, unhealthy; mixed, if nodes differ; null ="
        " not checked."
    )
    health_on: dict[str, BackendHealth] = Field(
        description="The same for each node, with `since`, `share`, `error`, `latency`, `history`."
    )
    max_connections: int | None = Field(
        description="Connections on a node from which on it gets no new ones there; null = no limit."
    )
    full_on: dict[str, FullReport] = Field(
        description="Nodes on which it has so many, with `connections` and `limit`."
    )
    quic_id: str | None = Field(description="Server ID in QUIC connection IDs, in hexadecimal.")
    share_percent: float = Field(
        description="Planned share of the service's new flows, exact: as people asked for it, whatever"
        " its health."
    )
    slots: int | None = Field(description="Slots that the kernel of this node holds now.")
    unresolved_on: list[str] = Field(description="Nodes that found no way to its address.")
    left_out_on: list[str] = Field(description="Nodes that have no room for it.")


def service_rows(state: DesiredState, names: Iterable[str], kernel: Kernel | None) -> list[ServiceRow]:
    """Services as they are listed."""
    grouped = by_service(state)
    left_out = _left_out(state)
    return [
        _service_row(state.services[name], grouped[name], left_out.get(name, []), kernel)
        for name in sorted(names)
    ]


def _left_out(state: DesiredState) -> dict[str, list[str]]:
    """By service, or service/backend: the nodes that have no room for it."""
    found: dict[str, list[str]] = {}
    for node, status in sorted(state.nodes.items()):
        for path in status.left_out:
            found.setdefault(path, []).append(node)
    return found


def _service_row(
    service: ServiceDocument, backends: Sequence[Backend], left_out: list[str], kernel: Kernel | None
) -> ServiceRow:
    return ServiceRow(
        **service.model_dump(),
        ports=service.ports,
        check=describe_check(service.health.check) if service.health else None,
        backends=len(backends),
        backends_up=sum(backend.takes_flows for backend in backends),
        left_out_on=left_out,
        mirrored=_mirror_counters(kernel, service),
        **_counters(_service_stats(kernel, service.name)),
    )


def backend_rows(state: DesiredState, names: Iterable[str], kernel: Kernel | None) -> list[BackendRow]:
    """The backends of these services as they are listed."""
    grouped = by_service(state)
    unresolved = {name: frozenset(node.unresolved) for name, node in sorted(state.nodes.items())}
    left_out = _left_out(state)
    return [
        row
        for name in sorted(names)
        for row in _backend_rows(
            state, state.services[name], grouped[name], unresolved, left_out, kernel
        )
    ]


def _backend_rows(
    state: DesiredState,
    service: ServiceDocument,
    backends: Sequence[Backend],
    unresolved: Mapping[str, Collection[str]],
    left_out: Mapping[str, list[str]],
    kernel: Kernel | None,
) -> list[BackendRow]:
    shares = planned_shares(service, backends)
    slots = _slot_counts(kernel, service.name)
    found = {b.name: health.found_by(state, f"{service.name}/{b.name}") for b in backends}
    return [
        BackendRow(
            **backend.model_dump(exclude={"health"}),
            health=health.state_of(found[backend.name]),
            health_on=found[backend.name],
            full_on={
                name: node.full[f"{service.name}/{backend.name}"]
                for name, node in sorted(state.nodes.items())
                if f"{service.name}/{backend.name}" in node.full
            },
            share_percent=shares[backend.name],
            slots=None if slots is None else slots.get(backend.name, 0),
            unresolved_on=[
                node for node, paths in unresolved.items() if f"{service.name}/{backend.name}" in paths
            ],
            left_out_on=left_out.get(f"{service.name}/{backend.name}", []),
            **_counters(_backend_stats(kernel, service.name, backend.name)),
        )
        for backend in backends
    ]


def by_service(state: DesiredState) -> dict[str, list[Backend]]:
    """Each service's backends, sorted by name, in one pass."""
    grouped: dict[str, list[Backend]] = {name: [] for name in state.services}
    for _, backend in sorted(state.backends.items()):
        grouped[backend.service].append(backend)
    return grouped


def planned_shares(service: ServiceDocument, backends: Sequence[Backend]) -> dict[str, float]:
    """Exact share of new flows in per cent: pools by split, within a pool by weight. A pool in which
    nobody takes flows leaves its share to the others, as in lb/core/slots.py, and all leave it to the
    backup."""
    split: Mapping[str, float] = service.split
    weights = {b.name: b.weight if b.takes_flows else 0 for b in backends}
    totals: dict[str, int] = {}
    for backend in backends:
        totals[backend.pool] = totals.get(backend.pool, 0) + weights[backend.name]
    whole = sum(split.get(pool, 0.0) for pool, total in totals.items() if total)
    if not whole and service.backup and totals.get(service.backup):
        split, whole = {service.backup: 100.0}, 100.0
    return {
        b.name: 100 * split.get(b.pool, 0.0) / whole * weights[b.name] / totals[b.pool]
        if whole and totals[b.pool]
        else 0.0
        for b in backends
    }


def service_table(rows: Iterable[ServiceRow]) -> Table:
    """Services for people."""
    return Table(
        ("NAME", "VIP", "MODE", "BACKENDS", "FLOWS", "PACKETS", "BYTES"),
        [
            (
                row.name,
                f"{describe_socket(row.vip, row.ports)}/{row.protocol}",
                row.mode.value,
                number(row.backends),
                *_cells(row),
            )
            for row in rows
        ],
        right=frozenset({"BACKENDS", "FLOWS", "PACKETS", "BYTES"}),
        empty="no services; add one: lbctl service add NAME --vip ADDRESS:PORT",
    )


def backend_table(rows: Sequence[BackendRow]) -> Table:
    """Backends for people."""
    are_checked = any(row.health for row in rows)
    return Table(
        (
            *("SERVICE", "NAME", "ADDRESS", "POOL", "WEIGHT", "STATE"),
            *(("HEALTH", "LAST CHECK") if are_checked else ()),
            *("SHARE%", "SLOTS"),
            *("FLOWS", "PACKETS", "BYTES"),
        ),
        [
            (
                row.service,
                row.name,
                describe_socket(row.address, row.port) if row.port else str(row.address),
                row.pool,
                str(row.weight),
                row.admin.value + _obstacles(row) + _fullness(row),
                *(health.cells(row.health_on) if are_checked else ()),
                percent(row.share_percent),
                number(row.slots),
                *_cells(row),
            )
            for row in rows
        ],
        right=frozenset({"WEIGHT", "SHARE%", "SLOTS", "FLOWS", "PACKETS", "BYTES"}),
        empty="no backends; add one: lbctl backend add SERVICE NAME ADDRESS",
    )


def summary(service: ServiceDocument) -> str:
    """A service in one line."""
    return (
        f"service {service.name}: {describe_vip(service)}, mode {service.mode}, "
        f"affinity {service.affinity}, tracking {service.tracking}"
        f"{f' (window {service.window} s)' if service.tracking is Tracking.MOVING else ''}, "
        f"no backend: {service.no_backend}, "
        f"split {', '.join(f'{pool} {share:g} %' for pool, share in sorted(service.split.items()))}"
        + (f" (backup {service.backup}), " if service.backup else ", ")
        + f"{health.summary(service)}"
        + (f", {len(service.rules)} rules for clients" if service.rules else "")
        + (
            f", QUIC by connection ID (config {service.quic_config}, {service.quic_id_bytes} bytes)"
            if service.quic_id_bytes
            else ""
        )
        + (", observed" if service.observe else "")
        + (f", mirrored {_mirror(service.mirror)}" if service.mirror else "")
    )


def _obstacles(row: BackendRow) -> str:
    return (", unresolved" if row.unresolved_on else "") + (", no room" if row.left_out_on else "")


def _fullness(row: BackendRow) -> str:
    """Of the node that has most."""
    if not row.full_on:
        return ""
    worst = max(row.full_on.values(), key=lambda each: each.connections)
    return f", full: {worst.connections:,} of {worst.limit:,} connections"


def mirror_line(row: ServiceRow) -> str:
    """What was copied, in one line; empty if nothing is known of that."""
    if row.mirror is None or row.mirrored is None:
        return ""
    each = row.mirrored
    return (
        f"mirrored {_mirror(row.mirror)}: {number(each.flows)} connections, {number(each.copies)}"
        f" packets copied, {number(each.given_up)} given up, {number(each.answers)} packets of answers"
        " dropped"
    )


def _mirror(mirror: Mirror) -> str:
    return f"{mirror.percent:g} % to pool {mirror.pool}"


def _mirror_counters(kernel: Kernel | None, service: ServiceDocument) -> MirrorCounters | None:
    try:
        stats = kernel.mirror_stats(service.name) if kernel and service.mirror else None
    except DatapathError:
        return None
    names = MirrorCounters.model_fields
    return MirrorCounters(**{each: getattr(stats, each) for each in names}) if stats else None


def _cells(row: Counters) -> tuple[str, str, str]:
    return number(row.flows), number(row.packets), number(row.bytes)


def _counters(stats: Stats | None) -> dict[str, int]:
    if stats is None:
        return {}
    return {name: getattr(stats, name) for name in Counters.model_fields}


def _service_stats(kernel: Kernel | None, service: str) -> Stats | None:
    try:
        return kernel.service_stats(service) if kernel else None
    except DatapathError:  # lbd --detach took the maps away meanwhile
        return None


def _backend_stats(kernel: Kernel | None, service: str, backend: str) -> Stats | None:
    try:
        return kernel.backend_stats(service, backend) if kernel else None
    except DatapathError:
        return None


def _slot_counts(kernel: Kernel | None, service: str) -> Mapping[str, int] | None:
    try:
        return kernel.slot_counts(service) if kernel else None
    except DatapathError:
        return None
