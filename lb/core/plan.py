"""The planner: desired and observed state in, what the kernel should hold out. Pure.

Everything is still named here; ids, which differ between nodes, are given out by lb/core/ids.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lb.core import slots
from lb.core.nexthop import NextHop
from lb.core.overlay import overlay
from lb.core.slots import Member, Table
from lb.core.state import BackendKey, DesiredState
from lb.model import keys
from lb.model.objects import (
    TUNNELS,
    Address,
    Admin,
    Backend,
    Mode,
    Problem,
    Service,
    TableDocument,
)

GUE_PORT = 6080  # UDP, registered with IANA


@dataclass(frozen=True)
class Observed:
    """What this node sees. `attached` are the interfaces that it may send out of."""

    next_hops: Mapping[Address, NextHop] = field(default_factory=dict)
    attached: frozenset[int] = frozenset()


@dataclass(frozen=True)
class WantedBackend:
    """A backend as the kernel should know it."""

    address: Address
    port: int  # host order; 0 = the VIP's, of a range; in mode gue, where its tunnel ends
    usable: bool  # established flows may go on here
    next_hop: NextHop | None


@dataclass(frozen=True)
class WantedService:
    """A service as the kernel should know it. `base` is shared by all nodes, `table` is what this
    node programs."""

    service: Service
    seed: tuple[int, int]
    base: Table
    table: Table


@dataclass(frozen=True)
class Wanted:
    """All of it."""

    services: Mapping[str, WantedService]
    backends: Mapping[BackendKey, WantedBackend]
    problems: tuple[Problem, ...] = ()


def seed_of(cluster_seed: str, service: str) -> tuple[int, int]:
    """The service's 128-bit hash key, as two 64-bit halves: BLAKE2b of its name, keyed with the
    cluster's seed, so that services differ and nodes agree."""
    raw = hashlib.blake2b(service.encode(), key=bytes.fromhex(cluster_seed), digest_size=16)
    digest = raw.digest()
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")


def members_of(backends: Sequence[Backend]) -> list[Member]:
    """Backends as the slot planner sees them: only what is up takes slots."""
    return [Member(b.name, b.pool, b.weight if b.admin is Admin.UP else 0) for b in backends]


def base_table(
    service: Service, backends: Sequence[Backend], document: TableDocument | None, now: int
) -> Table:
    """The service's table as people asked for it, moved least from the stored one; with the moves that
    this takes, if it is made at `now` (Unix seconds)."""
    previous = None
    if document is not None:
        try:
            previous = slots.from_document(document)
        except ValueError:
            previous = None  # quarantined like any bad document: begin anew
    table = slots.plan(members_of(backends), service.split, previous)
    if previous is None:
        return table
    if slots.moved(previous, table) or table.backends != previous.backends:
        return slots.remember(previous, table, now, service.window)
    return slots.Table(table.backends, table.slots, table.parts, previous.moves)


@dataclass(frozen=True)
class ServicePlan:
    """What one service is to be in the kernel."""

    wanted: WantedService
    backends: Mapping[BackendKey, WantedBackend]
    problems: tuple[Problem, ...]


def plan_service(
    service: Service,
    members: Sequence[Backend],
    observed: Observed,
    cluster_seed: str,
    base: Table,
) -> ServicePlan:
    """What the kernel should hold of a service and its backends."""
    backends: dict[BackendKey, WantedBackend] = {}
    problems: list[Problem] = []
    for backend in members:
        hop = observed.next_hops.get(backend.address)
        if hop is not None and (problem := _detour(service, backend, hop, observed.attached)):
            problems.append(problem)
            hop = None
        backends[service.name, backend.name] = WantedBackend(
            address=backend.address,
            port=GUE_PORT if service.mode is Mode.GUE else backend.port or service.one_port or 0,
            usable=backend.admin is not Admin.DOWN,
            next_hop=hop,
        )
    # No traffic before the way to a backend is known.
    unresolved = [name for (_, name), each in backends.items() if each.next_hop is None]
    wanted = WantedService(
        service=service,
        seed=seed_of(cluster_seed, service.name),
        base=base,
        table=overlay(base, members_of(members), dict.fromkeys(unresolved, 0.0)),
    )
    return ServicePlan(wanted, backends, tuple(problems))


def seed_in_force(state: DesiredState) -> str:
    """The cluster's seed; without a configuration it is all zeros."""
    return state.config.seed if state.config else "0" * 32


def join(plans: Mapping[str, ServicePlan]) -> Wanted:
    """All services together."""
    backends: dict[BackendKey, WantedBackend] = {}
    for each in plans.values():
        backends.update(each.backends)
    return Wanted(
        services={name: each.wanted for name, each in plans.items()},
        backends=backends,
        problems=tuple(problem for each in plans.values() for problem in each.problems),
    )


def plan(state: DesiredState, observed: Observed, bases: Mapping[str, Table]) -> Wanted:
    """What the kernel should hold. `bases` has the base table of every service."""
    seed = seed_in_force(state)
    return join(
        {
            name: plan_service(service, state.backends_of(name), observed, seed, bases[name])
            for name, service in state.services.items()
        }
    )


def _detour(
    service: Service, backend: Backend, hop: NextHop, attached: frozenset[int]
) -> Problem | None:
    """Why packets can't take this way."""
    where = keys.backend(service.name, backend.name)
    if hop.ifindex not in attached:
        # XDP can send out of attached interfaces only, and answers (nat) are seen on those only.
        return Problem(
            where=where,
            message=f"{backend.address} is behind interface number {hop.ifindex}, which lbd is not"
            " attached to: it gets no traffic",
            hint="name that interface, too: lbd --interface, or interfaces in lb.toml",
        )
    if hop.gateway and service.mode is Mode.DSR:
        return Problem(
            where=where,
            message=f"{backend.address} is behind a router, which mode dsr can't pass: it gets no"
            " traffic",
            hint="use mode ipip, gue or nat, or an address of the server on a segment of this node",
        )
    if service.mode in (*TUNNELS, Mode.FULLNAT) and hop.source is None:
        return Problem(
            where=where,
            message=f"this node has no address of its own on the way to {backend.address}, which packets"
            " could come from: it gets no traffic",
            hint="give the interface an address of that family, or the route a source (ip route … src)",
        )
    return None
