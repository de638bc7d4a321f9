"""What has no room in the kernel maps of this node is left out, and everything else works on. Pure.

Theory of operation. Maps have a size, and what is wanted may need more: other services write to the
store without asking, and a node may have smaller maps than the others. So before anything is planned it
is decided what stays out:

- What the kernel has keeps its place. Of what is new the order of names decides, so that the outcome is
  the same with each turn.
- A *service* goes in with its table, all that leads to it, and its rules and their pools' tables, or not
  at all. One that is in and moves to a VIP without room is out: nobody wants it where it was. Of one
  that is in and grows, a new rule or the copies of its traffic are left out, each for itself.
- A *backend* without room is one that this node can't use, as if its next hop were not known: its slots
  go to others by the overlay (lb/core/overlay.py), and the base table stays the one that all nodes have.
- What is kept because nobody understands its document needs its room, too.

Whatever can need room is a *claim*: the entries that it needs, by map. Two claims can share an entry, as
services with one address do. Maps are called as in lb/datapath/maps.py; `services` stands for all that
are by a table's id, `backends` for all that are by a backend's. lb/core/sizes.py says which setting
sizes each.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from typing import Protocol as Interface

from lb.core import ports, rules, sizes
from lb.core.ids import uid
from lb.core.rules import Steer, Steers
from lb.core.state import BackendKey, DesiredState
from lb.errors import CapacityError
from lb.model import keys
from lb.model.objects import Address, Network, Protocol, Service, Tracking, table_path
from lb.model.reports import Problem

if TYPE_CHECKING:
    from lb.core.slots import Table  # which takes numpy, and most of lbctl doesn't

TOLD = 10  # of what is left out; of the rest only the number, as each node's status is one document

Vip = tuple[Address, Protocol | None, int]  # and port; of "this address is a VIP": None, 0
Span = tuple[Address, Protocol, int, int]  # first port, and how many of its low bits are free
Claim = Mapping[str, Collection[Hashable]]


class Held(Interface):
    """What the kernel has. Owners are uids of store keys (lb/core/ids.py)."""

    @property
    def tables(self) -> Collection[int]:
        """Of services, and of their pools: who has one."""

    @property
    def backends(self) -> Collection[int]:
        """Who has an entry."""

    @property
    def vips(self) -> Mapping[Vip, int]:
        """Which service each leads to; 0 of an address alone."""

    @property
    def ranges(self) -> Mapping[Span, int]:
        """The same, of ranges of ports."""

    @property
    def rules(self) -> Mapping[int, Collection[Network]]:
        """The prefixes of each service, also those that are only remembered."""

    @property
    def kept(self) -> Claim:
        """What stays as it is, whatever is wanted."""


@dataclass(frozen=True)
class Narrowed:
    """What of a service has room, where that isn't all."""

    backends: frozenset[str] = frozenset()  # without room
    rules: Mapping[Network, str] | None = None  # that are in force; None = all
    steers: Steers = field(default_factory=dict)  # and what those remember
    copies: bool = True  # if it is mirrored

    def service(self, service: Service) -> Service:
        """The service as far as there is room for it."""
        less: dict[str, object] = {} if self.rules is None else {"rules": self.rules}
        less |= {} if self.copies else {"mirror": None}
        return service.model_copy(update=less) if less else service

    def base(self, table: Table) -> Table:
        """The same of its base table: all slots, but not all rules."""
        if self.rules is None:
            return table
        return table.with_steers(self.steers)


WHOLE = Narrowed()


@dataclass(frozen=True)
class LeftOut:
    """What has no room: whole services, and parts of others. `names`: of all of it, service or
    service/backend."""

    services: frozenset[str] = frozenset()
    parts: Mapping[str, Narrowed] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()


NOTHING = LeftOut()


def entries(state: DesiredState) -> dict[str, int]:
    """How many entries of each map the state needs."""
    wanted: dict[str, set[Hashable]] = {name: set() for name in ("vips", "ranges", "services", "rules")}
    for service in state.services.values():
        for what, needed in (*_way_to(service).items(), *_own(service, {}).items()):
            wanted[what].update(needed)
    return {"backends": len(state.backends), **{what: len(each) for what, each in wanted.items()}}


def left_out(
    state: DesiredState, bases: Mapping[str, Table], limits: Mapping[str, int], held: Held, node: str
) -> LeftOut:
    """What of the state has no room in maps of these sizes, on this node. `bases`: of all services,
    whose tables remember rules."""
    steers = {name: bases[name].steers for name in state.services}
    if _fits(state, steers, limits, held):
        return NOTHING
    idle: set[str] = set()
    while True:
        fitting = _Fitting(state, steers, limits, held, idle)
        found = fitting.result(node)
        if not fitting.idle:
            return found
        idle |= fitting.idle  # in the kernel, but not needed any more: others can have that room


def _fits(
    state: DesiredState, steers: Mapping[str, Steers], limits: Mapping[str, int], held: Held
) -> bool:
    """A count that costs little, and says yes only if that is certain: 0.2 ms for 1,000 services."""
    services = state.services.values()
    special = [
        (each, steers[each.name])
        for each in services
        if each.rules or each.mirror or steers[each.name] or each.end_port
    ]
    own = [_own(*each) for each in special]
    needed = {
        "services": len(services) - len(special) + sum(len(each["services"]) for each in own),
        "vips": 2 * len(services),
        "ranges": sum(len(_way_to(each)["ranges"]) for each, _ in special),
        "rules": sum(len(each["rules"]) for each in own),
        "backends": len(state.backends),
    }
    if held.rules:
        asked = {uid(keys.service(each.name)): {*each.rules, *past} for each, past in special}
        needed["rules"] += sum(
            len({*each} - asked.get(owner, set())) for owner, each in held.rules.items()
        )
    kept = held.kept
    return all(count + len(kept.get(what, ())) <= limits[what] for what, count in needed.items())


def _way_to(service: Service) -> dict[str, set[Hashable]]:
    """What leads to a service."""
    vip, protocol = service.vip, service.protocol
    address: Vip = vip, None, 0  # what ICMP to it is about
    if not service.end_port:
        return {"vips": {address, (vip, protocol, service.port)}, "ranges": set()}
    cut = ports.prefixes(service.port, service.end_port)
    return {"vips": {address}, "ranges": {(vip, protocol, *each) for each in cut}}


def _own(service: Service, steers: Steers) -> dict[str, set[Hashable]]:
    """A service's tables and rules: one table more for each pool that rules send clients to, or that
    gets copies."""
    pools = service.pools_alone | rules.pools(steers)
    return {
        "services": {service.name, *(table_path(service.name, pool) for pool in pools)},
        "rules": {(service.name, prefix) for prefix in {*service.rules, *steers}},
    }


class _Room:
    """How far the maps are taken."""

    def __init__(self, limits: Mapping[str, int], kept: Claim) -> None:
        self.limits = limits
        self.taken: dict[str, set[Hashable]] = {name: {*kept.get(name, ())} for name in limits}

    def full(self, *claims: Claim) -> tuple[str, ...]:
        """The maps that have no room for all of these."""
        needed: dict[str, set[Hashable]] = {}
        for claim in claims:
            for what, each in claim.items():
                needed.setdefault(what, set()).update(each)
        new = {what: len(each - self.taken[what]) for what, each in needed.items()}
        return tuple(
            what
            for what, count in new.items()
            if count and len(self.taken[what]) + count > self.limits[what]
        )

    def take(self, *claims: Claim) -> None:
        """Without a look whether they fit."""
        for claim in claims:
            for what, each in claim.items():
                self.taken[what].update(each)

    def try_to_take(self, *claims: Claim) -> bool:
        """All of these or none."""
        if self.full(*claims):
            return False
        self.take(*claims)
        return True


Claims = tuple[Claim, ...]


class _Fitting:
    """One decision."""

    def __init__(
        self,
        state: DesiredState,
        steers: Mapping[str, Steers],
        limits: Mapping[str, int],
        held: Held,
        unneeded: Collection[str],
    ) -> None:
        """`unneeded`: tables in the kernel that make room."""
        self.state, self.steers, self.limits, self.held = state, steers, limits, held
        self.unneeded = unneeded
        self.idle: set[str] = set()  # tables for which room was kept, and nobody needs them
        self.room = _Room(limits, held.kept)
        self.services: dict[str, Claims] = {}  # without room, and what they need
        self.rules: dict[str, dict[Network, Claim]] = {}  # the same, of services that are in
        self.copies: dict[str, Claim] = {}
        self.backends: dict[BackendKey, Claim] = {}

    def result(self, node: str) -> LeftOut:
        there = self._those_there()
        narrowed = {name: self._grow(self.state.services[name]) for name in there}
        for name in sorted(self.state.services.keys() - there):
            service = self.state.services[name]
            asked = {prefix: self.steers[name][prefix] for prefix in service.rules}
            # One that moves may come back here, with what it remembers.
            needed = _way_to(service), _own(service, asked), self._remembered(service)
            if self.room.try_to_take(*needed):
                narrowed[name] = WHOLE
            else:
                self.services[name] = needed
        for name, each in narrowed.items():
            narrowed[name] = self._remember(self.state.services[name], each)
        self._find_idle(narrowed)
        lost = self._fit_backends()
        for name in narrowed.keys() & lost.keys():
            before = narrowed[name]
            narrowed[name] = Narrowed(lost[name], before.rules, before.steers, before.copies)
        return LeftOut(
            frozenset(self.services),
            {name: each for name, each in narrowed.items() if each != WHOLE},
            *self._told(node),
        )

    def _those_there(self) -> list[str]:
        """The services that the kernel has and that can stay, by name; the room is theirs then."""
        services = self.state.services
        names = [name for name in sorted(services) if uid(keys.service(name)) in self.held.tables]
        while True:
            self.room = _Room(self.limits, self.held.kept)
            for name in names:
                self.room.take(self._place(services[name]))
            # Only of a VIP that it moves to can it lack anything. Then its place is free for others.
            out = {name for name in names if not self.room.try_to_take(_way_to(services[name]))}
            if not out:
                return names
            names = [name for name in names if name not in out]

    def _place(self, service: Service) -> Claim:
        """What the kernel has of what a service needs: nobody can have pushed it out."""
        held, owner = self.held, uid(keys.service(service.name))
        way, own = _way_to(service), _own(service, self.steers[service.name])
        return {
            "services": {
                path
                for path in own["services"].difference(self.unneeded)
                if uid(keys.service(str(path))) in held.tables
            },
            **self._remembered(service),
            "vips": {each for each in way["vips"] if held.vips.get(each) in (owner, 0)},  # type: ignore[call-overload]
            "ranges": {each for each in way["ranges"] if held.ranges.get(each) == owner},  # type: ignore[call-overload]
        }

    def _remembered(self, service: Service) -> Claim:
        """Its rules that stay in the kernel, asked for or not, while the service does."""
        kept = {*self.held.rules.get(uid(keys.service(service.name)), ())}
        if service.tracking is Tracking.NEVER:
            kept &= service.rules.keys()
        return {"rules": {(service.name, prefix) for prefix in kept}}

    def _grow(self, service: Service) -> Narrowed:
        """What a service that is there can have of what it needs besides."""
        name = service.name
        if service.mirror:
            table: Claim = {"services": {table_path(name, service.mirror.pool)}}
            if not self.room.try_to_take(table):
                self.copies[name] = table
        for prefix in rules.in_order(service.rules):
            needed = self._rule(name, prefix, self.steers[name][prefix])
            if not self.room.try_to_take(needed):
                self.rules.setdefault(name, {})[prefix] = needed
        return Narrowed(copies=name not in self.copies)

    @staticmethod
    def _rule(name: str, prefix: Network, steer: Steer[str | None]) -> Claim:
        pools = rules.pools({prefix: steer})
        return {"services": {table_path(name, pool) for pool in pools}, "rules": {(name, prefix)}}

    def _remember(self, service: Service, narrowed: Narrowed) -> Narrowed:
        """What its clients' older flows need, as far as there is room: where those of a rule went that
        is gone, or has none."""
        name, out = service.name, self.rules.get(service.name, {})
        steers: dict[Network, Steer[str | None]] = {}
        for prefix, steer in self.steers[name].items():
            if prefix in service.rules and prefix not in out:
                steers[prefix] = steer
                continue
            past = Steer(None, steer.before, steer.closes) if prefix in out else steer
            if self.room.try_to_take(self._rule(name, prefix, past)):
                steers[prefix] = past
        if steers == self.steers[name]:
            return narrowed
        asked = {prefix: pool for prefix, pool in service.rules.items() if prefix not in out}
        return Narrowed(rules=asked, steers=steers, copies=narrowed.copies)

    def _find_idle(self, narrowed: Mapping[str, Narrowed]) -> None:
        """Room was kept for what rules remember, and some of that may have turned out to be dropped."""
        for name, each in narrowed.items():
            service = each.service(self.state.services[name])
            steers = self.steers[name] if each.rules is None else each.steers
            used, wanted = _own(service, steers)["services"], _own(service, self.steers[name])
            spare = (wanted["services"] - used) & self.room.taken["services"]
            self.idle |= {str(path) for path in spare}

    def _fit_backends(self) -> dict[str, frozenset[str]]:
        """Those without room, by service."""
        wanted = [key for key in sorted(self.state.backends) if key[0] not in self.services]
        held = {key for key in wanted if uid(keys.backend(*key)) in self.held.backends}
        self.room.take({"backends": held})
        lost: dict[str, set[str]] = {}
        for key in wanted:
            needed: Claim = {"backends": {key}}
            if key not in held and not self.room.try_to_take(needed):
                self.backends[key] = needed
                lost.setdefault(key[0], set()).add(key[1])
        return {name: frozenset(each) for name, each in lost.items()}

    # -- in words ------------------------------------------------------------------------------

    def _told(self, node: str) -> tuple[tuple[str, ...], tuple[Problem, ...]]:
        """The names of all that is left out, and problems of the first of them."""
        found: list[tuple[str, str, Claims, str]] = [
            *(
                (name, keys.service(name), claims, "this node does not serve it")
                for name, claims in self.services.items()
            ),
            *(
                (name, keys.service(name), tuple(out.values()), _without_rules(out))
                for name, out in self.rules.items()
            ),
            *(
                (name, keys.service(name), (claim,), "this node sends no copies of its traffic")
                for name, claim in self.copies.items()
            ),
            *(
                ("/".join(key), keys.backend(*key), (claim,), "it gets no traffic from this node")
                for key, claim in self.backends.items()
            ),
        ]
        problems = [
            self._problem(where, self.room.full(*claims), what, "")
            for _, where, claims, what in found[:TOLD]
        ]
        if rest := found[TOLD:]:
            maps = {each for _, _, claims, _ in rest for each in self.room.full(*claims)}
            what = f"{len(rest):,} more services or backends are left out"
            more = "; `lbctl status -o json` names them all, as left_out"
            problems.append(self._problem(node, maps, what, more))
        return tuple(dict.fromkeys(name for name, *_ in found)), tuple(problems)

    def _problem(self, where: str, maps: Iterable[str], what: str, more: str) -> Problem:
        maps = sorted(maps)
        full = ", ".join(f"{name} map is full ({self.limits[name]:,} entries)" for name in maps)
        hint = sizes.hint(maps) + more
        return Problem(where=where, message=f"{full}: {what}", hint=hint, kind=CapacityError.__name__)


def _without_rules(out: Mapping[Network, Claim]) -> str:
    named = ", ".join(map(str, rules.in_order(out)[:TOLD]))
    more = f" and {len(out) - TOLD:,} more" if len(out) > TOLD else ""
    return f"without effect on this node are its rules for {named}{more}"
