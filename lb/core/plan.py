"""The planner: desired and observed state in, what the kernel should hold out. Pure.

Everything is still named here; ids, which differ between nodes, are given out by lb/core/ids.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from lb.core import slots
from lb.core.nexthop import NextHop
from lb.core.overlay import overlay
from lb.core.slots import Member, Table
from lb.core.state import BackendKey, DesiredState
from lb.model import keys
from lb.model.objects import (
    Address,
    Admin,
    Backend,
    Mode,
    Problem,
    Service,
    TableDocument,
)


@dataclass(frozen=True)
class Observed:
    """What this node sees. `attached` are the interfaces that it may send out of."""

    next_hops: Mapping[Address, NextHop] = field(default_factory=dict)
    attached: frozenset[int] = frozenset()


@dataclass(frozen=True)
class WantedBackend:
    """A backend as the kernel should know it."""

    address: Address
    port: int  # host order
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


def members_of(backends: list[Backend]) -> list[Member]:
    """Backends as the slot planner sees them: only what is up takes slots."""
    return [Member(b.name, b.pool, b.weight if b.admin is Admin.UP else 0) for b in backends]


def base_table(
    service: Service, backends: list[Backend], document: TableDocument | None, now: int
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


def plan(
    state: DesiredState,
    observed: Observed,
    bases: Mapping[str, Table],
    lay_over: Callable[[Table, Sequence[Member], Mapping[str, float]], Table] = overlay,
) -> Wanted:
    """What the kernel should hold. `bases` has the base table of every service; `lay_over` is
    `overlay`, or a version of it that remembers."""
    seed = state.config.seed if state.config else "0" * 32
    services: dict[str, WantedService] = {}
    backends: dict[BackendKey, WantedBackend] = {}
    problems: list[Problem] = []
    for name, service in state.services.items():
        members = state.backends_of(name)
        for backend in members:
            hop = observed.next_hops.get(backend.address)
            if hop is not None and (problem := _detour(service, backend, hop, observed.attached)):
                problems.append(problem)
                hop = None
            backends[name, backend.name] = WantedBackend(
                address=backend.address,
                port=backend.port or service.port,
                usable=backend.admin is not Admin.DOWN,
                next_hop=hop,
            )
        # No traffic before the way to a backend is known.
        unresolved = [b.name for b in members if backends[name, b.name].next_hop is None]
        services[name] = WantedService(
            service=service,
            seed=seed_of(seed, name),
            base=bases[name],
            table=lay_over(bases[name], members_of(members), dict.fromkeys(unresolved, 0.0)),
        )
    return Wanted(services, backends, tuple(problems))


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
            hint="use mode nat, or an address of the server on a segment of this node",
        )
    return None
