"""What the kernel maps hold, as bytes, and the order in which they are made to hold something else.

The order keeps every packet on solid ground: what is pointed to is written before what points to it, and
taken away after.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from lb.core.diff import Difference, diff
from lb.core.ids import Allocation
from lb.core.rules import Steer
from lb.datapath import consts, encode, mapkeys, rulemaps, slotmaps, structs
from lb.datapath.bpf import Map
from lb.datapath.encode import index_key
from lb.datapath.maps import Maps
from lb.datapath.rulemaps import Kept, Key
from lb.datapath.slotmaps import Encoded
from lb.errors import CapacityError

# Services whose new tables are open at the same time; each is a file descriptor, and so is its past.
_TABLES_AT_ONCE = 100


@dataclass
class Contents:
    """What the kernel maps hold: by id or by key; tables as digests, rules by the service that they
    are of."""

    services: dict[int, bytes] = field(default_factory=dict)
    backends: dict[int, bytes] = field(default_factory=dict)
    tables: dict[int, bytes] = field(default_factory=dict)
    rules: dict[int, Kept] = field(default_factory=dict)
    vips: dict[bytes, bytes] = field(default_factory=dict)
    ranges: dict[bytes, bytes] = field(default_factory=dict)
    nat_back: dict[bytes, bytes] = field(default_factory=dict)
    quic: dict[bytes, bytes] = field(default_factory=dict)


def read(
    maps: Maps, services: Collection[int], backends: Mapping[int, bytes]
) -> tuple[Contents, set[int]]:
    """All of it, and which of the services have slots that aren't quiet."""
    have = Contents(
        backends=dict(backends),
        rules=rulemaps.read(maps.rules),
        vips=dict(maps.vips.items()),
        ranges=dict(maps.ranges.items()),
        nat_back=dict(maps.nat_back.items()),
        quic=dict(maps.quic.items()),
    )
    stirred = set()
    for number in services:
        have.services[number] = maps.services.get(index_key(number)) or b""
        held = slotmaps.read_raw(maps.tables, number)
        if held is None:
            continue
        have.tables[number] = digest(held)
        if held[1] is not None:
            stirred.add(number)
    return have, stirred


def write(
    maps: Maps,
    have: Contents,
    want: Contents,
    tables: Mapping[int, Encoded],
    backend_ids: Mapping[int, Allocation],
) -> int:
    """Make `have` into `want`; returns how many entries were written or deleted. `tables` has those
    whose digests differ, `backend_ids` who has which id."""
    backends = diff(have.backends, want.backends)
    services = diff(have.services, want.services)
    swaps = diff(have.tables, want.tables)
    rules = diff(rulemaps.flat(have.rules), rulemaps.flat(want.rules))
    vips = diff(have.vips, want.vips)
    ranges = diff(have.ranges, want.ranges)
    nat_back = diff(have.nat_back, want.nat_back)
    quic = diff(have.quic, want.quic)
    # A backend that becomes unusable must first lose its slots.
    later = {n: raw for n, raw in backends.put.items() if not encode.is_usable(raw)}
    _put(maps.backends, (item for item in backends.put.items() if item[0] not in later))
    _put_hash(maps.nat_back, nat_back, len(have.nat_back))
    if nat_back.put:
        turn_page(maps, has(have, want))
    _put_hash(maps.quic, quic, len(have.quic))
    _put(maps.services, services.put.items())
    for numbers in _chunks(list(swaps.put), _TABLES_AT_ONCE):
        slotmaps.swap(maps.tables, {number: tables[number] for number in numbers})
    _put_rules(maps.rules, rules)
    _put_hash(maps.vips, vips, len(have.vips))
    _put_hash(maps.ranges, ranges, len(have.ranges))
    _put(maps.backends, later.items())

    for endpoint in vips.delete:
        maps.vips.delete(endpoint)
    for span in ranges.delete:
        maps.ranges.delete(span)
    # Before what they led to is gone.
    if any(each.put or each.delete for each in (vips, ranges)):
        turn_page(maps, has(have, want))
    _delete_rules(maps.rules, rules)
    for number in swaps.delete:
        slotmaps.take_away(maps.tables, number)
    for number in services.delete:
        maps.services.put(index_key(number), bytes(maps.services.value_size))
    for endpoint in nat_back.delete:
        maps.nat_back.delete(endpoint)
    if nat_back.delete or ranges.delete:
        turn_page(maps, has(want))
    for server in quic.delete:
        maps.quic.delete(server)
    for number in backends.delete:
        # The generation stays, for the id's next owner.
        freed = structs.Backend(generation=backend_ids[number].generation)
        maps.backends.put(index_key(number), bytes(freed))
    return sum(
        len(each.put) + len(each.delete)
        for each in (backends, services, swaps, rules, vips, ranges, nat_back, quic)
    )


def turn_page(maps: Maps, has: consts.Has) -> None:
    """Have the programs look up anew what they found so far in vips, ranges and nat_back. `has`: which
    of these may not be empty."""
    edition = structs.Edition.from_buffer_copy(maps.editions.get(index_key(0)) or b"")
    fresh = structs.Edition(number=(edition.number + 1) % 2**32, has=has)
    maps.editions.put(index_key(0), bytes(fresh))


def has(*contents: Contents) -> consts.Has:
    """Which maps one of these has something for."""
    found = consts.Has(0)
    for each in contents:
        found |= consts.Has.RANGES if each.ranges else 0
        found |= consts.Has.NAT_BACK if each.nat_back else 0
    return found


def digest(encoded: Encoded) -> bytes:
    """What tells two tables apart."""
    table, past = encoded
    state = hashlib.blake2b(table, digest_size=16)
    state.update(past or b"")
    return state.digest()


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


def _put_rules(target: Map, changes: Difference[Key, Steer[int]]) -> None:
    """Those that come before those that go, as in _put_hash()."""
    for key, steer in changes.put.items():
        try:
            target.put(*rulemaps.encode(key, steer))
        except CapacityError:
            if not changes.delete:
                raise
            _delete_rules(target, changes)
            target.put(*rulemaps.encode(key, steer))


def _delete_rules(target: Map, changes: Difference[Key, Steer[int]]) -> None:
    for service, prefix in changes.delete:
        target.delete(mapkeys.rule_key(service, prefix))


def _chunks(numbers: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]
