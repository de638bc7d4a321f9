"""What the kernel maps hold by name, as lb/core/room.py asks for it."""

from __future__ import annotations

import socket
import sys
from collections.abc import Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from lb.core.ids import Allocation
from lb.core.room import Span, Vip
from lb.datapath import consts, mapkeys, rulemaps, structs
from lb.datapath.contents import Contents
from lb.datapath.maps import Maps
from lb.model.objects import Network

_PROTOCOLS = {number: protocol for protocol, number in consts.PROTOCOL_NUMBER.items()}


def limits(maps: Maps) -> dict[str, int]:
    """For how many entries the maps have room that desired state can fill. Id 0 is nobody's."""
    return {
        "services": maps.services.max_entries - 1,
        "backends": maps.backends.max_entries - 1,
        "vips": maps.vips.max_entries,
        "ranges": maps.ranges.max_entries,
        "rules": maps.rules.max_entries,
    }


@dataclass(frozen=True)
class Holding:
    """See lb.core.room.Held. Nothing is worked out before somebody looks at it. `staying`: what of
    `have` is kept whatever is wanted, and `staying_ids`: the owners of it."""

    have: Contents
    service_ids: Mapping[int, Allocation]
    backend_ids: Mapping[int, Allocation]
    staying: Contents
    staying_ids: tuple[Collection[int], Collection[int]] = (), ()  # of services, of backends

    @cached_property
    def tables(self) -> frozenset[int]:
        """Who has a table."""
        return frozenset(each.owner for each in self.service_ids.values() if each.owner)

    @cached_property
    def backends(self) -> frozenset[int]:
        """Who has an entry."""
        return frozenset(each.owner for each in self.backend_ids.values() if each.owner)

    @cached_property
    def vips(self) -> dict[Vip, int]:
        """Which service each leads to; 0 of an address alone."""
        return {vip: 0 if vip[1] is None else self._owner(value) for vip, value in _vips(self.have.vips)}

    @cached_property
    def ranges(self) -> dict[Span, int]:
        """The same, of ranges of ports."""
        return {span: self._owner(value) for span, value in _ranges(self.have.ranges)}

    @cached_property
    def rules(self) -> dict[int, Collection[Network]]:
        """The prefixes of each service."""
        ids, held = self.service_ids, self.have.rules
        return {ids[n].owner: kept for n, kept in held.items() if kept and n in ids}

    @cached_property
    def kept(self) -> dict[str, set[Hashable]]:
        """What stays as it is, whatever is wanted."""
        services, backends = self.staying_ids
        return {
            "services": {*services},
            "backends": {*backends},
            "vips": {vip for vip, _ in _vips(self.staying.vips)},
            "ranges": {span for span, _ in _ranges(self.staying.ranges)},
            "rules": {*rulemaps.flat(self.staying.rules)},
        }

    def _owner(self, value: bytes) -> int:
        found = self.service_ids.get(int.from_bytes(value, sys.byteorder))
        return found.owner if found else 0


def _vips(entries: Mapping[bytes, bytes]) -> Iterator[tuple[Vip, bytes]]:
    for raw, value in entries.items():
        at = structs.Endpoint.from_buffer_copy(raw)
        protocol = _PROTOCOLS.get(at.proto) if at.port else None
        yield (mapkeys.address_from(bytes(at.addr)), protocol, socket.ntohs(at.port)), value


def _ranges(entries: Mapping[bytes, bytes]) -> Iterator[tuple[Span, bytes]]:
    for raw, value in entries.items():
        at = structs.Range.from_buffer_copy(raw)
        free = consts.RANGE_BITS + 16 - at.prefixlen
        address = mapkeys.address_from(bytes(at.addr))
        yield (address, _PROTOCOLS[at.proto], socket.ntohs(at.port), free), value
