"""Making the kernel maps true to what is wanted, and adopting what an earlier lbd left there.

The maps themselves are the memory: which id belongs to whom, and of which generation, is read back
from them, so nothing on disk can contradict them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from lb.core import ids
from lb.core.heirs import NOBODY, Heirs, heirs_of, without
from lb.core.ids import Allocation
from lb.core.plan import Wanted, WantedBackend, WantedService
from lb.core.state import BackendKey
from lb.datapath import contents, encode, expiry, keeping, rulemaps, slotmaps, structs, sweep
from lb.datapath.bpf import Map
from lb.datapath.clock import Clock
from lb.datapath.contents import Contents
from lb.datapath.draft import Draft
from lb.datapath.encode import index_key
from lb.datapath.holding import Holding
from lb.datapath.maps import Maps
from lb.datapath.rulemaps import Kept
from lb.datapath.slotmaps import Encoded
from lb.datapath.sweep import Placement
from lb.model import keys
from lb.model.objects import Mode, Protocol, Service, Tracking
from lb.settings import Observation, Timeouts


def read_owners(owners: Map) -> dict[int, int]:
    """uid of each id that is owned."""
    uids = np.frombuffer(owners.array(), dtype=np.uint64)
    return {int(i): int(uids[i]) for i in np.flatnonzero(uids)}


@dataclass
class Kernel:
    """The maps of one node. A service's tables are known by their paths: "web", and "web/canary" for the
    clients that rules send to that pool."""

    maps: Maps
    patience: int = Observation().unserved  # of observed services: seconds that an answer may take
    _have: Contents = field(default_factory=Contents)
    _service_ids: dict[int, Allocation] = field(default_factory=dict)
    _backend_ids: dict[int, Allocation] = field(default_factory=dict)
    _programmed: dict[str, WantedService] = field(default_factory=dict)
    clock: Clock = field(default_factory=Clock)
    _stirred: set[int] = field(default_factory=set)  # services with slots that aren't quiet
    # Of the last time that all was looked at, and whether nothing was kept besides.
    _is_whole: bool = False
    _service_of: dict[str, int] = field(default_factory=dict)
    _backend_of: dict[BackendKey, int] = field(default_factory=dict)
    _wanted_backends: Mapping[BackendKey, WantedBackend] = field(default_factory=dict)
    _unsure: bool = False

    def adopt(self) -> None:
        """Read everything back from the kernel: after a start, and to find drift."""
        maps = self.maps
        generations = np.frombuffer(maps.backends.array(), dtype=np.uint8).reshape(
            -1, ctypes.sizeof(structs.Backend)
        )
        at = structs.Backend.generation.offset
        used = generations[:, at : at + 4].copy().view(np.uint32)[:, 0]
        backend_owners = read_owners(maps.backend_owners)
        # An id that was given out but not written yet (lbd was killed in between) counts, too.
        self._backend_ids = {
            number: Allocation(backend_owners.get(number, 0), max(int(used[number]), 1))
            for number in sorted({*np.flatnonzero(used).tolist(), *backend_owners})
        }
        self._service_ids = {
            number: Allocation(owner, 1) for number, owner in read_owners(maps.service_owners).items()
        }
        have, stirred = contents.read(
            maps,
            self._service_ids,
            {
                number: generations[number].tobytes()
                for number, each in self._backend_ids.items()
                if each.owner
            },
        )
        self._have = have
        self._stirred = stirred
        # Whoever changed them (an lbd that was killed, a person) may not have said so.
        contents.turn_page(maps, contents.has(have))
        self._programmed.clear()
        self._is_whole = False  # else nothing would seem to differ from nothing
        self._unsure = False

    @property
    def services_held(self) -> int:
        """How many services the kernel has."""
        return len(self._service_ids)

    def apply(self, wanted: Wanted, keep: Collection[str] = ()) -> int:
        """Make the maps so; returns how many entries were written or deleted. What belongs to objects
        whose store keys are in `keep` is left as it is. Raises CapacityError, before anything is
        written.
        """
        return self._apply(wanted, keep)

    def _apply(self, wanted: Wanted, keep: Collection[str], waiting: Heirs = NOBODY) -> int:
        """`waiting`: who is not in `wanted` although its service's tables name it."""
        if self._unsure:
            self.adopt()
        few = [each for name, each in wanted.services.items() if self._programmed.get(name) is not each]
        same = (
            self._is_whole
            and not (keep or waiting)
            and wanted.services.keys() == self._programmed.keys()
        )
        if same and all(self._is_in_place(each, wanted) for each in few):
            return self._apply_few(few, wanted)
        kept = keeping.with_pools({ids.uid(key) for key in keep}, self._have, self._service_ids)
        service_uids = {name: ids.uid(keys.service(name)) for name in wanted.services}
        backend_uids = {key: ids.uid(keys.backend(*key)) for key in wanted.backends}
        service_ids = ids.allocate(
            self._service_ids,
            {*service_uids.values(), *keeping.owned(self._service_ids, kept)},
            self.maps.services.max_entries,
            "services",
        )
        backend_ids = ids.allocate(
            self._backend_ids,
            {*backend_uids.values(), *keeping.owned(self._backend_ids, kept)},
            self.maps.backends.max_entries,
            "backends",
        )
        service_of = _inverse(service_ids, service_uids)
        backend_of = _inverse(backend_ids, backend_uids)
        backend_ids = ids.renewed(backend_ids, self._moved(wanted, backend_of))
        draft = self._draft(service_of, backend_of, waiting.backends)
        for each in wanted.services.values():
            if each.pool is None:
                draft.add_vip(each.service)
            draft.add_service(each)
        for key, number in backend_of.items():
            backend, owner = wanted.backends[key], wanted.services[key[0]].service
            draft.add_backend(key, backend, backend_ids[number].generation)
            draft.add_ways(key, backend, owner)
        want = draft.want
        keeping.keep(want, kept, self._have, self._service_ids, self._backend_ids)
        self.maps.vips.check_room(len(want.vips))
        self.maps.ranges.check_room(len(want.ranges))
        if heirs := heirs_of(wanted, self._heirs(service_ids, backend_ids)):
            # No id but those of owners that go now: they have to be gone before.
            return self._apply(without(wanted, heirs), keep, heirs) + self._apply(wanted, keep)
        # Not before that: an heir would seem to have the rules of whoever had its id.
        self.maps.rules.check_room(len(rulemaps.flat(want.rules)))

        # Whatever fails from here on leaves maps that memory doesn't know.
        self._unsure = True
        changes = self._give_out(service_ids, backend_ids)
        changes += self._write(self._have, want, draft.tables)
        self._stirred &= want.tables.keys()
        self._take_back(service_ids, backend_ids)
        self._service_ids = {n: each for n, each in service_ids.items() if each.owner}
        self._backend_ids = backend_ids
        self._have = want
        others = waiting.services
        self._programmed = {p: e for p, e in wanted.services.items() if e.service.name not in others}
        self._service_of, self._backend_of = service_of, backend_of
        self._is_whole = not (kept or waiting)
        self._wanted_backends = wanted.backends
        self._unsure = False
        return changes

    def holding(self, keep: Collection[str] = ()) -> Holding:
        """What the maps hold, by name. `keep`: as in apply()."""
        if self._unsure:
            self.adopt()
        staying = Contents()
        if not keep:
            return Holding(self._have, self._service_ids, self._backend_ids, staying)
        kept = keeping.with_pools({ids.uid(key) for key in keep}, self._have, self._service_ids)
        keeping.keep(staying, kept, self._have, self._service_ids, self._backend_ids)
        owned = keeping.owned(self._service_ids, kept), keeping.owned(self._backend_ids, kept)
        return Holding(self._have, self._service_ids, self._backend_ids, staying, owned)

    def _heirs(
        self, service_ids: Mapping[int, Allocation], backend_ids: Mapping[int, Allocation]
    ) -> set[int]:
        """Owners of ids that are somebody else's in the kernel."""
        return ids.changed_hands(self._service_ids, service_ids) | ids.changed_hands(
            self._backend_ids, backend_ids
        )

    def _moved(self, wanted: Wanted, backend_of: Mapping[BackendKey, int]) -> set[int]:
        """Backends of mode fullnat that the maps have at another address or port: flows are bound to a
        port of ours by which the old socket's answers are known, and no other's. In the other modes
        flows go on: who has moved may well know them."""
        held = self._have.backends
        return {
            number
            for key, number in backend_of.items()
            if wanted.services[key[0]].service.mode is Mode.FULLNAT
            and number in held
            and encode.is_elsewhere(held[number], wanted.backends[key])
        }

    def _draft(
        self,
        service_of: Mapping[str, int],
        backend_of: Mapping[BackendKey, int],
        waiting: Collection[BackendKey] = (),
    ) -> Draft:
        return Draft(
            self._have,
            self._programmed,
            self._stirred,
            self.maps.tables,
            service_of,
            backend_of,
            self.patience,
            waiting,
        )

    def _is_in_place(self, each: WantedService, wanted: Wanted) -> bool:
        """Does the service differ from what is programmed in nothing but values: no id to give out, no
        VIP and no way back to change?"""
        before = self._programmed.get(each.path)
        if before is None or _fixed(before.service) != _fixed(each.service):
            return False
        name = each.service.name
        if before.base.backends != each.base.backends:
            return False
        backends = [(name, backend) for backend in each.base.backends]
        had, has = self._wanted_backends, wanted.backends
        # Some have no room: lb/core/room.py.
        return all((b in had) == (b in has) for b in backends) and all(
            _where(had[b]) == _where(has[b]) for b in backends if b in has
        )

    def _apply_few(self, few: list[WantedService], wanted: Wanted) -> int:
        """Where only values of some services differ, nothing else needs a look."""
        have, draft = Contents(), self._draft(self._service_of, self._backend_of)
        want = draft.want
        for each in few:
            name, number = each.service.name, self._service_of[each.path]
            draft.add_service(each)
            have.services[number] = self._have.services[number]
            have.tables[number] = self._have.tables[number]
            have.rules[number] = self._have.rules.get(number, {})
            for key in ((name, backend) for backend in each.base.backends):
                if key not in wanted.backends:
                    continue
                at = self._backend_of[key]
                draft.add_backend(key, wanted.backends[key], self._backend_ids[at].generation)
                have.backends[at] = self._have.backends[at]
        entries = {**self._have.rules, **want.rules}
        self.maps.rules.check_room(len(rulemaps.flat(entries)))
        self._unsure = True
        changes = self._write(have, want, draft.tables)
        self._have.services |= want.services
        self._have.backends |= want.backends
        self._have.tables |= want.tables
        self._have.rules |= want.rules
        self._programmed = dict(wanted.services)
        self._wanted_backends = wanted.backends
        self._unsure = False
        return changes

    def numbers(self, key: BackendKey) -> tuple[int, int] | None:
        """The ids of a backend and of its service; none while it isn't in the maps."""
        backend, service = self._backend_of.get(key), self._service_of.get(key[0])
        return None if backend is None or service is None else (backend, service)

    def calm(self) -> int:
        """Drop idle flows, and make slots quiet that no flow needs to remember any more; returns how
        many slots. Call it now and then, while `is_stirred`."""
        if self._unsure:
            return 0
        flows = sweep.read(self.maps)
        tables: dict[int, Encoded] = {}
        rules: dict[int, Kept] = {}
        quiet = 0
        for name, numbers in self._tables_of_services().items():
            number, service = self._service_of[name], self._programmed[name].service
            held = self._have.rules.get(number, {})
            if not self._stirred.intersection(numbers) and not _is_stirred(held):
                continue
            slots = {n: slotmaps.read(self.maps.tables, n) or slotmaps.empty() for n in numbers}
            before = Placement(slots, held)
            idle = service.window * self.clock.rate
            after = sweep.calm(
                self.maps, number, before, service.rules, flows, idle, self.clock.jiffies()
            )
            if after.rules != held:
                rules[number] = after.rules
            for n in numbers:
                if (slots[n].moves.stirred != after.tables[n].moves.stirred).any():
                    tables[n] = slotmaps.encode(after.tables[n])
            quiet += before.stirred - after.stirred
        have, want = self._just(rules, tables), self._just(rules, tables)
        want.rules |= rules
        want.tables |= {n: contents.digest(encoded) for n, encoded in tables.items()}
        for number, kept in rules.items():
            raw = structs.Service.from_buffer_copy(have.services[number])
            raw.has_rules = bool(kept)
            want.services[number] = bytes(raw)
        self._unsure = True
        self._write(have, want, tables)
        self._have.tables |= want.tables
        self._have.rules |= want.rules
        self._have.services |= want.services
        self._unsure = False
        return quiet

    def _tables_of_services(self) -> dict[str, list[int]]:
        """The ids of each service's tables."""
        found: dict[str, list[int]] = {}
        for path, each in self._programmed.items():
            found.setdefault(each.service.name, []).append(self._service_of[path])
        return found

    def _just(self, rules: Collection[int], tables: Collection[int]) -> Contents:
        """What the kernel has of these services' rules, and of these tables."""
        return Contents(
            services={n: self._have.services[n] for n in rules},
            rules={n: self._have.rules.get(n, {}) for n in rules},
            tables={n: self._have.tables[n] for n in tables},
        )

    @property
    def remembers(self) -> bool:
        """Are there flows that have to be forgotten some time, by calm() or forget_idle()?"""
        return self.is_stirred or any(
            each.service.tracking is Tracking.ALWAYS for each in self._programmed.values()
        )

    def forget_idle(self, timeouts: Timeouts) -> int:
        """Drop the idle flows of services that remember every flow; returns how many."""
        gone = 0
        for protocol, established, begun in (
            (Protocol.TCP, timeouts.tcp_established, timeouts.tcp_opening),
            (Protocol.UDP, timeouts.udp, timeouts.udp),
        ):
            numbers = [
                self._service_of[path]
                for path, each in self._programmed.items()
                if each.service.tracking is Tracking.ALWAYS and each.service.protocol is protocol
            ]
            if not numbers:
                continue
            for flows, seconds in zip(sweep.read(self.maps), (begun, established), strict=True):
                mine = flows.of(*numbers)
                idle = seconds * self.clock.rate
                gone += len(mine) - len(mine.without_idle(self.clock.jiffies(), idle))
        return gone

    @property
    def translates(self) -> bool:
        """Is there a service in mode fullnat, whose flows have to be expired?"""
        return any(each.service.mode is Mode.FULLNAT for each in self._programmed.values())

    def expire(self, timeouts: Timeouts) -> dict[BackendKey, int]:
        """Give back the ports of flows that are over (mode fullnat); returns how many connections each
        backend has now."""
        found = expiry.expire(self.maps, timeouts, self.clock.jiffies, self.clock.rate)
        held = self._backend_ids
        return {
            key: found.connections.get((number, held[number].generation), 0)
            for key, number in self._backend_of.items()
            if number in held
        }

    @property
    def is_stirred(self) -> bool:
        """Are there slots or rules that aren't quiet?"""
        return bool(self._stirred) or any(_is_stirred(each) for each in self._have.rules.values())

    def _give_out(
        self, service_ids: Mapping[int, Allocation], backend_ids: Mapping[int, Allocation]
    ) -> int:
        """Newly allocated ids: counters from 0, owner written down. A backend's generation before that:
        if lbd is killed in between, the next one finds the new owner, and gives the id out no more."""
        new = 0
        maps = self.maps
        for number in ids.given_out(self._backend_ids, backend_ids):
            fresh = structs.Backend(generation=backend_ids[number].generation)
            maps.backends.put(index_key(number), bytes(fresh))
        for before, after, owners, counters in (
            (
                self._service_ids,
                service_ids,
                maps.service_owners,
                (maps.service_stats, maps.mirror_stats),
            ),
            (self._backend_ids, backend_ids, maps.backend_owners, (maps.backend_stats,)),
        ):
            for number in ids.given_out(before, after):
                for each_map in counters:
                    each_map.put(index_key(number), bytes(each_map.user_value_size))
                owners.put(index_key(number), bytes(structs.Owner(after[number].owner)))
                new += 1
        return new

    def _write(self, have: Contents, want: Contents, tables: Mapping[int, Encoded]) -> int:
        changes = contents.write(self.maps, have, want, tables, self._backend_ids)
        stirred = {number for number, (_, past) in tables.items() if past is not None}
        self._stirred = self._stirred - tables.keys() | stirred
        return changes

    def _take_back(
        self, service_ids: Mapping[int, Allocation], backend_ids: Mapping[int, Allocation]
    ) -> None:
        for before, after, owners in (
            (self._service_ids, service_ids, self.maps.service_owners),
            (self._backend_ids, backend_ids, self.maps.backend_owners),
        ):
            for number, each in before.items():
                if each.owner and not after[number].owner:
                    owners.put(index_key(number), bytes(structs.Owner(0)))


K = TypeVar("K")


def _inverse(allocations: Mapping[int, Allocation], uids: Mapping[K, int]) -> dict[K, int]:
    by_owner = {each.owner: number for number, each in allocations.items()}
    return {key: by_owner[owner] for key, owner in uids.items()}


def _where(backend: WantedBackend) -> tuple[object, ...]:
    return backend.address, backend.port, backend.quic_id


def _fixed(service: Service) -> tuple[object, ...]:
    return service.endpoint, service.mode


def _is_stirred(rules: Kept) -> bool:
    return any(each.closes for each in rules.values())
