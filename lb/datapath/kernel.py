"""Making the kernel maps true to what is wanted, and adopting what an earlier lbd left there.

The maps themselves are the memory: which id belongs to whom, and of which generation, is read back
from them, so nothing on disk can contradict them.
"""

from __future__ import annotations

import ctypes
import hashlib
import socket
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from lb.core import ids, moves
from lb.core.diff import Difference, diff
from lb.core.ids import Allocation
from lb.core.moves import Moves
from lb.core.plan import Wanted, WantedBackend, WantedService
from lb.core.state import BackendKey
from lb.datapath import encode, expiry, layout, slotmaps, sweep
from lb.datapath.bpf import Map
from lb.datapath.clock import Clock
from lb.datapath.encode import index_key
from lb.datapath.maps import Maps
from lb.datapath.slotmaps import Encoded, Slots
from lb.model import keys
from lb.model.objects import TRANSLATIONS, Mode, Protocol, Service, Tracking
from lb.settings import Timeouts

# New tables that are open at the same time; each is a file descriptor.
_TABLES_AT_ONCE = 200


def read_owners(owners: Map) -> dict[int, int]:
    """uid of each id that is owned."""
    uids = np.frombuffer(owners.array(), dtype=np.uint64)
    return {int(i): int(uids[i]) for i in np.flatnonzero(uids)}


@dataclass
class Contents:
    """What the kernel maps hold, as bytes; tables as digests."""

    services: dict[int, bytes] = field(default_factory=dict)
    backends: dict[int, bytes] = field(default_factory=dict)
    tables: dict[int, bytes] = field(default_factory=dict)
    vips: dict[bytes, bytes] = field(default_factory=dict)
    ranges: dict[bytes, bytes] = field(default_factory=dict)
    nat_back: dict[bytes, bytes] = field(default_factory=dict)


@dataclass
class Kernel:
    """The maps of one node."""

    maps: Maps
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
            -1, ctypes.sizeof(layout.Backend)
        )
        at = layout.Backend.generation.offset
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
        have = Contents(
            vips=dict(maps.vips.items()),
            ranges=dict(maps.ranges.items()),
            nat_back=dict(maps.nat_back.items()),
            backends={
                number: generations[number].tobytes()
                for number, each in self._backend_ids.items()
                if each.owner
            },
        )
        stirred = set()
        for number in self._service_ids:
            have.services[number] = maps.services.get(index_key(number)) or b""
            held = slotmaps.read_raw(maps.tables, number)
            if held is None:
                continue
            have.tables[number] = _digest(held)
            if held[1] is not None:
                stirred.add(number)
        self._have = have
        self._stirred = stirred
        self._programmed.clear()
        self._unsure = False

    @property
    def services_held(self) -> int:
        """How many services the kernel has."""
        return len(self._service_ids)

    def apply(self, wanted: Wanted, keep: Collection[str] = ()) -> int:
        """Make the maps so; returns how many entries were written or deleted. What belongs to objects
        whose store keys are in `keep` is left as it is.

        The order keeps every packet on solid ground: what is pointed to is written before what points
        to it, and taken away after. Raises CapacityError, before anything is written.
        """
        if self._unsure:
            self.adopt()
        few = [each for name, each in wanted.services.items() if self._programmed.get(name) is not each]
        same = self._is_whole and not keep and wanted.services.keys() == self._programmed.keys()
        if same and all(self._is_in_place(each, wanted) for each in few):
            return self._apply_few(few, wanted)
        kept = {ids.uid(key) for key in keep}
        service_uids = {name: ids.uid(keys.service(name)) for name in wanted.services}
        backend_uids = {key: ids.uid(keys.backend(*key)) for key in wanted.backends}
        service_ids = ids.allocate(
            self._service_ids,
            {*service_uids.values(), *self._owned(self._service_ids, kept)},
            self.maps.services.max_entries,
            "services",
        )
        backend_ids = ids.allocate(
            self._backend_ids,
            {*backend_uids.values(), *self._owned(self._backend_ids, kept)},
            self.maps.backends.max_entries,
            "backends",
        )
        service_of = _inverse(service_ids, service_uids)
        backend_of = _inverse(backend_ids, backend_uids)
        want = Contents()
        tables: dict[int, Encoded] = {}
        for key, number in backend_of.items():
            generation = backend_ids[number].generation
            want.backends[number] = encode.backend(wanted.backends[key], generation)
        for name, number in service_of.items():
            each = wanted.services[name]
            self._add_vip(want, number, each.service)
            self._add_service(want, tables, number, each, backend_of)
        for (service, name), number in backend_of.items():
            owner = wanted.services[service].service
            if owner.mode in TRANSLATIONS:
                backend = wanted.backends[service, name]
                protocol = layout.PROTOCOL_NUMBER[owner.protocol]
                at = layout.endpoint(backend.address, backend.port, protocol)
                want.nat_back[at] = bytes(layout.NatBack(service_of[service], number))
        self._keep(want, kept)
        self.maps.vips.check_room(len(want.vips))
        self.maps.ranges.check_room(len(want.ranges))

        # Whatever fails from here on leaves maps that memory doesn't know.
        self._unsure = True
        changes = self._give_out(service_ids, backend_ids)
        changes += self._write(self._have, want, tables)
        self._take_back(service_ids, backend_ids)
        self._service_ids = {n: each for n, each in service_ids.items() if each.owner}
        self._backend_ids = backend_ids
        self._have = want
        self._programmed = dict(wanted.services)
        self._service_of, self._backend_of, self._is_whole = service_of, backend_of, not kept
        self._wanted_backends = wanted.backends
        self._unsure = False
        return changes

    @staticmethod
    def _owned(held: Mapping[int, Allocation], kept: Collection[int]) -> set[int]:
        return {each.owner for each in held.values() if each.owner in kept}

    def _keep(self, want: Contents, kept: Collection[int]) -> None:
        """Carry over what the kernel has of these owners."""
        have = self._have
        services = {n for n, each in self._service_ids.items() if each.owner in kept}
        backends = {n for n, each in self._backend_ids.items() if each.owner in kept}
        for number in services & have.services.keys():
            want.services.setdefault(number, have.services[number])
        for number in services & have.tables.keys():
            want.tables.setdefault(number, have.tables[number])
        for number in backends & have.backends.keys():
            want.backends.setdefault(number, have.backends[number])
        for at, value in have.nat_back.items():
            if layout.NatBack.from_buffer_copy(value).service in services:
                want.nat_back.setdefault(at, value)
        addresses = set()
        for at, value in have.vips.items():
            endpoint = layout.Endpoint.from_buffer_copy(at)
            if endpoint.port and int.from_bytes(value, sys.byteorder) in services:
                want.vips.setdefault(at, value)
                addresses.add(bytes(endpoint.addr))
        for at, value in have.ranges.items():
            if int.from_bytes(value, sys.byteorder) in services:
                want.ranges.setdefault(at, value)
                addresses.add(bytes(layout.Range.from_buffer_copy(at).addr))
        for at, value in have.vips.items():
            endpoint = layout.Endpoint.from_buffer_copy(at)
            if not endpoint.port and bytes(endpoint.addr) in addresses:
                bits = int.from_bytes(value, sys.byteorder)
                bits |= int.from_bytes(want.vips.get(at, bytes(4)), sys.byteorder)
                want.vips[at] = index_key(bits)

    def _is_in_place(self, each: WantedService, wanted: Wanted) -> bool:
        """Does the service differ from what is programmed in nothing but values: no id to give out, no
        VIP and no way back to change?"""
        before = self._programmed.get(each.service.name)
        if before is None or _fixed(before.service) != _fixed(each.service):
            return False
        name = each.service.name
        if before.base.backends != each.base.backends:
            return False
        backends = ((name, backend) for backend in each.base.backends)
        return all(_where(self._wanted_backends[b]) == _where(wanted.backends[b]) for b in backends)

    def _apply_few(self, few: list[WantedService], wanted: Wanted) -> int:
        """Where only values of some services differ, nothing else needs a look."""
        have, want = Contents(), Contents()
        tables: dict[int, Encoded] = {}
        for each in few:
            name = each.service.name
            number = self._service_of[name]
            self._add_service(want, tables, number, each, self._backend_of)
            have.services[number] = self._have.services[number]
            have.tables[number] = self._have.tables[number]
            for key in ((name, backend) for backend in each.base.backends):
                at = self._backend_of[key]
                generation = self._backend_ids[at].generation
                want.backends[at] = encode.backend(wanted.backends[key], generation)
                have.backends[at] = self._have.backends[at]
        self._unsure = True
        changes = self._write(have, want, tables)
        self._have.services |= want.services
        self._have.backends |= want.backends
        self._have.tables |= want.tables
        self._programmed = dict(wanted.services)
        self._wanted_backends = wanted.backends
        self._unsure = False
        return changes

    def _add_service(
        self,
        want: Contents,
        tables: dict[int, Encoded],
        number: int,
        wanted: WantedService,
        backend_of: Mapping[BackendKey, int],
    ) -> None:
        want.services[number] = encode.service(wanted.service, wanted.seed)
        before = self._programmed.get(wanted.service.name)
        if before and _is_same_table(before, wanted):
            want.tables[number] = self._have.tables[number]
        else:
            tables[number] = self._slots_of(number, wanted, backend_of)
            want.tables[number] = _digest(tables[number])

    @staticmethod
    def _add_vip(want: Contents, number: int, service: Service) -> None:
        protocol = layout.PROTOCOL_NUMBER[service.protocol]
        if service.end_port:
            cut = layout.port_range(service.vip, service.port, service.end_port, protocol)
            want.ranges.update(dict.fromkeys(cut, index_key(number)))
        else:
            want.vips[layout.endpoint(service.vip, service.port, protocol)] = index_key(number)
        # "This address is a VIP", for ICMP and for what has no ports.
        address = layout.endpoint(service.vip, 0, socket.IPPROTO_ICMP)
        bits = int.from_bytes(want.vips.get(address, bytes(4)), sys.byteorder)
        want.vips[address] = index_key(bits | layout.VIP_BIT[service.protocol])

    def _slots_of(
        self, number: int, wanted: WantedService, backend_of: Mapping[BackendKey, int]
    ) -> Encoded:
        """The table with ids for names, and what its slots remember of the one before."""
        name = wanted.service.name
        ids_of = [backend_of.get((name, backend), 0) for backend in wanted.base.backends]
        lookup = np.array([*ids_of, slotmaps.EMPTY], dtype=np.uint32)
        after = lookup[wanted.table.slots]
        is_quiet = number not in self._stirred and not wanted.base.moves
        quiet = slotmaps.encode(Slots(after, moves.none(after)))
        had = self._have.tables.get(number)
        if wanted.service.tracking is Tracking.NEVER or (
            is_quiet and (had is None or had == _digest(quiet))
        ):
            return quiet
        before = slotmaps.read(self.maps.tables, number)
        shared = wanted.base.past()
        past = slotmaps.follow_on(
            before, after, Moves(lookup[shared.origin], shared.closes), wanted.service.window
        )
        # An id of a backend that is gone may be somebody else's.
        known = np.isin(past.origin, lookup)
        past = Moves(np.where(known, past.origin, slotmaps.EMPTY).astype(np.uint32), past.closes)
        return slotmaps.encode(Slots(after, past))

    def calm(self) -> int:
        """Drop idle flows, and make slots quiet that no flow needs to remember any more; returns how
        many slots. Call it now and then, while `is_stirred`."""
        if self._unsure:
            return 0
        by_uid = {each.owner: number for number, each in self._service_ids.items()}
        flows = sweep.read(self.maps)
        calmed: dict[int, Encoded] = {}
        quiet = 0
        for name, wanted in self._programmed.items():
            number = by_uid[ids.uid(keys.service(name))]
            before = slotmaps.read(self.maps.tables, number)
            if number not in self._stirred or before is None:
                continue
            idle = wanted.service.window * self.clock.rate
            after = sweep.calm(self.maps, number, before, flows, idle, self.clock.jiffies())
            fewer = np.count_nonzero(before.moves.stirred) - np.count_nonzero(after.moves.stirred)
            if fewer:
                calmed[number] = slotmaps.encode(after)
                quiet += int(fewer)
        self._unsure = True
        self._swap(calmed)
        self._have.tables |= {number: _digest(encoded) for number, encoded in calmed.items()}
        self._unsure = False
        return quiet

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
                self._service_of[name]
                for name, each in self._programmed.items()
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

    def expire(self, timeouts: Timeouts) -> int:
        """Give back the ports of flows that are over (mode fullnat); returns how many flows."""
        return expiry.expire(self.maps, timeouts, self.clock.jiffies(), self.clock.rate).flows

    @property
    def is_stirred(self) -> bool:
        """Are there slots that aren't quiet?"""
        return bool(self._stirred)

    def _give_out(
        self, service_ids: Mapping[int, Allocation], backend_ids: Mapping[int, Allocation]
    ) -> int:
        """Newly allocated ids: counters from 0, owner written down."""
        new = 0
        for before, after, owners, stats in (
            (self._service_ids, service_ids, self.maps.service_owners, self.maps.service_stats),
            (self._backend_ids, backend_ids, self.maps.backend_owners, self.maps.backend_stats),
        ):
            for number, each in after.items():
                if each.owner and (number not in before or before[number].owner != each.owner):
                    stats.put(index_key(number), bytes(stats.user_value_size))
                    owners.put(index_key(number), bytes(layout.Owner(each.owner)))
                    new += 1
        return new

    def _write(self, have: Contents, want: Contents, tables: Mapping[int, Encoded]) -> int:
        maps = self.maps
        backends = diff(have.backends, want.backends)
        services = diff(have.services, want.services)
        swaps = diff(have.tables, want.tables)
        vips = diff(have.vips, want.vips)
        ranges = diff(have.ranges, want.ranges)
        nat_back = diff(have.nat_back, want.nat_back)
        # A backend that becomes unusable must first lose its slots.
        later = {n: raw for n, raw in backends.put.items() if not encode.is_usable(raw)}
        _put(maps.backends, (item for item in backends.put.items() if item[0] not in later))
        _put_hash(maps.nat_back, nat_back, len(have.nat_back))
        _put(maps.services, services.put.items())
        for numbers in _chunks(list(swaps.put), _TABLES_AT_ONCE):
            self._swap({number: tables[number] for number in numbers})
        _put_hash(maps.vips, vips, len(have.vips))
        _put_hash(maps.ranges, ranges, len(have.ranges))
        _put(maps.backends, later.items())

        for endpoint in vips.delete:
            maps.vips.delete(endpoint)
        for prefix in ranges.delete:
            maps.ranges.delete(prefix)
        for number in swaps.delete:
            maps.tables.delete(index_key(number))
            self._stirred.discard(number)
        for number in services.delete:
            maps.services.put(index_key(number), bytes(maps.services.value_size))
        for endpoint in nat_back.delete:
            maps.nat_back.delete(endpoint)
        for number in backends.delete:
            # The generation stays, for the id's next owner.
            freed = layout.Backend(generation=self._backend_ids[number].generation)
            maps.backends.put(index_key(number), bytes(freed))
        return sum(
            len(each.put) + len(each.delete)
            for each in (backends, services, swaps, vips, ranges, nat_back)
        )

    def _swap(self, fresh: Mapping[int, Encoded]) -> None:
        slotmaps.swap(self.maps.tables, fresh)
        stirred = {number for number, (_, past) in fresh.items() if past is not None}
        self._stirred = self._stirred - fresh.keys() | stirred

    def _take_back(
        self, service_ids: Mapping[int, Allocation], backend_ids: Mapping[int, Allocation]
    ) -> None:
        for before, after, owners in (
            (self._service_ids, service_ids, self.maps.service_owners),
            (self._backend_ids, backend_ids, self.maps.backend_owners),
        ):
            for number, each in before.items():
                if each.owner and not after[number].owner:
                    owners.put(index_key(number), bytes(layout.Owner(0)))


K = TypeVar("K")


def _inverse(allocations: Mapping[int, Allocation], uids: Mapping[K, int]) -> dict[K, int]:
    by_owner = {each.owner: number for number, each in allocations.items()}
    return {key: by_owner[owner] for key, owner in uids.items()}


def _put(target: Map, entries: Iterable[tuple[int, bytes]]) -> None:
    for number, raw in entries:
        target.put(index_key(number), raw)


def _put_hash(target: Map, changes: Difference[bytes, bytes], held: int) -> None:
    """Insert first and delete later, so that nothing is missing in between; the other way around only
    where there is no room for both."""
    if held + len(changes.put) > target.max_entries:
        for key in changes.delete:
            target.delete(key)
    for key, value in changes.put.items():
        target.put(key, value)


def _chunks(numbers: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]


def _digest(encoded: Encoded) -> bytes:
    table, past = encoded
    state = hashlib.blake2b(table, digest_size=16)
    state.update(past or b"")
    return state.digest()


def _where(backend: WantedBackend) -> tuple[object, ...]:
    return backend.address, backend.port


def _fixed(service: Service) -> tuple[object, ...]:
    return service.endpoint, service.mode


def _is_same_table(before: WantedService, after: WantedService) -> bool:
    one, other = before.service, after.service
    return (
        before.table is after.table
        and before.base is after.base
        and (one.tracking, one.window) == (other.tracking, other.window)
    )
