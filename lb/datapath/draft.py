"""From what is wanted, by name, to what the kernel maps should hold, by id."""

from __future__ import annotations

import socket
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from lb.core import moves
from lb.core.moves import Moves
from lb.core.plan import WantedBackend, WantedService
from lb.core.rules import Steer
from lb.core.state import BackendKey
from lb.datapath import consts, contents, encode, mapkeys, rulemaps, slotmaps, structs
from lb.datapath.bpf import Map
from lb.datapath.contents import Contents
from lb.datapath.encode import index_key
from lb.datapath.rulemaps import Kept
from lb.datapath.slotmaps import Encoded, Slots
from lb.model.objects import TRANSLATIONS, Service, Tracking, table_path


@dataclass
class Draft:
    """Contents in the making: what follows on those that the kernel has. `programmed` is what those were
    made from, `stirred` has the services with slots that aren't quiet."""

    have: Contents
    programmed: Mapping[str, WantedService]
    stirred: Collection[int]
    tables_map: Map
    service_of: Mapping[str, int]  # ids, by the paths of tables
    backend_of: Mapping[BackendKey, int]
    patience: int  # of services that are observed: seconds that an answer may take
    waiting: Collection[BackendKey] = ()  # backends that are in tables, and get their ids later
    want: Contents = field(default_factory=Contents)
    tables: dict[int, Encoded] = field(default_factory=dict)  # those that differ

    def add_service(self, wanted: WantedService) -> None:
        """A table, and what goes with it; of a service also its rules."""
        number = self.service_of[wanted.path]
        before = self.programmed.get(wanted.path)
        is_same = before is not None and _is_same_table(before, wanted)
        if is_same:
            self.want.tables[number] = self.have.tables[number]
        else:
            self.tables[number] = self._slots_of(number, wanted)
            self.want.tables[number] = contents.digest(self.tables[number])
        if wanted.pool is None:
            held = self.have.rules.get(number, {})
            self.want.rules[number] = held if is_same else self._rules_of(wanted)
        self.want.services[number] = encode.service(
            wanted.service,
            wanted.seed,
            has_rules=bool(self.want.rules.get(number)),
            patience=self.patience if wanted.observed else 0,
            mirror_table=self._mirror_table(wanted),
        )

    def _mirror_table(self, wanted: WantedService) -> int:
        """The id of the table that places copies of its flows; 0 = there are none."""
        mirror = wanted.service.mirror if wanted.pool is None else None
        return self.service_of[table_path(wanted.service.name, mirror.pool)] if mirror else 0

    def add_vip(self, service: Service) -> None:
        """What leads to a service."""
        want, number = self.want, self.service_of[service.name]
        protocol = consts.PROTOCOL_NUMBER[service.protocol]
        if service.end_port:
            cut = mapkeys.port_range(service.vip, service.port, service.end_port, protocol)
            want.ranges.update(dict.fromkeys(cut, index_key(number)))
        else:
            want.vips[mapkeys.endpoint(service.vip, service.port, protocol)] = index_key(number)
        # "This address is a VIP", for ICMP and for what has no ports.
        address = mapkeys.endpoint(service.vip, 0, socket.IPPROTO_ICMP)
        bits = int.from_bytes(want.vips.get(address, bytes(4)), sys.byteorder)
        want.vips[address] = index_key(bits | consts.VIP_BIT[service.protocol])

    def add_backend(self, key: BackendKey, wanted: WantedBackend, generation: int) -> None:
        """A backend itself."""
        self.want.backends[self.backend_of[key]] = encode.backend(wanted, generation)

    def add_ways(self, key: BackendKey, wanted: WantedBackend, service: Service) -> None:
        """What leads to a backend, or from it back to its service."""
        number, backend = self.service_of[service.name], self.backend_of[key]
        if wanted.quic_id is not None:
            self.want.quic[bytes(structs.QuicKey(wanted.quic_id, number))] = index_key(backend)
        if service.mode in TRANSLATIONS:
            protocol = consts.PROTOCOL_NUMBER[service.protocol]
            at = mapkeys.endpoint(wanted.address, wanted.port, protocol)
            self.want.nat_back[at] = bytes(structs.NatBack(number, backend))

    def _rules_of(self, wanted: WantedService) -> Kept:
        """The service's rules with ids for pools, and what they remember of those before."""
        service, steers = wanted.service, wanted.base.steers
        number = self.service_of[service.name]
        held = self.have.rules.get(number, {})
        if not (held or steers):
            return {}

        def table(pool: str | None) -> int:
            return self.service_of[table_path(service.name, pool)]

        if service.tracking is Tracking.NEVER:
            return rulemaps.at_rest({prefix: table(pool) for prefix, pool in service.rules.items()})
        shared = {
            prefix: Steer(table(each.to), table(each.before), each.closes)
            for prefix, each in steers.items()
        }
        return rulemaps.follow_on(
            held=held if number in self.have.tables else None,
            shared=shared,
            asked=service.rules,
            tables=[n for path, n in self.service_of.items() if path.partition("/")[0] == service.name],
            service=number,
            window=service.window,
        )

    def _slots_of(self, number: int, wanted: WantedService) -> Encoded:
        """The table with ids for names, and what its slots remember of the one before."""
        name = wanted.service.name
        ids_of = [self.backend_of.get((name, backend), 0) for backend in wanted.base.backends]
        lookup = np.array([*ids_of, slotmaps.EMPTY], dtype=np.uint32)
        after = lookup[wanted.table.slots]
        if self.waiting:
            after = self._meanwhile(number, wanted, after)
        is_quiet = number not in self.stirred and not wanted.base.moves
        quiet = slotmaps.encode(Slots(after, moves.none(after)))
        had = self.have.tables.get(number)
        if wanted.service.tracking is Tracking.NEVER or (
            is_quiet and (had is None or had == contents.digest(quiet))
        ):
            return quiet
        before = slotmaps.read(self.tables_map, number)
        shared = wanted.base.past()
        past = slotmaps.follow_on(
            before, after, Moves(lookup[shared.origin], shared.closes), wanted.service.window
        )
        # An id of a backend that is gone may be somebody else's.
        known = np.isin(past.origin, lookup)
        past = Moves(np.where(known, past.origin, slotmaps.EMPTY).astype(np.uint32), past.closes)
        return slotmaps.encode(Slots(after, past))

    def _meanwhile(self, number: int, wanted: WantedService, after: slotmaps.U32) -> slotmaps.U32:
        """Slots of backends that are still waiting: they stay where they are if that backend has slots
        as well, else go to the others that have some; if there are none, they stay with whoever is left
        of the service's."""
        name = wanted.service.name
        known = [self.backend_of.get((name, backend), 0) for backend in wanted.base.backends]
        waits = np.isin(
            wanted.table.slots,
            [i for i, backend in enumerate(wanted.base.backends) if (name, backend) in self.waiting],
        )
        if not waits.any():
            return after
        held = (slotmaps.read(self.tables_map, number) or slotmaps.empty()).backends
        others = np.setdiff1d(after, slotmaps.EMPTY)
        stays = waits & np.isin(held, others if len(others) else known)
        after = np.where(stays, held, after)
        if len(others):
            leaves = np.flatnonzero(waits & ~stays)
            after[leaves] = np.resize(others, len(leaves))
        return after


def _is_same_table(before: WantedService, after: WantedService) -> bool:
    one, other = before.service, after.service
    return (
        before.table is after.table
        and before.base is after.base
        and (one.tracking, one.window, one.rules) == (other.tracking, other.window, other.rules)
    )
