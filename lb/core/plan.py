"""The planner: desired and observed state in, what the kernel should hold out. Pure.

Everything is still named here; ids, which differ between nodes, are given out by lb/core/ids.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from lb.core import capacity, rules, slots
from lb.core.health import Verdict
from lb.core.nexthop import NextHop
from lb.core.overlay import overlay
from lb.core.room import WHOLE, Narrowed
from lb.core.rules import Steer
from lb.core.slots import Member, Table
from lb.core.state import BackendKey, DesiredState
from lb.model import keys
from lb.model.objects import (
    GUE_PORT,
    TUNNELS,
    Address,
    Admin,
    Backend,
    Mode,
    Protocol,
    Service,
    TableDocument,
    table_path,
)
from lb.model.reports import Problem

HEALTHY = Verdict()  # all are


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
    quic_id: int | None = None  # the server's, in connection IDs
    resets: bool = False  # not usable, and clients of its TCP flows are told
    gets_copies: bool = False  # and nothing else


@dataclass(frozen=True)
class WantedService:
    """A service as the kernel should know it. `base` is shared by all nodes, `table` is what this
    node programs."""

    service: Service
    seed: tuple[int, int]
    base: Table
    table: Table
    pool: str | None = None  # the table for clients that rules send there; none = for all others
    observed: bool = False  # what becomes of its connections is counted

    @property
    def path(self) -> str:
        """What its table is called."""
        return table_path(self.service.name, self.pool)


@dataclass(frozen=True)
class Wanted:
    """All of it. Services are by the path of their table: besides "web" there may be "web/canary"."""

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
    return [Member(b.name, b.pool, b.weight if b.takes_flows else 0) for b in backends]


def base_table(
    service: Service,
    backends: Sequence[Backend],
    document: TableDocument | None,
    now: int,
    pool: str | None = None,
    ours: Table | None = None,
) -> Table:
    """The service's table as people asked for it, moved least from the stored one; with the moves that
    this takes, if it is made at `now` (Unix seconds). With `pool`: that of this pool alone, for clients
    that rules send there, or as the backup; the same as by the split while nobody in it takes new flows.
    `ours`: what was served here since, if that was not stored. Slots are those of every node that plans
    from what is stored; moves are from where they were here.
    """
    previous = None
    if document is not None:
        try:
            previous = slots.from_document(document)
        except ValueError:
            previous = None  # quarantined like any bad document: begin anew
    members = members_of(backends)
    alone = pool is not None and any(each.weight for each in members if each.pool == pool)
    split = {pool: 100.0} if pool is not None and alone else service.split
    table = slots.plan(members, split, previous)
    before = ours or previous
    if pool is None:
        # Without a table before there is no flow that could be older than a rule.
        held: rules.Steers = {prefix: Steer(to, None) for prefix, to in service.rules.items()}
        held = before.steers if before else held
        steers = rules.follow(held, service.rules, now, service.window)
        table = table.with_steers(steers)
    if before is None:
        return table
    if slots.moved(before, table) or table.backends != before.backends:
        return slots.remember(before, table, now, service.window)
    return slots.Table(table.backends, table.slots, table.parts, before.moves, table.steers)


def base_tables(
    service: Service,
    backends: Sequence[Backend],
    documents: Mapping[str, TableDocument],
    now: int,
    ours: Mapping[str, Table] = {},
) -> dict[str, Table]:
    """All of the service's tables, by path (TableDocument.path), as base_table() says."""
    own = base_table(service, backends, documents.get(service.name), now, ours=ours.get(service.name))
    found = {service.name: own}
    for path in paths(service, own)[1:]:
        pool = path.partition("/")[2]
        found[path] = base_table(service, backends, documents.get(path), now, pool, ours.get(path))
    return found


def paths(service: Service, base: Table) -> list[str]:
    """What the service's tables are called, its own first, then those of single pools."""
    pools = rules.pools(base.steers) | ({service.backup} if service.backup else set())
    pools |= {service.mirror.pool} if service.mirror else set()
    return [service.name, *(table_path(service.name, pool) for pool in sorted(pools))]


def in_force(service: Service, tables: Mapping[str, Table]) -> Table:
    """Which of these, by path, places new flows: the backup's, where the service's own names nobody."""
    own = tables[service.name]
    if own.has_backends or not service.backup:
        return own
    return tables[table_path(service.name, service.backup)]


def is_observed(service: Service, *, is_judged: bool = False) -> bool:
    """Is counted what becomes of the service's connections: because somebody wants that, or because it
    `is_judged` by it?"""
    return service.observe or is_judged or bool(service.health and service.health.passive)


@dataclass(frozen=True)
class ServicePlan:
    """What one service is to be in the kernel: itself, and the pools that rules send clients to."""

    wanted: WantedService
    pools: tuple[WantedService, ...]
    backends: Mapping[BackendKey, WantedBackend]
    problems: tuple[Problem, ...]


def plan_service(
    service: Service,
    members: Sequence[Backend],
    observed: Observed,
    cluster_seed: str,
    bases: Mapping[str, Table],
    verdict: Verdict = HEALTHY,
    is_judged: bool = False,
    full: Collection[str] = (),
    narrowed: Narrowed = WHOLE,
) -> ServicePlan:
    """What the kernel should hold of a service and its backends. `bases`: of base_tables();
    `is_judged`: a rollout is under way; `full`: backends that have all the connections that they may
    have; `narrowed`: what of it has room."""
    backends: dict[BackendKey, WantedBackend] = {}
    problems: list[Problem] = []
    service = narrowed.service(service)
    bases = {**bases, service.name: narrowed.base(bases[service.name])}
    for backend in members:
        if backend.name in narrowed.backends:
            continue
        hop = observed.next_hops.get(backend.address)
        if hop is not None and (problem := _detour(service, backend, hop, observed.attached)):
            problems.append(problem)
            hop = None
        backends[service.name, backend.name] = WantedBackend(
            address=backend.address,
            port=GUE_PORT if service.mode is Mode.GUE else backend.port or service.one_port or 0,
            usable=backend.admin is not Admin.DOWN and backend.name not in verdict.resets,
            next_hop=hop,
            resets=backend.name in verdict.resets and service.protocol is Protocol.TCP,
            quic_id=None if backend.quic_id is None else int(backend.quic_id, 16),
            gets_copies=service.mirrored is not None and backend.pool == service.mirrored.pool,
        )
    # No traffic before the way to a backend is known.
    unresolved = [name for (_, name), each in backends.items() if each.next_hop is None]
    taking = members_of(members)
    fitness = {**verdict.fitness, **dict.fromkeys((*unresolved, *narrowed.backends), 0.0)}
    held, crammed = capacity.held_back(members, fitness, full)
    fitness |= dict.fromkeys(held, 0.0)
    problems += [_crammed(service, pool) for pool in crammed]
    seed = seed_of(cluster_seed, service.name)
    base = bases[service.name]
    fit = {path: overlay(bases[path], taking, fitness) for path in paths(service, base)}
    observe = is_observed(service, is_judged=is_judged)
    wanted = WantedService(service, seed, base, in_force(service, fit), observed=observe)
    if members and not fit[service.name].has_backends:  # without any it is being made, or was emptied
        problems.append(_nobody(service, is_there=wanted.table.has_backends))
    pools = []
    mirror = {service.mirror.pool} if service.mirror else set()
    for pool in sorted(rules.pools(base.steers) | mirror):
        path = table_path(service.name, pool)
        own, table = bases[path], fit[path]
        if not table.has_backends and own.backends == wanted.table.backends:
            table = wanted.table  # nobody in the pool can be used
        pools.append(WantedService(service, seed, own, table, pool))
    problems += _without_effect(service, taking)
    problems += _without_copies(service, taking)
    return ServicePlan(wanted, tuple(pools), backends, tuple(problems))


def _crammed(service: Service, pool: str) -> Problem:
    """All backends of a pool that can be used are full."""
    return Problem(
        where=keys.service(service.name),
        message=f"all usable backends of pool {pool!r} are full, so all get new flows, above their"
        " max_connections",
        hint=f"add backends, or raise the limit: lbctl backend limit {service.name} NAME"
        " --max-connections N",
        warning=True,
    )


def _nobody(service: Service, *, is_there: bool) -> Problem:
    """No backend of the pools in the split can be used; `is_there`: one of the backup can."""
    split = ", ".join(name for name, share in sorted(service.split.items()) if share)
    where = f"go to the backup pool {service.backup!r}" if is_there else "have none"
    if service.backup and not is_there:
        where += f", also not in backup {service.backup!r}"
    return Problem(
        where=keys.service(service.name),
        message=f"no backend of {split} can be used: new flows {where}",
        hint=f"`lbctl backend list {service.name}` says why",
        warning=True,  # also before the first checks have passed: that must not fail `--wait`
    )


def _without_effect(service: Service, members: Sequence[Member]) -> list[Problem]:
    """Rules for pools in which nobody takes new flows."""
    taking = {member.pool for member in members if member.weight}
    return [
        Problem(
            where=keys.service(service.name),
            message=f"no backend of pool {pool!r} takes new flows: the clients that rules send there go"
            " by the split",
            hint=f"add one: lbctl backend add {service.name} NAME ADDRESS --pool {pool}, or remove the"
            " rules: lbctl rule rm",
            warning=True,
        )
        for pool in sorted(set(service.rules.values()) - taking)
    ]


def _without_copies(service: Service, members: Sequence[Member]) -> list[Problem]:
    """Why nothing is mirrored, though somebody wants that."""
    if service.mirror is None:
        return []
    pool = service.mirror.pool
    if service.mirrored is None:
        message = f"mirroring rests: pool {pool!r} has {service.split[pool]:g} % of the new flows"
        hint = f"it goes on when it has none; to end it: lbctl service set {service.name} --no-mirror"
    elif not any(each.weight for each in members if each.pool == pool):
        message = f"no backend of pool {pool!r} takes new flows: nothing is mirrored"
        hint = f"add one: lbctl backend add {service.name} NAME ADDRESS --pool {pool}"
    else:
        return []
    return [Problem(where=keys.service(service.name), message=message, hint=hint, warning=True)]


def seed_in_force(state: DesiredState) -> str:
    """The cluster's seed; without a configuration it is all zeros."""
    return state.config.seed if state.config else "0" * 32


def flat(plans: Iterable[ServicePlan]) -> dict[str, WantedService]:
    """Services and the pools that rules send clients to, by path."""
    return {each.path: each for plan in plans for each in (plan.wanted, *plan.pools)}


def join(plans: Mapping[str, ServicePlan]) -> Wanted:
    """All services together."""
    backends: dict[BackendKey, WantedBackend] = {}
    for each in plans.values():
        backends.update(each.backends)
    return Wanted(
        services=flat(plans.values()),
        backends=backends,
        problems=tuple(problem for each in plans.values() for problem in each.problems),
    )


def plan(
    state: DesiredState,
    observed: Observed,
    bases: Mapping[str, Table],
    verdicts: Mapping[str, Verdict] = {},
) -> Wanted:
    """What the kernel should hold. `bases` has the base tables of every service, `verdicts` what the
    health of its backends leads to, where that is anything."""
    seed = seed_in_force(state)
    return join(
        {
            name: plan_service(
                service, state.backends_of(name), observed, seed, bases, verdicts.get(name, HEALTHY)
            )
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
